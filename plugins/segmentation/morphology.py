"""Morphology on boolean volumes whose voxels need not be cubes: radii in mm, sizes in voxels of any shape.

Balls are distances (Serra, Image Analysis and Mathematical Morphology, 1982): a dilation by r holds all that lies
within r of the object. Outside the volume there is nothing to erode from: what the field of view cuts stays whole.
"""

from __future__ import annotations

import numpy as np
import scipy  # loads its parts when they are used
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
Triple = tuple[float, float, float]


def dilated(mask: Mask, radius_mm: float, spacing_mm_zyx: Triple) -> Mask:
    """Return all voxels whose centres lie within `radius_mm` of a voxel of `mask`."""
    if radius_mm < min(spacing_mm_zyx) or not mask.any():
        return mask
    return np.asarray(scipy.ndimage.distance_transform_edt(~mask, spacing_mm_zyx) <= radius_mm)


def eroded(mask: Mask, radius_mm: float, spacing_mm_zyx: Triple) -> Mask:
    """Return the voxels of `mask` that lie further than `radius_mm` from everything else within the volume."""
    return ~dilated(~mask, radius_mm, spacing_mm_zyx)


def opened(mask: Mask, radius_mm: float, spacing_mm_zyx: Triple) -> Mask:
    """Return what of `mask` a ball reaches that stays inside: sheets and strings thinner than the ball go."""
    return dilated(eroded(mask, radius_mm, spacing_mm_zyx), radius_mm, spacing_mm_zyx) & mask


def closed(mask: Mask, radius_mm: float, spacing_mm_zyx: Triple) -> Mask:
    """Return `mask` with the gaps that a ball does not fit into."""
    return eroded(dilated(mask, radius_mm, spacing_mm_zyx), radius_mm, spacing_mm_zyx) | mask


def grown(seeds: Mask, within: Mask, steps: int) -> Mask:
    """Return `seeds` and what of `within` is at most `steps` face neighbours away, walking inside `within`."""
    return np.asarray(scipy.ndimage.binary_dilation(seeds, iterations=steps, mask=within)) if steps else seeds & within


def filled(mask: Mask) -> Mask:
    """Return `mask` with the holes of its axial slices.

    By slice, because the first and the last slice of a stack leave lungs and airways open in three dimensions.
    """
    result = mask.copy()
    for index in np.flatnonzero(mask.any(axis=(1, 2))):
        result[index] = scipy.ndimage.binary_fill_holes(mask[index])
    return result


def largest(mask: Mask) -> Mask:
    """Return the largest connected object (faces), nothing when there is none."""
    parts, count = scipy.ndimage.label(mask)
    if count == 0:
        return mask
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    return np.asarray(parts == np.argmax(sizes))


def without_islands(mask: Mask, least_voxels: float) -> Mask:
    """Return the connected objects (faces) of at least so many voxels."""
    if least_voxels <= 1:
        return mask
    parts, _ = scipy.ndimage.label(mask)
    kept = np.bincount(parts.ravel()) >= least_voxels
    kept[0] = False
    return np.asarray(kept[parts])
