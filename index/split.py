"""The held-out part: patients that a model never sees in training and is judged on.

Membership is a property of the patient alone (a hash of seed and patient), not of a list: the split is disjoint by
patient, the same on every machine, and a patient keeps the side when the archive grows.
"""

from __future__ import annotations

import hashlib


def is_held_out(patient_id: str, *, seed: int, fraction: float) -> bool:
    """Whether the patient belongs to the held-out part.

    Parameters
    ----------
    patient_id
        What stands for the patient, see `patient_key`.
    seed
        Another seed draws another part.
    fraction
        Share of the patients that is held out, 0 to 1; a larger one holds out the same patients and more.

    Raises
    ------
    ValueError
        A fraction outside 0 to 1.
    """
    if not 0.0 <= fraction <= 1.0:
        raise ValueError(f"the held-out fraction lies in 0 to 1, got {fraction}")
    digest = hashlib.sha256(f"{seed}\x1f{patient_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2.0**64


def patient_key(patient_id: str, study_instance_uid: str) -> str:
    """Return what stands for the patient of a study: the Patient ID, or where there is none the study itself."""
    return patient_id or study_instance_uid
