"""What an imported scan is called: UIDs that follow from its images, how they were taken, and whose they are.

The same scan, imported again in the same way, gets the same UIDs, so that it is recognised and never stored twice.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from pydicom.dataset import Dataset

from config.identity import derived_uid
from reconstruct.imports.raw_scan import RawScan, Setup
from reconstruct.projections.scan import PixelMeaning

_RECIPE, _RESCALED = "imported scan 1", "imported scan 2"
"""Of images that are stored as they are, and of others. To be changed with what is written of a scan, and with how its
images are spread over instances: else what an older version had written would pass for the same."""

_STORED_BYTES = 2
"""Of a pixel of an Enhanced XA Image (PS3.3 A.47)."""

_OF_STUDY = ("PatientID", "PatientName", "AccessionNumber", "StudyDescription")
_OF_SERIES = ("BodyPartExamined", "SeriesDescription")


@dataclass(frozen=True)
class ScanUids:
    """The UIDs of an imported scan.

    Attributes
    ----------
    study, series
        Study and Series Instance UID.
    """

    study: str
    series: str

    @property
    def frame_of_reference(self) -> str:
        """Frame of Reference UID."""
        return derived_uid(self.series, "frame of reference")

    @property
    def scan_set(self) -> str:
        """UID of the scan set (0071,xx01)."""
        return derived_uid(self.series, "scan set")

    def instance(self, number: int) -> str:
        """Return the SOP Instance UID of the instance with that Instance Number, from 1."""
        return derived_uid(self.series, f"instance {number}")


def uids_of(scan: RawScan, header: Dataset, progress: Callable[[float], None] | None = None) -> ScanUids:
    """Return the UIDs of a scan; every image is read once, one at a time, before any can be written.

    All instances bear the Series Instance UID, and it follows from all images: so they are read here, and again when
    they are written. No image stays in memory meanwhile.

    The study follows from the pixels and from Patient ID, Patient's Name, Accession Number and Study Description; the
    series from its study, from all that is told of how the images were taken, and from its description and body part.
    Neither dates, nor names of files, nor the way in which an image is compressed count.

    Parameters
    ----------
    header
        Patient, study and series attributes; a Study Instance UID in it is that of the study.
    progress
        Called with the fraction of the images that are read; may raise to stop the work.

    Raises
    ------
    ScanError
        An image cannot be read; the sentence names it.
    """
    pixels = _digest_of_images(scan, progress)
    of_study = [f"{keyword}={header.get(keyword) or ''}" for keyword in _OF_STUDY]
    of_series = [f"{keyword}={header.get(keyword) or ''}" for keyword in _OF_SERIES]
    study = str(header.get("StudyInstanceUID") or "") or derived_uid("imported scan", "study", pixels, *of_study)
    return ScanUids(study, derived_uid(_recipe(scan), study, pixels, *of_study, *of_series, _told(scan.setup)))


def _recipe(scan: RawScan) -> str:
    kinds = [images.dtype for images in (scan.views, scan.flats, scan.darks) if images is not None]
    whole = all(kind.kind == "u" and kind.itemsize <= _STORED_BYTES for kind in kinds)
    return _RECIPE if whole or scan.setup.pixels is PixelMeaning.COUNTS else _RESCALED


def _digest_of_images(scan: RawScan, progress: Callable[[float], None] | None) -> str:
    """Return the SHA-256, hex, of the roles, sizes, types and pixels of all images."""
    groups = [
        (role, images)
        for role, images in (("views", scan.views), ("flats", scan.flats), ("darks", scan.darks))
        if images is not None
    ]
    total, done = sum(len(images) for _, images in groups), 0
    digest = hashlib.sha256()
    for role, images in groups:
        digest.update(f"{role} {images.shape};".encode())
        for index in range(len(images)):
            image = images[index]
            kind = image.dtype.newbyteorder("<")
            digest.update(f"{kind.str};".encode())
            digest.update(np.ascontiguousarray(image, kind).reshape(-1).view(np.uint8).data)
            done += 1
            if progress is not None:
                progress(done / total)
    return digest.hexdigest()


def _told(setup: Setup) -> str:
    """Return what is told of how the images were taken, as text; what nobody has told is left out."""
    told, untold = _fields(setup), _fields(Setup())
    return ";".join(f"{name}={value}" for name, value in told.items() if value != untold[name])


def _fields(setup: Setup) -> dict[str, str]:
    return {name: json.dumps(value, default=_listed, sort_keys=True) for name, value in asdict(setup).items()}


def _listed(array: Any) -> Any:
    return array.tolist()
