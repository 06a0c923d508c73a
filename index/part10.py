"""Part 10 files as bytes (PS3.10 7.1): where the data set begins, what it inflates to, which are the same."""

from __future__ import annotations

import os
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import IO, BinaryIO

from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_dataset, read_preamble
from pydicom.tag import BaseTag

from index.errors import InvalidInstance

NewFile = Callable[[int], Path]
"""Makes an empty file for so many bytes on the file system of the archive; raises `OutOfSpace`."""

_BLOCK_BYTES = 1 << 20
_INFLATING = threading.BoundedSemaphore(2)
"""How many data sets are held inflated at the same time: their number, not that of the senders, bounds the memory."""


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


@contextmanager
def inflated(file: BinaryIO, limit: int) -> Iterator[tuple[bytes, bool]]:
    """Give the first `limit` bytes that the rest of `file` inflates to, and whether that is all of it.

    Waits while others hold inflated data sets in memory. Raises `InvalidInstance` when it is not deflated.
    """
    with _INFLATING:
        try:
            content, is_whole = _inflate(file, limit)
        except zlib.error as error:
            raise InvalidInstance(f"the data set cannot be inflated: {error}") from error
        yield content, is_whole


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


def inflate_into(source: BinaryIO, sink: IO[bytes], limit: int) -> None:
    """Write all that the rest of `source`, a deflated data set, inflates to into `sink`, block by block.

    Raises
    ------
    ValueError
        More than `limit` bytes, or cut off.
    zlib.error
        Not deflated.
    """
    for block in _inflated_blocks(source, limit):
        sink.write(block)


@contextmanager
def inflated_file(source: BinaryIO, new_file: NewFile, *, in_memory: int, limit: int) -> Iterator[BinaryIO]:
    """Give what the rest of `source`, a deflated data set, inflates to, as a file that stands at its beginning.

    Parameters
    ----------
    new_file
        Where it goes when it is too large for the memory; the file does not stay.
    in_memory
        Bytes up to which it is kept in memory.
    limit
        Bytes that it may have.

    Raises
    ------
    ValueError
        More than `limit` bytes, or cut off.
    zlib.error
        Not deflated.
    OutOfSpace
        There is no room for the file.
    """
    begin = source.tell()
    size = sum(len(block) for block in _inflated_blocks(source, limit))  # before there is a file: is there room?
    source.seek(begin)
    path = new_file(size) if size > in_memory else None
    try:
        with BytesIO() if path is None else path.open("w+b") as whole:
            inflate_into(source, whole, limit)
            whole.seek(0)
            yield whole
    finally:
        if path is not None:
            path.unlink(missing_ok=True)


def _inflated_blocks(source: BinaryIO, limit: int) -> Iterator[bytes]:
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    size = 0
    while not stream.eof and (block := stream.unconsumed_tail or source.read(_BLOCK_BYTES)):
        inflated = stream.decompress(block, _BLOCK_BYTES)
        size += len(inflated)
        if size > limit:
            raise ValueError(f"it inflates to more than {limit} bytes")
        yield inflated
    if not stream.eof:
        raise ValueError(f"the deflated data set is cut off after {size} bytes")


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


def begin_of_data_set(file: BinaryIO) -> tuple[int, str]:
    """Move `file` to the beginning of its data set; return that offset and the Transfer Syntax UID, "" for none.

    Raises
    ------
    InvalidInstance
        Not a Part 10 file, or its File Meta Information cannot be read.
    """
    try:
        meta = _skip_file_meta(file)
        return file.tell(), str(meta.get("TransferSyntaxUID", "")).strip(" \0")
    except InvalidDicomError as error:
        raise InvalidInstance("not a DICOM Part 10 file") from error
    except OSError as error:
        if error.errno is not None:  # the disk is at fault; without a number it is pydicom that came to the end
            raise
        raise InvalidInstance(f"unreadable File Meta Information: {error}") from error
    except Exception as error:  # a parser fed with hostile bytes raises anything
        raise InvalidInstance(f"unreadable File Meta Information: {type(error).__name__}") from error


def _data_set_size(file: BinaryIO) -> int:
    """Move `file` to the beginning of its data set and return how many bytes that has."""
    _skip_file_meta(file)
    return os.fstat(file.fileno()).st_size - file.tell()


def _skip_file_meta(file: BinaryIO) -> Dataset:
    read_preamble(file, force=False)
    return read_dataset(file, is_implicit_VR=False, is_little_endian=True, stop_when=_is_after_file_meta)


def _is_after_file_meta(tag: BaseTag, _vr: str | None, _length: int) -> bool:
    return tag.group != 0x0002
