"""A stored object in another transfer syntax, for a peer that does not take it as it is (PS3.5 Annex A).

The only place where pixel data is decoded on the way out; what is stored never changes. Frames are decoded and written
one by one, and what is large goes to a file, so that no object is ever in memory.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pydicom.tag import BaseTag
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
)

from index.archive import StoredInstance
from index.decoding import Undecodable
from index.errors import OutOfSpace
from index.part10 import NewFile, inflated_file
from index.structure import DEEPEST, require_structure
from scp import pixel_data, transcoding
from scp.contexts import UNCOMPRESSED
from scp.errors import ConversionError
from scp.part10 import data_set_offset
from scp.transcoding import Bulk, Deflated, Sink

_IN_MEMORY_BYTES = 1 << 24
"""A converted object, or an inflated one, up to this is kept in memory."""

_DEFERRED_BYTES = 1 << 20
"""Values longer than this are copied block by block."""

LARGEST_INFLATED = 1 << 32
"""Bytes that a stored data set may inflate to: a small file may inflate to any size."""

_ELSEWHERE = {"1.2.840.10008.1.2.4.94", "1.2.840.10008.1.2.4.95", "1.2.840.10008.1.2.4.204", "1.2.840.10008.1.2.4.205"}
"""JPIP Referenced: the pixels are on another server (PS3.5 A.6)."""


def target_syntax(stored: str, accepted: Collection[str]) -> str:
    """Return the transfer syntax to send in: the stored one when it is accepted, else an uncompressed one.

    Raises
    ------
    ConversionError
        Neither the stored nor an uncompressed transfer syntax is accepted.
    """
    if stored in accepted:
        return stored
    for syntax in UNCOMPRESSED:
        if syntax in accepted:
            return str(syntax)
    raise ConversionError(f"the peer takes neither {UID(stored).name} nor an uncompressed syntax")


@contextmanager
def converted(instance: StoredInstance, target: str, new_file: NewFile) -> Iterator[bytes | tuple[Path, int]]:
    """Give the data set of `instance` in the uncompressed transfer syntax `target`, for as long as it is needed.

    Yields
    ------
    bytes or (Path, int)
        The encoded data set, or the file that holds it and its offset there.

    Raises
    ------
    ConversionError
        The pixel data cannot be decoded here, or the data set cannot be encoded.
    OutOfSpace
        It would be a file, or has to be inflated to one, for which the archive has no room.
    """
    path, content = _convert(instance, UID(target), new_file)
    try:
        yield content if path is None else (path, 0)
    finally:
        if path is not None:
            path.unlink(missing_ok=True)


def _convert(instance: StoredInstance, target: UID, new_file: NewFile) -> tuple[Path | None, bytes]:
    """Return the converted data set: in a file, or in memory."""
    path = None
    try:
        with _data_set(instance, new_file) as (file, offset):
            dataset, bulk = _read(file, offset, UID(instance.transfer_syntax_uid), target)
            size = sum(each.length for each in bulk.values())
            if size <= _IN_MEMORY_BYTES:
                buffer = BytesIO()
                _write(dataset, bulk, buffer, target)
                return None, buffer.getvalue()
            path = new_file(size)
            with path.open("wb") as sink:
                _write(dataset, bulk, sink, target)
            return path, b""
    except Exception as error:  # decoders and pydicom raise of all kinds; each means that this object cannot be sent
        if path is not None:
            path.unlink(missing_ok=True)
        if isinstance(error, OutOfSpace):
            raise
        if isinstance(error, (ConversionError, Undecodable)):
            raise ConversionError(str(error)) from error
        raise ConversionError(f"cannot convert it: {error}") from error


@contextmanager
def _data_set(instance: StoredInstance, new_file: NewFile) -> Iterator[tuple[BinaryIO, int]]:
    """Give a file with the data set, not deflated, and its offset there."""
    if cut_off := require_structure(instance.path, DEEPEST):  # what is made of it would look whole
        raise ConversionError(f"its data set is {cut_off}")
    with instance.path.open("rb") as file:
        offset = data_set_offset(instance.path)
        if instance.transfer_syntax_uid != DeflatedExplicitVRLittleEndian:
            yield file, offset
            return
        file.seek(offset)
        with inflated_file(file, new_file, in_memory=_IN_MEMORY_BYTES, limit=LARGEST_INFLATED) as inflated:
            yield inflated, 0


def _read(file: BinaryIO, offset: int, stored: UID, target: UID) -> tuple[Dataset, dict[BaseTag, Bulk]]:
    """Return the data set without what is long in it, and that."""
    if stored in _ELSEWHERE:
        raise ConversionError("its pixels are on a JPIP server")
    file.seek(offset)
    dataset = read_dataset(
        file,
        is_implicit_VR=stored == ImplicitVRLittleEndian,
        is_little_endian=stored != ExplicitVRBigEndian,
        defer_size=_DEFERRED_BYTES,
    )
    for item in dataset.get("IconImageSequence") or []:
        icon = pixel_data.decoded(item, file, stored, target)
        if icon is not None:
            item.add_new(transcoding.PIXEL_DATA, icon.vr, b"".join(icon.blocks))
    pixels = pixel_data.decoded(dataset, file, stored, target)  # last, for it has a decoder until it is written
    bulk = transcoding.take_deferred(dataset, file, target)
    return dataset, bulk if pixels is None else {**bulk, transcoding.PIXEL_DATA: pixels}


def _write(dataset: Dataset, bulk: dict[BaseTag, Bulk], sink: Sink, target: UID) -> None:
    if target != DeflatedExplicitVRLittleEndian:
        transcoding.write(dataset, bulk, sink, target)
        return
    deflated = Deflated(sink)
    transcoding.write(dataset, bulk, deflated, target)
    deflated.finish()
