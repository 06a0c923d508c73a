"""Compiled loops of FDK: weighting, transposition and the two back-projections. Arrays in, arrays out.

Both back-projections add, for every voxel and view, ``value(column, row) / t²`` with bilinear interpolation. The
matrix of a view, (3, 4) float64, maps ``(x, y, z, 1)``, indices of the voxel, to ``t (column, row, 1)``, indices into
the padded projection; t is the depth of the voxel, 1 at the isocentre. Projections are padded with zeros, `PAD_LOW`
before and `PAD_HIGH` after, so that values fall to 0 within one pixel of the outermost pixel centres and indices
clamped to the padding read zeros.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

PAD_LOW = 1
"""Pixels of zeros before the first row and column."""

PAD_HIGH = 2
"""Pixels of zeros behind the last: one for the fall to 0, one for the right neighbour of a clamped index."""

NEAREST_DEPTH = 1e-3
"""Voxels nearer to the source than this fraction of the isocentre's depth, or behind it, are skipped."""

TILE = 16
"""Edge of the tiles in x and y: the columns that a tile needs of `_GROUP` views stay in the level-2 cache."""

_SLICES = 4
"""Slices of a tile of the kernel for any geometry: its voxels and the pixels they read stay in the cache."""

_TRANSPOSED = 1 << 16
"""Voxels that are transposed together: they stay in the level-2 cache."""

_PAGE = 1024
"""Floats of the smallest page of memory."""

_GROUP = 8
"""Views that one pass over a tile adds."""

_F = np.float32


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract", "nsz"})  # type: ignore[untyped-decorator]
def weigh_row(pixels: Any, factor: float, redundancy: Any, s: Any, a: Any, start: Any, out: Any) -> None:
    """Write one weighted row, (column,) float32; see `weigh`. `start` leads from the source to its first pixel."""
    scale = factor / (abs(a[0] * start[1] - a[1] * start[0]) * math.hypot(s[0], s[1]))
    towards = _F(-(s[0] * start[0] + s[1] * start[1]) * scale)
    towards_step = _F(-(s[0] * a[0] + s[1] * a[1]) * scale)
    x0, y0, z0 = _F(start[0]), _F(start[1]), _F(start[2])
    dx, dy, dz = _F(a[0]), _F(a[1]), _F(a[2])
    for column in range(pixels.size):
        c = _F(column)
        x, y, z = x0 + c * dx, y0 + c * dy, z0 + c * dz
        weight = (towards + c * towards_step) / math.sqrt(x * x + y * y + z * z)
        out[column] = pixels[column] * redundancy[column] * weight


@njit(parallel=True, cache=True, nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]
def weigh(
    projections: NDArray[np.float32],
    factors: NDArray[np.float64],
    redundancy: NDArray[np.float32],
    first_column: int,
    sources: NDArray[np.float64],
    first_pixels: NDArray[np.float64],
    column_steps: NDArray[np.float64],
    row_steps: NDArray[np.float64],
    out: NDArray[np.float32],
) -> None:
    """Write weighted projections (view, row, column) into `out` from `first_column` of its rows on, the rest zeros.

    The weight of a ray q from the source s is ``factor redundancy δ / (|(a × q)_z| |q|)`` with the column step a and δ
    the component of q from the source towards the axis; see `reconstruct.weights`. `factors` are (view,), `redundancy`
    is (view, column).
    """
    views, rows, columns = projections.shape
    for line in prange(views * rows):
        view = line // rows
        row = line - view * rows
        start = first_pixels[view] - sources[view] + row * row_steps[view]
        weigh_row(
            projections[view, row], factors[view], redundancy[view], sources[view], column_steps[view], start,
            out[view, row, first_column:],
        )  # fmt: skip
        for column in range(first_column):
            out[view, row, column] = 0.0
        for column in range(first_column + columns, out.shape[2]):
            out[view, row, column] = 0.0


@njit(parallel=True, cache=True, nogil=True)  # type: ignore[untyped-decorator]
def store_transposed(
    projections: NDArray[np.float32], reverse_rows: NDArray[np.bool_], first_row: int, out: NDArray[np.float32]
) -> None:
    """Copy (view, row, at least column) into `out` (view, padded column, padded row), except its padding.

    Rows start at index `first_row`; those of views with `reverse_rows` are written last to first.
    """
    views, rows, _ = projections.shape
    columns = out.shape[1] - PAD_LOW - PAD_HIGH
    bands = (columns + TILE - 1) // TILE
    for task in prange(views * bands):
        view = task // bands
        first = (task - view * bands) * TILE
        for row in range(rows):
            target = first_row + (rows - 1 - row if reverse_rows[view] else row)
            for column in range(first, min(first + TILE, columns)):
                out[view, PAD_LOW + column, target] = projections[view, row, column]


@njit(parallel=True, cache=True, nogil=True)  # type: ignore[untyped-decorator]
def touch(values: NDArray[np.float32]) -> None:
    """Write a zero to every page of a new flat array of zeros, so that the system finds memory for it.

    Each thread has a part of its own. Where they meet in the same pages, one waits for the other, or clears for naught.
    """
    for page in prange((values.size + _PAGE - 1) // _PAGE):
        values[page * _PAGE] = _F(0.0)  # a sum would read first: that is a fault more, and one page of zeros mapped


@njit(parallel=True, cache=True, nogil=True)  # type: ignore[untyped-decorator]
def clear(values: NDArray[np.float32]) -> None:
    """Make a flat array zero."""
    for page in prange((values.size + _PAGE - 1) // _PAGE):
        values[page * _PAGE : (page + 1) * _PAGE] = _F(0.0)


@njit(parallel=True, cache=True, nogil=True)  # type: ignore[untyped-decorator]
def add_transposed(slab_yxz: NDArray[np.float32], out_zyx: NDArray[np.float32]) -> None:
    """Add a slab (y, x, z) to a volume (z, y, x)."""
    slices, lines, columns = out_zyx.shape
    together = min(slices, max(TILE, _TRANSPOSED // columns))
    width = columns + 1  # else what lies below each other would share a few sets of the cache
    for y in prange(lines):
        block = np.empty(together * width, np.float32)
        for first in range(0, slices, together):  # from memory in the order in which it lies there, and back likewise
            count = min(together, slices - first)
            for x in range(columns):
                line = slab_yxz[y, x, first : first + count]
                for z in range(count):
                    block[np.uint64(z * width + x)] = line[np.uint64(z)]
            for z in range(count):
                row = out_zyx[first + z, y]
                for x in range(columns):
                    row[np.uint64(x)] += block[np.uint64(z * width + x)]


@njit(parallel=True, cache=True, nogil=True, error_model="numpy", fastmath={"contract", "nsz"})  # type: ignore[untyped-decorator]
def backproject_any(
    projections: NDArray[np.float32], matrices: NDArray[np.float64], volume: NDArray[np.float32]
) -> None:
    """Add the back-projection of padded (view, row, column) to `volume` (z, y, x), for any geometry."""
    slices, lines, voxels = volume.shape
    views, height, width = projections.shape
    last_column, last_row = _F(width - PAD_HIGH), _F(height - PAD_HIGH)
    tiles_y = (lines + TILE - 1) // TILE
    tiles_z = (slices + _SLICES - 1) // _SLICES
    for tile in prange(tiles_z * tiles_y):
        z0 = tile // tiles_y * _SLICES
        y0 = (tile - tile // tiles_y * tiles_y) * TILE
        index = np.empty(voxels, np.int32)
        weight, across, along = np.empty(voxels, _F), np.empty(voxels, _F), np.empty(voxels, _F)
        for view in range(views):
            m = matrices[view]
            pixels = projections[view].reshape(-1)
            for z in range(z0, min(z0 + _SLICES, slices)):
                for y in range(y0, min(y0 + TILE, lines)):
                    sums = volume[z, y]
                    column0 = _F(m[0, 1] * y + m[0, 2] * z + m[0, 3])
                    row0 = _F(m[1, 1] * y + m[1, 2] * z + m[1, 3])
                    depth0 = _F(m[2, 1] * y + m[2, 2] * z + m[2, 3])
                    column_step, row_step, depth_step = _F(m[0, 0]), _F(m[1, 0]), _F(m[2, 0])
                    # Two loops: the arithmetic is vectorised, the reading of pixels is quicker when it is not.
                    for x in range(voxels):
                        depth = depth0 + _F(x) * depth_step
                        inverse = _F(1.0) / depth if depth > _F(NEAREST_DEPTH) else _F(0.0)
                        column = (column0 + _F(x) * column_step) * inverse
                        row = (row0 + _F(x) * row_step) * inverse
                        column = column if column > _F(0.0) else _F(0.0)
                        column = column if column < last_column else last_column
                        row = row if row > _F(0.0) else _F(0.0)
                        row = row if row < last_row else last_row
                        i = np.int32(column)
                        j = np.int32(row)
                        across[x] = column - _F(i)
                        along[x] = row - _F(j)
                        weight[x] = inverse * inverse
                        index[x] = j * np.int32(width) + i
                    for x in range(voxels):
                        # Unsigned: numba would test an index that may be negative for wrapping round.
                        k = np.uint64(index[x])
                        below = k + np.uint64(width)
                        near = pixels[k] + across[x] * (pixels[k + np.uint64(1)] - pixels[k])
                        far = pixels[below] + across[x] * (pixels[below + np.uint64(1)] - pixels[below])
                        sums[x] += weight[x] * (near + along[x] * (far - near))


@njit(parallel=True, cache=True, nogil=True, error_model="numpy", fastmath={"contract", "nsz"})  # type: ignore[untyped-decorator]
def backproject_along_axis(
    projections: NDArray[np.float32], matrices: NDArray[np.float64], volume: NDArray[np.float32]
) -> None:
    """Add the back-projection of padded (view, column, row) to `volume` (y, x, z), where rows step along z.

    Column and depth of a voxel then depend on x and y alone, and its row is affine in z: the two neighbouring
    columns are blended once, with the weight 1/t² in it, and interpolated along z.
    """
    lines, voxels, slices = volume.shape
    views, width, height = projections.shape
    last_column, last_row = width - PAD_HIGH, _F(height - PAD_HIGH)
    tiles_x = (voxels + TILE - 1) // TILE
    tiles_y = (lines + TILE - 1) // TILE
    scratch = np.empty((tiles_y * tiles_x, height), _F)
    for tile in prange(tiles_y * tiles_x):
        y0 = tile // tiles_x * TILE
        x0 = (tile - tile // tiles_x * tiles_x) * TILE
        blend = scratch[tile]
        index, along = np.empty(slices, np.int32), np.empty(slices, _F)
        for first in range(0, views, _GROUP):
            for y in range(y0, min(y0 + TILE, lines)):
                for x in range(x0, min(x0 + TILE, voxels)):
                    sums = volume[y, x]
                    for view in range(first, min(first + _GROUP, views)):
                        m = matrices[view]
                        depth = m[2, 0] * x + m[2, 1] * y + m[2, 3]
                        if not depth > NEAREST_DEPTH:
                            continue
                        inverse = 1.0 / depth
                        column = (m[0, 0] * x + m[0, 1] * y + m[0, 3]) * inverse
                        if not 0.0 < column < last_column:
                            continue
                        i = int(column)
                        right = _F((column - i) * inverse * inverse)
                        left = _F(inverse * inverse) - right
                        row0 = _F((m[1, 0] * x + m[1, 1] * y + m[1, 3]) * inverse)
                        row_step = _F(m[1, 2] * inverse)
                        end = row0 + _F(slices - 1) * row_step
                        low = int(min(max(min(row0, end), _F(0.0)), last_row))
                        high = int(min(max(max(row0, end), _F(0.0)), last_row)) + 2
                        needed = blend[low:high]
                        a = projections[view, i, low:high]
                        b = projections[view, i + 1, low:high]
                        for r in range(high - low):
                            needed[r] = left * a[r] + right * b[r]
                        for z in range(slices):
                            row = row0 + _F(z) * row_step
                            row = row if row > _F(0.0) else _F(0.0)
                            row = row if row < last_row else last_row
                            j = np.int32(row)
                            index[z] = j
                            along[z] = row - _F(j)
                        for z in range(slices):
                            k = np.uint64(index[z])
                            near = blend[k]
                            sums[z] += near + along[z] * (blend[k + np.uint64(1)] - near)
