"""Pixels that misbehave in the views though their flat fields look sound: stuck, flickering, or hit since.

Single ones after the spatial outlier tests for flat panels (Seibert et al., Proc. SPIE 3336 (1998) 348), asked of the
views; whole rows, columns and blocks as `failing_parts` tells them.
"""

from __future__ import annotations

import numpy as np
import scipy  # loads its parts when they are used
from numpy.typing import NDArray

from reconstruct.arcs import arc_of
from reconstruct.corrections.failing_parts import Axis, Behaviour, failing_blocks, failing_lines
from reconstruct.corrections.principal_point import axis_columns
from reconstruct.geometry import ConeBeamGeometry, GeometryError
from reconstruct.working_memory import release

Image = NDArray[np.float32]

_MOST_VIEWS = 64
"""Views that are looked at, spread over the scan."""

_LEAST = 0.1
"""Departure from the neighbours, as a line integral, below which a pixel is left to the ring removal."""

_BANDS = 32
"""Parts of the detector that are looked at one after the other, so that not all of the views is held at once."""

_REACH = 2
"""Neighbours on each side."""

_LINES = ((0, 1), (1, 0), (1, 1), (1, -1))
"""Steps, (row, column), along which neighbours lie: row, column, and both diagonals."""


_FEWEST_VIEWS, _WIDEST_STEP = 32, np.deg2rad(7.5)
"""Views, and the angle between them, that tell how pixels behave from one to the next."""

_STILL_PX = 1.0
"""Columns by which the axis may be seen in different ones."""


def unsteady_pixels(
    integrals: Image, *, deviations: float = 8.0, axis: Axis | None = None
) -> NDArray[np.bool_]:
    """Return the pixels that are unlike their neighbours in view after view, (row, column).

    Of each pixel the distance from its two neighbours on each side is taken along row, column and both diagonals, and
    the least of the four counts: a thin part of the object, as a rib is, goes on along one of them, and a pixel
    that misbehaves differs along all. Where the median of that over views exceeds the usual one around it by more than
    `deviations` robust standard deviations, and by 0.1 of a line integral, what the pixel says is not the object.
    Rows, columns and blocks that fail together, whose neighbours are no better, are found by how they change.

    Parameters
    ----------
    integrals
        (view, row, column); an array or a memory map.
    deviations
        Robust standard deviations (median absolute deviation × 1.4826).
    axis
        As `seen_axis` tells it; None: only single pixels are looked for, for an object may stay where it is.
    """
    usual, behaviour = _looked_at(integrals)
    excess = usual - scipy.ndimage.median_filter(usual, size=7, mode="nearest")
    spread = 1.4826 * float(np.median(np.abs(excess - np.median(excess))))
    unsteady: NDArray[np.bool_] = excess > max(deviations * spread, _LEAST)
    if axis is not None:
        unsteady |= failing_lines(behaviour, axis, deviations=deviations)
        unsteady |= failing_blocks(behaviour, axis)
    return unsteady


def seen_axis(geometry: ConeBeamGeometry) -> Axis | None:
    """Return where the axis is seen; None where it tells nothing of what fails.

    That is where the views do not go all the way round (what is dense may stay on one side of the axis), are far apart
    or few, or see the axis in several columns.
    """
    try:
        arc = arc_of(geometry.view_angles_rad)
    except GeometryError:
        return None
    columns = axis_columns(geometry)
    sparse = geometry.views < _FEWEST_VIEWS or arc.step_rad > _WIDEST_STEP
    if sparse or not arc.is_circle or np.ptp(columns) > _STILL_PX:
        return None
    return Axis(float(np.median(columns)))


def _beside(view: int, views: int) -> tuple[int, int]:
    """Return the views before and behind one, or two beside one at the end."""
    if 0 < view < views - 1:
        return view - 1, view + 1
    return (min(1, views - 1), min(2, views - 1)) if view == 0 else (view - 1, max(view - 2, 0))


def _looked_at(integrals: Image) -> tuple[Image, Behaviour]:
    """Return the usual distance of each pixel from its neighbours, (row, column), and how pixels change."""
    step = max(1, len(integrals) // _MOST_VIEWS)
    looked_at = range(0, len(integrals), step)
    rows, columns = integrals.shape[1:]
    usual, roughness, level = (np.zeros((rows, columns), dtype=np.float32) for _ in range(3))
    band = -(-rows // _BANDS)
    for start in range(0, rows, band):
        stop = min(start + band, rows)
        distances, changes = (np.empty((len(looked_at), stop - start, columns), np.float32) for _ in range(2))
        low = max(0, start - _REACH)
        for number, view in enumerate(looked_at):
            seen = integrals[view, low : stop + _REACH]
            own = seen[start - low : stop - low]
            distances[number] = _distance_from_neighbours(seen)[start - low : stop - low]
            beside = [integrals[each, start:stop] for each in _beside(view, len(integrals))]
            # As the second difference it hardly sees an object that moves on.
            np.abs(own - np.float32(0.5) * (beside[0] + beside[1]), out=changes[number])
            level[start:stop] += own
            for each in (seen, *beside):
                release(each)
        usual[start:stop] = np.median(distances, axis=0, overwrite_input=True)
        roughness[start:stop] = np.median(changes, axis=0, overwrite_input=True)
    level /= len(looked_at)
    return usual, Behaviour(roughness, level)


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
