"""How close a reconstruction is to the truth."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Volume = NDArray[np.floating]
Mask = NDArray[np.bool_]


def rmse(volume: Volume, truth: Volume, mask: Mask | None = None) -> float:
    """Return the root mean square of ``volume - truth`` within `mask` (None: everywhere), in their unit.

    Raises
    ------
    ValueError
        Arrays of different shapes, or an empty mask.
    """
    return float(np.sqrt(np.mean(_error(volume, truth, mask) ** 2)))


def bias(volume: Volume, truth: Volume, mask: Mask | None = None) -> float:
    """Return the mean of ``volume - truth`` within `mask` (None: everywhere), in their unit; raises as `rmse`."""
    return float(np.mean(_error(volume, truth, mask)))


def psnr(volume: Volume, truth: Volume, mask: Mask | None = None) -> float:
    """Return the peak signal to noise ratio within `mask`, dB; raises as `rmse`.

    The peak is the range of the truth there. Identical volumes give infinity.
    """
    error = rmse(volume, truth, mask)
    inside = truth if mask is None else truth[mask]
    peak = float(np.max(inside)) - float(np.min(inside))
    if error == 0:
        return float("inf")
    if peak == 0:
        raise ValueError(f"expected a truth that varies, got {float(np.max(inside))} everywhere")
    return float(20 * np.log10(peak / error))


def correlation(volume: Volume, other: Volume, mask: Mask | None = None) -> float:
    """Return Pearson's correlation of two volumes within `mask`, -1 to 1; raises as `rmse`."""
    _error(volume, other, mask)
    pair = (volume, other) if mask is None else (volume[mask], other[mask])
    return float(np.corrcoef(pair[0].reshape(-1).astype(np.float64), pair[1].reshape(-1))[0, 1])


def _error(volume: Volume, truth: Volume, mask: Mask | None) -> NDArray[np.float64]:
    if volume.shape != truth.shape:
        raise ValueError(f"expected a volume of shape {truth.shape}, got {volume.shape}")
    if mask is None:
        return volume.astype(np.float64) - truth
    if mask.shape != truth.shape:
        raise ValueError(f"expected a mask of shape {truth.shape}, got {mask.shape}")
    if not mask.any():
        raise ValueError(f"expected a mask with voxels in it, got none of {mask.size}")
    return volume[mask].astype(np.float64) - truth[mask]
