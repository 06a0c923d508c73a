"""What is done to counts before they become line integrals; `Scan.line_integrals` asks for it frame by frame."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reconstruct.corrections.pile_up import undo_pile_up


@dataclass(frozen=True)
class CountCorrections:
    """Which corrections of counts are wanted; the defaults are those that each scan needs.

    Attributes
    ----------
    dead_time_ns, dead_time_model
        As `undo_pile_up` takes them.
    saturated
        Whether full counters are replaced by their neighbours.
    interpolated_flats
        Whether flats before, between and after the views are interpolated in time; else their mean is taken.
    dark
        Whether the dark frames of a scan are subtracted.
    dead_pixels
        Whether pixels that the flats show to be dead or noisy are replaced; one that counts nothing always is.
    """

    dead_time_ns: float = 0.0
    dead_time_model: str = "nonparalyzable"
    saturated: bool = False
    interpolated_flats: bool = False
    dark: bool = True
    dead_pixels: bool = True

    def of(self, counts: NDArray[np.float32], duration_ms: float | None) -> NDArray[np.float32]:
        """Return the counts of a frame, (counter, row, column), without pile-up.

        Raises
        ------
        ValueError
            There is a dead time, and nobody says how long the frame was exposed.
        """
        if self.dead_time_ns == 0:
            return counts
        if duration_ms is None:
            raise ValueError(
                "pile-up cannot be corrected: Frame Acquisition Duration (0018,9220) is missing, and so is an Exposure "
                "Time (0018,1150) of each image: no rate is known"
            )
        return undo_pile_up(counts, self.dead_time_ns, duration_ms, self.dead_time_model)


NO_CORRECTIONS = CountCorrections()
"""Counts as they are, less the dark frames, and the mean of the flats."""
