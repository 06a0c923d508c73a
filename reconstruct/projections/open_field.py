"""What the detector measures without an object, and the transmission that follows from it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reconstruct import preprocess
from reconstruct.projections.frames import Counter, ScanError, read_frames, read_together

_log = logging.getLogger(__name__)

_SATURATED_FLATS = 0.01
"""Largest fraction of the flat fields' pixels that may be full: dead pixels are few, an overexposed field is not."""

_FEW = 0.001
"""Fraction of pixels below which a counter that seems to have run over is a noisy pixel, and not worth a warning."""


@dataclass(frozen=True, eq=False)
class OpenField:
    """What the pixels hold without an object (per ms where durations are given) and in the dark, and who is dead."""

    flat: NDArray[np.float32] | None
    flat_ms: float | None
    darks: NDArray[np.float32] | None
    dead: NDArray[np.bool_]
    counting: bool

    @classmethod
    def of(cls, counters: Sequence[Counter], *, counting: bool, keep_dead: bool) -> OpenField:
        """Read the flat and dark frames of a bin's counters and find the dead pixels in them."""
        darks = None
        if all(counter.darks for counter in counters):
            darks = np.stack([np.mean([image for image, _ in read_frames(c.darks)], axis=0) for c in counters])
        if not all(counter.flats for counter in counters):
            first, _ = next(read_frames(counters[0].views[:1]))
            return cls(None, None, darks, np.zeros(first.shape, dtype=bool), counting)
        frames, full, rolled = [], [], 0
        for images in read_together([Counter(counter.flats) for counter in counters]):
            frames.append(_first_bin(images.values, darks))
            full.append(images.full)
            rolled += images.rolled
        overexposed = float(np.mean(full))
        if overexposed > _SATURATED_FLATS:
            raise ScanError(f"the flat fields are overexposed: {overexposed:.0%} of their pixels are saturated")
        if rolled > _FEW * np.size(full):
            _log.info("%d pixels of the flat fields had run over their counter and were repaired", rolled)
        flats = np.stack(frames)
        dead = preprocess.dead_pixels(flats) | np.all(full, axis=0)
        if keep_dead:
            dead &= flats.mean(axis=0) <= 0
        return cls(flats.mean(axis=0), counters[0].flats[0].duration_ms, darks, dead, counting)

    def transmission(self, values: NDArray[np.float32], view: int, counters: Sequence[Counter]) -> NDArray[np.float32]:
        """Return the transmission of one view from its frame of each counter, (counter, row, column)."""
        image = _first_bin(values, self.darks)
        frame = counters[0].views[view]
        floor = preprocess.COUNT_FLOOR * frame.slope
        if self.flat is not None:
            ratio = 1.0 if self.flat_ms is None or frame.duration_ms is None else self.flat_ms / frame.duration_ms
            beam = self.flat / np.float32(ratio)
        else:
            expected = preprocess.differential_bins([counter.unattenuated[view] for counter in counters])[0]
            beam = np.full(image.shape, expected, dtype=np.float32)
        transmission = preprocess.flat_field(image, beam, floor=floor)
        return preprocess.average_starved(transmission, image, beam, self.dead) if self.counting else transmission


def _first_bin(values: NDArray[np.float32], darks: NDArray[np.float32] | None) -> NDArray[np.float32]:
    """Remove the dark signal and take the first bin of the counters, (row, column)."""
    signal = values if darks is None else values - darks
    first: NDArray[np.float32] = preprocess.differential_bins(signal)[0]
    return first
