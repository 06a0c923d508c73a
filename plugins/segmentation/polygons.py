"""Closed contours to pixels: a pixel belongs to a shape when its centre lies inside of it, or on its line.

Even-odd: a centre is inside when a line from it to the left crosses the contours an odd number of times, so that a
contour within another one is a hole, and the channel of a keyhole, which is passed twice, leaves no trace. Pixel
centres *on* a contour count: programs that trace label maps draw through the centres of the outermost pixels.
(scikit-image fills one polygon at a time, and which pixels of its line it takes depends on their side.)
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

ON_LINE = 0.001
"""Distance in pixels from a line up to which a pixel centre lies on it: more than single precision loses."""

Polygon = NDArray[np.float64]
"""Axes (point, (row, column)) in pixels, whole numbers at pixel centres; the last point is joined to the first one."""


def filled(polygons: Iterable[Polygon], shape_yx: tuple[int, int]) -> NDArray[np.bool_]:
    """Return the pixels, axes (row, column), of a shape with all `polygons` as its contours."""
    crossings = np.zeros((shape_yx[0], shape_yx[1] + 1), np.int32)
    line = np.zeros(shape_yx, np.bool_)
    for polygon in polygons:
        start, end = polygon, np.roll(polygon, -1, axis=0)
        _count_crossings(crossings, start, end)
        _mark_line(line, start, end)
        _mark_line(line.T, start[:, ::-1], end[:, ::-1])
    return np.asarray((np.cumsum(crossings[:, :-1], axis=1) % 2 == 1) | line)


def _count_crossings(crossings: NDArray[np.int32], start: Polygon, end: Polygon) -> None:
    """Count at each pixel the edges that pass between its centre and that of its left neighbour.

    An edge has its upper end and not its lower one, so that a point that two edges share counts once.
    """
    low, high = np.minimum(start[:, 0], end[:, 0]), np.maximum(start[:, 0], end[:, 0])
    edge, row = _ranges(np.ceil(low), np.ceil(high), crossings.shape[0])
    share = (row - start[edge, 0]) / (end[edge, 0] - start[edge, 0])
    column = start[edge, 1] + share * (end[edge, 1] - start[edge, 1])
    np.add.at(crossings, (row, np.clip(np.ceil(column), 0, crossings.shape[1] - 1).astype(np.int64)), 1)


def _mark_line(line: NDArray[np.bool_], start: Polygon, end: Polygon) -> None:
    """Mark the pixel centres on the edges, row by row; what runs along a row needs a second call, transposed."""
    low, high = np.minimum(start[:, 0], end[:, 0]), np.maximum(start[:, 0], end[:, 0])
    edge, row = _ranges(np.ceil(low - ON_LINE), np.floor(high + ON_LINE) + 1, line.shape[0])
    rise = end[edge, 0] - start[edge, 0]
    share = np.divide(row - start[edge, 0], rise, out=np.zeros(len(edge)), where=rise != 0).clip(0, 1)
    column = start[edge, 1] + share * (end[edge, 1] - start[edge, 1])
    nearest = np.round(column)
    on = (np.abs(column - nearest) <= ON_LINE) & (nearest >= 0) & (nearest < line.shape[1])
    line[row[on], nearest[on].astype(np.int64)] = True


def _ranges(
    first: NDArray[np.float64], end: NDArray[np.float64], rows: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return all pairs (edge, row) with `first` ≤ row < `end` of the edge, within the picture."""
    begin = np.clip(first, 0, rows).astype(np.int64)
    counts = np.maximum(np.clip(end, 0, rows).astype(np.int64) - begin, 0)
    edge = np.repeat(np.arange(len(counts)), counts)
    within = np.arange(len(edge)) - np.repeat(np.cumsum(counts) - counts, counts)
    return edge, begin[edge] + within
