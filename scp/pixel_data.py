"""Compressed pixel data as it stands in an uncompressed object, and what the object then says of it (PS3.3 C.7.6.3).

Frames are decoded one by one while they are written; only the first is decoded before, for what it tells of the others.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from io import BytesIO
from itertools import chain
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    JPEG2000MC,
    UID,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLSNearLossless,
)

from index import decoding
from scp.errors import ConversionError
from scp.transcoding import LONGEST_VALUE, PIXEL_DATA, UNDEFINED_LENGTH, Bulk

Pixels = npt.NDArray[np.generic]

_JPEG = "ISO_10918_1"
_METHODS: dict[str, str] = {
    JPEGBaseline8Bit: _JPEG,
    JPEGExtended12Bit: _JPEG,
    "1.2.840.10008.1.2.4.53": _JPEG,
    "1.2.840.10008.1.2.4.55": _JPEG,
    JPEGLSNearLossless: "ISO_14495_1",
    JPEG2000: "ISO_15444_1",
    JPEG2000MC: "ISO_15444_2",
    HTJ2K: "ISO_15444_15",
}
"""Transfer syntaxes that may be lossy, and the Defined Term of Lossy Image Compression Method (PS3.3 C.7.6.1.1.5.1)."""

_ALWAYS_LOSSY = {syntax for syntax, method in _METHODS.items() if method == _JPEG}

_ENCAPSULATION = ("ExtendedOffsetTable", "ExtendedOffsetTableLengths", "EncapsulatedPixelDataValueTotalLength")


def decoded(dataset: Dataset, file: BinaryIO, stored: UID, target: UID) -> Bulk | None:
    """Take the encapsulated pixel data out of `dataset`, and describe in it what they are once they are decoded.

    Parameters
    ----------
    dataset
        The data set, or an item of it, as read from `file`.
    stored
        Transfer syntax of the pixel data.

    Returns
    -------
    Bulk
        The native pixel data; None when there are none, or they are native already.

    Raises
    ------
    ConversionError
        Pixel data that cannot be decoded, or too long for a value once they are.
    """
    element = dict(dataset.items()).get(PIXEL_DATA)
    if element is None or not isinstance(element, RawDataElement) or element.length != UNDEFINED_LENGTH:
        return None
    source, start = (file, element.value_tell) if element.value is None else (BytesIO(element.value), 0)
    count = int(dataset.get("NumberOfFrames") or 1)
    is_packed = dataset.get("BitsAllocated") == 1
    length = -(-count * int(dataset.Rows) * int(dataset.Columns) // 8) if is_packed else (
        count * decoding.frame_bytes(dataset)
    )
    if length > LONGEST_VALUE:
        raise ConversionError(f"its pixels are {length} bytes, at most {LONGEST_VALUE} fit into a data element")
    compressed = _compressed_bytes(source, start)
    options = _options(dataset, stored)
    pixels = decoding.frames(dataset, source, stored, **options)
    first, properties = next(pixels, (None, {}))
    if first is None:
        raise ConversionError("its pixel data has no frame")
    for keyword in _ENCAPSULATION:
        if keyword in dataset:
            del dataset[keyword]
    del dataset[PIXEL_DATA]
    _describe(dataset, properties)
    if str(stored) in _METHODS:
        _say_lossy(dataset, stored, length / max(1, compressed))
    frames: Iterator[Pixels] = (frame for frame, _ in chain([(first, properties)], pixels))
    if str(stored) in _METHODS and options.get("correct_unused_bits", True):
        frames = _clipped(frames, dataset)
    blocks = _bits(frames, count) if is_packed else _cells(frames, count, _cell(dataset, target))
    is_bytes = int(dataset.BitsAllocated) <= 8
    return Bulk("OB" if is_bytes else "OW", length + length % 2, chain(blocks, [b"\0" * (length % 2)]))


def _options(dataset: Dataset, stored: UID) -> dict[str, Any]:
    """How pydicom is to decode: lossy colour to RGB, lossless colour as it is, and no bit lost that means something."""
    high, kept = int(dataset.get("HighBit") or 0), int(dataset.get("BitsStored") or 0)
    has_overlay_bits = any(
        0x6000 <= tag.group <= 0x60FF and tag.element == 0x0102 and dataset[tag].value for tag in dict(dataset.items())
    )
    subsampled = str(dataset.get("PhotometricInterpretation", "")).endswith("_422")
    options: dict[str, Any] = {"as_rgb": str(stored) in _METHODS or subsampled}
    if has_overlay_bits or high != kept - 1:
        options["correct_unused_bits"] = False
    return options


def _describe(dataset: Dataset, properties: decoding.Properties) -> None:
    dataset.PhotometricInterpretation = str(properties["photometric_interpretation"])
    if int(dataset.get("SamplesPerPixel") or 1) > 1:
        dataset.PlanarConfiguration = 0


def _say_lossy(dataset: Dataset, stored: UID, ratio: float) -> None:
    """Say that the pixels have been through lossy compression, where the object does not say it (PS3.3 C.7.6.1.1.5)."""
    if dataset.get("LossyImageCompression") == "00" and str(stored) not in _ALWAYS_LOSSY:
        return  # these transfer syntaxes hold lossless images too
    dataset.LossyImageCompression = "01"
    if not dataset.get("LossyImageCompressionMethod"):
        dataset.LossyImageCompressionMethod = _METHODS[str(stored)]
        dataset.LossyImageCompressionRatio = f"{ratio:.2f}"


def _cell(dataset: Dataset, target: UID) -> np.dtype[Any]:
    size = int(dataset.BitsAllocated) // 8
    if size * 8 != int(dataset.BitsAllocated) or size not in (1, 2, 4, 8):
        raise ConversionError(f"pixels of {dataset.BitsAllocated} bits cannot be written")
    kind = "i" if int(dataset.get("PixelRepresentation") or 0) else "u"
    return np.dtype(f"{'<' if target.is_little_endian else '>'}{kind}{size}")


def _cells(frames: Iterator[Pixels], count: int, cell: np.dtype[Any]) -> Iterator[bytes]:
    for _ in range(count):
        yield _next(frames).astype(cell, copy=False).tobytes()


def _clipped(frames: Iterator[Pixels], dataset: Dataset) -> Iterator[Pixels]:
    """Keep pixels within Bits Stored: lossy coding may overshoot, and masking the other bits would wrap them."""
    bits, is_signed = int(dataset.BitsStored), bool(dataset.get("PixelRepresentation"))
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if is_signed else (0, (1 << bits) - 1)
    for frame in frames:
        yield np.clip(frame, low, high)


def _bits(frames: Iterator[Pixels], count: int) -> Iterator[bytes]:
    """Pack frames of one bit a pixel, which follow each other without a gap (PS3.5 8.1.1)."""
    left = np.zeros(0, np.uint8)
    for _ in range(count):
        bits = np.concatenate([left, _next(frames).ravel().astype(np.uint8)])
        whole = bits.size - bits.size % 8
        yield np.packbits(bits[:whole], bitorder="little").tobytes()
        left = bits[whole:]
    yield np.packbits(left, bitorder="little").tobytes()


def _next(frames: Iterator[Pixels]) -> Pixels:
    frame = next(frames, None)
    if frame is None:
        raise ConversionError("it has fewer frames than Number of Frames says")
    return frame


def _compressed_bytes(file: BinaryIO, start: int) -> int:
    """Bytes of the fragments of encapsulated pixel data; the file then stands at `start`, where the value begins."""
    file.seek(start)
    total = 0
    is_table = True
    while len(head := file.read(8)) == 8:
        group, element, length = struct.unpack("<HHL", head)
        if (group, element) != (0xFFFE, 0xE000):
            break
        total += 0 if is_table else length
        is_table = False
        file.seek(length, 1)
    file.seek(start)
    return total
