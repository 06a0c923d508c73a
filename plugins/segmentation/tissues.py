"""Tissues of a sample in Hounsfield units: which voxel is gas, lung, fat, soft tissue, bone, or otherwise dense."""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import numpy as np
import scipy  # loads its parts when they are used
from numpy.typing import NDArray

from plugins.segmentation.attenuation_ranges import GAS_HU, Ranges
from plugins.segmentation.morphology import Mask, closed, filled, grown, opened, without_islands
from plugins.segmentation.outline import Coarse, Sample

Labels = NDArray[np.uint8]


class Tissue(IntEnum):
    """Labels; where several apply the greater one counts."""

    SOFT = 1
    FAT = 2
    LUNG = 3
    GAS = 4
    CONTRAST = 5
    BONE = 6
    CALCIFICATION = 7


_LUNG_HU = -300.0
"""Half-way from dense lung to soft tissue."""

_LUNG_MEDIAN_HU = (-930.0, -550.0)
"""Lung holds tissue, so it is denser than gas; bowel with stool and gas in it is denser still. In the core of an
object, for its surface is half soft tissue, which makes small gas look like lung."""

_CORE = 0.5
"""The core of an object is what lies deeper than this share of its greatest depth."""

_LUNG_SIZE = 0.1
"""Edge of a cube as large as the smallest lung (or part of one in the volume), as a share of the sample's width."""

_LUNG_OPENING, _LUNG_CLOSING = 0.009, 0.015
"""Bronchi go by opening, vessels come by closing; radii as shares of the width (3 and 5 mm of 33 cm)."""

_SMALL_BONE = 0.03
"""Edge of a cube as large as the smallest bone, as a share of the width: 1 cm of 33 cm."""

_SHELL_SHARE = 0.25
"""Share of a block that bone fills where it counts as a wall."""

_BONE_REACH = 0.006
"""How far bone reaches from where it is sure, as a share of the width: an aorta beside the spine is not bone."""

_BONE_CLOSING = 0.02
"""Half the width of gaps in cortical bone, as a share of the width: 7 mm of 33 cm."""

_SMALL_VESSEL = 0.015
"""Edge of a cube as large as the least that counts as contrast agent, as a share of the width: 5 mm of 33 cm."""

_EVEN = 0.15
"""Standard deviation over mean up to which a dense object is even, as blood with contrast agent is and bone is not."""

_HALF = 0.4
"""An object ends at half of its greatest value nearby; a little less, since that of a thin wall is itself blurred."""

_PARTIAL_STEPS = 2
"""Voxels at the surface of something dense or of gas whose value is a mixture of both sides."""


def label_tissues(sample: Sample, ranges: Ranges, *, island_voxels: float) -> Labels:
    """Label the voxels inside the sample's outline.

    Parameters
    ----------
    sample
        With its values in HU.
    ranges
        At the volume's energy.
    island_voxels
        Islands smaller than this take the label of soft tissue.
    """
    values, outline = sample.values, sample.outline
    labels = np.where(outline, np.uint8(Tissue.SOFT), np.uint8(0))
    lung = _lung(sample)
    gas = without_islands(outline & (values <= GAS_HU) & ~lung, island_voxels)
    labels[_fat(sample, gas | lung, ranges, island_voxels)] = Tissue.FAT
    labels[lung] = Tissue.LUNG
    labels[gas] = Tissue.GAS
    _label_dense(labels, sample, ranges, island_voxels)
    return labels


def _lung(sample: Sample) -> Mask:
    """Large objects inside the sample that are lighter than soft tissue and denser than gas."""
    coarse, blocks, width = sample.coarse, sample.blocks, sample.width_mm
    low = opened(blocks & (coarse.values < _LUNG_HU), _LUNG_OPENING * width, coarse.spacing_mm_zyx)
    parts, count = scipy.ndimage.label(low)
    found = np.zeros(count + 1, bool)
    sizes = np.bincount(parts.ravel()) * coarse.block_mm3
    medians = _medians_of_cores(coarse, parts, count)
    lightest, densest = _LUNG_MEDIAN_HU
    found[1:] = (sizes[1:] >= (_LUNG_SIZE * width) ** 3) & (medians > lightest) & (medians < densest)
    core = found[parts]
    if not core.any():
        return np.zeros_like(sample.outline)
    whole = closed(core, _LUNG_CLOSING * width, coarse.spacing_mm_zyx) & blocks
    inside = coarse.on_volume(whole)
    near = coarse.on_volume(scipy.ndimage.binary_dilation(whole))
    return sample.outline & (inside | (near & (sample.values < _LUNG_HU)))


def _medians_of_cores(coarse: Coarse, parts: NDArray[np.integer[Any]], count: int) -> NDArray[np.float64]:
    """Return the median value in the core of each of `count` objects, (object,)."""
    if not count:
        return np.empty(0)
    numbers = np.arange(count + 1)
    depth = scipy.ndimage.distance_transform_edt(parts > 0, sampling=coarse.spacing_mm_zyx)
    greatest = np.asarray(scipy.ndimage.maximum(depth, parts, numbers))
    core = np.where(depth > _CORE * greatest[parts], parts, 0)
    return np.asarray(scipy.ndimage.median(coarse.values, core, numbers[1:]))


def _fat(sample: Sample, airy: Mask, ranges: Ranges, island_voxels: float) -> Mask:
    """What has the attenuation of fat, but for the shell at air, whose voxels are half air and half soft tissue."""
    fat = sample.outline & (sample.values > ranges.gas_to_fat) & (sample.values <= ranges.fat_to_soft) & ~airy
    at_air = scipy.ndimage.binary_dilation(airy | ~sample.outline, iterations=_PARTIAL_STEPS)
    return without_islands(grown(fat & ~at_air, fat, _PARTIAL_STEPS), island_voxels)


def _label_dense(labels: Labels, sample: Sample, ranges: Ranges, island_voxels: float) -> None:
    """Tell bone, calcification and contrast agent, as far as attenuation, size, evenness and position allow."""
    dense = sample.outline & (sample.values > ranges.soft_to_contrast)
    steps = max(1, round(_BONE_REACH * sample.width_mm / sample.step_mm))
    mineral = grown(dense & (sample.values > ranges.sure_mineral), dense & (sample.values > ranges.mineral), steps)
    parts, count = scipy.ndimage.label(mineral, np.ones((3, 3, 3)))
    small_bone = max(island_voxels, (_SMALL_BONE * sample.width_mm) ** 3 / sample.voxel_mm3)
    kinds = _kinds(parts, count, sample.values, ranges, (island_voxels, small_bone))[parts]
    del parts
    solid = kinds > 0
    surface = grown(solid, dense, _PARTIAL_STEPS)
    halves = _more_than_half(sample.values, solid, surface)
    bone = ((kinds == Tissue.BONE) & halves) | _spongy(kinds == Tissue.BONE, sample, ranges.spongy)
    vessel = max(island_voxels, (_SMALL_VESSEL * sample.width_mm) ** 3 / sample.voxel_mm3)
    labels[without_islands(dense & ~surface, vessel)] = Tissue.CONTRAST
    labels[(kinds == Tissue.CALCIFICATION) & halves] = Tissue.CALCIFICATION
    labels[bone] = Tissue.BONE


def _kinds(
    parts: NDArray[np.integer[Any]],
    count: int,
    values: NDArray[np.float32],
    ranges: Ranges,
    least_voxels: tuple[float, float],
) -> NDArray[np.uint8]:
    """Return what each connected object of mineral's attenuation is; 0 is none of these.

    Voxels of the smallest calcification and of the smallest bone come as `least_voxels`. What the first or the last
    slice cuts may go on there, so it is bone whatever its size.
    """
    flat = np.flatnonzero(parts)
    number, value = parts.ravel()[flat], values.ravel()[flat].astype(np.float64)
    length = count + 1
    sizes = np.bincount(number, minlength=length)
    sure = np.bincount(number[value > ranges.sure_mineral], minlength=length)
    safe = np.maximum(sizes, 1)
    means = np.bincount(number, value, length) / safe
    deviations = np.sqrt(np.maximum(np.bincount(number, value**2, length) / safe - means**2, 0))
    cut = np.zeros(length, bool)
    cut[np.unique(parts[[0, -1]])] = True
    even = (deviations < _EVEN * means) & (means < ranges.iodine)
    is_mineral = (sure > 0) & ~even & (sizes >= least_voxels[0])
    is_bone = is_mineral & ((sizes >= least_voxels[1]) | cut)
    kinds = np.zeros(length, np.uint8)
    kinds[is_mineral] = Tissue.CALCIFICATION
    kinds[is_bone] = Tissue.BONE
    kinds[0] = 0
    return kinds


def _more_than_half(values: NDArray[np.float32], solid: Mask, surface: Mask) -> Mask:
    """Return the voxels of `surface` with more than about half of the greatest value around (half maximum).

    Water is at 0 HU, so that half of a bone's value lies half-way to the soft tissue around.
    """
    result = np.zeros_like(surface)
    box = scipy.ndimage.find_objects(surface.view(np.uint8))
    if box:
        inside = np.where(solid[box[0]], values[box[0]], np.float32(0))
        greatest = scipy.ndimage.maximum_filter(inside, 2 * _PARTIAL_STEPS + 1)
        result[box[0]] = surface[box[0]] & (values[box[0]] > _HALF * greatest)
    return result


def _spongy(bone: Mask, sample: Sample, spongy: float) -> Mask:
    """Return what bone encloses, or nearly so, and what is at least as dense as trabecular bone there."""
    coarse = sample.coarse
    whole = filled(closed(coarse.share(bone) > _SHELL_SHARE, _BONE_CLOSING * sample.width_mm, coarse.spacing_mm_zyx))
    within = scipy.ndimage.binary_erosion(whole, border_value=1)
    return coarse.on_volume(within) & (sample.values > spongy)
