"""Three planes through segments, as radiologists look at them. Arrays only.

The planes are those of the voxels, not resampled: axial slices seen from the feet, the patient's left on the right;
coronal ones from the front; sagittal ones from the left, the face on the left. Head is up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from plugins.measurement.segments import SegmentVoxels


@dataclass(frozen=True, eq=False)
class Plane:
    """A plane as it is shown: first row at the top.

    Attributes
    ----------
    name
        ``Axial``, ``Coronal`` or ``Sagittal``.
    image
        (row, column), in the unit of the volume.
    masks
        Segment number to (row, column) bool, of the segments that the plane cuts.
    spacing_mm
        Of rows, of columns, mm.
    sides
        Letters of the patient's sides at the left, right, top and bottom (PS3.3 C.7.6.1.1.1).
    cross
        Where the other two planes cut this one: row, column.
    """

    name: str
    image: NDArray[np.float32]
    masks: Mapping[int, NDArray[np.bool_]]
    spacing_mm: tuple[float, float]
    sides: tuple[str, str, str, str]
    cross: tuple[int, int]

    @property
    def size_mm(self) -> tuple[float, float]:
        """Height and width."""
        rows, columns = self.image.shape
        return rows * self.spacing_mm[0], columns * self.spacing_mm[1]


def centre_of(voxels: SegmentVoxels, numbers: tuple[int, ...]) -> tuple[int, int, int]:
    """Return the voxel (z, y, x) nearest to the centre of mass of the segments together.

    Raises
    ------
    ValueError
        None of them has a voxel.
    """
    count, moment = 0, np.zeros(3)
    for number in numbers:
        mask = voxels.mask(number)
        for axis in range(3):
            along = mask.sum(axis=tuple(other for other in range(3) if other != axis), dtype=np.int64)
            moment[axis] += float(along @ np.arange(len(along)))
        count += int(mask.sum())
    if not count:
        raise ValueError("the segments have no voxels")
    z, y, x = (round(float(part)) for part in moment / count)
    return z, y, x


def three_planes(
    values: NDArray[np.float32],
    voxels: SegmentVoxels,
    numbers: tuple[int, ...],
    spacing_mm_zyx: tuple[float, float, float],
    centre: tuple[int, int, int],
) -> tuple[Plane, Plane, Plane]:
    """Cut axial, coronal and sagittal planes through the voxel `centre`.

    Parameters
    ----------
    values
        ``(z, y, x)``: z towards the head, y towards the back, x towards the patient's left.
    voxels, numbers
        The segments that are shown.
    """
    (z, y, x), (dz, dy, dx) = centre, spacing_mm_zyx
    up = values.shape[0] - 1 - z
    cuts = (
        ("Axial", np.s_[z, :, :], (dy, dx), ("R", "L", "A", "P"), (y, x)),
        ("Coronal", np.s_[::-1, y, :], (dz, dx), ("R", "L", "H", "F"), (up, x)),
        ("Sagittal", np.s_[::-1, :, x], (dz, dy), ("A", "P", "H", "F"), (up, y)),
    )
    axial, coronal, sagittal = (
        Plane(name, values[cut], _masks(voxels, numbers, cut), spacing, sides, cross)
        for name, cut, spacing, sides, cross in cuts
    )
    return axial, coronal, sagittal


def _masks(
    voxels: SegmentVoxels, numbers: tuple[int, ...], cut: tuple[int | slice, ...]
) -> dict[int, NDArray[np.bool_]]:
    masks = {number: voxels.layers[voxels.layer_of[number]][cut] == number for number in numbers}
    return {number: mask for number, mask in masks.items() if mask.any()}


def window_of(values: NDArray[np.float32], voxels: SegmentVoxels) -> tuple[float, float]:
    """Return the lowest and the highest value to show, from the voxels of all segments together.

    From the 5th to the 95th percentile, so that a little bone or gas leaves contrast to the soft tissue around it, and
    a quarter more on both sides.

    Parameters
    ----------
    values
        ``(z, y, x)``.
    """
    inside = values[np.any([layer > 0 for layer in voxels.layers], axis=0)]
    low, high = (float(value) for value in np.percentile(inside, (5.0, 95.0)))
    margin = 0.25 * (high - low)
    return (low - margin, high + margin) if high > low else (low - 1.0, low + 1.0)
