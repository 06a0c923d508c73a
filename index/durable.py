"""What is on disk when a function returns: files that are there whole or not at all, names that survive a power cut."""

from __future__ import annotations

import ctypes
import os
import sys
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


def flush_file_system(folder: Path) -> None:
    """Write everything that the system still holds of the file system of `folder` to the disk (syncfs(2)).

    Raises
    ------
    OSError
        Something could not be written.
    """
    if _syncfs is None:
        os.sync()
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if _syncfs(descriptor):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(folder))
    finally:
        os.close(descriptor)


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
