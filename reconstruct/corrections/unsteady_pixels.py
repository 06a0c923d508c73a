"""Pixels that misbehave in the views though their flat fields look sound: stuck, flickering, or hit since.

After the spatial outlier tests for flat panels (Seibert et al., Proc. SPIE 3336 (1998) 348), asked of the views.
"""

from __future__ import annotations

import numpy as np
import scipy  # loads its parts when they are used
from numpy.typing import NDArray

from reconstruct.working_memory import release

_MOST_VIEWS = 64
"""Views that are looked at, spread over the scan."""

_LEAST = 0.1
"""Mean departure from the neighbours, as a line integral, below which a pixel is left to the ring removal."""


def unsteady_pixels(integrals: NDArray[np.float32], *, deviations: float = 8.0) -> NDArray[np.bool_]:
    """Return the pixels that are unlike their neighbours in view after view, (row, column).

    Of each pixel the mean distance from the median of its 5 × 5 neighbours is taken over views. Where it exceeds the
    usual distance around it by more than `deviations` robust standard deviations, and by 0.1 of a line integral, what
    the pixel says is not the object.

    Parameters
    ----------
    integrals
        (view, row, column); an array or a memory map.
    deviations
        Robust standard deviations (median absolute deviation × 1.4826).
    """
    step = max(1, len(integrals) // _MOST_VIEWS)
    distance = np.zeros(integrals.shape[1:], dtype=np.float64)
    count = 0
    for view in integrals[::step]:
        distance += np.abs(view - scipy.ndimage.median_filter(view, size=5, mode="nearest"))
        count += 1
        release(view)
    distance /= count
    excess = distance - scipy.ndimage.median_filter(distance, size=7, mode="nearest")
    spread = 1.4826 * float(np.median(np.abs(excess - np.median(excess))))
    unsteady: NDArray[np.bool_] = excess > max(deviations * spread, _LEAST)
    return unsteady
