"""What an archive holds about its series: SEG and RTSTRUCT, and which images they are about."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import RTStructureSetStorage

from index import derivations
from index.archive import Archive
from plugins.node import CannotProceed
from plugins.segmentation.reading import ANNOTATIONS
from plugins.segmentation.structure_sets import referenced_images

logger = logging.getLogger(__name__)

_REFERENCES = ["SOPClassUID", "SOPInstanceUID", "ReferencedSeriesSequence", "ReferencedFrameOfReferenceSequence"]


@dataclass(frozen=True)
class Annotation:
    """A stored SEG or RTSTRUCT.

    Attributes
    ----------
    images
        SOP Instance UIDs of the series that it says it is about; empty when it names the series alone.
    is_own
        Whether this node made it.
    """

    path: Path
    images: frozenset[str]
    is_own: bool = False


def annotations_of(archive: Archive) -> dict[str, list[Annotation]]:
    """Return Series Instance UID → what is stored about it, in the order of SOP Instance UID."""
    found: dict[str, list[Annotation]] = {}
    for stored, series in archive.database.execute(
        "SELECT instance.path, series.series_instance_uid FROM instance JOIN series ON series.id = instance.series "
        "WHERE instance.sop_class_uid IN (SELECT value FROM json_each(?)) ORDER BY instance.sop_instance_uid",
        (json.dumps(sorted(ANNOTATIONS)),),
    ):
        path = archive.files.path(stored)
        try:
            about = _about(pydicom.dcmread(path, stop_before_pixels=True, specific_tags=_REFERENCES))
        except (InvalidDicomError, OSError, AttributeError, TypeError, CannotProceed) as error:
            logger.warning("%s is left out: %s", stored, error)
            continue
        is_own = derivations.maker(archive.database, series) is not None
        for uid, images in about.items():
            found.setdefault(uid, []).append(Annotation(path, images, is_own))
    return found


def _about(dataset: Dataset) -> dict[str, frozenset[str]]:
    """Return Series Instance UID → SOP Instance UIDs that an annotation refers to."""
    if dataset.SOPClassUID == RTStructureSetStorage:
        return referenced_images(dataset)
    referenced = dataset.get("ReferencedSeriesSequence") or []
    if not referenced:
        raise CannotProceed("the segmentation does not say which series it is about")
    return {
        str(item.get("SeriesInstanceUID") or ""): frozenset(
            str(image.get("ReferencedSOPInstanceUID")) for image in item.get("ReferencedInstanceSequence") or []
        )
        for item in referenced
    }
