"""What a key picture shows of a SEG: its planes, its window, its legend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from plugins.measurement.measuring import Measurements, SegmentMeasurements
from plugins.measurement.patient_axes import turn_of
from plugins.measurement.planes import centre_of, three_planes, window_of
from plugins.measurement.segments import StoredSegment, coded_names, voxels_of
from plugins.measurement.subject import Subject

VERSION = "3"
"""Changes when the same segments would be drawn otherwise."""


def picture_of(subject: Subject, measured: Measurements, width: int) -> NDArray[np.uint8]:
    """Draw the segments over three planes of the series that was segmented: (row, column, 3) RGB.

    Segments of another program go by their codes, for nobody has read its texts: a label may name the patient.

    Raises
    ------
    CannotProceed
        Rows or columns of the slices run along no axis of the patient.
    ValueError
        No segment has a voxel.
    """
    from plugins.measurement.drawing import Entry, draw  # matplotlib takes its time

    numbers = tuple(row.segment.number for row in measured.segments)
    turn = turn_of(subject.source)
    values, voxels = turn.array(subject.values), turn.voxels(voxels_of(subject.seg, subject.source))
    spacing = turn.spacing_mm_zyx(subject.source.grid.spacing_mm_zyx)
    planes = three_planes(values, voxels, numbers, spacing, centre_of(voxels, numbers))
    window = window_of(values, voxels)
    names = _names(subject, [row.segment for row in measured.segments])
    legend = [
        Entry(row.segment.number, row.segment.colour, names[row.segment.number], *_numbers(row, measured))
        for row in measured.segments
    ]
    unit = subject.source.unit
    shown = f"window {_rounded(window[0], unit)} to {_rounded(window[1], unit)} {unit}"
    told = [subject.source.energy_label, shown, _algorithm(subject)]
    return draw(
        planes, legend, window=window, title="Segments", subtitle="   ·   ".join(filter(None, told)), width=width
    )


def volume_text(mm3: float) -> str:
    """Return a volume with three digits, in mL from one on, else in mm³."""
    value, unit = (mm3 / 1000, "mL") if mm3 >= 1000 else (mm3, "mm³")
    decimals = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:,.{decimals}f} {unit}"


def _names(subject: Subject, segments: Sequence[StoredSegment]) -> Mapping[int, str]:
    if subject.made_here:
        return {segment.number: segment.label for segment in segments}
    return coded_names(segments)


def _numbers(row: SegmentMeasurements, measured: Measurements) -> tuple[str, str]:
    """Return volume, and mean with deviation, of the series that was segmented."""
    statistics, unit = row.of_series[measured.sources.index(measured.segmented)], measured.segmented.unit
    if statistics is None:
        return "no voxels", ""
    spread = f"{_rounded(statistics.mean, unit)} ± {_rounded(statistics.standard_deviation, unit)} {unit}"
    return volume_text(row.volume_mm3), spread


def _rounded(value: float, unit: str) -> str:
    return f"{value:.0f}".replace("-", "−") if unit == "HU" else f"{value:.3f}".replace("-", "−")


def _algorithm(subject: Subject) -> str:
    """Return what the SEG says made its segments, if this node made it."""
    if not subject.made_here:
        return ""
    names = sorted({str(item.get("SegmentAlgorithmName") or "") for item in subject.seg.SegmentSequence} - {""})
    return ", ".join(names)[:80]
