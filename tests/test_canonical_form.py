"""The same anatomy, stored another way, is the same canonical frame and nearly the same embedding."""

import itertools
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.pixels.utils import pixel_array
from pydicom.sequence import Sequence
from pydicom.uid import (
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
    SecondaryCaptureImageStorage,
)
from scipy.ndimage import gaussian_filter, zoom

from index.encoders.orientation import AS_STORED, Turn, turn_of
from index.encoders.pixels import NoPixels, Region, canonical_frames
from index.encoders.texture import TextureEncoder

X, Y, Z = np.eye(3)
AXIAL, CORONAL, SAGITTAL = (X, Y), (X, -Z), (Y, -Z)
TURNS = [Turn(*flags) for flags in itertools.product((False, True), repeat=3)]


@pytest.fixture(scope="module")
def encoder() -> TextureEncoder:
    return TextureEncoder.load()


def frame(dataset: Dataset, **options: Any) -> np.ndarray:
    return canonical_frames(dataset, **options).images[0]


def with_pixels(dataset: Dataset, pixels: np.ndarray, **values: Any) -> Dataset:
    """A copy of `dataset` that stores `pixels`, and says so."""
    made = deepcopy(dataset)
    for keyword in ("PixelPaddingValue", "SmallestImagePixelValue", "LargestImagePixelValue"):
        if keyword in made and keyword not in values:
            del made[keyword]
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.Rows, made.Columns = pixels.shape[-2:]
    made.BitsAllocated = made.BitsStored = pixels.dtype.itemsize * 8
    made.HighBit, made.PixelRepresentation = made.BitsStored - 1, int(pixels.dtype.kind == "i")
    made.PixelData = pixels.tobytes()
    made["PixelData"].VR = "OW"
    made["PixelData"].is_undefined_length = False
    for keyword, value in values.items():
        setattr(made, keyword, value)
    return made


def turned(dataset: Dataset, turn: Turn) -> Dataset:
    """`dataset` with its rows and columns stored the other way round, and its orientation and spacing with them."""
    row, column = np.split(np.asarray(dataset.ImageOrientationPatient, dtype=float), 2)
    spacing = list(dataset.get("PixelSpacing", [1.0, 1.0]))
    if turn.transpose:
        row, column, spacing = column, row, spacing[::-1]
    row, column = row * (-1 if turn.flip_columns else 1), column * (-1 if turn.flip_rows else 1)
    return with_pixels(dataset, np.ascontiguousarray(turn.of(pixel_array(dataset))),
                       ImageOrientationPatient=[*row, *column], PixelSpacing=spacing)  # fmt: skip


def resampled(dataset: Dataset, rows: int, columns: int) -> Dataset:
    """`dataset` with so many pixels in the place of one, each smaller."""
    pixels = np.asarray(pixel_array(dataset))
    finer = zoom(pixels.astype(np.float64), (rows, columns), order=1, mode="nearest", grid_mode=True)
    pixels = np.round(finer).astype(pixels.dtype)
    height, width = dataset.PixelSpacing
    return with_pixels(dataset, pixels, PixelSpacing=[height / rows, width / columns])


def rescaled(dataset: Dataset, slope: float, intercept: float) -> Dataset:
    """`dataset` with stored values that only another rescale makes the same."""
    values = pixel_array(dataset) * float(dataset.get("RescaleSlope", 1)) + float(dataset.get("RescaleIntercept", 0))
    stored = np.round((values - intercept) / slope).astype(np.int32)
    return with_pixels(dataset, stored, RescaleSlope=slope, RescaleIntercept=intercept)


def inverted(dataset: Dataset) -> Dataset:
    """`dataset` with low for high, as MONOCHROME1; Hounsfield units are kept by the slope, not by how they are seen."""
    pixels = pixel_array(dataset).astype(np.int32)
    slope, intercept = float(dataset.get("RescaleSlope", 1)), float(dataset.get("RescaleIntercept", 0))
    if dataset.Modality == "CT":
        return with_pixels(dataset, -pixels, RescaleSlope=-slope, RescaleIntercept=intercept,
                           PhotometricInterpretation="MONOCHROME1")  # fmt: skip
    return with_pixels(dataset, pixels.max() - pixels, PhotometricInterpretation="MONOCHROME1")


def as_enhanced(dataset: Dataset) -> Dataset:
    """`dataset` with its geometry in functional groups."""
    made, groups = deepcopy(dataset), Dataset()
    for keyword, group in (("PixelSpacing", "PixelMeasuresSequence"),
                           ("ImageOrientationPatient", "PlaneOrientationSequence")):  # fmt: skip
        item = Dataset()
        setattr(item, keyword, made[keyword].value)
        del made[keyword]
        setattr(groups, group, Sequence([item]))
    made.SharedFunctionalGroupsSequence = Sequence([groups])
    return made


def as_jpeg(dataset: Dataset, syntax: str) -> Dataset:
    made = with_pixels(dataset, pixel_array(dataset))
    made.compress(syntax, generate_instance_uid=False)
    return made


REAL = {
    "CT chest": "cornerstone3D/packages/dicomImageLoader/testImages/CTImage.dcm_LittleEndianExplicitTransferSyntax"
    "_1.2.840.10008.1.2.1.dcm",
    "CT head, tilted": "dcm_qa_ct/In/GE",
    "MR brain, sagittal": "dcm_qa_frag/In",
    "MR brain, axial": "dcm_qa_nih/In/20180918GE/mr_0004",
    "CT abdomen, JPEG 2000": "TotalSegmentator/tests/reference_files/example_ct_dicom",
}


@pytest.fixture(scope="module", params=REAL, ids=lambda name: name.replace(",", "").replace(" ", "-"))
def real(request: pytest.FixtureRequest, shared_data: Path) -> Dataset:
    path = shared_data / REAL[request.param]
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    dataset = pydicom.dcmread(files[len(files) // 2])
    pixels, spacing = pixel_array(dataset), list(dataset.PixelSpacing)
    if max(pixels.shape) > 256:
        pixels, spacing = pixels[::2, ::2], [2 * length for length in spacing]
    return with_pixels(dataset, np.ascontiguousarray(pixels), PixelSpacing=spacing)


VARIANTS: dict[str, tuple[Callable[[Dataset], Dataset], float]] = {
    **{f"{turn}": (partial(turned, turn=turn), 1e-5) for turn in TURNS[1:]},
    "32 bits": (lambda d: with_pixels(d, pixel_array(d).astype(np.int32)), 1e-5),
    "another rescale": (lambda d: rescaled(d, 0.5, -3000.0), 1e-5),
    "MONOCHROME1": (inverted, 1e-5),
    "RLE": (lambda d: as_jpeg(d, RLELossless), 1e-5),
    "JPEG 2000": (lambda d: as_jpeg(d, JPEG2000Lossless), 1e-5),
    "JPEG-LS": (lambda d: as_jpeg(d, JPEGLSLossless), 1e-5),
    "functional groups": (as_enhanced, 1e-5),
    "rows twice as dense": (lambda d: resampled(d, 2, 1), 0.02),
    "columns twice as dense": (lambda d: resampled(d, 1, 2), 0.02),
    "another window": (lambda d: with_pixels(d, pixel_array(d), WindowCenter=5, WindowWidth=3), 1e-5),
}
"""Another way to store an image, and the mean difference of canonical greys, 0 to 1, that it may make."""


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_same_anatomy_stored_another_way(encoder: TextureEncoder, real: Dataset, variant: str) -> None:
    change, tolerance = VARIANTS[variant]
    original, other = frame(real), frame(change(real))
    difference = np.abs(original - other).mean()
    first, second = encoder.encode(np.stack([original, other]))
    print(f"{variant}: mean difference {difference:.2g}, cosine {first @ second:.5f}")
    assert np.ptp(original) > 0.5
    assert difference <= tolerance
    assert first @ second > (0.9999 if tolerance < 1e-3 else 0.97)


def scene(make: Callable[..., Dataset], row: np.ndarray, column: np.ndarray, **values: Any) -> Dataset:
    """A picture without symmetry whose rows and columns run along `row` and `column`."""
    picture = gaussian_filter(np.random.default_rng(5).random((40, 56)), 3)
    stored = np.round(picture / picture.max() * 1000).astype(np.uint16)
    return make(Modality="MR", Rows=40, Columns=56, PixelData=stored.tobytes(), BitsStored=16, HighBit=15,
                ImageOrientationPatient=[*row, *column], PixelSpacing=[1.5, 1.0], **values)  # fmt: skip


@pytest.mark.parametrize("turn", TURNS, ids=str)
@pytest.mark.parametrize("plane", [AXIAL, CORONAL, SAGITTAL], ids=["axial", "coronal", "sagittal"])
@pytest.mark.parametrize("tilt", [0.0, 17.0, 40.0])
def test_a_plane_is_seen_in_one_way_however_it_was_stored(
    make_dataset: Callable[..., Dataset], plane: tuple[np.ndarray, np.ndarray], turn: Turn, tilt: float
) -> None:
    angle = np.deg2rad(tilt)
    across, down = plane
    down = np.cos(angle) * down + np.sin(angle) * np.cross(across, down)
    standard = scene(make_dataset, across, down)
    assert turn_of(standard) == AS_STORED
    np.testing.assert_allclose(frame(turned(standard, turn)), frame(standard), atol=1e-6)


@pytest.mark.parametrize("turn", TURNS, ids=str)
@pytest.mark.parametrize(
    ("letters", "canonical"), [(("L", "F"), True), (("P", "F"), True), (("L", "P"), True), (("LA", "FP"), True),
                               (("PL", "F"), True), (("A", "F"), False), (("R", "F"), False)],
)  # fmt: skip
def test_radiographs_are_turned_by_their_letters(
    make_dataset: Callable[..., Dataset], letters: tuple[str, str], canonical: bool, turn: Turn
) -> None:
    opposite = dict(zip("LRAPHF", "RLPAFH", strict=True))

    def stored(turn: Turn) -> Dataset:
        dataset = scene(make_dataset, X, Y)
        picture, spacing = turn.of(pixel_array(dataset)), [1.5, 1.0]
        row, column = letters
        if turn.transpose:
            row, column, spacing = column, row, spacing[::-1]
        row = "".join(opposite[letter] for letter in row) if turn.flip_columns else row
        column = "".join(opposite[letter] for letter in column) if turn.flip_rows else column
        made = with_pixels(dataset, np.ascontiguousarray(picture), Modality="DX", PatientOrientation=[row, column])
        del made.ImageOrientationPatient, made.PixelSpacing
        made.ImagerPixelSpacing = spacing
        return made

    assert (turn_of(stored(AS_STORED)) == AS_STORED) is canonical
    np.testing.assert_allclose(frame(stored(turn)), frame(stored(AS_STORED)), atol=1e-6)


@pytest.mark.parametrize(
    "values",
    [
        {"ImageOrientationPatient": None},
        {"ImageOrientationPatient": [0, 0, 0, 0, 0, 0]},
        {"ImageOrientationPatient": [0, 1, 0, 0, 1, 0]},
        {"ImageOrientationPatient": [0, 2, 0, 1, 0, 0]},
        {"ImageOrientationPatient": [0, 1, 0]},
        {"ImageOrientationPatient": None, "PatientOrientation": ["R", "L"]},
        {"ImageOrientationPatient": None, "PatientOrientation": ["R"]},
        {"ImageOrientationPatient": None, "PatientOrientation": ["RT", "X"]},
        {"ImageOrientationPatient": None, "PatientOrientation": ""},
        {"ImageOrientationPatient": None, "PatientOrientation": ["R", "F"], "AnatomicalOrientationType": "QUADRUPED"},
    ],
)
def test_what_says_nothing_or_nonsense_stays_as_stored(
    make_dataset: Callable[..., Dataset], values: dict[str, Any]
) -> None:
    dataset = scene(make_dataset, X, Y)
    for keyword, value in values.items():
        if value is None:
            del dataset[keyword]
        else:
            setattr(dataset, keyword, value)
    assert turn_of(dataset) == AS_STORED


def test_image_orientation_turns_a_quadruped_as_anybody(make_dataset: Callable[..., Dataset]) -> None:
    dataset = scene(make_dataset, Y, X)
    turn = turn_of(dataset)
    dataset.AnatomicalOrientationType = "QUADRUPED"
    assert turn_of(dataset) == turn != AS_STORED


def test_each_frame_is_turned_by_its_own_orientation(make_dataset: Callable[..., Dataset]) -> None:
    single = scene(make_dataset, *AXIAL)
    pixels = pixel_array(single)
    dataset = with_pixels(single, np.stack([pixels, pixels[:, ::-1], pixels[::-1]]), NumberOfFrames=3)
    del dataset.ImageOrientationPatient
    groups = []
    for row, column in (AXIAL, (-X, Y), (X, -Y)):
        orientation, group = Dataset(), Dataset()
        orientation.ImageOrientationPatient = [*row, *column]
        group.PlaneOrientationSequence = Sequence([orientation])
        groups.append(group)
    dataset.PerFrameFunctionalGroupsSequence = Sequence(groups)
    for image in canonical_frames(dataset).images:
        np.testing.assert_allclose(image, frame(single), atol=1e-6)


@pytest.mark.parametrize("turn", TURNS, ids=str)
def test_a_region_is_cut_in_stored_pixels_before_the_turn(make_dataset: Callable[..., Dataset], turn: Turn) -> None:
    standard = scene(make_dataset, *AXIAL)
    stored = turned(standard, turn)
    marked = np.zeros((40, 56), dtype=np.int64)
    marked[4:20, 30:54] = 1
    rows, columns = np.nonzero(turn.of(marked))
    region = Region(int(columns.min()), int(rows.min()), int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1)
    np.testing.assert_allclose(frame(stored, region=region), frame(standard, region=Region(30, 4, 24, 16)), atol=1e-6)


@pytest.mark.parametrize(
    ("photometric", "shape", "is_turned_over"),
    [
        ("MONOCHROME1", None, True),
        ("MONOCHROME1", "INVERSE", True),
        ("MONOCHROME1", "IDENTITY", True),
        ("MONOCHROME2", "INVERSE", True),
        ("MONOCHROME2", "IDENTITY", False),
        ("MONOCHROME2", None, False),
    ],
)
def test_an_inverse_presentation_is_turned_over_once(
    make_dataset: Callable[..., Dataset], photometric: str, shape: str | None, is_turned_over: bool
) -> None:
    values = {} if shape is None else {"PresentationLUTShape": shape}
    plain = frame(scene(make_dataset, *AXIAL))
    other = frame(scene(make_dataset, *AXIAL, PhotometricInterpretation=photometric, **values))
    inside = frame(scene(make_dataset, *AXIAL)) > 0.01  # outside the image both are black
    expected = 1.0 - plain if is_turned_over else plain
    np.testing.assert_allclose(other[inside][:500], expected[inside][:500], atol=0.02)


def test_bits_that_are_not_pixels_do_not_count(make_dataset: Callable[..., Dataset]) -> None:
    plain = scene(make_dataset, *AXIAL)
    pixels = pixel_array(plain)
    overlay = (np.indices(pixels.shape).sum(axis=0) % 2 << 15).astype(np.uint16)
    with_overlay = with_pixels(plain, pixels | overlay, BitsStored=12, HighBit=11)
    signed = with_pixels(plain, (pixels.astype(np.int16) - 600) & 0x0FFF, BitsStored=12, HighBit=11)
    for other in (with_overlay, signed):
        np.testing.assert_allclose(frame(other), frame(plain), atol=1e-5)


@pytest.mark.parametrize(("padding", "kind"), [(63536, np.uint16), (-2000, np.int16), (4000, np.uint16)])
def test_padding_may_use_bits_that_are_not_pixels(
    make_dataset: Callable[..., Dataset], padding: int, kind: type
) -> None:
    plain = scene(make_dataset, *AXIAL)
    pixels = pixel_array(plain).astype(kind)
    pixels[:, :20] = padding
    bits = 11 if padding == -2000 else 12
    padded = with_pixels(plain, pixels, BitsStored=bits, HighBit=bits - 1, PixelPaddingValue=padding)
    assert not frame(padded)[:, :43].any()
    assert frame(padded)[:, 48:].max() > 0.99


def test_a_localizer_and_a_captured_screen_are_not_in_hounsfield_units(make_dataset: Callable[..., Dataset]) -> None:
    plain = frame(scene(make_dataset, *AXIAL))
    scaled = {"RescaleSlope": 0.1, "RescaleIntercept": 0}
    for values in (
        {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"], "RescaleType": "HU"},
        {"SOPClassUID": SecondaryCaptureImageStorage},
        {"RescaleType": "MGML"},
    ):
        dataset = scene(make_dataset, *AXIAL, **scaled, **values)
        dataset.Modality = "CT"
        np.testing.assert_allclose(frame(dataset), plain, atol=1e-5)


def test_colour_that_nothing_here_can_see_is_refused(make_dataset: Callable[..., Dataset]) -> None:
    pixels = np.zeros((8, 8, 4), np.uint8)
    for photometric in ("ARGB", "CMYK"):
        dataset = make_dataset(SamplesPerPixel=4, PhotometricInterpretation=photometric, PlanarConfiguration=0,
                               BitsAllocated=8, BitsStored=8, HighBit=7, PixelData=pixels.tobytes())  # fmt: skip
        with pytest.raises(NoPixels):
            frame(dataset)
