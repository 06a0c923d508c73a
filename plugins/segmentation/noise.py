"""How noisy a volume is, and how much smoothing it takes until the noise does not matter."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_SAMPLES = 2_000_000
_TO_SIGMA = 1.4826
"""From the median absolute value of a normal distribution to its standard deviation."""


def noise(values: NDArray[np.float32], threshold: float) -> float:
    """Return the standard deviation of the noise where the values lie above `threshold`, in their unit.

    By second differences along rows, which leave out what changes slowly; the median does not see edges. Noise that
    neighbours share counts less than white noise: smoothing does less about it, too.
    """
    rows = values.reshape(-1, values.shape[-1])
    rows = rows[:: max(1, rows.size // _SAMPLES)]
    if rows.shape[-1] < 3:
        return 0.0
    left, middle, right = rows[:, :-2], rows[:, 1:-1], rows[:, 2:]
    differences = (left - 2 * middle + right)[(middle > threshold) & (left > threshold) & (right > threshold)]
    return float(_TO_SIGMA * np.median(np.abs(differences)) / np.sqrt(6)) if differences.size else 0.0


def sigma_for(noise_now: float, bearable: float) -> float:
    """Return the sigma of the Gaussian, voxels, after which white noise is `bearable`; 0 when it is so already.

    A Gaussian in three dimensions leaves white noise its share ``(2 √π σ) ** -1.5``.
    """
    if noise_now <= bearable:
        return 0.0
    return float((noise_now / bearable) ** (2 / 3) / (2 * np.sqrt(np.pi)))
