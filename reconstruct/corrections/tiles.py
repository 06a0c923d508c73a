"""Detector tiles, one exposure each, stitched to the virtual detector that the scan would have needed.

The camera stands elsewhere for each tile. Tiles are line integrals, each with its own flat field, so that their seams
need no matching of levels; where they overlap, their weights fall linearly towards their edges, as in the blending of
panoramas (Szeliski, Image alignment and stitching, Found. Trends Comput. Graph. Vis. 2 (2006) 1, section 6). What no
tile covers, the few pixels between chips, is interpolated from both sides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.float32]
Mask = NDArray[np.bool_]

_VIEWS_AT_ONCE = 16

_WIDEST_GAP = 0.05
"""Of the longer side of the virtual detector: a wider gap is a missing tile."""

_NARROW_GAP = 2
"""Pixels: always interpolated, for tiles between pixels that touch leave as many."""

_WHOLE = 1e-4
"""Pixels: an origin so close to a whole pixel needs no interpolation."""


@dataclass(frozen=True, eq=False)
class VirtualDetector:
    """The detector that tiles make up together.

    Attributes
    ----------
    rows, columns
        Its size, pixels.
    tile_shape
        (row, column) of a tile.
    origins_px
        (column, row) of the first pixel of each tile, pixels, 0-based; between pixels, a tile is interpolated linearly.

    Raises
    ------
    ValueError
        Tiles that reach beyond the detector, or leave a gap that is too wide to be interpolated.
    """

    rows: int
    columns: int
    tile_shape: tuple[int, int]
    origins_px: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        if self.gap.any():
            self._refuse_wide_gap()

    @classmethod
    def around(cls, tile_shape: tuple[int, int], origins_px: Sequence[tuple[float, float]]) -> VirtualDetector:
        """Return the smallest one, from pixel 0 on, that holds tiles at these origins."""
        column, row = (float(value) for value in np.max(origins_px, axis=0))
        rows, columns = (int(np.floor(last + n + _WHOLE)) for last, n in zip((row, column), tile_shape, strict=True))
        return cls(rows, columns, tile_shape, tuple((float(c), float(r)) for c, r in origins_px))

    @cached_property
    def gap(self) -> Mask:
        """Pixels that no tile covers, (row, column)."""
        mask: Mask = self._total <= 0
        return mask

    def stitch(self, tiles: Sequence[Image], out: Image) -> Image:
        """Put tiles together, in place of what `out` holds.

        Parameters
        ----------
        tiles
            Line integrals of each tile, (view, row, column); arrays or memory maps.
        out
            Of the virtual detector, (view, row, column) float32.

        Returns
        -------
        `out`.

        Raises
        ------
        ValueError
            Tiles of another shape or another number of views.
        """
        for tile in tiles:
            if tile.shape != (len(out), *self.tile_shape):
                raise ValueError(f"expected tiles of shape {(len(out), *self.tile_shape)}, got {tile.shape}")
        for start in range(0, len(out), _VIEWS_AT_ONCE):
            views = slice(start, start + _VIEWS_AT_ONCE)
            block = out[views]
            block[...] = 0
            for tile, placed in zip(tiles, self._placed, strict=True):
                block[:, *placed.area] += placed.moved(tile[views]) * placed.share
            for filling in self._fillings:
                filling.fill(block)
        return out

    @cached_property
    def _total(self) -> Image:
        total = np.zeros((self.rows, self.columns), dtype=np.float32)
        for origin in self.origins_px:
            area, weights, _ = _place(self.tile_shape, origin, total.shape)
            total[area] += weights
        return total

    @cached_property
    def _placed(self) -> tuple[_Placed, ...]:
        shape = (self.rows, self.columns)
        placed = []
        for origin in self.origins_px:
            area, weights, behind = _place(self.tile_shape, origin, shape)
            placed.append(_Placed(area, weights / self._total[area], behind))
        return tuple(placed)

    @cached_property
    def _fillings(self) -> tuple[_Filling, ...]:
        fillings, left = [], self.gap.copy()
        while left.any():
            filling = _Filling.of(left)
            fillings.append(filling)
            left[filling.rows, filling.columns] = False
        return tuple(fillings)

    def _refuse_wide_gap(self) -> None:
        most = max(_NARROW_GAP, int(_WIDEST_GAP * max(self.rows, self.columns)))
        widest = int(_Filling.of(self.gap).width.max(initial=0))
        if widest > most:
            row, column = np.argwhere(self.gap)[0]
            raise ValueError(
                f"the tiles leave a gap of {widest} pixels, of which at most {most} can be interpolated: nothing "
                f"covers row {row}, column {column} of the virtual detector of {self.rows} × {self.columns}"
            )


@dataclass(frozen=True, eq=False)
class _Placed:
    """A tile on the pixels of the virtual detector: where, its share of them, and by how much it lies behind."""

    area: tuple[slice, slice]
    share: Image
    behind: tuple[np.float32, np.float32]

    def moved(self, values: Image) -> Image:
        """Return the tile on whole pixels, (view, row, column)."""
        column, row = self.behind
        if row:
            values = values[:, :-1] * (1 - row) + values[:, 1:] * row
        if column:
            values = values[:, :, :-1] * (1 - column) + values[:, :, 1:] * column
        return values


def _place(
    tile_shape: tuple[int, int], origin_px: tuple[float, float], shape: tuple[int, ...]
) -> tuple[tuple[slice, slice], Image, tuple[np.float32, np.float32]]:
    """Return the area of a tile, its weights there and how far behind its origin that begins, (column, row)."""
    (first_column, column), (first_row, row) = (_split(value) for value in origin_px)
    rows, columns = tile_shape[0] - bool(row), tile_shape[1] - bool(column)
    if min(first_row, first_column) < 0 or first_row + rows > shape[0] or first_column + columns > shape[1]:
        raise ValueError(
            f"a tile of {tile_shape[0]} × {tile_shape[1]} pixels at {origin_px} reaches beyond the virtual detector of "
            f"{shape[0]} × {shape[1]}"
        )
    area = np.s_[first_row : first_row + rows, first_column : first_column + columns]
    ramps = [np.minimum(np.arange(n) + 1, n - np.arange(n)).astype(np.float32) for n in (rows, columns)]
    return area, np.minimum(ramps[0][:, None], ramps[1]), (column, row)


def _split(origin: float) -> tuple[int, np.float32]:
    """Return the first whole pixel not before `origin`, and how far behind it that is."""
    first = int(np.ceil(origin - _WHOLE))
    return first, np.float32(first - origin if first - origin > _WHOLE else 0.0)


@dataclass(frozen=True, eq=False)
class _Filling:
    """Pixels that follow from covered ones in their row and their column, the nearer one counting more.

    Attributes
    ----------
    rows, columns
        Which pixels, (pixel,).
    width
        Of the gap that each lies in, pixels, (pixel,).
    near_rows, near_columns, weights
        What each follows from, (pixel, 4); a neighbour that there is none of weighs 0.
    """

    rows: NDArray[np.intp]
    columns: NDArray[np.intp]
    width: NDArray[np.intp]
    near_rows: NDArray[np.intp]
    near_columns: NDArray[np.intp]
    weights: Image

    @classmethod
    def of(cls, gap: Mask) -> _Filling:
        """Return the filling of what has a covered pixel in its row or its column, from both sides where there are."""
        rows, columns = np.nonzero(gap)
        sides = [side[rows, columns] for axis in (1, 0) for side in _nearest(~gap, axis)]
        index = np.stack([columns, columns, rows, rows], axis=1)
        near = np.stack(sides, axis=1)
        exists = near >= 0
        pairs = np.repeat(exists[:, ::2] & exists[:, 1::2], 2, axis=1)
        used = np.where(pairs.any(axis=1, keepdims=True), pairs, exists)
        distance = np.where(used, np.abs(near - index), np.iinfo(np.intp).max // 4)
        # From one side only, there is as much behind the pixel as before it, for all that is known.
        spans = np.stack([distance[:, 0] + distance[:, 1], distance[:, 2] + distance[:, 3]], axis=1) - 1
        width = np.where(pairs.any(axis=1), spans.min(axis=1), 2 * distance.min(axis=1))
        weights = np.where(used, 1.0 / np.maximum(distance, 1), 0.0)
        filled = used.any(axis=1)
        weights[filled] /= weights[filled].sum(axis=1, keepdims=True)
        near = np.maximum(near, 0)
        near_rows = np.stack([rows, rows, near[:, 2], near[:, 3]], axis=1)
        near_columns = np.stack([near[:, 0], near[:, 1], columns, columns], axis=1)
        return cls(
            rows[filled], columns[filled], width[filled], near_rows[filled], near_columns[filled],
            weights[filled].astype(np.float32),
        )  # fmt: skip

    def fill(self, images: Image) -> None:
        """Fill the pixels of images, (view, row, column), in place."""
        images[:, self.rows, self.columns] = np.einsum(
            "vpn,pn->vp", images[:, self.near_rows, self.near_columns], self.weights
        )


def _nearest(covered: Mask, axis: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the index along `axis` of the nearest covered pixel before and behind each, (row, column); -1: none."""
    size = covered.shape[axis]
    index = np.arange(size).reshape((1, -1) if axis == 1 else (-1, 1))
    before = np.maximum.accumulate(np.where(covered, index, -1), axis=axis)
    behind = np.flip(np.minimum.accumulate(np.flip(np.where(covered, index, size), axis), axis=axis), axis)
    return before, np.where(behind == size, -1, behind)
