"""A source whose output drifts during the scan: every view is scaled so that air beside the object attenuates nothing.

What the reference channels of a clinical scanner do (Hsieh, Computed Tomography, 2nd ed., SPIE 2009, chapter 7), taken
from the outermost columns of each view instead.
"""

from __future__ import annotations

from itertools import chain

import numpy as np
from numpy.typing import NDArray

from reconstruct.working_memory import pieces

Image = NDArray[np.float32]

STRIP = 0.04
"""Width of the strips at both ends of the rows that are looked at, as a fraction of the columns."""

_STEEPEST = 0.02
"""Difference between the halves of a strip beyond which it is no air, as a line integral."""

_MOST = 0.5
"""Line integral of a strip that no drift explains."""


def source_drift(integrals: Image, *, strip: float = STRIP) -> NDArray[np.float64]:
    """Return how much each view is attenuated where it sees air, as a line integral, (view,): ``-log(output)``.

    Of the two strips at the ends of the rows the one that sees air is taken: object only attenuates, so it is the less
    attenuated one, and both halves of it are alike. Views in which neither is air are interpolated from their
    neighbours.

    Parameters
    ----------
    integrals
        (view, row, column); an array or a memory map.
    strip
        Width of a strip as a fraction of the columns.

    Raises
    ------
    ValueError
        More than half of the views see no air: the object fills the detector, and nothing tells the drift.
    """
    views, _, columns = integrals.shape
    width = max(2, round(strip * columns))
    if 2 * width > columns:
        raise ValueError(f"expected at least 4 columns to find air at both ends of the rows, got {columns}")
    drift = np.full(views, np.nan)
    for view, image in enumerate(chain.from_iterable(pieces(integrals))):
        levels = [_air(image[:, ends]) for ends in (slice(0, width), slice(columns - width, columns))]
        seen = [level for level in levels if level is not None]
        if seen:
            drift[view] = np.mean(seen) if np.ptp(seen) < _STEEPEST else min(seen)
    is_air = np.isfinite(drift)
    if is_air.sum() < views / 2:
        raise ValueError(
            f"the drift of the source is not known: {views - int(is_air.sum())} of {views} views see no air at either "
            "end of their rows"
        )
    numbers = np.arange(views)
    return np.asarray(np.interp(numbers, numbers[is_air], drift[is_air]), dtype=np.float64)


def remove_drift(integrals: Image, drift: NDArray[np.float64]) -> Image:
    """Subtract what `source_drift` found from each view, in place.

    Parameters
    ----------
    integrals
        (view, row, column) float32, changed and returned.
    drift
        (view,).
    """
    for view, level in zip(chain.from_iterable(pieces(integrals)), drift.astype(np.float32), strict=True):
        view -= level
    return integrals


def _air(strip: Image) -> float | None:
    """Return the median over the rows of a strip (row, column), None where it is no air."""
    middle = strip.shape[1] // 2
    level, outer, inner = (float(np.median(part)) for part in (strip, strip[:, :middle], strip[:, middle:]))
    noise = 1.2533 * float(np.std(strip)) / np.sqrt(strip.size / 2)
    is_flat = abs(outer - inner) <= _STEEPEST + 3 * noise
    return level if is_flat and abs(level) <= _MOST else None
