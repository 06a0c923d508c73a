"""Where the voxels of a volume are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


class GeometryError(ValueError):
    """A scan geometry or voxel grid that is impossible, or that the method asked for cannot reconstruct."""


@dataclass(frozen=True)
class VolumeGrid:
    """The voxels of a volume, axes along the scan frame.

    Attributes
    ----------
    shape_zyx
        Number of voxels along z, y, x.
    voxel_mm_zyx
        Edge of a voxel along z, y, x, mm.
    centre_mm_xyz
        Centre of the whole volume, mm.

    Raises
    ------
    GeometryError
        Anything but three numbers of voxels, three edges above 0 and three finite coordinates.
    """

    shape_zyx: tuple[int, int, int]
    voxel_mm_zyx: tuple[float, float, float]
    centre_mm_xyz: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def __post_init__(self) -> None:
        whole = all(isinstance(count, int | np.integer) for count in self.shape_zyx)
        if len(self.shape_zyx) != 3 or not whole or min(self.shape_zyx) < 1:
            raise GeometryError(f"expected three whole numbers of voxels of at least 1, got {self.shape_zyx}")
        edges = self.voxel_mm_zyx
        if len(edges) != 3 or not np.isfinite(edges).all() or min(edges) <= 0:
            raise GeometryError(f"expected three voxel edges above 0 mm, got {edges}")
        if len(self.centre_mm_xyz) != 3 or not np.isfinite(self.centre_mm_xyz).all():
            raise GeometryError(f"expected three finite coordinates of the centre, got {self.centre_mm_xyz}")

    @property
    def origin_mm_xyz(self) -> tuple[float, float, float]:
        """Centre of the first voxel (index 0, 0, 0), mm."""
        counts, edges, centre = self.shape_zyx, self.voxel_mm_zyx, self.centre_mm_xyz
        return (
            centre[0] - (counts[2] - 1) / 2 * edges[2],
            centre[1] - (counts[1] - 1) / 2 * edges[1],
            centre[2] - (counts[0] - 1) / 2 * edges[0],
        )

    @property
    def x_mm(self) -> NDArray[np.float64]:
        """Voxel centres along x, mm, shape (x,)."""
        return self._centres(0)

    @property
    def y_mm(self) -> NDArray[np.float64]:
        """Voxel centres along y, mm, shape (y,)."""
        return self._centres(1)

    @property
    def z_mm(self) -> NDArray[np.float64]:
        """Voxel centres along z, mm, shape (z,)."""
        return self._centres(2)

    def _centres(self, axis_xyz: int) -> NDArray[np.float64]:
        indices = np.arange(self.shape_zyx[2 - axis_xyz], dtype=np.float64)
        return np.asarray(self.origin_mm_xyz[axis_xyz] + indices * self.voxel_mm_zyx[2 - axis_xyz])

    def slab(self, start: int, stop: int) -> VolumeGrid:
        """Return the grid of the slices `start` to `stop` (exclusive) of this one."""
        slices = self.shape_zyx[0]
        if not 0 <= start < stop <= slices:
            raise GeometryError(f"expected a slab within slices 0 to {slices}, got {start} to {stop}")
        x, y, z = self.centre_mm_xyz
        shift = ((start + stop) / 2 - slices / 2) * self.voxel_mm_zyx[0]
        return VolumeGrid((stop - start, *self.shape_zyx[1:]), self.voxel_mm_zyx, (x, y, z + shift))
