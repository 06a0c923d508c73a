"""The window in which images before and after corrections are compared. Arrays only."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_PERCENTILES = (0.5, 99.0)
_MARGIN = 0.05
"""Of what lies between them, on both sides."""


def window_of(image: NDArray[np.float32], inside: NDArray[np.bool_] | None = None) -> tuple[float, float]:
    """Return the lowest and the highest value to show, of the image as it should be.

    What is before corrections is shown in the same window, so that the eye compares like with like: artefacts do not
    take the contrast from what they lie over. Percentiles, so that single pixels and a little bone do not either.

    Parameters
    ----------
    image
        The one after corrections, (row, column).
    inside
        Which pixels count: those within the field of view. None, or none of them: all.
    """
    counted = np.isfinite(image)
    if inside is not None and (counted & inside).any():
        counted &= inside
    if not counted.any():
        return 0.0, 1.0
    low, high = (float(value) for value in np.percentile(image[counted], _PERCENTILES))
    margin = _MARGIN * (high - low)
    return (low - margin, high + margin) if high > low else (low, low + 1.0)
