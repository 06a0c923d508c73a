"""Volumes as the network knows them: slices from feet to head, rows to the back, columns to the left."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from plugins.segmentation.segmenter import Placement

Values = TypeVar("Values", bound=np.generic)


@dataclass(frozen=True)
class Axes:
    """How the axes of an array lie to those of the patient, as nearly as whole turns go.

    Attributes
    ----------
    order
        Axis of the array that runs along z, y and x of the patient (LPS).
    reverse
        Whether it runs against it.
    """

    order: tuple[int, int, int]
    reverse: tuple[bool, bool, bool]

    @classmethod
    def of(cls, placement: Placement) -> Axes:
        """Find the turn that brings the voxels nearest to the axes of the patient."""
        directions = placement.affine[:3, :3] / np.linalg.norm(placement.affine[:3, :3], axis=0)
        along = directions[::-1].T  # axes (axis of the array, z y x of the patient)
        best = max(itertools.permutations(range(3)), key=lambda order: abs(along[list(order), [0, 1, 2]]).sum())
        first, second, third = (int(axis) for axis in best)
        reverse = bool(along[first, 0] < 0), bool(along[second, 1] < 0), bool(along[third, 2] < 0)
        return cls((first, second, third), reverse)

    def turned(self, values: npt.NDArray[Values]) -> npt.NDArray[Values]:
        """Return a view of `values`, three axes as in the array, with the axes (z, y, x) of the patient."""
        turned: npt.NDArray[Values] = np.transpose(values, self.order)[self._steps]
        return turned

    def back(self, values: npt.NDArray[Values]) -> npt.NDArray[Values]:
        """Return a view of `values`, axes (z, y, x) of the patient, with the axes of the array."""
        return np.transpose(values[self._steps], np.argsort(self.order))

    def of_each(self, lengths: tuple[float, float, float]) -> tuple[float, float, float]:
        """Return what belongs to each axis of the array in the order z, y, x of the patient."""
        first, second, third = (lengths[axis] for axis in self.order)
        return first, second, third

    def ends(self, shape: tuple[int, ...]) -> list[npt.NDArray[np.float64]]:
        """Return indices (z, y, x, 1) in the array of a voxel of the first and of one of the last slice."""
        last = np.array([0.0, 0.0, 0.0, 1.0])
        last[self.order[0]] = shape[self.order[0]] - 1
        return [np.array([0.0, 0.0, 0.0, 1.0]), last]

    @property
    def _steps(self) -> Any:
        return tuple(slice(None, None, -1 if is_reversed else 1) for is_reversed in self.reverse)
