"""The ramp filter along detector columns and the windows that temper it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import scipy  # loads its parts when they are used
from numpy.typing import NDArray

FilterName = Literal["ram-lak", "shepp-logan", "cosine", "hamming", "hann"]

FILTERS: tuple[str, ...] = get_args(FilterName)
"""Names of the windows."""


def padded_size(columns: int) -> int:
    """Return the length of the transform: at least twice the columns, so that the convolution does not wrap round.

    It has no prime factors but 2 and 3.
    """
    least = max(2 * columns, 4)
    threes = (int(3**power) for power in range(math.floor(math.log(least, 3)) + 2))
    return min(three << max(0, math.ceil(math.log2(least / three))) for three in threes)


def row_bytes(columns: int) -> int:
    """Return what the filtering of a row of so many pixels takes: the padded row, its spectrum and the filtered row."""
    size = padded_size(columns)
    return 4 * size + 8 * (size // 2 + 1) + 4 * size


def ramp_kernel(size: int) -> NDArray[np.float64]:
    """Return the band-limited ramp, sampled at a pitch of 1, in the order of a transform, (size,).

    Kak & Slaney, Principles of Computerized Tomographic Imaging (1988), equation 61 of chapter 3. Sampling it in
    space keeps the mean of a reconstruction right, which sampling it in frequency does not.
    """
    offsets = np.arange(size)
    offsets = np.minimum(offsets, size - offsets)
    odd = offsets % 2 == 1
    kernel = np.zeros(size)
    kernel[odd] = -1.0 / (np.pi * offsets[odd]) ** 2
    kernel[0] = 0.25
    return kernel


def window(name: str, cutoff: float, frequencies: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return what the window leaves of each frequency, 0 to 1, same shape as `frequencies`.

    Parameters
    ----------
    name
        One of `FILTERS`; "ram-lak" leaves all below the cut-off.
    cutoff
        Where the window ends, as a fraction of the Nyquist frequency, above 0 up to 1.
    frequencies
        As fractions of the Nyquist frequency, 0 to 1.

    Raises
    ------
    ValueError
        Another name or cut-off.
    """
    if not 0 < cutoff <= 1:
        raise ValueError(f"expected a cut-off above 0 and up to 1, got {cutoff}")
    f = frequencies / cutoff
    match name:
        case "ram-lak":
            gain = np.ones_like(f)
        case "shepp-logan":
            gain = np.sinc(f / 2)
        case "cosine":
            gain = np.cos(np.pi / 2 * f)
        case "hamming":
            gain = 0.54 + 0.46 * np.cos(np.pi * f)
        case "hann":
            gain = 0.5 + 0.5 * np.cos(np.pi * f)
        case _:
            raise ValueError(f"expected a filter of {', '.join(FILTERS)}, got {name!r}")
    return np.where(f <= 1 + 1e-12, gain, 0.0)


def frequency_response(columns: int, name: str, cutoff: float) -> NDArray[np.float32]:
    """Return the gain of the windowed ramp for rows of `columns` pixels of pitch 1, (padded_size // 2 + 1,)."""
    size = padded_size(columns)
    ramp = np.asarray(scipy.fft.rfft(ramp_kernel(size)).real, dtype=np.float64)
    frequencies = np.arange(size // 2 + 1, dtype=np.float64) * (2.0 / size)
    return np.asarray(ramp * window(name, cutoff, frequencies), dtype=np.float32)


def filter_rows(padded: NDArray[np.float32], response: NDArray[np.float32], workers: int) -> NDArray[np.float32]:
    """Return rows convolved with the filter, (…, padded_size) float32; the first `columns` of each are its result.

    Parameters
    ----------
    padded
        Rows filled up with zeros to `padded_size`, (…, padded_size) float32; may be overwritten.
    response
        Of `frequency_response`.
    workers
        Threads.
    """
    size = padded.shape[-1]
    spectrum = scipy.fft.rfft(padded, axis=-1, overwrite_x=True, workers=workers)
    spectrum *= response
    return np.asarray(scipy.fft.irfft(spectrum, size, axis=-1, overwrite_x=True, workers=workers))


@dataclass(frozen=True, eq=False)
class Transform:
    """The filter for `reconstruct.kernels_fourier`.

    Attributes
    ----------
    radices
        Their product is the length of the transform; 4, 2 and 3, in the order of the forward transform.
    gains
        Of the frequencies, in the order in which that transform leaves them, over the length, (length,) float32.
    roots
        Cosine and sine of the roots of unity, (2, length) float32.
    """

    radices: NDArray[np.int64]
    gains: NDArray[np.float32]
    roots: NDArray[np.float32]


def transform(response: NDArray[np.float32], size: int) -> Transform:
    """Return what filtering by transforms of `size` takes; `response` is of `frequency_response`, (size // 2 + 1,)."""
    radices, rest = [], size
    for radix in (4, 2, 3):
        while rest % radix == 0:
            radices.append(radix)
            rest //= radix
    order = np.zeros(1, dtype=np.int64)
    for radix in reversed(radices):
        order = np.concatenate([order * radix + digit for digit in range(radix)])
    angles = 2 * np.pi * np.arange(size) / size
    gains = response[np.minimum(order, size - order)] / size
    return Transform(
        np.array(radices, dtype=np.int64),
        gains.astype(np.float32),
        np.stack([np.cos(angles), np.sin(angles)]).astype(np.float32),
    )
