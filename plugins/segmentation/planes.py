"""Parallel image planes in the patient, LPS (PS3.3 C.7.6.2.1.1, per frame in enhanced objects C.7.6.16.2.3).

::

    pixel (row, column) of a plane = its position + column · column_step + row · row_step
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from index.encoders.functional_groups import of_frame
from index.encoders.orientation import plane_of
from plugins.node import CannotProceed

SAME_DIRECTION = 1e-3
"""Difference of direction cosines below which two planes are parallel: half a pixel at the far end of 512."""

_SAME_SPACING = 1e-3
"""Relative."""

FrameOf = tuple[Dataset, int]
"""An object and the index of a frame in it, from 0."""


@dataclass(frozen=True, eq=False)
class Planes:
    """Planes of one orientation and one pixel spacing.

    Attributes
    ----------
    positions_mm
        Axes (plane, xyz): the centre of the first pixel of each.
    row_xyz, column_xyz
        Unit vectors along which the column index and the row index grow.
    spacing_mm_yx
        Distance of rows, distance of columns.
    """

    positions_mm: NDArray[np.float64]
    row_xyz: NDArray[np.float64]
    column_xyz: NDArray[np.float64]
    spacing_mm_yx: tuple[float, float]

    @property
    def normal_xyz(self) -> NDArray[np.float64]:
        """Unit vector that makes a right-handed system of rows, columns and planes."""
        normal = np.cross(self.row_xyz, self.column_xyz)
        return np.asarray(normal / np.linalg.norm(normal))

    @property
    def distances_mm(self) -> NDArray[np.float64]:
        """Axis (plane,): position along the normal."""
        return np.asarray(self.positions_mm @ self.normal_xyz)

    def in_plane(self, offsets_mm: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the offsets, axes (…, xyz) in mm, in pixels, axes (…, (row, column))."""
        rows, columns = self.spacing_mm_yx
        return np.stack([offsets_mm @ self.column_xyz / rows, offsets_mm @ self.row_xyz / columns], axis=-1)

    def at(self, indices: Sequence[int]) -> Planes:
        """Return the planes at `indices`, in that order."""
        return Planes(self.positions_mm[list(indices)], self.row_xyz, self.column_xyz, self.spacing_mm_yx)

    def parallel_to(self, other: Planes) -> bool:
        """Whether rows and columns run alike."""
        return _differ(self.row_xyz, other.row_xyz) is None and _differ(self.column_xyz, other.column_xyz) is None


def planes_of(frames: Sequence[FrameOf]) -> Planes | None:
    """Return where `frames` lie; None when any of them does not say.

    Raises
    ------
    CannotProceed
        They are not parallel, or their pixels differ in size.
    """
    orientations = [plane_of(dataset, index) for dataset, index in frames]
    positions = [
        _numbers(of_frame(*frame, "PlanePositionSequence", "ImagePositionPatient"), 3) for frame in frames
    ]
    spacings = [_numbers(of_frame(*frame, "PixelMeasuresSequence", "PixelSpacing"), 2) for frame in frames]
    if not frames or any(value is None for values in (orientations, positions, spacings) for value in values):
        return None
    row, column = orientations[0]  # type: ignore[misc]
    spacing = spacings[0]
    for orientation, other in zip(orientations, spacings, strict=True):
        _refuse_other_plane((row, column), orientation)
        if not np.allclose(spacing, other, rtol=_SAME_SPACING, atol=0.0):  # type: ignore[arg-type]
            raise CannotProceed(f"expected pixels of one size, got {_told(spacing)} mm and {_told(other)} mm")
    if not (np.asarray(spacing) > 0).all():
        raise CannotProceed(f"expected Pixel Spacing above 0, got {_told(spacing)} mm")
    rows, columns = (float(value) for value in spacing)  # type: ignore[union-attr]
    return Planes(np.array(positions, np.float64), row, column, (rows, columns))


def step_mm_of(frame: FrameOf) -> float | None:
    """Return what a frame says of the distance to its neighbours: their spacing, else its thickness; None if neither.

    Spacing Between Slices may be negative in nuclear medicine (PS3.3 C.8.4.15): it is its size that counts.
    """
    for keyword in ("SpacingBetweenSlices", "SliceThickness"):
        told = _numbers([of_frame(*frame, "PixelMeasuresSequence", keyword)], 1)
        if told is not None and abs(told[0]) > 0:
            return float(abs(told[0]))
    return None


def _refuse_other_plane(expected: tuple[Any, Any], got: tuple[Any, Any] | None) -> None:
    for direction, other in zip(expected, got or (), strict=True):
        differing = _differ(direction, other)
        if differing is not None:
            raise CannotProceed(
                f"expected slices in one orientation, got rows or columns along {_told(direction)} and {_told(other)}"
            )


def _differ(one: NDArray[np.float64], other: NDArray[np.float64]) -> float | None:
    largest = float(np.abs(one - other).max())
    return largest if largest > SAME_DIRECTION else None


def _numbers(value: Any, count: int) -> NDArray[np.float64] | None:
    try:
        numbers = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        return None
    return numbers if numbers.shape == (count,) and np.isfinite(numbers).all() else None


def _told(values: Any) -> str:
    return "×".join(f"{float(value):g}" for value in values) if len(values) == 2 else str(np.round(values, 4).tolist())
