"""Counters that are full: a mask that single pixels are filled in by, from neighbours of the same view.

Normalized convolution with a certainty of 0 for full pixels and 1 for sound ones (Knutsson & Westin, "Normalized and
differential convolution: Methods for interpolation and filtering of incomplete and uncertain data", Proc. IEEE CVPR
(1993) 515), here with a box as its window.
"""

from __future__ import annotations

import numpy as np
import scipy  # loads its parts when they are used
from numpy.typing import NDArray

_WINDOW = 5
"""Edge of the window of neighbours, pixels."""


def replace_saturated(image: NDArray[np.float32], full: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return line integrals with those of full counters replaced by the mean of sound neighbours.

    A full counter says only that there was no less light; what came after is lost. Where a whole region is full, and
    no neighbour within the window is sound, its values stay: the least light there can have been.

    Parameters
    ----------
    image
        Line integrals of one view, (row, column).
    full
        Of `preprocess.saturated_pixels`, (row, column).
    """
    if not full.any():
        return image
    usable = ~full & np.isfinite(image)
    share = scipy.ndimage.uniform_filter(usable.astype(np.float32), _WINDOW, mode="nearest")
    mean = scipy.ndimage.uniform_filter(np.where(usable, image, 0).astype(np.float32), _WINDOW, mode="nearest")
    replaced = full & (share > 0.5 / _WINDOW**2)
    filled = image.copy()
    filled[replaced] = mean[replaced] / share[replaced]
    return filled
