import os
import platform
import subprocess
import sys
import textwrap
import tracemalloc
from pathlib import Path

import numba
import numpy as np
import pytest
from llvmlite.binding import get_host_cpu_features as host_features
from scipy import ndimage

from reconstruct import fdk as fdk_module
from reconstruct import kernels, quality
from reconstruct.backprojection import (
    AnyGeometry,
    AnyGeometryInVectors,
    RowsAlongAxis,
    RowsAlongAxisInVectors,
    back_projector,
    voxel_matrices,
)
from reconstruct.fdk import fdk
from reconstruct.filtering import Filtering
from reconstruct.geometry import ConeBeamGeometry, GeometryError, VolumeGrid
from reconstruct.kernels_simd_wide import tile_edge
from reconstruct.kernels_vectors import LANES
from reconstruct.phantoms import asymmetric, line_integrals, shepp_logan, voxelise
from reconstruct.redundancy import redundancy

HALF_WIDTH = 50.0
GRID = VolumeGrid((48, 56, 60), (2.0, 2.0, 2.0))
ANGLES = np.arange(90) * 2 * np.pi / 90


def circle(angles=ANGLES, **changes):
    scan = {
        "source_to_isocenter_mm": 400.0,
        "source_to_detector_mm": 600.0,
        "rows": 64,
        "columns": 72,
        "row_pitch_mm": 2.8,
        "column_pitch_mm": 2.8,
    }
    return ConeBeamGeometry.circular(**(scan | {"view_angles_rad": angles} | changes))


def leaning(*, pitch=0.0, yaw=0.0, roll=0.0, base=None):
    """The detector of a circle turned about its centre, rad: forwards, sideways, in its plane."""
    base = base or circle()
    u = base.column_steps / np.linalg.norm(base.column_steps, axis=1, keepdims=True)
    n = base.sources / base.source_to_isocenter_mm[:, None]
    v = np.cross(n, u)
    u, n = np.cos(yaw) * u + np.sin(yaw) * n, np.cos(yaw) * n - np.sin(yaw) * u
    v, n = np.cos(pitch) * v + np.sin(pitch) * n, np.cos(pitch) * n - np.sin(pitch) * v
    u, v = np.cos(roll) * u + np.sin(roll) * v, np.cos(roll) * v - np.sin(roll) * u
    return ConeBeamGeometry(base.sources, base.detector_centres, 2.8 * u, 2.8 * v, base.rows, base.columns)


def wobbling():
    base = circle()
    shifts = 3.0 * np.stack([np.cos(3 * ANGLES), np.sin(2 * ANGLES), np.cos(5 * ANGLES)], axis=1)
    return ConeBeamGeometry(
        base.sources + shifts, base.detector_centres - shifts, base.column_steps, base.row_steps, 64, 72
    )


def arc(degrees):
    """Views over an arc, every four degrees."""
    return np.deg2rad(np.arange(0, degrees + 1, 4))


UNEVEN = np.cumsum(np.random.default_rng(3).uniform(0.4, 1.6, 140))
UNEVEN *= 2 * np.pi / UNEVEN[-1]

GEOMETRIES = {
    "circle": circle(),
    "turning the other way": circle(-ANGLES),
    "starting elsewhere, last view repeats first": circle(np.linspace(1.0, 1.0 + 2 * np.pi, 91)),
    "uneven views": circle(UNEVEN),
    "columns mirrored": circle(column_pitch_mm=-2.8),
    "rows mirrored": circle(row_pitch_mm=-2.8),
    "detector shifted": circle(principal_point_px=(39.0, 29.0)),
    "detector leaning forwards": leaning(pitch=0.2),
    "detector turned sideways": leaning(yaw=0.2),
    "detector rolled": leaning(roll=0.1),
    "detector upside down": leaning(roll=np.pi),
    "leaning, turned, rolled": leaning(pitch=-0.1, yaw=0.1, roll=-0.05),
    "matrices of unknown distance": ConeBeamGeometry.from_matrices(
        -5.0 * circle().projection_matrices(), rows=64, columns=72
    ),
    "wobbling": wobbling(),
    "short scan": circle(arc(200)),
    "short scan, turning the other way": circle(-arc(210) + 2.0),
    "short scan, columns mirrored": circle(arc(230), column_pitch_mm=-2.8),
    "short scan of two thirds": circle(1.0 + arc(260)),
    "short scan of nearly all": circle(3.0 + arc(330)),
    "short scan, uneven and turned sideways": leaning(yaw=0.1, base=circle(UNEVEN[UNEVEN < 4.0])),
    "detector offset": circle(principal_point_px=(60.0, 31.5)),
    "detector offset to the other side": circle(principal_point_px=(15.0, 31.5)),
    "detector offset, turning the other way, mirrored": circle(
        -ANGLES, column_pitch_mm=-2.8, principal_point_px=(58.0, 31.5)
    ),
    "detector offset and leaning": leaning(pitch=0.1, base=circle(principal_point_px=(14.0, 31.5))),
}
"""The rays at the edge of the phantom are 13 degrees from the axis, those at the edge of the detector 10."""


@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES.keys())
def test_the_object_comes_back_at_its_place_and_value(geometry):
    phantom = asymmetric(HALF_WIDTH)
    truth = voxelise(phantom, GRID, supersampling=3)
    volume = fdk(line_integrals(phantom, geometry), geometry, GRID)

    inside = ndimage.binary_erosion(truth > 0.001, iterations=3)
    inside[np.abs(GRID.z_mm) > 22] = False
    assert abs(quality.bias(volume, truth, inside)) < 0.02 * 0.02
    assert quality.rmse(volume, truth, inside) < 0.0012

    marker = phantom[-1]
    z, y, x = np.meshgrid(GRID.z_mm, GRID.y_mm, GRID.x_mm, indexing="ij")
    offsets = np.stack([x, y, z], axis=-1) - marker.centre_mm_xyz
    dense = np.where(np.linalg.norm(offsets, axis=-1) < 10.0, np.maximum(volume - 0.025, 0), 0)
    centre = (offsets * dense[..., None]).reshape(-1, 3).sum(axis=0) / dense.sum()
    assert np.abs(centre).max() < 0.5, f"marker is {centre} mm from its place"


@pytest.mark.slow
def test_shepp_logan_is_reconstructed():
    size, views = 96, 240
    head = shepp_logan(61.0, skull_per_mm=1.0)
    geometry = circle(
        np.arange(views) * 2 * np.pi / views,
        source_to_isocenter_mm=1000.0,
        source_to_detector_mm=1500.0,
        rows=size,
        columns=size,
        row_pitch_mm=2.1,
        column_pitch_mm=2.1,
    )
    grid = VolumeGrid((size,) * 3, (128 / size,) * 3)
    truth = voxelise(head, grid, supersampling=3)
    volume = fdk(line_integrals(head, geometry), geometry, grid)
    # Three voxels from every edge: what an edge blurs into is not what is tested here.
    smooth = ndimage.maximum_filter(truth, 7) - ndimage.minimum_filter(truth, 7) < 1e-6
    smooth &= (truth > 0.05) & (np.abs(grid.z_mm) < 32)[:, None, None]
    assert smooth.sum() > 10_000
    assert quality.rmse(volume, truth, smooth) < 0.008
    assert abs(quality.bias(volume, truth, smooth)) < 0.003


def reference(filtered, geometry, grid):
    """Voxel-driven back-projection of (view, row, column) in plain numpy and float64, straight from the vectors."""
    padded = np.pad(filtered.astype(np.float64), ((0, 0), (1, 2), (1, 2)))
    z, y, x = np.meshgrid(grid.z_mm, grid.y_mm, grid.x_mm, indexing="ij")
    points = np.stack([x, y, z], axis=-1)
    volume = np.zeros(grid.shape_zyx)
    for view in range(geometry.views):
        source, a, b = geometry.sources[view], geometry.column_steps[view], geometry.row_steps[view]
        normal = np.cross(a, b)
        way = points - source
        depth = way @ normal / (-source @ normal)
        with np.errstate(divide="ignore", invalid="ignore"):
            to_detector = (geometry.detector_centres[view] - source) @ normal / (way @ normal)
            hit = source + way * to_detector[..., None] - geometry.first_pixels()[view]
            coefficients = hit @ np.linalg.pinv(np.stack([a, b], axis=1)).T
            column = np.clip(np.nan_to_num(coefficients[..., 0]) + 1, 0, geometry.columns + 1)
            row = np.clip(np.nan_to_num(coefficients[..., 1]) + 1, 0, geometry.rows + 1)
            weight = np.where(depth > 1e-3, 1 / depth**2, 0)
        i, j = column.astype(int), row.astype(int)
        f, g = column - i, row - j
        near = (1 - f) * padded[view, j, i] + f * padded[view, j, i + 1]
        far = (1 - f) * padded[view, j + 1, i] + f * padded[view, j + 1, i + 1]
        volume += weight * ((1 - g) * near + g * far)
    return volume


def added(projector, filtered, grid, views, pieces=1):
    buffer = projector.allocate(views)
    projector.store(filtered, buffer, slice(0, views))
    volume = np.zeros(grid.shape_zyx, np.float32)
    for part in np.array_split(np.arange(grid.shape_zyx[0]), pieces):
        slab = volume[part[0] : part[-1] + 1]
        work = projector.begin(slab)
        projector.add(buffer, slice(0, views), work, int(part[0]))
        projector.finish(work, slice(None), slab)
    return volume


# Whole field in view, field larger than the detector, source inside the volume, few rows, more slices than are worked
# on together, odd sizes.
SMALL = {
    "all seen": (circle(ANGLES[::10]), VolumeGrid((17, 33, 35), (3.0, 3.0, 3.0))),
    "much unseen": (
        circle(ANGLES[::10], rows=9, columns=7),
        VolumeGrid((31, 19, 37), (9.0, 9.0, 9.0), (5.0, -7.0, 11.0)),
    ),
    "source inside": (circle(ANGLES[::10]), VolumeGrid((5, 41, 43), (25.0, 25.0, 25.0))),
    "one row": (circle(ANGLES[::10], rows=1), VolumeGrid((3, 20, 20), (1.0, 4.0, 4.0))),
    "coarse rows": (circle(ANGLES[::10], rows=300, row_pitch_mm=0.5), VolumeGrid((21, 18, 18), (6.0, 4.0, 4.0))),
    "steep rows": (circle(ANGLES[::10], row_pitch_mm=0.9), VolumeGrid((40, 18, 18), (1.1, 4.0, 4.0))),
    "oblique rows": (circle(ANGLES[::9], row_pitch_mm=1.3), VolumeGrid((70, 18, 35), (1.1, 4.0, 4.0))),
    "many slices": (circle(ANGLES[::10], row_pitch_mm=0.6), VolumeGrid((530, 9, 11), (0.36, 9.0, 9.0))),
    "mirrored": (
        circle(ANGLES[::10], row_pitch_mm=-2.8, column_pitch_mm=-2.8),
        VolumeGrid((17, 20, 20), (4.0, 4.0, 4.0)),
    ),
    "turned": (leaning(yaw=0.3, base=circle(ANGLES[::10])), VolumeGrid((17, 20, 20), (4.0, 4.0, 4.0))),
    "leaning": (leaning(pitch=0.3, roll=0.2, base=circle(ANGLES[::10])), VolumeGrid((17, 20, 20), (4.0, 4.0, 4.0))),
}


@pytest.mark.parametrize(("geometry", "grid"), SMALL.values(), ids=SMALL.keys())
def test_every_back_projection_is_the_plain_one(geometry, grid):
    shape = (geometry.views, geometry.rows, geometry.columns)
    filtered = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    expected = reference(filtered, geometry, grid)
    scale = np.abs(expected).max()
    kinds = [AnyGeometry, RowsAlongAxis] if geometry.rows_step_along_axis else [AnyGeometry]
    if LANES:
        kinds.append(AnyGeometryInVectors)
    if RowsAlongAxisInVectors.applies(geometry, grid):
        kinds.append(RowsAlongAxisInVectors)
    for kind in kinds:
        for pieces in (1, 3):
            volume = added(kind(geometry, grid), filtered, grid, geometry.views, pieces)
            np.testing.assert_allclose(volume, expected, atol=1e-4 * scale, err_msg=f"{kind.__name__}, {pieces}")


@pytest.mark.skipif(LANES != 16, reason="tiles of several sizes are for AVX-512")
def test_the_size_of_tiles_changes_nothing(monkeypatch):
    geometry, grid = circle(ANGLES[::10]), VolumeGrid((20, 70, 90), (2.0, 1.5, 1.5))
    filtered = np.random.default_rng(0).standard_normal((geometry.views, 64, 72)).astype(np.float32)
    volumes = []
    for edge in (16, 64):
        monkeypatch.setattr("reconstruct.backprojection.tile_edge", lambda *_, edge=edge: edge)
        volumes.append(added(RowsAlongAxisInVectors(geometry, grid), filtered, grid, geometry.views))
    np.testing.assert_allclose(volumes[1], volumes[0], atol=1e-5 * np.abs(volumes[0]).max())
    assert [tile_edge((256, 256, 256), threads) for threads in (1, 2, 8, 64)] == [64, 64, 32, 16]


@pytest.mark.skipif(not LANES, reason="this host has no vector instructions")
@pytest.mark.parametrize(
    ("columns", "rows", "changes"),
    [
        (64, 64, {}),
        (31, 13, {"row_pitch_mm": -3.0}),
        (54, 1, {"column_pitch_mm": -2.8}),
        (100, 37, {}),
        (40, 64, {"principal_point_px": (31.5, 31.5), "column_pitch_mm": 2.8}),
    ],
    ids=["all", "odd and mirrored", "one row", "length with threes", "offset"],
)
@pytest.mark.parametrize("name", ["ram-lak", "hann"])
def test_filtering_into_columns_is_filtering_of_rows(columns, rows, changes, name):
    geometry = circle(ANGLES[::10], rows=rows, columns=columns, **changes)
    measured = redundancy(geometry)
    symmetric = geometry.extended(*measured.missing_columns)
    filtering = Filtering(geometry, symmetric, measured, name, 0.9)
    grid = VolumeGrid((9, 9, 9), (1.0, 1.0, 1.0))
    pixels = np.random.default_rng(0).standard_normal((geometry.views, rows, columns)).astype(np.float32)
    views = slice(0, geometry.views)
    stored = []
    for kind in (RowsAlongAxis, RowsAlongAxisInVectors):
        projector = kind(symmetric, grid)
        buffer = projector.allocate(geometry.views)
        filtering.store(pixels, views, projector, buffer, 1)
        first_row = projector.first_pixel[0] if kind is RowsAlongAxisInVectors else kernels.PAD_LOW
        inside = buffer[:, kernels.PAD_LOW : -kernels.PAD_HIGH, first_row : first_row + rows].copy()
        buffer[:, kernels.PAD_LOW : -kernels.PAD_HIGH, first_row : first_row + rows] = 0
        assert not buffer.any(), "zeros around are part of the layout"
        stored.append(inside)
    np.testing.assert_allclose(stored[1], stored[0], atol=2e-6 * np.abs(stored[0]).max())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processor", "features", "lanes"),
    [("haswell", "+avx,+avx2,+fma,+sse4.1,+sse4.2,+popcnt,+bmi,+bmi2", 8), ("x86-64", "", 0)],
)
@pytest.mark.skipif(platform.machine() != "x86_64", reason="these processors cannot be imitated here")
def test_lesser_processors_compute_the_same(processor, features, lanes):
    if not set(features.replace("+", "").split(",")) - {""} <= {n for n, has in host_features().items() if has}:
        pytest.skip(f"this host has not all of {features}")
    program = textwrap.dedent("""
        import sys
        sys.path.insert(0, sys.argv[1])
        import numpy as np
        from reconstruct.backprojection import AnyGeometry, AnyGeometryInVectors, back_projector
        from reconstruct.geometry import ConeBeamGeometry, VolumeGrid
        from reconstruct.kernels_vectors import LANES
        geometry = ConeBeamGeometry.circular(
            source_to_isocenter_mm=400.0, source_to_detector_mm=600.0, view_angles_rad=np.arange(6), rows=40,
            columns=30, row_pitch_mm=2.0, column_pitch_mm=4.0,
        )
        volumes = []
        for edge in (1.1, 1.6, 2.2):
            grid = VolumeGrid((37, 20, 21), (edge, 3.0, 3.0))
            filtered = np.random.default_rng(0).standard_normal((6, 40, 30), np.float32)
            kinds = [AnyGeometry, AnyGeometryInVectors, back_projector] if LANES else [AnyGeometry, back_projector]
            for kind in kinds:
                projector = kind(geometry, grid)
                buffer = projector.allocate(6)
                projector.store(filtered, buffer, slice(0, 6))
                volumes.append(np.zeros(grid.shape_zyx, np.float32))
                work = projector.begin(volumes[-1])
                projector.add(buffer, slice(0, 6), work, 0)
                projector.finish(work, slice(None), volumes[-1])
                assert np.abs(volumes[-1]).max() > 1
                assert np.abs(volumes[-1] - volumes[0]).max() < 1e-3, edge
            volumes.clear()
        print(LANES, type(projector).__name__)
    """)
    result = subprocess.run(
        [sys.executable, "-c", program, str(Path(__file__).resolve().parents[1])],
        env=os.environ | {"NUMBA_CPU_NAME": processor, "NUMBA_CPU_FEATURES": features},
        capture_output=True, text=True, check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == [str(lanes), "RowsAlongAxisInVectors" if lanes else "RowsAlongAxis"]


def test_the_loops_are_right_without_the_compiler():
    geometry = leaning(yaw=0.1, base=circle(ANGLES[::30], rows=6, columns=5, row_pitch_mm=-9.0, column_pitch_mm=9.0))
    grid = VolumeGrid((3, 4, 5), (12.0, 12.0, 12.0), (3.0, 0.0, -2.0))
    filtered = np.random.default_rng(0).standard_normal((3, 6, 5)).astype(np.float32)
    expected = reference(filtered, geometry, grid)
    matrices = voxel_matrices(geometry, grid)

    general = np.zeros(grid.shape_zyx, np.float32)
    kernels.backproject_any.py_func(np.pad(filtered, ((0, 0), (1, 2), (1, 2))), matrices, general)
    np.testing.assert_allclose(general, expected, atol=1e-5)

    columns = np.zeros((3, 8, 9), np.float32)
    kernels.store_transposed.py_func(filtered, np.zeros(3, bool), kernels.PAD_LOW, columns)
    work = np.zeros((4, 5, 3), np.float32)
    kernels.backproject_along_axis.py_func(columns, matrices, work)
    along = np.zeros(grid.shape_zyx, np.float32)
    kernels.add_transposed.py_func(work, along)
    np.testing.assert_allclose(along, expected, atol=1e-5)


def test_weights_are_the_textbook_ones_for_a_detector_that_faces_the_source():
    geometry = circle()
    ones = np.ones((90, 64, 72), np.float32)
    weighted = np.full((90, 64, 80), np.nan, np.float32)
    kernels.weigh(
        ones,
        np.ones(90),
        np.ones((90, 72), np.float32),
        0,
        geometry.sources,
        geometry.first_pixels(),
        geometry.column_steps,
        geometry.row_steps,
        weighted,
    )
    u = (np.arange(72) - 35.5) * 2.8
    v = (np.arange(64) - 31.5) * 2.8
    # W = 1 / (pitch |q|), that is the cosine of the ray over pitch and distance.
    expected = 1 / (2.8 * np.sqrt(600**2 + u[None, :] ** 2 + v[:, None] ** 2))
    np.testing.assert_allclose(weighted[:, :, :72], np.broadcast_to(expected, (90, 64, 72)), rtol=1e-6)
    assert (weighted[:, :, 72:] == 0).all()


@pytest.fixture(scope="module")
def scan():
    geometry = circle()
    return line_integrals(asymmetric(HALF_WIDTH), geometry), geometry


@pytest.fixture(scope="module")
def volume(scan):
    return fdk(*scan, GRID)


def test_memory_and_threads_change_nothing_but_rounding(scan, volume):
    for memory_mb, threads in [(2, 1), (2, 0), (3, 2), (500, 1)]:
        again = fdk(*scan, GRID, memory_mb=memory_mb, threads=threads)
        np.testing.assert_allclose(again, volume, atol=1e-7)


@pytest.mark.parametrize("geometry", [circle(), leaning(pitch=0.1)], ids=["along axis", "any"])
@pytest.mark.parametrize("memory_mb", [2, 4, 8])
def test_memory_stays_below_what_is_allowed(scan, geometry, memory_mb):
    out = np.empty(GRID.shape_zyx, np.float32)
    fdk(scan[0], geometry, GRID, out=out, memory_mb=memory_mb)
    tracemalloc.start()
    fdk(scan[0], geometry, GRID, out=out, memory_mb=memory_mb)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < memory_mb * 2**20


def test_too_little_memory_is_refused_with_what_is_needed():
    geometry = circle(rows=1200, columns=1000, row_pitch_mm=0.15, column_pitch_mm=0.2)
    with pytest.raises(ValueError, match=r"one view and \d+ lines of \d+ slices, 3\d MiB, got 10 MiB"):
        fdk(np.broadcast_to(np.float32(0), (90, 1200, 1000)), geometry, GRID, memory_mb=10)


def test_projections_and_result_may_be_files(scan, volume, tmp_path):
    np.save(tmp_path / "scan.npy", scan[0])
    out = np.lib.format.open_memmap(tmp_path / "volume.npy", "w+", np.float32, GRID.shape_zyx)
    out[...] = 17
    result = fdk(np.load(tmp_path / "scan.npy", mmap_mode="r"), scan[1], GRID, memory_mb=3, out=out)
    assert result is out
    out.flush()
    np.testing.assert_allclose(np.load(tmp_path / "volume.npy"), volume, atol=1e-7)


def test_projections_may_be_read_view_by_view_and_in_other_types(scan, volume):
    class Views:
        shape = scan[0].shape

        def __getitem__(self, views):
            assert isinstance(views, slice)
            return scan[0][views].astype(np.float64)

    np.testing.assert_allclose(fdk(Views(), scan[1], GRID), volume, atol=1e-7)


def test_the_back_projector_is_the_quick_one_where_it_applies(scan, volume, monkeypatch):
    assert type(back_projector(circle(), GRID)) is (RowsAlongAxisInVectors if LANES else RowsAlongAxis)
    # More than two rows from a voxel to the next, and voxels beside the source.
    assert type(back_projector(circle(row_pitch_mm=0.5), GRID)) is RowsAlongAxis
    assert type(back_projector(circle(), VolumeGrid((5, 41, 43), (25.0, 25.0, 25.0)))) is RowsAlongAxis
    assert isinstance(back_projector(leaning(pitch=0.01), GRID), AnyGeometry)
    monkeypatch.setattr(fdk_module, "back_projector", lambda geometry, grid, _device: AnyGeometry(geometry, grid))
    np.testing.assert_allclose(fdk(*scan, GRID), volume, atol=3e-7)
    with pytest.raises(ValueError, match="row steps along the rotation axis"):
        RowsAlongAxis(leaning(pitch=0.01), GRID)


def test_a_window_smooths_and_keeps_the_mean(scan, volume):
    smooth = fdk(*scan, GRID, filter="hann", cutoff=0.5)
    body = (slice(18, 30), slice(20, 36), slice(34, 46))
    assert smooth[body].mean() == pytest.approx(volume[body].mean(), rel=0.01)
    assert np.abs(np.diff(smooth, axis=2)).mean() < 0.8 * np.abs(np.diff(volume, axis=2)).mean()


def test_progress_is_told_often_and_may_stop_the_work(scan):
    class Stopped(Exception):
        pass

    told = []
    fdk(*scan, GRID, memory_mb=3, progress=told.append)
    assert len(told) >= 8
    assert told == sorted(told)
    assert told[-1] == 1.0
    before = numba.get_num_threads()

    def stop(fraction):
        if fraction > 0.5:
            raise Stopped

    with pytest.raises(Stopped):
        fdk(*scan, GRID, threads=1, progress=stop)
    assert numba.get_num_threads() == before


@pytest.mark.parametrize(
    ("changes", "error", "sentence"),
    [
        ({"projections": np.zeros((90, 64, 71), np.float32)}, ValueError, r"\(90, 64, 72\), got \(90, 64, 71\)"),
        ({"geometry": circle(ANGLES / 2)}, GeometryError, "the fan, .* degrees, got 90 views that cover 178.0"),
        ({"filter": "sharp"}, ValueError, "got 'sharp'"),
        ({"threads": -1}, ValueError, "got -1"),
        ({"out": np.zeros((3, 4, 5), np.float32)}, ValueError, r"\(48, 56, 60\), float32 .* got \(3, 4, 5\)"),
        ({"out": np.zeros(GRID.shape_zyx)}, ValueError, "got .* float64"),
        ({"out": np.zeros(GRID.shape_zyx[::-1], np.float32).T}, ValueError, "not contiguous"),
    ],
)
def test_what_cannot_be_reconstructed_is_refused(scan, changes, error, sentence):
    arguments = {"projections": scan[0], "geometry": scan[1], "grid": GRID} | changes
    with pytest.raises(error, match=sentence):
        fdk(**arguments)


def test_a_view_that_is_not_finite_is_named(scan):
    projections = scan[0].copy()
    projections[37, 3, 4] = np.nan
    with pytest.raises(ValueError, match="view 37 is not"):
        fdk(projections, scan[1], GRID)


def test_quality_figures():
    truth = np.array([[[0.0, 1.0, 2.0, 3.0]]])
    volume = truth + np.array([1.0, 1.0, -1.0, 1.0])
    mask = truth > 0.5
    assert quality.rmse(volume, truth) == pytest.approx(1.0)
    assert quality.bias(volume, truth) == pytest.approx(0.5)
    assert quality.bias(volume, truth, mask) == pytest.approx(1 / 3)
    assert quality.psnr(volume, truth) == pytest.approx(20 * np.log10(3))
    assert quality.psnr(truth, truth) == np.inf
    assert quality.correlation(2 * truth + 1, truth) == pytest.approx(1)
    with pytest.raises(ValueError, match="with voxels in it"):
        quality.rmse(volume, truth, np.zeros_like(mask))
    with pytest.raises(ValueError, match=r"shape \(1, 1, 4\), got \(1, 1, 3\)"):
        quality.rmse(volume[..., :3], truth)


@pytest.mark.parametrize("views", [1, 3, 4, 29, 360, 361])
@pytest.mark.parametrize("longest", [4, 64, 130, 1000])
def test_passes_are_about_equally_long(views: int, longest: int) -> None:
    """None is longer than what fits, and there are no more of them than there have to be."""
    length = fdk_module._equal(views, longest)
    assert length <= longest
    assert -(-views // length) == -(-views // longest)


def test_filtered_views_in_the_memory_of_a_new_volume_change_nothing() -> None:
    """In a given volume, which they must not touch, they have memory of their own."""
    geometry = circle(ANGLES[::9])
    if LANES:
        needed = len(ANGLES[::9]) * back_projector(geometry, GRID).view_bytes
        assert needed + 64 < 4 * np.prod(GRID.shape_zyx)
    projections = np.random.default_rng(8).normal(size=(10, 64, 72)).astype(np.float32)
    given = np.full(GRID.shape_zyx, 7.0, np.float32)
    np.testing.assert_array_equal(fdk(projections, geometry, GRID), fdk(projections, geometry, GRID, out=given))
