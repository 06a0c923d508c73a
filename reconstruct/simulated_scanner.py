"""The simulated MARS scanner: its geometry, its beam, and a photon-counting detector with defects."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reconstruct.geometry import ConeBeamGeometry

_NS_PER_MS = 1e6

_HOT = 0.5
"""Share of the views in which a hot pixel is full."""


@dataclass(frozen=True)
class Scanner:
    """The simulated scanner.

    Attributes
    ----------
    source_to_isocenter_mm, source_to_detector_mm, detector_width_mm
        Its geometry; the field of view is 37 mm across, and square pixels fill the detector's width.
    kvp, filtration_mm_al, tube_current_ma, view_ms
        Its beam.
    gain_spread, threshold_spread
        Standard deviation of the pixels' gain, and of each bin's on top, as fractions.
    dead_pixels
        How many there are: blind, stuck and noisy ones in turn.
    flat_frames
        Frames without an object per counter, exposed like a view.
    counter_bits
        Depth of the counters; a full one stays full.
    source_drift
        Share of its output that the source loses from the first view to the last.
    gain_change
        Standard deviation of what the gain of a pixel changes by after the flat fields, as a fraction: rings.
    failing_pixels
        How many pixels begin to flicker after the flat fields.
    hot_pixels
        How many pixels begin, after the flat fields, to run full in about every other view.
    dark_counts
        What the lowest counter counts in a view without any beam, on average; pixels differ by half of it.
    dark_frames
        Frames without a beam per counter, exposed like a view.
    scatter
        Scattered photons over the mean of the unscattered ones in a view.
    dead_time_ns
        Of the counters, nonparalyzable.
    axis_offset_px
        Columns by which the axis is seen beside the column that the scan tells.
    """

    source_to_isocenter_mm: float = 210.0
    source_to_detector_mm: float = 310.0
    detector_width_mm: float = 56.32
    kvp: float = 118.0
    filtration_mm_al: float = 2.0
    tube_current_ma: float = 0.05
    view_ms: float = 300.0
    gain_spread: float = 0.04
    threshold_spread: float = 0.01
    dead_pixels: int = 12
    flat_frames: int = 10
    counter_bits: int = 16
    source_drift: float = 0.0
    gain_change: float = 0.0
    failing_pixels: int = 0
    hot_pixels: int = 0
    dark_counts: float = 0.0
    dark_frames: int = 0
    scatter: float = 0.0
    dead_time_ns: float = 0.0
    axis_offset_px: float = 0.0

    def geometry(self, views: int, rows: int, columns: int) -> ConeBeamGeometry:
        """Return the geometry of a full circle, as the scan tells it."""
        pitch = self.detector_width_mm / columns
        return ConeBeamGeometry.circular(
            source_to_isocenter_mm=self.source_to_isocenter_mm,
            source_to_detector_mm=self.source_to_detector_mm,
            view_angles_rad=2 * np.pi * np.arange(views) / views,
            rows=rows,
            columns=columns,
            row_pitch_mm=pitch,
            column_pitch_mm=pitch,
        )


class Detector:
    """A photon-counting detector with its gains and defects; every exposure draws new noise."""

    def __init__(
        self, scanner: Scanner, shape: tuple[int, int, int], photons: float, random: np.random.Generator
    ) -> None:
        bins, rows, columns = shape
        gain = 1 + scanner.gain_spread * random.standard_normal((rows, columns))
        thresholds = 1 + scanner.threshold_spread * random.standard_normal(shape)
        self._expected = photons * np.clip(gain * thresholds, 0.1, None)
        self._full = (1 << scanner.counter_bits) - 1
        self._random = random
        where = random.choice(rows * columns, size=min(scanner.dead_pixels, rows * columns), replace=False)
        pixels = np.unravel_index(where, (rows, columns))
        self._blind, self._stuck, self._noisy = ((pixels[0][kind::3], pixels[1][kind::3]) for kind in range(3))
        self._stuck_at = random.integers(200, 4000, size=(bins, len(self._stuck[0])))
        self._dead_time = scanner.dead_time_ns / (scanner.view_ms * _NS_PER_MS)
        self._scatter = scanner.scatter
        # Drawn last, and only if there are any, so that a scanner without these defects counts as it always did.
        change = random.standard_normal((rows, columns)) if scanner.gain_change else 0.0
        self._changed = np.clip(1 + scanner.gain_change * change, 0.1, None)
        failing, hot = (
            random.choice(rows * columns, size=count, replace=False)
            for count in (scanner.failing_pixels, scanner.hot_pixels)
        )
        self._failing, self._hot = ((which // columns, which % columns) for which in (failing, hot))
        self._dark = np.zeros((rows, columns))
        if scanner.dark_counts:
            self._dark = scanner.dark_counts * (0.5 + random.random((rows, columns)))

    def measure_view(self, transmitted: NDArray[np.float64], output: float = 1.0) -> NDArray[np.uint16]:
        """Return the counts of a view, with what has changed since the flat fields; see `measure`.

        Parameters
        ----------
        output
            Of the source, as a share of what it was.
        """
        scattered = transmitted
        if self._scatter:
            scattered = transmitted + self._scatter * transmitted.mean(axis=(1, 2), keepdims=True)
        counts = self.measure(scattered * (output * self._changed))
        if self._failing[0].size:
            rows, columns = self._failing
            share = self._random.random(rows.shape)
            counts[:, rows, columns] = (share * self._expected[:, rows, columns]).astype(np.uint16)
        if self._hot[0].size:
            full = self._random.random(self._hot[0].shape) < _HOT
            counts[:, self._hot[0][full], self._hot[1][full]] = self._full
        return counts

    def measure(self, transmitted: NDArray[np.float64]) -> NDArray[np.uint16]:
        """Return the counts of the cumulative counters, (counter, …, row, column).

        Parameters
        ----------
        transmitted
            Photons of each bin that reach a pixel, as a share of all in the open beam, (bin, row, column).
        """
        differential = self._random.poisson(self._expected * transmitted)
        if self._dark.any():
            differential[0] += self._random.poisson(self._dark)
        counters = np.cumsum(differential[::-1], axis=0)[::-1]
        if self._dead_time:
            counters = np.rint(counters / (1 + counters * self._dead_time)).astype(np.int64)
        counters[:, *self._blind] = 0
        counters[:, *self._stuck] = self._stuck_at
        counters[:, *self._noisy] = self._random.integers(0, self._full + 1, size=counters[:, *self._noisy].shape)
        return np.minimum(counters, self._full).astype(np.uint16)
