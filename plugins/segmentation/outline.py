"""The sample in a volume: how wide it is, and which voxels are its own, holes included, table and holder not.

All lengths follow the width of the sample, so that a mouse in a micro-CT and a man in a scanner are treated alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy  # loads its parts when they are used
from numpy.typing import NDArray

from plugins.segmentation.morphology import Mask, Triple, dilated, filled, largest, opened

_VOXELS_ACROSS = 150
"""The outline is searched for in blocks of a 150th of the sample's width, or in voxels if these are larger."""

_SHEET = 0.012
"""Half the thickness of what is table, clothes or holder rather than sample, as a share of the width: 4 mm of 33 cm."""


@dataclass(frozen=True, eq=False)
class Coarse:
    """A volume in blocks of its voxels.

    Attributes
    ----------
    values
        Mean of each block, ``(z, y, x)``; the last block of an axis may hold fewer voxels.
    block_zyx
        Voxels of a block.
    spacing_mm_zyx
        Distance of the blocks' centres, mm.
    shape
        Of the volume itself.
    """

    values: NDArray[np.float32]
    block_zyx: tuple[int, int, int]
    spacing_mm_zyx: Triple
    shape: tuple[int, int, int]

    @classmethod
    def of(cls, values: NDArray[np.float32], spacing_mm_zyx: Triple, wanted_mm: float) -> Coarse:
        """Return blocks as near to cubes of `wanted_mm` as whole voxels allow."""
        z, y, x = (max(1, round(wanted_mm / step)) for step in spacing_mm_zyx)
        dz, dy, dx = spacing_mm_zyx
        depth, rows, columns = values.shape
        means = _means(values, (z, y, x))
        return cls(means, (z, y, x), (z * dz, y * dy, x * dx), (depth, rows, columns))

    @property
    def block_mm3(self) -> float:
        """Volume of a block, mm³."""
        return float(np.prod(self.spacing_mm_zyx))

    def share(self, mask: Mask) -> NDArray[np.float32]:
        """Return how much of each block a mask of voxels fills, 0 to 1."""
        return _means(mask, self.block_zyx)

    def on_volume(self, mask: Mask) -> Mask:
        """Return a mask of blocks as one of voxels."""
        for axis, block in enumerate(self.block_zyx):
            if block > 1:
                mask = mask.repeat(block, axis=axis)
        z, y, x = self.shape
        return mask[:z, :y, :x]


def width_mm(values: NDArray[np.float32], spacing_mm_zyx: Triple, threshold: float) -> float:
    """Return the diameter of a circle with the area that lies above `threshold` in the median slice, mm.

    Slices with nothing above do not count; 0 when all are such.
    """
    _, dy, dx = spacing_mm_zyx
    areas = np.array([np.count_nonzero(plane > threshold) for plane in values]) * dy * dx
    return float(2 * np.sqrt(np.median(areas[areas > 0]) / np.pi)) if areas.any() else 0.0


@dataclass(frozen=True, eq=False)
class Sample:
    """A volume and the sample in it.

    Attributes
    ----------
    values
        Smoothed, ``(z, y, x)``.
    voxel_mm3
        Volume of a voxel, mm³.
    outline
        Which voxels are the sample's.
    coarse, blocks
        The volume in blocks, and which of these are the sample's.
    width_mm
        Of the sample.
    """

    values: NDArray[np.float32]
    voxel_mm3: float
    outline: Mask
    coarse: Coarse
    blocks: Mask
    width_mm: float

    @property
    def step_mm(self) -> float:
        """Cube root of the voxel's volume, mm."""
        return float(self.voxel_mm3 ** (1 / 3))

    @classmethod
    def find(cls, values: NDArray[np.float32], spacing_mm_zyx: Triple, threshold: float) -> Sample | None:
        """Return the largest object above `threshold`; None when nothing is."""
        width = width_mm(values, spacing_mm_zyx, threshold)
        if not width:
            return None
        coarse = Coarse.of(values, spacing_mm_zyx, width / _VOXELS_ACROSS)
        blocks = _blocks(coarse, width, threshold)
        outline = _to_the_voxel(values, coarse, blocks, threshold)
        return cls(values, float(np.prod(spacing_mm_zyx)), outline, coarse, blocks, width)


def _blocks(coarse: Coarse, width: float, threshold: float) -> Mask:
    """The blocks of the largest object above `threshold`, with the holes of its slices, without thin sheets."""
    above = coarse.values > threshold
    sheet_mm = max(_SHEET * width, min(coarse.spacing_mm_zyx))
    thick = largest(opened(above, sheet_mm, coarse.spacing_mm_zyx))
    if not thick.any():  # a sample as thin as a sheet
        thick = largest(above)
    return filled(above & dilated(thick, sheet_mm, coarse.spacing_mm_zyx))


def _to_the_voxel(values: NDArray[np.float32], coarse: Coarse, blocks: Mask, threshold: float) -> Mask:
    """Blocks inside are taken whole, those at the surface by `threshold`."""
    if coarse.block_zyx == (1, 1, 1):
        return blocks
    inner = coarse.on_volume(scipy.ndimage.binary_erosion(blocks, border_value=1))
    surface = coarse.on_volume(scipy.ndimage.binary_dilation(blocks))
    return filled(inner | (surface & (values > threshold)))


def _means(values: NDArray[np.float32] | Mask, block_zyx: tuple[int, int, int]) -> NDArray[np.float32]:
    means: NDArray[Any] = values
    for axis in (2, 1, 0):
        means = _block_means(means, axis, block_zyx[axis])
    return np.asarray(means, np.float32)


def _block_means(values: NDArray[Any], axis: int, block: int) -> NDArray[np.float32]:
    if block == 1:
        return np.asarray(values, np.float32)
    size = values.shape[axis]
    starts = np.arange(0, size, block)
    counts = np.minimum(block, size - starts).astype(np.float32)
    shape = [1, 1, 1]
    shape[axis] = -1
    sums = np.add.reduceat(values, starts, axis=axis, dtype=np.float32)
    return np.asarray(sums / counts.reshape(shape), np.float32)
