"""A data set written in another uncompressed encoding, element by element (PS3.5 7.1, 7.3, Annex A).

What is long is never in memory: such values are copied from the stored file, or come from elsewhere, block by block.
Texts go over byte for byte, so that what their sender wrote arrives, be it malformed.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import BinaryIO, Protocol

import numpy as np
from pydicom.charset import default_encoding
from pydicom.datadict import dictionary_has_tag, dictionary_VR
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import correct_ambiguous_vr, write_data_element
from pydicom.tag import BaseTag
from pydicom.uid import UID
from pydicom.valuerep import EXPLICIT_VR_LENGTH_32

from scp.errors import ConversionError

UNDEFINED_LENGTH = 0xFFFFFFFF
PIXEL_DATA = BaseTag(0x7FE00010)
LONGEST_VALUE = 0xFFFFFFFE
"""Bytes of a value: its length field has 32 bits, and is even."""

_BYTE_VRS = {"AE", "AS", "CS", "DA", "DS", "DT", "IS", "LO", "LT", "OB", "PN", "SH", "ST", "TM", "UC", "UI", "UN", "UR",
             "UT"}  # fmt: skip
"""VRs whose values are the same bytes in every encoding (PS3.5 7.3)."""

_WORD_BYTES = {
    "AT": 2, "OW": 2, "SS": 2, "US": 2, "FL": 4, "OF": 4, "OL": 4, "SL": 4, "UL": 4,
    "FD": 8, "OD": 8, "OV": 8, "SV": 8, "UV": 8,
}  # fmt: skip
"""Bytes of a word of the VRs whose words follow the byte order (PS3.5 7.3)."""

_WORDS_AS_BYTES = {"OF", "OW", "OL", "OD", "OV"}
"""Those of them whose values pydicom leaves as bytes."""

_LONGEST_SHORT = 0xFFFF
_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class Bulk:
    """A long value.

    Attributes
    ----------
    length
        Bytes, even.
    blocks
        The value in the byte order of the target; can be read once.
    """

    vr: str
    length: int
    blocks: Iterable[bytes]


class Sink(Protocol):
    """Where encoded bytes go."""

    def write(self, data: bytes, /) -> object:
        """Take the next bytes."""


class Deflated:
    """A sink that deflates what it gets (PS3.5 A.5)."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._stream = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        self._count = 0

    def write(self, data: bytes, /) -> None:
        """Deflate the next bytes."""
        self._put(self._stream.compress(data))

    def finish(self) -> None:
        """Write the rest, padded to even length."""
        self._put(self._stream.flush())
        self._put(b"\0" * (self._count % 2))

    def _put(self, data: bytes) -> None:
        self._count += len(data)
        self._sink.write(data)


def write(dataset: Dataset, bulk: Mapping[BaseTag, Bulk], sink: Sink, target: UID) -> None:
    """Write `dataset`, and the long values `bulk` at their places, to `sink` in the uncompressed syntax `target`.

    Parameters
    ----------
    dataset
        As it was read; it cannot be used for anything else afterwards.

    Raises
    ------
    ConversionError
        An element cannot be written in `target`.
    """
    charset = dataset.get("SpecificCharacterSet") or default_encoding
    _settle(dataset, target, is_little=bool(dataset.original_encoding[1]))
    elements = dict(dataset.items())
    for tag in sorted({*elements, *bulk}):
        if tag.element == 0:  # group lengths are retired, and would be wrong
            continue
        if tag in bulk:
            _write_bulk(tag, bulk[tag], sink, target)
            continue
        buffer = DicomBytesIO()
        buffer.is_implicit_VR, buffer.is_little_endian = target.is_implicit_VR, target.is_little_endian
        write_data_element(buffer, elements[tag], charset)
        sink.write(buffer.getvalue())


def _write_bulk(tag: BaseTag, bulk: Bulk, sink: Sink, target: UID) -> None:
    order = "<" if target.is_little_endian else ">"
    vr, length = bulk.vr, struct.pack(f"{order}L", bulk.length)
    if target.is_implicit_VR:
        header = length
    elif vr in EXPLICIT_VR_LENGTH_32 or bulk.length > _LONGEST_SHORT:  # too long for its VR: UN (PS3.5 6.2.2)
        header = (vr if vr in EXPLICIT_VR_LENGTH_32 else "UN").encode() + b"\0\0" + length
    else:
        header = vr.encode() + struct.pack(f"{order}H", bulk.length)
    sink.write(struct.pack(f"{order}HH", tag.group, tag.element) + header)
    written = 0
    for block in bulk.blocks:
        sink.write(block)
        written += len(block)
    if written != bulk.length:
        raise ConversionError(f"{tag} has {written} bytes, {bulk.length} are expected")


def take_deferred(dataset: Dataset, file: BinaryIO, target: UID) -> dict[BaseTag, Bulk]:
    """Take the values that pydicom has left in `file`, and native pixel data, out of `dataset`, for `write`.

    Raises
    ------
    ConversionError
        An element of undefined length that is no sequence, other than pixel data.
    """
    is_swapped = bool(dataset.original_encoding[1]) != target.is_little_endian
    bits = _bits(dataset)
    taken = {}
    for tag, element in list(dataset.items()):
        if not isinstance(element, RawDataElement) or not (element.value is None and element.length):
            continue
        vr = _vr(element, bits)
        if element.length == UNDEFINED_LENGTH:
            raise ConversionError(f"{tag} of undefined length cannot be converted")
        if vr == "SQ":
            file.seek(element.value_tell)
            dataset[tag] = element._replace(value=file.read(element.length))
            continue
        word = _word(element, vr, bits) if is_swapped else 1
        taken[tag] = Bulk(vr, element.length + element.length % 2, _blocks(file, element, word))
        del dataset[tag]
    return taken


def _blocks(file: BinaryIO, element: RawDataElement, word: int) -> Iterator[bytes]:
    file.seek(element.value_tell)
    left = element.length
    while left:
        block = file.read(min(left, _BLOCK_BYTES))
        if not block:
            raise ConversionError(f"the file ends in {element.tag}")
        left -= len(block)
        yield swapped(block, word)
    yield b"\0" * (element.length % 2)


def swapped(data: bytes, size: int) -> bytes:
    """`data` with the bytes of each word of `size` bytes reversed; what is left behind the last whole one stays."""
    if size <= 1:
        return data
    whole = len(data) - len(data) % size
    words = np.frombuffer(data, np.uint8, whole).reshape(-1, size)[:, ::-1]
    return words.tobytes() + data[whole:]


def _word(element: RawDataElement | DataElement, vr: str, bits: int) -> int:
    """Bytes of a word of the value of `element` (PS3.5 7.3)."""
    size = _WORD_BYTES.get(vr, 1)
    # A pixel cell of more than 16 bits is one number, whatever its VR says.
    return max(size, bits // 8) if element.tag == PIXEL_DATA and size > 1 else size


def _vr(element: RawDataElement, bits: int) -> str:
    """The VR of an element as it was read; the dictionary's of one read from Implicit VR, or as UN."""
    if element.tag == PIXEL_DATA and element.VR in (None, "OB", "OW", "UN"):
        return "OB" if bits <= 8 and element.VR != "OW" else "OW"
    if element.VR not in (None, "UN"):
        return str(element.VR)
    vr = dictionary_VR(element.tag) if dictionary_has_tag(element.tag) else "UN"
    return "OW" if vr == "OB or OW" else vr


def _bits(dataset: Dataset) -> int:
    return int(dataset.get("BitsAllocated") or 0)


def _settle(dataset: Dataset, target: UID, *, is_little: bool) -> None:
    """Bring every element into the form in which its bytes can be written in `target` as they are."""
    bits = _bits(dataset)
    for tag, element in list(dataset.items()):
        if isinstance(element, RawDataElement):
            vr = _vr(element, bits)
            if vr == "SQ" or " or " in vr:
                _ = dataset[tag]
            elif element.VR is None and tag.is_private:
                _settle_private(dataset, tag, element)
            else:
                dataset[tag] = element._replace(VR=vr)
    correct_ambiguous_vr(dataset, is_little)
    is_swapped = is_little != target.is_little_endian
    for tag, element in list(dataset.items()):
        if isinstance(element, RawDataElement):
            if is_swapped:
                word = _word(element, str(element.VR), bits)
                dataset[tag] = element._replace(value=swapped(element.value or b"", word))
        elif element.VR == "SQ":
            for item in element.value or []:
                _settle(item, target, is_little=is_little)
        elif is_swapped and element.VR in _WORDS_AS_BYTES and isinstance(element.value, bytes):
            element.value = swapped(element.value, _word(element, element.VR, bits))
    # Said of what was read: pydicom would otherwise decode every value and encode it anew.
    dataset.set_original_encoding(target.is_implicit_VR, target.is_little_endian, dataset.original_character_set)


def _settle_private(dataset: Dataset, tag: BaseTag, element: RawDataElement) -> None:
    """Give a private element read from Implicit VR the VR that pydicom's dictionary knows, else UN."""
    try:
        known = dataset[tag]
    except Exception:  # noqa: BLE001  (the value is not what the dictionary says: its bytes stay what they are)
        known = None
    if known is None or (known.VR != "SQ" and known.VR not in _BYTE_VRS and known.VR not in _WORD_BYTES):
        dataset[tag] = element._replace(VR="UN")
