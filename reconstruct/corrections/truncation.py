"""Objects wider than the detector: projections are continued smoothly, so that the ramp filter meets no edge.

Two ways: symmetric mirroring that fades as a squared cosine (Ohnesorge et al., "Efficient correction for CT image
artifacts caused by objects extending outside the scan field of view", Med. Phys. 27 (2000) 39), and a cylinder of
water that takes over value and slope (Hsieh et al., "A novel reconstruction algorithm to extend the CT scan
field-of-view", Med. Phys. 31 (2004) 2385). Both need a detector that is wider than the real one:
`ConeBeamGeometry.extended` and an array with so many more columns, so that the reconstruction needs to know nothing.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import numpy as np
import scipy  # loads its parts when they are used
from numpy.typing import NDArray

from reconstruct.arcs import arc_of
from reconstruct.corrections.principal_point import axis_columns
from reconstruct.field_of_view import fan_of
from reconstruct.geometry import ConeBeamGeometry
from reconstruct.working_memory import pieces

Image = NDArray[np.float32]
Truncation = Literal["none", "cosine", "water"]

METHODS: tuple[str, ...] = get_args(Truncation)
"""What `extrapolate` can do."""

_FIT = 0.03
"""Columns at the edge that tell value and slope, as a fraction of all."""

_SMOOTH_ROWS = 1.5
"""Sigma of the Gaussian over the rows on value and slope, pixels: noise must not draw streaks outwards."""

_FADE = 0.25
"""Outer share of the margin over which a cylinder of water fades away."""


def margins(geometry: ConeBeamGeometry, share: float) -> tuple[int, int]:
    """Return how many columns to add before the first and behind the last.

    A detector that is offset to one side lacks its shorter side on purpose: only the longer one is extended.

    Parameters
    ----------
    share
        Of each margin, as a fraction of the columns.
    """
    columns = math.ceil(share * geometry.columns)
    fan = fan_of(geometry.sources, geometry.corners())
    if not (arc_of(geometry.view_angles_rad).is_circle and fan.is_offset):
        return columns, columns
    is_left = axis_columns(geometry).mean() > (geometry.columns - 1) / 2
    return (columns, 0) if is_left else (0, columns)


def extrapolate(
    extended: Image, before: int, after: int, method: str, *, water_per_column: float = 0.0
) -> Image:
    """Fill the margins of projections, in place.

    Parameters
    ----------
    extended
        (view, row, column) float32, line integrals between `before` and `after` columns that are to be filled.
    method
        "cosine" or "water", see the module; "none" fills in 0.
    water_per_column
        What a column's width of water at the isocentre attenuates, no unit; "water" only.

    Returns
    -------
    `extended`.

    Raises
    ------
    ValueError
        Another method, or water that does not attenuate.
    """
    if method not in METHODS:
        raise ValueError(f"expected an extrapolation of {', '.join(METHODS)}, got {method!r}")
    if method == "water" and not water_per_column > 0:
        raise ValueError(f"expected water that attenuates for the extrapolation, got {water_per_column} per column")
    columns = extended.shape[2]
    for block in pieces(extended):
        measured = block[:, :, before : columns - after]
        for margin, inwards in ((block[:, :, :before][..., ::-1], measured),
                                (block[:, :, columns - after :], measured[..., ::-1])):  # fmt: skip
            if margin.shape[2]:
                margin[...] = _continued(inwards, margin.shape[2], method, water_per_column)
    return extended


def _continued(inwards: Image, count: int, method: str, water: float) -> Image:
    """Return `count` columns beyond the edge, from the edge outwards; `inwards` goes from the edge inwards."""
    distance = np.arange(1, count + 1, dtype=np.float32)
    if method == "none":
        return np.zeros((*inwards.shape[:2], count), dtype=np.float32)
    value, slope = _edge(inwards)
    if method == "water":
        return _cylinder(value, slope, distance, water)
    mirrored = inwards[:, :, np.minimum(np.arange(1, count + 1), inwards.shape[2] - 1)]
    fade = np.cos(np.pi / 2 * distance / (count + 1)) ** 2
    # Falling for good: behind its middle the mirrored object would rise again.
    falling = np.minimum.accumulate(np.clip(2 * value[..., None] - mirrored, 0, value[..., None]), axis=-1)
    return np.asarray(falling * fade, dtype=np.float32)


def _edge(inwards: Image) -> tuple[Image, Image]:
    """Return the value at the edge and the slope outwards per column, (view, row), of a line through a few columns."""
    count = min(inwards.shape[2], max(4, round(_FIT * inwards.shape[2])))
    near = scipy.ndimage.gaussian_filter1d(inwards[:, :, :count], _SMOOTH_ROWS, axis=1, mode="nearest")
    offsets = np.arange(count, dtype=np.float32) - (count - 1) / 2
    outwards = -(near @ offsets) / np.float32((offsets**2).sum())
    value = near.mean(axis=2) + outwards * np.float32((count - 1) / 2)
    return np.maximum(value, 0), outwards


def _cylinder(value: Image, slope: Image, distance: NDArray[np.float32], water: float) -> Image:
    """Return the shadow of a cylinder of water with that value and slope at the edge, (view, row, distance)."""
    chord = value / (2 * water)
    # p = 2 μ sqrt(R² - x²), so p dp/dx = -4 μ² x; a shadow that rises outwards is continued flat.
    beyond = np.maximum(-value * slope / (4 * water**2), 0)
    radius_squared = chord**2 + beyond**2
    height = radius_squared[..., None] - (beyond[..., None] + distance) ** 2
    count = len(distance)
    into = (distance - (1 - _FADE) * count) / (_FADE * count + 1)
    fade = np.cos(np.pi / 2 * np.clip(into, 0, 1)) ** 2
    return np.asarray(2 * water * np.sqrt(np.maximum(height, 0)) * fade, dtype=np.float32)
