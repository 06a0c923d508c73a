"""The quality of a scan as a Secondary Capture in the study of the scan, dated like it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from config.identity import derived_uid
from plugins.measurement.provenance import context_of
from plugins.pictures import SCAN_QUALITY, complete
from reconstruct.part10 import with_file_meta
from reconstruct.projections.scan import Scan
from reconstruct.provenance import add_sources, canonical, in_words, number_after

_SERIES_NUMBER_OFFSET = 3000


def quality_picture(pixels: NDArray[np.uint8], scan: Scan, recipe: Mapping[str, Any]) -> Dataset:
    """Return the Secondary Capture of a drawn picture, with File Meta Information; its source images are the scan's.

    Parameters
    ----------
    pixels
        (row, column, 3) RGB.
    scan
        Whose quality it shows.
    recipe
        How it was made; with the scan it makes the UIDs, so that a second run replaces the first.
    """
    header = scan.header
    dataset = context_of(header)
    complete(dataset, pixels, SCAN_QUALITY)
    study = str(header.get("StudyInstanceUID", ""))
    dataset.SeriesInstanceUID = derived_uid(study, scan.uid, canonical(recipe))
    dataset.SOPInstanceUID = derived_uid(str(dataset.SeriesInstanceUID), "picture")
    dataset.SeriesNumber, dataset.InstanceNumber = number_after(header, _SERIES_NUMBER_OFFSET), 1
    dataset.SeriesDescription = "Scan quality"
    for what in ("Date", "Time"):
        told = header.get(f"Content{what}") or header.get(f"Series{what}") or ""
        setattr(dataset, f"Series{what}", told)
        setattr(dataset, f"Content{what}", told)
    told_of = {key: value for key, value in recipe.items() if key != "kind"}
    add_sources(dataset, scan.sources, f"Scan before and after corrections: {in_words(told_of)}")
    # What is drawn are numbers of the scanner; whether projections bear names is what the scan says.
    dataset.BurnedInAnnotation = "YES" if header.get("BurnedInAnnotation") == "YES" else "NO"
    return with_file_meta(dataset)
