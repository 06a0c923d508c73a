"""The key picture of a SEG as Secondary Capture (PS3.3 A.8.1): one image that every viewer shows.

Not a multi-frame one: the three planes belong side by side, and single-frame Secondary Capture is what all viewers have
known for longest. Everything in it follows from the SEG and its sources, dates too: those of the SEG.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from config.identity import derived_uid
from plugins.measurement.provenance import context_of
from plugins.pictures import KEY_PICTURE, complete
from reconstruct.dicom_items import code, item_of
from reconstruct.part10 import with_file_meta
from reconstruct.provenance import number_after

_SERIES_NUMBER_OFFSET = 2000


def key_picture(
    pixels: NDArray[np.uint8], seg: Dataset, slices: Sequence[Dataset], *, series_uid: str, description: str
) -> Dataset:
    """Return the Secondary Capture of a drawn picture, with File Meta Information.

    Parameters
    ----------
    pixels
        (row, column, 3) RGB.
    seg
        The SEG that it shows.
    slices
        Headers of the source images that it shows.
    series_uid
        Series Instance UID of the pictures of the SEG's series; with that of the SEG it makes the SOP Instance UID.
    description
        How it was made.
    """
    dataset = context_of(seg)
    complete(dataset, pixels, KEY_PICTURE)
    dataset.SeriesInstanceUID = series_uid
    dataset.SOPInstanceUID = derived_uid(series_uid, str(seg.SOPInstanceUID))
    dataset.SeriesNumber = number_after(seg, _SERIES_NUMBER_OFFSET)
    dataset.InstanceNumber = int(seg.get("InstanceNumber") or 1)
    dataset.SeriesDescription = f"Key picture: {seg.get('SeriesDescription') or 'segments'}"[:64]
    for what in ("Date", "Time"):
        told = seg.get(f"Content{what}") or seg.get(f"Series{what}") or ""
        setattr(dataset, f"Series{what}", told)
        setattr(dataset, f"Content{what}", told)
    _add_sources(dataset, seg, slices, description)
    return with_file_meta(dataset)


def _add_sources(dataset: Dataset, seg: Dataset, slices: Sequence[Dataset], description: str) -> None:
    dataset.DerivationDescription = description[:1024]
    dataset.DerivationCodeSequence = [code("113072", "DCM", "Multiplanar reformatting")]
    dataset.SourceImageSequence = [
        item_of(
            ReferencedSOPClassUID=source.SOPClassUID,
            ReferencedSOPInstanceUID=source.SOPInstanceUID,
            PurposeOfReferenceCodeSequence=[code("121322", "DCM", "Source image for image processing operation")],
        )
        for source in (seg, *slices)
    ]
    _add_what_identifies(dataset, slices)


def _add_what_identifies(dataset: Dataset, slices: Sequence[Dataset]) -> None:
    """Say whether the pixels identify the patient (PS3.3 C.7.6.1): what is drawn does not, so it is as in the slices.

    Whether features can be recognised (0028,0302) is told where all slices tell it.
    """
    burned_in, recognizable = (
        {str(source.get(keyword) or "") for source in slices}
        for keyword in ("BurnedInAnnotation", "RecognizableVisualFeatures")
    )
    dataset.BurnedInAnnotation = "YES" if "YES" in burned_in else "NO"
    if "YES" in recognizable or recognizable == {"NO"}:
        dataset.RecognizableVisualFeatures = "YES" if "YES" in recognizable else "NO"
