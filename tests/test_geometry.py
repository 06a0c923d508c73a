import math

import numpy as np
import pytest

from reconstruct.arcs import arc_of
from reconstruct.geometry import ConeBeamGeometry, GeometryError, VolumeGrid
from reconstruct.weights import require_circular

SCAN = {
    "source_to_isocenter_mm": 500.0,
    "source_to_detector_mm": 800.0,
    "rows": 21,
    "columns": 31,
    "row_pitch_mm": 2.0,
    "column_pitch_mm": 1.5,
}


def circle(views=12, **changes):
    angles = np.arange(views) * 2 * np.pi / views
    return ConeBeamGeometry.circular(**({**SCAN, "view_angles_rad": angles} | changes))


def project(geometry, point):
    """(column, row) of a point by intersecting its ray with each detector plane, without any matrix."""
    pixels = []
    firsts = geometry.first_pixels()
    for view in range(geometry.views):
        source, a, b = geometry.sources[view], geometry.column_steps[view], geometry.row_steps[view]
        way = np.asarray(point) - source
        column, row, _ = np.linalg.solve(np.stack([a, b, -way], axis=1), source - firsts[view])
        pixels.append((column, row))
    return np.array(pixels)


def tilted(views=9):
    base = circle(views)
    lean = base.row_steps + 0.1 * base.sources / 500.0
    return ConeBeamGeometry.from_vectors(
        base.sources + np.array([0.0, 0.0, 3.0]), base.detector_centres, base.column_steps, lean, rows=21, columns=31
    )


def test_circle_follows_the_scan_frame():
    geometry = circle(view_angles_rad=[0.0, np.pi / 2])
    np.testing.assert_allclose(geometry.sources, [[500, 0, 0], [0, 500, 0]], atol=1e-10)
    np.testing.assert_allclose(geometry.detector_centres, [[-300, 0, 0], [0, -300, 0]], atol=1e-10)
    np.testing.assert_allclose(geometry.column_steps, [[0, 1.5, 0], [-1.5, 0, 0]], atol=1e-12)
    np.testing.assert_allclose(geometry.row_steps, [[0, 0, 2], [0, 0, 2]], atol=1e-12)
    np.testing.assert_allclose(geometry.view_angles_rad, [0, np.pi / 2])
    np.testing.assert_allclose(geometry.source_to_isocenter_mm, 500)
    np.testing.assert_allclose(geometry.source_to_detector_mm, 800)


def test_principal_point_is_where_the_isocentre_is_seen():
    geometry = circle(principal_point_px=(3.25, 17.5))
    np.testing.assert_allclose(project(geometry, (0, 0, 0)), np.tile([3.25, 17.5], (12, 1)), atol=1e-9)


@pytest.mark.parametrize("geometry", [circle(), circle(column_pitch_mm=-1.5, row_pitch_mm=-2.0), tilted()])
def test_matrices_project_as_the_vectors_do(geometry):
    point = np.array([11.0, -23.0, 7.0])
    column, row, depth = np.moveaxis(geometry.projection_matrices() @ [*point, 1.0], 1, 0)
    np.testing.assert_allclose(np.stack([column / depth, row / depth], axis=1), project(geometry, point), atol=1e-9)
    np.testing.assert_allclose(geometry.projection_matrices() @ [0, 0, 0, 1.0] @ [0, 0, 1], geometry.isocentre_depths)
    at_source = np.einsum("vij,vj->vi", geometry.projection_matrices()[:, :, :3], geometry.sources)
    np.testing.assert_allclose(at_source, -geometry.projection_matrices()[:, :, 3], atol=1e-8)


@pytest.mark.parametrize("scale", [1.0, -3.7, 1e-5])
@pytest.mark.parametrize("geometry", [circle(principal_point_px=(3.0, 12.0)), tilted()])
def test_matrices_give_the_vectors_back_whatever_their_sign_and_scale(geometry, scale):
    # The tilted detector is at another perpendicular distance than the circle's.
    distance = float(geometry.source_to_detector_mm[0])
    back = ConeBeamGeometry.from_matrices(
        scale * geometry.projection_matrices(), rows=21, columns=31, source_to_detector_mm=distance
    )
    for name in ("sources", "detector_centres", "column_steps", "row_steps"):
        np.testing.assert_allclose(getattr(back, name), getattr(geometry, name), atol=1e-8, err_msg=name)


def test_matrices_without_a_distance_put_the_detector_through_the_isocentre():
    geometry = tilted()
    back = ConeBeamGeometry.from_matrices(geometry.projection_matrices(), rows=21, columns=31)
    np.testing.assert_allclose(back.isocentre_depths, 1.0)
    np.testing.assert_allclose(back.sources, geometry.sources, atol=1e-8)
    np.testing.assert_allclose(project(back, (5, 6, 7)), project(geometry, (5, 6, 7)), atol=1e-8)


def test_matrices_of_another_projector(shared_data):
    views = np.load(shared_data / "projections" / "torso_full" / "views.npz")
    geometry = ConeBeamGeometry.from_matrices(
        views["projection_matrix"], rows=160, columns=224, source_to_detector_mm=1536.0
    )
    same = ConeBeamGeometry.circular(
        source_to_isocenter_mm=1000.0,
        source_to_detector_mm=1536.0,
        view_angles_rad=np.deg2rad(views["angles_deg"] - 90.0),
        rows=160,
        columns=224,
        row_pitch_mm=1.6,
        column_pitch_mm=3.0,
    )
    np.testing.assert_allclose(geometry.sources, views["source_mm"], atol=1e-6)
    for name in ("sources", "detector_centres", "column_steps", "row_steps"):
        np.testing.assert_allclose(getattr(geometry, name), getattr(same, name), atol=1e-6, err_msg=name)


def test_a_geometry_cannot_be_changed():
    geometry = circle()
    with pytest.raises(ValueError, match="read-only"):
        geometry.sources[0] = 0
    with pytest.raises(AttributeError):
        geometry.rows = 3


def test_a_geometry_does_not_follow_the_array_it_was_made_of():
    sources = circle().sources.copy()
    base = circle()
    geometry = ConeBeamGeometry(sources, base.detector_centres, base.column_steps, base.row_steps, 21, 31)
    sources[:] = 0
    np.testing.assert_allclose(geometry.sources, base.sources)


BASE = circle()
VECTORS = (BASE.sources, BASE.detector_centres, BASE.column_steps, BASE.row_steps)


def replaced(index, value):
    return (*VECTORS[:index], value, *VECTORS[index + 1 :])


@pytest.mark.parametrize(
    ("vectors", "size", "sentence"),
    [
        (replaced(1, BASE.detector_centres[:5]), (21, 31), r"detector_centres of shape \(12, 3\), got \(5, 3\)"),
        (replaced(0, BASE.sources * np.nan), (21, 31), r"sources of view 0 are not finite"),
        (VECTORS, (0, 31), "at least 1 row and 1 column, got 0 and 31"),
        (replaced(3, BASE.column_steps), (21, 31), "view 0: .* span no area"),
        (replaced(1, BASE.sources + BASE.row_steps), (21, 31), "view 0: the source lies in the detector's plane"),
        (replaced(1, 2 * BASE.sources), (21, 31), "view 0: the isocentre is not in front of the source"),
    ],
)
def test_impossible_vectors_are_refused(vectors, size, sentence):
    with pytest.raises(GeometryError, match=sentence):
        ConeBeamGeometry(*vectors, *size)


def one_bad_matrix(change):
    matrices = BASE.projection_matrices().copy()
    change(matrices[4])
    return matrices


@pytest.mark.parametrize(
    ("matrices", "sentence"),
    [
        (np.zeros((2, 4, 4)), r"shape \(view, 3, 4\), got \(2, 4, 4\)"),
        (one_bad_matrix(lambda m: m.__setitem__((0, 0), np.inf)), "view 4 of 12 is not finite"),
        (one_bad_matrix(lambda m: m.__setitem__(1, m[0])), "view 4 of 12 is singular"),
        (one_bad_matrix(lambda m: m.__setitem__(2, 0.0)), "view 4 of 12 has a row of zeros"),
        (one_bad_matrix(lambda m: m.__setitem__((2, 3), 0.0)), "view 4 of 12 has the isocentre beside"),
    ],
)
def test_impossible_matrices_are_refused(matrices, sentence):
    with pytest.raises(GeometryError, match=sentence):
        ConeBeamGeometry.from_matrices(matrices, rows=21, columns=31)


def test_rows_that_step_along_the_axis_are_recognised():
    assert circle().rows_step_along_axis
    assert circle(row_pitch_mm=-2.0, principal_point_px=(0.0, 0.0)).rows_step_along_axis
    assert not tilted().rows_step_along_axis


def test_selected_views_are_the_same_views():
    geometry = tilted()
    for chosen in ([5, 2], slice(2, 4), np.arange(9) % 2 == 0):
        np.testing.assert_array_equal(geometry.select(chosen).detector_centres, geometry.detector_centres[chosen])


@pytest.mark.parametrize(
    "geometry",
    [
        circle(),
        circle(principal_point_px=(14.0, 7.0)),
        circle(column_pitch_mm=-1.5, row_pitch_mm=-2.0, principal_point_px=(14.0, 7.0)),
        tilted(),
    ],
)
def test_every_view_sees_all_of_the_fitted_cylinder(geometry):
    grid = geometry.fitted_grid()
    assert grid.voxel_mm_zyx == pytest.approx((1.5 * 500 / 800,) * 3, rel=0.01)
    radius, angle = grid.x_mm[-1], np.linspace(0, 2 * np.pi, 73)
    for z in (grid.z_mm[0], grid.z_mm[-1]):
        for x, y in zip(radius * np.cos(angle), radius * np.sin(angle), strict=True):
            seen = project(geometry, (x, y, z))
            assert (seen > -0.51).all()
            assert (seen[:, 0] < 30.51).all()
            assert (seen[:, 1] < 20.51).all()


def test_the_fitted_cylinder_is_as_large_as_the_detector_allows():
    geometry = circle(views=360)
    half_width = 31 / 2 * 1.5
    radius = 500 * half_width / math.hypot(800, half_width)
    height = 2 * (500 - radius) * 21 / 800
    grid = geometry.fitted_grid(0.01)
    assert grid.shape_zyx == pytest.approx((height / 0.01, 2 * radius / 0.01, 2 * radius / 0.01), abs=1.5)


def test_no_grid_fits_where_a_view_misses_the_axis():
    with pytest.raises(GeometryError, match="must see the rotation axis"):
        circle(principal_point_px=(-5.0, 10.0)).fitted_grid()
    with pytest.raises(GeometryError, match="voxel edge of 0 mm or more, got -1"):
        circle().fitted_grid(-1.0)


def test_a_slab_holds_the_same_voxels_as_its_grid():
    grid = VolumeGrid((10, 4, 5), (0.5, 2.0, 3.0), (1.0, 2.0, 3.0))
    slab = grid.slab(3, 7)
    np.testing.assert_allclose(slab.z_mm, grid.z_mm[3:7])
    np.testing.assert_allclose(slab.x_mm, [-5, -2, 1, 4, 7])
    np.testing.assert_allclose(slab.y_mm, [-1, 1, 3, 5])
    assert grid.origin_mm_xyz == pytest.approx((-5.0, -1.0, 0.75))
    with pytest.raises(GeometryError, match="within slices 0 to 10, got 7 to 11"):
        grid.slab(7, 11)


@pytest.mark.parametrize(
    ("shape", "voxel", "centre"), [((0, 1, 1), (1, 1, 1), (0, 0, 0)), ((1, 1, 1), (1, 0, 1), (0, 0, 0))]
)
def test_impossible_grids_are_refused(shape, voxel, centre):
    with pytest.raises(GeometryError, match="got"):
        VolumeGrid(shape, voxel, centre)


STEP = 2 * np.pi / 90


@pytest.mark.parametrize(
    "angles",
    [
        np.arange(90) * STEP,
        -np.arange(90) * STEP,
        5.0 + np.arange(90) * STEP,
        np.arange(91) * STEP,
        np.arange(180) * STEP,
        np.random.default_rng(1).permutation(90) * STEP,
        np.delete(np.arange(90) * STEP, 17),
        np.arange(4) * np.pi / 2,
    ],
    ids=["even", "backwards", "elsewhere", "last repeats first", "two turns", "shuffled", "one missing", "sparse"],
)
def test_angular_weights_are_half_the_gaps_and_fill_the_circle(angles):
    arc = arc_of(angles)
    weights = arc.shares_rad
    assert arc.is_circle
    assert weights.sum() == pytest.approx(2 * np.pi)
    directions = np.stack([np.cos(angles), np.sin(angles)])
    assert np.abs(directions @ weights).max() < 0.5 * STEP**2 + 1e-9
    if len(angles) == 91:
        np.testing.assert_allclose(weights[[0, 90]], STEP / 2)
        np.testing.assert_allclose(weights[1:90], STEP)


@pytest.mark.parametrize("start", [0.0, 3.0, -2.0])
@pytest.mark.parametrize("order", [1, -1])
def test_an_arc_is_told_from_a_circle(start, order):
    angles = start + np.deg2rad(np.arange(0, 201))[::order]
    arc = arc_of(angles)
    assert not arc.is_circle
    assert np.rad2deg([arc.length_rad, arc.step_rad]) == pytest.approx([200.0, 1.0])
    np.testing.assert_allclose(np.rad2deg(arc.positions_rad), np.arange(0, 201)[::order], atol=1e-6)
    np.testing.assert_allclose(np.rad2deg(arc.shares_rad)[[0, 100, 200]], [0.5, 1.0, 0.5])


@pytest.mark.parametrize(
    ("angles", "sentence"),
    [
        ([10.0], "cover 0.0 degrees"),
        ([10.0, 10.0], "cover 0.0 degrees"),
        ([*range(100), *range(150, 250)], "got one of 51.0 degrees within the arc, where the step is 1.0"),
    ],
)
def test_views_that_make_no_arc_are_refused(angles, sentence):
    with pytest.raises(GeometryError, match=sentence):
        arc_of(np.deg2rad(angles))


def test_scans_that_fdk_cannot_reconstruct_are_refused():
    spiral = np.stack([np.zeros(12), np.zeros(12), np.linspace(0, 40, 12)], axis=1)
    helix = ConeBeamGeometry(BASE.sources + spiral, BASE.detector_centres + spiral, *VECTORS[2:], 21, 31)
    with pytest.raises(GeometryError, match="helical"):
        require_circular(helix)
    turned = ConeBeamGeometry(BASE.sources, BASE.detector_centres, BASE.row_steps, BASE.column_steps, 21, 31)
    with pytest.raises(GeometryError, match="exchange rows and columns"):
        require_circular(turned)
