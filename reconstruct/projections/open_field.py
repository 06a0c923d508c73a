"""What the detector measures without an object, and the transmission that follows from it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reconstruct import preprocess
from reconstruct.corrections.counts import NO_CORRECTIONS, CountCorrections
from reconstruct.corrections.dead_pixels import dead_pixels
from reconstruct.corrections.flats import FlatSeries
from reconstruct.projections.flat_exposures import mean_flat, relative_exposures, to_the_first, with_equal_noise
from reconstruct.projections.frames import Counter, Frame, ScanError, read_frames, read_together

_log = logging.getLogger(__name__)

_SATURATED_FLATS = 0.01
"""Largest fraction of the flat fields' pixels that may be full: dead pixels are few, an overexposed field is not."""

_MOST_BLIND = 0.5
"""Largest fraction of the pixels of which the dark signal may leave nothing: a hot pixel is one of few."""

_FEW = 0.001
"""Fraction of pixels below which a counter that seems to have run over is a noisy pixel, and not worth a warning."""


@dataclass(frozen=True, eq=False)
class OpenField:
    """What the pixels hold without an object (per ms where durations are given) and in the dark, and who is dead.

    `flat` is what views are divided by, as in an exposure of `flat_ms`; None for I0, which holds the dark signal as a
    view does. Dark signal and flat fields that Corrections Applied (0071,xx08)
    says are removed from a frame are not removed from it again.
    """

    flat: NDArray[np.float32] | None
    flat_ms: float | None
    darks: NDArray[np.float32] | None
    dead: NDArray[np.bool_]
    counting: bool
    corrections: CountCorrections = NO_CORRECTIONS
    series: FlatSeries | None = None

    @classmethod
    def of(
        cls,
        counters: Sequence[Counter],
        *,
        counting: bool,
        keep_dead: bool,
        corrections: CountCorrections = NO_CORRECTIONS,
    ) -> OpenField:
        """Read the flat and dark frames of a bin's counters and find the dead pixels in them."""
        darks = None
        if corrections.dark and all(counter.darks for counter in counters):
            darks = np.stack([_mean_dark(counter, corrections) for counter in counters])
        if not all(counter.flats for counter in counters):
            first, _ = next(read_frames(counters[0].views[:1]))
            dead = np.zeros(first.shape, dtype=bool) if darks is None else _left_nothing(counters, darks)
            return cls(None, None, darks, dead, counting, corrections)
        frames, full, rolled = [], [], 0
        flats_of = [Counter(counter.flats) for counter in counters]
        for frame, images in zip(counters[0].flats, read_together(flats_of), strict=True):
            frames.append(_first_bin(images.values, frame, darks, corrections))
            full.append(images.full)
            rolled += images.rolled
        overexposed = float(np.mean(full))
        if overexposed > _SATURATED_FLATS:
            raise ScanError(f"the flat fields are overexposed: {overexposed:.0%} of their pixels are saturated")
        if rolled > _FEW * np.size(full):
            _log.info("%d pixels of the flat fields had run over their counter and were repaired", rolled)
        exposures = relative_exposures(counters[0].flats)
        flats = np.stack(frames)
        to_the_first(flats, exposures)
        flattened = "FLAT" in counters[0].views[0].corrections
        series = _series(flats, counters[0]) if corrections.interpolated_flats and not flattened else None
        mean = mean_flat(flats, exposures)
        steady = flats if series is None else series.steadied(flats)
        dead = dead_pixels(with_equal_noise(steady, exposures)) | np.all(full, axis=0)
        flat = _level(mean, dead, counters) if flattened else mean
        if keep_dead or not corrections.dead_pixels:
            dead &= flat is not None and flat <= 0
        return cls(flat, counters[0].flats[0].duration_ms, darks, dead, counting, corrections, series)

    def transmission(self, values: NDArray[np.float32], view: int, counters: Sequence[Counter]) -> NDArray[np.float32]:
        """Return the transmission of one view from its frame of each counter, (counter, row, column)."""
        frame = counters[0].views[view]
        image = _first_bin(values, frame, self.darks, self.corrections)
        floor = preprocess.COUNT_FLOOR * frame.slope
        if self.flat is not None:
            ratio = 1.0 if self.flat_ms is None or frame.duration_ms is None else self.flat_ms / frame.duration_ms
            beam = self._flat_at(frame) / np.float32(ratio)
        else:
            beam = _unattenuated(view, counters, self.darks, image.shape)
        transmission = preprocess.flat_field(image, beam, floor=floor)
        return preprocess.average_starved(transmission, image, beam, self.dead) if self.counting else transmission

    def _flat_at(self, frame: Frame) -> NDArray[np.float32]:
        if self.flat is None:
            raise ValueError("there are no flat fields")
        return self.flat if self.series is None or frame.acquired_s is None else self.series.at(frame.acquired_s)


def _unattenuated(
    view: int, counters: Sequence[Counter], darks: NDArray[np.float32] | None, shape: tuple[int, ...]
) -> NDArray[np.float32]:
    """Return what the pixels of a view hold by I0, (row, column), without the dark signal that the view loses, too."""
    held = np.empty((len(counters), *shape), dtype=np.float32)
    held[:] = np.array([counter.unattenuated[view] for counter in counters], dtype=np.float32)[:, None, None]
    if darks is not None and "DARK" not in counters[0].views[view].corrections:
        held -= darks
    first: NDArray[np.float32] = preprocess.differential_bins(held)[0]
    return first


def _left_nothing(counters: Sequence[Counter], darks: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return the pixels whose dark signal leaves nothing of I0, (row, column): they see no light.

    Raises
    ------
    ScanError
        Most of them are such: I0 is no value of these pixels.
    """
    told = {tuple(counter.unattenuated[view] for counter in counters): view for view in range(len(counters[0].views))}
    blind = np.zeros(darks.shape[1:], dtype=bool)
    for view in told.values():
        blind |= _unattenuated(view, counters, darks, blind.shape) <= 0
    if blind.mean() > _MOST_BLIND:
        raise ScanError(
            f"the dark frames leave nothing of the unattenuated value I0 (0071,xx09) in {blind.mean():.0%} of the "
            f"pixels: I0 is {counters[0].unattenuated[0]:g}, the mean of the dark frames {darks[0].mean():g}"
        )
    return blind


def _mean_dark(counter: Counter, corrections: CountCorrections) -> NDArray[np.float32]:
    images = zip(counter.darks, read_frames(counter.darks), strict=True)
    mean: NDArray[np.float32] = np.mean([_linear(image, frame, corrections) for frame, (image, _) in images], axis=0)
    return mean


def _linear(values: NDArray[np.float32], frame: Frame, corrections: CountCorrections) -> NDArray[np.float32]:
    """Undo the pile-up of a frame."""
    try:
        return corrections.of(values, frame.duration_ms)
    except ValueError as error:
        raise ScanError(str(error)) from error


def _series(flats: NDArray[np.float32], counter: Counter) -> FlatSeries | None:
    """Return the flats by time, None where they are all of one group."""
    times = [frame.acquired_s for frame in counter.flats]
    views = [frame.acquired_s for frame in counter.views]
    if None in times or None in views:
        raise ScanError(
            "flat fields cannot be interpolated: Frame Acquisition DateTime (0018,9074) is missing of some frames, "
            "or the same in all projections, and so is every other time at which they may have been taken"
        )
    series = FlatSeries.of(flats, [t for t in times if t is not None], [t for t in views if t is not None])
    return series if len(series.times_s) > 1 else None


def _level(
    flat: NDArray[np.float32], dead: NDArray[np.bool_], counters: Sequence[Counter]
) -> NDArray[np.float32] | None:
    """Return what pixels that are divided by their flat fields hold without an object, None where I0 tells it."""
    if all(counter.unattenuated for counter in counters):
        return None
    return np.full_like(flat, flat[~dead].mean())


def _first_bin(
    values: NDArray[np.float32], frame: Frame, darks: NDArray[np.float32] | None, corrections: CountCorrections
) -> NDArray[np.float32]:
    """Undo the pile-up of a frame, remove the dark signal and take the first bin of the counters, (row, column)."""
    linear = _linear(values, frame, corrections)
    signal = linear if darks is None or "DARK" in frame.corrections else linear - darks
    first: NDArray[np.float32] = preprocess.differential_bins(signal)[0]
    return first
