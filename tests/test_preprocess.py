"""Counts to line integrals: each step against its definition, and the chain against known attenuation."""

from __future__ import annotations

import numpy as np
import pytest

from reconstruct.corrections.dead_pixels import dead_pixels
from reconstruct.corrections.interpolation import interpolate_pixels
from reconstruct.preprocess import (
    average_starved,
    differential_bins,
    flat_field,
    line_integrals,
    saturated_pixels,
    unroll,
)


@pytest.mark.parametrize(
    ("counters", "bins"),
    [
        ([[9.0]], [[9.0]]),
        ([[10.0, 7.0], [4.0, 7.0], [1.0, 2.0]], [[6.0, 0.0], [3.0, 5.0], [1.0, 2.0]]),
        ([[5.0], [8.0], [2.0]], [[0.0], [6.0], [2.0]]),
    ],
)
def test_bins_are_differences_of_counters_and_never_negative(
    counters: list[list[float]], bins: list[list[float]]
) -> None:
    np.testing.assert_array_equal(differential_bins(np.array(counters, np.uint16)), bins)


def test_unsigned_counters_do_not_wrap() -> None:
    assert differential_bins(np.array([[3], [5]], np.uint16))[0, 0] == 0


@pytest.mark.parametrize(
    ("low", "high", "repaired"),
    [(1_000, 48_000, 66_536), (60_000, 48_000, 60_000), (20_000, 48_000, 20_000), (0, 40_000, 65_536)],
)
def test_counters_that_ran_over_are_unrolled(low: int, high: int, repaired: int) -> None:
    assert unroll(np.array([[low], [high]], np.uint16), 65_536).tolist() == [[repaired], [high]]


def test_unrolling_goes_from_the_top_counter_down() -> None:
    rolled = np.array([[80_000 - 65_536], [70_000 - 65_536], [60_000]], np.uint16)
    assert unroll(rolled, 65_536)[:, 0].tolist() == [80_000, 70_000, 60_000]


@pytest.mark.parametrize("ratio", [0.5, 1.0, 8.0])
def test_flat_field_takes_the_mean_and_the_exposure_ratio(ratio: float) -> None:
    flats = np.stack([np.full((2, 3), 90.0), np.full((2, 3), 110.0)]) * ratio
    counts = np.full((4, 2, 3), 25.0)
    np.testing.assert_allclose(flat_field(counts, flats, exposure_ratio=ratio), 0.25, rtol=1e-6)
    np.testing.assert_allclose(flat_field(counts, flats.mean(axis=0), exposure_ratio=ratio), 0.25, rtol=1e-6)


def test_flat_field_marks_blind_pixels_and_floors_empty_ones() -> None:
    transmission = flat_field([[0.0, 50.0]], [[100.0, 0.0]])
    assert transmission[0, 0] == np.float32(0.005)
    assert np.isnan(transmission[0, 1])


@pytest.mark.parametrize(
    ("flats", "ratio", "sentence"),
    [
        (np.ones((2, 2)), 1.0, r"flat fields of \(1, 2\) \(row, column\), got \(2, 2\)"),
        (np.ones((1, 2)), 0.0, "exposure ratio above 0, got 0"),
        (np.ones((1, 2)), np.inf, "exposure ratio above 0, got inf"),
    ],
)
def test_flat_field_names_both_values(flats: np.ndarray, ratio: float, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        flat_field(np.ones((1, 2)), flats, exposure_ratio=ratio)


def test_line_integrals_undo_beer_and_lambert() -> None:
    integrals = np.array([[-0.05, 0.0, 1.0, 7.5]], dtype=np.float32)
    np.testing.assert_allclose(line_integrals(np.exp(-integrals)), integrals, atol=1e-6)
    assert np.isnan(line_integrals([[np.nan]])).all()


@pytest.mark.parametrize(("bits", "full"), [(8, 255), (12, 4095), (16, 65535)])
def test_full_counters_are_flagged(bits: int, full: int) -> None:
    counts = np.array([0, full - 1, full], np.uint16)
    assert saturated_pixels(counts, bits).tolist() == [False, False, True]


def flats_with_gain(frames: int = 10, level: float = 4000.0) -> np.ndarray:
    random = np.random.default_rng(5)
    gain = 1 + 0.05 * random.standard_normal((30, 40))
    return random.poisson(level * gain, (frames, 30, 40)).astype(np.float32)


def test_gain_that_differs_is_not_dead() -> None:
    assert dead_pixels(flats_with_gain()).sum() == 0


@pytest.mark.parametrize("pixel", [(0, 0), (0, 20), (15, 20), (29, 39)])
@pytest.mark.parametrize("kind", ["blind", "hot", "dim", "stuck"])
def test_dead_pixels_are_found_anywhere(pixel: tuple[int, int], kind: str) -> None:
    flats = flats_with_gain()
    row, column = pixel
    flats[:, row, column] = {
        "blind": 0.0,
        "hot": flats[:, row, column] * 2,
        "dim": flats[:, row, column] / 2,
        "stuck": 4000.0,
    }[kind]
    assert np.argwhere(dead_pixels(flats)).tolist() == [[row, column]]


def test_opposite_edges_are_no_neighbours() -> None:
    """A detector lit from the left has dark pixels on the right; none of them is dead."""
    ramp = np.linspace(4000, 1000, 40)[None, None, :] * np.ones((6, 30, 1))
    assert not dead_pixels(ramp).any()
    images = np.repeat(np.arange(8.0, dtype=np.float32)[None, None, :], 5, axis=1)
    mask = np.zeros((5, 8), bool)
    mask[2, 0] = mask[0, 7] = True
    mended = interpolate_pixels(images.copy(), mask)
    assert 0.0 <= mended[0, 2, 0] <= 1.0
    assert 6.0 <= mended[0, 0, 7] <= 7.0


def test_interpolation_is_exact_on_a_plane_and_leaves_sound_pixels_alone() -> None:
    rows, columns = np.mgrid[:9, :11].astype(np.float32)
    truth = np.stack([2 * rows - columns, 5 + 0 * rows])
    mask = np.zeros((9, 11), bool)
    mask[4, 5] = True
    broken = truth.copy()
    broken[:, mask] = np.nan
    mended = interpolate_pixels(broken, mask)
    np.testing.assert_allclose(mended, truth, atol=1e-5)
    assert mended is broken


def test_clusters_grow_their_neighbourhood() -> None:
    images = np.full((1, 12, 12), 3.0, np.float32)
    mask = np.zeros((12, 12), bool)
    mask[3:8, 3:8] = True
    images[:, mask] = np.nan
    np.testing.assert_allclose(interpolate_pixels(images, mask), 3.0, rtol=1e-6)


def test_a_detector_that_is_mostly_dead_is_refused() -> None:
    mask = np.ones((4, 4), bool)
    mask[0] = False
    with pytest.raises(ValueError, match="75% of the detector's pixels are dead, at most 25%"):
        interpolate_pixels(np.zeros((1, 4, 4), np.float32), mask)


def test_starved_pixels_take_the_mean_of_their_surroundings() -> None:
    """A tenth of a photon a pixel: single logarithms are far off, the windowed ones are not."""
    expected, truth = 3000.0, 0.1 / 3000.0
    random = np.random.default_rng(11)
    counts = random.poisson(expected * truth, (40, 40)).astype(np.float32)
    flat = np.full((40, 40), expected, np.float32)
    none_dead = np.zeros((40, 40), bool)
    alone = line_integrals(flat_field(counts, flat)).mean()
    averaged = average_starved(flat_field(counts, flat), counts, flat, none_dead)
    assert abs(alone + np.log(truth)) > 1.0
    assert abs(line_integrals(averaged).mean() + np.log(truth)) < 0.15


def test_pixels_with_enough_counts_are_not_touched_by_starved_neighbours() -> None:
    counts = np.array([[0.0, 400.0, 0.0], [400.0, 0.0, 400.0], [0.0, 400.0, 0.0]], np.float32)
    flat = np.full((3, 3), 1000.0, np.float32)
    dead = np.zeros((3, 3), bool)
    dead[0, 0] = True
    averaged = average_starved(flat_field(counts, flat), counts, flat, dead)
    np.testing.assert_allclose(averaged[counts > 0], 0.4, rtol=1e-6)
    assert averaged[0, 0] == np.float32(0.0005)
    # Of the eight sound pixels of the window four counted 400: 1600 of 8000.
    np.testing.assert_allclose(averaged[1, 1], 0.2, rtol=1e-5)


def test_a_pixel_that_flickers_around_the_right_mean_is_dead() -> None:
    random = np.random.default_rng(11)
    flats = random.poisson(2000.0, (10, 60, 80)).astype(np.float32)
    flats[:, 20, 30] = 2000 + 400 * (-1) ** np.arange(10)
    dead = dead_pixels(flats)
    assert dead[20, 30]
    assert dead.sum() == 1, "noise alone is no defect"
