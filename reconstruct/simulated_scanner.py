"""The simulated MARS scanner: its geometry, its beam, and a photon-counting detector with defects."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reconstruct.geometry import ConeBeamGeometry


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

    def geometry(self, views: int, rows: int, columns: int) -> ConeBeamGeometry:
        """Return the geometry of a full circle."""
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

    def measure(self, transmitted: NDArray[np.float64]) -> NDArray[np.uint16]:
        """Return the counts of the cumulative counters, (counter, …, row, column).

        Parameters
        ----------
        transmitted
            Photons of each bin that reach a pixel, as a share of all in the open beam, (bin, row, column).
        """
        differential = self._random.poisson(self._expected * transmitted)
        counters = np.cumsum(differential[::-1], axis=0)[::-1]
        counters[:, *self._blind] = 0
        counters[:, *self._stuck] = self._stuck_at
        counters[:, *self._noisy] = self._random.integers(0, self._full + 1, size=counters[:, *self._noisy].shape)
        return np.minimum(counters, self._full).astype(np.uint16)
