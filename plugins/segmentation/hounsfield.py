"""Volumes in Hounsfield units, as they are or by the attenuation of water."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from plugins.segmentation.attenuation_ranges import water_per_cm
from plugins.segmentation.segmenter import Volume

_ENERGIES_KEV = (10.0, 150.0)
"""Of the table of attenuations."""


def hounsfield(volume: Volume) -> NDArray[np.float32] | None:
    """Return the values in HU, from 1/cm by water's attenuation at the effective energy; None where that is unknown."""
    if volume.is_hu:
        return volume.values
    kev = volume.effective_kev
    if kev is None or not _ENERGIES_KEV[0] <= kev <= _ENERGIES_KEV[1]:
        return None
    return volume.values * np.float32(1000 / water_per_cm(kev)) - np.float32(1000)
