"""What of a reconstruction is done already, in files that outlive the process: a crash costs one slab.

A folder for each piece of work holds line integrals and volume of the energy bin that is being worked on, the slabs of
it that are done (one line each, written after the slab is on disk), and the bins whose series are stored.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reconstruct.working_memory import NoRoom, require_room, take_room

KEPT_DAYS = 7.0
"""Files of work that nobody has gone on with for so long are removed, days."""


@dataclass(frozen=True)
class FinishedBin:
    """An energy bin whose CT series is stored."""

    index: int
    series_instance_uid: str
    instances: int


class Checkpoint:
    """The files of one piece of work.

    Parameters
    ----------
    folder
        Where such files go, on a file system that is large enough.
    names
        What the work is: its source, its content, its recipe. Other names make another checkpoint.
    """

    def __init__(self, folder: Path, names: Mapping[str, str]) -> None:
        key = hashlib.sha256(json.dumps(dict(names), sort_keys=True).encode()).hexdigest()[:32]
        self.folder = folder.absolute() / f"reconstruct-{key}"
        self.folder.mkdir(parents=True, exist_ok=True)

    def finished_bins(self) -> tuple[FinishedBin, ...]:
        """Return the bins that are done, in the order in which they were finished."""
        return tuple(FinishedBin(**line) for line in _lines(self.folder / "bins"))

    def finish_bin(self, finished: FinishedBin) -> None:
        """Note that a bin's series is stored, and remove what it was made from."""
        _append(self.folder / "bins", asdict(finished))
        for path in self.folder.glob(f"bin-{finished.index}.*"):
            path.unlink()

    def forget_bins(self) -> None:
        """Forget that any bin is finished."""
        (self.folder / "bins").unlink(missing_ok=True)

    def array(self, bin_number: int, what: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Return the float32 array `what` of a bin, as it was left or zeros, mapped from a file.

        Raises
        ------
        NoRoom
            The file system has no room for it.
        """
        path, size = self.path(bin_number, what), _bytes_of(shape)
        if not self._is_there(bin_number, what, shape):
            self._forget(bin_number, what)
            try:
                with path.open("wb") as file:
                    take_room(file, size)
            except NoRoom:
                path.unlink()
                raise
        return np.memmap(path, dtype=np.float32, mode="r+", shape=shape)

    def take_room(self, bin_number: int, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Take room for arrays of a bin, their shapes by `what`: for all of them, or for none.

        Raises
        ------
        NoRoom
            The sentence says how much is needed besides what is there, and how much is free.
        """
        missing = [shape for what, shape in shapes.items() if not self._is_there(bin_number, what, shape)]
        require_room(self.folder, sum(map(_bytes_of, missing)))
        for what, shape in shapes.items():
            self.array(bin_number, what, shape)

    def path(self, bin_number: int, what: str) -> Path:
        """Return the file that `array` maps."""
        return self.folder / f"bin-{bin_number}.{what}"

    def parts_done(self, bin_number: int, what: str) -> list[tuple[int, int]]:
        """Return the ranges (start, stop) of axis 0 of an array that are done."""
        return [(int(line["start"]), int(line["stop"])) for line in _lines(self._notes(bin_number, what))]

    def part_done(self, bin_number: int, what: str, start: int, stop: int) -> None:
        """Note that a range of axis 0 is done. Its voxels are on disk when this returns."""
        with self.path(bin_number, what).open("rb") as file:
            os.fsync(file.fileno())
        _append(self._notes(bin_number, what), {"start": start, "stop": stop})

    def remove(self) -> None:
        """Remove all of it: the work is done, or nobody wants it any more."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _is_there(self, bin_number: int, what: str, shape: tuple[int, ...]) -> bool:
        path = self.path(bin_number, what)
        return path.exists() and path.stat().st_size == _bytes_of(shape)

    def _notes(self, bin_number: int, what: str) -> Path:
        return self.folder / f"bin-{bin_number}.{what}-done"

    def _forget(self, bin_number: int, what: str) -> None:
        self._notes(bin_number, what).unlink(missing_ok=True)


def remove_abandoned(folder: Path, *, kept_days: float = KEPT_DAYS) -> int:
    """Remove the checkpoints below `folder` that nobody has gone on with for `kept_days`; return how many."""
    oldest = time.time() - kept_days * 86400
    abandoned = [path for path in folder.glob("reconstruct-*") if _last_change(path) < oldest]
    for path in abandoned:
        shutil.rmtree(path, ignore_errors=True)
    return len(abandoned)


def _last_change(folder: Path) -> float:
    try:
        return max(path.stat().st_mtime for path in (folder, *folder.iterdir()))
    except FileNotFoundError:  # somebody is removing it
        return time.time()


def _bytes_of(shape: tuple[int, ...]) -> int:
    return 4 * math.prod(shape)


def _lines(path: Path) -> list[dict[str, Any]]:
    """Return the notes of a file; one that a crash or a full disk cut off does not count."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    notes = []
    for line in text.split("\n")[:-1]:
        with suppress(ValueError):
            notes.append(json.loads(line))
    return notes


def _append(path: Path, note: Mapping[str, object]) -> None:
    is_cut_off = path.exists() and path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")
    with path.open("a", encoding="utf-8") as file:
        file.write(("\n" if is_cut_off else "") + json.dumps(dict(note)) + "\n")
        file.flush()
        os.fsync(file.fileno())
