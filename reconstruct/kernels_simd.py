"""The back-projection along z in vector instructions: the quick kernel of hosts with AVX-512 or AVX2.

A gather from memory costs more than all else in a back-projection. Where rows step along the axis none is needed:
the `LANES` voxels that follow each other in z read rows that lie within two vectors of rows, so that loads of two
vectors and two permutations of registers fetch both neighbours of every voxel.

Two ways to do so. *Wide*: a window of two vectors, from which a permutation of two sources takes the near and another
the far neighbours; AVX-512 has that instruction. *Narrow*, while the row advances by less than 1 from voxel to voxel:
the near neighbours lie in one vector and the far ones in the vector one row later; one source is enough, which is all
that AVX2 permutes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

from reconstruct.kernels import NEAREST_DEPTH, PAD_HIGH
from reconstruct.kernels_vectors import (
    LANES,
    lanes,
    larger,
    masked,
    multiply_add,
    permute,
    pick,
    smaller,
    spread,
    to_floats,
    to_ints,
    vector_add,
    vector_floor,
    vector_load,
    vector_multiply,
    vector_next,
    vector_store,
    vector_subtract,
)

ROW_PAD = 48
"""Zeros before the first row; a multiple of 16, so that vectors of rows start on cache lines."""

STEEPEST = 1.98
"""From one voxel to the next along z the row must advance by less, for two vectors to hold what `LANES` read."""

_TILE = 16
"""Edge of the tiles in x and y: what they read of `_VIEWS` views stays in the level-2 cache."""

_VIEWS = 8
"""Views added to the sums of voxels while these are in registers."""

_SUMS = 4
"""Vectors of sums that are in registers at the same time."""

_NARROW = 0.999
"""Row steps below let `LANES` voxels read one vector of rows, with room for the rounding of float32."""

_F = np.float32


def padded_rows(rows: int) -> int:
    """Return the length of a column with its zeros: whole cache lines, and a window that starts behind the last row."""
    return ROW_PAD + -(-rows // 16) * 16 + 48


@njit(inline="always")  # type: ignore[untyped-decorator]
def _windows(above: Any, start: Any, step: Any, last: Any, index: Any, rest: Any, at: int) -> None:
    """Note for `LANES` vectors of voxels where each one's window of rows starts, and its first row in the window.

    A wide window starts on a whole vector of rows, half a one, or any row, as the step leaves room: those that start
    on a cache line are read quicker. A narrow one starts at the first voxel's row.
    """
    mask = np.int32(-1)
    if LANES == 16:
        mask = np.int32(-16) if step <= _F(1.0) else (np.int32(-8) if step <= _F(1.5) else np.int32(-1))
    rows = multiply_add(above, spread(step), spread(start))
    rows = smaller(larger(rows, spread(_F(-ROW_PAD))), last)
    starts = masked(to_ints(vector_floor(rows)), mask)
    vector_store(rest, at, vector_subtract(rows, to_floats(starts)))
    vector_store(index, at, starts)


@njit(inline="always")  # type: ignore[untyped-decorator]
def _wide(total: Any, pixels: Any, window: Any, height: int, left: Any, right: Any, rise: Any, rest: Any) -> Any:
    """`total` and one view of `LANES` voxels: blended across columns, permuted, interpolated along rows."""
    rows = vector_add(rise, spread(rest))
    below = vector_floor(rows)
    index = to_ints(rows)
    low = multiply_add(right, vector_load(pixels, window + height), vector_multiply(left, vector_load(pixels, window)))
    high = multiply_add(
        right,
        vector_load(pixels, window + height + LANES),
        vector_multiply(left, vector_load(pixels, window + LANES)),
    )
    near = permute(low, index, high)
    far = permute(low, vector_next(index), high)
    return vector_add(total, multiply_add(vector_subtract(rows, below), vector_subtract(far, near), near))


@njit(inline="always")  # type: ignore[untyped-decorator]
def _narrow(total: Any, pixels: Any, window: Any, height: int, left: Any, right: Any, rise: Any, rest: Any) -> Any:
    """The same where a step is below `_NARROW`."""
    rows = vector_add(rise, spread(rest))
    below = vector_floor(rows)
    index = to_ints(rows)
    low = multiply_add(right, vector_load(pixels, window + height), vector_multiply(left, vector_load(pixels, window)))
    high = multiply_add(
        right, vector_load(pixels, window + height + 1), vector_multiply(left, vector_load(pixels, window + 1))
    )
    near = pick(low, index)
    far = pick(high, index)
    return vector_add(total, multiply_add(vector_subtract(rows, below), vector_subtract(far, near), near))


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract", "nsz"})  # type: ignore[untyped-decorator]
def _place(
    m: Any, y: int, x0: int, voxels: int, shape: Any, left: Any, right: Any, start: Any, step: Any, offset: Any
) -> None:
    """Note for the voxel columns (y, x0 and the following) where one view sees them, arrays of float32 (x,).

    That is: weights of the left and the right column, row of slice 0, row step, and, int32, where the left column
    starts. What is not seen gets weights of 0.
    """
    width, height = shape
    last = float(width - PAD_HIGH)
    depth0 = m[2, 0] * x0 + m[2, 1] * y + m[2, 3]
    column0 = m[0, 0] * x0 + m[0, 1] * y + m[0, 3]
    row0 = m[1, 0] * x0 + m[1, 1] * y + m[1, 3]
    for i in range(voxels):
        x = float(np.int32(i))
        depth = depth0 + m[2, 0] * x
        inverse = 1.0 / depth
        column = (column0 + m[0, 0] * x) * inverse
        inside = (depth > NEAREST_DEPTH) & (column > 0.0) & (column < last)
        column = column if inside else 0.0
        inverse = inverse if inside else 0.0
        whole = np.int32(column)
        weight = inverse * inverse
        share = weight * (column - whole)
        left[i] = weight - share
        right[i] = share
        start[i] = (row0 + m[1, 0] * x) * inverse
        step[i] = m[1, 2] * inverse
        offset[i] = whole * np.int32(height)


@njit(inline="always")  # type: ignore[untyped-decorator]
def _add_views(
    pixels: Any, base: int, stride: int, height: int, places: Any, offsets: Any, i: int, views: int,
    index: Any, rest: Any, first: int, sums: Any, at: int,
) -> None:  # fmt: skip
    """Add `views` views to `_SUMS` vectors of voxels, whose windows are noted from `first` on."""
    lane = lanes()
    total0, total1 = vector_load(sums, at), vector_load(sums, at + LANES)
    total2, total3 = vector_load(sums, at + 2 * LANES), vector_load(sums, at + 3 * LANES)
    for k in range(views):
        w = base + k * stride + offsets[k, i]
        n = first + k * LANES
        step = places[k, 3, i]
        left, right, rise = spread(places[k, 0, i]), spread(places[k, 1, i]), vector_multiply(lane, spread(step))
        if LANES == 8 and step < _F(_NARROW):
            total0 = _narrow(total0, pixels, w + index[n], height, left, right, rise, rest[n])
            total1 = _narrow(total1, pixels, w + index[n + 1], height, left, right, rise, rest[n + 1])
            total2 = _narrow(total2, pixels, w + index[n + 2], height, left, right, rise, rest[n + 2])
            total3 = _narrow(total3, pixels, w + index[n + 3], height, left, right, rise, rest[n + 3])
        else:
            total0 = _wide(total0, pixels, w + index[n], height, left, right, rise, rest[n])
            total1 = _wide(total1, pixels, w + index[n + 1], height, left, right, rise, rest[n + 1])
            total2 = _wide(total2, pixels, w + index[n + 2], height, left, right, rise, rest[n + 2])
            total3 = _wide(total3, pixels, w + index[n + 3], height, left, right, rise, rest[n + 3])
    vector_store(sums, at, total0)
    vector_store(sums, at + LANES, total1)
    vector_store(sums, at + 2 * LANES, total2)
    vector_store(sums, at + 3 * LANES, total3)


@njit(inline="always")  # type: ignore[untyped-decorator]
def _add_views_to_one(
    pixels: Any, base: int, stride: int, height: int, places: Any, offsets: Any, i: int, views: int,
    index: Any, rest: Any, first: int, sums: Any, at: int,
) -> None:  # fmt: skip
    """Add `views` views to one vector of voxels."""
    lane = lanes()
    total = vector_load(sums, at)
    for k in range(views):
        w = base + k * stride + offsets[k, i]
        n = first + k * LANES
        left, right = spread(places[k, 0, i]), spread(places[k, 1, i])
        rise = vector_multiply(lane, spread(places[k, 3, i]))
        total = _wide(total, pixels, w + index[n], height, left, right, rise, rest[n])
    vector_store(sums, at, total)


@njit(cache=True, nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _add_tile(projections: Any, matrices: Any, rows: int, volume: Any, y0: int, y1: int, x0: int, x1: int) -> None:
    """Add all views to the voxels y0 to y1, x0 to x1."""
    views, width, height = projections.shape
    voxels, slices = volume.shape[1], volume.shape[2]
    vectors = slices // LANES
    pixels, sums = projections.reshape(-1), volume.reshape(-1)
    places, offsets = np.empty((_VIEWS, 4, _TILE), _F), np.empty((_VIEWS, _TILE), np.int32)
    index, rest = np.empty(_VIEWS * LANES, np.int32), np.empty(_VIEWS * LANES, _F)
    lane = lanes()
    last = spread(_F((rows + 15) // 16 * 16))
    stride = width * height
    for view in range(0, views, _VIEWS):
        count = min(_VIEWS, views - view)
        base = view * stride + ROW_PAD
        for y in range(y0, y1):
            for k in range(count):
                place, m = places[k], matrices[view + k]
                _place(m, y, x0, x1 - x0, (width, height), place[0], place[1], place[2], place[3], offsets[k])
            for z in range(0, vectors, LANES):
                above = vector_multiply(vector_add(lane, spread(_F(z))), spread(_F(LANES)))
                end = min(LANES, vectors - z)
                for i in range(x1 - x0):
                    for k in range(count):
                        _windows(above, places[k, 2, i], places[k, 3, i], last, index, rest, k * LANES)
                    at = (y * voxels + x0 + i) * slices + z * LANES
                    whole = end // _SUMS * _SUMS
                    for first in range(0, whole, _SUMS):
                        _add_views(
                            pixels, base, stride, height, places, offsets, i, count, index, rest, first,
                            sums, at + first * LANES,
                        )  # fmt: skip
                    for first in range(whole, end):
                        _add_views_to_one(
                            pixels, base, stride, height, places, offsets, i, count, index, rest, first,
                            sums, at + first * LANES,
                        )  # fmt: skip


@njit(parallel=True, cache=True, nogil=True)  # type: ignore[untyped-decorator]
def backproject_along_axis_simd(
    projections: NDArray[np.float32], matrices: NDArray[np.float64], rows: int, volume: NDArray[np.float32]
) -> None:
    """Add the back-projection of (view, padded column, padded row) to `volume` (y, x, z), where rows step along z.

    Columns are `padded_rows` of `rows` long, their row 0 at index `ROW_PAD`, and rows run towards +z; the matrices
    map to row 0, not to its padded index, and to padded columns. z is a multiple of `LANES`; the row step stays below
    `STEEPEST` everywhere in the volume.
    """
    lines, voxels, _ = volume.shape
    tiles_x, tiles_y = (voxels + _TILE - 1) // _TILE, (lines + _TILE - 1) // _TILE
    for task in prange(tiles_x * tiles_y):
        x0, y0 = task % tiles_x * _TILE, task // tiles_x * _TILE
        _add_tile(projections, matrices, rows, volume, y0, min(y0 + _TILE, lines), x0, min(x0 + _TILE, voxels))
