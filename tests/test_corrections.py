"""Corrections on arrays: each artefact is made, measured, and measured again after its correction."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from reconstruct.corrections.drift import remove_drift, source_drift
from reconstruct.corrections.flats import FlatSeries
from reconstruct.corrections.hardening import Hardening, given_polynomial, harden_back, water_polynomial
from reconstruct.corrections.pile_up import undo_pile_up
from reconstruct.corrections.principal_point import (
    axis_columns,
    estimate_principal_column,
    with_principal_column,
)
from reconstruct.corrections.rings import remove_rings
from reconstruct.corrections.saturation import replace_saturated
from reconstruct.corrections.scatter import remove_scatter
from reconstruct.corrections.truncation import extrapolate, margins
from reconstruct.corrections.unsteady_pixels import unsteady_pixels
from reconstruct.fdk import fdk
from reconstruct.geometry import ConeBeamGeometry, VolumeGrid
from reconstruct.materials import WATER
from reconstruct.phantoms import Ellipsoid, asymmetric, line_integrals
from reconstruct.quality import bias, rmse
from reconstruct.slabs import Plan
from reconstruct.spectrum import bin_spectra

VIEWS, ROWS, COLUMNS = 120, 12, 64
GRID = VolumeGrid((6, 44, 44), (1.6, 1.6, 1.6))


def geometry(**changes: Any) -> ConeBeamGeometry:
    sense = changes.pop("sense", 1)
    numbers: dict[str, Any] = {
        "source_to_isocenter_mm": 400.0,
        "source_to_detector_mm": 600.0,
        "view_angles_rad": sense * 2 * np.pi * np.arange(VIEWS) / VIEWS,
        "rows": ROWS,
        "columns": COLUMNS,
        "row_pitch_mm": 2.4,
        "column_pitch_mm": 2.4,
    }
    return ConeBeamGeometry.circular(**numbers | changes)


def disc(grid: VolumeGrid, radius_mm: float) -> np.ndarray:
    y, x = np.meshgrid(grid.y_mm, grid.x_mm, indexing="ij")
    return np.broadcast_to(np.hypot(x, y) < radius_mm, grid.shape_zyx)


INSIDE = disc(GRID, 34.0)


@pytest.fixture(scope="module")
def clean() -> np.ndarray:
    return line_integrals(asymmetric(36.0), geometry())


@pytest.fixture(scope="module")
def random() -> np.random.Generator:
    return np.random.default_rng(4)


def reconstructed(integrals: np.ndarray) -> np.ndarray:
    return fdk(integrals, geometry(), GRID)


@pytest.fixture(scope="module")
def expected(clean: np.ndarray) -> np.ndarray:
    return reconstructed(clean)


# drift


def test_a_drifting_source_is_followed_in_the_air_beside_the_object(clean: np.ndarray, expected: np.ndarray) -> None:
    output = np.exp(-0.1 * np.linspace(0, 1, VIEWS) - 0.05 * np.sin(np.arange(VIEWS) / 9))
    drifting = clean - np.log(output)[:, None, None].astype(np.float32)
    before = rmse(reconstructed(drifting), expected, INSIDE)
    found = source_drift(drifting)
    np.testing.assert_allclose(found, -np.log(output), atol=1e-6)
    after = rmse(reconstructed(remove_drift(drifting, found)), expected, INSIDE)
    assert before > 3e-4
    assert after < 1e-6


def test_an_object_at_one_end_of_the_rows_is_not_taken_for_drift(random: np.random.Generator) -> None:
    beside = Ellipsoid((45.0, 0.0, 0.0), (9.0, 9.0, 30.0), value_per_mm=0.02)
    integrals = line_integrals([beside], geometry())
    assert integrals[:, :, :3].max() > 0.2
    noisy = integrals + 0.02 * random.standard_normal(integrals.shape).astype(np.float32)
    assert np.abs(source_drift(noisy)).max() < 0.03


def test_without_air_the_drift_is_not_known() -> None:
    wide = Ellipsoid((0.0, 0.0, 0.0), (90.0, 90.0, 90.0), value_per_mm=0.01)
    with pytest.raises(ValueError, match="drift of the source is not known: 120 of 120 views see no air"):
        source_drift(line_integrals([wide], geometry()))


# flat fields over time


def test_flats_before_and_after_are_interpolated(random: np.random.Generator) -> None:
    first, last = (1000 * (1 + 0.1 * random.standard_normal((ROWS, COLUMNS))) for _ in range(2))
    frames = np.stack([first, first, last, last]).astype(np.float32)
    series = FlatSeries.of(frames, [0.0, 1.0, 101.0, 102.0], list(range(2, 100)))
    assert series.times_s.tolist() == [0.5, 101.5]
    for time, share in ((-5.0, 0.0), (0.5, 0.0), (51.0, 0.5), (101.5, 1.0), (500.0, 1.0)):
        np.testing.assert_allclose(series.at(time), first * (1 - share) + last * share, rtol=1e-5)


def test_flats_of_one_group_are_their_mean() -> None:
    series = FlatSeries.of(np.stack([np.full((2, 2), v, np.float32) for v in (1, 3)]), [0.0, 1.0], [5.0, 6.0])
    assert series.at(5.5).tolist() == [[2.0, 2.0], [2.0, 2.0]]


# rings


@pytest.mark.parametrize(
    ("kind", "method", "better"),
    [("weak", "sorted", 1.4), ("weak", "combined", 1.4), ("wide", "combined", 1.9), ("dead", "combined", 2.5)],
)
def test_rings_fade(
    clean: np.ndarray, random: np.random.Generator, kind: str, method: str, better: float
) -> None:
    noisy = clean + 0.005 * random.standard_normal(clean.shape).astype(np.float32)
    goal = reconstructed(noisy)
    ringed = noisy.copy()
    if kind == "weak":
        ringed[:, :, 5::8] += 0.04 * random.standard_normal((ROWS, len(range(5, COLUMNS, 8)))).astype(np.float32)
    elif kind == "wide":
        ringed[:, :, 20:22] += 0.2
    else:
        ringed[:, :, 40] = 1.0
        ringed[:, :, 14] += 0.3 * random.standard_normal((VIEWS, ROWS)).astype(np.float32)
    before = rmse(reconstructed(ringed), goal, INSIDE)
    after = rmse(reconstructed(remove_rings(ringed, method)), goal, INSIDE)
    assert after < before / better, (before, after)


@pytest.mark.parametrize(("method", "most"), [("none", 0.0), ("sorted", 1.5e-4), ("combined", 1.5e-4)])
def test_ring_removal_hardly_touches_a_clean_scan(
    clean: np.ndarray, expected: np.ndarray, method: str, most: float
) -> None:
    assert rmse(reconstructed(remove_rings(clean.copy(), method)), expected, INSIDE) <= most


def test_ring_removal_names_what_it_cannot_do(clean: np.ndarray) -> None:
    with pytest.raises(ValueError, match="a ring removal of none, sorted, combined, got 'fourier'"):
        remove_rings(clean.copy(), "fourier")
    with pytest.raises(ValueError, match="odd number of columns from 3 for the ring removal, got 6"):
        remove_rings(clean.copy(), "sorted", size=6)


# the principal point


@pytest.mark.parametrize("sense", [1, -1])
@pytest.mark.parametrize("column", [28.9, 31.5, 33.2])
def test_the_principal_column_is_found(random: np.random.Generator, column: float, sense: int) -> None:
    true = geometry(principal_point_px=(column, (ROWS - 1) / 2), sense=sense)
    integrals = line_integrals(asymmetric(36.0), true)
    integrals += 0.02 * random.standard_normal(integrals.shape).astype(np.float32)
    found = estimate_principal_column(integrals, geometry(sense=sense))
    assert found.column == pytest.approx(column, abs=0.02)
    assert found.given == pytest.approx(31.5)
    assert found.uncertainty < 0.02
    assert found.clarity > 0.95
    mended = with_principal_column(geometry(sense=sense), found.column)
    np.testing.assert_allclose(axis_columns(mended), found.column, atol=1e-9)
    np.testing.assert_allclose(mended.detector_centres, true.detector_centres, atol=0.05)


def test_a_wrong_principal_column_doubles_edges_and_the_estimated_one_does_not(expected: np.ndarray) -> None:
    shifted = line_integrals(asymmetric(36.0), geometry(principal_point_px=(33.2, (ROWS - 1) / 2)))
    before = rmse(fdk(shifted, geometry(), GRID), expected, INSIDE)
    found = estimate_principal_column(shifted, geometry())
    after = rmse(fdk(shifted, with_principal_column(geometry(), found.column), GRID), expected, INSIDE)
    assert before > 1e-3
    assert after < before / 4


def test_where_the_data_do_not_tell_the_principal_point_it_is_said(random: np.random.Generator) -> None:
    noise = random.standard_normal((VIEWS, ROWS, COLUMNS)).astype(np.float32)
    with pytest.raises(ValueError, match=r"agree about no column within 6\.4 pixels of 31\.5"):
        estimate_principal_column(noise, geometry())
    arc = geometry(view_angles_rad=np.linspace(0, 3.6, VIEWS))
    with pytest.raises(ValueError, match="conjugate views need a full circle"):
        estimate_principal_column(noise, arc)


# truncation

NARROW = VolumeGrid((6, 20, 20), (1.6, 1.6, 1.6))
SEEN = disc(NARROW, 15.0)
WIDE = (
    Ellipsoid((0.0, 0.0, 0.0), (34.0, 30.0, 60.0), value_per_mm=0.02),
    Ellipsoid((5.0, 3.0, 0.0), (6.0, 6.0, 8.0), value_per_mm=0.01),
    Ellipsoid((-8.0, -3.0, 0.0), (4.0, 4.0, 8.0), value_per_mm=-0.01),
)
WATER_PER_COLUMN = 0.02 * 2.4 * 400 / 600


@pytest.fixture(scope="module")
def truncated() -> tuple[np.ndarray, np.ndarray]:
    """Projections that are too narrow, and what a wide detector gives of the same voxels."""
    wide = geometry(columns=96)
    return line_integrals(WIDE, geometry(columns=32)), fdk(line_integrals(WIDE, wide), wide, NARROW)


def extrapolated(projections: np.ndarray, method: str, share: float = 0.25) -> np.ndarray:
    narrow = geometry(columns=projections.shape[2])
    before, after = margins(narrow, share)
    wide = narrow.extended(before, after)
    out = np.empty((VIEWS, ROWS, wide.columns), dtype=np.float32)
    out[:, :, before : wide.columns - after] = projections
    extrapolate(out, before, after, method, water_per_column=WATER_PER_COLUMN)
    measured = Plan(wide, NARROW, extrapolated=(before, after)).measured()
    return fdk(out, wide, NARROW, measured=measured)


@pytest.mark.parametrize("method", ["cosine", "water"])
def test_what_lies_beyond_the_detector_brightens_no_rim(
    truncated: tuple[np.ndarray, np.ndarray], method: str
) -> None:
    projections, goal = truncated
    before = rmse(fdk(projections, geometry(columns=32), NARROW), goal, SEEN)
    after = rmse(extrapolated(projections, method), goal, SEEN)
    assert before > 0.05 * 0.02
    assert after < before / 4, (before, after)


@pytest.mark.parametrize("method", ["cosine", "water"])
def test_extrapolation_adds_nothing_to_an_object_that_is_seen_whole(clean: np.ndarray, method: str) -> None:
    plain = fdk(clean, geometry(), NARROW)
    assert np.abs(extrapolated(clean, method) - plain).max() < 1e-5


def test_an_offset_detector_is_extended_on_its_longer_side_only() -> None:
    assert margins(geometry(), 0.25) == (16, 16)
    assert margins(geometry(principal_point_px=(10.0, 5.5)), 0.25) == (0, 16)
    assert margins(geometry(principal_point_px=(53.0, 5.5)), 0.25) == (16, 0)


@pytest.mark.parametrize("arc", [2 * np.pi, 1.3 * np.pi])
def test_made_up_columns_do_not_change_what_measured_ones_count_for(arc: float) -> None:
    narrow = geometry(view_angles_rad=arc * np.arange(VIEWS) / VIEWS)
    alone = Plan(narrow, NARROW).measured()
    beside = Plan(narrow.extended(5, 7), NARROW, extrapolated=(5, 7)).measured()
    assert beside.coverage is alone.coverage
    np.testing.assert_allclose(
        beside.weights(slice(None))[:, 5:-7], alone.weights(slice(None)), atol=1e-5
    )


# beam hardening, scatter, pile-up, saturation, unsteady pixels


def polychromatic(paths_mm: np.ndarray) -> tuple[np.ndarray, Any]:
    spectrum = bin_spectra((20.0,), 110.0, 2.0)[0]
    weights = spectrum.weights / spectrum.weights.sum()
    return -np.log(np.exp(-paths_mm[..., None] * spectrum.per_mm(WATER)) @ weights).astype(np.float32), spectrum


def test_water_is_flat_after_the_water_polynomial() -> None:
    cylinder = Ellipsoid((0.0, 0.0, 0.0), (36.0, 36.0, 400.0), value_per_mm=1.0)
    hardened, spectrum = polychromatic(line_integrals([cylinder], geometry()).astype(np.float64))
    water = spectrum.effective_per_mm(WATER, 40.0)
    middle, rim = disc(GRID, 8.0), disc(GRID, 31.0) & ~disc(GRID, 26.0)

    def cupping(integrals: np.ndarray) -> float:
        volume = reconstructed(integrals)
        return float(1 - volume[middle].mean() / volume[rim].mean())

    before = cupping(hardened)
    polynomial = water_polynomial(spectrum, water)
    mended = harden_back(hardened, polynomial)
    assert before > 0.01
    assert abs(cupping(mended)) < before / 5
    assert reconstructed(mended)[middle].mean() == pytest.approx(water, rel=0.01)


def test_the_water_polynomial_is_exact_for_slabs_of_water_and_goes_on_as_a_line() -> None:
    paths = np.array([0.0, 1.0, 10.0, 60.0, 150.0])
    hardened, spectrum = polychromatic(paths)
    polynomial = water_polynomial(spectrum, 0.02)
    np.testing.assert_allclose(polynomial.of(hardened), 0.02 * paths, rtol=5e-3, atol=1e-6)
    beyond = polynomial.of(np.array([-0.2, -0.1, 0.0, 20.0, 21.0, 22.0], dtype=np.float32))
    assert beyond[1] - beyond[0] == pytest.approx(beyond[2] - beyond[1], rel=1e-4)
    assert beyond[5] - beyond[4] == pytest.approx(beyond[4] - beyond[3], rel=1e-4)


def test_polynomials_are_given_for_each_bin() -> None:
    assert given_polynomial([[1.0, 0.1], [2.0]], 2, 2).of(np.float32([3.0])).tolist() == [6.0]
    with pytest.raises(ValueError, match="expected 3 polynomials, one for each energy bin, got 1"):
        given_polynomial([[1.0]], 1, 3)
    with pytest.raises(ValueError, match="begins with a number above 0"):
        Hardening((-1.0,))


def test_even_scatter_is_taken_away(clean: np.ndarray, expected: np.ndarray) -> None:
    primary = np.exp(-3 * clean)
    scatter = 0.1 * primary.mean(axis=(1, 2), keepdims=True)
    measured = -np.log(primary + scatter)
    before = bias(reconstructed(measured), 3 * expected, INSIDE)
    # The fraction refers to what is measured: a tenth of the primary is a tenth of eleven tenths.
    after = bias(reconstructed(remove_scatter(measured.astype(np.float32), 0.1 / 1.1)), 3 * expected, INSIDE)
    assert before < -1e-3
    assert abs(after) < abs(before) / 100
    with pytest.raises(ValueError, match=r"scatter from 0 to below 1, got 1\.2"):
        remove_scatter(clean.copy(), 1.2)


@pytest.mark.parametrize("model", ["nonparalyzable", "paralyzable"])
def test_pile_up_is_undone(model: str) -> None:
    true = np.array([0.0, 10.0, 1e4, 1e5, 2e5], dtype=np.float32)
    busy = true * 400.0 / (100 * 1e6)
    measured = true / (1 + busy) if model == "nonparalyzable" else true * np.exp(-busy)
    assert measured[-1] < 0.6 * true[-1]
    np.testing.assert_allclose(undo_pile_up(measured.astype(np.float32), 400.0, 100.0, model), true, rtol=1e-4)


@pytest.mark.parametrize("model", ["nonparalyzable", "paralyzable"])
def test_counts_that_no_rate_gives_stay_finite(model: str) -> None:
    assert np.isfinite(undo_pile_up(np.float32([6e4, 1e9]), 400.0, 1.0, model)).all()


def test_full_counters_are_filled_from_their_neighbours_where_there_are_any() -> None:
    image = np.full((12, 14), 2.0, dtype=np.float32)
    full = np.zeros(image.shape, dtype=bool)
    full[3, 4] = full[:, 9:] = True
    image[full] = 0.5
    filled = replace_saturated(image, full)
    assert filled[3, 4] == pytest.approx(2.0)
    assert filled[5, 9] == pytest.approx(2.0)
    assert filled[5, 13] == 0.5, "no sound neighbour: the least light there can have been"
    assert image[3, 4] == 0.5


def test_pixels_that_misbehave_only_in_the_views_are_found(clean: np.ndarray, random: np.random.Generator) -> None:
    noisy = clean + 0.02 * random.standard_normal(clean.shape).astype(np.float32)
    noisy[:, 5, 30] = 0.4
    noisy[:, 8, 12] += 0.5 * random.standard_normal(VIEWS).astype(np.float32)
    noisy[:, 3, 50] += 0.03
    assert np.argwhere(unsteady_pixels(noisy)).tolist() == [[5, 30], [8, 12]]
    assert not unsteady_pixels(clean).any()


def test_what_goes_on_along_a_line_is_the_object(clean: np.ndarray) -> None:
    """A rib that stays in its row, a needle along the axis, a wire across: bones are thin, and pixels are alone."""
    bony = clean.copy()
    bony[:, 6, 20:44] += 0.6
    bony[:, 2:10, 50] += 0.6
    bony[:, np.arange(2, 10), np.arange(5, 13)] += 0.6
    assert not unsteady_pixels(bony).any()
    bony[:, 9, 30] += 0.6
    bony[:, 0, 0] += 0.6
    bony[:, 4:6, 40] -= 0.6
    assert np.argwhere(unsteady_pixels(bony)).tolist() == [[0, 0], [4, 40], [5, 40], [9, 30]]


def test_a_detector_of_one_row_has_neighbours_along_it(clean: np.ndarray, random: np.random.Generator) -> None:
    row = clean[:, :1] + 0.02 * random.standard_normal(clean[:, :1].shape).astype(np.float32)
    row[:, 0, 17] += 0.6
    assert np.argwhere(unsteady_pixels(row)).tolist() == [[0, 17]]
