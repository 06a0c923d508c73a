"""Numbers of a segment: over voxels, in double precision."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

VERSION = "1"
"""Changes when the same voxels would give other numbers."""


@dataclass(frozen=True)
class Statistics:
    """First-order statistics of the voxels of a segment, in the unit of the values.

    Attributes
    ----------
    mean
        Arithmetic mean.
    standard_deviation
        Of the voxels as the whole population (divided by N), as the intensity variance of the IBSI reference manual.
    minimum, maximum
        The extreme voxels.
    """

    mean: float
    standard_deviation: float
    minimum: float
    maximum: float


def statistics(values: NDArray[np.floating], mask: NDArray[np.bool_]) -> Statistics | None:
    """Return the statistics of ``values[mask]``, None where the mask is empty.

    Parameters
    ----------
    values, mask
        ``(z, y, x)``, of one shape.
    """
    inside = values[mask].astype(np.float64)
    if not inside.size:
        return None
    return Statistics(float(inside.mean()), float(inside.std()), float(inside.min()), float(inside.max()))
