"""How far round the axis the views of a scan go, and what share of that each of them stands for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reconstruct.grid import GeometryError

_SPARSE_RAD = np.deg2rad(5.0)
"""A gap between views up to this is a missing view or two, not the end of an arc."""

_GAP_STEPS = 3.0
"""A larger gap is the end of an arc when it is more than this many median steps."""


@dataclass(frozen=True, eq=False)
class Arc:
    """Where the views of a scan stand around the axis.

    Attributes
    ----------
    shares_rad
        What each view stands for, rad, (view,): half of the gaps to its neighbours. The sum is `length_rad`.
    positions_rad
        Counted from the beginning of the arc, counterclockwise seen from +z, rad, (view,).
    length_rad
        From the first position to the last; 2π for a full circle.
    step_rad
        Median gap between neighbours.
    """

    shares_rad: NDArray[np.float64]
    positions_rad: NDArray[np.float64]
    length_rad: float
    step_rad: float

    @property
    def is_circle(self) -> bool:
        """Whether the views go all the way round."""
        return self.length_rad >= 2 * np.pi


def arc_of(view_angles_rad: ArrayLike) -> Arc:
    """Return the arc that views at these angles cover.

    Order and sense of rotation do not matter. Views that repeat an angle, as the last and the first of many scans
    do, share its weight. The views go all the way round unless the largest gap is half a turn, or over 5° and three
    median steps.

    Parameters
    ----------
    view_angles_rad
        φ of every source, rad, (view,).

    Raises
    ------
    GeometryError
        Views at one angle only, or with more than one such gap.
    """
    angles = np.mod(np.asarray(view_angles_rad, dtype=np.float64).reshape(-1), 2 * np.pi)
    order = np.argsort(angles, kind="stable")
    ascending = angles[order]
    gaps = np.diff(ascending, append=ascending[0] + 2 * np.pi)
    steps = gaps[gaps > 1e-4 * 2 * np.pi / len(angles)]
    end = int(np.argmax(gaps))
    others = np.sort(steps)[:-1]
    step = float(np.median(others)) if len(others) else 0.0
    most = max(_SPARSE_RAD, _GAP_STEPS * float(np.median(steps)))
    is_circle = gaps[end] <= min(most, np.pi * (1 - 1e-9))
    if not is_circle:
        most = max(_SPARSE_RAD, _GAP_STEPS * step)
        if not len(others):
            raise GeometryError(f"expected views around the axis, got {len(angles)} that cover 0.0 degrees")
        if others[-1] > most:
            raise GeometryError(
                f"expected views without gaps, got one of {np.rad2deg(others[-1]):.1f} degrees within the arc, where "
                f"the step is {np.rad2deg(step):.1f}"
            )
        gaps[end] = 0.0
    shares = np.empty_like(gaps)
    shares[order] = (gaps + np.roll(gaps, 1)) / 2
    start = 0.0 if is_circle else ascending[(end + 1) % len(ascending)]
    length = 2 * np.pi if is_circle else float(gaps.sum())
    # Rounding must not put the first view behind the last.
    positions = np.mod(angles - start + 1e-12, 2 * np.pi) - 1e-12
    return Arc(shares, positions, length, step)
