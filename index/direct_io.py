"""Files that are written past the system's cache (O_DIRECT, open(2)), from memory that is used again and again.

What an archive receives is much, and to copy it into the cache, into pages that the system has to find first, may take
longer than the disk takes: see `docs/decisions/0017-past-the-cache.md`.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import threading
import weakref
from collections import deque
from pathlib import Path

PAGE = 4096
"""Where O_DIRECT begins and ends, in memory and in the file."""

BLOCK_BYTES = 1 << 20
"""Size of the memory in which what is written is collected, at most."""

SMALL = 160 << 10
"""Bytes up to which a file is written through the cache: a slice of 256 × 256 is."""

LARGE = 8 << 20
"""Bytes from which a file may be read past the cache: of what is smaller, all or much is read ahead."""

_MOST_LARGE = _MOST_FREE = 8
_FEWER_BYTES = 1 << 18
_O_DIRECT = getattr(os, "O_DIRECT", 0)


class Memory:
    """Blocks that begin at a page. Those that come back are given out again: the system knows them.

    A few have `BLOCK_BYTES`. Who comes when these are in use gets a smaller one, and writes more often: many senders at
    the same time take little memory.
    """

    def __init__(self) -> None:
        self._free: dict[int, deque[memoryview]] = {BLOCK_BYTES: deque(), _FEWER_BYTES: deque()}
        self._large: list[weakref.ref[memoryview]] = []
        self._lock = threading.Lock()

    def take(self) -> memoryview:
        """Return a block; what is in it is of no meaning."""
        with self._lock:
            for free in self._free.values():
                if free:
                    return free.pop()
            self._large = [each for each in self._large if each() is not None]  # some may never have come back
            size = BLOCK_BYTES if len(self._large) < _MOST_LARGE else _FEWER_BYTES
            block = memoryview(mmap.mmap(-1, size))  # which takes no memory before it is written to
            if size == BLOCK_BYTES:
                self._large.append(weakref.ref(block))
            return block

    def give_back(self, block: memoryview) -> None:
        """Let others have a block that nobody reads any more."""
        with self._lock:
            free = self._free[len(block)]
            if len(free) < _MOST_FREE:
                free.append(block)


class NewFile:
    """A file that is written once, from its begin to its end.

    Parameters
    ----------
    path
        It may be there, empty.
    past_cache
        Write past the system's cache, where the file system lets us.

    Raises
    ------
    OSError
        It cannot be opened.
    """

    def __init__(self, path: Path, *, past_cache: bool) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        self._at = 0
        self._is_direct = past_cache and bool(_O_DIRECT)
        try:
            self.descriptor = os.open(path, flags | (_O_DIRECT if self._is_direct else 0), 0o600)
        except OSError as error:
            if not self._is_direct or error.errno != errno.EINVAL:  # EINVAL: not on this file system
                raise
            self._is_direct = False
            self.descriptor = os.open(path, flags, 0o600)

    @property
    def is_direct(self) -> bool:
        """Whether it is written past the cache, but for the end of what is no whole page."""
        return self._is_direct

    def write(self, block: memoryview, size: int) -> None:
        """Append the first `size` bytes of a block; only the last time these may be no whole pages.

        Raises
        ------
        OSError
            They cannot be written: the disk is full, above all.
        """
        begin = self._at
        if self._is_direct:
            try:
                self._write_to(begin + size // PAGE * PAGE, block, begin)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                self._is_direct = False  # the file system took the flag, but not what was written
            if self._at < begin + size:
                self._go_through_cache()
        self._write_to(begin + size, block, begin)

    def _write_to(self, end: int, block: memoryview, begin: int) -> None:
        while self._at < end:
            self._at += os.write(self.descriptor, block[self._at - begin : end - begin])

    def _go_through_cache(self) -> None:
        """Write through the cache from now on; past it, the end of what is no whole page would have to be cut off."""
        flags = fcntl.fcntl(self.descriptor, fcntl.F_GETFL)
        fcntl.fcntl(self.descriptor, fcntl.F_SETFL, flags & ~_O_DIRECT)

    def flush(self) -> None:
        """Have all of it on disk."""
        os.fsync(self.descriptor)

    def close(self) -> None:
        """Be done with it; once more does no harm."""
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)
