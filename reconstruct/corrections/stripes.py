"""Pixels that are off by a constant in all views, which makes rings: how much of that a scan has."""

from __future__ import annotations

import numpy as np
import scipy  # loads its parts when they are used
from numpy.typing import NDArray

Image = NDArray[np.float32]

_STRIPED_ROWS = 9
"""Rows in the middle that are looked at."""

_STRIPED_VIEWS = 256
"""Views that are looked at, spread over the scan."""


def constant_errors(integrals: Image, unsound: NDArray[np.bool_], flat_noise: float) -> tuple[float, float]:
    """Return by what constant pixels are off, as a standard deviation, and what noise alone would make of it.

    A pixel is compared with its neighbours in the row, and that with the same in the rows above and below: what goes
    on along rows or along columns, as the object does, cancels. The median over views leaves what is the same in all.

    Parameters
    ----------
    integrals
        (view, row, column), of which some rows in the middle are read.
    unsound
        Pixels that do not count, (row, column).
    flat_noise
        Of the mean flat field, as a line integral, which is the same in all views.
    """
    rows = integrals.shape[1]
    start = max(0, (rows - _STRIPED_ROWS) // 2 - 1)
    band = slice(start, min(rows, start + _STRIPED_ROWS + 2))
    apart: Image = np.array(integrals[:: max(1, len(integrals) // _STRIPED_VIEWS), band])
    kept = ~unsound[band]
    usual = 1.0
    for axis in (1, 2):
        if apart.shape[axis] < 3:
            continue
        apart = _beside_neighbours(apart, axis)
        kept = ~scipy.ndimage.binary_dilation(~kept, np.ones((3, 1) if axis == 1 else (1, 3), dtype=bool))
        kept = kept[1:-1] if axis == 1 else kept[:, 1:-1]
        usual *= 1.5
    if not kept.any():
        return 0.0, 0.0
    apart = apart[:, kept]
    constant = np.median(apart, axis=0)
    spread = 1.4826 * np.median(np.abs(apart - constant), axis=0)
    # The median of n normal numbers scatters by 1.2533 / √n of their standard deviation.
    by_chance = float(np.mean(spread**2)) * 1.2533**2 / len(apart) / usual + flat_noise**2
    return float(np.sqrt(max(0.0, float(np.mean(constant**2)) / usual - by_chance))), float(np.sqrt(by_chance))


def _beside_neighbours(values: Image, axis: int) -> Image:
    """Return how far values are from the mean of both neighbours along an axis, whose ends are left out."""
    along = np.moveaxis(values, axis, 0)
    apart: Image = along[1:-1] - np.float32(0.5) * (along[:-2] + along[2:])
    return np.moveaxis(apart, 0, axis)
