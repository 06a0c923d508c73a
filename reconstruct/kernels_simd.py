"""The back-projection along z in vector instructions: the quick kernel of hosts with AVX2.

A gather from memory costs more than all else in a back-projection. Where rows step along the axis none is needed. For
a column of voxels the two columns of pixels beside it are blended into one, which lies in the level-1 cache. Then the
`LANES` voxels that follow each other in z read rows of it that lie within two vectors: a *window*. Three ways to
interpolate in it, by the step of the row from voxel to voxel:

- *Level*, near 1: a voxel lies less than a row from the row at its own place in the window, so that its other
  neighbour is the row one place before or behind. Nothing is permuted.
- *Narrow*, below 1: the lines between each two rows lie in one vector, and a permutation of one source, all that AVX2
  has, brings every voxel its own.
- *Wide*, below 2: from a window of two vectors, a permutation of two sources takes the near and another the far
  neighbours. It is two permutations and a choice here; AVX-512 has it as one instruction, and its kernel,
  `reconstruct.kernels_simd_wide`, does all like this.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

from reconstruct.kernels import PAD_HIGH
from reconstruct.kernels_vectors import (
    LANES,
    fetch,
    int_at,
    lanes,
    larger,
    magnitude,
    multiply_add,
    permute,
    pick,
    pick_by_sign,
    smaller,
    spread,
    spread_at,
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
"""Edge of the tiles in x and y: what they read of `_VIEWS` views, and of the next, stays in the level-2 cache."""

_VIEWS = 4
"""Views added in one pass over a tile."""

_DEPTH = 256
"""Slices worked on together: their voxels of a column, and the pixels that these read, stay in the level-1 cache."""

_VECTORS = _DEPTH // max(LANES, 1)
"""Vectors of that."""

_SPAN = 2 * _DEPTH + 48
"""Rows that these read, and the rest of whole vectors."""

_LEVEL = 0.142
"""Row steps that differ less from 1 move no voxel of eight by a row, half a row of rounding included."""

_NARROW = 0.999
"""Row steps below let `LANES` voxels read one vector of lines, with room for the rounding of float32."""

LOWEST = 16 - ROW_PAD
"""Voxels whose rows lie lower read zeros from there on."""

_F = np.float32


def padded_rows(rows: int) -> int:
    """Return the length of a column with its zeros: whole cache lines, and a window that starts behind the last row."""
    return ROW_PAD + -(-rows // 16) * 16 + 48


@njit(inline="always")  # type: ignore[untyped-decorator]
def _is_level(step: Any) -> Any:
    return abs(step - _F(1.0)) < _F(_LEVEL)


@njit(inline="always")  # type: ignore[untyped-decorator]
def _windows(start: Any, step: Any, numbers: Any, vectors: int, last: Any, index: Any, rest: Any) -> None:
    """Note for vectors of voxels where each one's window of rows starts, and its first row in the window.

    A window starts at the first voxel's row; a level one so that its middle is nearest to that of the voxels.
    """
    shift = _F(0.0)
    if _is_level(step):
        shift = _F(0.5) + _F((LANES - 1) / 2) * (step - _F(1.0))
    for first in range(0, vectors, LANES):
        rows = multiply_add(vector_load(numbers, first), spread(step * _F(LANES)), spread(start))
        rows = smaller(larger(rows, spread(_F(LOWEST))), last)
        starts = to_ints(vector_floor(vector_add(rows, spread(shift))))
        vector_store(rest, first, vector_subtract(rows, to_floats(starts)))
        vector_store(index, first, starts)


@njit(inline="always")  # type: ignore[untyped-decorator]
def _blend(pixels: Any, column: int, height: int, left: Any, right: Any, vectors: int, blended: Any) -> None:
    """Blend rows of a column and the next one, `vectors` vectors from `column` on, into one column."""
    before, behind = spread(left), spread(right)
    for row in range(0, vectors * LANES, LANES):
        value = vector_multiply(before, vector_load(pixels, column + row))
        vector_store(blended, row, multiply_add(behind, vector_load(pixels, column + height + row), value))


@njit(inline="always")  # type: ignore[untyped-decorator]
def _level(total: Any, blended: Any, window: int, slope: Any, rest: Any) -> Any:
    """`total` and `LANES` voxels, interpolated between the rows at their places and those before or behind."""
    away = multiply_add(lanes(), vector_subtract(slope, spread(_F(1.0))), rest)
    there = vector_load(blended, window)
    beside = pick_by_sign(away, vector_load(blended, window - 1), vector_load(blended, window + 1))
    return multiply_add(magnitude(away), vector_subtract(beside, there), vector_add(total, there))


@njit(inline="always")  # type: ignore[untyped-decorator]
def _narrow(total: Any, blended: Any, window: int, slope: Any, rest: Any) -> Any:
    """The same by permutations of one source: every line from a row to the next is its foot at row 0, and its rise."""
    rows = multiply_add(lanes(), slope, rest)
    index = to_ints(rows)
    low = vector_load(blended, window)
    rise = vector_subtract(vector_load(blended, window + 1), low)
    foot = multiply_add(vector_multiply(lanes(), spread(_F(-1.0))), rise, low)
    return multiply_add(rows, pick(rise, index), vector_add(total, pick(foot, index)))


@njit(inline="always")  # type: ignore[untyped-decorator]
def _wide(total: Any, blended: Any, window: int, slope: Any, rest: Any) -> Any:
    """The same by permutations of two sources."""
    rows = multiply_add(lanes(), slope, rest)
    index = to_ints(rows)
    low, high = vector_load(blended, window), vector_load(blended, window + LANES)
    near = permute(low, index, high)
    far = permute(low, vector_next(index), high)
    return multiply_add(vector_subtract(rows, vector_floor(rows)), vector_subtract(far, near), vector_add(total, near))


@njit(inline="always")  # type: ignore[untyped-decorator]
def _add_column(blended: Any, base: int, step: Any, index: Any, rest: Any, vectors: int, sums: Any, at: int) -> None:
    """Add a blended column, whose row 0 would lie at `base`, to vectors of voxels."""
    slope = spread(step)
    if _is_level(step):
        for v in range(vectors):
            window, place = base + int_at(index, v), at + v * LANES
            vector_store(sums, place, _level(vector_load(sums, place), blended, window, slope, spread_at(rest, v)))
    elif step < _F(_NARROW):
        for v in range(vectors):
            window, place = base + int_at(index, v), at + v * LANES
            vector_store(sums, place, _narrow(vector_load(sums, place), blended, window, slope, spread_at(rest, v)))
    else:
        for v in range(vectors):
            window, place = base + int_at(index, v), at + v * LANES
            vector_store(sums, place, _wide(vector_load(sums, place), blended, window, slope, spread_at(rest, v)))


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract", "nsz"})  # type: ignore[untyped-decorator]
def _place(m: Any, y: int, x0: int, voxels: int, z0: int, shape: Any, place: Any, column: Any, base: Any) -> None:
    """Note for the voxel columns (y, x0 and the following) where one view sees them.

    Parameters
    ----------
    shape
        Padded columns and rows of a view, the last row, and vectors of rows that are blended.
    place
        `_TILE` numbers each, one after the other: weights of the left and of the right column, 0 for what is not seen;
        rows of slice 0; row steps. One array, for the compiler to see that nothing overlaps.
    column, base
        Where the rows to be blended start, from the view's first pixel on, and where in the blended ones row 0 lies.
    """
    width, height, last_row, blended = shape
    last = float(width - PAD_HIGH)
    column_step, row_step, depth_step, slope = m[0, 0], m[1, 0], m[2, 0], m[1, 2]
    column0 = column_step * x0 + m[0, 1] * y + m[0, 3]
    row0 = row_step * x0 + m[1, 1] * y + m[1, 3]
    depth0 = depth_step * x0 + m[2, 1] * y + m[2, 3]
    for i in range(voxels):
        k = np.uint64(i)
        x = float(np.int32(i))
        inverse = 1.0 / (depth0 + depth_step * x)
        across = (column0 + column_step * x) * inverse
        inside = (across > 0.0) & (across < last)
        across = across if inside else 0.0
        weight = inverse * inverse if inside else 0.0
        left_column = np.int32(across)
        share = weight * (across - left_column)
        row, step = (row0 + row_step * x) * inverse, slope * inverse
        place[k] = weight - share
        place[k + np.uint64(_TILE)] = share
        place[k + np.uint64(2 * _TILE)] = row
        place[k + np.uint64(3 * _TILE)] = step
        lowest = min(max(row + step * z0, float(LOWEST)), float(last_row)) + (ROW_PAD - 2)  # one to spare
        first = min(np.int32(lowest) & np.int32(-LANES), np.int32(height - blended * LANES))
        column[k] = left_column * np.int32(height) + first
        base[k] = np.int32(ROW_PAD) - first


@njit(cache=True, nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _vectors_of_rows(m: Any, y0: int, y1: int, x0: int, x1: int, vectors: int, height: int) -> int:
    """Return how many vectors of rows hold what `vectors` vectors of voxels read, anywhere in a tile."""
    depth = min(m[2, 0] * x0, m[2, 0] * (x1 - 1)) + min(m[2, 1] * y0, m[2, 1] * (y1 - 1)) + m[2, 3]
    steepest = m[1, 2] / depth
    window = LANES + 1 if steepest < 1.0 + _LEVEL else 2 * LANES
    rows = int(steepest * (vectors - 1) * LANES) + window + (LANES - 1) + 6  # six for rounding down and up
    return min(rows // LANES + 1, height // LANES)


@njit(cache=True, nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]
def part_seen(m: Any, y0: int, y1: int, x0: int, x1: int, z0: int, z1: int, shape: Any, part: Any) -> None:
    """Note about which part of a view the voxels of a tile read: first and end of padded columns, and of rows."""
    width, rows = shape
    low, high = float(width), 0.0
    for x in (x0, x1 - 1):
        for y in (y0, y1 - 1):
            across = (m[0, 0] * x + m[0, 1] * y + m[0, 3]) / (m[2, 0] * x + m[2, 1] * y + m[2, 3])
            low, high = min(low, across), max(high, across)
    part[0], part[1] = int(max(low, 0.0)), int(min(high + 2.0, float(width)))
    x, y = (x0 + x1) // 2, (y0 + y1) // 2
    depth = m[2, 0] * x + m[2, 1] * y + m[2, 3]
    for end, z in enumerate((z0, z1)):
        row = (m[1, 0] * x + m[1, 1] * y + m[1, 2] * z + m[1, 3]) / depth
        part[2 + end] = ROW_PAD + int(min(max(row, 0.0), float(rows)))


@njit(inline="always")  # type: ignore[untyped-decorator]
def fetch_column(pixels: Any, view: int, stride: int, height: int, part: Any, number: int) -> None:
    """Fetch a column of what a tile reads of a view, if it has so many."""
    column = part[0] + number
    if column < part[1]:
        start = view * stride + column * height
        for row in range(part[2], part[3] + 15, 16):
            fetch(pixels, start + row)


@njit(cache=True, nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _add_tile(projections: Any, matrices: Any, rows: int, volume: Any, y0: int, y1: int, x0: int, x1: int) -> None:
    """Add all views to the voxels y0 to y1, x0 to x1. Meanwhile, what the next views will be read for is fetched."""
    views, width, height = projections.shape
    voxels, slices = volume.shape[1], volume.shape[2]
    pixels, sums = projections.reshape(-1), volume.reshape(-1)
    stride = width * height
    places = np.empty((_VIEWS, 4 * _TILE), _F)
    columns, bases = np.empty((_VIEWS, _TILE), np.int32), np.empty((_VIEWS, _TILE), np.int32)
    index, rest, numbers = np.empty(_VECTORS, np.int32), np.empty(_VECTORS, _F), np.empty(_VECTORS, _F)
    parts, counts = np.empty((_VIEWS, 4), np.int64), np.empty(_VIEWS, np.int64)
    scratch = np.empty(min(height, _SPAN) + 16, _F)
    blended = scratch[(-(scratch.ctypes.data // 4)) % 16 :]
    last_row = (rows + 15) // 16 * 16
    last = spread(_F(last_row))
    for first in range(0, slices // LANES, _VECTORS):
        vectors = min(_VECTORS, slices // LANES - first)
        z0 = first * LANES
        for number in range(_VECTORS):
            numbers[number] = first + number
        for view in range(0, views, _VIEWS):
            count = min(_VIEWS, views - view)
            following = view + _VIEWS
            for k in range(count):
                counts[k] = _vectors_of_rows(matrices[view + k], y0, y1, x0, x1, vectors, height)
            for k in range(min(_VIEWS, views - following)):
                part_seen(
                    matrices[following + k], y0, y1, x0, x1, z0, z0 + vectors * LANES, (width, rows), parts[k]
                )  # fmt: skip
            for y in range(y0, y1):
                for k in range(count):
                    shape = (width, height, last_row, counts[k])
                    _place(matrices[view + k], y, x0, x1 - x0, z0, shape, places[k], columns[k], bases[k])
                for i in range(x1 - x0):
                    turn = (y - y0) * (x1 - x0) + i
                    if following + turn % _VIEWS < views:
                        fetch_column(
                            pixels, following + turn % _VIEWS, stride, height, parts[turn % _VIEWS], turn // _VIEWS
                        )
                    at = (y * voxels + x0 + i) * slices + z0
                    for k in range(count):
                        left, right = places[k, i], places[k, _TILE + i]
                        if left == _F(0.0) and right == _F(0.0):
                            continue
                        start, step = places[k, 2 * _TILE + i], places[k, 3 * _TILE + i]
                        _windows(start, step, numbers, vectors, last, index, rest)
                        column = (view + k) * stride + columns[k, i]
                        _blend(pixels, column, height, left, right, counts[k], blended)
                        _add_column(blended, bases[k, i], step, index, rest, vectors, sums, at)


@njit(parallel=True, cache=True, nogil=True)  # type: ignore[untyped-decorator]
def backproject_along_axis_simd(
    projections: NDArray[np.float32], matrices: NDArray[np.float64], rows: int, volume: NDArray[np.float32]
) -> None:
    """Add the back-projection of (view, padded column, padded row) to `volume` (y, x, z), where rows step along z.

    Columns are `padded_rows` of `rows` long, their row 0 at index `ROW_PAD`, and rows run towards +z; the matrices
    map to row 0, not to its padded index, and to padded columns. z is a multiple of `LANES`; the row step stays below
    `STEEPEST`, and the depth above 0, everywhere in the volume.
    """
    lines, voxels, _ = volume.shape
    tiles_x, tiles_y = (voxels + _TILE - 1) // _TILE, (lines + _TILE - 1) // _TILE
    for task in prange(tiles_x * tiles_y):
        x0, y0 = task % tiles_x * _TILE, task // tiles_x * _TILE
        _add_tile(projections, matrices, rows, volume, y0, min(y0 + _TILE, lines), x0, min(x0 + _TILE, voxels))
