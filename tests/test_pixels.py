"""One canonical form: however an image is encoded, the canonical frame is the same."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.pixels.processing import convert_color_space
from pydicom.sequence import Sequence
from pydicom.uid import MRImageStorage, SecondaryCaptureImageStorage, UltrasoundImageStorage

from index.encoders.pixels import NoPixels, Region, canonical_frames
from index.encoders.slices import spread
from index.encoders.square import to_square
from index.errors import InvalidIdentifier

Make = Callable[..., Dataset]

SCENE = np.random.default_rng(7).integers(0, 1000, size=(48, 64))
"""Grey values of a picture that is not square and has no symmetry."""


@pytest.fixture
def make(make_dataset: Make) -> Make:
    """Make an instance of an array, axes ([frame,] row, column[, sample])."""

    def make(stored: np.ndarray, **values: Any) -> Dataset:
        stored = np.asarray(stored)
        is_colour = stored.shape[-1] == 3
        spatial = stored.shape[-3:-1] if is_colour else stored.shape[-2:]
        bits = stored.dtype.itemsize * 8
        frames = {} if stored.ndim == 2 + is_colour else {"NumberOfFrames": len(stored)}
        rgb = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0}
        colour = rgb if is_colour else {}
        return make_dataset(
            **{
                "SOPClassUID": MRImageStorage, "Modality": "MR", "Rows": spatial[0], "Columns": spatial[1],
                "BitsAllocated": bits, "BitsStored": bits, "HighBit": bits - 1,
                "PixelRepresentation": int(stored.dtype.kind == "i"), "PixelData": stored.tobytes(),
                **frames, **colour, **values,
            }
        )  # fmt: skip

    return make


def image(dataset: Dataset, **options: Any) -> np.ndarray:
    frames = canonical_frames(dataset, **options)
    assert frames.images.dtype == np.float32
    assert frames.images.min() >= 0
    assert frames.images.max() <= 1 + 1e-6
    return frames.images[0]


def hounsfield(make: Make, hu: np.ndarray, *, slope: float = 1.0, intercept: float = -1024.0, **values: Any) -> Dataset:
    stored = np.round((hu - intercept) / slope).astype(np.uint16)
    return make(stored, Modality="CT", RescaleSlope=slope, RescaleIntercept=intercept, **values)


@pytest.mark.parametrize(
    ("stored", "values"),
    [
        pytest.param(999 - SCENE, {"PhotometricInterpretation": "MONOCHROME1"}, id="MONOCHROME1"),
        pytest.param(SCENE * 60, {}, id="16 bits used"),
        pytest.param(SCENE + 5000, {}, id="offset"),
        pytest.param((SCENE - 500).astype(np.int16), {}, id="signed"),
        pytest.param(SCENE.astype(np.uint32), {}, id="32 bits"),
        pytest.param(SCENE, {"RescaleSlope": 3.5, "RescaleIntercept": -40}, id="rescaled"),
        pytest.param(999 - SCENE, {"RescaleSlope": -1, "RescaleIntercept": 0}, id="negative slope"),
        pytest.param(SCENE, {"RescaleSlope": 0, "RescaleIntercept": 0}, id="slope of 0"),
        pytest.param(SCENE, {"Modality": "CT", "RescaleSlope": 0.01, "RescaleIntercept": 0, "RescaleType": "US"},
                     id="CT without Hounsfield units"),
    ],
)  # fmt: skip
def test_encoding_of_the_same_picture_does_not_matter(make: Make, stored: np.ndarray, values: dict[str, Any]) -> None:
    stored = stored if stored.dtype != np.int64 else stored.astype(np.uint16)
    expected = image(make(SCENE.astype(np.uint16)))
    np.testing.assert_allclose(image(make(stored, **values)), expected, atol=1e-5)
    assert np.ptp(expected) > 0.5


def test_eight_bits_look_like_sixteen(make: Make) -> None:
    eight = (SCENE / 4).astype(np.uint8)
    np.testing.assert_allclose(image(make(eight)), image(make(SCENE.astype(np.uint16))), atol=0.01)


def test_hounsfield_units_have_one_grey_each_whatever_else_is_in_the_image(make: Make) -> None:
    units = [-3000, -1000, -150, 50, 250, 1500, 4000]
    for hu, grey in zip(units, [0, 0, 0.25, 0.5, 0.75, 1, 1], strict=True):
        picture = np.full((64, 64), 2000)
        picture[:, :32] = hu
        canonical = image(hounsfield(make, picture, intercept=-4000))
        assert canonical[64, 20] == pytest.approx(grey, abs=1e-6), hu


def test_hounsfield_units_do_not_depend_on_rescale_slope_photometric_or_type_written(make: Make) -> None:
    hu = SCENE * 2 - 1000
    expected = image(hounsfield(make, hu))
    for slope, values in (
        (0.5, {}),
        (2.0, {"RescaleType": "HU"}),
        (1.0, {"PhotometricInterpretation": "MONOCHROME1"}),  # how it is shown does not change what it measures
    ):
        np.testing.assert_allclose(image(hounsfield(make, hu, slope=slope, **values)), expected, atol=1e-3)


def test_modality_lut_is_applied(make: Make) -> None:
    table = Dataset()
    table.LUTDescriptor, table.ModalityLUTType = [1000, 0, 16], "US"
    table.LUTData = np.square(np.arange(1000) / 4).astype(np.uint16).tobytes()
    table["LUTData"].VR = "OW"
    through = image(make(SCENE.astype(np.uint16), ModalityLUTSequence=Sequence([table])))
    direct = image(make(np.square(SCENE / 4).astype(np.uint16)))
    np.testing.assert_allclose(through, direct, atol=1e-5)


@pytest.mark.parametrize(
    ("padding", "values"),
    [
        (63536, {"PixelPaddingValue": 63536}),
        (0, {"PixelPaddingValue": 0}),
        (4000, {"PixelPaddingValue": 3000, "PixelPaddingRangeLimit": 5000}),
        (4000, {"PixelPaddingValue": 5000, "PixelPaddingRangeLimit": 3000}),
    ],
)
def test_padding_is_black_and_does_not_change_the_rest(make: Make, padding: int, values: dict[str, Any]) -> None:
    picture = SCENE.astype(np.uint16) + 1
    picture[:10] = 1
    padded = picture.copy()
    padded[:10] = padding
    canonical = image(make(padded, **values))
    inside = slice(16 + 24, 112)
    assert np.all(canonical[18:34] == 0)
    # The rows without padding on their own have the same percentiles.
    alone = image(make(np.where(np.arange(48)[:, None] < 10, picture[10:20].repeat(5, axis=0)[:48], picture)))
    np.testing.assert_allclose(canonical[inside], alone[inside], atol=0.03)


def test_padding_written_signed_is_recognised(make: Make) -> None:
    hu = SCENE - 400
    hu[:, :8] = -2000
    dataset = make(hu.astype(np.int16), Modality="CT", RescaleSlope=1, RescaleIntercept=0, PixelPaddingValue=-2000)
    dataset.PhotometricInterpretation = "MONOCHROME1"
    assert np.all(image(dataset)[40:80, :12] == 0)


def test_constant_and_wholly_padded_images_are_black(make: Make) -> None:
    flat = np.full((16, 16), 7, np.uint16)
    for dataset in (make(flat), make(flat, PixelPaddingValue=7)):
        assert not image(dataset).any()


def test_few_pixels_that_differ_are_seen(make: Make) -> None:
    picture = np.zeros((64, 64), np.uint16)
    picture[30:33, 30:33] = 900
    assert image(make(picture)).max() == pytest.approx(1.0)


def test_values_that_are_not_finite_are_black(make: Make) -> None:
    values = SCENE.astype(np.float32)
    values[:6] = np.nan
    dataset = make(SCENE.astype(np.uint16), PixelData=None, BitsAllocated=32)
    dataset.FloatPixelData = values.tobytes()
    canonical = image(dataset)
    assert np.isfinite(canonical).all()
    assert not canonical[17:26].any()


def test_colour_becomes_luminance(make: Make) -> None:
    grey = (SCENE // 4).astype(np.uint8)
    rgb = np.stack([grey, grey, grey], axis=-1)
    expected = image(make(grey, SOPClassUID=SecondaryCaptureImageStorage))
    ybr = convert_color_space(rgb, "RGB", "YBR_FULL")
    np.testing.assert_allclose(image(make(rgb)), expected, atol=1e-5)
    np.testing.assert_allclose(image(make(ybr, PhotometricInterpretation="YBR_FULL")), expected, atol=0.02)
    red, green = np.zeros_like(rgb), np.zeros_like(rgb)
    red[..., 0], green[..., 1] = 255, 255
    halves = np.concatenate([red[:, :32], green[:, 32:]], axis=1)
    assert image(make(halves))[64, 10] < image(make(halves))[64, 118]


def test_palette_becomes_luminance(make: Make) -> None:
    indices = (SCENE // 4).astype(np.uint8)
    table = (np.arange(256)[::-1] * 257).astype(np.uint16)
    dataset = make(indices, PhotometricInterpretation="PALETTE COLOR")
    for colour in ("Red", "Green", "Blue"):
        setattr(dataset, f"{colour}PaletteColorLookupTableDescriptor", [256, 0, 16])
        setattr(dataset, f"{colour}PaletteColorLookupTableData", table.tobytes())
    expected = image(make(255 - indices, SOPClassUID=SecondaryCaptureImageStorage))
    np.testing.assert_allclose(image(dataset), expected, atol=1e-5)


@pytest.mark.parametrize("sop_class", [SecondaryCaptureImageStorage, UltrasoundImageStorage])
def test_a_rendered_image_keeps_its_greys(make: Make, sop_class: str) -> None:
    dim = (SCENE // 8).astype(np.uint8)
    told = image(make(dim, SOPClassUID=sop_class))
    assert told.max() == pytest.approx(dim.max() / 255.0, abs=0.02)
    inverted = image(make(255 - dim, SOPClassUID=sop_class, PhotometricInterpretation="MONOCHROME1"))
    np.testing.assert_allclose(inverted, told, atol=1e-5)
    deeper = make(dim.astype(np.uint16) * 16, SOPClassUID=sop_class)  # 12 bits of nobody knows what
    assert image(deeper).max() == pytest.approx(1.0, abs=0.02)




def test_each_frame_has_its_own_transformation(make: Make) -> None:
    hu = np.stack([SCENE - 500, SCENE - 500])
    dataset = make((hu + np.array([1000, 2000])[:, None, None]).astype(np.uint16), Modality="CT")
    groups = []
    for intercept in (-1000, -2000):
        transformation, group = Dataset(), Dataset()
        transformation.RescaleSlope, transformation.RescaleIntercept, transformation.RescaleType = 1, intercept, "HU"
        group.PixelValueTransformationSequence = Sequence([transformation])
        groups.append(group)
    dataset.PerFrameFunctionalGroupsSequence = Sequence(groups)
    first, second = canonical_frames(dataset).images
    np.testing.assert_allclose(first, second, atol=1e-6)
    np.testing.assert_allclose(first, image(hounsfield(make, hu[0])), atol=1e-6)


def test_frames_are_numbered_from_one_and_chosen_evenly(make: Make) -> None:
    stack = np.stack([np.roll(SCENE, shift, axis=1) for shift in range(10)]).astype(np.uint16)
    dataset = make(stack)
    assert canonical_frames(dataset).numbers == tuple(range(1, 11))
    assert canonical_frames(dataset, most=3).numbers == (2, 6, 9)
    chosen = canonical_frames(dataset, numbers=[7, 2])
    assert chosen.numbers == (2, 7)
    np.testing.assert_array_equal(chosen.images[1], image(make(stack[6])))
    assert canonical_frames(make(stack[0])).numbers == (0,)
    assert canonical_frames(make(stack[0]), numbers=[1]).numbers == (0,)
    for wrong in ([0], [11], []):
        with pytest.raises(InvalidIdentifier):
            canonical_frames(dataset, numbers=wrong)


@pytest.mark.parametrize(
    ("count", "most", "expected"), [(3, 24, [0, 1, 2]), (100, 1, [50]), (100, 4, [12, 37, 62, 87])]
)
def test_spread(count: int, most: int, expected: list[int]) -> None:
    assert spread(count, most) == expected


def test_region_is_cut_after_the_window(make: Make) -> None:
    dataset = hounsfield(make, SCENE - 500)
    part = hounsfield(make, SCENE[8:40, 4:44] - 500)
    np.testing.assert_array_equal(image(dataset, region=Region(4, 8, 40, 32)), image(part))
    for wrong in (Region(40, 0, 25, 10), Region(-1, 0, 4, 4), Region(0, 0, 0, 5)):
        with pytest.raises(InvalidIdentifier, match="64 × 48"):
            canonical_frames(dataset, region=wrong)


def test_aspect_is_kept(make: Make) -> None:
    bright = np.tile(np.arange(64, dtype=np.uint16) + 100, (32, 1))
    wide = image(make(bright))
    assert not wide[:32].any()
    assert not wide[96:].any()
    assert wide[33:95, 64].all()
    tall_pixels = image(make(bright, PixelSpacing=[2.0, 1.0]))
    assert tall_pixels[1:127, 64].all()
    np.testing.assert_array_equal(image(make(bright, PixelSpacing=[1000.0, 1.0])), wide)


def test_square_keeps_mean_and_symmetry() -> None:
    random = np.random.default_rng(0)
    for size in ((300, 300), (40, 40), (128, 128)):
        picture = random.random(size)
        square = to_square(picture, 128)
        assert square.mean() == pytest.approx(picture.mean(), abs=0.01)
        np.testing.assert_allclose(to_square(picture[::-1, ::-1], 128), square[::-1, ::-1], atol=1e-5)
    np.testing.assert_allclose(to_square(picture, 128), picture, atol=1e-6)
    np.testing.assert_allclose(to_square(np.ones((1, 1)), 128), 1.0)
    checkers = np.indices((512, 512)).sum(axis=0) % 2
    np.testing.assert_allclose(to_square(checkers, 128)[2:-2, 2:-2], 0.5, atol=1e-3)


def test_what_has_no_image_says_so(make: Make) -> None:
    truncated = make(SCENE.astype(np.uint16))
    truncated.PixelData = truncated.PixelData[:100]
    malformed = make(SCENE.astype(np.uint16))
    malformed.BitsAllocated = 13
    no_syntax = make(SCENE.astype(np.uint16))
    del no_syntax.file_meta.TransferSyntaxUID
    for dataset in (make(SCENE.astype(np.uint16), PixelData=None), truncated, malformed, no_syntax):
        with pytest.raises(NoPixels):
            canonical_frames(dataset)


def test_dataset_is_not_changed(make: Make) -> None:
    dataset = make(np.stack([SCENE // 4] * 3, axis=-1).astype(np.uint8), SOPClassUID=UltrasoundImageStorage)
    before = dataset.to_json()
    canonical_frames(dataset)
    assert dataset.to_json() == before


def test_transfer_syntaxes_of_one_image_agree(shared_data: Any) -> None:
    folder = shared_data / "cornerstone3D/packages/dicomImageLoader/testImages"
    images = []
    for path in sorted(folder.glob("CTImage.dcm_*")):
        try:
            images.append((path.name, image(pydicom.dcmread(path))))
        except NoPixels:
            continue  # pydicom has no decoder for it here
    assert len(images) >= 8
    for name, other in images[1:]:
        assert np.abs(other - images[0][1]).mean() < 0.01, name


def test_every_real_file_gives_canonical_frames_or_says_why_not(shared_data: Any) -> None:
    counts = {"frames": 0, "none": 0}
    for folder in ("pydicom", "highdicom", "dcmqi", "suyashkumar-dicom", "dcm_qa_agfa"):
        for path in sorted((shared_data / folder).rglob("*.dcm")):
            try:
                dataset = pydicom.dcmread(path)
            except pydicom.errors.InvalidDicomError:
                continue
            try:
                frames = canonical_frames(dataset, most=2)
            except NoPixels:
                counts["none"] += 1
                continue
            counts["frames"] += len(frames.numbers)
            assert frames.images.shape == (len(frames.numbers), 128, 128)
            assert np.isfinite(frames.images).all()
            assert frames.images.min() >= 0
            assert frames.images.max() <= 1 + 1e-6
    assert counts["frames"] > 100
