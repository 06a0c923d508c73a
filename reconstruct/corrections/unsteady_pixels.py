"""Pixels that misbehave in the views though their flat fields look sound: stuck, flickering, or hit since.

After the spatial outlier tests for flat panels (Seibert et al., Proc. SPIE 3336 (1998) 348), asked of the views.
"""

from __future__ import annotations

import numpy as np
import scipy  # loads its parts when they are used
from numpy.typing import NDArray

from reconstruct.working_memory import release

Image = NDArray[np.float32]

_MOST_VIEWS = 64
"""Views that are looked at, spread over the scan."""

_LEAST = 0.1
"""Departure from the neighbours, as a line integral, below which a pixel is left to the ring removal."""

_BANDS = 16
"""Parts of the detector that are looked at one after the other, so that not all of the views is held at once."""

_REACH = 2
"""Neighbours on each side."""

_LINES = ((0, 1), (1, 0), (1, 1), (1, -1))
"""Steps, (row, column), along which neighbours lie: row, column, and both diagonals."""


def unsteady_pixels(integrals: Image, *, deviations: float = 8.0) -> NDArray[np.bool_]:
    """Return the pixels that are unlike their neighbours in view after view, (row, column).

    Of each pixel the distance from its two neighbours on each side is taken along row, column and both diagonals, and
    the least of the four counts: a thin part of the object, as a rib is, goes on along one of them, and a pixel
    that misbehaves differs along all. Where the median of that over views exceeds the usual one around it by more than
    `deviations` robust standard deviations, and by 0.1 of a line integral, what the pixel says is not the object.

    Parameters
    ----------
    integrals
        (view, row, column); an array or a memory map.
    deviations
        Robust standard deviations (median absolute deviation × 1.4826).
    """
    views = integrals[:: max(1, len(integrals) // _MOST_VIEWS)]
    rows = integrals.shape[1]
    usual = np.empty(integrals.shape[1:], dtype=np.float32)
    band = -(-rows // _BANDS)
    for start in range(0, rows, band):
        stop = min(start + band, rows)
        distances = np.empty((len(views), stop - start, integrals.shape[2]), dtype=np.float32)
        low = max(0, start - _REACH)
        for view, distance in zip(views, distances, strict=True):
            seen = view[low : stop + _REACH]
            distance[:] = _distance_from_neighbours(seen)[start - low : stop - low]
            release(seen)
        usual[start:stop] = np.median(distances, axis=0, overwrite_input=True)
    excess = usual - scipy.ndimage.median_filter(usual, size=7, mode="nearest")
    spread = 1.4826 * float(np.median(np.abs(excess - np.median(excess))))
    unsteady: NDArray[np.bool_] = excess > max(deviations * spread, _LEAST)
    return unsteady


def _distance_from_neighbours(view: Image) -> Image:
    """Return how far each pixel is from the median of five along a line, of the lines that fit, the nearest."""
    rows, columns = view.shape
    # Beyond the edge it goes back: a pixel is no neighbour of itself.
    around = np.pad(view, _REACH, mode="reflect")
    least = np.full(view.shape, np.inf, dtype=np.float32)
    for down, right in _LINES:
        if (down and rows <= _REACH) or (right and columns <= _REACH):
            continue
        near = []
        for step in (-2, -1, 1, 2):
            top, left = _REACH + step * down, _REACH + step * right
            near.append(around[top : top + rows, left : left + columns])
        # The median of five lies between these two, or is the fifth.
        one = np.maximum(np.minimum(near[0], near[1]), np.minimum(near[2], near[3]))
        other = np.minimum(np.maximum(near[0], near[1]), np.maximum(near[2], near[3]))
        median = np.clip(view, np.minimum(one, other), np.maximum(one, other))
        np.minimum(least, np.abs(view - median), out=least)
    return np.where(np.isfinite(least), least, np.float32(0))
