"""Rows, columns and blocks of a detector that fail together: found, crossed, and nothing found where nothing fails."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset

from reconstruct.corrections.chain import corrected_integrals
from reconstruct.corrections.dead_pixels import _dark, _stuck, dead_pixels
from reconstruct.corrections.defects import Defects
from reconstruct.corrections.interpolation import interpolate_pixels
from reconstruct.corrections.unsteady_pixels import seen_axis, unsteady_pixels
from reconstruct.corrections.wanted import Corrections
from reconstruct.fdk import fdk
from reconstruct.geometry import ConeBeamGeometry, VolumeGrid
from reconstruct.phantoms import Ellipsoid, asymmetric, line_integrals, voxelise
from reconstruct.projections.acquisition import Acquisition, CounterImages
from reconstruct.projections.p1 import read_p1
from reconstruct.projections.p1_writer import write_p1
from reconstruct.projections.scan import CounterKind, EnergyBin, Scan
from reconstruct.quality import rmse
from reconstruct.scan_quality import look_at

VIEWS, ROWS, COLUMNS, PHOTONS = 180, 64, 96, 20_000.0
GRID = VolumeGrid((36, 60, 60), (1.2, 1.2, 1.2))
OBJECT = asymmetric(36.0)

Place = tuple[slice, slice]
Fault = Callable[[np.ndarray, np.ndarray, np.random.Generator], None]


def geometry(**changes: Any) -> ConeBeamGeometry:
    numbers: dict[str, Any] = {
        "source_to_isocenter_mm": 400.0,
        "source_to_detector_mm": 600.0,
        "view_angles_rad": 2 * np.pi * np.arange(VIEWS) / VIEWS,
        "rows": ROWS,
        "columns": COLUMNS,
        "row_pitch_mm": 1.6,
        "column_pitch_mm": 1.6,
    }
    return ConeBeamGeometry.circular(**numbers | changes)


@dataclass(frozen=True, eq=False)
class Counts:
    """What a detector counts: views, (view, row, column), and flat frames, (frame, row, column)."""

    views: np.ndarray
    flats: np.ndarray

    def with_fault(self, fault: Fault) -> Counts:
        views, flats = self.views.copy(), self.flats.copy()
        fault(views, flats, np.random.default_rng(7))
        return Counts(views, flats)

    def scan(self) -> Scan:
        images = CounterImages(EnergyBin(1), self.views.astype(np.uint16), self.flats.astype(np.uint16))
        told = Acquisition(counter_kind=CounterKind.DIFFERENTIAL)
        return read_p1(write_p1([images], geometry(), Dataset(), told))


def counted(integrals: np.ndarray, seed: int = 3) -> Counts:
    random = np.random.default_rng(seed)
    beam = PHOTONS * (1 + 0.04 * random.standard_normal(integrals.shape[1:]))
    return Counts(random.poisson(beam * np.exp(-integrals)), random.poisson(np.broadcast_to(beam, (10, *beam.shape))))


@pytest.fixture(scope="module")
def sound() -> Counts:
    return counted(line_integrals(OBJECT, geometry()))


@pytest.fixture(scope="module")
def truth() -> np.ndarray:
    return voxelise(OBJECT, GRID, supersampling=3)


def column(*which: int) -> Place:
    return np.s_[:, which[0] : which[-1] + 1]


def row(which: int) -> Place:
    return np.s_[which : which + 1, :]


def block(size: int, at: tuple[int, int] = (40, 60)) -> Place:
    return np.s_[at[0] : at[0] + size, at[1] : at[1] + size]


def dead(place: Place, level: float = 0.0) -> Fault:
    """No light is counted, from before the flat fields on; a little noise may be."""

    def fault(views: np.ndarray, flats: np.ndarray, random: np.random.Generator) -> None:
        for images in (views, flats):
            images[:, *place] = random.poisson(level, images[:, *place].shape)

    return fault


def blind(place: Place) -> Fault:
    """Nothing is counted any more in the views."""

    def fault(views: np.ndarray, flats: np.ndarray, random: np.random.Generator) -> None:
        views[:, *place] = 0

    return fault


def stuck(place: Place, level: int = 3000) -> Fault:
    """The same is counted in each view."""

    def fault(views: np.ndarray, flats: np.ndarray, random: np.random.Generator) -> None:
        views[:, *place] = level

    return fault


def flickering(place: Place) -> Fault:
    """Each pixel loses another share of its counts in each view."""

    def fault(views: np.ndarray, flats: np.ndarray, random: np.random.Generator) -> None:
        share = random.uniform(0.3, 1.0, views[:, *place].shape)
        views[:, *place] = (views[:, *place] * share).astype(views.dtype)

    return fault


def faint(place: Place) -> Fault:
    """A third of the counts is lost in each view."""

    def fault(views: np.ndarray, flats: np.ndarray, random: np.random.Generator) -> None:
        views[:, *place] = random.binomial(views[:, *place], 2 / 3)

    return fault


def jumping(place: Place) -> Fault:
    """All pixels lose the same share of their counts, another one in each view: an amplifier, not pixels."""

    def fault(views: np.ndarray, flats: np.ndarray, random: np.random.Generator) -> None:
        share = random.uniform(0.5, 1.0, (len(views), 1, 1))
        views[:, *place] = (views[:, *place] * share).astype(views.dtype)

    return fault


PLACES: dict[str, tuple[Place, str]] = {
    "column": (column(33), "1 column"),
    "two columns": (column(33, 34), "2 columns"),
    "four columns": (column(32, 35), "4 columns"),
    "column at the edge": (column(0), "1 column"),
    "half a column": (np.s_[:32, 33:34], "1 column"),
    "row": (row(20), "1 row"),
    "block of 4 × 4": (block(4), "1 block"),
    "block of 8 × 8": (block(8), "1 block"),
}
"""Parts that fail, and what they are called."""

IN_THE_FLATS = {"dead": dead, "dark": lambda place: dead(place, 40.0)}
IN_THE_VIEWS = {"blind": blind, "stuck": stuck, "flickering": flickering, "jumping": jumping, "faint": faint}

MISSED = {("faint", "row"), ("faint", "block of 8 × 8"), ("faint", "column at the edge")}
"""A layer of an object stays in its row; so large a block is found in part where the object slopes down beside it.

What is darker than the only side that it has may be where the object ends.
"""


def mask_of(place: Place) -> np.ndarray:
    mask = np.zeros((ROWS, COLUMNS), dtype=bool)
    mask[place] = True
    return mask


def unsteady(counts: Counts) -> np.ndarray:
    integrals = counts.scan().line_integrals(1)
    return unsteady_pixels(integrals, axis=seen_axis(geometry()))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", IN_THE_FLATS)
def test_what_is_dead_in_the_flat_fields_is_found_whole(sound: Counts, kind: str, place: str) -> None:
    where, words = PLACES[place]
    found = dead_pixels(sound.with_fault(IN_THE_FLATS[kind](where)).flats)
    np.testing.assert_array_equal(found, mask_of(where))
    assert str(Defects.of(found)) == words


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", IN_THE_VIEWS)
def test_what_fails_after_the_flat_fields_is_found_whole(sound: Counts, kind: str, place: str) -> None:
    where, words = PLACES[place]
    found = unsteady(sound.with_fault(IN_THE_VIEWS[kind](where)))
    if (kind, place) in MISSED:
        assert not (found & ~mask_of(where)).any()
        return
    if "block" in place:  # a corner of it may lie on the edge of something
        assert found[where].mean() > 0.98
        found[where] = True
    np.testing.assert_array_equal(found, mask_of(where))
    assert str(Defects.of(found)) == words


# nothing may be found where nothing fails


def cylinder(radius_mm: float, value_per_mm: float, x: float = 0.0, y: float = 0.0) -> Ellipsoid:
    return Ellipsoid((x, y, 0.0), (radius_mm, radius_mm, 4000.0), value_per_mm=value_per_mm)


def tube(radius_mm: float, wall_mm: float, value_per_mm: float, x: float = 0.0) -> tuple[Ellipsoid, ...]:
    return cylinder(radius_mm, value_per_mm, x), cylinder(radius_mm - wall_mm, -value_per_mm, x)


def plate(z_mm: float, thick_mm: float, value_per_mm: float) -> Ellipsoid:
    return Ellipsoid((0.0, 0.0, z_mm), (24.0, 24.0, thick_mm / 2), value_per_mm=value_per_mm)


SOUND_OBJECTS: dict[str, tuple[Ellipsoid, ...]] = {
    "asymmetric": OBJECT,
    "a tube about the axis": (*OBJECT, *tube(33.0, 0.6, 0.05)),
    "a steel tube about the axis": tube(20.0, 0.6, 0.4),
    "a tube beside the axis": (*OBJECT, *tube(33.0, 0.6, 0.05, 1.5)),
    "a steel tube beside the axis": tube(20.0, 0.6, 0.4, 0.8),
    "a needle in the axis": (*OBJECT, cylinder(0.6, 0.8)),
    "a needle beside the axis": (*OBJECT, cylinder(0.6, 0.8, 1.1, 0.4)),
    "a needle far from the axis": (*OBJECT, cylinder(0.6, 0.8, 20.0)),
    "a pin that no photon passes": (*OBJECT, cylinder(4.0, 2.0)),
    "such a pin beside the axis": (*OBJECT, cylinder(4.0, 2.0, 5.0)),
    "plates": (*OBJECT, plate(0.0, 0.8, 0.03), plate(8.0, 1.2, 0.05), plate(-9.0, 3.0, 0.05)),
    "a bead in the axis": (*OBJECT, Ellipsoid((0.0, 0.0, 6.0), (3.0, 3.0, 3.0), value_per_mm=0.5)),
    "a bead beside the axis": (*OBJECT, Ellipsoid((2.5, 0.0, 6.0), (3.0, 3.0, 3.0), value_per_mm=0.5)),
    "nothing": (),
}


def circle(views: int) -> ConeBeamGeometry:
    return geometry(view_angles_rad=2 * np.pi * np.arange(views) / views)


@cache
def seen_of(name: str, views: int) -> np.ndarray:
    return line_integrals(SOUND_OBJECTS[name], circle(views))


@pytest.mark.slow
@pytest.mark.parametrize(("views", "photons"), [(180, None), (180, 20_000.0), (60, 300.0), (60, 1e6)])
@pytest.mark.parametrize("name", SOUND_OBJECTS)
def test_no_part_of_an_object_is_taken_for_a_failing_part(name: str, views: int, photons: float | None) -> None:
    """Edges along the columns, thin walls that stay in their columns, what stands still in the axis: with noise or not.

    Single pixels are the business of `test_corrections.py`.
    """
    axis = seen_axis(circle(views))
    assert axis is not None
    integrals = exact = seen_of(name, views)
    if photons is not None:
        counts = np.maximum(np.random.default_rng(6).poisson(photons * np.exp(-exact)), 0.5)
        integrals = -np.log(counts / photons).astype(np.float32)
    found = unsteady_pixels(integrals, axis=axis) & ~unsteady_pixels(integrals)
    assert not found.any(), str(Defects.of(found))


def test_an_arc_tells_nothing_of_failing_parts() -> None:
    """What is dense may stay on one side of the axis: a pin beside it is seen in some columns for most of the views."""
    assert seen_axis(geometry(view_angles_rad=0.6 * 2 * np.pi * np.arange(180) / 180)) is None
    assert seen_axis(geometry(view_angles_rad=2 * np.pi * np.arange(180) / 180)) is not None


def test_a_flat_field_without_faults_has_no_dead_parts(sound: Counts) -> None:
    """Chips of other gains, a beam that falls off, the penumbra and the shadow of a collimator, and few counts."""
    random = np.random.default_rng(9)
    columns, rows = np.arange(COLUMNS), np.arange(ROWS)[:, None]
    chips = np.where((columns < 48) ^ (rows < 32), 1.0, 0.8)
    heel = np.exp(-((columns - 20) ** 2) / 3000.0) * np.exp(-((rows - 30) ** 2) / 2000.0)
    collimator = np.clip((columns - 6) / 8, 0.02, 1.0) * np.ones_like(rows)
    for beam in (np.ones_like(chips), chips, heel, collimator):
        for photons in (2000.0, PHOTONS):
            for frames in (1, 2, 4, 10):
                flats = random.poisson(photons * beam, (frames, *beam.shape)).astype(np.float32)
                mean = flats.mean(axis=0, dtype=np.float64)
                assert not (_dark(mean) | _stuck(flats, mean)).any(), (photons, frames)


# what it is good for


def volume_of(counts: Counts, **wanted: Any) -> np.ndarray:
    scan = counts.scan()
    out = np.empty(scan.shape, dtype=np.float32)
    corrected_integrals(scan, 1, Corrections(**wanted), out=out)
    return fdk(out, scan.geometry, GRID)


KINDS: dict[str, tuple[Callable[[Place], Fault], dict[str, Any], dict[str, Any]]] = {
    "dark": (IN_THE_FLATS["dark"], {"dead_pixels": False}, {}),
    "blind": (blind, {}, {"unsteady_pixels": 8.0}),
    "stuck": (stuck, {}, {"unsteady_pixels": 8.0}),
    "flickering": (flickering, {}, {"unsteady_pixels": 8.0}),
}
"""How parts fail, and what neglects and what corrects it."""


@pytest.fixture(scope="module")
def without_fault(sound: Counts, truth: np.ndarray) -> float:
    return rmse(volume_of(sound), truth)


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_reconstruction_is_as_close_to_the_truth_as_without_the_fault(
    sound: Counts, truth: np.ndarray, without_fault: float, kind: str, place: str
) -> None:
    """The figures are those of docs/corrections.md."""
    fault, neglected, wanted = KINDS[kind]
    faulty = sound.with_fault(fault(PLACES[place][0]))
    before, after = (rmse(volume_of(faulty, **how), truth) for how in (neglected, wanted))
    print(f"{kind}, {place}: {1e3 * without_fault:.2f} / {1e3 * before:.2f} / {1e3 * after:.2f} 10⁻³ /mm")
    assert without_fault < before
    assert after < 1.5 * without_fault
    assert after - without_fault < (before - without_fault) / 3


@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_a_failing_line_is_crossed_and_not_followed(width: int) -> None:
    """A slope comes out exactly; so does what goes on along the line or, to its width, across it."""
    rows, columns = np.mgrid[:40, :50].astype(np.float32)
    mask = np.zeros(rows.shape, dtype=bool)
    mask[:, 20 : 20 + width] = True
    for exact in (2 * rows - columns, np.sin(columns / 40)):
        broken = exact.copy()
        broken[mask] = np.nan
        mended = interpolate_pixels(broken, mask)
        np.testing.assert_allclose(mended[9:-9], exact[9:-9], atol=1e-4 if exact.max() > 2 else 1.5e-3 * width)


def test_a_column_at_the_edge_takes_what_is_beside_it() -> None:
    image = np.tile(np.arange(20.0, dtype=np.float32), (30, 1))
    mask = np.zeros(image.shape, dtype=bool)
    mask[:, 0] = True
    broken = image.copy()
    broken[mask] = np.nan
    np.testing.assert_allclose(interpolate_pixels(broken, mask)[:, 0], 1.0, atol=1e-6)


def test_the_report_names_what_fails(sound: Counts) -> None:
    faulty = sound.with_fault(dead(block(4, (10, 20)))).with_fault(dead(column(70))).with_fault(flickering(column(33)))
    report = look_at(faulty.scan(), 1, Corrections(), lambda _fraction: None)
    assert report.facts["dead together"] == "1 column, 1 block"
    assert report.facts["unsteady together"] == "1 column"
    assert report.advice[0] == (
        "Pixels misbehave in the views that look sound in the flat fields (1 column): unsteady_pixels = 8.0."
    )


def test_defects_are_named() -> None:
    mask = np.zeros((40, 60), dtype=bool)
    assert str(Defects.of(mask)) == "none"
    mask[3, 4] = mask[30, 50] = True
    assert str(Defects.of(mask)) == "2 pixels"
    mask[:, 20:22] = mask[7] = True
    mask[20:24, 40:44] = mask[30:33, 30:33] = True
    assert str(Defects.of(mask)) == "2 columns, 1 row, 2 blocks, 2 single pixels"
