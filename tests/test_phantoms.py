import numpy as np
import pytest

from reconstruct.geometry import ConeBeamGeometry, VolumeGrid
from reconstruct.phantoms import Ellipsoid, asymmetric, line_integrals, shepp_logan, voxelise


def circle(views=6, **changes):
    scan = {
        "source_to_isocenter_mm": 200.0,
        "source_to_detector_mm": 300.0,
        "view_angles_rad": np.arange(views) * 2 * np.pi / views + 0.3,
        "rows": 9,
        "columns": 11,
        "row_pitch_mm": 9.0,
        "column_pitch_mm": 10.0,
    }
    return ConeBeamGeometry.circular(**(scan | changes))


def value_at(ellipsoids, points):
    total = np.zeros(len(points))
    for e in ellipsoids:
        x, y, z = (points - e.centre_mm_xyz).T
        c, s = np.cos(e.rotation_rad), np.sin(e.rotation_rad)
        a, b, d = e.semi_axes_mm
        total += e.value_per_mm * (((x * c + y * s) / a) ** 2 + ((y * c - x * s) / b) ** 2 + (z / d) ** 2 <= 1)
    return total


@pytest.mark.parametrize("phantom", [shepp_logan(50.0), asymmetric(50.0)], ids=["shepp-logan", "asymmetric"])
def test_line_integrals_are_sums_along_the_rays(phantom):
    geometry = circle()
    integrals = line_integrals(phantom, geometry)
    pixels = geometry.first_pixels()
    for view, row, column in [(0, 4, 5), (1, 2, 3), (2, 6, 7), (3, 0, 0), (5, 3, 6)]:
        pixel = pixels[view] + column * geometry.column_steps[view] + row * geometry.row_steps[view]
        source = geometry.sources[view]
        steps = 200_000
        points = source + (np.arange(steps)[:, None] + 0.5) / steps * (pixel - source)
        numeric = value_at(phantom, points).sum() * np.linalg.norm(pixel - source) / steps
        assert integrals[view, row, column] == pytest.approx(numeric, abs=2e-4)


def test_the_ray_through_the_centre_of_a_ball_crosses_its_diameter():
    geometry = circle(rows=1, columns=1)
    ball = Ellipsoid((0.0, 0.0, 0.0), (20.0, 20.0, 20.0), 0.0, 0.05)
    np.testing.assert_allclose(line_integrals([ball], geometry), 2.0, rtol=1e-6)


def test_a_small_far_ball_keeps_its_digits():
    geometry = circle(
        source_to_isocenter_mm=1e5, source_to_detector_mm=2e5, rows=1, columns=1, view_angles_rad=[0.0]
    )
    ball = Ellipsoid((0.0, 0.0, 0.0), (1e-3, 1e-3, 1e-3), 0.0, 1.0)
    assert line_integrals([ball], geometry)[0, 0, 0] == pytest.approx(2e-3, rel=1e-6)


def test_the_distance_of_the_detector_does_not_matter_and_nothing_behind_the_source_counts():
    geometry = circle()
    near = ConeBeamGeometry.from_matrices(geometry.projection_matrices(), rows=9, columns=11)
    body = asymmetric(50.0)
    np.testing.assert_allclose(line_integrals(body, near), line_integrals(body, geometry), atol=1e-5)
    behind = Ellipsoid((400.0, 0.0, 0.0), (30.0, 30.0, 30.0))
    assert line_integrals([behind], circle(view_angles_rad=[0.0])).max() == 0
    around = Ellipsoid((200.0, 0.0, 0.0), (30.0, 30.0, 30.0))
    assert line_integrals([around], circle(view_angles_rad=[0.0]))[0, 4, 5] == pytest.approx(30.0)


def test_voxels_are_where_the_grid_says():
    grid = VolumeGrid((4, 5, 6), (3.0, 2.0, 1.0), (1.0, -2.0, 4.0))
    phantom = [Ellipsoid((1.2, -2.5, 4.0), (1.5, 3.0, 5.0), 0.4, 0.7)]
    z, y, x = np.meshgrid(grid.z_mm, grid.y_mm, grid.x_mm, indexing="ij")
    expected = value_at(phantom, np.stack([x, y, z], axis=-1).reshape(-1, 3)).reshape(4, 5, 6)
    assert 0 < expected.mean() < 0.7
    np.testing.assert_allclose(voxelise(phantom, grid), expected, rtol=1e-6)


def test_supersampled_voxels_hold_the_volume_of_an_ellipsoid():
    grid = VolumeGrid((8, 8, 8), (2.0, 2.0, 2.0))
    phantom = [Ellipsoid((0.3, -0.2, 0.1), (5.0, 6.0, 4.0), 0.5, 0.1)]
    mass = voxelise(phantom, grid, supersampling=6).sum() * 8.0
    assert mass == pytest.approx(0.1 * 4 / 3 * np.pi * 5 * 6 * 4, rel=0.01)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        voxelise(phantom, grid, supersampling=0)


def test_the_marker_is_left_posterior_and_towards_the_head():
    marker = asymmetric(50.0)[-1]
    assert all(c - a > 0 for c, a in zip(marker.centre_mm_xyz, marker.semi_axes_mm, strict=True))
    values = voxelise(asymmetric(50.0), VolumeGrid((50, 50, 50), (2.0, 2.0, 2.0)))
    z, y, x = np.unravel_index(values.argmax(), values.shape)
    assert min(x, y, z) > 25
    for flipped in (values[::-1], values[:, ::-1], values[:, :, ::-1], values.transpose(0, 2, 1)):
        assert np.abs(flipped - values).max() > 0.03


def test_shepp_logan_has_the_values_of_the_table():
    head = shepp_logan(10.0, skull_per_mm=1.0)
    points = np.array([[0.0, -9.0, 0.0], [0.0, 7.0, 0.0], [2.2, 0.0, 0.0], [0.0, 3.5, -1.5]])
    np.testing.assert_allclose(value_at(head, points), [1.0, 0.2, 0.0, 0.3], atol=1e-12)


def test_progress_reaches_one_and_may_stop_the_work():
    told = []
    line_integrals(asymmetric(50.0), circle(views=40), progress=told.append)
    assert told == sorted(told)
    assert told[-1] == 1.0

    def stop(fraction):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        line_integrals(asymmetric(50.0), circle(views=40), progress=stop)


@pytest.mark.parametrize(
    "arguments", [((0, 0, np.nan), (1, 1, 1)), ((0, 0, 0), (1, 0, 1)), ((0, 0, 0), (1, 1, 1), np.inf)]
)
def test_impossible_ellipsoids_are_refused(arguments):
    with pytest.raises(ValueError, match="expected"):
        Ellipsoid(*arguments)
