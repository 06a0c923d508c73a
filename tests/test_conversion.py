"""Objects in another transfer syntax: every decoder against the uncompressed twin of what it decodes."""

from __future__ import annotations

import csv
import logging
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, encapsulate_extended
from pydicom.filereader import read_dataset
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from index.decoding import LARGEST_FRAME
from index.errors import OutOfSpace
from index.part10 import inflate_into
from scp import conversion
from scp.conversion import converted, target_syntax
from scp.errors import ConversionError

NATIVE = [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian]
ENCAPSULATED_UNCOMPRESSED = "1.2.840.10008.1.2.1.98"
CORNERSTONE = "cornerstone3D/packages/dicomImageLoader/testImages"
JPEG, JPEG_LS, J2K = "ISO_10918_1", "ISO_14495_1", "ISO_15444_1"


@pytest.fixture
def send_as(archive, tmp_path):
    """Store a file and return what a peer that takes only `target` would get of it, as a data set."""

    def send(path: Path | bytes, target: str = ExplicitVRLittleEndian) -> Dataset:
        stored = archive.open_instance(archive.ingest(path, overwrite="always").sop_instance_uid)
        with converted(stored, target, lambda _size: tmp_path / "scratch") as data:
            encoded = data if isinstance(data, bytes) else data[0].read_bytes()[data[1]:]
        syntax = UID(target)
        assert len(encoded) % 2 == 0
        if syntax.is_deflated:
            with BytesIO(encoded) as file:
                encoded = _inflated(file)
        dataset = read_dataset(BytesIO(encoded), syntax.is_implicit_VR, syntax.is_little_endian)
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian if syntax.is_deflated else syntax
        return dataset

    return send


def _inflated(file):
    whole = BytesIO()
    inflate_into(file, whole, 1 << 24)
    return whole.getvalue()


def _part10(dataset: Dataset) -> bytes:
    buffer = BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


# One CT in fifteen transfer syntaxes


@pytest.mark.parametrize("target", NATIVE, ids=lambda uid: uid.keyword)
@pytest.mark.parametrize(
    ("name", "error", "method"),
    [
        ("LittleEndianImplicitTransferSyntax_1.2.840.10008.1.2", 0, None),
        ("LittleEndianExplicitTransferSyntax_1.2.840.10008.1.2.1", 0, None),
        ("BigEndianExplicitTransferSyntax_1.2.840.10008.1.2.2", 0, None),
        ("DeflatedExplicitVRLittleEndianTransferSyntax_1.2.840.10008.1.2.1.99", 0, None),
        ("JPEGProcess1TransferSyntax_1.2.840.10008.1.2.4.50", 65, JPEG),  # from 8 bits
        ("JPEGProcess2_4TransferSyntax_1.2.840.10008.1.2.4.51", 36, JPEG),
        ("JPEGProcess6_8TransferSyntax_1.2.840.10008.1.2.4.53", 36, JPEG),
        ("JPEGProcess10_12TransferSyntax_1.2.840.10008.1.2.4.55", 36, JPEG),
        ("JPEGProcess14TransferSyntax_1.2.840.10008.1.2.4.57", 0, None),
        ("JPEGProcess14SV1TransferSyntax_1.2.840.10008.1.2.4.70", 0, None),
        ("JPEGLSLosslessTransferSyntax_1.2.840.10008.1.2.4.80", 0, None),
        ("JPEGLSLossyTransferSyntax_1.2.840.10008.1.2.4.81", 1, JPEG_LS),
        ("JPEG2000LosslessOnlyTransferSyntax_1.2.840.10008.1.2.4.90", 0, None),
        ("JPEG2000TransferSyntax_1.2.840.10008.1.2.4.91", 5, J2K),
        ("RLELosslessTransferSyntax_1.2.840.10008.1.2.5", 0, None),
    ],
)
def test_one_image_from_every_transfer_syntax(send_as, shared_data, name, error, method, target):
    """PS3.5 A.4; PS3.3 C.7.6.1.1.5: what was lossy says so. `error` is in Hounsfield units."""
    folder = shared_data / CORNERSTONE
    path = folder / f"CTImage.dcm_{name}.dcm"
    truth = pydicom.dcmread(folder / "CTImage.dcm_LittleEndianExplicitTransferSyntax_1.2.840.10008.1.2.1.dcm")
    original, sent = pydicom.dcmread(path), send_as(path, target)
    assert np.abs(_hounsfield(sent) - _hounsfield(truth)).max() <= error
    for keyword in ("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PhotometricInterpretation"):
        assert sent[keyword].value == original[keyword].value, keyword
    assert sent.get("LossyImageCompressionMethod") == method
    assert (sent.get("LossyImageCompression") == "01") == bool(method)
    assert bool(sent.get("LossyImageCompressionRatio")) == bool(method)
    assert sent.SOPInstanceUID == original.SOPInstanceUID


def _hounsfield(dataset):
    return dataset.pixel_array * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)


@pytest.mark.slow
def test_every_compressed_file_there_is(send_as, shared_data, caplog):
    """What pydicom decodes arrives with the same pixels and values; beyond that, what it cannot decode."""
    caplog.set_level(logging.CRITICAL)
    count, beyond = 0, 0
    seen: dict[tuple[str, str, str], int] = {}
    with (shared_data / "MANIFEST.tsv").open(encoding="utf-8") as table:
        rows = [row for row in csv.DictReader(table, delimiter="\t") if row["pydicom_decode"][:3] in ("ok", "ERR")]
    for row in rows:
        kind = (row["transfer_syntax"], row["repo"], row["photometric"])
        seen[kind] = seen.get(kind, 0) + 1
        if not row["transfer_syntax"].startswith(("1.2.840.10008.1.2.4", "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.8")):
            continue
        if seen[kind] > 4 or "embedded-sequence-delimiter" in row["path"] or not row["series"]:
            continue
        path = shared_data / row["path"]
        original, sent = pydicom.dcmread(path), send_as(path)
        truth = _decoded_by_pydicom(original)
        if truth is None:
            assert sent.pixel_array.size
            beyond += 1
        elif "multifragments" not in path.name:  # that one has 13 bits, and says 12
            assert np.array_equal(sent.pixel_array, truth), path.name
            count += 1
        _assert_same_header(original, sent, path.name)
    assert count > 60
    assert beyond >= 7


def _decoded_by_pydicom(dataset):
    try:
        return dataset.pixel_array
    except (RuntimeError, NotImplementedError, AttributeError, ValueError):
        return None


def _assert_same_header(original, sent, name):
    for element in original:
        if element.tag.group in (0x0028, 0x7FE0) or element.tag.element == 0 or element.tag.is_private:
            continue
        assert sent[element.tag].value == element.value, (name, element)


@pytest.mark.parametrize("name", ["liver", "liver_nonbyte_aligned"])
@pytest.mark.parametrize("coding", ["rle", "deflate", "j2k"])
@pytest.mark.parametrize("target", [ExplicitVRLittleEndian, ExplicitVRBigEndian], ids=lambda uid: uid.keyword)
def test_one_bit_a_pixel(send_as, shared_data, name, coding, target):
    """PS3.5 8.1.1: frames of bits follow each other without a gap, encapsulated ones are padded to bytes."""
    folder = shared_data / "pydicom-data" / "data_store" / "data"
    truth = pydicom.dcmread(folder / f"{name}.dcm")
    sent = send_as(folder / f"{name}_{coding}.dcm", target)
    assert sent.BitsAllocated == 1
    assert sent.PixelData == truth.PixelData
    assert np.array_equal(sent.pixel_array, truth.pixel_array)


@pytest.mark.parametrize(
    ("name", "photometric"),
    [
        ("SC_rgb_dcmtk_+eb+cy+np.dcm", "RGB"),  # YBR_FULL
        ("SC_rgb_dcmtk_+eb+cy+n1.dcm", "RGB"),  # YBR_FULL, its chroma subsampled
        ("SC_rgb_jpeg_gdcm.dcm", "RGB"),
        ("GDCMJ2K_TextGBR.dcm", "RGB"),  # YBR_RCT
        ("examples_jpeg2k.dcm", "RGB"),  # YBR_ICT or RCT
        ("SC_rgb_rle.dcm", "RGB"),
        ("examples_ybr_color.dcm", "YBR_FULL_422"),
    ],
)
def test_colour(send_as, name, photometric):
    """PS3.3 C.7.6.3.1.2: what arrives is what its Photometric Interpretation says, pixel by pixel."""
    path = Path(get_testdata_file(name))
    original = pydicom.dcmread(path)
    assert original.file_meta.TransferSyntaxUID.is_encapsulated
    sent = send_as(path)
    assert sent.PhotometricInterpretation in (photometric, "RGB")
    assert sent.PlanarConfiguration == 0
    assert np.array_equal(sent.pixel_array, original.pixel_array)


# Things that encapsulation can be


def _frames(dataset: Dataset, count: int) -> list[bytes]:
    dataset.NumberOfFrames = count
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 4096, (count, dataset.Rows, dataset.Columns), np.uint16)
    return [frame.tobytes() for frame in pixels]


def _encapsulated(make_dataset, value: bytes, syntax=ENCAPSULATED_UNCOMPRESSED, **values) -> Dataset:
    dataset = make_dataset(1, transfer_syntax=syntax, **values)
    dataset.PixelData = value
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    return dataset


@pytest.mark.parametrize(("offsets", "fragments"), [("none", 1), ("basic", 1), ("basic", 2), ("extended", 1)])
def test_frames_with_and_without_offset_tables(send_as, make_dataset, offsets, fragments):
    """PS3.5 A.4, A.4.11; the Extended Offset Table (PS3.3 C.7.6.3.1.8) makes no sense of native pixels, and goes."""
    frames = _frames(make_dataset(1), 3)
    if offsets == "extended":
        value, table, lengths = encapsulate_extended(frames)
        more = {"ExtendedOffsetTable": table, "ExtendedOffsetTableLengths": lengths}
    else:
        value, more = encapsulate(frames, fragments_per_frame=fragments, has_bot=offsets == "basic"), {}
    sent = send_as(_part10(_encapsulated(make_dataset, value, NumberOfFrames=3, **more)))
    assert sent.PixelData == b"".join(frames)
    assert "ExtendedOffsetTable" not in sent
    assert "ExtendedOffsetTableLengths" not in sent


def test_an_odd_number_of_bytes_is_padded(send_as, make_dataset):
    """PS3.5 8.1.1."""
    pixels = np.arange(9, dtype=np.uint8)
    dataset = make_dataset(1, Rows=3, Columns=3, BitsAllocated=8, BitsStored=8, HighBit=7, PixelData=None)
    dataset.PixelData = pixels.tobytes() + b"\0"
    dataset["PixelData"].VR = "OB"
    dataset.compress(RLELossless, encoding_plugin="pydicom", generate_instance_uid=False)
    assert send_as(_part10(dataset)).PixelData == pixels.tobytes() + b"\0"


@pytest.mark.parametrize("representation", [0, 1])
def test_signed_pixels_and_overlays_in_unused_bits(send_as, make_dataset, representation):
    """PS3.5 8.1.2: a retired overlay lies in the bits above High Bit, and has to stay there."""
    cells = np.random.default_rng(2).integers(0, 1 << 16, (8, 8), np.uint16)
    dataset = make_dataset(1, PixelRepresentation=representation)
    dataset.add_new(0x60000100, "US", 16)
    dataset.add_new(0x60000102, "US", 15)
    dataset.PixelData = cells.tobytes()
    dataset.compress(RLELossless, encoding_plugin="pydicom", generate_instance_uid=False)
    assert send_as(_part10(dataset)).PixelData == cells.tobytes()


def test_an_icon_is_decoded_too(send_as, make_dataset):
    """PS3.3 F.7: pixel data of an item is encapsulated like those of the object, or native."""
    icon = Dataset()
    icon.Rows, icon.Columns, icon.SamplesPerPixel, icon.PhotometricInterpretation = 2, 2, 1, "MONOCHROME2"
    icon.BitsAllocated, icon.BitsStored, icon.HighBit, icon.PixelRepresentation = 8, 8, 7, 0
    icon.add_new("PixelData", "OB", encapsulate([b"\1\2\3\4"]))
    icon["PixelData"].is_undefined_length = True
    dataset = _encapsulated(make_dataset, encapsulate(_frames(make_dataset(1), 1)), IconImageSequence=[icon])
    sent = send_as(_part10(dataset))
    assert sent.IconImageSequence[0].PixelData == b"\1\2\3\4"


@pytest.mark.parametrize("keyword", ["FloatPixelData", "DoubleFloatPixelData"])
@pytest.mark.parametrize("target", NATIVE, ids=lambda uid: uid.keyword)
def test_float_pixels(send_as, make_dataset, keyword, target):
    """PS3.3 C.7.6.24: words of four and of eight bytes follow the byte order."""
    size = 4 if keyword == "FloatPixelData" else 8
    values = np.linspace(-1, 1, 64).astype(f"<f{size}")
    dataset = make_dataset(1, PixelData=None, **{keyword: values.tobytes()})
    sent = send_as(_part10(dataset), target)
    order = "<" if target.is_little_endian else ">"
    assert np.array_equal(np.frombuffer(sent[keyword].value, f"{order}f{size}"), values)


# Elements other than pixels


@pytest.mark.parametrize("target", NATIVE, ids=lambda uid: uid.keyword)
def test_texts_arrive_as_they_were_written(send_as, make_dataset, target):
    """What a sender has got wrong is not corrected, and stops nothing: IS with a letter, DA that is none."""
    content = _part10(make_dataset(1, StudyDate="20240102", InstanceNumber=7))
    content = content.replace(b"DA\x08\x0020240102", b"DA\x08\x00yester  ").replace(b"IS\x02\x007 ", b"IS\x02\x007x")
    sent = send_as(content, target)
    assert dict(sent.items())[pydicom.tag.Tag("StudyDate")].value == b"yester  "
    assert dict(sent.items())[pydicom.tag.Tag("InstanceNumber")].value == b"7x"


@pytest.mark.parametrize(
    "name",
    ["CT_small.dcm", "MR_small_bigendian.dcm", "image_dfl.dcm", "rtdose.dcm", "rtdose_expb.dcm", "MR_small_RLE.dcm"],
)
@pytest.mark.parametrize("target", NATIVE, ids=lambda uid: uid.keyword)
def test_what_is_copied_in_blocks_is_what_is_converted_at_once(archive, monkeypatch, tmp_path, name, target):
    path = Path(get_testdata_file(name))
    stored = archive.open_instance(archive.ingest(path).sop_instance_uid)

    def sent():
        with converted(stored, target, lambda _size: tmp_path / "scratch") as data:
            assert isinstance(data, bytes)
            return _inflated(BytesIO(data)) if target.is_deflated else data

    at_once = sent()
    monkeypatch.setattr(conversion, "_DEFERRED_BYTES", 16)
    assert sent() == at_once


def test_what_is_large_goes_to_a_file_that_does_not_stay(archive, monkeypatch, tmp_path):
    path = Path(get_testdata_file("MR_small_RLE.dcm"))
    stored = archive.open_instance(archive.ingest(path).sop_instance_uid)
    with converted(stored, ExplicitVRLittleEndian, lambda _size: tmp_path / "none") as in_memory:
        pass
    monkeypatch.setattr(conversion, "_IN_MEMORY_BYTES", 1000)
    sizes = []

    def new_file(size):
        sizes.append(size)
        return tmp_path / "scratch"

    with converted(stored, ExplicitVRLittleEndian, new_file) as (scratch, offset):
        assert scratch.read_bytes()[offset:] == in_memory
    assert sizes == [8192]
    assert not scratch.exists()


def test_no_room_for_the_file_is_said(archive, monkeypatch):
    path = Path(get_testdata_file("MR_small_RLE.dcm"))
    stored = archive.open_instance(archive.ingest(path).sop_instance_uid)
    monkeypatch.setattr(conversion, "_IN_MEMORY_BYTES", 1000)

    def refuse(_size):
        raise OutOfSpace("no room")

    with pytest.raises(OutOfSpace), converted(stored, ExplicitVRLittleEndian, refuse):
        pass


# What cannot be converted


@pytest.mark.parametrize(
    ("syntax", "values", "value", "reason"),
    [
        ("1.2.840.10008.1.2.4.102", {}, b"video", "no decoder for MPEG-4"),
        ("1.2.840.10008.1.2.4.107", {}, b"video", "no decoder for HEVC"),
        ("1.2.840.10008.1.2.4.100", {}, b"video", "no decoder for MPEG2"),
        ("1.2.840.10008.1.2.4.92", {}, b"part 2", "no decoder for JPEG 2000 Part 2"),
        ("1.2.840.10008.1.2.4.52", {}, b"arithmetic", "no decoder for JPEG Extended"),
        ("1.2.840.10008.1.2.4.53", {}, b"no jpeg at all", "undecodable JPEG Spectral"),
        ("1.2.840.10008.1.2.4.70", {}, b"no jpeg at all", "undecodable JPEG Lossless"),
        (ENCAPSULATED_UNCOMPRESSED, {}, bytes(126), "undecodable Encapsulated"),
        (ENCAPSULATED_UNCOMPRESSED, {"NumberOfFrames": 2}, bytes(128), "fewer frames"),
        (ENCAPSULATED_UNCOMPRESSED, {"Rows": 16384, "Columns": 16384}, bytes(128), f"at most {LARGEST_FRAME}"),
        (ENCAPSULATED_UNCOMPRESSED, {"NumberOfFrames": 1 << 26}, bytes(128), "fit into a data element"),
        ("1.2.840.10008.1.2.8.1", {}, b"\xff\xff\xff\xff", "cannot convert it"),
    ],
)
def test_what_cannot_be_decoded_says_why(send_as, make_dataset, syntax, values, value, reason):
    dataset = _encapsulated(make_dataset, encapsulate([value]), syntax, **values)
    with pytest.raises(ConversionError, match=reason):
        send_as(_part10(dataset))


def test_pixels_on_another_server_cannot_be_sent(send_as, make_dataset):
    """PS3.5 A.6."""
    dataset = make_dataset(1, transfer_syntax="1.2.840.10008.1.2.4.94", PixelData=None)
    dataset.PixelDataProviderURL = "http://192.0.2.1/image"
    with pytest.raises(ConversionError, match="JPIP"):
        send_as(_part10(dataset))


@pytest.mark.parametrize(
    ("stored", "accepted", "target"),
    [
        (RLELossless, [RLELossless, ExplicitVRLittleEndian], RLELossless),
        (RLELossless, [ImplicitVRLittleEndian, ExplicitVRLittleEndian], ExplicitVRLittleEndian),
        (RLELossless, [ExplicitVRBigEndian], ExplicitVRBigEndian),
        (ImplicitVRLittleEndian, [DeflatedExplicitVRLittleEndian], DeflatedExplicitVRLittleEndian),
        (RLELossless, ["1.2.840.10008.1.2.4.50"], None),
        (ExplicitVRLittleEndian, [RLELossless], None),
    ],
)
def test_the_transfer_syntax_to_send_in(stored, accepted, target):
    """The stored one, else an uncompressed one; nothing is compressed for a peer."""
    if target is not None:
        assert target_syntax(stored, accepted) == target
        return
    with pytest.raises(ConversionError, match="neither"):
        target_syntax(stored, accepted)


def test_no_more_is_inflated_than_the_limit(archive, monkeypatch):
    """A small file may inflate to any size."""
    stored = archive.open_instance(archive.ingest(Path(get_testdata_file("image_dfl.dcm"))).sop_instance_uid)
    monkeypatch.setattr(conversion, "LARGEST_INFLATED", 1000)
    with (
        pytest.raises(ConversionError, match="inflates to more than 1000"),
        converted(stored, ImplicitVRLittleEndian, lambda _size: Path()),
    ):
        pass


@pytest.mark.parametrize("stored", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian])
def test_what_is_cut_off_is_not_made_to_look_whole(send_as, make_instance, stored):
    """Its pixels would be fewer than it says, and no receiver could tell."""
    whole = make_instance(1, transfer_syntax=stored, PixelData=bytes(2048))
    target = ImplicitVRLittleEndian if stored == ExplicitVRLittleEndian else ExplicitVRLittleEndian
    assert send_as(whole, target).PixelData == bytes(2048)
    with pytest.raises(ConversionError, match="its data set is cut off"):
        send_as(make_instance(2, transfer_syntax=stored, PixelData=bytes(2048))[:-12], target)
