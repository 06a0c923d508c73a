"""The running median that ring removal lives on, in numba: arrays in, arrays out."""

from __future__ import annotations

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray


@njit(parallel=True, cache=True, nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]
def median_along_rows(values: NDArray[np.float32], size: int, out: NDArray[np.float32]) -> None:
    """Write the median over `size` neighbours along axis 1 of each row; the ends are repeated beyond the ends.

    Parameters
    ----------
    values
        (row, column) float32, finite.
    size
        Odd number of neighbours, the pixel itself among them.
    out
        Of the same shape; not `values`.
    """
    rows, columns = values.shape
    half = size // 2
    for row in prange(rows):
        window = np.empty(size, dtype=np.float32)
        for offset in range(-half, half + 1):
            window[offset + half] = values[row, min(max(offset, 0), columns - 1)]
        window.sort()
        out[row, 0] = window[half]
        for column in range(1, columns):
            leaving = values[row, max(column - 1 - half, 0)]
            coming = values[row, min(column + half, columns - 1)]
            if leaving != coming:
                place = np.searchsorted(window, leaving)
                if coming > leaving:
                    while place < size - 1 and window[place + 1] < coming:
                        window[place] = window[place + 1]
                        place += 1
                else:
                    while place > 0 and window[place - 1] > coming:
                        window[place] = window[place - 1]
                        place -= 1
                window[place] = coming
            out[row, column] = window[half]
