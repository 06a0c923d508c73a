"""A stored object in another transfer syntax, for a peer that does not take it as it is (PS3.5 Annex A).

The only place where pixel data is decoded on the way out; what is stored never changes.
"""

from __future__ import annotations

from collections.abc import Collection
from io import BytesIO

import pydicom
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    JPEG2000MC,
    UID,
    DeflatedExplicitVRLittleEndian,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLSNearLossless,
)
from pynetdicom.dsutils import encode

from index.archive import StoredInstance
from index.part10 import inflate_whole
from scp.contexts import UNCOMPRESSED
from scp.errors import ConversionError
from scp.part10 import data_set_offset

_WORD_BYTES = {"OW": 2, "OF": 4, "OL": 4, "OD": 8, "OV": 8}
"""Bytes of a word of the VRs whose words follow the byte order (PS3.5 7.3)."""

_LOSSY = {JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless, JPEG2000, JPEG2000MC, HTJ2K}
"""Transfer syntaxes that may be lossy."""

_LARGEST_UNPACKED = 1 << 30
"""Bytes of a data set inflated, or of pixels decoded, for a conversion: a small stored file may unpack to any size."""


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


def converted(instance: StoredInstance, target: str) -> bytes:
    """Return the data set of `instance` encoded in the uncompressed transfer syntax `target`.

    Raises
    ------
    ConversionError
        The pixel data cannot be decoded here, the data set cannot be encoded, or it would not fit into memory.
    """
    syntax = UID(target)
    try:
        dataset = _read(instance)
        _decompress(dataset, UID(instance.transfer_syntax_uid))
        if UID(instance.transfer_syntax_uid).is_little_endian != syntax.is_little_endian:
            _swap_words(dataset)
        _decode_all(dataset)
        encoded = encode(dataset, syntax.is_implicit_VR, syntax.is_little_endian, syntax.is_deflated)
    except Exception as error:  # decoders and pydicom raise of all kinds; each means that this object cannot be sent
        name = UID(instance.transfer_syntax_uid).name
        raise ConversionError(f"cannot convert from {name}: {error}") from error
    if encoded is None:
        raise ConversionError(f"cannot encode the object in {syntax.name}")
    return encoded


def _read(instance: StoredInstance) -> Dataset:
    if instance.transfer_syntax_uid != DeflatedExplicitVRLittleEndian:
        return pydicom.dcmread(instance.path)
    with instance.path.open("rb") as file:
        file.seek(data_set_offset(instance.path))
        inflated = inflate_whole(file, _LARGEST_UNPACKED)
    return read_dataset(BytesIO(inflated), is_implicit_VR=False, is_little_endian=True)


def _decompress(dataset: Dataset, stored: UID) -> None:
    if not stored.is_encapsulated or "PixelData" not in dataset:
        return
    size = _decoded_bytes(dataset)
    if size > _LARGEST_UNPACKED:
        raise ConversionError(f"its pixels are {size} bytes, at most {_LARGEST_UNPACKED} are decoded")
    dataset.decompress(generate_instance_uid=False)
    if stored in _LOSSY and "LossyImageCompression" not in dataset:
        dataset.LossyImageCompression = "01"


def _decoded_bytes(dataset: Dataset) -> int:
    """Return what the pixel data takes once it is decoded, by its description (PS3.3 C.7.6.3)."""
    pixels = int(dataset.get("Rows") or 0) * int(dataset.get("Columns") or 0) * int(dataset.get("NumberOfFrames") or 1)
    return pixels * int(dataset.get("SamplesPerPixel") or 1) * -(-int(dataset.get("BitsAllocated") or 8) // 8)


def _decode_all(dataset: Dataset) -> None:
    """Turn raw elements into values: pydicom would write their bytes in the old byte order."""
    for _ in dataset.iterall():
        pass


def _swap_words(dataset: Dataset) -> None:
    cell = int(dataset.get("BitsAllocated") or 0) // 8
    for element in dataset.iterall():
        size = _WORD_BYTES.get(element.VR)
        if size is not None and isinstance(element.value, bytes):
            # A pixel cell of more than 16 bits is one number, whatever its VR says.
            _swap(element, max(size, cell) if element.keyword == "PixelData" else size)


def _swap(element: DataElement, size: int) -> None:
    words = bytearray(element.value)
    whole = len(words) - len(words) % size
    swapped = bytearray(whole)
    for position in range(size):
        swapped[position:whole:size] = words[size - 1 - position : whole : size]
    element.value = bytes(swapped) + bytes(words[whole:])
