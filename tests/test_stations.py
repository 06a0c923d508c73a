"""Step and shoot: circles at several axial positions become one volume without a seam."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset
from scan_encodings import VIEWS as VIEWS_OF_A_RUN
from scan_encodings import WRITERS

from reconstruct.checkpoint import Checkpoint
from reconstruct.derived import ct_series
from reconstruct.fdk import fdk
from reconstruct.geometry import ConeBeamGeometry, GeometryError, VolumeGrid
from reconstruct.phantoms import Ellipsoid, asymmetric, line_integrals, voxelise
from reconstruct.pipeline import VOLUME, Parameters, reconstruct_scan
from reconstruct.projections.assembly import assemble
from reconstruct.projections.registry import STANDARD
from reconstruct.projections.scan import Scan
from reconstruct.projections.view_geometry import difference
from reconstruct.quality import rmse
from reconstruct.redundancy import Coverage
from reconstruct.simulate import simulate_scan
from reconstruct.simulated_positions import Positions
from reconstruct.slabs import Plan
from reconstruct.stations import coverages, fitted_grid, stations_of
from reconstruct.stepped_plan import SteppedPlan, plan_of

VIEWS, ROWS = 72, 20
STEPS = Positions(axial_mm=(-8.0, 0.0, 8.0))
WATER = 0.02


def circle(rows: int = ROWS, degrees: float = 360.0) -> ConeBeamGeometry:
    """Rows see 0.625 mm at the axis; a field of view of 19 mm."""
    return ConeBeamGeometry.circular(
        source_to_isocenter_mm=200.0,
        source_to_detector_mm=320.0,
        view_angles_rad=np.deg2rad(degrees) * np.arange(VIEWS) / VIEWS,
        rows=rows,
        columns=64,
        row_pitch_mm=1.0,
        column_pitch_mm=1.0,
    )


def reconstructed(plan: Plan, integrals: np.ndarray, memory_mb: int = 512) -> np.ndarray:
    plan.measured()
    return plan.reconstruct(integrals, plan.slab(0, plan.grid.shape_zyx[0]), memory_mb=memory_mb)


GEOMETRY = STEPS.along_axis(circle())
GRID = fitted_grid(GEOMETRY, 0.6)
PLAN = plan_of(GEOMETRY, GRID)


@cache
def merged() -> np.ndarray:
    return reconstructed(PLAN, line_integrals(asymmetric(16.0), GEOMETRY))


def in_the_field(radius_mm: float = 17.0) -> np.ndarray:
    return np.broadcast_to(np.hypot(GRID.y_mm[:, None], GRID.x_mm) < radius_mm, GRID.shape_zyx)


def test_the_volume_reaches_over_all_positions() -> None:
    alone = circle().fitted_grid(0.6)
    assert GRID.shape_zyx[1:] == alone.shape_zyx[1:]
    assert GRID.shape_zyx[0] == pytest.approx(alone.shape_zyx[0] + 16 / 0.6, abs=1)
    assert isinstance(PLAN, SteppedPlan)


def test_a_long_cylinder_shows_no_seam() -> None:
    """What is the same all along the axis is reconstructed exactly by FDK in the fan, so every slice has one mean."""
    cylinder = (Ellipsoid((1.0, 0.5, 0.0), (14.0, 13.0, 4000.0), 0.0, WATER),)
    volume = reconstructed(PLAN, line_integrals(cylinder, GEOMETRY))
    inside = np.hypot((GRID.x_mm - 1) / 14, (GRID.y_mm[:, None] - 0.5) / 13) < 0.85
    means = volume[:, inside].mean(axis=1)
    assert np.ptp(means) < 1e-5 * WATER
    assert means.mean() == pytest.approx(WATER, rel=1e-3)
    assert np.abs(np.diff(volume, axis=0))[:, inside].max() < 2e-3 * WATER


def test_the_merged_volume_is_as_true_as_that_of_a_taller_detector() -> None:
    """Positions whose cones are narrow share what a tall detector sees under a wide one."""
    phantom = asymmetric(16.0)
    tall = circle(ROWS + 26)
    alone = fdk(line_integrals(phantom, tall), tall, GRID)
    truth = voxelise(phantom, GRID, supersampling=3)
    error, error_alone = (rmse(volume, truth, in_the_field()) for volume in (merged(), alone))
    assert error < 1.15 * error_alone
    assert error < 0.035 * WATER
    assert rmse(merged(), alone, in_the_field()) < 0.03 * WATER


def test_views_in_any_order_and_a_little_memory_give_the_same() -> None:
    integrals = line_integrals(asymmetric(16.0), GEOMETRY)
    interleaved = np.arange(3 * VIEWS).reshape(3, VIEWS).T.ravel()
    other = plan_of(GEOMETRY.select(interleaved), GRID)
    np.testing.assert_allclose(reconstructed(other, integrals[interleaved], memory_mb=4), merged(), atol=1e-7)


def test_what_groups_of_views_add_is_the_whole() -> None:
    """So do the tasks of a cluster that has more workers than slabs."""
    integrals, slab = line_integrals(asymmetric(16.0), GEOMETRY), PLAN.slab(8, 30)
    parts = [PLAN.reconstruct(integrals, slab, views=slice(*ends)) for ends in ((0, 100), (100, 101), (101, 216))]
    np.testing.assert_allclose(sum(parts), merged()[8:30], atol=1e-7)


def test_short_scans_are_merged_as_well() -> None:
    arc = STEPS.along_axis(circle(degrees=205.0))
    assert coverages(arc) == (Coverage.SHORT,) * 3
    plan = plan_of(arc, GRID)
    volume = reconstructed(plan, line_integrals(asymmetric(16.0), arc))
    assert rmse(volume, merged(), in_the_field(14.0)) < 0.025 * WATER


def test_a_gap_that_the_cone_does_not_cover_is_named() -> None:
    apart = Positions(axial_mm=(-10.0, 10.0)).along_axis(circle())
    plan = plan_of(apart, fitted_grid(apart, 0.6))
    with pytest.raises(GeometryError, match=r"leave a gap: at z = -\d.*between the positions at -10.00 and 10.00 mm"):
        plan.measured()
    near_the_axis = VolumeGrid((30, 4, 4), (0.6, 0.6, 0.6))
    with pytest.raises(GeometryError, match=r"steps of at most 11\.\d\d mm"):
        plan_of(apart, near_the_axis).measured()
    plan_of(Positions(axial_mm=(-5.3, 5.3)).along_axis(circle()), fitted_grid(circle(), 0.6)).measured()


def test_a_position_that_goes_not_far_enough_round_is_named() -> None:
    kept = np.r_[0 : VIEWS + 20, 2 * VIEWS : 3 * VIEWS]
    plan = plan_of(GEOMETRY.select(kept), GRID)
    with pytest.raises(GeometryError, match=r"at the axial position z = 0\.00 mm: expected views all around"):
        plan.measured()


@pytest.mark.parametrize(
    "heights",
    [
        np.linspace(-8, 8, 3 * VIEWS),  # a helix
        np.where(np.arange(3 * VIEWS) % 2, 0.3, 0.0),  # a focal spot that flies along the axis
        np.random.default_rng(1).normal(0, 0.4, 3 * VIEWS),  # a gantry that trembles
    ],
    ids=["helix", "flying spot", "trembling"],
)
def test_other_movements_along_the_axis_are_no_steps(heights: np.ndarray) -> None:
    along = np.stack([0 * heights, 0 * heights, heights], axis=1)
    flat = Positions(axial_mm=(0.0, 0.0, 0.0)).along_axis(circle())
    flying = np.ptp(heights) == pytest.approx(0.3)
    moved = ConeBeamGeometry.from_vectors(
        flat.sources + along, flat.detector_centres + (0 if flying else along), flat.column_steps, flat.row_steps,
        rows=ROWS, columns=64,
    )  # fmt: skip
    assert len(stations_of(moved)) == 1


# encodings


def read(datasets: list[Dataset]) -> Scan:
    encoding = STANDARD.of(datasets[0])
    assert encoding is not None
    return assemble(encoding, datasets)


def twice(name: str, change: Callable[[Dataset], None]) -> list[Dataset]:
    """Return the instances of a scan, and those of a second circle, each of which is changed."""
    first, second = WRITERS[name]("HFS"), WRITERS[name]("HFS")
    for number, dataset in enumerate(second, start=len(first) + 1):
        dataset.InstanceNumber = number
        change(dataset)
    return [*first, *second]


def vectors_moved(dataset: Dataset) -> None:
    block = dataset.private_block(0x0071, "THARSIS PROJECTION 1.0")
    for offset in (0x12, 0x13):
        if offset in block:
            block[offset].value = [*block[offset].value[:2], block[offset].value[2] + 8.0]


def spot_moved(dataset: Dataset) -> None:
    dataset.private_block(0x7031, "DetectorDynamicsModule")[0x02].value = 8.0


def table_moved() -> list[Dataset]:
    """One run of two turns, between which the table takes the patient 8 mm towards the feet."""
    run, flats = WRITERS["P2"]("HFS")
    run.PositionerPrimaryAngleIncrement = list(run.PositionerPrimaryAngleIncrement) * 2
    run.PositionerSecondaryAngleIncrement = list(run.PositionerSecondaryAngleIncrement) * 2
    run.TableMotion, run.TableLateralIncrement = "DYNAMIC", [0] * VIEWS_OF_A_RUN + [-8] * VIEWS_OF_A_RUN
    run.NumberOfFrames, run.PixelData = 2 * VIEWS_OF_A_RUN, run.PixelData * 2
    return [run, flats]


@pytest.mark.parametrize(
    ("name", "stepped"),
    [
        ("P2", table_moved),
        ("P3", lambda: twice("P3", spot_moved)),
        ("P4", lambda: twice("P4", vectors_moved)),
    ],
    ids=["P2", "P3", "P4"],
)
def test_every_encoding_tells_its_axial_positions(
    name: str, stepped: Callable[[], list[Dataset]]
) -> None:
    one = read(WRITERS[name]("HFS")).geometry
    scan = read(stepped())
    assert not difference(scan.geometry, Positions(axial_mm=(0.0, -8.0)).along_axis(one))
    heights = [station.height_mm for station in stations_of(scan.geometry)]
    assert np.diff(heights) == pytest.approx([8.0])


@cache
def simulated() -> Scan:
    return read(
        simulate_scan("plaque", views=40, rows=24, columns=40, thresholds_kev=(25.0,), positions=Positions(
            axial_mm=(-6.0, 6.0), tiles=(2, 1)
        ))
    )  # fmt: skip


def test_the_simulated_scan_says_the_same_in_vectors_and_in_angles() -> None:
    scan = simulated()
    assert len(scan.notes) == 2, scan.notes
    assert [station.height_mm for station in stations_of(scan.geometry)] == pytest.approx([-6.0, 6.0])
    assert {abs(float(frame.instance.PerFrameFunctionalGroupsSequence[frame.index]
            .IsocenterReferenceSystemSequence[0].TableZPositionToIsocenter))
            for frame in scan.counters[0].views} == {0.0, 12.0}  # fmt: skip


class Interrupted(Exception):
    pass


def test_a_stepped_scan_goes_on_after_an_interruption_and_says_what_was_merged(tmp_path: Path) -> None:
    """With memory for neither line integrals nor volume, slab by slab into files."""
    parameters = Parameters(memory_mb=3, voxel_mm=0.5)
    scan, seen = simulated(), []

    def stop_at(most: float) -> Callable[[float], None]:
        def tell(fraction: float) -> None:
            seen.append(fraction)
            if fraction > most:
                raise Interrupted

        return tell

    files = Checkpoint(tmp_path, {"scan": "1"})
    with pytest.raises(Interrupted):
        next(reconstruct_scan(scan, parameters, stop_at(0.6), checkpoint=files))
    done = files.parts_done(1, VOLUME)
    grid = scan.grid(0.5)
    assert 0 < sum(stop - start for start, stop in done) < grid.shape_zyx[0]
    (made,) = reconstruct_scan(scan, parameters, stop_at(2.0), checkpoint=files)
    slices = list(made.instances)
    whole = reconstructed(plan_of(scan.geometry, grid), scan.line_integrals(1))
    expected = list(ct_series(whole, grid, scan=scan, energy_bin=scan.bins[0], recipe=parameters.recipe()))
    stored, direct = (np.stack([ds.pixel_array for ds in series]).astype(int) for series in (slices, expected))
    assert np.abs(stored - direct).max() <= 1, "a rounded Hounsfield unit"
    told = slices[0].DerivationDescription
    assert "tiles=2 of 24x24 stitched to 24x40" in told
    assert "axial_positions_mm_merged=-6.00 6.00" in told
