"""The back-projection for any geometry in vector instructions: `LANES` voxels along x at once."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

from reconstruct.kernels import NEAREST_DEPTH, PAD_HIGH
from reconstruct.kernels_vectors import (
    LANES,
    int_multiply_add,
    lanes,
    larger,
    load_pairs,
    multiply_add,
    smaller,
    spread,
    spread_int,
    to_floats,
    to_ints,
    vector_add,
    vector_divide,
    vector_load,
    vector_multiply,
    vector_store,
    vector_subtract,
    zero_unless_above,
)

_LINES = 16
"""Lines of a tile."""

_SLICES = 4
"""Slices of a tile: its voxels and the pixels they read stay in the cache."""

_F = np.float32


@njit(inline="always")  # type: ignore[untyped-decorator]
def _blended(first: Any, second: Any, share: Any) -> Any:
    return multiply_add(share, vector_subtract(second, first), first)


@njit(cache=True, nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _see_line(shape: Any, m: Any, y: float, z: float, vectors: int, index: Any, seen: Any) -> None:
    """Note where a view sees a line of voxels: pixel, shares of the next column and row, weight."""
    height, width = shape
    last_column, last_row = spread(_F(width - PAD_HIGH)), spread(_F(height - PAD_HIGH))
    column0 = spread(_F(m[0, 1] * y + m[0, 2] * z + m[0, 3]))
    row0 = spread(_F(m[1, 1] * y + m[1, 2] * z + m[1, 3]))
    depth0 = spread(_F(m[2, 1] * y + m[2, 2] * z + m[2, 3]))
    column_step, row_step, depth_step = spread(_F(m[0, 0])), spread(_F(m[1, 0])), spread(_F(m[2, 0]))
    nearest, one, zero = spread(_F(NEAREST_DEPTH)), spread(_F(1.0)), spread(_F(0.0))
    stride = spread_int(width)
    across, along, weights = seen
    for vector in range(vectors):
        place = vector * LANES
        x = vector_add(lanes(), spread(_F(place)))
        depth = multiply_add(x, depth_step, depth0)
        inverse = zero_unless_above(depth, nearest, vector_divide(one, depth))
        column = smaller(larger(vector_multiply(multiply_add(x, column_step, column0), inverse), zero), last_column)
        row = smaller(larger(vector_multiply(multiply_add(x, row_step, row0), inverse), zero), last_row)
        i, j = to_ints(column), to_ints(row)
        vector_store(across, place, vector_subtract(column, to_floats(i)))
        vector_store(along, place, vector_subtract(row, to_floats(j)))
        vector_store(weights, place, vector_multiply(inverse, inverse))
        vector_store(index, place, int_multiply_add(j, stride, i))


@njit(cache=True, nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _add_line(pixels: Any, start: int, width: int, vectors: int, index: Any, seen: Any, sums: Any, at: int) -> None:
    """Add the pixels that were noted to a line of voxels."""
    across, along, weights = seen
    for vector in range(vectors):
        place = vector * LANES
        share = vector_load(across, place)
        near = load_pairs(pixels, start, index, place)
        far = load_pairs(pixels, start + width, index, place)
        value = _blended(_blended(near[0], near[1], share), _blended(far[0], far[1], share), vector_load(along, place))
        total = multiply_add(vector_load(weights, place), value, vector_load(sums, at + place))
        vector_store(sums, at + place, total)


@njit(parallel=True, cache=True, nogil=True)  # type: ignore[untyped-decorator]
def backproject_any_simd(
    projections: NDArray[np.float32], matrices: NDArray[np.float64], volume: NDArray[np.float32]
) -> None:
    """Add the back-projection of padded (view, row, column) to `volume` (z, y, x), for any geometry.

    See `reconstruct.kernels`. x is a multiple of `LANES`.
    """
    slices, lines, voxels = volume.shape
    views, height, width = projections.shape
    tiles_y = (lines + _LINES - 1) // _LINES
    tiles_z = (slices + _SLICES - 1) // _SLICES
    pixels, sums = projections.reshape(-1), volume.reshape(-1)
    vectors = voxels // LANES
    for tile in prange(tiles_z * tiles_y):
        z0, y0 = tile // tiles_y * _SLICES, tile % tiles_y * _LINES
        index = np.empty(voxels, np.int32)
        seen = np.empty(voxels, _F), np.empty(voxels, _F), np.empty(voxels, _F)
        for view in range(views):
            for z in range(z0, min(z0 + _SLICES, slices)):
                for y in range(y0, min(y0 + _LINES, lines)):
                    _see_line((height, width), matrices[view], float(y), float(z), vectors, index, seen)
                    at = (z * lines + y) * voxels
                    _add_line(pixels, view * height * width, width, vectors, index, seen, sums, at)
