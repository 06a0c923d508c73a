"""The measurements of a SEG: each segment in each energy bin."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from index.archive import Archive
from plugins.measurement.segments import SegmentVoxels, StoredSegment, segments_of, voxels_of
from plugins.measurement.statistics import Statistics, statistics
from plugins.measurement.subject import Source, Subject, read_bin
from plugins.node import Series


@dataclass(frozen=True)
class SegmentMeasurements:
    """What was measured of one segment.

    Attributes
    ----------
    voxels, volume_mm3
        How many voxels it has, and the sum of their volumes.
    of_series
        Statistics in each measured series, in the order of `Measurements.sources`; None: the segment has no voxels.
    """

    segment: StoredSegment
    voxels: int
    volume_mm3: float
    of_series: tuple[Statistics | None, ...]


@dataclass(frozen=True, eq=False)
class Measurements:
    """What was measured of a SEG.

    Attributes
    ----------
    segmented
        The series that was segmented.
    sources
        The measured series, ascending in energy; `segmented` is among them.
    segments
        In the order of segment numbers, those below the smallest volume left out.
    slices
        The slices that the segments reach, indices ascending.
    """

    segmented: Source
    sources: tuple[Source, ...]
    segments: tuple[SegmentMeasurements, ...]
    slices: tuple[int, ...]


def measure(
    archive: Archive, subject: Subject, *, min_volume_mm3: float = 0.0, progress: Callable[[float], None] | None = None
) -> Measurements:
    """Measure every segment of the SEG in every energy bin of its scan; one bin is in memory at a time.

    Parameters
    ----------
    min_volume_mm3
        A segment with less volume is left out.
    progress
        Called with the fraction done; may raise to stop the work.

    Raises
    ------
    CannotProceed
        The SEG does not lie on its source, or a bin not on the others.
    """
    tell = progress or (lambda _: None)
    voxels = voxels_of(subject.seg, subject.source)
    segments = _large_enough(subject, voxels, min_volume_mm3)
    sources, columns = [], []
    for done, uid in enumerate(subject.bins):
        tell((done + 0.5) / (len(subject.bins) + 1))
        source, values = read_bin(Series(archive, uid), subject)
        sources.append(source)
        columns.append([statistics(values, voxels.mask(segment.number)) for segment, _ in segments])
    measured = tuple(
        SegmentMeasurements(segment, count, count * subject.source.voxel_mm3, of_series)
        for (segment, count), of_series in zip(segments, zip(*columns, strict=True), strict=True)
    )
    return Measurements(subject.source, tuple(sources), measured, _reached(voxels, segments))


def _large_enough(subject: Subject, voxels: SegmentVoxels, min_volume_mm3: float) -> list[tuple[StoredSegment, int]]:
    counted = [(segment, int(voxels.mask(segment.number).sum())) for segment in segments_of(subject.seg)]
    return [(segment, count) for segment, count in counted if count * subject.source.voxel_mm3 >= min_volume_mm3]


def _reached(voxels: SegmentVoxels, segments: list[tuple[StoredSegment, int]]) -> tuple[int, ...]:
    reached: NDArray[np.bool_] = np.zeros(voxels.layers[0].shape[0] if voxels.layers else 0, bool)
    for segment, _ in segments:
        reached |= voxels.mask(segment.number).any(axis=(1, 2))
    return tuple(int(index) for index in np.flatnonzero(reached))
