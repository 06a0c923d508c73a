"""The encodings of projections that are understood: recognise one, read it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from reconstruct.projections.assembly import assemble
from reconstruct.projections.encoding import LEAST_ANGLES, Encoding, scan_set_of
from reconstruct.projections.p1 import P1
from reconstruct.projections.p2 import P2
from reconstruct.projections.p3 import P3
from reconstruct.projections.p4 import P4
from reconstruct.projections.p5 import P5
from reconstruct.projections.scan import Scan, ScanError

_LONGEST_VALUE = 1 << 20
"""Bytes of a value beyond which it stays in the file until somebody asks for it."""


class Encodings:
    """A number of encodings, asked in turn: the first that recognises an instance decides.

    Parameters
    ----------
    encodings
        The more particular ones first.
    told
        What a site said of them, as text: scans are to be read again when it says something else.
    """

    def __init__(self, encodings: Iterable[Encoding], told: str = "") -> None:
        self.encodings = tuple(encodings)
        self.told = told

    def of(self, dataset: Dataset) -> Encoding | None:
        """Return the encoding of an instance that holds projections, None for any other instance."""
        return next((encoding for encoding in self.encodings if _recognises(encoding, dataset)), None)

    def recognise(self, dataset: Dataset) -> str | None:
        """Return the name of the encoding of an instance that holds projections, None for any other instance."""
        encoding = self.of(dataset)
        return None if encoding is None else encoding.name

    @property
    def sop_classes(self) -> frozenset[str]:
        """What an instance that holds projections can be."""
        return frozenset().union(*(encoding.sop_classes for encoding in self.encodings))

    def holds_projections(self, paths: Iterable[Path]) -> bool:
        """Whether the Part 10 files of a series hold projections; no file is read after those that prove it."""
        angles: dict[str, set[float | None]] = {}
        for path in paths:
            header = read_header(path)
            encoding = self.of(header)
            if encoding is None:
                continue
            if encoding.alone(header):
                return True
            seen = angles.setdefault(encoding.name, set())
            seen.add(encoding.angle_of(header))
            if len(seen) >= LEAST_ANGLES:
                return True
        return False

    def scan_sets(self, paths: Iterable[Path]) -> Iterator[str]:
        """Yield the UID of the scan set of each Part 10 file that holds projections, empty where it has none."""
        for path in paths:
            header = read_header(path)
            if self.of(header) is not None:
                yield scan_set_of(header)

    def read_scan(self, paths: Iterable[Path]) -> Scan:
        """Return the scan in Part 10 files, all of one encoding, which the first that is recognised decides.

        Raises
        ------
        ScanError
            No file, one that cannot be read or holds no projections, or a scan that is incomplete.
        """
        files = list(paths)
        if not files:
            raise ScanError("the scan has no instances")
        encoding = next((found for file in files if (found := self.of(read_header(file))) is not None), None)
        if encoding is None:
            names = ", ".join(sorted({encoding.name for encoding in self.encodings}))
            raise ScanError(f"{files[0].name} holds no projections in any of {names}")
        return assemble(encoding, files)


def _recognises(encoding: Encoding, dataset: Dataset) -> bool:
    """Whether an instance is of an encoding; one with numbers that are none is of no encoding that needs them."""
    try:
        return encoding.recognise(dataset)
    except (TypeError, ValueError, ScanError):
        return False


def read_header(path: Path) -> Dataset:
    """Return the data set of a Part 10 file without its pixels.

    Raises
    ------
    ScanError
        The file cannot be read.
    """
    try:
        return dcmread(path, stop_before_pixels=True, defer_size=_LONGEST_VALUE)
    except InvalidDicomError as error:
        raise ScanError(f"{path.name} is no DICOM file") from error
    except (OSError, EOFError) as error:
        raise ScanError(f"{path.name} cannot be read as a DICOM file: {error}") from error


STANDARD = Encodings((P1, P2, P3, P5, P4))
"""Those that need no settings."""

recognise = STANDARD.recognise
read_scan = STANDARD.read_scan
