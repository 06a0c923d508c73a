"""The back-projection along z of hosts with AVX-512: four views at once, their sum in a register.

As in `reconstruct.kernels_simd`, the sixteen voxels that follow each other in z read rows within a window of two
vectors, and two permutations bring every voxel its neighbours. But there are registers enough for the weights and steps
of four views, so that a column of voxels is read and written once for four, and two loads of a cache line cost less
than a blended column that is stored first: columns are blended as they are read.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

from reconstruct.kernels import PAD_HIGH
from reconstruct.kernels_simd import LOWEST, ROW_PAD, fetch_column, part_seen
from reconstruct.kernels_vectors import (
    LANES,
    floor_to_ints,
    int_add,
    int_at,
    lanes,
    larger,
    masked,
    multiply_add,
    permute,
    smaller,
    spread,
    spread_at,
    spread_int,
    to_floats,
    to_ints,
    vector_add,
    vector_load,
    vector_multiply,
    vector_next,
    vector_store,
    vector_subtract,
)

_EDGE = 64
"""Edge of the tiles in x and y: what a tile reads of `_VIEWS` views, and of the next, stays in the level-2 cache."""

_LEAST_EDGE = 16
"""Smaller ones waste the work of starting a line."""

_TASKS = 4
"""Tiles for each thread at least, as long as they need not be smaller than that."""

_VIEWS = 4
"""Views added in one pass over a tile; `_add_views` names each."""

_VECTORS = 16
"""Vectors along z worked on together: what differs between them is computed in a vector."""

_NOTED = _VIEWS * _VECTORS
"""Windows of a column of voxels."""

_F = np.float32


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract", "nsz"})  # type: ignore[untyped-decorator]
def _place(m: Any, y: int, x0: int, z0: int, weight: float, shape: Any, origin: int, place: Any, column: Any) -> None:
    """Note for the voxel columns (y, x0 and the following) where one view sees them.

    Parameters
    ----------
    weight
        Of the view: 1, or 0 where there are no more views.
    shape
        Voxels, padded columns and rows of a view.
    origin
        Where the view's row 0 of the first padded column lies.
    place
        (4, at least voxels): weights of the left and of the right column, 0 for what is not seen; rows of slice z0;
        row steps.
    column
        Where row 0 of the left column lies.
    """
    voxels, width, height = shape
    last = float(width - PAD_HIGH)
    lefts, rights, rows, steps = place[0], place[1], place[2], place[3]
    column_step, row_step, depth_step, slope = m[0, 0], m[1, 0], m[2, 0], m[1, 2]
    column0 = column_step * x0 + m[0, 1] * y + m[0, 3]
    row0 = row_step * x0 + m[1, 1] * y + slope * z0 + m[1, 3]
    depth0 = depth_step * x0 + m[2, 1] * y + m[2, 3]
    for i in range(voxels):
        k = np.uint64(i)
        x = float(np.int32(i))
        inverse = 1.0 / (depth0 + depth_step * x)
        across = (column0 + column_step * x) * inverse
        inside = (across > 0.0) & (across < last)
        across = across if inside else 0.0
        whole = inverse * inverse * weight if inside else 0.0
        left_column = np.int32(across)
        share = whole * (across - left_column)
        lefts[k], rights[k] = whole - share, share
        rows[k], steps[k] = (row0 + row_step * x) * inverse, slope * inverse
        column[k] = np.int32(origin) + left_column * np.int32(height)


@njit(inline="always")  # type: ignore[untyped-decorator]
def _windows(places: Any, columns: Any, i: int, last: Any, index: Any, rest: Any, at: int) -> None:
    """Note for the vectors of a column of voxels where their windows start, and their first row in the window.

    A window starts on a whole vector of rows, half a one, or any row, as the step leaves room: those that start on a
    cache line are read quicker.
    """
    for k in range(_VIEWS):
        step = places[k, 3, i]
        mask = np.int32(-16) if step <= _F(1.0) else (np.int32(-8) if step <= _F(1.5) else np.int32(-1))
        rows = multiply_add(lanes(), spread(step * _F(LANES)), spread(places[k, 2, i]))
        rows = smaller(larger(rows, spread(_F(LOWEST))), last)
        starts = masked(floor_to_ints(rows), mask)
        vector_store(rest, at + k * _VECTORS, vector_subtract(rows, to_floats(starts)))
        vector_store(index, at + k * _VECTORS, int_add(starts, spread_int(columns[k, i])))


@njit(inline="always")  # type: ignore[untyped-decorator]
def _seen(total: Any, pixels: Any, height: int, index: Any, rest: Any, at: int, view: Any) -> Any:
    """`total` and what a view adds to the voxels of a vector, whose window is noted `at` a place."""
    left, right, steps = view
    window = int_at(index, at)
    rows = vector_add(steps, spread_at(rest, at))
    near_row = to_ints(rows)
    low = vector_multiply(left, vector_load(pixels, window))
    low = multiply_add(right, vector_load(pixels, window + height), low)
    high = vector_multiply(left, vector_load(pixels, window + LANES))
    high = multiply_add(right, vector_load(pixels, window + height + LANES), high)
    near, far = permute(low, near_row, high), permute(low, vector_next(near_row), high)
    share = vector_subtract(rows, to_floats(near_row))
    return vector_add(total, multiply_add(share, vector_subtract(far, near), near))


@njit(inline="always")  # type: ignore[untyped-decorator]
def _view(places: Any, k: int, i: int) -> Any:
    """Weights of the columns, and the rows of a vector of voxels from the first one on."""
    return spread(places[k, 0, i]), spread(places[k, 1, i]), vector_multiply(lanes(), spread(places[k, 3, i]))


@njit(inline="always")  # type: ignore[untyped-decorator]
def _add_views(
    pixels: Any, height: int, places: Any, i: int, index: Any, rest: Any, noted: int, vectors: int, sums: Any, at: int
) -> None:
    """Add `_VIEWS` views to vectors of voxels from `at` on."""
    a, b, c, d = _view(places, 0, i), _view(places, 1, i), _view(places, 2, i), _view(places, 3, i)
    for v in range(vectors):
        total, here = vector_load(sums, at + v * LANES), noted + v
        total = _seen(total, pixels, height, index, rest, here, a)
        total = _seen(total, pixels, height, index, rest, here + _VECTORS, b)
        total = _seen(total, pixels, height, index, rest, here + 2 * _VECTORS, c)
        total = _seen(total, pixels, height, index, rest, here + 3 * _VECTORS, d)
        vector_store(sums, at + v * LANES, total)


@njit(inline="always")  # type: ignore[untyped-decorator]
def _is_seen(places: Any, i: int) -> bool:
    """Whether any of the views sees a column of voxels."""
    total = _F(0.0)
    for k in range(_VIEWS):
        total += places[k, 0, i] + places[k, 1, i]
    return bool(total > _F(0.0))


@njit(cache=True, nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _add_tile(
    projections: Any, matrices: Any, rows: int, volume: Any, y0: int, y1: int, x0: int, x1: int, z0: int, vectors: int
) -> None:
    """Add all views to the voxels y0 to y1, x0 to x1, and `vectors` vectors from z0 on.

    Meanwhile, what the next views will be read for is fetched, and the windows of the next column of voxels are noted,
    so that nothing waits for them.
    """
    views, width, height = projections.shape
    voxels, slices = volume.shape[1], volume.shape[2]
    pixels, sums = projections.reshape(-1), volume.reshape(-1)
    stride = width * height
    places, columns = np.empty((_VIEWS, 4, x1 - x0), _F), np.empty((_VIEWS, x1 - x0), np.int32)
    index, rest = np.empty(2 * _NOTED, np.int32), np.empty(2 * _NOTED, _F)
    parts = np.empty((_VIEWS, 4), np.int64)
    last = spread(_F((rows + 15) // 16 * 16))
    for view in range(0, views, _VIEWS):
        following = view + _VIEWS
        for k in range(min(_VIEWS, views - following)):
            part_seen(matrices[following + k], y0, y1, x0, x1, z0, z0 + vectors * LANES, (width, rows), parts[k])
        group = pixels[view * stride :]
        for y in range(y0, y1):
            for k in range(_VIEWS):
                number = min(k, views - 1 - view)
                weight = 1.0 if number == k else 0.0
                shape = (x1 - x0, width, height)
                origin = number * stride + ROW_PAD
                _place(matrices[view + number], y, x0, z0, weight, shape, origin, places[k], columns[k])
            _windows(places, columns, 0, last, index, rest, 0)
            for i in range(x1 - x0):
                noted = (i & 1) * _NOTED
                _windows(places, columns, min(i + 1, x1 - x0 - 1), last, index, rest, _NOTED - noted)
                if i % _VIEWS == 0:
                    turn = ((y - y0) * (x1 - x0) + i) // _VIEWS
                    if following + turn % _VIEWS < views:
                        k = turn % _VIEWS
                        fetch_column(pixels, following + k, stride, height, parts[k], turn // _VIEWS)
                if _is_seen(places, i):
                    at = (y * voxels + x0 + i) * slices + z0
                    _add_views(group, height, places, i, index, rest, noted, vectors, sums, at)


def tile_edge(shape: tuple[int, ...], threads: int) -> int:
    """Return the edge of tiles of a volume (y, x, z), so that there are enough of them for the threads."""
    lines, voxels, slices = shape
    parts = -(-slices // (_VECTORS * LANES))
    edge = _EDGE
    while edge > _LEAST_EDGE and -(-lines // edge) * -(-voxels // edge) * parts < _TASKS * threads:
        edge //= 2
    return edge


@njit(parallel=True, cache=True, nogil=True)  # type: ignore[untyped-decorator]
def backproject_along_axis_wide(
    projections: NDArray[np.float32], matrices: NDArray[np.float64], rows: int, volume: NDArray[np.float32], edge: int
) -> None:
    """As `reconstruct.kernels_simd.backproject_along_axis_simd`, for 16 `LANES`, by tiles of that edge in x and y."""
    lines, voxels, slices = volume.shape
    parts = (slices // LANES + _VECTORS - 1) // _VECTORS
    tiles_x, tiles_y = (voxels + edge - 1) // edge, (lines + edge - 1) // edge
    for task in prange(tiles_x * tiles_y * parts):
        first, tile = task % parts * _VECTORS, task // parts
        x0, y0 = tile % tiles_x * edge, tile // tiles_x * edge
        vectors = min(_VECTORS, slices // LANES - first)
        y1, x1 = min(y0 + edge, lines), min(x0 + edge, voxels)
        _add_tile(projections, matrices, rows, volume, y0, y1, x0, x1, first * LANES, vectors)
