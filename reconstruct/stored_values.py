"""How attenuation becomes 16-bit pixels of a CT image: Hounsfield units where water is known, attenuation where not."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reconstruct.working_memory import pieces

_LOWEST, _HIGHEST = -32768, 32767
_AT_ONCE = 1 << 16
"""Values that are converted at once."""

_FINEST_STEP_PER_CM = 1e-4
"""Attenuation is stored in steps of this, doubled until the densest voxel fits; water has some 2,000 to 8,000 steps."""


@dataclass(frozen=True)
class StoredValues:
    """A linear map between pixels and what they mean.

    Attributes
    ----------
    rescale_type
        HU or US (PS3.3 C.11.1.1.2).
    slope, intercept
        Modality value = slope × stored + intercept.
    per_cm_slope, per_cm_intercept
        Attenuation in 1/cm from stored values, for the Real World Value Mapping.
    window_center, window_width
        What to show at first, in modality values.
    has_scale
        Whether values are attenuation; not so of a limited arc, whose values tell only more from less.
    """

    rescale_type: str
    slope: float
    intercept: float
    per_cm_slope: float
    per_cm_intercept: float
    window_center: float
    window_width: float
    has_scale: bool = True

    def pixels(self, mu_per_mm: NDArray[np.float32]) -> NDArray[np.int16]:
        """Return attenuation in 1/mm as stored values, rounded; what exceeds 16 bits becomes their limit."""
        stored = np.empty(mu_per_mm.shape, dtype=np.int16)
        count = max(1, _AT_ONCE // max(1, mu_per_mm[:1].size))
        for start in range(0, len(stored), count):
            values = mu_per_mm[start : start + count].astype(np.float64)
            values = (values * 10.0 - self.per_cm_intercept) / self.per_cm_slope
            stored[start : start + count] = np.clip(np.rint(values), _LOWEST, _HIGHEST)
        return stored


def hounsfield(volume: NDArray[np.float32], water_per_cm: float) -> StoredValues:
    """Return Hounsfield units: ``1000 (mu - mu_water) / mu_water`` (air is -1000).

    One a step, doubled until the densest voxel of `volume` fits: metal at low energies has 50,000 and more.

    Parameters
    ----------
    volume
        Attenuation, 1/mm, (z, y, x).
    water_per_cm
        Attenuation of water in the energy bin, 1/cm.

    Raises
    ------
    ValueError
        An attenuation of water that is not above 0, or voxels that are not finite.
    """
    if not 0 < water_per_cm < math.inf:
        raise ValueError(f"expected an attenuation of water above 0 1/cm, got {water_per_cm}")
    low, high = (1000 * (10.0 * mu_per_mm / water_per_cm - 1) for mu_per_mm in _range(volume))
    slope = _step(max(-low, high), 1.0)
    per_cm = slope * water_per_cm / 1000
    return StoredValues("HU", slope, 0.0, per_cm, water_per_cm, window_center=300, window_width=2000)


def attenuation(volume: NDArray[np.float32], *, has_scale: bool = True) -> StoredValues:
    """Return attenuation in 1/cm, without claiming Hounsfield units, in steps that fit the densest voxel of `volume`.

    Parameters
    ----------
    volume
        Attenuation, 1/mm, (z, y, x).
    has_scale
        Whether that is what it is, and not just proportional to something like it.

    Raises
    ------
    ValueError
        Voxels that are not finite.
    """
    low, high = _range(volume)
    densest = max(-low, high) * 10.0
    step = _step(densest, _FINEST_STEP_PER_CM)
    shown = max(densest, step)
    return StoredValues("US", step, 0.0, step, 0.0, window_center=shown / 2, window_width=shown, has_scale=has_scale)


def _step(largest: float, finest: float) -> float:
    """Return the finest step, doubled until `largest` fits 16 bits."""
    return finest * 2.0 ** max(0, math.ceil(math.log2(max(largest, 1e-12) / (_HIGHEST * finest))))


def _range(volume: NDArray[np.float32]) -> tuple[float, float]:
    """Return the lowest and the highest value of a volume that may be a memory map; refuse what is not finite."""
    low, high, start = math.inf, -math.inf, 0
    for part in pieces(volume):
        lowest, highest = float(part.min()), float(part.max())
        if not math.isfinite(lowest - highest):
            number = start + int(np.isfinite(part).all(axis=(1, 2)).argmin()) + 1
            raise ValueError(f"slice {number} of the volume has voxels that are not finite")
        low, high, start = min(low, lowest), max(high, highest), start + len(part)
    return low, high
