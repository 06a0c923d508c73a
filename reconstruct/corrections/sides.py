"""How far a pixel departs from what lies on both sides of it, beyond a gap as wide as what may fail together."""

from __future__ import annotations

import numpy as np
import scipy  # loads its parts when they are used
from numpy.typing import NDArray

Image = NDArray[np.float32]

_BESIDE = 5
"""Pixels of each side whose median is taken."""


def beyond_both_sides(values: Image, axis: int, gap: int) -> Image:
    """Return how far each value lies outside of what both sides of it hold; 0 between them.

    So a slope, or the edge of an object or of the beam, is no departure: only what is more, or less, than on either
    side is one. (As in Vo, Atwood & Drakopoulos, Opt. Express 26 (2018) 28396, here across a gap.)

    Parameters
    ----------
    values
        (row, column).
    axis
        Along which the sides lie.
    gap
        Pixels beside each that do not count, on either side: up to `gap` + 1 that fail together are told. Behind them
        the median of five is a side.

    Returns
    -------
    (row, column). Where the detector ends before one side does, the other side alone counts; 0 where both do.
    """
    one, other, known = _both_sides(values, axis, gap)
    apart: Image = values - np.clip(values, np.minimum(one, other), np.maximum(one, other))
    return np.where(known, apart, np.float32(0))


def _both_sides(values: Image, axis: int, gap: int) -> tuple[Image, Image, NDArray[np.bool_]]:
    """Return the medians of both sides, (row, column), and for which pixels there are any."""
    size = [1, 1]
    size[axis] = _BESIDE
    medians = scipy.ndimage.median_filter(values, size=tuple(size), mode="nearest")
    before, behind = _sides(values.shape[axis], gap)
    known = (before >= 0) | (behind >= 0)
    before, behind = np.where(before >= 0, before, behind), np.where(behind >= 0, behind, before)
    one, other = np.take(medians, before, axis=axis), np.take(medians, behind, axis=axis)
    return one, other, known if axis == 1 else known[:, None]


def has_both_sides(length: int, gap: int) -> NDArray[np.bool_]:
    """Return for which pixels of a line of so many `beyond_both_sides` knows both sides."""
    before, behind = _sides(length, gap)
    both: NDArray[np.bool_] = (before >= 0) & (behind >= 0)
    return both


def _sides(length: int, gap: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the middle of either side of each pixel, -1 where it is not wholly on the detector."""
    half, index = _BESIDE // 2, np.arange(length)
    before, behind = index - gap - half - 1, index + gap + half + 1
    return np.where(before >= half, before, -1), np.where(behind < length - half, behind, -1)
