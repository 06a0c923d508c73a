"""Pixels that the flat fields show to be dead: alone, in rows and columns, and in blocks."""

from __future__ import annotations

import numpy as np
import scipy  # loads its parts when they are used
from numpy.typing import ArrayLike, NDArray

from reconstruct.corrections.sides import beyond_both_sides, has_both_sides
from reconstruct.preprocess import COUNT_FLOOR

Mask = NDArray[np.bool_]

_CHANCE = 1e-7
"""Probability below which what a pixel does is no chance."""

_GAP = 8
"""Pixels that may fail side by side, and one more."""

_DARK, _DARK_AT_THE_EDGE = 10.0, 200.0
"""How many times as bright both sides are, or the only one, of what does not answer to light."""

_STUCK_FRAMES = 8
"""Flat frames that are equal in one pixel by no chance."""

_STUCK_TOGETHER, _STUCK_SHARE = 7, 0.05
"""Pixels of a line, or of a 3 × 3 square, that are equal in fewer frames by no chance, unless so many are."""


def dead_pixels(flats: ArrayLike, *, deviations: float = 8.0, least_deviation: float = 0.3) -> Mask:
    """Return the pixels that do not answer to light as their neighbours do.

    Four kinds of single ones: no counts in any frame; the same count in every frame where noise must differ (stuck); a
    mean that departs from the median of the 5 × 5 neighbours by more than `deviations` robust standard deviations
    (median absolute deviation × 1.4826) and more than `least_deviation` of it; counts that scatter over the frames as
    they do by chance in one pixel of ten million (noisy). Two more of what fails together, up to nine pixels wide: less
    than a tenth of the light on both sides; stuck in as many frames as there are. A wide part that is less sensitive
    than its surroundings is not dead: flat fields correct it.

    Parameters
    ----------
    flats
        Frames without an object, (frame, row, column) or one of them, (row, column).
    deviations
        Number of robust standard deviations.
    least_deviation
        Least departure from the neighbours, as a fraction: gain that merely differs is what flat fields correct.

    Returns
    -------
    (row, column), True where dead.
    """
    frames = np.asarray(flats, dtype=np.float32)
    if frames.ndim == 2:
        frames = frames[None]
    mean = frames.mean(axis=0, dtype=np.float64)
    # Beyond the edge the outermost pixels are repeated: neighbours never come from the opposite side.
    around = scipy.ndimage.median_filter(mean, size=5, mode="nearest")
    departure = mean / np.maximum(around, COUNT_FLOOR) - 1.0
    spread = 1.4826 * float(np.median(np.abs(departure - np.median(departure))))
    dead: Mask = (mean <= 0) | (np.abs(departure) > max(deviations * spread, least_deviation))
    return dead | _dark(mean) | _stuck(frames, mean) | _noisy(frames, mean)


def _dark(mean: NDArray[np.float64]) -> Mask:
    """Return what is narrow in its row, or in its column, and hardly lit between what is."""
    level = np.log(np.maximum(mean, COUNT_FLOOR)).astype(np.float32)
    dark = np.zeros(mean.shape, dtype=bool)
    for axis, length in enumerate(mean.shape):
        # With one side only it may be the shadow of a collimator, which flat fields correct while there is light.
        least = np.where(has_both_sides(length, _GAP), -np.log(_DARK), -np.log(_DARK_AT_THE_EDGE))
        dark |= beyond_both_sides(level, axis, _GAP) < (least[:, None] if axis == 0 else least)
    return dark


def _stuck(frames: NDArray[np.float32], mean: NDArray[np.float64]) -> Mask:
    """Return the pixels that count the same in every frame where noise must differ."""
    # Poisson counts above 100 repeat by chance in one of 35 pairs: eight equal frames are no chance.
    same: Mask = (np.ptp(frames, axis=0) == 0) & (mean > 100)
    if len(frames) >= _STUCK_FRAMES:
        return same
    together = np.zeros(mean.shape, dtype=bool)
    if len(frames) < 2 or same.mean() > _STUCK_SHARE:
        return together
    for shape in ((1, _STUCK_TOGETHER), (_STUCK_TOGETHER, 1), (3, 3)):
        if all(size <= length for size, length in zip(shape, mean.shape, strict=True)):
            together |= scipy.ndimage.binary_opening(same, np.ones(shape, dtype=bool))
    return together


def _noisy(frames: NDArray[np.float32], mean: NDArray[np.float64]) -> Mask:
    """Return the pixels whose variance over the frames no chance explains (χ², against the usual variance / mean)."""
    freedom = len(frames) - 1
    if freedom < 2:
        return np.zeros(mean.shape, dtype=bool)
    squares = np.zeros(mean.shape)
    for frame in frames:  # one by one: their variance all at once takes twice their memory
        squares += (frame - mean) ** 2
    scatter = squares / freedom / np.maximum(mean, COUNT_FLOOR)
    usual = float(np.median(scatter))
    noisy: Mask = scatter > usual * scipy.special.chdtri(freedom, _CHANCE) / freedom
    return noisy if usual > 0 else np.zeros(mean.shape, dtype=bool)
