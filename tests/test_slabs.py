import numpy as np
import pytest

from reconstruct.cluster import groups_of
from reconstruct.fdk import fdk
from reconstruct.geometry import ConeBeamGeometry, VolumeGrid
from reconstruct.phantoms import asymmetric, line_integrals
from reconstruct.slabs import Plan, Slab, remaining, row_band

GRID = VolumeGrid((72, 40, 44), (1.6, 2.4, 2.4), (0.0, 0.0, 1.0))


def scan(degrees=356.0, principal_point_px=None, **changes):
    whole = {
        "source_to_isocenter_mm": 400.0,
        "source_to_detector_mm": 600.0,
        "view_angles_rad": np.deg2rad(np.arange(0, degrees + 1, 4)),
        "rows": 80,
        "columns": 64,
        "row_pitch_mm": 2.6,
        "column_pitch_mm": 3.0,
        "principal_point_px": principal_point_px,
    }
    return ConeBeamGeometry.circular(**(whole | changes))


def tilted(geometry, angle_rad=0.1):
    """The detector leaning forwards."""
    radial = geometry.sources / geometry.source_to_isocenter_mm[:, None]
    rows = np.cos(angle_rad) * geometry.row_steps + np.sin(angle_rad) * 2.6 * radial
    return ConeBeamGeometry(
        geometry.sources, geometry.detector_centres, geometry.column_steps, rows, geometry.rows, geometry.columns
    )


@pytest.mark.parametrize(
    "geometry",
    [
        scan(),
        scan(220),
        scan(principal_point_px=(50.0, 39.5)),
        scan(row_pitch_mm=-2.6),
        tilted(scan(240)),
    ],
    ids=["full", "short", "offset", "rows mirrored", "short, tilted"],
)
@pytest.mark.parametrize("memory_mb", [8, 1000])
def test_slabs_together_are_the_volume(geometry, memory_mb):
    projections = line_integrals(asymmetric(45.0), geometry)
    whole = fdk(projections, geometry, GRID)
    plan = Plan(geometry, GRID)
    slabs = plan.slabs(memory_mb)
    assert len(slabs) > 3
    assert [slab.start for slab in slabs[1:]] == [slab.stop for slab in slabs[:-1]]
    assert sum(slab.end_row - slab.first_row for slab in slabs) < 2.5 * geometry.rows
    parts = [plan.reconstruct(projections, slab, memory_mb=memory_mb) for slab in slabs]
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=2e-7)


def test_a_slab_reads_no_other_rows():
    geometry = scan()
    projections = line_integrals(asymmetric(45.0), geometry)
    plan = Plan(geometry, GRID)
    slab = plan.slab(16, 32)
    expected = plan.reconstruct(projections, slab)
    blind = np.full_like(projections, np.nan)
    blind[:, slab.rows] = projections[:, slab.rows]
    np.testing.assert_array_equal(plan.reconstruct(blind, slab), expected)


def test_slices_that_no_row_sees_are_zero():
    geometry = scan(rows=20)
    plan = Plan(geometry, VolumeGrid((8, 40, 44), (1.6, 2.4, 2.4), (0.0, 0.0, 150.0)))
    [slab] = plan.slabs(100)
    assert (slab.first_row, slab.end_row) == (19, 20)
    assert not plan.reconstruct(np.ones((geometry.views, 20, 64), np.float32), slab).any()


def test_a_volume_around_a_source_needs_all_rows():
    assert row_band(scan(), VolumeGrid((10, 10, 500), (2.0, 2.0, 2.0))) == (0, 80)


def test_what_is_done_is_not_left():
    slabs = [Slab(start, start + 16, 0, 1) for start in range(0, 64, 16)]
    assert remaining(slabs, []) == slabs
    assert remaining(slabs, [(0, 16), (32, 40), (40, 64)]) == [slabs[1]]
    assert remaining(slabs, [(0, 24)]) == slabs[1:]


@pytest.mark.parametrize("geometry", [scan(), scan(220), scan(principal_point_px=(14.0, 39.5))])
def test_groups_of_views_add_up(geometry):
    projections = line_integrals(asymmetric(45.0), geometry)
    plan = Plan(geometry, GRID)
    slab = plan.slab(32, 48)
    groups = groups_of(plan, 3)
    assert sum(group.stop - group.start for group in groups) == geometry.views
    parts = [plan.reconstruct(projections, slab, views=group) for group in groups]
    np.testing.assert_allclose(np.sum(parts, axis=0), plan.reconstruct(projections, slab), atol=2e-7)


def test_slabs_are_not_cut_thinner_than_that_saves_rows():
    """At a steep cone the outermost slices need half of the detector, however few they are."""
    steep = scan(source_to_isocenter_mm=150.0, source_to_detector_mm=300.0, rows=400, columns=400)
    plan = Plan(steep, VolumeGrid((320, 100, 100), (0.5, 1.5, 1.5)))
    assert len(plan.slabs(1)) < 320 / 16
