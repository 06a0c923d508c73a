"""The back-projector on a CUDA device: projections and slab live there, filtering stays on the processor."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import cuda
from numpy.typing import NDArray

from reconstruct import kernels_cuda
from reconstruct.backprojection import UPDATES_A_PASS, from_voxel, voxel_matrices
from reconstruct.geometry import ConeBeamGeometry, VolumeGrid
from reconstruct.kernels import PAD_HIGH, PAD_LOW

_SHARE = 0.8
"""Share of the device's free memory that may be used."""

_MIB = 1 << 20


class OnCuda:
    """Any detector and trajectory, on a device. Arrays of `allocate` and `begin` are the device's."""

    def __init__(self, geometry: ConeBeamGeometry, grid: VolumeGrid) -> None:
        self._matrices = voxel_matrices(geometry, grid)
        self._padded = (geometry.rows + PAD_LOW + PAD_HIGH, geometry.columns + PAD_LOW + PAD_HIGH)
        self._columns = geometry.columns
        self.view_bytes = 4 * self._padded[0] * self._padded[1]
        self.slice_bytes = 4 * grid.shape_zyx[1] * grid.shape_zyx[2]
        self.slices_together = kernels_cuda.VOXELS
        self.scratch_bytes = 0
        self.updates_a_pass = UPDATES_A_PASS

    def memory_mb(self, allowed_mb: int) -> int:
        """Return what views and slabs may take, MiB: of the device's memory, whatever the host is allowed."""
        free = kernels_cuda.free_bytes()
        return allowed_mb if free is None else int(free * _SHARE) // _MIB

    def allocate(self, views: int, spare: Any = None) -> Any:
        """Return zeros (view, padded row, padded column)."""
        del spare
        return cuda.to_device(np.zeros((views, *self._padded), dtype=np.float32))

    def store(self, filtered: NDArray[np.float32], buffer: Any, views: slice) -> None:
        """Copy into the middle of the padding."""
        del views
        padded = np.zeros((len(filtered), *self._padded), dtype=np.float32)
        padded[:, PAD_LOW:-PAD_HIGH, PAD_LOW:-PAD_HIGH] = filtered[:, :, : self._columns]
        buffer.copy_to_device(padded)

    def begin(self, slab: NDArray[np.float32]) -> Any:
        """Return zeros (z, y, x)."""
        return cuda.to_device(np.zeros(slab.shape, dtype=np.float32))

    def add(self, buffer: Any, views: slice, work: Any, first_slice: int, first_line: int = 0) -> None:
        """Add views to the slab (z, y, x)."""
        matrices = cuda.to_device(from_voxel(self._matrices[views], first_slice, first_line).astype(np.float32))
        kernels_cuda.backproject_any[kernels_cuda.blocks(work.shape), (*kernels_cuda.BLOCK, 1)](buffer, matrices, work)
        cuda.synchronize()

    def finish(self, work: Any, lines: slice, out: NDArray[np.float32]) -> None:
        """Add lines of the slab of the device to those of the host."""
        for index in range(len(out)):  # one slice at a time: the host has no room for all of it twice
            out[index] += work[index, lines].copy_to_host()
