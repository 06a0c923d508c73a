"""Axial slices turned into the axes of the patient, whichever way their rows and columns run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from plugins.measurement.segments import SegmentVoxels
from plugins.measurement.subject import LEAST_ALONG_AXIS, Source
from plugins.node import CannotProceed

_X, _Y = 0, 1
_Value = TypeVar("_Value", bound=np.generic)


@dataclass(frozen=True)
class Turn:
    """What brings rows and columns of slices to where the patient has them. Nothing is resampled.

    Attributes
    ----------
    swaps
        Whether rows become columns; before the rest.
    flips_y, flips_x
        Whether the order of rows, of columns is reversed.
    """

    swaps: bool
    flips_y: bool
    flips_x: bool

    def array(self, array: NDArray[_Value]) -> NDArray[_Value]:
        """Return a view ``(z, y, x)`` whose y runs to the patient's back and whose x runs to the patient's left."""
        swapped = array.swapaxes(1, 2) if self.swaps else array
        turned: NDArray[_Value] = swapped[:, :: -1 if self.flips_y else 1, :: -1 if self.flips_x else 1]
        return turned

    def voxels(self, voxels: SegmentVoxels) -> SegmentVoxels:
        """Return segments turned like `array`."""
        return SegmentVoxels(tuple(self.array(layer) for layer in voxels.layers), voxels.layer_of)

    def spacing_mm_zyx(self, spacing_mm_zyx: tuple[float, float, float]) -> tuple[float, float, float]:
        """Return the spacing of what is turned."""
        z, y, x = spacing_mm_zyx
        return (z, x, y) if self.swaps else (z, y, x)


def turn_of(source: Source) -> Turn:
    """Return what turns axial slices into the axes of the patient (PS3.3 C.7.6.2.1.1).

    Raises
    ------
    CannotProceed
        Rows or columns run along neither of the patient's axes.
    """
    placement = source.grid.placement
    along_x, along_y = (_unit(step) for step in (placement.step_x_xyz, placement.step_y_xyz))
    swaps = abs(along_x[_Y]) > abs(along_x[_X])
    to_left, to_back = (along_y, along_x) if swaps else (along_x, along_y)
    if min(abs(to_left[_X]), abs(to_back[_Y])) < LEAST_ALONG_AXIS:
        raise CannotProceed(
            f"rows and columns of series {source.series_instance_uid} run along no axis of the patient, "
            "which is what can be drawn"
        )
    return Turn(bool(swaps), flips_y=bool(to_back[_Y] < 0), flips_x=bool(to_left[_X] < 0))


def _unit(step: tuple[float, float, float]) -> NDArray[np.float64]:
    vector = np.array(step)
    return np.asarray(vector / np.linalg.norm(vector))
