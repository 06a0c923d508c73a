"""Resampling to a square: aspect kept, centred, antialiased, as two matrix products.

Triangle filter as wide as the scale when the image shrinks (area-like averaging), linear interpolation when it grows.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

_MOST_ELONGATED = 10.0
"""Pixels further from square than this are taken for a mistake in the header."""


def to_square(
    image: npt.NDArray[np.floating], side: int, *, pixel_aspect: float = 1.0
) -> npt.NDArray[np.float32]:
    """Resample `image`, axes (row, column), to `side` × `side`; what it does not fill is 0.

    Parameters
    ----------
    pixel_aspect
        Height over width of a pixel.
    """
    rows, columns = image.shape
    aspect = pixel_aspect if 1 / _MOST_ELONGATED <= pixel_aspect <= _MOST_ELONGATED else 1.0
    height, width = rows * aspect, float(columns)
    scale = side / max(height, width)
    inner_rows, inner_columns = (max(1, round(extent * scale)) for extent in (height, width))
    inner = _weights(rows, inner_rows) @ image.astype(np.float32) @ _weights(columns, inner_columns).T
    square = np.zeros((side, side), dtype=np.float32)
    top, left = (side - inner_rows) // 2, (side - inner_columns) // 2
    square[top : top + inner_rows, left : left + inner_columns] = inner
    return square


@lru_cache(maxsize=64)
def _weights(length: int, wanted: int) -> npt.NDArray[np.float32]:
    """Return the matrix, axes (wanted, length), that resamples a row of `length` samples to `wanted`."""
    scale = length / wanted
    centres = (np.arange(wanted) + 0.5) * scale - 0.5
    # Borders repeat: a centre outside the first or last sample is that sample.
    centres = np.clip(centres, 0.0, length - 1.0)
    distance = np.abs(centres[:, None] - np.arange(length)[None, :]) / max(scale, 1.0)
    weights = np.maximum(0.0, 1.0 - distance)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), dtype=np.float32)
