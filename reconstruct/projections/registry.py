"""The encodings of projections that are understood, as a table: recognise one, read it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import EnhancedXAImageStorage

from reconstruct.projections.p1 import is_p1, read_p1, scan_set_of
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
    scan_set
        The UID that the instances of one scan share although their series differ; empty when there is none.
    sop_classes
        What its instances can be: no other needs to be looked into.
    """

    name: str
    recognise: Callable[[Dataset], bool]
    read: Callable[[Iterable[Path | Dataset]], Scan]
    scan_set: Callable[[Dataset], str]
    sop_classes: frozenset[str]


ENCODINGS: tuple[Encoding, ...] = (
    Encoding("P1", is_p1, read_p1, scan_set_of, frozenset({EnhancedXAImageStorage})),
)
SOP_CLASSES = frozenset().union(*(encoding.sop_classes for encoding in ENCODINGS))
"""What an instance that holds projections can be."""


def recognise(dataset: Dataset) -> str | None:
    """Return the name of the encoding of an instance that holds projections, None for any other instance."""
    encoding = _encoding_of(dataset)
    return None if encoding is None else encoding.name


def holds_projections(paths: Iterable[Path]) -> bool:
    """Whether any of the Part 10 files holds projections; no file is read after the first that does."""
    return any(_encoding_of(read_header(path)) is not None for path in paths)


def scan_sets(paths: Iterable[Path]) -> Iterator[str]:
    """Yield the UID of the scan set of each Part 10 file that holds projections, empty where it has none."""
    for path in paths:
        header = read_header(path)
        encoding = _encoding_of(header)
        if encoding is not None:
            yield encoding.scan_set(header)


def read_header(path: Path) -> Dataset:
    """Return the data set of a Part 10 file without its pixels.

    Raises
    ------
    ScanError
        The file cannot be read.
    """
    try:
        return dcmread(path, stop_before_pixels=True)
    except (InvalidDicomError, OSError) as error:
        raise ScanError(f"{path.name} cannot be read as a DICOM file: {error}") from error


def read_scan(paths: Iterable[Path]) -> Scan:
    """Return the scan in Part 10 files, all of one encoding, which the first that is recognised decides.

    Raises
    ------
    ScanError
        No file, one that cannot be read or holds no projections, or a scan that is incomplete.
    """
    files = list(paths)
    if not files:
        raise ScanError("the scan has no instances")
    encoding = next((found for file in files if (found := _encoding_of(read_header(file))) is not None), None)
    if encoding is None:
        raise ScanError(f"{files[0].name} holds no projections in any of {', '.join(e.name for e in ENCODINGS)}")
    return encoding.read(files)


def _encoding_of(dataset: Dataset) -> Encoding | None:
    return next((encoding for encoding in ENCODINGS if encoding.recognise(dataset)), None)
