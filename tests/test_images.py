"""Images in: PNG, JPEG, BMP and TIFF become valid Secondary Capture objects, the same ones every time."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image

from index.encoders.pixels import canonical_frames
from index.errors import InvalidInstance
from index.image_files import read_image_file
from index.image_patients import by_pattern, by_table, own_patient
from index.secondary_capture import Description, one_line, secondary_capture
from index.tables import InvalidTable

RAMP = np.linspace(0, 255, 9 * 7).reshape(9, 7).astype(np.uint8)
DEEP = (RAMP.astype(np.uint16) * 257) ^ 1
COLOUR = np.stack([RAMP, RAMP[::-1], 255 - RAMP], axis=2)


def write(path: Path, pixels: np.ndarray | Image.Image, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(path, **options)
    return path


def converted(path: Path, **said) -> pydicom.Dataset:
    return pydicom.dcmread(BytesIO(secondary_capture(read_image_file(path), Description("P1", **said))))


@pytest.mark.parametrize(
    ("name", "pixels", "stored"),
    [
        ("grey.png", RAMP, RAMP),
        ("grey.BMP", RAMP, RAMP),
        ("deep.png", DEEP, DEEP),
        ("deep.tif", DEEP, DEEP),
        ("grey.tiff", RAMP, RAMP),
        ("colour.png", COLOUR, COLOUR),
        ("colour.bmp", COLOUR, COLOUR),
        ("bits.png", Image.fromarray(RAMP > 100), np.where(RAMP > 100, 255, 0)),
        ("palette.png", Image.fromarray(COLOUR).convert("P"),
         np.asarray(Image.fromarray(COLOUR).convert("P").convert("RGB"))),
        ("opaque.png", np.dstack([COLOUR, np.full((9, 7), 255, np.uint8)]), COLOUR),
        ("glass.png", np.dstack([COLOUR, np.zeros((9, 7), np.uint8)]), np.zeros_like(COLOUR)),
        ("grey and clear.png", Image.merge("LA", [Image.fromarray(RAMP), Image.new("L", (7, 9), 255)]), RAMP),
    ],
)  # fmt: skip
def test_the_samples_are_those_of_the_file_and_the_object_is_valid(tmp_path, validator_errors, name, pixels, stored):
    dataset = converted(write(tmp_path / name, pixels), series_description="Händ")
    np.testing.assert_array_equal(dataset.pixel_array, stored)
    assert "LossyImageCompression" not in dataset
    assert "BurnedInAnnotation" not in dataset
    dataset.save_as(tmp_path / "made.dcm", enforce_file_format=True)
    assert validator_errors(tmp_path / "made.dcm") == []


@pytest.mark.parametrize("pixels", [RAMP, COLOUR])
def test_a_jpeg_says_that_it_was_compressed(tmp_path, validator_errors, pixels):
    file = write(tmp_path / "a.jpeg", pixels, quality=95)
    dataset = converted(file)
    assert (dataset.LossyImageCompression, dataset.LossyImageCompressionMethod) == ("01", "ISO_10918_1")
    assert dataset.LossyImageCompressionRatio == pytest.approx(pixels.nbytes / file.stat().st_size, rel=1e-3)
    assert np.abs(dataset.pixel_array.astype(int) - pixels).mean() < 10
    dataset.save_as(tmp_path / "made.dcm", enforce_file_format=True)
    assert validator_errors(tmp_path / "made.dcm") == []


def test_the_orientation_that_a_camera_noted_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the first row is the right side
    plain = converted(write(tmp_path / "plain.jpg", RAMP, quality=100))
    turned = converted(write(tmp_path / "turned.jpg", RAMP, quality=100, exif=exif))
    np.testing.assert_array_equal(turned.pixel_array, np.rot90(plain.pixel_array, -1))


def test_an_encoder_sees_the_same_whatever_the_file_was(tmp_path):
    names = ("a.png", "a.bmp", "a.tif")
    seen = [canonical_frames(converted(write(tmp_path / name, RAMP))).images for name in names]
    for other in seen[1:]:
        np.testing.assert_array_equal(seen[0], other)


def test_the_object_follows_from_the_file_and_its_uids_from_the_bytes_alone(tmp_path):
    file, other = write(tmp_path / "a.png", RAMP), write(tmp_path / "b.png", DEEP)
    image = read_image_file(file)
    assert secondary_capture(image, Description("P1")) == secondary_capture(read_image_file(file), Description("P1"))
    one, two = converted(file), converted(file, series_description="x", modality="DX")
    uids = ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID")
    assert [one[uid].value for uid in uids] == [two[uid].value for uid in uids]
    assert len({dataset[uid].value for dataset in (one, converted(other)) for uid in uids}) == 6
    assert (two.Modality, two.SeriesDescription, two.ConversionType) == ("DX", "x", "WSD")


def frames_of(tmp_path: Path) -> Path:
    pages = [Image.fromarray(RAMP), Image.fromarray(RAMP)]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    return tmp_path / "pages.tif"


def deep_colour(tmp_path: Path) -> Path:
    """A PNG of 16 bits a sample in colour, which Pillow cannot write."""
    import struct
    import zlib

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0)
    rows = b"".join(b"\0" + bytes(12) for _ in range(2))
    file = tmp_path / "deep.png"
    file.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )
    return file


def cut(tmp_path: Path) -> Path:
    file = write(tmp_path / "cut.png", np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8))
    file.write_bytes(file.read_bytes()[:600])
    return file


def text(tmp_path: Path) -> Path:
    (tmp_path / "text.png").write_text("no image", encoding="utf-8")
    return tmp_path / "text.png"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (text, "no PNG, JPEG, BMP or TIFF"),
        (cut, "cannot be read"),
        (frames_of, "one picture in a file is expected, got 2"),
        (deep_colour, "colour of 8 bits a sample is expected, got 16"),
        (lambda folder: write(folder / "f.tif", RAMP.astype(np.float32)), "got floating point"),
        (lambda folder: write(folder / "n.tif", RAMP.astype(np.int32) - 7), "0 to 65535 are expected, got -7"),
        (lambda folder: write(folder / "w.png", np.zeros((1, 70000), np.uint8)), "got 1 and 70000"),
    ],
)  # fmt: skip
def test_what_cannot_be_kept_is_refused_in_a_sentence(tmp_path, make, said):
    with pytest.raises(InvalidInstance, match=said):
        read_image_file(make(tmp_path))


def test_whose_an_image_is(tmp_path):
    file = write(tmp_path / "Hand" / "p7_1.png", RAMP)
    image = read_image_file(file)
    assert own_patient(file, image) == f"p7_1-{image.sha256[:8]}"
    assert by_pattern(r"([^/]+)_\d+\.png$")(file, image) == "p7"
    assert by_pattern(r"/(Hand)/")(file, image) == "Hand"
    with pytest.raises(InvalidInstance, match="does not tell the patient"):
        by_pattern(r"(\d{9})\.gif")(file, image)
    table = tmp_path / "patients.csv"
    table.write_text("file,patient\nHand/p7_1.png,P7\np7_1.png,P8\n", encoding="utf-8")
    assert by_table(table)(file, image) == "P7"
    assert by_table(table)(tmp_path / "Head" / "p7_1.png", image) == "P8"
    with pytest.raises(InvalidInstance, match="names no patient"):
        by_table(table)(tmp_path / "p9.png", image)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: by_pattern("("), "no regular expression"),
        (lambda: by_pattern("a+"), "a group in parentheses"),
    ],
)
def test_a_pattern_has_to_tell_the_patient(make, said):
    with pytest.raises(ValueError, match=said):
        make()


def test_a_table_of_patients_does_not_contradict_itself(tmp_path):
    table = tmp_path / "patients.csv"
    table.write_text("a.png,P1\na.png,P2\n", encoding="utf-8")
    with pytest.raises(InvalidTable, match="lines 1 and 2"):
        by_table(table)


@pytest.mark.parametrize(("text", "value"), [
    ("a\\b\nc", "a_b_c"), ("  Hand  left ", "Hand left"), ("ü" * 70, "ü" * 64), ("", ""),
])  # fmt: skip
def test_text_of_a_path_becomes_a_value_that_dicom_allows(text, value):
    assert one_line(text) == value


def test_import_takes_images_when_asked(tharsis, tmp_path, make_file):
    """Each image is a study of its own patient; a bad one is named, the others go on; nothing is stored twice."""
    pictures = tmp_path / "pictures"
    write(pictures / "Hand" / "1.png", RAMP)
    write(pictures / "Head" / "1.png", DEEP)
    text(pictures)
    (pictures / "notes.txt").write_text("x", encoding="utf-8")
    (pictures / "scan.dcm").write_bytes(make_file(1).read_bytes())
    data = tmp_path / "data"

    alone = json.loads(tharsis("import", pictures, "--data", data, "--json").stdout)
    assert alone["outcomes"] == {"stored": 1, "not DICOM": 4}

    told = tharsis("import", pictures, "--images", "--modality", "DX", "--data", data, "--json")
    assert told.returncode == 1
    first = json.loads(told.stdout)
    assert first["outcomes"] == {"stored": 2, "duplicate": 1, "refused": 1, "not DICOM": 1}
    assert first["refused"][0]["file"].endswith("text.png")
    again = json.loads(tharsis("import", pictures, "--images", "--modality", "DX", "--data", data, "--json").stdout)
    assert again["outcomes"] == {"duplicate": 3, "refused": 1, "not DICOM": 1}
    other = json.loads(tharsis("import", pictures / "Hand", "--images", "--data", data, "--json").stdout)
    assert other["outcomes"] == {"conflict": 1}  # the same image, said to be of another modality
    assert "this image is stored already" in other["refused"][0]["reason"]

    held = json.loads(tharsis("status", "--data", data, "--json").stdout)
    assert (held["patients"], held["studies"], held["series"], held["instances"]) == (3, 3, 3, 3)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--modality", "DX"], "add --images"),
        (["--images", "--modality", "x-ray"], "capitals and digits"),
        (["--images", "--patient-pattern", "("], "no regular expression"),
        (["--images", "--patient-pattern", "(a)", "--patient-table", __file__], "give one of them"),
    ],
)
def test_a_mistake_in_the_options_is_told_before_anything_is_stored(tharsis, tmp_path, options, said):
    write(tmp_path / "1.png", RAMP)
    told = tharsis("import", tmp_path / "1.png", "--data", tmp_path / "data", *options)
    assert told.returncode == 2
    assert said in told.stderr
    assert not (tmp_path / "data" / "catalogue.sqlite").exists()
