"""Where the large arrays of a reconstruction go: into memory while they fit the bound, else into files.

The pages of a memory map count as memory of the process while they are mapped, whoever could take them away. So whoever
works on an array that may be a map works on pieces, and gives each one's pages back: they stay in the system's cache.
"""

from __future__ import annotations

import ctypes
import errno
import math
import mmap
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

MIB = 1 << 20

AT_ONCE = MIB
"""Bytes of views that a correction works on at once; at least one view."""

_SMALL_THINGS = 8 * MIB
"""What is left to objects that nobody counts, and to freed memory that is not given back; at most an eighth."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Parameters of mallopt(3)."""

_AROUND = 2 * MIB
"""Bytes before and behind those in use that the system may map with them: it maps large pages of its cache whole."""


class NoRoom(OSError):
    """The disk has no room for what is worked on; the message is one sentence for the user."""

    def __init__(self, sentence: str) -> None:
        super().__init__(errno.ENOSPC, sentence)

    def __str__(self) -> str:
        """Return the sentence alone."""
        return str(self.strerror)


@dataclass(frozen=True)
class WorkingMemory:
    """What of an energy bin is held in memory.

    Attributes
    ----------
    integrals_in_file, volume_in_file
        Whether the line integrals and the volume are memory maps of files.
    fdk_mb
        What is left to FDK for its own work, MiB.
    """

    integrals_in_file: bool
    volume_in_file: bool
    fdk_mb: int

    @classmethod
    def of(
        cls,
        projections: tuple[int, ...],
        volume: tuple[int, ...],
        memory_mb: int,
        *,
        preparing: int = 0,
        writing: int = 0,
    ) -> WorkingMemory:
        """Divide `memory_mb` among float32 projections and a volume of these shapes, and the work of FDK.

        Both are held in memory while they leave FDK half of it. Otherwise the volume goes into a file, and so do the
        line integrals if they would take more than a quarter.

        Parameters
        ----------
        preparing, writing
            Bytes that are taken besides line integrals while these are made, and besides the volume while it is
            written.

        Raises
        ------
        ValueError
            Too little memory for that.
        """
        budget, integrals, voxels = memory_mb * MIB, 4 * math.prod(projections), 4 * math.prod(volume)
        budget -= min(_SMALL_THINGS, budget // 8)
        for what, needed in (("to read and correct the projections", preparing), ("to write a slice", writing)):
            if needed > budget:
                raise ValueError(f"expected memory {what}, {-(-needed // MIB)} MiB, got {memory_mb} MiB")
        is_held = integrals + preparing <= budget and voxels + writing <= budget
        if is_held and integrals + voxels <= budget // 2:
            return cls(False, False, (budget - integrals - voxels) // MIB)
        if integrals <= min(budget // 4, budget - preparing):
            return cls(False, True, (budget - integrals) // MIB)
        return cls(True, True, budget // MIB)


def file_array(shape: tuple[int, ...], folder: Path | None) -> NDArray[np.float32]:
    """Return zeros, float32, that live in a file without a name: its space is free again when the array is.

    Parameters
    ----------
    folder
        On the file system that is to hold it; None: where temporary files go.

    Raises
    ------
    NoRoom
        The file system has no room for it.
    """
    size = 4 * math.prod(shape)
    with tempfile.TemporaryFile(dir=folder) as file:
        require_room(Path(tempfile.gettempdir()) if folder is None else folder, size)
        take_room(file, size)
        return np.memmap(file, dtype=np.float32, mode="r+", shape=shape)


def require_room(folder: Path, size: int) -> None:
    """Refuse what the file system of `folder` has no room for, before any of it is taken.

    Some file systems fill the disk before they say that it is full.

    Parameters
    ----------
    size
        Bytes that files in `folder` are to take.

    Raises
    ------
    NoRoom
        The sentence says how much is needed and how much is free.
    """
    free = shutil.disk_usage(folder).free
    if size > free:
        raise NoRoom(
            f"expected {_amount(size)} of room on the disk for files in {folder}, found {_amount(free)}"
        )


def take_room(file: IO[bytes], size: int) -> None:
    """Give `file` its size on the disk now: one with holes would kill the process that writes it when the disk is full.

    Raises
    ------
    NoRoom
        The disk has become full meanwhile.
    """
    try:
        os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise NoRoom(f"expected {_amount(size)} of room on the disk for a file: {error.strerror}") from error
        raise


def _amount(size: int) -> str:
    return f"{size / MIB:.1f} MiB" if size < MIB << 10 else f"{size / (MIB << 10):.1f} GiB"


@cache
def return_freed_memory() -> None:
    """Have the C library give freed arrays back to the system, from now on, in all of this process.

    glibc would come to keep whatever is smaller than 32 MiB, and up to twice as much of it (mallopt(3),
    M_MMAP_THRESHOLD): more than a small bound on memory has room for. Other libraries are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, MIB // 4)
        mallopt(_M_TRIM_THRESHOLD, MIB)


def release(array: Any) -> None:
    """Give back the memory of what `array` maps of a file; nothing where it is no part of a map.

    What was written stays: it is in the system's cache, if not on disk.
    """
    found = _map_of(array)
    if found is None or not hasattr(found, "madvise") or not array.size:
        return
    low, high = np.lib.array_utils.byte_bounds(array)
    begin = int(np.frombuffer(found, dtype=np.uint8).ctypes.data)
    first = max(0, low - begin - _AROUND) // mmap.PAGESIZE * mmap.PAGESIZE
    found.madvise(mmap.MADV_DONTNEED, first, min(len(found), high - begin + _AROUND) - first)


def is_mapped(array: object) -> bool:
    """Whether `array` is, or is a part of, the memory map of a file."""
    return _map_of(array) is not None


def mapped_bytes(run: int, whole: int) -> int:
    """Return the most that is mapped of a file of `whole` bytes while `run` bytes in a row are in use."""
    return min(run + 2 * _AROUND, whole)


def pieces(array: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    """Yield neighbours along axis 0, `AT_ONCE` bytes or one; what they map is released when the next one is asked for.

    Parameters
    ----------
    array
        An array or a memory map, which may be changed through the pieces.
    """
    count = max(1, AT_ONCE // max(1, array[:1].nbytes))
    for start in range(0, len(array), count):
        part = array[start : start + count]
        yield part
        release(part)


def _map_of(array: object) -> mmap.mmap | None:
    """Return the map that an array lies in; None where changes of its pages are lost with them (mode "c")."""
    base: Any = array
    shared = False
    while isinstance(base, np.ndarray):
        shared |= isinstance(base, np.memmap) and base.mode != "c"
        base = base.base
    return base if shared and isinstance(base, mmap.mmap) else None
