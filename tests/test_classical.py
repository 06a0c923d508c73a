"""The segmenter `classical`: what is labelled, that it is labelled as what it is, and what it does not depend on."""

from functools import cache

import numpy as np
import pytest
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from scipy import ndimage

from plugins.segmentation import colours
from plugins.segmentation.attenuation_ranges import Ranges, fat_to_soft_hu, water_per_cm
from plugins.segmentation.classical import Classical
from plugins.segmentation.noise import noise, sigma_for
from plugins.segmentation.segmenter import Volume
from reconstruct.geometry import VolumeGrid
from reconstruct.materials import WATER
from reconstruct.spectral_phantoms import spectral_phantom

GAS, FAT, SOFT, BONE, LUNG = "74947009", "55603005", "87784001", "3138006", "39607008"
CONTRAST, CALCIFICATION = "7140000", "18115005"


def ball(shape, centre, radius):
    grid = np.indices(shape).astype(float)
    return sum((grid[axis] - centre[axis]) ** 2 for axis in range(3)) <= radius**2


def segment(volume, *, smoothing=1.0, least=1.0):
    return Classical(smoothing, least).segment(volume, lambda _fraction: None)


def labelled(result, *wanted):
    """Where any of the codes is labelled."""
    numbers = [number for number, found in enumerate(result.segments, 1) if found.type.value in wanted]
    return np.isin(result.labels, numbers)


def dice(found, truth):
    return 2 * (found & truth).sum() / (found.sum() + truth.sum())


@pytest.fixture
def mouse() -> Volume:
    """A soft-tissue ball with bone, gas and fat balls in it, in air, with a separate speck outside."""
    shape = (40, 48, 48)
    values = np.full(shape, -1000, np.float32)
    values[ball(shape, (20, 24, 24), 17)] = 40
    values[ball(shape, (20, 24, 34), 4)] = 1200
    values[ball(shape, (20, 24, 14), 4)] = -990
    values[ball(shape, (20, 34, 24), 4)] = -120
    values[2, 2, 2:4] = 500
    scatter = np.random.default_rng(3).normal(0, 15, shape).astype(np.float32)
    return Volume(values + scatter, (0.5, 0.5, 0.5), is_hu=True)


@cache
def phantom(name, *, kev=25.0, step=0.25, shape=(112, 128, 132), scatter=60.0, seed=1):
    """A spectral phantom in HU with noise, and for each of its materials where it is."""
    grid = VolumeGrid(shape, (step, step, step), (0.0, 0.0, 0.0))
    made = spectral_phantom(name)
    per_mm = made.attenuation(grid, {material.name: float(material.per_mm(kev)) for material in made.materials})
    values = 1000 * (per_mm / float(WATER.per_mm(kev)) - 1)
    values = values + np.random.default_rng(seed).normal(0, scatter, shape)
    labels = made.labels(grid)
    truth = {material.name: labels == number for number, material in enumerate(made.materials, 1)}
    values = values.astype(np.float32)
    values.flags.writeable = False  # all tests have the same
    return Volume(values, (step, step, step), is_hu=True, effective_kev=kev), truth


@cache
def segmented(name):
    """What the segmenter makes of a phantom."""
    return segment(phantom(name)[0])


@pytest.mark.parametrize(
    ("code", "centre"),
    [(BONE, (20, 24, 34)), (GAS, (20, 24, 14)), (FAT, (20, 34, 24))],
    ids=["bone", "gas", "fat"],
)
def test_each_tissue_is_found_where_it_is(mouse, code, centre):
    assert dice(labelled(segment(mouse), code), ball(mouse.values.shape, centre, 4)) > 0.9


def test_only_the_sample_is_labelled(mouse):
    outside = ~ball(mouse.values.shape, (20, 24, 24), 18)
    assert not segment(mouse).labels[outside].any()


def test_the_table_is_not_the_sample(mouse):
    values = mouse.values.copy()
    values[:, 42:44] = 100
    result = segment(Volume(values, mouse.spacing_mm_zyx, is_hu=True))
    assert not result.labels[~ball(values.shape, (20, 24, 24), 20)].any()


def test_a_segment_below_the_smallest_volume_is_left_out_and_numbers_stay_without_gaps(mouse):
    bone_mm3 = labelled(segment(mouse, least=0.0), BONE).sum() * mouse.voxel_mm3
    result = segment(mouse, least=bone_mm3 * 1.5)
    assert BONE not in [found.type.value for found in result.segments]
    assert set(np.unique(result.labels)) == set(range(len(result.segments) + 1))


@pytest.mark.parametrize("is_hu", [True, False])
def test_an_empty_volume_has_no_segment(is_hu):
    values = np.full((8, 8, 8), -1000.0 if is_hu else 0.0, np.float32)
    assert segment(Volume(values, (1.0, 1.0, 1.0), is_hu=is_hu), least=0.0).segments == ()


@pytest.mark.parametrize(("name", "code"), [("calibration", GAS), ("kidney-stone", GAS), ("mouse-thorax", LUNG)])
def test_the_blurred_border_of_gas_does_not_make_it_lung(name, code):
    """Reconstruction blurs: most of a small cavity is then half soft tissue."""
    volume, _ = phantom(name, scatter=0.0)
    blurred = ndimage.gaussian_filter(volume.values, 1.6)
    result = segment(Volume(blurred, volume.spacing_mm_zyx, is_hu=True, effective_kev=25.0))
    assert {found.type.value for found in result.segments} & {GAS, LUNG} == {code}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "wanted", "materials", "least"),
    [
        ("mouse-thorax", {LUNG}, {"lung", "air"}, 0.95),
        ("mouse-thorax", {BONE, CALCIFICATION}, {"bone"}, 0.9),
        ("mouse-thorax", {SOFT}, {"soft tissue", "water"}, 0.97),
        ("mouse-thorax", {CONTRAST}, {"iodine 9 mg/ml"}, 0.8),
        ("mouse-thigh", {FAT}, {"lipid"}, 0.85),
        ("mouse-thigh", {BONE, CALCIFICATION}, {"bone"}, 0.9),
        ("kidney-stone", {GAS}, {"air"}, 0.95),
    ],
)
def test_tissues_of_phantoms_are_found(name, wanted, materials, least):
    _, truth = phantom(name)
    expected = np.any([where for material, where in truth.items() if material in materials], axis=0)
    assert dice(labelled(segmented(name), *wanted), expected) > least


def test_flipping_the_slices_flips_the_labels(mouse):
    usual = segment(mouse)
    flipped = segment(Volume(mouse.values[::-1].copy(), mouse.spacing_mm_zyx, is_hu=True))
    assert (flipped.labels[::-1] == usual.labels).mean() > 0.999


def test_a_larger_sample_of_the_same_shape_gets_the_same_labels(mouse):
    small = segment(mouse, least=0.0)
    large = segment(Volume(mouse.values, (5.0, 5.0, 5.0), is_hu=True), least=0.0)
    assert (small.labels == large.labels).mean() > 0.999


def test_other_spacing_finds_the_same_volumes(mouse):
    stretched = ndimage.zoom(mouse.values, (0.5, 1, 1), order=1)
    depth = mouse.values.shape[0] * 0.5 / stretched.shape[0]
    other = Volume(stretched, (depth, 0.5, 0.5), is_hu=True)
    for code in (BONE, GAS, SOFT):
        first = labelled(segment(mouse), code).sum() * mouse.voxel_mm3
        second = labelled(segment(other), code).sum() * other.voxel_mm3
        assert second == pytest.approx(first, rel=0.2), code


def test_noise_changes_little(mouse):
    louder = mouse.values + np.random.default_rng(5).normal(0, 100, mouse.values.shape).astype(np.float32)
    first, second = segment(mouse), segment(Volume(louder, mouse.spacing_mm_zyx, is_hu=True))
    assert dice(labelled(first, BONE), labelled(second, BONE)) > 0.8
    assert dice(labelled(first, SOFT), labelled(second, SOFT)) > 0.9


def test_noise_is_measured_and_smoothing_follows_it(mouse):
    assert noise(mouse.values, -500.0) == pytest.approx(15, rel=0.2)
    assert sigma_for(15.0, 30.0) == 0
    scatter = np.random.default_rng(1).normal(0, 90, (48, 48, 48))
    smoothed = ndimage.gaussian_filter(scatter, sigma_for(90.0, 15.0))
    assert smoothed.std() == pytest.approx(15, rel=0.15)


def test_attenuation_with_a_known_energy_is_segmented_as_hounsfield_units(mouse):
    kev = 60.0
    per_cm = (mouse.values + 1000) * np.float32(water_per_cm(kev) / 1000)
    by_energy = segment(Volume(per_cm, mouse.spacing_mm_zyx, is_hu=False, effective_kev=kev))
    by_hu = segment(Volume(mouse.values, mouse.spacing_mm_zyx, is_hu=True, effective_kev=kev))
    assert (by_energy.labels == by_hu.labels).mean() > 0.999


def test_thresholds_come_from_all_columns_of_a_volume():
    """Of these volumes every so many voxels, as many as are looked at, are those of the first column: air alone."""
    shape = (500, 400, 8)
    _, y, x = np.indices(shape)
    values = np.select([(x > 2) & (y > 300), (x > 2) & (y > 150), x > 1], [1.0, 0.5, 0.2], 0.0)
    scatter = np.random.default_rng(0).normal(0, 0.01, shape)
    result = segment(Volume((values + scatter).astype(np.float32), (0.1, 0.1, 0.1), is_hu=False), smoothing=0.0)
    cuts = [float(cut) for cut in result.algorithm.parameters["thresholds_per_cm"].split(",")]
    assert [sum(level < cut for cut in cuts) for level in (0.0, 0.2, 0.5, 1.0)] == [3, 2, 1, 0]


def test_without_energy_the_classes_are_ranges_of_attenuation(mouse):
    attenuation = Volume((mouse.values + 1000) * 0.0002, mouse.spacing_mm_zyx, is_hu=False)
    result = segment(attenuation)
    assert all(found.label.startswith("Attenuation class") for found in result.segments)
    dense = result.labels == len(result.segments)
    assert dice(dense, ball(mouse.values.shape, (20, 24, 34), 4)) > 0.8


def test_the_algorithm_is_not_called_artificial_intelligence(mouse):
    algorithm = segment(mouse).algorithm
    assert algorithm.family.value == "123105"
    assert algorithm.parameters["thresholds_hu"].startswith("-500,")
    assert ",-60," in algorithm.parameters["thresholds_hu"]


def test_the_recipe_tells_what_determines_the_labels():
    assert Classical(1.0, 2.0).recipe() != Classical(0.5, 2.0).recipe()
    assert Classical(1.0, 2.0).recipe()["min_volume_mm3"] == 2.0


@pytest.mark.parametrize(("kev", "expected"), [(25.0, -200), (62.0, -60), (None, -60)])
def test_fat_is_told_from_soft_tissue_by_the_energy(kev, expected):
    assert fat_to_soft_hu(kev) == pytest.approx(expected, abs=20)


@pytest.mark.parametrize("kev", [None, 12.0, 25.0, 34.0, 70.0, 140.0])
def test_ranges_ascend_at_every_energy(kev):
    ranges = Ranges.at(kev)
    ascending = (ranges.gas_to_fat, ranges.fat_to_soft, ranges.soft_to_contrast, ranges.mineral, ranges.sure_mineral)
    assert list(ascending) == sorted(ascending)
    assert 0 < ranges.spongy < ranges.mineral


@pytest.mark.parametrize(
    ("value", "scheme", "context_group", "keyword"),
    [
        (GAS, "SCT", 7197, "Gas"),
        (FAT, "SCT", 7166, "AdiposeTissue"),
        (SOFT, "SCT", 7166, "SoftTissue"),
        (BONE, "SCT", 7166, "BoneTissue"),
        (LUNG, "SCT", 7192, "Lung"),
        (CONTRAST, "SCT", 7198, "ContrastAgent"),
        ("85756007", "SCT", 7150, "Tissue"),
        ("91720002", "SCT", 7150, "BodySubstance"),
        ("91723000", "SCT", 7150, "AnatomicalStructure"),
        ("105590001", "SCT", 7150, "Substance"),
        ("49755003", "SCT", 7150, "MorphologicallyAbnormalStructure"),
    ],
)
def test_codes_mean_what_pydicom_s_dictionary_of_the_context_group_says(value, scheme, context_group, keyword):
    known = getattr(getattr(codes, f"cid{context_group}"), keyword)
    assert (known.value, known.scheme_designator) == (value, scheme)


def test_segments_use_those_codes_and_each_has_a_colour_of_its_own():
    from plugins.segmentation.classical import _tissue_segments

    made = _tissue_segments(Ranges.at(None))
    assert {found.type.value for found in made} == {GAS, FAT, SOFT, BONE, LUNG, CONTRAST, CALCIFICATION}
    categories = {str(found.category.value) for found in made}
    assert categories == {"85756007", "91720002", "91723000", "105590001", "49755003"}
    assert codes.SCT.PathologicCalcification.value == CALCIFICATION
    assert all(len(found.label) <= 64 for found in made)
    shown = [colours.colour(found.type, number) for number, found in enumerate(made, 1)]
    assert len(set(shown)) == len(made)


def test_what_has_no_colour_gets_another_one_for_each_number():
    unknown = Code("1", "99X", "Something")
    shown = {colours.colour(unknown, number) for number in range(1, 13)}
    assert len(shown) == 12
    assert all(0 <= channel <= 255 for rgb in shown for channel in rgb)
