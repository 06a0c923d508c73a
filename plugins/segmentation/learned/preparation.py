"""From a volume to what the network sees of it, and from its answer back to the voxels of the volume."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from plugins.node import CannotProceed
from plugins.segmentation.hounsfield import hounsfield
from plugins.segmentation.learned.axes import Axes
from plugins.segmentation.learned.inputs import Hounsfield
from plugins.segmentation.segmenter import Volume

_TIE = 1e-6
_LARGEST_HU = 30000.0
"""Half precision ends at 65504."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """A volume at the spacing of a network.

    Attributes
    ----------
    values
        HU ``(z, y, x)``, axes of the patient; rows and columns resampled, slices as they are.
    step
        Distance of the neighbours that the network sees, in slices.
    slice_mm
        Distance of slices, mm.
    lowest_mm
        Where the first slice lies along the axis from feet to head, mm.
    axes
        How the volume lies.
    shape_zyx
        Of the volume, axes of the patient.
    """

    values: Hounsfield
    step: float
    slice_mm: float
    lowest_mm: float
    axes: Axes
    shape_zyx: tuple[int, int, int]

    def labels(self, probabilities: Iterable[Tensor]) -> npt.NDArray[np.uint8]:
        """Return the most probable class of each voxel of the volume, from its slices, axes (class, row, column)."""
        found = np.empty(self.shape_zyx, np.uint8)
        for number, each in enumerate(probabilities):
            whole = functional.interpolate(each[None], self.shape_zyx[1:], mode="bilinear", align_corners=False)
            found[number] = whole[0].argmax(dim=0).cpu().numpy()
        return np.ascontiguousarray(self.axes.back(found))


def prepared(volume: Volume, spacing_mm: float, reach_mm: float) -> Prepared:
    """Return `volume` as a network of that spacing and reach sees it.

    Raises
    ------
    CannotProceed
        The volume does not say where it lies in the patient, or its values are not known in HU.
    """
    if volume.placement is None:
        raise CannotProceed("the volume does not say where it lies in the patient, so left and right are not known")
    in_hu = hounsfield(volume)
    if in_hu is None:
        raise CannotProceed("the effective energy of the volume is not known, so its attenuation cannot become HU")
    axes = Axes.of(volume.placement)
    turned = axes.turned(in_hu)
    z, y, x = axes.of_each(volume.spacing_mm_zyx)
    depth, rows, columns = turned.shape
    size = max(1, round(rows * y / spacing_mm)), max(1, round(columns * x / spacing_mm))
    values = np.empty((depth, *size), np.float16)
    for number, each in enumerate(turned):
        values[number] = _resampled(each, size)
    ends = [float((volume.placement.affine @ corner)[2]) for corner in axes.ends(volume.values.shape)]
    return Prepared(values, reach_mm / z, z, min(ends), axes, (depth, rows, columns))


def prepared_labels(labels: npt.NDArray[np.uint8], onto: Prepared) -> npt.NDArray[np.uint8]:
    """Return a label map on the grid of the volume at the spacing of `onto`: the label at the nearest voxel.

    Of two that are equally near it is the one and the other in turn, so that nothing is shifted.
    """
    turned = onto.axes.turned(labels)
    rows, columns = (
        np.minimum(((np.arange(new) + 0.5) * (old / new) - _TIE * (np.arange(new) % 2)).astype(np.intp), old - 1)
        for new, old in zip(onto.values.shape[1:], turned.shape[1:], strict=True)
    )
    return np.ascontiguousarray(turned[:, rows[:, None], columns[None, :]])


def _resampled(values: npt.NDArray[np.float32], size: tuple[int, int]) -> npt.NDArray[np.float16]:
    """Resample a slice; where it becomes coarser, the mean of what a pixel covers."""
    whole = torch.from_numpy(np.ascontiguousarray(values).clip(-_LARGEST_HU, _LARGEST_HU))
    if whole.shape != size:
        whole = functional.interpolate(whole[None, None], size, mode="bilinear", align_corners=False, antialias=True)[
            0, 0
        ]
    return np.asarray(whole.numpy(), dtype=np.float16)
