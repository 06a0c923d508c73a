"""Values on planes of their own brought onto the slices of a source grid, each voxel by its nearest neighbour."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from plugins.node import CannotProceed
from plugins.segmentation.planes import Planes
from plugins.segmentation.source_grid import ON_SLICE, SourceGrid

Value = TypeVar("Value", bound=np.generic)

_ROUNDING = 1e-6
"""A voxel half-way between two is given to the same one, whatever the rounding of its position."""


@dataclass(frozen=True, eq=False)
class Neighbours:
    """For every voxel of a slice the voxel of the stack that is nearest.

    Attributes
    ----------
    at
        Axes (row, column), flat index in the stack; −1 where none is within half a voxel of its field of view.
    exact
        Whether all lie within a tenth of a voxel of each other.
    """

    at: NDArray[np.int64]
    exact: bool


def neighbours(planes: Planes, shape_yx: tuple[int, int], step_mm: float, grid: SourceGrid) -> Iterator[Neighbours]:
    """Yield the neighbours of the voxels of each slice of `grid` among those of `planes`.

    Parameters
    ----------
    planes
        In order along their normal.
    shape_yx
        Rows and columns of each.
    step_mm
        Their distance: a voxel further than half of it from all planes has no neighbour.

    Raises
    ------
    CannotProceed
        The images are in no plane, or the distance is not known.
    """
    if grid.planes is None or step_mm <= 0:
        raise CannotProceed("the segmentation or the images do not say how far apart their slices are")
    source, distances = grid.planes, planes.distances_mm
    between = (distances[1:] + distances[:-1]) / 2
    rows, columns = np.arange(grid.shape_zyx[1]), np.arange(grid.shape_zyx[2])
    down, across = source.column_xyz * source.spacing_mm_yx[0], source.row_xyz * source.spacing_mm_yx[1]
    first = planes.in_plane(planes.positions_mm[0] - planes.positions_mm)
    by_row, by_column = planes.in_plane(down), planes.in_plane(across)
    for position in source.positions_mm:
        off = position - planes.positions_mm[0]
        # All coordinates are linear in row and column: outer sums, three of them.
        along = _sum(distances[0] + off @ planes.normal_xyz, down @ planes.normal_xyz * rows,
                     across @ planes.normal_xyz * columns)  # fmt: skip
        nearest = np.searchsorted(between, along - _ROUNDING)
        away = np.abs(along - distances[nearest]) / step_mm
        start = planes.in_plane(off)
        row = _sum(start[0], by_row[0] * rows, by_column[0] * columns) + first[nearest, 0]
        column = _sum(start[1], by_row[1] * rows, by_column[1] * columns) + first[nearest, 1]
        at_row, at_column = _rounded(row), _rounded(column)
        within = away <= 0.5 + _ROUNDING
        within &= (at_row >= 0) & (at_row < shape_yx[0]) & (at_column >= 0) & (at_column < shape_yx[1])
        residual = np.maximum(away, np.maximum(np.abs(row - at_row), np.abs(column - at_column)))
        flat = (nearest * shape_yx[0] + at_row) * shape_yx[1] + at_column
        yield Neighbours(np.where(within, flat, -1), bool((residual[within] <= ON_SLICE).all()))


def taken(stack: NDArray[Value], at: NDArray[np.int64]) -> NDArray[Value]:
    """Return the values of `stack`, axes (plane, row, column), at neighbours; 0 where there is none."""
    return np.where(at >= 0, stack.ravel()[np.maximum(at, 0)], stack.dtype.type(0))


def _sum(start: float, rows: NDArray[np.float64], columns: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(start + rows[:, None] + columns[None, :])


def _rounded(value: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.ceil(value - 0.5 - _ROUNDING).astype(np.int64)
