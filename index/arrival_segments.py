"""The files of the journal of arrivals: two of each lane, which are written to again and again (`index.arrivals`)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from index.durable import flush

_NAME = re.compile(r"(\d+)-[01]")
_STEP_BYTES = 1 << 20
"""How much a segment has at first. It doubles: to write behind its end would wait for the file system's own journal."""


def segments_in(folder: Path) -> list[Path]:
    """Return all that are there, in the order of their names."""
    with suppress(FileNotFoundError):
        return [path for path in sorted(folder.iterdir()) if _NAME.fullmatch(path.name)]
    return []


def segments_of(folder: Path, lane: int) -> list[Path]:
    """Return where those of a lane are, or would be."""
    return [folder / f"{lane}-{segment}" for segment in (0, 1)]


def remove(segments: Sequence[Path]) -> None:
    """Leave no name of them, and nothing in them: who still writes to one finds out (`Segment.is_gone`).

    The names go first: of one that has lost what was in it and still has its name, its owner would find out nothing.
    """
    with ExitStack() as opened:
        files = [opened.enter_context(path.open("r+b")) for path in segments]
        for path in segments:
            path.unlink()
        for folder in {path.parent for path in segments}:
            flush(folder)
        for file in files:
            file.truncate(0)
            os.fsync(file.fileno())


def lane_of(segment: Path) -> int:
    """Return the lane that the name of a segment tells."""
    return int(segment.name.partition("-")[0])


def clear(segments: Iterable[Path]) -> None:
    """Leave nothing in them, on the disk as well."""
    for path in segments:
        with path.open("r+b") as file:
            file.truncate(0)
            os.fsync(file.fileno())


class Segment:
    """One file of the journal, open for writing that has reached the disk when it returns."""

    def __init__(self, path: Path) -> None:
        is_new = not path.exists()
        self._plain = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b", buffering=0)
        if is_new:
            flush(path.parent)
        self._direct = os.fdopen(_open_directly(path), "wb", buffering=0)

    @property
    def is_gone(self) -> bool:
        """Whether somebody has emptied it: nobody who looks for it finds what is written to it now."""
        return os.fstat(self._plain.fileno()).st_nlink == 0

    def write(self, block: memoryview, at: int) -> None:
        """Write `block` at the byte `at`."""
        self._grow(at + len(block))
        descriptor, done = self._direct.fileno(), 0
        while done < len(block):
            done += os.pwrite(descriptor, block[done:], at + done)

    def _grow(self, size: int) -> None:
        """Have bytes on the disk up to `size` at least: what overwrites them waits for nothing else."""
        descriptor = self._plain.fileno()
        present = os.fstat(descriptor).st_size
        if present >= size:
            return
        wanted = max(size, 2 * present)
        while present < wanted:
            present += os.pwrite(descriptor, bytes(_STEP_BYTES), present)
        os.fsync(descriptor)


def _open_directly(path: Path) -> int:
    """Open for writes past the system's cache, which is flushed anyway; on file systems without that, through it."""
    flags = os.O_WRONLY | os.O_DSYNC
    try:
        return os.open(path, flags | getattr(os, "O_DIRECT", 0))
    except OSError:
        return os.open(path, flags)
