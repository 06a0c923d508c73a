"""What report and key picture take over from the SEG: patient and study, dates, numbers."""

from __future__ import annotations

import copy

from pydicom.dataset import Dataset

from reconstruct.provenance import copy_patient_and_study

CHARACTER_SET = "ISO_IR 192"
"""Labels may be in any script, and the names of patient and physicians in another."""


def context_of(dataset: Dataset) -> Dataset:
    """Return patient, study and identity of an object, without its pixels, in Unicode."""
    context = Dataset()
    copy_patient_and_study(dataset, context)
    context.SpecificCharacterSet = CHARACTER_SET
    for keyword in ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID"):
        context[keyword] = copy.deepcopy(dataset[keyword])
    return context
