"""What a stored file has, block by block, for one who sends it.

A large file that is not in the system's cache is read past it (O_DIRECT, open(2)), some blocks ahead, into memory that
is used again and again: see `docs/decisions/0017-past-the-cache.md`. One that the disk was slow to give goes into the
cache when it is asked for again.
"""

from __future__ import annotations

import errno
import fcntl
import os
import random
import time
from collections import OrderedDict, deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, closing
from functools import cache
from pathlib import Path
from threading import Lock
from types import TracebackType

from index.direct_io import BLOCK_BYTES, LARGE, PAGE, Memory
from index.read_ahead import bring_what_follows

_AHEAD = 2
"""Blocks that are read while one is sent, of a MiB each; of a quarter of that where many large files are sent."""

_MOST_THREADS = 4

_SLOW_BYTES_PER_S = 200e6
"""What a disk gives from which a file is worth the cache. A single hard disk gives less, a solid one more."""

_MOST_REMEMBERED = 256

_MEMORY = Memory()


class Blocks(AbstractContextManager["Blocks"]):
    """The bytes of a file from `offset` on.

    Attributes
    ----------
    size
        How many they are.

    Raises
    ------
    OSError
        It cannot be opened.
    """

    def __init__(self, path: Path, offset: int) -> None:
        self._path = path
        self._offset = offset
        self._file = path.open("rb", buffering=0)
        self.size = max(0, os.fstat(self._file.fileno()).st_size - offset)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self._file.close()

    def read(self, step: int) -> Generator[memoryview, None, None]:
        """Yield all of them; a block means nothing any more when the next one is asked for.

        Parameters
        ----------
        step
            Of which a block had best be a multiple, bytes.

        Raises
        ------
        OSError
            They cannot be read to the end.
        """
        blocks = self._past_cache(step) if self._goes_past_cache() else self._through_cache(step)
        left = self.size
        with closing(blocks):
            for block in blocks:
                left -= len(block)
                yield block
        if left:
            raise OSError("it has become shorter")

    def _goes_past_cache(self) -> bool:
        """Make ready to read the file past the cache; False where it is better, or has, to be read through it.

        The parts of a data set have an even length (PS3.8 9.3.5.1): no block may end at an odd byte of it.
        """
        if self.size < LARGE or self._offset % 2 or self._is_cached() or _SLOW.has(self._path):
            return False
        return self._set_direct(os.O_DIRECT) if hasattr(os, "O_DIRECT") else False

    def _set_direct(self, flag: int) -> bool:
        """Have reads go past the cache, with O_DIRECT as `flag`, or through it; whether the file system does that."""
        descriptor = self._file.fileno()
        try:
            fcntl.fcntl(descriptor, fcntl.F_SETFL, fcntl.fcntl(descriptor, fcntl.F_GETFL) & ~os.O_DIRECT | flag)
        except OSError:
            return False
        return True

    def _is_cached(self) -> bool:
        """Whether the file is in the cache, judged by one byte of it; True as well where the system does not say.

        Not by one of its begin, which is read ahead; and another byte each time: to ask for one that is not there may
        bring its page into the cache.
        """
        end = self._offset + self.size
        place = random.randrange(max(self._offset, min(BLOCK_BYTES, end - 1)), end)  # noqa: S311
        try:
            return bool(os.preadv(self._file.fileno(), [bytearray(1)], place, os.RWF_NOWAIT))
        except BlockingIOError:
            return False
        except (OSError, AttributeError):
            return True

    def _through_cache(self, step: int) -> Generator[memoryview, None, None]:
        self._file.seek(self._offset)
        at_once, left = max(1, BLOCK_BYTES // step) * step, self.size
        while block := memoryview(self._file.read(min(left, at_once))):
            left -= len(block)
            if left:
                bring_what_follows(self._file.fileno(), self._file.tell())
            yield block

    def _past_cache(self, step: int) -> Generator[memoryview, None, None]:
        descriptor, end, at = self._file.fileno(), self._offset + self.size, self._offset // PAGE * PAGE
        coming: deque[tuple[memoryview, int, Future[int]]] = deque()
        begin, waited_s, together = at, 0.0, _READERS.come()
        try:
            while begin < end:
                while at < end and len(coming) <= _AHEAD:
                    memory = _MEMORY.take()
                    coming.append((memory, at, _pool().submit(os.preadv, descriptor, [memory], at)))
                    at += len(memory)
                asked = time.monotonic()
                memory, begin, reading = coming[0]
                found = min(reading.result(), end - begin)
                waited_s += time.monotonic() - asked
                yield memory[max(0, self._offset - begin) : found]
                coming.popleft()
                _MEMORY.give_back(memory)
                if found < len(memory):  # its end, or it has become shorter
                    break
                begin += found
            if waited_s * _SLOW_BYTES_PER_S > self.size * max(together, _READERS.count):
                _SLOW.add(self._path)
        except OSError as error:
            if error.errno != errno.EINVAL or begin > self._offset:
                raise
            self._set_direct(0)
            yield from self._through_cache(step)  # the file system took the flag, but not what was asked for
        finally:
            for memory, _, reading in coming:
                reading.exception()  # nobody writes to that memory any more
                _MEMORY.give_back(memory)
            _READERS.leave()


class _Readers:
    """Those of this process that read past the cache now, and so share the disk."""

    def __init__(self) -> None:
        self.count = 0
        self._lock = Lock()

    def come(self) -> int:
        """Be one of them; return how many they are."""
        with self._lock:
            self.count += 1
            return self.count

    def leave(self) -> None:
        """Be none of them any more."""
        with self._lock:
            self.count -= 1


_READERS = _Readers()


class _Some:
    """The paths that were added last."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._paths: OrderedDict[Path, None] = OrderedDict()
        self._lock = Lock()

    def add(self, path: Path) -> None:
        with self._lock:
            self._paths[path] = None
            self._paths.move_to_end(path)
            if len(self._paths) > self._most:
                self._paths.popitem(last=False)

    def has(self, path: Path) -> bool:
        with self._lock:
            return path in self._paths


_SLOW = _Some(_MOST_REMEMBERED)


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_MOST_THREADS, thread_name_prefix="read-past-cache")
