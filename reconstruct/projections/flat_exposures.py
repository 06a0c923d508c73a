"""Flat frames that were exposed for different times: brought to the time of the first, one by one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from reconstruct.projections.frames import Frame

Image = NDArray[np.float32]


def relative_exposures(flats: Sequence[Frame]) -> Image | None:
    """Return how many times as long as the first each flat frame was exposed; None where all were alike."""
    times = [flat.duration_ms for flat in flats if flat.duration_ms is not None]
    if len(set(times)) < 2:
        return None
    return np.asarray(times, dtype=np.float32) / np.float32(times[0])


def to_the_first(flats: Image, exposures: Image | None) -> None:
    """Divide frames by their exposure, in place; the dark signal does not grow with it, and is removed before."""
    if exposures is not None:
        flats /= exposures[:, None, None]


def mean_flat(flats: Image, exposures: Image | None) -> Image:
    """Return the mean of frames that are brought to one exposure; a longer one has seen more, and weighs more."""
    if exposures is None:
        mean: Image = flats.mean(axis=0)
        return mean
    return np.asarray(np.tensordot(exposures, flats, axes=1) / exposures.sum(), dtype=np.float32)


def with_equal_noise(flats: Image, exposures: Image | None) -> Image:
    """Give frames that were brought to one exposure its noise, in place: a longer one had become quieter."""
    if exposures is not None:
        mean = mean_flat(flats, exposures)
        for frame, exposure in zip(flats, exposures, strict=True):
            frame -= mean
            frame *= np.sqrt(exposure)
            frame += mean
    return flats
