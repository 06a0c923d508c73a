"""The encodings of projections that are understood, as a table: recognise one, read it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from reconstruct.projections.p1 import is_p1, read_p1
from reconstruct.projections.scan import Scan, ScanError


@dataclass(frozen=True)
class Encoding:
    """One encoding of projections.

    Attributes
    ----------
    name
        Its short name.
    recognise
        Whether an instance (pixels not needed) is of it.
    read
        The scan that instances of it hold together.
    """

    name: str
    recognise: Callable[[Dataset], bool]
    read: Callable[[Iterable[Path | Dataset]], Scan]


ENCODINGS: tuple[Encoding, ...] = (Encoding("P1", is_p1, read_p1),)


def recognise(dataset: Dataset) -> str | None:
    """Return the name of the encoding of an instance that holds projections, None for any other instance."""
    return next((encoding.name for encoding in ENCODINGS if encoding.recognise(dataset)), None)


def read_scan(paths: Iterable[Path]) -> Scan:
    """Return the scan in Part 10 files, all of one encoding.

    Raises
    ------
    ScanError
        No file, one that cannot be read or holds no projections, or a scan that is incomplete.
    """
    files = list(paths)
    if not files:
        raise ScanError("the scan has no instances")
    try:
        first = dcmread(files[0], stop_before_pixels=True)
    except (InvalidDicomError, OSError) as error:
        raise ScanError(f"{files[0].name} cannot be read as a DICOM file: {error}") from error
    name = recognise(first)
    encoding = next((encoding for encoding in ENCODINGS if encoding.name == name), None)
    if encoding is None:
        raise ScanError(f"{files[0].name} holds no projections in any of {', '.join(e.name for e in ENCODINGS)}")
    return encoding.read(files)
