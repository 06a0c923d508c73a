"""From photon counts to line integrals: differences of counters, flat field, logarithm.

Arrays may have any number of leading axes; the last two are always (row, column). No unit: counts in, line integrals
(attenuation times length) out. Reference for the chain: Buzug, Computed Tomography, Springer 2008, chapters 2 and 9.
"""

from __future__ import annotations

import numpy as np
import scipy  # loads its parts when they are used
from numpy.typing import ArrayLike, NDArray

Image = NDArray[np.float32]
Mask = NDArray[np.bool_]

COUNT_FLOOR = 0.5
"""What a pixel without a single photon counts as: half a photon, so that its logarithm is finite.

With n photons expected and none seen, the likelihood exp(-n) is still 0.61 at half a photon; a larger floor would
brighten the shadow of metal, a smaller one gives single pixels more weight than their information is worth.
"""


ENOUGH_COUNTS = 5.0
"""With fewer photons than this a pixel borrows from its neighbours: five keep edges and the mean logarithm alike."""

_WINDOWS = (3, 5, 7, 9, 13, 17, 25)
"""Edges of the windows that a pixel may borrow from, pixels."""


def differential_bins(counters: ArrayLike) -> Image:
    """Return the counts within each energy bin from counters that count everything above their threshold.

    Bin k is ``C_k - C_{k+1}``, the last bin its counter as it is. Counters with charge sharing or dispersed
    thresholds can cross where few photons arrive; such a difference is 0, never negative. (Ballabriga et al.,
    "Medipix3RX", J. Instrum. 8 (2013) C02016.)

    Parameters
    ----------
    counters
        Counts, (counter, …), counters in ascending order of their thresholds.

    Returns
    -------
    (bin, …) float32, as many bins as counters.
    """
    bins = np.array(counters, dtype=np.float32)
    np.subtract(bins[:-1], bins[1:], out=bins[:-1])
    return np.maximum(bins, 0.0, out=bins)


def unroll(counters: ArrayLike, full_scale: float) -> Image:
    """Return cumulative counters with the ones that ran over repaired.

    A counter above a lower threshold counts at least as much as the next one. Where it holds less by more than half
    its range, it has passed its end and begun again from 0 (long flat-field exposures do that); the range is added.

    Parameters
    ----------
    counters
        Counts, (counter, …), ascending with their thresholds. The last one is taken as it is.
    full_scale
        Range of a counter, ``2 ** bits``.

    Returns
    -------
    (counter, …) float32.
    """
    counts = np.array(counters, dtype=np.float32)
    for lower, upper in zip(counts[-2::-1], counts[:0:-1], strict=True):
        lower[upper - lower > full_scale / 2] += np.float32(full_scale)
    return counts


def flat_field(
    counts: ArrayLike,
    flats: ArrayLike,
    *,
    exposure_ratio: float = 1.0,
    floor: float = COUNT_FLOOR,
) -> Image:
    """Return the transmission: counts over what the pixel counts without an object.

    The mean over the flat frames is taken, so that their noise does not enter each view anew (Seibert et al., "Flat-
    field correction technique for digital detectors", Proc. SPIE 3336 (1998) 348).

    Parameters
    ----------
    counts
        (…, row, column), dark signal already removed.
    flats
        Frames without an object, (frame, row, column), or their mean, (row, column).
    exposure_ratio
        Exposure of a flat frame over that of a view.
    floor
        Least count, see `COUNT_FLOOR`.

    Returns
    -------
    float32 of the shape of `counts`; above 0, and NaN in pixels whose flat field is 0.

    Raises
    ------
    ValueError
        An exposure ratio or a shape that does not fit.
    """
    if not 0 < exposure_ratio < np.inf:
        raise ValueError(f"expected an exposure ratio above 0, got {exposure_ratio}")
    open_field = np.asarray(flats, dtype=np.float32)
    if open_field.ndim == 3:
        open_field = np.mean(open_field, axis=0, dtype=np.float32)
    image = np.asarray(counts, dtype=np.float32)
    if open_field.shape != image.shape[-2:]:
        raise ValueError(f"expected flat fields of {image.shape[-2:]} (row, column), got {open_field.shape}")
    expected = np.where(open_field > 0, open_field / np.float32(exposure_ratio), np.float32(np.nan))
    transmission: Image = np.divide(np.maximum(image, np.float32(floor)), expected, dtype=np.float32)
    return transmission


def average_starved(
    transmission: Image, counts: ArrayLike, flat: ArrayLike, dead: Mask, *, enough: float = ENOUGH_COUNTS
) -> Image:
    """Replace the transmission of pixels that hardly any photon reached by that of their surroundings, in place.

    The logarithm of a few counts is far from the logarithm of their mean: at one expected photon in ten exposures a
    pixel reads as transparent as at one in two. So counts are summed over windows that grow from 3 × 3 until they hold
    enough, and compared with the flat field of the same window; pixels with enough of their own stay as they are
    (after J. Hsieh, "Adaptive streak artifact reduction in computed tomography resulting from excessive x-ray photon
    noise", Med. Phys. 25 (1998) 2139).

    Parameters
    ----------
    transmission
        Of one view, (row, column); changed and returned.
    counts
        Counts of the view, (row, column).
    flat
        What each pixel would count without an object, (row, column).
    dead
        (row, column), True where a pixel says nothing.
    enough
        Counts that speak for themselves.
    """
    sound = ~dead
    starved = sound & (np.asarray(counts) < enough)
    if not starved.any():
        return transmission
    own = np.where(sound, counts, 0).astype(np.float32)
    expected = np.where(sound, flat, 0).astype(np.float32)
    for size in _WINDOWS:
        # Means over the window; the edge pixels are repeated in both, so that their ratio stays true.
        counted = scipy.ndimage.uniform_filter(own, size, mode="nearest")
        beam = scipy.ndimage.uniform_filter(expected, size, mode="nearest")
        is_last = size == _WINDOWS[-1]
        done = starved & (beam > 0) & ((counted * size**2 >= enough) | is_last)
        transmission[done] = np.maximum(counted[done], COUNT_FLOOR / size**2) / beam[done]
        starved &= ~done
        if not starved.any():
            break
    return transmission


def line_integrals(transmission: ArrayLike) -> Image:
    """Return ``-log(transmission)`` (Beer and Lambert), float32; NaN stays NaN.

    Values slightly below 0, where the beam passes beside the object, are kept: cutting them off would bias the mean.
    """
    integrals: Image = np.log(np.asarray(transmission, dtype=np.float32))
    return np.negative(integrals, out=integrals)


def saturated_pixels(counts: ArrayLike, bits_stored: int) -> Mask:
    """Return where a counter is full: a 12-bit counter ends at 4095, and what came after is lost.

    Parameters
    ----------
    counts
        Raw counts, any shape.
    bits_stored
        Bits Stored (0028,0101) of the pixels.
    """
    mask: Mask = np.asarray(counts) >= (1 << bits_stored) - 1
    return mask
