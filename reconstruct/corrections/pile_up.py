"""Photons that arrive while a counter is still busy with another one are lost: pile-up, undone by the dead time.

G. F. Knoll, Radiation Detection and Measurement, 4th ed. (2010), chapter 4.VII; for photon-counting detectors Taguchi &
Iwanczyk, "Vision 20/20: Single photon counting x-ray detectors in medical imaging", Med. Phys. 40 (2013) 100901. Every
counter has a comparator of its own, so each is corrected with its own rate.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import scipy  # loads its parts when they are used
from numpy.typing import NDArray

Image = NDArray[np.float32]
DeadTimeModel = Literal["nonparalyzable", "paralyzable"]

MODELS: tuple[str, ...] = get_args(DeadTimeModel)
"""How a busy counter takes further photons: it ignores them, or they keep it busy."""

_NS_PER_MS = 1e6

_BUSIEST = 0.9
"""Largest share of the time that a nonparalyzable counter is taken to be busy: beyond it tells nothing any more."""


def undo_pile_up(counts: Image, dead_time_ns: float, duration_ms: float, model: str = "nonparalyzable") -> Image:
    """Return what the counters would have counted without dead time, float32 of the same shape.

    Nonparalyzable, m = n / (1 + n τ); paralyzable, m = n exp(-n τ), of whose two solutions the lower rate is taken.
    Counts that no rate gives (of defective pixels) are taken for the highest that can be told.

    Parameters
    ----------
    counts
        Of one exposure, each counter for itself, any shape.
    dead_time_ns
        τ, ns; 0: counts come back as they are.
    duration_ms
        Of the exposure, ms.
    model
        One of `MODELS`.

    Raises
    ------
    ValueError
        A time that is negative, no exposure, another model.
    """
    if model not in MODELS:
        raise ValueError(f"expected a dead time that is {' or '.join(MODELS)}, got {model!r}")
    if not (dead_time_ns >= 0 and duration_ms > 0):
        raise ValueError(f"expected a dead time and an exposure, got {dead_time_ns} ns and {duration_ms} ms")
    if dead_time_ns == 0:
        return counts
    per_count = dead_time_ns / (duration_ms * _NS_PER_MS)
    if model == "nonparalyzable":
        busy = np.minimum(counts * np.float32(per_count), np.float32(_BUSIEST))
        return np.asarray(busy / (1 - busy) / np.float32(per_count), dtype=np.float32)
    busy = np.clip(counts * per_count, 0, np.exp(-1) * (1 - 1e-9))
    return np.asarray(-scipy.special.lambertw(-busy).real / per_count, dtype=np.float32)
