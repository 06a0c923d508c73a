"""Rings: pixels whose gain changed since the flat field draw a stripe into the sinogram, and a ring into the slice.

N. T. Vo, R. C. Atwood & M. Drakopoulos, "Superior techniques for eliminating ring artifacts in X-ray micro-tomography",
Opt. Express 26 (2018) 28396, whose numbers of algorithms the functions give. A sinogram here is (view, column), of one
detector row; a stripe is a column. Its line integrals are off by a constant, for a gain is a factor.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Literal, get_args

import numpy as np
import scipy  # loads its parts when they are used
from numpy.typing import NDArray

from reconstruct.kernels_rings import median_along_rows
from reconstruct.working_memory import pieces

Image = NDArray[np.float32]
Mask = NDArray[np.bool_]

RingMethod = Literal["none", "sorted", "combined"]

METHODS: tuple[str, ...] = get_args(RingMethod)
"""What `remove_rings` can do."""

ROWS_AT_ONCE = 8
"""Detector rows whose sinograms are held at once, unless told otherwise."""

SINOGRAM_BYTES = 40
"""What the removal takes, besides the sinograms held, for each pixel of the one that it works on."""

_DROPPED = 0.1
"""Share of the lowest and of the highest values of a column that do not count for its offset."""

_LEAST_OFFSET = 0.005
"""Offset of a column, as a line integral, below which sorting out is enough."""

_ROUGHER = 2.5
"""Factor between the roughness of a dead column and that of its neighbours, at least."""

_LEAST_ROUGHNESS = 1e-3
"""Change from view to view, as a line integral, below which a pixel may well see nothing but air."""


def sort_out_stripes(sinogram: Image, size: int) -> Image:
    """Return a sinogram without its weak stripes (algorithm 3: sorting, smoothing, sorting back).

    The values of each column are put in order; neighbouring columns see almost the same ones, so what differs at the
    same rank is the stripe, and a median over the columns removes it. Then every value goes back to its view.

    Parameters
    ----------
    sinogram
        (view, column) float32.
    size
        Columns of the median; wider than the widest stripe twice over.
    """
    order = np.argsort(sinogram, axis=0)
    smooth = _along_columns(np.take_along_axis(sinogram, order, axis=0), size)
    sorted_out = np.empty_like(sinogram)
    np.put_along_axis(sorted_out, order, smooth, axis=0)
    return sorted_out


def remove_wide_stripes(sinogram: Image, size: int, deviations: float) -> Image:
    """Return a sinogram without strong, wide stripes (algorithm 5).

    Columns whose middle values lie above, or below, those of both sides are shifted back by as much, and then sorted
    out; all others stay as they are.

    Parameters
    ----------
    sinogram, size
        As `sort_out_stripes` takes them.
    deviations
        Robust standard deviations that make a column a stripe.
    """
    ranked = np.sort(sinogram, axis=0)
    drop = int(_DROPPED * len(ranked))
    offsets = _beyond_both_sides(ranked[drop : len(ranked) - drop].mean(axis=0), size)
    stripes = _outliers(offsets, deviations) & (np.abs(offsets) > _LEAST_OFFSET)
    if not stripes.any():
        return sinogram
    shifted = sinogram - np.where(stripes, offsets, 0).astype(np.float32)
    return np.where(stripes, sort_out_stripes(shifted, size), shifted)


def bridge_dead_stripes(sinogram: Image, size: int, deviations: float) -> Image:
    """Return a sinogram with unresponsive and fluctuating columns interpolated from their neighbours (algorithm 6).

    A pixel that does not answer varies less from view to view than the pixels on both sides, a noisy one more.

    Parameters
    ----------
    sinogram, size, deviations
        As `remove_wide_stripes` takes them.
    """
    # Second differences hardly see an object; their median does not see its edges at all.
    roughness = np.median(np.abs(np.diff(sinogram, n=2, axis=0)), axis=0).astype(np.float64)
    departure = _beyond_both_sides(np.log(roughness + _LEAST_ROUGHNESS), size)
    dead = _outliers(departure, deviations) & (np.abs(departure) > np.log(_ROUGHER))
    if not dead.any() or dead.all():
        return sinogram
    columns = np.arange(sinogram.shape[1])
    sound = columns[~dead]
    right = np.clip(np.searchsorted(sound, columns[dead]), 0, len(sound) - 1)
    left = np.maximum(right - (sound[right] > columns[dead]), 0)
    gap = np.maximum(sound[right] - sound[left], 1)
    share = np.clip((columns[dead] - sound[left]) / gap, 0.0, 1.0).astype(np.float32)
    bridged = sinogram.copy()
    bridged[:, dead] = sinogram[:, sound[left]] * (1 - share) + sinogram[:, sound[right]] * share
    return bridged


def remove_rings(
    integrals: Image,
    method: str,
    *,
    size: int = 0,
    deviations: float = 3.0,
    rows_at_once: int = ROWS_AT_ONCE,
    progress: Callable[[float], None] | None = None,
) -> Image:
    """Remove the stripes from the sinogram of every detector row, in place.

    Parameters
    ----------
    integrals
        (view, row, column) float32; an array or a memory map, a few rows of which are read at once.
    method
        "sorted": `sort_out_stripes` alone, for weak stripes. "combined": dead and wide stripes first (the combination
        of the paper). "none": nothing.
    size
        Columns of the medians; 0: `automatic_size`.
    deviations
        Robust standard deviations that make a column a stripe; "combined" only.
    rows_at_once
        Rows that are read at once: more are quicker where the array is a memory map.
    progress
        Called with the fraction done; may raise to stop the work.

    Returns
    -------
    `integrals`.

    Raises
    ------
    ValueError
        Another method, or a size that is even or less than 3.
    """
    if method not in METHODS:
        raise ValueError(f"expected a ring removal of {', '.join(METHODS)}, got {method!r}")
    size = size or automatic_size(integrals.shape[2])
    if size < 3 or size % 2 == 0:
        raise ValueError(f"expected an odd number of columns from 3 for the ring removal, got {size}")
    if method == "none":
        return integrals
    rows = integrals.shape[1]
    for start in range(0, rows, rows_at_once):
        band = slice(start, min(start + rows_at_once, rows))
        sinograms = np.empty((band.stop - start, len(integrals), integrals.shape[2]), np.float32)
        for view, part in enumerate(chain.from_iterable(pieces(integrals))):
            sinograms[:, view] = part[band]
        for sinogram in sinograms:
            cleaned = sinogram
            if method == "combined":
                cleaned = bridge_dead_stripes(cleaned, size, deviations)
                cleaned = remove_wide_stripes(cleaned, size, deviations)
            sinogram[:] = sort_out_stripes(cleaned, size)
        for view, part in enumerate(chain.from_iterable(pieces(integrals))):
            part[band] = sinograms[:, view]
        if progress is not None:
            progress(band.stop / rows)
    return integrals


def automatic_size(columns: int) -> int:
    """Return the columns of the medians that suit a detector: one in twenty-five, odd, 5 to 51."""
    return int(np.clip(2 * (columns // 50) + 1, 5, 51))


def _along_columns(values: Image, size: int) -> Image:
    smooth = np.empty_like(values)
    median_along_rows(values, size, smooth)
    return smooth


def _beyond_both_sides(values: NDArray[np.floating], size: int) -> NDArray[np.floating]:
    """Return how far each value lies outside of the medians of the columns left and right of it; between them, 0.

    So the edge of an object, where values rise or fall, is no stripe.
    """
    half = size // 2
    medians = scipy.ndimage.median_filter(values, 2 * (half // 2) + 1, mode="nearest")
    columns = np.arange(len(values))
    left = medians[np.maximum(columns - 1 - half // 2, 0)]
    right = medians[np.minimum(columns + 1 + half // 2, len(values) - 1)]
    return np.asarray(values - np.clip(values, np.minimum(left, right), np.maximum(left, right)))


def _outliers(values: NDArray[np.floating], deviations: float) -> Mask:
    """Return what lies more than that many robust standard deviations (median absolute deviation) off the median."""
    centred = np.abs(values - np.median(values))
    mask: Mask = centred > deviations * max(1.4826 * float(np.median(centred)), 1e-6)
    return mask
