"""C-MOVE to receivers that take other transfer syntaxes than the stored one."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    UID,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from benchmarks.conformance.case import NotTried, case, check, ended
from benchmarks.conformance.codestreams import HTJ2K_COLUMNS, HTJ2K_FRAME, HTJ2K_PIXELS, HTJ2K_ROWS
from benchmarks.conformance.probe import Bench, encapsulated, encode
from benchmarks.conformance.wire import decode_data

RETRIEVE = "C-MOVE and C-GET"


@case(RETRIEVE, "destination takes only Implicit VR LE", "stored in Explicit VR LE", clause="PS3.5 10.1",
      expected="converted and sent; 0000")
def to_implicit(bench: Bench) -> str:
    image = bench.image()
    bench.put(image)
    answers = bench.move("IMPLICIT", StudyInstanceUID=bench.study)
    told = ended(answers, 0, (1, 0, 0))
    got = bench.receivers.implicit.received[0].dataset
    check(got.PixelData == image.PixelData and got.PatientID == bench.patient, "another data set arrived")
    return told


UNCOMPRESSED_ONLY = "stored compressed or deflated or BE, destination takes only uncompressed"
DECODED = "decoded and sent; the same pixels"


def _picture(bench: Bench, bits: int) -> tuple[Dataset, np.ndarray]:
    rows, columns = np.mgrid[0:64, 0:64]
    pixels = ((rows * 31 + columns * 17) % (1 << bits)).astype(np.uint8 if bits == 8 else np.uint16)
    image = bench.image(Rows=64, Columns=64, BitsAllocated=8 if bits == 8 else 16, BitsStored=bits, HighBit=bits - 1)
    image.PixelData = pixels.tobytes()
    image["PixelData"].VR = "OB" if bits == 8 else "OW"
    return image, pixels


def _with_meta(image: Dataset, syntax: str) -> Dataset:
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = UID(syntax)
    image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID
    image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
    return image


def _decoded(bench: Bench, image: Dataset, data: bytes, syntax: str, destination: str = "PLAIN") -> Dataset:
    """Store `data` in `syntax`, move it to a receiver of uncompressed data sets, return what arrives."""
    answer = bench.store(data, sop_class=str(image.SOPClassUID), uid=str(image.SOPInstanceUID), syntax=syntax)
    check(answer.status == 0, f"C-STORE answered {answer.status:04X}")
    answers = bench.move(destination, StudyInstanceUID=str(image.StudyInstanceUID))
    ended(answers, 0, (1, 0, 0))
    receiver = bench.receivers.plain if destination == "PLAIN" else bench.receivers.implicit
    check(receiver.received, "0000, but nothing arrived")
    return receiver.received[0].dataset


def _pixels(dataset: Dataset) -> np.ndarray:
    kind = np.uint8 if dataset.BitsAllocated == 8 else np.uint16
    return np.frombuffer(dataset.PixelData, kind)[: dataset.Rows * dataset.Columns].reshape(
        dataset.Rows, dataset.Columns)


def _lossless(bench: Bench, syntax: str) -> str:
    image, pixels = _picture(bench, 12)
    data = _compress(image, syntax)
    got = _decoded(bench, image, data, syntax)
    check(np.array_equal(_pixels(got), pixels), "the pixels differ")
    check(got.get("LossyImageCompression", "00") != "01", "says that it is lossy")
    return "the same pixels"


def _compress(image: Dataset, syntax: str) -> bytes:
    """Compress with pydicom's encoders, or with DCMTK for JPEG; return the encoded data set."""
    if syntax in (RLELossless, JPEGLSLossless, JPEG2000Lossless):
        compressed = _with_meta(_copy(image), ExplicitVRLittleEndian)
        compressed.compress(syntax, generate_instance_uid=False)
        return _data_set_of(compressed)
    option = {str(JPEGLosslessSV1): "+e1", str(JPEGBaseline8Bit): "+eb"}[str(syntax)]
    if not shutil.which("dcmcjpeg"):
        raise NotTried("needs DCMTK's dcmcjpeg to make the object")
    with tempfile.TemporaryDirectory() as folder:
        plain, packed = Path(folder) / "plain.dcm", Path(folder) / "packed.dcm"
        source = _with_meta(_copy(image), ExplicitVRLittleEndian)
        source.save_as(plain, enforce_file_format=True)
        done = subprocess.run(["dcmcjpeg", option, "+un", str(plain), str(packed)], capture_output=True, check=False)
        check(done.returncode == 0, f"dcmcjpeg: {done.stderr.decode()[:100]}")
        return _data_set_of(dcmread(packed))


def _data_set_of(dataset: Dataset) -> bytes:
    plain = _copy(dataset)
    plain["PixelData"].is_undefined_length = True
    return encode(plain, ExplicitVRLittleEndian)


def _copy(dataset: Dataset) -> Dataset:
    """Copy the elements, and nothing of where they came from."""
    plain = Dataset()
    plain.update(dataset)
    return plain


@case(RETRIEVE, UNCOMPRESSED_ONLY, "RLE", clause="PS3.5 10.1, A.4.2", expected=DECODED)
def from_rle(bench: Bench) -> str:
    return _lossless(bench, RLELossless)


@case(RETRIEVE, UNCOMPRESSED_ONLY, "JPEG Lossless", clause="PS3.5 10.1, A.4.1", expected=DECODED)
def from_jpeg_lossless(bench: Bench) -> str:
    return _lossless(bench, JPEGLosslessSV1)


@case(RETRIEVE, UNCOMPRESSED_ONLY, "JPEG-LS", clause="PS3.5 10.1, A.4.3", expected=DECODED)
def from_jpeg_ls(bench: Bench) -> str:
    return _lossless(bench, JPEGLSLossless)


@case(RETRIEVE, UNCOMPRESSED_ONLY, "JPEG 2000", clause="PS3.5 10.1, A.4.4", expected=DECODED)
def from_jpeg_2000(bench: Bench) -> str:
    return _lossless(bench, JPEG2000Lossless)


@case(RETRIEVE, UNCOMPRESSED_ONLY, "HTJ2K", clause="PS3.5 10.1, A.4.4", expected=DECODED)
def from_htj2k(bench: Bench) -> str:
    image = bench.image(Rows=HTJ2K_ROWS, Columns=HTJ2K_COLUMNS, BitsAllocated=8, BitsStored=8, HighBit=7)
    del image.PixelData
    data = encode(image, ExplicitVRLittleEndian) + encapsulated(HTJ2K_FRAME)
    got = _decoded(bench, image, data, HTJ2KLossless)
    check(np.array_equal(_pixels(got), HTJ2K_PIXELS), "the pixels differ")
    return "the same pixels"


@case(RETRIEVE, UNCOMPRESSED_ONLY, "JPEG Baseline: lossy, and the attributes say so",
      clause="PS3.3 C.7.6.1.1.5, PS3.5 10.1",
      expected="decoded within the loss; Lossy Image Compression 01, its method named")
def from_jpeg_baseline(bench: Bench) -> str:
    image, pixels = _picture(bench, 8)
    smooth = (np.add.outer(np.arange(64), np.arange(64)) * 2).astype(np.uint8)
    image.PixelData, pixels = smooth.tobytes(), smooth
    data = _compress(image, JPEGBaseline8Bit)
    stored = decode_data(data, str(JPEGBaseline8Bit))
    for keyword in ("LossyImageCompression", "LossyImageCompressionMethod", "LossyImageCompressionRatio"):
        if keyword in stored:
            del stored[keyword]  # as old modalities leave it
    got = _decoded(bench, image, _data_set_of(stored), JPEGBaseline8Bit)
    loss = int(np.abs(_pixels(got).astype(int) - pixels).max())
    check(loss < 12, f"pixels differ by up to {loss}")
    check(got.get("LossyImageCompression") == "01", f"Lossy Image Compression: {got.get('LossyImageCompression', '–')}")
    method = got.get("LossyImageCompressionMethod", "–")
    check(method == "ISO_10918_1", f"Lossy Image Compression Method: {method}")
    return f"pixels within {loss}, 01, {method}"


@case(RETRIEVE, UNCOMPRESSED_ONLY, "deflated", clause="PS3.5 10.1, A.5", expected=DECODED)
def from_deflated(bench: Bench) -> str:
    image, pixels = _picture(bench, 12)
    got = _decoded(bench, image, encode(image, DeflatedExplicitVRLittleEndian), DeflatedExplicitVRLittleEndian)
    check(np.array_equal(_pixels(got), pixels), "the pixels differ")
    return "the same pixels"


@case(RETRIEVE, UNCOMPRESSED_ONLY, "Explicit VR Big Endian", clause="PS3.5 10.1, A.3", expected=DECODED)
def from_big_endian(bench: Bench) -> str:
    image, pixels = _picture(bench, 12)
    image.PixelData = pixels.astype(">u2").tobytes()
    got = _decoded(bench, image, encode(image, ExplicitVRBigEndian), ExplicitVRBigEndian)
    check(np.array_equal(_pixels(got), pixels), "the pixels differ")
    check(int(got.Rows) == 64, f"Rows {got.Rows}")
    return "the same pixels"


@case(RETRIEVE, UNCOMPRESSED_ONLY, "RLE to a receiver of Implicit VR LE only", clause="PS3.5 10.1", expected=DECODED)
def from_rle_to_implicit(bench: Bench) -> str:
    image, pixels = _picture(bench, 12)
    got = _decoded(bench, image, _compress(image, RLELossless), RLELossless, "IMPLICIT")
    check(np.array_equal(_pixels(got), pixels), "the pixels differ")
    return "the same pixels"


@case(RETRIEVE, "equal transfer syntax", "the file's bytes are streamed, Explicit VR LE and JPEG 2000",
      clause="PS3.5 10.1",
      expected="the bytes that were stored")
def streamed(bench: Bench) -> str:
    for syntax in (ExplicitVRLittleEndian, JPEG2000Lossless):
        bench.renew()
        bench.receivers.reset()
        image = bench.image(OtherPatientIDsSequence=[Dataset()])
        image["OtherPatientIDsSequence"].is_undefined_length = True
        data = encode(image, ExplicitVRLittleEndian) if syntax == ExplicitVRLittleEndian else _compress(
            _picture(bench, 12)[0], syntax)
        uid = str(image.SOPInstanceUID) if syntax == ExplicitVRLittleEndian else str(
            _uid_in(data, syntax))
        answer = bench.store(data, sop_class=str(CTImageStorage), uid=uid, syntax=syntax)
        check(answer.status == 0, f"C-STORE answered {answer.status:04X}")
        answers = bench.move("RECEIVER", StudyInstanceUID=bench.study)
        ended(answers, 0, (1, 0, 0))
        got = bench.receivers.everything.received[0]
        check(got.transfer_syntax == syntax, f"{UID(syntax).name} sent as {UID(got.transfer_syntax).name}")
        check(got.data == data, f"{UID(syntax).name}: {len(data)} bytes stored, other {len(got.data)} bytes sent")
    return "the same bytes"


def _uid_in(data: bytes, syntax: str) -> str:
    return str(decode_data(data, syntax).SOPInstanceUID)
