"""What the network sees of a volume: a slice and its neighbours, each through two windows of Hounsfield units."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

NEIGHBOURS = (-2, -1, 0, 1, 2)
"""Slices that are seen, in steps of `Recipe.reach_mm` from the one that is segmented."""

WINDOWS_HU = ((-160.0, 240.0), (-1000.0, 1000.0))
"""Soft tissue, and everything from air to bone."""

CHANNELS = len(NEIGHBOURS) * len(WINDOWS_HU)

AIR_HU = -1000.0
"""What lies outside of an image."""

Hounsfield = npt.NDArray[np.float16]
"""Values ``(z, y, x)`` in HU at the spacing of a recipe; half precision has steps of 1 HU up to 2048."""


def seen(values: Hounsfield, rows: npt.NDArray[np.int64], step: float) -> Tensor:
    """Return slices with their neighbours, HU, axes (n, neighbour, row, column), as float32.

    Between slices it is interpolated linearly; beyond the first and the last, those are repeated.

    Parameters
    ----------
    rows
        Which slices, axis (n,).
    step
        Distance of neighbours, in slices.
    """
    places = np.clip(rows[:, None] + np.multiply(NEIGHBOURS, step), 0, len(values) - 1)
    below = np.floor(places).astype(np.int64)
    above = np.minimum(below + 1, len(values) - 1)
    share = torch.from_numpy((places - below).astype(np.float32))[:, :, None, None]
    first = torch.from_numpy(values[below].astype(np.float32))
    if not bool(share.any()):
        return first
    return torch.lerp(first, torch.from_numpy(values[above].astype(np.float32)), share)


def windowed(hounsfield: Tensor) -> Tensor:
    """Map HU, axes (n, neighbour, row, column), to what the network gets: (n, `CHANNELS`, row, column), 0 to 1."""
    parts = [((hounsfield - low) / (high - low)).clamp(0.0, 1.0) for low, high in WINDOWS_HU]
    return torch.cat(parts, dim=1)
