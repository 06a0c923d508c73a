"""The back-projection along z in vector instructions: the quick kernel of hosts with AVX-512 or AVX2.

A gather from memory costs more than all else in a back-projection. Where rows step along the axis none is needed:
the `LANES` voxels that follow each other in z read rows that lie within two vectors of rows, so that loads of two
vectors and two permutations of registers fetch both neighbours of every voxel.
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

_TILE = 32
"""Edge of the tiles in x and y; along z they are `LANES` vectors high."""

_VIEWS = 4
"""Views added to a vector of voxels while it is in a register."""

_F = np.float32


def padded_rows(rows: int) -> int:
    """Return the length of a column with its zeros: whole cache lines, and a window that starts behind the last row."""
    return ROW_PAD + -(-rows // 16) * 16 + 48


@njit(inline="always")  # type: ignore[untyped-decorator]
def _windows(above: Any, start: Any, step: Any, last: Any, index: Any, rest: Any, at: int) -> None:
    """Note for `LANES` vectors of voxels where each one's window of rows starts, and its first row in the window.

    A window starts on a whole vector of rows, half a one, or any row, as the step leaves room: those that start on a
    cache line are read quicker.
    """
    mask = np.int32(-LANES) if step <= _F(1.0) else (np.int32(-(LANES // 2)) if step <= _F(1.5) else np.int32(-1))
    rows = multiply_add(above, spread(step), spread(start))
    rows = smaller(larger(rows, spread(_F(-ROW_PAD))), last)
    starts = masked(to_ints(vector_floor(rows)), mask)
    vector_store(rest, at, vector_subtract(rows, to_floats(starts)))
    vector_store(index, at, starts)


@njit(inline="always")  # type: ignore[untyped-decorator]
def _added(total: Any, pixels: Any, window: Any, height: int, left: Any, right: Any, rise: Any, rest: Any) -> Any:
    """`total` and one view of `LANES` voxels: blended across columns, permuted, interpolated along rows."""
    rows = vector_add(rise, spread(rest))
    below = vector_floor(rows)
    index = to_ints(below)
    low = multiply_add(right, vector_load(pixels, window + height), vector_multiply(left, vector_load(pixels, window)))
    high = multiply_add(
        right,
        vector_load(pixels, window + height + LANES),
        vector_multiply(left, vector_load(pixels, window + LANES)),
    )
    near = permute(low, index, high)
    far = permute(low, vector_next(index), high)
    return vector_add(total, multiply_add(vector_subtract(rows, below), vector_subtract(far, near), near))


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract", "nsz"})  # type: ignore[untyped-decorator]
def _place(m: Any, y: int, x0: int, x1: int, shape: Any, base: int, live: Any, out: Any, offsets: Any) -> bool:
    """Note for the voxel columns (y, x0 to x1) where one view sees them; tell whether it sees any.

    `out` (4, x) takes the weights of the left and the right column, the row of slice 0 and the row step; `offsets`
    (x,) where the left column starts. What is not seen gets weights of 0, and so does a view that is not `live`.
    """
    width, height = shape
    last = float(width - PAD_HIGH)
    any_seen = False
    for i in range(x1 - x0):
        x = float(x0 + i)
        depth = m[2, 0] * x + m[2, 1] * y + m[2, 3]
        inverse = 1.0 / depth if depth > NEAREST_DEPTH else 0.0
        column = (m[0, 0] * x + m[0, 1] * y + m[0, 3]) * inverse
        inside = live and column > 0.0 and column < last
        column = column if inside else 0.0
        inverse = inverse if inside else 0.0
        whole = np.int64(column)
        weight = inverse * inverse
        right = weight * (column - whole)
        out[0, i] = weight - right
        out[1, i] = right
        out[2, i] = (m[1, 0] * x + m[1, 1] * y + m[1, 3]) * inverse
        out[3, i] = m[1, 2] * inverse
        offsets[i] = base + whole * height
        any_seen |= inside
    return any_seen


@njit(cache=True, nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _add_tile(
    projections: Any, matrices: Any, rows: int, volume: Any, y0: int, y1: int, x0: int, x1: int, z0: int, z1: int
) -> None:
    """Add all views to the voxels y0 to y1, x0 to x1, z0 to z1; z in vectors."""
    views, width, height = projections.shape
    voxels, slices = volume.shape[1], volume.shape[2]
    pixels, sums = projections.reshape(-1), volume.reshape(-1)
    places = np.empty((_VIEWS, 4, _TILE), _F)
    offsets = np.empty((_VIEWS, _TILE), np.int64)
    index = np.empty(_VIEWS * LANES, np.int32)
    rest = np.empty(_VIEWS * LANES, _F)
    lane = lanes()
    above = vector_multiply(vector_add(lane, spread(_F(z0))), spread(_F(LANES)))
    last = spread(_F((rows + 15) // 16 * 16))
    for first in range(0, views, _VIEWS):
        for y in range(y0, y1):
            seen = False
            for k in range(_VIEWS):
                view = min(first + k, views - 1)
                base = view * width * height + ROW_PAD
                live = first + k < views
                seen |= _place(matrices[view], y, x0, x1, (width, height), base, live, places[k], offsets[k])
            if not seen:
                continue
            for i in range(x1 - x0):
                for k in range(_VIEWS):
                    _windows(above, places[k, 2, i], places[k, 3, i], last, index, rest, k * LANES)
                left0, right0 = spread(places[0, 0, i]), spread(places[0, 1, i])
                left1, right1 = spread(places[1, 0, i]), spread(places[1, 1, i])
                left2, right2 = spread(places[2, 0, i]), spread(places[2, 1, i])
                left3, right3 = spread(places[3, 0, i]), spread(places[3, 1, i])
                rise0 = vector_multiply(lane, spread(places[0, 3, i]))
                rise1 = vector_multiply(lane, spread(places[1, 3, i]))
                rise2 = vector_multiply(lane, spread(places[2, 3, i]))
                rise3 = vector_multiply(lane, spread(places[3, 3, i]))
                at = (y * voxels + x0 + i) * slices + z0 * LANES
                for z in range(z1 - z0):
                    total = vector_load(sums, at + z * LANES)
                    window = offsets[0, i] + index[z]
                    total = _added(total, pixels, window, height, left0, right0, rise0, rest[z])
                    window = offsets[1, i] + index[LANES + z]
                    total = _added(total, pixels, window, height, left1, right1, rise1, rest[LANES + z])
                    window = offsets[2, i] + index[2 * LANES + z]
                    total = _added(total, pixels, window, height, left2, right2, rise2, rest[2 * LANES + z])
                    window = offsets[3, i] + index[3 * LANES + z]
                    total = _added(total, pixels, window, height, left3, right3, rise3, rest[3 * LANES + z])
                    vector_store(sums, at + z * LANES, total)


@njit(parallel=True, cache=True, nogil=True)  # type: ignore[untyped-decorator]
def backproject_along_axis_simd(
    projections: NDArray[np.float32], matrices: NDArray[np.float64], rows: int, volume: NDArray[np.float32]
) -> None:
    """Add the back-projection of (view, padded column, padded row) to `volume` (y, x, z), where rows step along z.

    Columns are `padded_rows` of `rows` long, their row 0 at index `ROW_PAD`, and rows run towards +z; the matrices
    map to row 0, not to its padded index, and to padded columns. z is a multiple of `LANES`; the row step stays below
    `STEEPEST` everywhere in the volume.
    """
    lines, voxels, slices = volume.shape
    tiles_x, tiles_y = (voxels + _TILE - 1) // _TILE, (lines + _TILE - 1) // _TILE
    vectors = slices // LANES
    tiles_z = (vectors + LANES - 1) // LANES
    for task in prange(tiles_x * tiles_y * tiles_z):
        z0 = task % tiles_z * LANES
        x0 = task // tiles_z % tiles_x * _TILE
        y0 = task // tiles_z // tiles_x * _TILE
        y1, x1, z1 = min(y0 + _TILE, lines), min(x0 + _TILE, voxels), min(z0 + LANES, vectors)
        _add_tile(projections, matrices, rows, volume, y0, y1, x0, x1, z0, z1)
