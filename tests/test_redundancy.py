import numpy as np
import pytest

from reconstruct.fdk import fdk
from reconstruct.geometry import ConeBeamGeometry, GeometryError, VolumeGrid
from reconstruct.phantoms import Ellipsoid, line_integrals
from reconstruct.redundancy import Coverage, fan_angles, redundancy

STEP = np.deg2rad(2.0)


def scan(degrees=358.0, principal_column=15.0, *, sense=1, mirror=1):
    """31 columns; the outermost pixel is 5.7 degrees from the axis, its edge 5.9."""
    return ConeBeamGeometry.circular(
        source_to_isocenter_mm=500.0,
        source_to_detector_mm=750.0,
        view_angles_rad=sense * (1.0 + np.arange(0, np.deg2rad(degrees) + 1e-9, STEP)),
        rows=21,
        columns=31,
        row_pitch_mm=5.0,
        column_pitch_mm=5.0 * mirror,
        principal_point_px=(principal_column, 10.0),
    )


@pytest.mark.parametrize("mirror", [1, -1])
@pytest.mark.parametrize("sense", [1, -1])
@pytest.mark.parametrize(
    ("degrees", "principal_column", "coverage"),
    [
        (358.0, 15.0, Coverage.FULL),
        (358.0, 14.0, Coverage.FULL),
        (358.0, 22.0, Coverage.OFFSET),
        (358.0, 6.0, Coverage.OFFSET),
        (192.0, 15.0, Coverage.SHORT),
        (250.0, 15.0, Coverage.SHORT),
        (346.0, 15.0, Coverage.SHORT),
    ],
)
def test_what_is_measured_twice_counts_once(degrees, principal_column, coverage, sense, mirror):
    geometry = scan(degrees, principal_column, sense=sense, mirror=mirror)
    measured = redundancy(geometry)
    assert measured.coverage is coverage
    weights = measured.weights(slice(0, geometry.views))
    assert weights.shape == (geometry.views, 31)
    # A line is measured once from each of its ends, where there is a view: the weights of all measurements are summed.
    for line_direction in np.deg2rad([0.0, 35.0, 120.0, 215.0]):
        for line_distance in (-40.0, -10.0, 5.0, 33.0):
            total = sum(
                _weight_at(geometry, measured, line_direction + turn, line_distance * sign)
                for turn, sign in ((0.0, 1.0), (np.pi, -1.0))
            )
            assert total == pytest.approx(2.0, abs=0.02), (line_direction, line_distance)


def _weight_at(geometry, measured, direction, distance):
    """The weight of the measurement of a ray, interpolated; 0 where no view and column has it."""
    gamma = np.arcsin(distance / 500.0)
    source = direction - np.pi - gamma
    turn = np.mod(geometry.view_angles_rad - source + np.pi, 2 * np.pi) - np.pi
    order = np.argsort(turn)
    after = int(np.searchsorted(turn[order], 0.0))
    if after in (0, len(order)):
        return 0.0
    pair = order[after - 1], order[after]
    gap = turn[pair[1]] - turn[pair[0]]
    if gap > 1.5 * STEP:
        return 0.0
    share = -turn[pair[0]] / gap
    total = 0.0
    for view, part in zip(pair, (1 - share, share), strict=True):
        angles = fan_angles(geometry)[view]
        columns = np.argsort(angles)
        row = measured.weights(slice(view, view + 1))[0]
        total += part * np.interp(gamma, angles[columns], row[columns], left=0.0, right=0.0)
    return total


def test_an_offset_detector_sees_as_far_as_its_longer_side():
    full, offset = scan().fitted_grid(), scan(principal_column=22.0).fitted_grid()
    half_width = 22.5 * 5.0
    radius = offset.shape_zyx[1] * offset.voxel_mm_zyx[1] / 2
    assert radius == pytest.approx(500 * np.sin(np.arctan(half_width / 750)), rel=0.05)
    assert offset.shape_zyx[1] > 1.4 * full.shape_zyx[1]


def test_a_barely_short_scan_has_a_smaller_field():
    whole, part = scan(192.0).fitted_grid(), scan(186.0).fitted_grid()
    assert whole.shape_zyx[1] == scan().fitted_grid().shape_zyx[1]
    assert part.shape_zyx[1] * part.voxel_mm_zyx[1] / 2 == pytest.approx(500 * np.sin(np.deg2rad(4.0)), rel=0.06)


@pytest.mark.parametrize(
    ("geometry", "sentence"),
    [
        (scan(184.0), "around the axis, or over half a turn and the fan, 191.8 degrees, got 93 views that cover 184.0"),
        (scan(40.0), "191.8 degrees, got 21 views that cover 40.0 degrees"),
        (scan(250.0, 22.0), "as the detector is offset to one side, got 126 views that cover 250.0 degrees"),
        (scan(358.0, 33.0), "must see the rotation axis, yet one misses it by"),
    ],
)
def test_what_is_not_measured_enough_is_refused(geometry, sentence):
    with pytest.raises(GeometryError, match=sentence):
        redundancy(geometry)


def test_a_limited_arc_shows_what_faces_it_where_it_is():
    bead = Ellipsoid(centre_mm_xyz=(10.0, -8.0, 6.0), semi_axes_mm=(4.0, 4.0, 4.0), value_per_mm=0.02)
    geometry = scan(40.0)
    assert redundancy(geometry, limited_arc=True).coverage is Coverage.LIMITED
    grid = VolumeGrid((20, 40, 40), (2.0, 2.0, 2.0))
    volume = fdk(line_integrals((bead,), geometry), geometry, grid, limited_arc=True)
    z, y, x = np.unravel_index(np.argmax(volume), volume.shape)
    assert abs(grid.x_mm[x] - 10.0) <= 2.0
    assert abs(grid.y_mm[y] + 8.0) <= 4.0, "towards the source, where the arc cannot tell"
    assert abs(grid.z_mm[z] - 6.0) <= 2.0
