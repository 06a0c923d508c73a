"""Detector tiles, one exposure each, stitched to the virtual detector that the scan would have needed.

The camera stands elsewhere for each tile; Tile Origin (0071,xx30) says where its first pixel lies on the virtual
detector. Tiles are line integrals, each with its own flat field, so that their seams need no matching of levels; where
they overlap, their weights fall linearly towards their edges, as in the blending of panoramas.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.float32]

_VIEWS_AT_ONCE = 16


def stitch(tiles: Sequence[Image], origins_px: Sequence[tuple[float, float]], out: Image) -> Image:
    """Put tiles together, in place of what `out` holds.

    Parameters
    ----------
    tiles
        Line integrals of each tile, (view, row, column); arrays or memory maps.
    origins_px
        (column, row) of the first pixel of each tile on the virtual detector, pixels; between pixels, the tile is
        interpolated linearly.
    out
        Of the virtual detector, (view, row, column) float32.

    Returns
    -------
    `out`.

    Raises
    ------
    ValueError
        Tiles that leave a gap, reach beyond the virtual detector, or have other numbers of views.
    """
    placed = [_Placed(tile, origin, out.shape) for tile, origin in zip(tiles, origins_px, strict=True)]
    total = np.zeros(out.shape[1:], dtype=np.float32)
    for tile in placed:
        total[tile.area] += tile.weights
    if (total <= 0).any():
        row, column = np.argwhere(total <= 0)[0]
        raise ValueError(f"the tiles leave a gap: nothing covers row {row}, column {column} of the virtual detector")
    for start in range(0, len(out), _VIEWS_AT_ONCE):
        views = slice(start, start + _VIEWS_AT_ONCE)
        block = out[views]
        block[...] = 0
        for tile in placed:
            block[:, *tile.area] += tile.values(views) * (tile.weights / total[tile.area])
    return out


class _Placed:
    """A tile on the pixels of the virtual detector."""

    def __init__(self, tile: Image, origin_px: tuple[float, float], shape: tuple[int, ...]) -> None:
        if len(tile) != shape[0]:
            raise ValueError(f"expected {shape[0]} views of each tile, got {len(tile)}")
        self._tile = tile
        (first_column, self._column), (first_row, self._row) = (_split(value) for value in origin_px)
        rows, columns = tile.shape[1] - bool(self._row), tile.shape[2] - bool(self._column)
        if min(first_row, first_column) < 0 or first_row + rows > shape[1] or first_column + columns > shape[2]:
            raise ValueError(
                f"a tile of {tile.shape[1]} × {tile.shape[2]} pixels at {origin_px} reaches beyond the virtual "
                f"detector of {shape[1]} × {shape[2]}"
            )
        self.area = np.s_[first_row : first_row + rows, first_column : first_column + columns]
        ramps = [np.minimum(np.arange(n) + 1, n - np.arange(n)).astype(np.float32) for n in (rows, columns)]
        self.weights = np.minimum(ramps[0][:, None], ramps[1])

    def values(self, views: slice) -> Image:
        """Return the tile on whole pixels, (view, row, column)."""
        values = self._tile[views]
        if self._row:
            values = values[:, :-1] * (1 - self._row) + values[:, 1:] * self._row
        if self._column:
            values = values[:, :, :-1] * (1 - self._column) + values[:, :, 1:] * self._column
        return values


def _split(origin: float) -> tuple[int, np.float32]:
    """Return the first whole pixel not before `origin`, and how far behind it that is."""
    first = int(np.ceil(origin - 1e-6))
    return first, np.float32(max(0.0, first - origin) if first - origin > 1e-6 else 0.0)
