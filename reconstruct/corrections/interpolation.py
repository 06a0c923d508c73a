"""Pixels that say nothing: replaced by straight lines between the nearest sound pixels on both sides.

Through each such pixel run four lines: its row, its column and both diagonals. Along each the nearest sound pixel is
looked for on either side, and the value is interpolated linearly between the two, as across the shadow of metal
(Kalender, Hebel & Ebersberger, "Reduction of CT artifacts caused by metallic implants", Radiology 164 (1987) 576). The
shorter a line's way through what is masked, the more it counts: a failing column is crossed, and nothing comes from
along it; a block is filled from all sides.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from reconstruct.working_memory import pieces

Image = NDArray[np.float32]
Mask = NDArray[np.bool_]
Index = NDArray[np.intp]

_LINES = ((0, 1), (1, 0), (1, 1), (1, -1))
"""Steps, (row, column), of the lines through a pixel."""

_POWER = 4
"""Of the way through what is masked, by which a line counts less."""


class PixelRepair:
    """Puts what the nearest sound pixels on both sides tell in the place of masked pixels.

    Where no line has a sound pixel on both sides, as in a column at the edge of the detector, the nearest ones of those
    sides that have one stand for it. Nothing wraps around.

    Parameters
    ----------
    mask
        (row, column), True where a pixel is to be replaced.
    most
        Largest fraction of masked pixels that can still be called interpolation.

    Raises
    ------
    ValueError
        More pixels are masked than `most`.
    """

    def __init__(self, mask: Mask, *, most: float = 0.25) -> None:
        fraction = float(mask.mean())
        if fraction > most:
            raise ValueError(
                f"{fraction:.0%} of the detector's pixels are dead, at most {most:.0%} can be interpolated"
            )
        self._rows, self._columns = np.nonzero(mask)
        self._near_rows, self._near_columns, self._weights = _near(mask, self._rows, self._columns)

    def of(self, images: Image) -> Image:
        """Replace the pixels of images, (…, row, column) float32, in place; they are returned."""
        if self._rows.size:
            near = images[..., self._near_rows, self._near_columns]
            images[..., self._rows, self._columns] = np.einsum("...pn,pn->...p", near, self._weights)
        return images


def interpolate_pixels(images: Image, mask: Mask, *, most: float = 0.25) -> Image:
    """Replace masked pixels of images, (view, row, column) or (row, column), in place, as `PixelRepair` does.

    Raises
    ------
    ValueError
        More pixels are masked than `most`.
    """
    repair = PixelRepair(mask, most=most)
    for part in pieces(images) if images.ndim > 2 else [images]:
        repair.of(part)
    return images


def _near(mask: Mask, rows: Index, columns: Index) -> tuple[Index, Index, Image]:
    """Return rows, columns and weights of the pixels that take the place of each, (pixel, 8); weights add up to 1."""
    steps = [(side * down, side * right) for down, right in _LINES for side in (-1, 1)]
    reaches = np.stack([_reach(mask, rows, columns, step) for step in steps], axis=1)
    lengths = np.array([np.hypot(*step) for step in steps])
    distances = (reaches * lengths).reshape(len(rows), len(_LINES), 2)
    paired = (distances > 0).all(axis=2, keepdims=True)
    span = np.where(paired, distances.sum(axis=2, keepdims=True), 1.0)
    between = np.where(paired, distances[:, :, ::-1] / span ** (_POWER + 1), 0.0)
    alone = np.where(distances > 0, 1.0 / np.maximum(distances, 1.0) ** _POWER, 0.0)
    weights = np.where(paired.any(axis=1, keepdims=True), between, alone).reshape(reaches.shape)
    weights /= np.maximum(weights.sum(axis=1, keepdims=True), np.finfo(np.float64).tiny)
    # What counts nothing points to a pixel that counts: 0 times NaN is not 0.
    used = np.where(weights > 0, np.arange(len(steps)), weights.argmax(axis=1)[:, None])
    reaches = np.take_along_axis(reaches, used, axis=1)
    down, right = (np.array([step[axis] for step in steps])[used] for axis in (0, 1))
    return rows[:, None] + reaches * down, columns[:, None] + reaches * right, weights.astype(np.float32)


def _reach(mask: Mask, rows: Index, columns: Index, step: tuple[int, int]) -> Index:
    """Return how many steps each pixel is from the nearest sound one in a direction, (pixel,); 0: there is none."""
    reaches = np.zeros(len(rows), dtype=np.intp)
    left = np.arange(len(rows))
    for reach in range(1, max(mask.shape)):
        row, column = rows[left] + reach * step[0], columns[left] + reach * step[1]
        inside = (row >= 0) & (row < mask.shape[0]) & (column >= 0) & (column < mask.shape[1])
        left, row, column = left[inside], row[inside], column[inside]
        sound = ~mask[row, column]
        reaches[left[sound]] = reach
        left = left[~sound]
        if not left.size:
            break
    return reaches
