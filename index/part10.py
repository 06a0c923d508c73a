"""Part 10 files as bytes (PS3.10 7.1): where the data set begins, what it inflates to, which are the same."""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from typing import BinaryIO

from pydicom.filereader import read_dataset, read_preamble
from pydicom.tag import BaseTag

_BLOCK_BYTES = 1 << 20


def is_same_data_set(one: Path, other: Path) -> bool:
    """Whether two files differ at most in the File Meta Information, which each receiver writes anew.

    The data sets are compared as they are encoded, block by block: a file may be larger than the memory.
    """
    with one.open("rb") as first, other.open("rb") as second:
        if _data_set_size(first) != _data_set_size(second):
            return False
        while block := first.read(_BLOCK_BYTES):
            if block != second.read(_BLOCK_BYTES):
                return False
    return True


def inflate(path: Path, limit: int) -> bytes:
    """Return the first `limit` bytes of a deflated data set (PS3.5 A.5), which may inflate to any size."""
    with path.open("rb") as file:
        _data_set_size(file)
        return _inflate(file, limit)[0]


def inflate_whole(source: BinaryIO, limit: int) -> bytes:
    """Return all that the rest of `source`, a deflated data set, inflates to.

    Raises
    ------
    ValueError
        More than `limit` bytes (no more than these are ever in memory), or cut off.
    zlib.error
        Not deflated.
    """
    inflated, is_whole = _inflate(source, limit + 1)
    if len(inflated) > limit:
        raise ValueError(f"it inflates to more than {limit} bytes")
    if not is_whole:
        raise ValueError(f"the deflated data set is cut off after {len(inflated)} bytes")
    return inflated


def _inflate(source: BinaryIO, limit: int) -> tuple[bytes, bool]:
    """Return the first `limit` bytes, and whether the deflated data ended there."""
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    inflated = bytearray()
    while (
        not stream.eof
        and len(inflated) < limit
        and (block := stream.unconsumed_tail or source.read(_BLOCK_BYTES))
    ):
        inflated += stream.decompress(block, limit - len(inflated))
    return bytes(inflated), stream.eof


def _data_set_size(file: BinaryIO) -> int:
    """Move `file` to the beginning of its data set and return how many bytes that has."""
    read_preamble(file, force=False)
    read_dataset(file, is_implicit_VR=False, is_little_endian=True, stop_when=_is_after_file_meta)
    return os.fstat(file.fileno()).st_size - file.tell()


def _is_after_file_meta(tag: BaseTag, _vr: str | None, _length: int) -> bool:
    return tag.group != 0x0002
