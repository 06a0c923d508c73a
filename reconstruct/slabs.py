"""A volume in slabs: slices that are reconstructed by themselves, from the detector rows that their voxels project to.

A slab needs a band of the detector, little more than its own share of the rows. So a volume that does not fit into
memory, or not on one machine, is reconstructed slab by slab without reading or filtering the projections much more than
once, and what is done stays done when the work is interrupted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reconstruct.backprojection import Device, back_projector
from reconstruct.blocks import Mapped, blocks_of
from reconstruct.fdk import fdk
from reconstruct.geometry import ConeBeamGeometry, VolumeGrid
from reconstruct.kernels import NEAREST_DEPTH
from reconstruct.redundancy import Redundancy, redundancy

_TOGETHER = 16
"""Slices of a slab are a multiple of this: the vector kernel works on so many at once."""

_FEWEST_SLABS = 8
"""A volume is cut into at least so many, where it has the slices: no more than that share of it is lost by a crash."""

_WORTH = 0.75
"""Half a slab has to need less than this share of the rows of the whole one, or it is not halved again."""

_MARGIN = 2
"""Rows of a band beyond the outermost voxel centres: one for interpolation, one for rounding."""


@dataclass(frozen=True)
class Slab:
    """Slices `start` to `stop` (exclusive) of a volume, and the detector rows that they need."""

    start: int
    stop: int
    first_row: int
    end_row: int

    @property
    def slices(self) -> slice:
        """The slices, of the volume's axis 0."""
        return slice(self.start, self.stop)

    @property
    def rows(self) -> slice:
        """The rows, of the projections' axis 1."""
        return slice(self.first_row, self.end_row)


@dataclass(frozen=True)
class Plan:
    """Everything that determines a slab's voxels but the projections; small, and can be sent to another machine.

    Attributes
    ----------
    geometry, grid
        Of the whole scan and the whole volume.
    filter, cutoff, limited_arc
        As `fdk` takes them.
    extrapolated
        Columns of the geometry, before the first and behind the last measured one, that were made up.
    """

    geometry: ConeBeamGeometry
    grid: VolumeGrid
    filter: str = "ram-lak"
    cutoff: float = 1.0
    limited_arc: bool = False
    extrapolated: tuple[int, int] = (0, 0)

    def measured(self) -> Redundancy:
        """Return what the measurements count for, which what was made up does not change; raises `GeometryError`."""
        before, after = self.extrapolated
        found = redundancy(self.geometry.extended(-before, -after), limited_arc=self.limited_arc)
        return replace(found, geometry=self.geometry)

    def slab(self, start: int, stop: int) -> Slab:
        """Return the slab of these slices."""
        first, end = row_band(self.geometry, self.grid.slab(start, stop))
        return Slab(start, stop, first, end)

    def slabs(self, memory_mb: int) -> list[Slab]:
        """Cut the volume so that no voxel of a slab is taken up again after it was written, within `memory_mb` (MiB).

        That is where the filtered band of a slab, or its voxels, fit. Where they do not, and thinner slabs need hardly
        fewer rows, for the cone is steep, `fdk` takes the views in several passes instead.
        """
        total, size = self.grid.shape_zyx[0], self.slices_of_slabs(memory_mb)
        return [self.slab(start, min(start + size, total)) for start in range(0, total, size)]

    def slices_of_slabs(self, memory_mb: int) -> int:
        """Return how many slices the slabs have, but for the last one, see `slabs`."""
        total = self.grid.shape_zyx[0]
        missing = self.measured().missing_columns
        sizes = [_rounded_up(-(-total // _FEWEST_SLABS))]
        while sizes[-1] > _TOGETHER:
            sizes.append(_rounded_up(sizes[-1] // 2))
        fitting = (size for size in sizes if self._fits(size, missing, memory_mb))
        return next(fitting, None) or self._thinnest_worth(sizes)

    def _thinnest_worth(self, sizes: Sequence[int]) -> int:
        """The first of ever thinner slabs that the next one saves hardly any rows over."""
        for size, thinner in pairwise(sizes):
            if self._largest_band(thinner) > _WORTH * self._largest_band(size):
                return thinner
        return sizes[-1]

    def _outermost(self, size: int) -> list[Slab]:
        """The slabs of so many slices that need the most rows."""
        total = self.grid.shape_zyx[0]
        return [self.slab(0, min(size, total)), self.slab(max(0, total - size), total)]

    def _fits(self, size: int, missing: tuple[int, int], memory_mb: int) -> bool:
        """Whether slabs of so many slices are written once; both ends of their files are mapped."""
        for slab in self._outermost(size):
            geometry, grid = self.geometry.band(slab.first_row, slab.end_row), self.grid.slab(slab.start, slab.stop)
            symmetric = geometry.extended(*missing)
            projector = back_projector(symmetric, grid)
            try:
                blocks = blocks_of(geometry, symmetric, grid, projector, memory_mb, Mapped(True, True))
            except ValueError:
                return False
            if not blocks.writes_once(geometry.views, grid):
                return False
        return True

    def _largest_band(self, size: int) -> int:
        """Rows that the outermost slabs need."""
        return max(slab.end_row - slab.first_row for slab in self._outermost(size))

    def reconstruct(
        self,
        projections: Any,
        slab: Slab,
        *,
        views: slice = slice(None),
        measured: Redundancy | None = None,
        memory_mb: int = 2048,
        threads: int = 0,
        device: Device = "cpu",
        progress: Callable[[float], None] | None = None,
        out: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32]:
        """Return the voxels of `slab`, 1/mm, (z, y, x) float32.

        Parameters
        ----------
        projections
            Of the whole scan, line integrals, (view, row, column): an array or a memory map. Only what the slab needs
            of it is read.
        views
            Only what these neighbouring views add to the voxels.
        measured
            What `measured` returns, for one who asks for many slabs.
        memory_mb, threads, device, progress, out
            As `fdk` takes them.

        Raises
        ------
        GeometryError, ValueError
            As `fdk` does.
        """
        return fdk(
            projections[views, slab.rows],
            self.geometry.select(views).band(slab.first_row, slab.end_row),
            self.grid.slab(slab.start, slab.stop),
            filter=self.filter,
            cutoff=self.cutoff,
            measured=(measured or self.measured()).select(views),
            memory_mb=memory_mb,
            threads=threads,
            device=device,
            progress=progress,
            out=out,
        )


def row_band(geometry: ConeBeamGeometry, grid: VolumeGrid) -> tuple[int, int]:
    """Return the first row, and the one behind the last, that the voxels of `grid` project to in any view.

    Where the grid reaches beyond a source, that is all rows.
    """
    ends = np.array([[axis[0], axis[-1]] for axis in (grid.x_mm, grid.y_mm, grid.z_mm)])
    corners = np.stack(np.meshgrid(*ends, indexing="ij"), axis=-1).reshape(-1, 3)
    points = np.concatenate([corners, np.ones((len(corners), 1))], axis=1)
    projected = geometry.projection_matrices() @ points.T
    if (projected[:, 2] / geometry.isocentre_depths[:, None]).min() <= NEAREST_DEPTH:
        return 0, geometry.rows
    rows = projected[:, 1] / projected[:, 2]
    first = int(np.clip(np.floor(rows.min()) - _MARGIN, 0, geometry.rows - 1))
    end = int(np.clip(np.ceil(rows.max()) + _MARGIN + 1, first + 1, geometry.rows))
    return first, end


def remaining(slabs: Sequence[Slab], done: Sequence[tuple[int, int]]) -> list[Slab]:
    """Return the slabs with slices that are not within one of the ranges `done` (start, stop)."""
    finished = {index for start, stop in done for index in range(start, stop)}
    return [slab for slab in slabs if not finished.issuperset(range(slab.start, slab.stop))]


def _rounded_up(slices: int) -> int:
    return max(_TOGETHER, -(-slices // _TOGETHER) * _TOGETHER)
