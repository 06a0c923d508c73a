"""Frames of compressed pixel data, one after the other: pydicom's decoders, and those that it lacks (PS3.5 A.4).

A frame is decoded alone, from a file or from memory, so that an object may be larger than the memory; codecs run in
processes of their own (`index.decoder_process`). GDCM's libjpeg decodes 12-bit and progressive JPEG, which pydicom does
not ask it for; three encodings of packed bytes are read here.
"""

from __future__ import annotations

import logging
import os
import sys
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import gdcm
import numpy as np
import numpy.typing as npt
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, generate_frames, get_frame
from pydicom.filereader import read_dataset
from pydicom.pixels.decoders.base import Decoder, DecodeRunner, get_decoder
from pydicom.pixels.utils import as_pixel_options
from pydicom.tag import Tag
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGExtended12Bit,
    RLELossless,
)

from index.decoder_process import Decoded, child, receive, send
from index.part10 import NewFile, begin_of_data_set, inflated_file

ENCAPSULATED_UNCOMPRESSED = UID("1.2.840.10008.1.2.1.98")
"""Encapsulated Uncompressed Explicit VR Little Endian (PS3.5 A.4.11)."""

DEFLATED_IMAGE_FRAME = UID("1.2.840.10008.1.2.8.1")
"""Deflated Image Frame Compression (PS3.5 A.4.15)."""

LARGEST_FRAME = 1 << 28
"""Bytes of a decoded frame: the memory that one decoder may ask for, whatever a header says."""

_GDCM_JPEG = {
    JPEGExtended12Bit: "JPEGExtendedProcess2_4",
    UID("1.2.840.10008.1.2.4.53"): "JPEGSpectralSelectionProcess6_8",
    UID("1.2.840.10008.1.2.4.55"): "JPEGFullProgressionProcess10_12",
}
"""Transfer syntaxes that GDCM decodes for us, with its names."""

_NATIVE = {ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian}

_READ_HERE = {RLELossless, ENCAPSULATED_UNCOMPRESSED, DEFLATED_IMAGE_FRAME}
"""Encodings that Python reads; all others go to a library that may crash, in a process of its own."""

PIXEL_KEYWORDS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
"""Elements with pixels; an object has one of them (PS3.3 C.7.6.24)."""

_DEFERRED_BYTES = 1 << 20
"""Values longer than this are left in the file."""

_LARGEST_INFLATED = 1 << 32
"""Bytes that a deflated data set may inflate to: a small file may inflate to any size."""

_IN_MEMORY_BYTES = 1 << 24
"""What a data set inflates to is kept in memory up to this."""

Properties = dict[str, Any]
"""Description of a decoded frame by pydicom: ``photometric_interpretation`` and others."""


class Undecodable(ValueError):
    """No decoder, or more than may be decoded; the message is a clause."""


@contextmanager
def open_image(path: Path, new_file: NewFile) -> Iterator[tuple[Dataset, BinaryIO]]:
    """Give the data set of a Part 10 file without its long values, and the file that they can be read from.

    Parameters
    ----------
    new_file
        Where a deflated data set is inflated to that is too large for the memory.

    Raises
    ------
    InvalidInstance
        Not a Part 10 file.
    ValueError, zlib.error
        A deflated data set that inflates to too much, or cannot be inflated.
    OutOfSpace
        There is no room for what it inflates to.
    """
    with path.open("rb") as file:
        _, syntax = begin_of_data_set(file)
        with (
            inflated_file(file, new_file, in_memory=_IN_MEMORY_BYTES, limit=_LARGEST_INFLATED)
            if syntax == DeflatedExplicitVRLittleEndian
            else nullcontext(file)
        ) as source:
            dataset = read_dataset(
                source,
                is_implicit_VR=syntax == ImplicitVRLittleEndian,
                is_little_endian=syntax != ExplicitVRBigEndian,
                defer_size=_DEFERRED_BYTES,
            )
            dataset.file_meta = FileMetaDataset()
            dataset.file_meta.TransferSyntaxUID = UID(syntax or ExplicitVRLittleEndian)
            yield dataset, source


def stored_pixels(dataset: Dataset, file: BinaryIO | None = None) -> BinaryIO:
    """Return the value of the pixel data as a file: in memory, or `file`, in which reading `dataset` has left it."""
    keyword = next(keyword for keyword in PIXEL_KEYWORDS if keyword in dataset)
    element = dict(dataset.items())[Tag(keyword)]
    if isinstance(element, RawDataElement) and element.value is None:
        if file is None:
            raise ValueError(f"{keyword} was not read, and there is no file to read it from")
        file.seek(element.value_tell)
        return file
    return BytesIO(element.value or b"")


def decoder(transfer_syntax_uid: str) -> Decoder:
    """Return the decoder for `transfer_syntax_uid`; raises `Undecodable` for a video and others without."""
    own = _own_decoder(UID(transfer_syntax_uid))
    if own is not None:
        return own
    try:
        return get_decoder(transfer_syntax_uid)
    except NotImplementedError as error:
        raise Undecodable(f"no decoder for {UID(transfer_syntax_uid).name}") from error


def is_available(transfer_syntax_uid: str) -> bool:
    """Whether this module decodes `transfer_syntax_uid` (pydicom asks every decoding plug-in)."""
    return transfer_syntax_uid in {*_GDCM_JPEG, ENCAPSULATED_UNCOMPRESSED, RLELossless}


def frames(
    dataset: Dataset,
    value: BinaryIO | bytes,
    transfer_syntax_uid: str,
    *,
    indices: Sequence[int] | None = None,
    **options: Any,
) -> Iterator[tuple[npt.NDArray[np.generic], Properties]]:
    """Yield decoded frames.

    Parameters
    ----------
    dataset
        Describes the image (PS3.3 C.7.6.3); its pixels are not looked at.
    value
        The value of the pixel data: bytes, or a file that stands at its first byte.
    indices
        Frames to decode, from 0; all when None.
    options
        Of pydicom's decoders.

    Yields
    ------
    ndarray
        Axes (row, column) or (row, column, sample); of 1-bit images the bits as bytes 0 and 1.
    dict
        What the decoder says of it.

    Raises
    ------
    Undecodable
        Nothing here decodes it, or a frame is too large.
    Exception
        Whatever a decoder raises for pixels that are not what they are said to be.
    """
    size = frame_bytes(dataset)
    if size > LARGEST_FRAME:
        raise Undecodable(f"a frame of {size} bytes, at most {LARGEST_FRAME} are decoded")
    described = as_pixel_options(dataset, **options)
    source = BytesIO(value) if isinstance(value, bytes) else value
    if transfer_syntax_uid in _NATIVE:
        keyword = next(keyword for keyword in PIXEL_KEYWORDS if keyword in dataset)
        described |= {"pixel_keyword": keyword, "pixel_vr": dict(dataset.items())[Tag(keyword)].VR or "OW"}
        described.setdefault("pixel_representation", 0)
        made = decoder(transfer_syntax_uid)
        if described["bits_allocated"] == 1 and described["rows"] * described["columns"] % 8:
            yield from _native_bits(source, made, described, indices)
        else:
            yield from made.iter_array(source, indices=indices, **described)
        return
    where: dict[str, Any] = {"extended_offsets": described.pop("extended_offsets", None)}
    where["number_of_frames"] = described["number_of_frames"]
    described["number_of_frames"] = 1
    if indices is None:
        encoded = generate_frames(source, **where)
    else:
        encoded = (get_frame(source, index, **where) for index in indices)
    if transfer_syntax_uid in _READ_HERE:
        for frame in encoded:
            packed = _inflated(frame, size) if transfer_syntax_uid == DEFLATED_IMAGE_FRAME else frame
            yield _decoded(packed, transfer_syntax_uid, described)
        return
    decoder(transfer_syntax_uid)  # is there one?
    request = {"transfer_syntax_uid": transfer_syntax_uid, "described": described}
    with child() as codec:
        for frame in encoded:
            try:
                yield codec.ask(request, frame)
            except ValueError as error:
                name = UID(transfer_syntax_uid).name
                raise Undecodable(f"undecodable {name}: {error}") from error


def serve() -> None:
    """Decode what comes on standard input, until it ends (the program of a child process)."""
    logging.disable(logging.CRITICAL)
    requests, responses = sys.stdin.buffer, os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # some codecs print
    while True:
        try:
            request, frame = receive(requests)
        except EOFError:
            return
        try:
            pixels, properties = _decoded(frame, request["transfer_syntax_uid"], request["described"])
            kind = {"dtype": pixels.dtype.str, "shape": pixels.shape, "properties": properties}
            send(responses, kind, pixels.tobytes())
        except Exception as error:  # noqa: BLE001  (codecs raise anything; the parent tells it to who asked)
            send(responses, {"error": " ".join(str(error).split())[:500]}, b"")


def _decoded(frame: bytes, transfer_syntax_uid: str, described: Properties) -> Decoded:
    """Decode one encoded frame in this process."""
    is_packed = described.get("bits_allocated") == 1
    made = _packed_bits_decoder() if is_packed and transfer_syntax_uid == RLELossless else decoder(transfer_syntax_uid)
    alone = encapsulate([frame], has_bot=False)
    try:
        return _bits(made, alone, described) if is_packed else made.as_array(alone, index=0, **described)
    except RuntimeError as error:
        raise Undecodable(f"undecodable {UID(transfer_syntax_uid).name}") from error


def frame_bytes(dataset: Dataset) -> int:
    """Return what one frame takes once it is decoded, by its description (PS3.3 C.7.6.3); bits as whole bytes."""
    pixels = int(dataset.get("Rows") or 0) * int(dataset.get("Columns") or 0) * int(dataset.get("SamplesPerPixel") or 1)
    return pixels * -(-int(dataset.get("BitsAllocated") or 8) // 8)


def _native_bits(
    source: BinaryIO, made: Decoder, described: Properties, indices: Sequence[int] | None
) -> Iterator[tuple[npt.NDArray[np.generic], Properties]]:
    """Yield frames of one bit a pixel that begin within a byte (PS3.5 8.1.1): pydicom reads a byte too few of them."""
    begin, pixels = source.tell(), described["rows"] * described["columns"]
    for index in range(described["number_of_frames"]) if indices is None else indices:
        first, end = index * pixels, (index + 1) * pixels
        source.seek(begin + first // 8)
        content = np.frombuffer(source.read(-(-end // 8) - first // 8), np.uint8)
        bits = np.unpackbits(content, bitorder="little")[first % 8 :][:pixels]
        if bits.size < pixels:
            raise Undecodable(f"the pixel data end within frame {index + 1}")
        alone = np.packbits(bits, bitorder="little").tobytes()
        yield made.as_array(alone + b"\0" * (len(alone) % 2), index=0, **described | {"number_of_frames": 1})


def _bits(made: Decoder, alone: bytes, described: Properties) -> tuple[npt.NDArray[np.generic], Properties]:
    """Decode a frame of one bit a pixel: packed in whole bytes, or already unpacked by a codec."""
    buffer, properties = made.as_buffer(alone, index=0, **described)
    content = np.frombuffer(buffer, np.uint8)
    pixels = described["rows"] * described["columns"]
    bits = content if content.size == pixels else np.unpackbits(content, bitorder="little")
    if bits.size < pixels:
        raise Undecodable(f"a frame of {content.size} bytes, {-(-pixels // 8)} are expected")
    return (bits[:pixels] != 0).astype(np.uint8).reshape(described["rows"], described["columns"]), properties


@cache
def _packed_bits_decoder() -> Decoder:
    made = Decoder(RLELossless)
    made.add_plugin("tharsis", (__name__, packed_bits_frame.__name__))
    return made


@cache
def _own_decoder(syntax: UID) -> Decoder | None:
    function = jpeg_frame if syntax in _GDCM_JPEG else native_frame
    if function is native_frame and syntax not in (ENCAPSULATED_UNCOMPRESSED, DEFLATED_IMAGE_FRAME):
        return None
    # A deflated frame is inflated before: pydicom does not know that transfer syntax.
    made = Decoder(syntax if function is jpeg_frame else ENCAPSULATED_UNCOMPRESSED)
    made.add_plugin("tharsis", (__name__, function.__name__))
    return made


def _inflated(frame: bytes, size: int) -> bytes:
    return zlib.decompressobj(-zlib.MAX_WBITS).decompress(frame, size + 1)


def jpeg_frame(source: bytes, runner: DecodeRunner) -> bytes:
    """Decode a frame with GDCM (Huffman-coded JPEG of any precision up to 16 bits)."""
    fragment = gdcm.Fragment()
    fragment.SetByteStringValue(source)
    fragments = gdcm.SequenceOfFragments.New()
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((runner.columns, runner.rows, 1))
    image.SetPixelFormat(
        gdcm.PixelFormat(
            runner.samples_per_pixel,
            runner.bits_allocated,
            runner.bits_stored,
            runner.bits_stored - 1,
            runner.pixel_representation,
        )
    )
    kind = gdcm.PhotometricInterpretation.GetPIType(str(runner.photometric_interpretation))
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(kind))
    if runner.samples_per_pixel > 1:
        image.SetPlanarConfiguration(runner.planar_configuration)
    name = _GDCM_JPEG[runner.transfer_syntax]
    image.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, name)))
    image.SetDataElement(element)
    content = image.GetBuffer()
    if content is None:
        raise Undecodable(f"GDCM finds no {runner.transfer_syntax.name} in it")
    return bytes(content.encode("utf-8", "surrogateescape")) if isinstance(content, str) else bytes(content)


def native_frame(source: bytes, runner: DecodeRunner) -> bytes:
    """A frame of Encapsulated Uncompressed: itself, less the padding to even length (PS3.5 A.4.11)."""
    return source[: _expected(source, runner)]


def packed_bits_frame(source: bytes, runner: DecodeRunner) -> bytes:
    """Decode an RLE frame of one bit a pixel, packed before it was compressed: a single segment (PS3.5 Annex G)."""
    count, start = (int(number) for number in np.frombuffer(source, "<u4", count=2))
    if count != 1:
        raise Undecodable(f"{count} RLE segments, 1 is expected of 1-bit pixels")
    return _unpacked(source[start:], int(runner.frame_length(unit="bytes")))


def _unpacked(segment: bytes, size: int) -> bytes:
    """PackBits (PS3.5 G.3.2): `size` bytes; a segment may be padded, and must not be short."""
    out = bytearray()
    position, end = 0, len(segment)
    while position < end and len(out) < size:
        head = segment[position]
        if head < 128:
            out += segment[position + 1 : position + 2 + head]
            position += head + 2
        elif head > 128:
            out += segment[position + 1 : position + 2] * (257 - head)
            position += 2
        else:
            position += 1
    if len(out) < size:
        raise Undecodable(f"an RLE segment of {len(out)} bytes, {size} are expected")
    return bytes(out[:size])


def _expected(content: bytes, runner: DecodeRunner) -> int:
    size = int(runner.frame_length(unit="bytes"))
    if len(content) < size:
        raise Undecodable(f"a frame of {len(content)} bytes, {size} are expected")
    return size
