"""The ways of adding filtered projections to a volume: for any geometry, and where rows step along the axis.

All give the same volume. A back-projector says how much memory it takes, how it wants the filtered projections laid
out, and adds views to slabs of slices.
"""

from __future__ import annotations

from typing import Literal, Protocol

import numba
import numpy as np
from numpy.typing import NDArray

from reconstruct.geometry import ConeBeamGeometry, VolumeGrid
from reconstruct.kernels import (
    NEAREST_DEPTH,
    PAD_HIGH,
    PAD_LOW,
    TILE,
    add_transposed,
    backproject_along_axis,
    backproject_any,
    store_transposed,
)
from reconstruct.kernels_simd import ROW_PAD, STEEPEST, backproject_along_axis_simd, padded_rows
from reconstruct.kernels_simd_any import backproject_any_simd
from reconstruct.kernels_simd_wide import backproject_along_axis_wide, tile_edge
from reconstruct.kernels_vectors import LANES

_PADDING = PAD_LOW + PAD_HIGH
UPDATES_A_PASS = 1 << 31
"""Voxel updates between two calls of a reconstruction's `progress`: half a second with AVX2."""
_MANY_UPDATES_A_PASS = 1 << 36
"""The same with AVX-512: three seconds. A pass more over all voxels is a greater part of so little time."""

Array = NDArray[np.float32]

Device = Literal["cpu", "cuda", "auto"]
"""Where to back-project; "auto": on a CUDA device where there is one."""


class BackProjector(Protocol):
    """What FDK asks of a back-projection.

    Attributes
    ----------
    view_bytes
        Memory of one filtered view.
    slice_bytes
        Memory, besides the volume, of one slice being worked on.
    slices_together
        Slices are worked on in multiples of this many; the memory of the last ones is taken even if there are fewer.
    scratch_bytes
        Memory of `add` besides, whatever it adds.
    updates_a_pass
        Voxel updates that `add` is given at a time, at most; a few views are always added together.
    """

    view_bytes: int
    slice_bytes: int
    slices_together: int
    scratch_bytes: int
    updates_a_pass: int

    def memory_mb(self, allowed_mb: int) -> int:
        """Return what filtered views and slices being worked on may take together, MiB."""

    def allocate(self, views: int, spare: Array | None = None) -> Array:
        """Return zeros for the filtered projections of that many views, padded and laid out as `add` reads them.

        Parameters
        ----------
        spare
            Flat zeros in which they may lie, where there is room.
        """

    def store(self, filtered: Array, buffer: Array, views: slice) -> None:
        """Copy filtered projections (view, row, at least column) of the scan's `views` into their `buffer`."""

    def begin(self, slab: Array) -> Array:
        """Return zeros that `add` adds to while it works on voxels of the shape of `slab` (z, y, x)."""

    def add(self, buffer: Array, views: slice, work: Array, first_slice: int, first_line: int = 0) -> None:
        """Add the scan's `views`, held by `buffer`, to the slices and lines from these on."""

    def finish(self, work: Array, lines: slice, out: Array) -> None:
        """Add these lines of what was added to `out`, (z, those lines, x), C-contiguous."""


class _OnHost:
    """What all back-projectors have in common that run on the processor."""

    updates_a_pass = UPDATES_A_PASS

    def memory_mb(self, allowed_mb: int) -> int:
        """Return what is allowed."""
        return allowed_mb


class AnyGeometry(_OnHost):
    """Four pixels are read for every voxel and view: any detector, any trajectory."""

    def __init__(self, geometry: ConeBeamGeometry, grid: VolumeGrid) -> None:
        self._matrices = voxel_matrices(geometry, grid)
        self._padded = (geometry.rows + _PADDING, geometry.columns + _PADDING)
        self._columns = geometry.columns
        self.view_bytes = 4 * self._padded[0] * self._padded[1]
        self.slice_bytes = 4 * grid.shape_zyx[1] * grid.shape_zyx[2]
        self.slices_together = 1
        self.scratch_bytes = 0

    def allocate(self, views: int, spare: Array | None = None) -> Array:
        """Return zeros (view, padded row, padded column)."""
        del spare
        return np.zeros((views, *self._padded), dtype=np.float32)

    def store(self, filtered: Array, buffer: Array, views: slice) -> None:
        """Copy into the middle of the padding."""
        del views
        buffer[:, PAD_LOW:-PAD_HIGH, PAD_LOW:-PAD_HIGH] = filtered[:, :, : self._columns]

    def begin(self, slab: Array) -> Array:
        """Return zeros (z, y, x)."""
        return np.zeros(slab.shape, dtype=np.float32)

    def add(self, buffer: Array, views: slice, work: Array, first_slice: int, first_line: int = 0) -> None:
        """Add views to the slab (z, y, x)."""
        backproject_any(buffer, from_voxel(self._matrices[views], first_slice, first_line), work)

    def finish(self, work: Array, lines: slice, out: Array) -> None:
        """Add the lines."""
        out += work[:, lines]


class AnyGeometryInVectors(AnyGeometry):
    """The same with vector instructions, where the host has them: several times as quick."""

    def __init__(self, geometry: ConeBeamGeometry, grid: VolumeGrid) -> None:
        super().__init__(geometry, grid)
        if not LANES:
            raise ValueError("expected a host with vector instructions")
        self.slice_bytes = 4 * grid.shape_zyx[1] * _whole_vectors(grid.shape_zyx[2])

    def begin(self, slab: Array) -> Array:
        """Return zeros (z, y, x), x a whole number of vectors."""
        slices, lines, columns = slab.shape
        return _aligned_zeros((slices, lines, _whole_vectors(columns)))

    def add(self, buffer: Array, views: slice, work: Array, first_slice: int, first_line: int = 0) -> None:
        """Add views to the slab (z, y, x)."""
        backproject_any_simd(buffer, from_voxel(self._matrices[views], first_slice, first_line), work)

    def finish(self, work: Array, lines: slice, out: Array) -> None:
        """Add the lines."""
        out += work[:, lines, : out.shape[2]]


class RowsAlongAxis(_OnHost):
    """Columns of projections are blended, then interpolated along z: where rows step along the axis."""

    def __init__(self, geometry: ConeBeamGeometry, grid: VolumeGrid) -> None:
        if not geometry.rows_step_along_axis:
            raise ValueError("expected row steps along the rotation axis, got row steps at an angle to it")
        matrices = voxel_matrices(geometry, grid)
        # Rows always run towards +z in the buffer. What is zero but for rounding is made zero.
        self._reverse = geometry.row_steps[:, 2] < 0
        last = geometry.rows - 1 + 2 * PAD_LOW
        matrices[self._reverse, 1] = last * matrices[self._reverse, 2] - matrices[self._reverse, 1]
        matrices[:, [0, 2], 2] = 0.0
        self._matrices = matrices
        self._padded = (geometry.columns + _PADDING, geometry.rows + _PADDING)
        self._columns = geometry.columns
        self.view_bytes = 4 * self._padded[0] * self._padded[1]
        self.slice_bytes = 4 * grid.shape_zyx[1] * grid.shape_zyx[2]
        self.slices_together = 1
        tiles = -(-grid.shape_zyx[1] // TILE) * -(-grid.shape_zyx[2] // TILE)  # a blended column for each
        self.scratch_bytes = 4 * tiles * self._padded[1]

    def allocate(self, views: int, spare: Array | None = None) -> Array:
        """Return zeros (view, padded column, padded row)."""
        del spare
        return np.zeros((views, *self._padded), dtype=np.float32)

    def store(self, filtered: Array, buffer: Array, views: slice) -> None:
        """Transpose into the middle of the padding."""
        store_transposed(filtered, self._reverse[views], PAD_LOW, buffer)

    def begin(self, slab: Array) -> Array:
        """Return zeros (y, x, z)."""
        slices, lines, columns = slab.shape
        return np.zeros((lines, columns, slices), dtype=np.float32)

    def add(self, buffer: Array, views: slice, work: Array, first_slice: int, first_line: int = 0) -> None:
        """Add views to the slab (y, x, z)."""
        backproject_along_axis(buffer, from_voxel(self._matrices[views], first_slice, first_line), work)

    def finish(self, work: Array, lines: slice, out: Array) -> None:
        """Add the lines transposed."""
        add_transposed(work[lines], out)


class RowsAlongAxisInVectors(RowsAlongAxis):
    """The same with vector instructions, where the host has them and `applies`: several times as quick."""

    def __init__(self, geometry: ConeBeamGeometry, grid: VolumeGrid) -> None:
        super().__init__(geometry, grid)
        if not self.applies(geometry, grid):
            raise ValueError(f"expected a host with vectors and rows finer than {STEEPEST} to a voxel")
        self._matrices[:, 1] -= PAD_LOW * self._matrices[:, 2]
        self._rows = geometry.rows
        self._padded = (geometry.columns + _PADDING, padded_rows(geometry.rows))
        self.view_bytes = 4 * self._padded[0] * self._padded[1]
        self.slices_together = LANES
        self.scratch_bytes = 0

    @staticmethod
    def applies(geometry: ConeBeamGeometry, grid: VolumeGrid) -> bool:
        """Whether the host has vectors, and in all of the grid a voxel is less than `STEEPEST` rows high."""
        if not LANES or not geometry.rows_step_along_axis:
            return False
        matrices = voxel_matrices(geometry, grid)
        _, lines, columns = grid.shape_zyx
        corners = [(x, y, 0, 1) for x in (0, columns - 1) for y in (0, lines - 1)]
        nearest = (matrices[:, 2] @ np.transpose(corners)).min(axis=1)
        return bool((np.abs(matrices[:, 1, 2]) < STEEPEST * nearest).all() and nearest.min() > NEAREST_DEPTH)

    updates_a_pass = _MANY_UPDATES_A_PASS if LANES == 16 else UPDATES_A_PASS

    first_pixel = (ROW_PAD, PAD_LOW)
    """Row and column of a view's first pixel within its padding."""

    def reversed_rows(self, views: slice) -> NDArray[np.bool_]:
        """Whether the rows of these views are kept last to first, so that they run towards +z, (view,)."""
        return self._reverse[views]

    def allocate(self, views: int, spare: Array | None = None) -> Array:
        """Return zeros (view, padded column, padded row) that start on a cache line."""
        return _aligned_zeros((views, *self._padded), spare)

    def store(self, filtered: Array, buffer: Array, views: slice) -> None:
        """Transpose into the middle of the padding."""
        store_transposed(filtered, self._reverse[views], ROW_PAD, buffer)

    def begin(self, slab: Array) -> Array:
        """Return zeros (y, x, z), z a whole number of vectors."""
        slices, lines, columns = slab.shape
        return _aligned_zeros((lines, columns, _whole_vectors(slices)))

    def add(self, buffer: Array, views: slice, work: Array, first_slice: int, first_line: int = 0) -> None:
        """Add views to the slab (y, x, z)."""
        matrices = from_voxel(self._matrices[views], first_slice, first_line)
        if LANES == 16:
            edge = tile_edge(work.shape, numba.get_num_threads())
            backproject_along_axis_wide(buffer, matrices, self._rows, work, edge)
        else:
            backproject_along_axis_simd(buffer, matrices, self._rows, work)


def _whole_vectors(voxels: int) -> int:
    return -(-voxels // LANES) * LANES


def _aligned_zeros(shape: tuple[int, ...], spare: Array | None = None) -> Array:
    size = int(np.prod(shape))
    has_room = spare is not None and spare.size >= size + 16
    raw = spare if spare is not None and has_room else np.zeros(size + 16, dtype=np.float32)
    start = -raw.ctypes.data // 4 % 16
    return raw[start : start + size].reshape(shape)


def voxel_matrices(geometry: ConeBeamGeometry, grid: VolumeGrid) -> NDArray[np.float64]:
    """Return the matrices from voxel indices ``(x, y, z, 1)`` to ``t (padded column, padded row, 1)``, (view, 3, 4).

    t is the depth of the voxel in units of the isocentre's.
    """
    to_mm = np.diag([*reversed(grid.voxel_mm_zyx), 1.0])
    to_mm[:3, 3] = grid.origin_mm_xyz
    matrices = geometry.projection_matrices() @ to_mm / geometry.isocentre_depths[:, None, None]
    matrices[:, :2] += PAD_LOW * matrices[:, 2:3]
    return matrices


def back_projector(geometry: ConeBeamGeometry, grid: VolumeGrid, device: Device = "cpu") -> BackProjector:
    """Return the quickest back-projector that geometry and device allow.

    Raises
    ------
    ValueError
        ``cuda`` is wanted, and no device is there.
    """
    if device != "cpu":
        from reconstruct import kernels_cuda  # asks the driver

        if kernels_cuda.has_device():
            from reconstruct.backprojection_cuda import OnCuda

            return OnCuda(geometry, grid)
        if device == "cuda":
            raise ValueError("expected a CUDA device with its driver, found none")
    if RowsAlongAxisInVectors.applies(geometry, grid):
        return RowsAlongAxisInVectors(geometry, grid)
    if geometry.rows_step_along_axis:
        return RowsAlongAxis(geometry, grid)
    return AnyGeometryInVectors(geometry, grid) if LANES else AnyGeometry(geometry, grid)


def from_voxel(matrices: NDArray[np.float64], first_slice: int, first_line: int = 0) -> NDArray[np.float64]:
    """Return the same matrices for z and y indices counted from `first_slice` and `first_line`."""
    shifted = matrices.copy()
    shifted[:, :, 3] += first_slice * matrices[:, :, 2] + first_line * matrices[:, :, 1]
    return shifted
