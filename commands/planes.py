"""Which planes of a volume are worth looking at: those through what was found in it, or with the most contrast.

Arrays have the axes ``(z, y, x)``. Arrays only; `commands.pictures` draws.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy  # loads its parts when they are used
from numpy.typing import NDArray

from commands.pictures import Picture
from plugins.segmentation.segmenter import Placement, Volume

Planes = tuple[int, int, int]
"""Slice, row and column, each of which is a plane: axial, coronal and sagittal."""

_LEAST_SHARE = 2e-4
"""Of all labelled voxels: a smaller part is taken for noise."""

_SHOWN_WEIGHT = 0.5
"""What a part still counts for when an earlier plane shows it."""

_WELL_CUT = 0.7
"""A plane shows a part when it cuts this much of what the part has in its fullest plane."""

_NAMES = ("axial", "coronal", "sagittal")
_AXES = ("z", "y", "x")


def planes_through(
    values: NDArray[np.floating],
    labels: NDArray[np.integer] | None = None,
    *,
    window: tuple[float, float] | None = None,
) -> Planes:
    """Return the planes that show most of what matters.

    With labels, every connected part of every segment counts for the share that a plane cuts of the most voxels that
    the part has in any plane along that axis: 1 where the part is at its fullest. So a stone counts as much as the
    spine, and the plane goes through as many parts as it can, each at its fullest. Parts that an earlier plane shows
    count less for the next, so that the three show different things. Without labels (or where none is set), the plane
    with the largest standard deviation.

    Parameters
    ----------
    values
        ``(z, y, x)``.
    labels
        Segment numbers on the same grid; 0 is nothing.
    window
        Lowest and highest value shown: contrast outside of it is not seen.
    """
    if labels is None or not labels.any():
        z, y, x = (fullest_contrast(np.moveaxis(values, axis, 0), window=window) for axis in range(3))
        return z, y, x
    parts, count = _parts(labels)
    weights = np.ones(count)
    chosen = []
    for axis in range(3):
        shares = _shares(parts, count, axis)
        # Of planes that are equally good, the one that cuts the most.
        voxels = np.count_nonzero(labels, axis=tuple({0, 1, 2} - {axis}))
        merit = weights @ shares + 1e-6 * voxels / max(1, voxels.max())
        plane = int(np.argmax(merit))
        weights[shares[:, plane] >= _WELL_CUT] *= _SHOWN_WEIGHT
        chosen.append(plane)
    z, y, x = chosen
    return z, y, x


def fullest_contrast(
    slices: Sequence[NDArray[np.floating]] | NDArray[np.floating], *, window: tuple[float, float] | None = None
) -> int:
    """Return which of the slices, (row, column) of one size, has the largest standard deviation within the window.

    Parameters
    ----------
    window
        None: from the 1st to the 99.5th percentile of all slices.
    """
    low, high = window or (float(value) for value in np.percentile(slices, (1.0, 99.5)))
    return int(np.argmax([np.clip(each, low, high).std() for each in slices]))


def _parts(labels: NDArray[np.integer]) -> tuple[NDArray[np.int64], int]:
    """Number the connected parts of all segments from 1, ``(z, y, x)``, but those too small to matter."""
    least = _LEAST_SHARE * np.count_nonzero(labels)
    parts = np.zeros(labels.shape, np.int64)
    count = 0
    for number in np.unique(labels[labels > 0]):
        found, _ = scipy.ndimage.label(labels == number)
        sizes = np.bincount(found.ravel())
        sizes[0] = 0
        table = np.zeros(len(sizes), np.int64)
        kept = np.flatnonzero(sizes >= min(least, sizes.max()))
        table[kept] = count + 1 + np.arange(len(kept))
        parts += table[found]
        count += len(kept)
    return parts, count


def _shares(parts: NDArray[np.int64], count: int, axis: int) -> NDArray[np.float64]:
    """Return what each plane along an axis has of each part, its fullest plane 1: (part, plane)."""
    places = np.nonzero(parts)
    size = parts.shape[axis]
    cells = (parts[places] - 1) * size + places[axis]
    voxels = np.bincount(cells, minlength=count * size).reshape(count, size)
    shares: NDArray[np.float64] = voxels / voxels.max(axis=1, keepdims=True)
    return shares


def three_planes(
    volume: Volume,
    planes: Planes,
    labels: NDArray[np.integer] | None = None,
    *,
    window: tuple[float, float] | None = None,
) -> list[Picture]:
    """Return the axial, coronal and sagittal plane, each with its position in its title.

    Parameters
    ----------
    volume
        Axial slices from the feet to the head.
    labels
        Segment numbers on its grid, ``(z, y, x)``.
    """
    z, y, x = planes
    cuts: tuple[tuple[int | slice, ...], ...] = (np.s_[z, :, :], np.s_[::-1, y, :], np.s_[::-1, :, x])
    deep, tall, wide = volume.spacing_mm_zyx
    spacings = ((tall, wide), (deep, wide), (deep, tall))
    return [
        Picture(
            f"{_NAMES[axis]}, {position_of(volume, axis, planes[axis])}",
            volume.values[cut],
            window=window,
            labels=None if labels is None else labels[cut],
            pixel_aspect=rows / columns,
            pixel_mm=columns,
        )
        for axis, (cut, (rows, columns)) in enumerate(zip(cuts, spacings, strict=True))
    ]


def position_of(volume: Volume, axis: int, index: int) -> str:
    """Return where a plane is, for example ``z = 1.2 mm``: patient coordinates (LPS), where they are known.

    Parameters
    ----------
    axis
        Of the array: 0 slices, 1 rows, 2 columns.
    index
        The plane, from 0.
    """
    if volume.placement is None:
        return f"{index + 1} of {volume.values.shape[axis]}"
    mm = _along(volume.placement, axis, index)
    return f"{_AXES[axis]} = {mm:.1f} mm".replace("-0.0 ", "0.0 ").replace("-", "−")


def _along(placement: Placement, axis: int, index: int) -> float:
    """Return the coordinate of a plane, mm, along the patient's axis that is nearest to that of the array."""
    step = np.array((placement.step_z_xyz, placement.step_y_xyz, placement.step_x_xyz)[axis])
    centre = np.array(placement.origin_mm_xyz) + index * step
    direction = step / np.linalg.norm(step)
    return float(centre @ direction) * float(np.sign(direction[np.argmax(np.abs(direction))]))
