"""What is on disk when a function returns: files that are there whole or not at all, names that survive a power cut."""

from __future__ import annotations

import ctypes
import os
import sys
import weakref
from pathlib import Path
from typing import Any

_SYNC_FILE_RANGE_WRITE = 2


def _found(name: str, arguments: list[Any]) -> Any:
    """A call of the system that Python does not offer; None where there is none."""
    if sys.platform != "linux":
        return None
    call = getattr(ctypes.CDLL(None, use_errno=True), name, None)
    if call is not None:
        call.argtypes = arguments
    return call


_sync_file_range = _found("sync_file_range", [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint])
_syncfs = _found("syncfs", [ctypes.c_int])


def flush(path: Path) -> None:
    """Write what the system still holds of a file, or of the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class FileSystem:
    """The file system of a folder, as one process knows it.

    That something could not be written is told once to each who has had it open since before; another process that
    opens it later is not told any more (syncfs(2)).

    Raises
    ------
    OSError
        The folder cannot be opened.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._descriptor = os.open(folder, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)

    def flush(self) -> None:
        """Write everything that the system still holds of it to the disk.

        Raises
        ------
        OSError
            Something could not be written, since it was opened or flushed last.
        """
        if _syncfs is None:
            os.sync()
        elif _syncfs(self._descriptor):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(self._folder))


def start_writing(descriptor: int, offset: int) -> None:
    """Let the system begin to write an open file to the disk, from `offset` to its end: a flush waits for less then.

    It promises nothing, and where the system has no such call (other than Linux) nothing happens.
    """
    if _sync_file_range is not None:
        _sync_file_range(descriptor, offset, 0, _SYNC_FILE_RANGE_WRITE)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file: after a crash it has the old or the new content, whole. Its folder is made when it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_bytes(content)
        flush(draft)
        draft.replace(path)
    except BaseException:  # a full disk, above all: what is written of the draft takes room
        draft.unlink(missing_ok=True)
        raise
    flush(path.parent)
