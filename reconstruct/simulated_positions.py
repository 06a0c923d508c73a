"""How the simulated camera moves: in front of a virtual detector wider than itself, and along the axis."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from reconstruct.geometry import ConeBeamGeometry

OVERLAP_PX = 8
"""Least pixels that neighbouring tiles share."""


@dataclass(frozen=True)
class Place:
    """The camera in front of the virtual detector: where its first pixel lies, and how the scan tells it.

    Attributes
    ----------
    corner_px
        (column, row) on the virtual detector, pixels.
    geometry
        Of the camera there.
    origin_px, camera_mm
        As `tiled_writer.TileImages` has them.
    """

    corner_px: tuple[float, float]
    geometry: ConeBeamGeometry
    origin_px: tuple[float, float] | None = None
    camera_mm: tuple[float, float] | None = None


@dataclass(frozen=True)
class Positions:
    """Where the camera is taken to in the course of a scan.

    Attributes
    ----------
    tiles
        (column, row): how many tiles make up the virtual detector, their origins told in whole pixels.
    camera_positions
        How many positions along the columns, told in mm, that make it up; 1 where there are `tiles`.
    axial_mm
        Axial positions of the sample, mm: a circle is scanned at each.

    Raises
    ------
    ValueError
        No tile, both kinds of them, or no axial position.
    """

    tiles: tuple[int, int] = (1, 1)
    camera_positions: int = 1
    axial_mm: tuple[float, ...] = (0.0,)

    def __post_init__(self) -> None:
        if min(*self.tiles, self.camera_positions) < 1 or (self.camera_positions > 1 and self.tiles != (1, 1)):
            raise ValueError(
                f"expected at least one tile, or camera positions, and not both: got {self.tiles[0]} × {self.tiles[1]} "
                f"tiles and {self.camera_positions} positions"
            )
        if not self.axial_mm or not np.isfinite(self.axial_mm).all():
            raise ValueError(f"expected at least one axial position in mm, got {self.axial_mm}")

    @property
    def is_tiled(self) -> bool:
        """Whether the camera sees a part of the virtual detector at a time."""
        return self.camera_positions > 1 or self.tiles != (1, 1)

    def along_axis(self, circle: ConeBeamGeometry) -> ConeBeamGeometry:
        """Return the circle at each axial position, one after the other: source and detector against the sample."""
        rise = np.repeat(-np.asarray(self.axial_mm, dtype=np.float64), circle.views)
        along = np.stack([np.zeros_like(rise), np.zeros_like(rise), rise], axis=1)
        sources, centres, columns, rows = (
            np.tile(vectors, (len(self.axial_mm), 1))
            for vectors in (circle.sources, circle.detector_centres, circle.column_steps, circle.row_steps)
        )
        return ConeBeamGeometry.from_vectors(
            sources + along, centres + along, columns, rows, rows=circle.rows, columns=circle.columns
        )

    def camera_shape(self, rows: int, columns: int) -> tuple[int, int]:
        """Return the rows and columns of a camera that covers a detector of this size from its places.

        Raises
        ------
        ValueError
            Tiles that are hardly larger than what they share.
        """
        across, down = max(self.tiles[0], self.camera_positions), self.tiles[1]
        shape = _part(rows, down), _part(columns, across)
        if (across > 1 and shape[1] < 2 * OVERLAP_PX) or (down > 1 and shape[0] < 2 * OVERLAP_PX):
            raise ValueError(
                f"a virtual detector of {rows} × {columns} is too small for tiles of {shape[0]} × {shape[1]} that "
                f"share {OVERLAP_PX} pixels"
            )
        return shape

    def places(self, virtual: ConeBeamGeometry) -> Iterator[Place]:
        """Yield the places that the camera is taken to, row by row."""
        rows, columns = self.camera_shape(virtual.rows, virtual.columns)
        if self.camera_positions > 1:
            pitch = float(np.linalg.norm(virtual.column_steps[0]))
            step = (virtual.columns - columns) / (self.camera_positions - 1)
            for number in range(self.camera_positions):
                corner = (number * step, 0.0)
                moved = (number - (self.camera_positions - 1) / 2) * step * pitch
                yield Place(corner, _cut(virtual, corner, rows, columns), camera_mm=(moved, 0.0))
            return
        for row in _corners(virtual.rows, rows, self.tiles[1]):
            for column in _corners(virtual.columns, columns, self.tiles[0]):
                corner = (float(column), float(row))
                yield Place(corner, _cut(virtual, corner, rows, columns), origin_px=corner)


def _part(size: int, count: int) -> int:
    return size if count == 1 else math.ceil((size + (count - 1) * OVERLAP_PX) / count)


def _corners(size: int, part: int, count: int) -> list[int]:
    return [round(number * (size - part) / max(1, count - 1)) for number in range(count)]


def _cut(virtual: ConeBeamGeometry, corner: tuple[float, float], rows: int, columns: int) -> ConeBeamGeometry:
    column, row = corner[0] + (columns - 1) / 2, corner[1] + (rows - 1) / 2
    centres = virtual.first_pixels() + column * virtual.column_steps + row * virtual.row_steps
    return replace(virtual, detector_centres=centres, rows=rows, columns=columns)
