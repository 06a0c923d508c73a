"""The back-projection of `reconstruct.kernels` on a CUDA device: any geometry, the same padding and matrices.

A thread adds a group of views to `VOXELS` consecutive slices of one column of voxels, which share what depends on x and
y; neighbouring threads take neighbouring x, so that their pixels lie close together.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import cuda, float32, int32

NEAREST_DEPTH = 1e-3
"""As in `reconstruct.kernels`."""

_PAD_HIGH = 2

BLOCK = (32, 8)
"""Threads of a block, along x and y."""

VOXELS = 4
"""Slices that a thread adds to."""


@cuda.jit(cache=False, fastmath={"contract", "nsz"})  # type: ignore[untyped-decorator]
def backproject_any(projections: Any, matrices: Any, volume: Any) -> None:
    """Add the back-projection of padded (view, row, column) to `volume` (z, y, x), all float32 on the device."""
    x, y, block = cuda.grid(3)
    slices, lines, voxels = volume.shape
    first = block * VOXELS
    if x >= voxels or y >= lines or first >= slices:
        return
    views, height, width = projections.shape
    last_column, last_row = float32(width - _PAD_HIGH), float32(height - _PAD_HIGH)
    sums = cuda.local.array(VOXELS, float32)
    for z in range(VOXELS):
        sums[z] = float32(0.0)
    for view in range(views):
        m = matrices[view]
        column0 = m[0, 0] * x + m[0, 1] * y + m[0, 2] * first + m[0, 3]
        row0 = m[1, 0] * x + m[1, 1] * y + m[1, 2] * first + m[1, 3]
        depth0 = m[2, 0] * x + m[2, 1] * y + m[2, 2] * first + m[2, 3]
        for z in range(VOXELS):
            depth = float32(depth0 + m[2, 2] * z)
            if depth > float32(NEAREST_DEPTH):
                inverse = float32(1.0) / depth
                column = float32(column0 + m[0, 2] * z) * inverse
                row = float32(row0 + m[1, 2] * z) * inverse
                column = min(max(column, float32(0.0)), last_column)
                row = min(max(row, float32(0.0)), last_row)
                i, j = int32(column), int32(row)
                across, along = column - float32(i), row - float32(j)
                near = projections[view, j, i]
                near += across * (projections[view, j, i + 1] - near)
                far = projections[view, j + 1, i]
                far += across * (projections[view, j + 1, i + 1] - far)
                sums[z] += inverse * inverse * (near + along * (far - near))
    for z in range(min(VOXELS, slices - first)):
        volume[first + z, y, x] += sums[z]


def blocks(shape_zyx: tuple[int, int, int]) -> tuple[int, int, int]:
    """Return the blocks of threads that cover a volume, along x, y and z."""
    slices, lines, voxels = shape_zyx
    return -(-voxels // BLOCK[0]), -(-lines // BLOCK[1]), -(-slices // VOXELS)


def has_device() -> bool:
    """Whether a CUDA device, and a driver for it, are there."""
    return bool(cuda.is_available())


def free_bytes() -> int | None:
    """Return the free memory of the device, bytes; None where it has no bound (the simulator)."""
    free = cuda.current_context().get_memory_info().free
    return int(free) if np.isfinite(free) else None
