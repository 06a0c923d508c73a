"""Which values of pixels can be meant: one hot pixel must not take the steps in which all others are stored."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from reconstruct.projections.frames import ScanError
from reconstruct.projections.scan import PixelMeaning

Limits = tuple[float, float]

_MEANT: dict[PixelMeaning, Limits] = {PixelMeaning.TRANSMISSION: (-1.0, 4.0), PixelMeaning.LINE_INTEGRAL: (-5.0, 25.0)}
"""Noise takes a transmission below 0 and above 1, and no detector counts the photons to see exp(-25)."""

_WORDS = {PixelMeaning.TRANSMISSION: "transmissions", PixelMeaning.LINE_INTEGRAL: "line integrals"}

_MOST_STRAY = 0.01
"""Largest fraction of the values that may lie outside: dead and hot pixels are few, a wrong scale is everywhere."""

_MANY_TIMES = 20.0
"""How many times as bright as all but a hundredth of the pixels of the brightest image an intensity may be."""


def meant_limits(meaning: PixelMeaning) -> Limits | None:
    """Return between which values pixels of that meaning can lie; None where any scale is possible."""
    return _MEANT.get(meaning)


def bright_limits(brightest: float) -> Limits:
    """Return between which values intensities can lie whose bright pixels, all but a hundredth, reach `brightest`."""
    most = _MANY_TIMES * brightest if brightest > 0 else np.inf
    return -most, most


def bright(image: NDArray[np.generic]) -> float:
    """Return what all but a hundredth of the pixels of an image do not exceed."""
    return float(np.percentile(np.asarray(image, dtype=np.float64), 99))


def strays(image: NDArray[np.generic], limits: Limits) -> NDArray[np.bool_]:
    """Return where an image lies outside."""
    values = np.asarray(image)
    return np.asarray((values < limits[0]) | (values > limits[1]), dtype=np.bool_)


def refuse_other_meaning(meaning: PixelMeaning, stray: int, count: int, found: Limits) -> None:
    """Refuse images of which more than a hundredth cannot be what it is said to be.

    Parameters
    ----------
    stray, count
        How many values lie outside of what can be meant, and how many there are.
    found
        The least and the largest of them.

    Raises
    ------
    ScanError
        The sentence gives the range that was found and the one that can be meant.
    """
    limits = meant_limits(meaning)
    if limits is None or stray <= _MOST_STRAY * count:
        return
    raise ScanError(
        f"{stray / count:.0%} of the values of the views can be no {_WORDS[meaning]}: they reach from {found[0]:g} to "
        f"{found[1]:g}, expected {limits[0]:g} to {limits[1]:g}; say (--pixels) what they hold, or bring them to that "
        "scale"
    )


def check_meaning(meaning: PixelMeaning, images: Iterable[NDArray[np.generic]]) -> None:
    """Refuse some images of a scan that cannot be what they are said to be, see `refuse_other_meaning`."""
    limits = meant_limits(meaning)
    if limits is None:
        return
    some = np.concatenate([np.asarray(image, dtype=np.float64).reshape(-1) for image in images])
    stray = int(np.count_nonzero(strays(some, limits)))
    refuse_other_meaning(meaning, stray, some.size, (float(some.min()), float(some.max())))
