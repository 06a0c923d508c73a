"""How many associations are open, in one number for all processes that accept them.

``max_associations`` is a limit of the node. Each process has a slot in a small file that all of them map; a lock on
that file makes "is there a place?" and "it is mine" one step. A process that dies leaves its slot as it was: who sees
it end calls `vacate`, and whoever follows it begins with zero.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

PLACES_FILE = "associations.places"
"""Name of that file, in the data folder."""

_SLOT = struct.Struct("<qq")
"""Associations that have a place, and connections of any kind."""

_OUT_OF_REACH = 1 << 32
"""Connections of a process that does not run: so many that nobody leaves the next one to it."""


class Counted(Protocol):
    """Counts associations, of this process or of several."""

    def take(self, most: int) -> bool:
        """Take a place; False when `most` are taken."""

    def give_back(self) -> None:
        """Leave a place to the next one."""

    def note_load(self, connections: int) -> None:
        """Be told how many connections this process has."""

    @property
    def is_busier(self) -> bool:
        """Whether another process has fewer connections than this one; it may be another one in a moment."""


class Alone:
    """The places of a node whose associations are all in this process. Not safe to share between threads."""

    is_busier = False

    def __init__(self) -> None:
        self._taken = 0

    def take(self, most: int) -> bool:
        """Take a place; False when `most` are taken."""
        is_free = self._taken < most
        self._taken += is_free
        return is_free

    def give_back(self) -> None:
        """Leave a place to the next one."""
        self._taken -= 1

    def note_load(self, connections: int) -> None:
        """Nobody asks."""


class Places:
    """The slot of one process among those of all. Safe to share between threads.

    Parameters
    ----------
    path
        The file; made when it is not there.
    slot
        Number of this process's slot, from 0.
    count
        Slots that there are.
    """

    def __init__(self, path: Path, slot: int, count: int) -> None:
        self._begin = slot * _SLOT.size
        self._thread = threading.Lock()
        self._taken = self._load = 0
        self._file = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
        size = count * _SLOT.size
        with self._locked():
            if os.fstat(self._file).st_size < size:
                os.ftruncate(self._file, size)
        self._map = mmap.mmap(self._file, size)
        with self._locked():
            self._write()

    def take(self, most: int) -> bool:
        """Take a place; False when `most` are taken, by all processes together."""
        with self._locked():
            if sum(taken for taken, _ in _SLOT.iter_unpack(self._map[:])) >= most:
                return False
            self._taken += 1
            self._write()
            return True

    def give_back(self) -> None:
        """Leave a place to the next one."""
        with self._locked():
            self._taken -= 1
            self._write()

    def note_load(self, connections: int) -> None:
        """Tell the others how many connections this process has."""
        with self._thread:
            self._load = connections
            self._write()

    @property
    def is_busier(self) -> bool:
        """Whether another process has fewer connections than this one; it may be another one in a moment."""
        return self._load > min(int(load) for _, load in _SLOT.iter_unpack(self._map[:]))

    def _write(self) -> None:
        _SLOT.pack_into(self._map, self._begin, self._taken, self._load)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with self._thread:
            fcntl.flock(self._file, fcntl.LOCK_EX)  # ends with the process, however that ends
            try:
                yield
            finally:
                fcntl.flock(self._file, fcntl.LOCK_UN)

    def close(self, load: int = 0) -> None:
        """Give everything back; nothing else is called afterwards. The others see `load` connections from now on."""
        with self._locked():
            self._taken, self._load = 0, load
            self._write()
        self._map.close()
        os.close(self._file)


def vacate(path: Path, slot: int, count: int) -> None:
    """Give back what a process had that has ended, before another follows it; parameters as those of `Places`."""
    Places(path, slot, count).close(_OUT_OF_REACH)
