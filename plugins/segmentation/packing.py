"""Segments into label maps: as few as first-fit needs where they overlap, at most 255 segments in one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from plugins.segmentation.segmenter import Segment

MOST_SEGMENTS = 255
"""Labels of a uint8 beside the background."""

Slab = tuple[int, NDArray[np.bool_]]
"""Slice, and where the segment is in it, axes (row, column)."""


@dataclass(frozen=True, eq=False)
class LabelMap:
    """Segments that do not overlap.

    Attributes
    ----------
    labels
        Axes (slice, row, column): 0 is background, n is ``segments[n - 1]``.
    """

    labels: NDArray[np.uint8]
    segments: list[Segment]

    @classmethod
    def empty(cls, shape: tuple[int, int, int]) -> LabelMap:
        """Return a map without segments."""
        return cls(np.zeros(shape, np.uint8), [])

    def takes(self, slabs: Iterable[Slab]) -> bool:
        """Whether one more segment has room."""
        return len(self.segments) < MOST_SEGMENTS and not any(self.labels[at][mask].any() for at, mask in slabs)

    def add(self, segment: Segment, slabs: Iterable[Slab]) -> None:
        """Put a segment where nothing is yet."""
        self.segments.append(segment)
        for at, mask in slabs:
            self.labels[at][mask] = len(self.segments)


def packed(shape: tuple[int, int, int], segments: Iterable[tuple[Segment, list[Slab]]]) -> list[LabelMap]:
    """Return label maps of `segments`, each in the first map that it overlaps nothing in, in the order given.

    Parameters
    ----------
    shape
        Slices, rows, columns.
    segments
        Each with the slices that it is in; a slice may come several times. One is held at a time.
    """
    maps: list[LabelMap] = []
    for segment, slabs in segments:
        room = next((one for one in maps if one.takes(slabs)), None)
        if room is None:
            maps.append(room := LabelMap.empty(shape))
        room.add(segment, slabs)
    return maps
