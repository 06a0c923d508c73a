"""Segmentation by thresholds: what is labelled, and that it is labelled as what it is."""

import numpy as np
import pytest

from plugins.segmentation import thresholds
from plugins.segmentation.segmenter import Volume


def ball(shape, centre, radius):
    grid = np.indices(shape).astype(float)
    return sum((grid[axis] - centre[axis]) ** 2 for axis in range(3)) <= radius**2


@pytest.fixture
def mouse() -> Volume:
    """A soft-tissue ball with bone, gas and fat balls in it, in air, with a separate speck outside."""
    shape = (40, 48, 48)
    values = np.full(shape, -1000, np.float32)
    values[ball(shape, (20, 24, 24), 17)] = 40
    values[ball(shape, (20, 24, 34), 4)] = 1200
    values[ball(shape, (20, 24, 14), 4)] = -990
    values[ball(shape, (20, 34, 24), 4)] = -200
    values[2, 2, 2:4] = 500
    noise = np.random.default_rng(3).normal(0, 15, shape).astype(np.float32)
    return Volume(values + noise, (0.5, 0.5, 0.5), is_hu=True)


def labelled(result, code):
    number = next(n for n, segment in enumerate(result.segments, 1) if segment.type.value == code)
    return result.labels == number


@pytest.mark.parametrize(
    ("code", "centre", "radius"),
    [("3138006", (20, 24, 34), 4), ("74947009", (20, 24, 14), 4), ("55603005", (20, 34, 24), 4)],
    ids=["bone", "gas", "fat"],
)
def test_each_tissue_is_found_where_it_is(mouse, code, centre, radius):
    result = thresholds.segment(mouse, smoothing_voxels=0.6, min_volume_mm3=1.0)
    found, truth = labelled(result, code), ball(mouse.values.shape, centre, radius)
    dice = 2 * (found & truth).sum() / (found.sum() + truth.sum())
    assert dice > 0.75


def test_only_the_sample_is_labelled(mouse):
    result = thresholds.segment(mouse, smoothing_voxels=0.6, min_volume_mm3=1.0)
    outside = ~ball(mouse.values.shape, (20, 24, 24), 19)
    assert not result.labels[outside].any()


def test_soft_tissue_is_most_of_it(mouse):
    result = thresholds.segment(mouse, smoothing_voxels=0.6, min_volume_mm3=1.0)
    soft = labelled(result, "87784001").sum()
    assert soft > 0.8 * (result.labels > 0).sum()


def test_a_segment_below_the_smallest_volume_is_left_out_and_numbers_stay_without_gaps(mouse):
    everything = thresholds.segment(mouse, smoothing_voxels=0.6, min_volume_mm3=0.0)
    bone_mm3 = labelled(everything, "3138006").sum() * mouse.voxel_mm3
    result = thresholds.segment(mouse, smoothing_voxels=0.6, min_volume_mm3=bone_mm3 * 1.5)
    assert "3138006" not in [segment.type.value for segment in result.segments]
    assert set(np.unique(result.labels)) == set(range(len(result.segments) + 1))


def test_air_alone_has_no_segment():
    volume = Volume(np.full((8, 8, 8), -1000, np.float32), (1.0, 1.0, 1.0), is_hu=True)
    assert thresholds.segment(volume, smoothing_voxels=1.0, min_volume_mm3=0.0).segments == ()


def test_without_hounsfield_units_the_classes_are_ranges_of_attenuation(mouse):
    attenuation = Volume((mouse.values + 1000) * 0.0002, mouse.spacing_mm_zyx, is_hu=False)
    result = thresholds.segment(attenuation, smoothing_voxels=0.6, min_volume_mm3=1.0)
    assert result.segments
    assert all(segment.label.startswith("Attenuation class") for segment in result.segments)
    dense = result.labels == len(result.segments)
    assert (dense & ball(mouse.values.shape, (20, 24, 34), 4)).sum() > 0.5 * dense.sum()


def test_an_empty_volume_without_hounsfield_units_has_no_segment():
    volume = Volume(np.zeros((8, 8, 8), np.float32), (1.0, 1.0, 1.0), is_hu=False)
    assert thresholds.segment(volume, smoothing_voxels=0.0, min_volume_mm3=0.0).segments == ()


def test_the_algorithm_is_not_called_artificial_intelligence(mouse):
    algorithm = thresholds.segment(mouse, smoothing_voxels=0.6, min_volume_mm3=1.0).algorithm
    assert algorithm.family.value == "123105"
    assert "threshold" in algorithm.name.lower()
    assert algorithm.parameters["thresholds_hu"] == "-500,-60,300"


def test_fat_is_told_from_soft_tissue_by_the_energy():
    assert thresholds.fat_to_soft_hu(25.0) == pytest.approx(-200, abs=30)
    assert thresholds.fat_to_soft_hu(62.0) == pytest.approx(-60, abs=20)
    assert thresholds.fat_to_soft_hu(None) == -60


def test_islands_of_noise_take_the_label_of_soft_tissue(mouse):
    values = mouse.values.copy()
    values[12:14, 30:32, 24:26] = -300
    result = thresholds.segment(
        Volume(values, mouse.spacing_mm_zyx, is_hu=True), smoothing_voxels=0.0, min_volume_mm3=5.0
    )
    assert labelled(result, "87784001")[12:14, 30:32, 24:26].all()
