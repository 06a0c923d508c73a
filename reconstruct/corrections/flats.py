"""Flat fields taken at several times, so that gains and beam that change during a scan are followed.

Between two groups of flats each pixel is taken to change linearly with time: the conventional way that Van Nieuwenhove
et al., "Dynamic intensity normalization using eigen flat fields in X-ray imaging", Opt. Express 23 (2015) 27975, start
from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class FlatSeries:
    """Mean flat fields at several times.

    Attributes
    ----------
    times_s
        Mean time of each group, ascending, s, (group,).
    flats
        Mean of each group, (group, row, column).
    group_of
        Which group each of the frames belongs to, (frame,).
    """

    times_s: NDArray[np.float64]
    flats: Image
    group_of: NDArray[np.intp]

    @classmethod
    def of(cls, frames: Image, times_s: Sequence[float], view_times_s: Sequence[float]) -> FlatSeries:
        """Group flats that no view was taken between.

        Parameters
        ----------
        frames
            (frame, row, column).
        times_s
            When each was taken, s.
        view_times_s
            When the views were taken, on the same clock, s.
        """
        times = np.asarray(times_s, dtype=np.float64)
        before = np.searchsorted(np.sort(view_times_s), times)
        groups = sorted({int(count) for count in before}, key=lambda count: float(times[before == count].mean()))
        return cls(
            np.array([times[before == group].mean() for group in groups]),
            np.stack([frames[before == group].mean(axis=0, dtype=np.float32) for group in groups]),
            np.array([groups.index(int(count)) for count in before], dtype=np.intp),
        )

    def steadied(self, frames: Image) -> Image:
        """Return the frames without what changed from group to group, (frame, row, column): the rest is noise."""
        steady: Image = frames - self.flats[self.group_of] + frames.mean(axis=0)
        return steady

    def at(self, time_s: float) -> Image:
        """Return the flat field at a time, (row, column); before the first group and after the last, theirs."""
        last = len(self.times_s) - 1
        right = int(np.clip(np.searchsorted(self.times_s, time_s), min(1, last), last))
        left = max(right - 1, 0)
        gap = self.times_s[right] - self.times_s[left]
        share = np.float32(np.clip((time_s - self.times_s[left]) / gap, 0, 1) if gap > 0 else 0)
        flat: Image = self.flats[left] * (1 - share) + self.flats[right] * share
        return flat
