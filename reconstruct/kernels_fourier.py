"""Fourier transforms of many rows at once, one row in each lane of a vector: weighting, ramp filter and transposition.

Two rows make one complex row, for the filter is real in space and in frequency. The forward transform takes
frequencies apart (its results come in the order of reversed digits), the filter multiplies in that order, the inverse
transform puts them together again: no element is ever moved to another place (Cooley & Tukey, Math. Comp. 19 (1965)
297; Gentleman & Sande, AFIPS 29 (1966) 563). With a row in each lane the results of a column are vectors of rows,
which is how the back-projection along the axis wants them.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

from reconstruct.kernels import weigh_row
from reconstruct.kernels_vectors import (
    LANES,
    multiply_add,
    spread,
    transpose,
    vector_add,
    vector_load,
    vector_multiply,
    vector_store,
    vector_subtract,
)

_F = np.float32

_HALF_ROOT_OF_3 = math.sqrt(0.75)


@njit(inline="always")  # type: ignore[untyped-decorator]
def _turned(real: Any, imaginary: Any, c: Any, s: Any) -> Any:
    """The complex numbers times c + i s."""
    return (
        vector_subtract(vector_multiply(real, c), vector_multiply(imaginary, s)),
        multiply_add(real, s, vector_multiply(imaginary, c)),
    )


@njit(inline="always")  # type: ignore[untyped-decorator]
def _load(real: Any, imaginary: Any, at: int) -> Any:
    return vector_load(real, at), vector_load(imaginary, at)


@njit(inline="always")  # type: ignore[untyped-decorator]
def _store(real: Any, imaginary: Any, at: int, a: Any) -> None:
    vector_store(real, at, a[0])
    vector_store(imaginary, at, a[1])


@njit(inline="always")  # type: ignore[untyped-decorator]
def _plus(a: Any, b: Any) -> Any:
    return vector_add(a[0], b[0]), vector_add(a[1], b[1])


@njit(inline="always")  # type: ignore[untyped-decorator]
def _minus(a: Any, b: Any) -> Any:
    return vector_subtract(a[0], b[0]), vector_subtract(a[1], b[1])


@njit(inline="always")  # type: ignore[untyped-decorator]
def _plus_i(a: Any, b: Any) -> Any:
    """A + i b."""
    return vector_subtract(a[0], b[1]), vector_add(a[1], b[0])


@njit(inline="always")  # type: ignore[untyped-decorator]
def _minus_i(a: Any, b: Any) -> Any:
    """A - i b."""
    return vector_add(a[0], b[1]), vector_subtract(a[1], b[0])


@njit(inline="always")  # type: ignore[untyped-decorator]
def _root(cosines: Any, sines: Any, number: int, sign: Any) -> Any:
    """Splats of a root of unity; `sign` -1 makes it the conjugate."""
    return spread(cosines[number]), spread(sign * sines[number])


@njit(inline="always")  # type: ignore[untyped-decorator]
def _thirds(a: Any, b: Any, c: Any) -> Any:
    """The parts of a transform of three: a + b + c, and what is to be added and, times i, taken away."""
    both = _plus(b, c)
    minus_half, root = spread(_F(-0.5)), spread(_F(_HALF_ROOT_OF_3))
    middle = multiply_add(both[0], minus_half, a[0]), multiply_add(both[1], minus_half, a[1])
    across = _minus(b, c)
    return _plus(a, both), middle, (vector_multiply(across[0], root), vector_multiply(across[1], root))


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _forward(real: Any, imaginary: Any, radices: Any, cosines: Any, sines: Any) -> None:
    """Transform `LANES` complex rows in place, (element × LANES,); the roots of unity are those of -i."""
    size = cosines.size
    length = size
    minus = _F(-1.0)
    for radix in radices:
        part, turn = length // radix, size // length
        m = part * LANES
        for k in range(part):
            r1 = _root(cosines, sines, k * turn, minus)
            r2 = _root(cosines, sines, min(2, radix - 1) * k * turn, minus)
            r3 = _root(cosines, sines, min(3, radix - 1) * k * turn, minus)
            for first in range(0, size, length):
                p = (first + k) * LANES
                a, b = _load(real, imaginary, p), _load(real, imaginary, p + m)
                if radix == 2:
                    _store(real, imaginary, p, _plus(a, b))
                    d = _minus(a, b)
                    _store(real, imaginary, p + m, _turned(d[0], d[1], r1[0], r1[1]))
                elif radix == 3:
                    total, middle, across = _thirds(a, b, _load(real, imaginary, p + 2 * m))
                    _store(real, imaginary, p, total)
                    d = _minus_i(middle, across)
                    _store(real, imaginary, p + m, _turned(d[0], d[1], r1[0], r1[1]))
                    d = _plus_i(middle, across)
                    _store(real, imaginary, p + 2 * m, _turned(d[0], d[1], r2[0], r2[1]))
                else:
                    c, d = _load(real, imaginary, p + 2 * m), _load(real, imaginary, p + 3 * m)
                    even, odd = _plus(a, c), _plus(b, d)
                    _store(real, imaginary, p, _plus(even, odd))
                    e = _minus(even, odd)
                    _store(real, imaginary, p + 2 * m, _turned(e[0], e[1], r2[0], r2[1]))
                    even, odd = _minus(a, c), _minus(b, d)
                    e = _minus_i(even, odd)
                    _store(real, imaginary, p + m, _turned(e[0], e[1], r1[0], r1[1]))
                    e = _plus_i(even, odd)
                    _store(real, imaginary, p + 3 * m, _turned(e[0], e[1], r3[0], r3[1]))
        length = part


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _backward(real: Any, imaginary: Any, radices: Any, cosines: Any, sines: Any) -> None:
    """Undo `_forward`, but for the factor of the size."""
    size = cosines.size
    length = 1
    plus = _F(1.0)
    for number in range(radices.size - 1, -1, -1):
        radix = radices[number]
        part = length
        length *= radix
        turn, m = size // length, part * LANES
        for k in range(part):
            r1 = _root(cosines, sines, k * turn, plus)
            r2 = _root(cosines, sines, min(2, radix - 1) * k * turn, plus)
            r3 = _root(cosines, sines, min(3, radix - 1) * k * turn, plus)
            for first in range(0, size, length):
                p = (first + k) * LANES
                a, b = _load(real, imaginary, p), _load(real, imaginary, p + m)
                b = _turned(b[0], b[1], r1[0], r1[1])
                if radix == 2:
                    _store(real, imaginary, p, _plus(a, b))
                    _store(real, imaginary, p + m, _minus(a, b))
                elif radix == 3:
                    c = _load(real, imaginary, p + 2 * m)
                    total, middle, across = _thirds(a, b, _turned(c[0], c[1], r2[0], r2[1]))
                    _store(real, imaginary, p, total)
                    _store(real, imaginary, p + m, _plus_i(middle, across))
                    _store(real, imaginary, p + 2 * m, _minus_i(middle, across))
                else:
                    c, d = _load(real, imaginary, p + 2 * m), _load(real, imaginary, p + 3 * m)
                    c, d = _turned(c[0], c[1], r2[0], r2[1]), _turned(d[0], d[1], r3[0], r3[1])
                    even, odd = _plus(a, c), _plus(b, d)
                    _store(real, imaginary, p, _plus(even, odd))
                    _store(real, imaginary, p + 2 * m, _minus(even, odd))
                    even, odd = _minus(a, c), _minus(b, d)
                    _store(real, imaginary, p + m, _plus_i(even, odd))
                    _store(real, imaginary, p + 3 * m, _minus_i(even, odd))


@njit(cache=True, nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _apply(real: Any, imaginary: Any, gains: Any) -> None:
    for k in range(gains.size):
        gain = spread(gains[k])
        vector_store(real, k * LANES, vector_multiply(vector_load(real, k * LANES), gain))
        vector_store(imaginary, k * LANES, vector_multiply(vector_load(imaginary, k * LANES), gain))


@njit(cache=True, nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _write_columns(rows: Any, count: int, out: Any, at: int, columns: int, height: int) -> bool:
    """Write the first `count` lanes of every column into `out`; tell whether all of them are finite."""
    for column in range(columns):
        if count == LANES:
            vector_store(out, at + column * height, vector_load(rows, column * LANES))
        else:
            for lane in range(count):
                out[at + column * height + lane] = rows[column * LANES + lane]
    finite = True
    for lane in range(count):  # what is not finite is so in all of its row after a transform
        finite &= math.isfinite(rows[lane])
    return finite


@njit(cache=True, nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _weigh(
    pixels: Any, first: int, turn: int, count: int, factor: float, redundancy: Any, source: Any, first_pixel: Any,
    column_step: Any, row_step: Any, out: Any,
) -> None:  # fmt: skip
    """Weigh `count` rows of a view into `out`, from the first on or, with `turn` -1, back from it; see `weigh`.

    Behind them, rows of zeros make it `LANES`.
    """
    columns = pixels.shape[1]
    start = np.empty(3)
    for lane in range(LANES):
        if lane < count:
            row = first + turn * lane
            for axis in range(3):
                start[axis] = first_pixel[axis] - source[axis] + row * row_step[axis]
            weigh_row(pixels[row], factor, redundancy, source, column_step, start, out[lane])
        else:
            out[lane, :columns] = 0.0


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _spread_rows(rows: Any, columns: int, out: Any, at: int) -> None:
    """Write `LANES` rows so that each lies in a lane of the vectors of `out` from `at` on."""
    flat = rows.reshape(-1)
    whole = columns // LANES * LANES
    for column in range(0, whole, LANES):
        transpose(flat, column, rows.shape[1], out, at + column * LANES)
    for lane in range(LANES):
        for column in range(whole, columns):
            out[at + column * LANES + lane] = rows[lane, column]


@njit(parallel=True, cache=True, nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]
def filter_into_columns(
    projections: NDArray[np.float32],
    factors: NDArray[np.float64],
    redundancy: NDArray[np.float32],
    first_column: int,
    sources: NDArray[np.float64],
    first_pixels: NDArray[np.float64],
    column_steps: NDArray[np.float64],
    row_steps: NDArray[np.float64],
    radices: NDArray[np.int64],
    gains: NDArray[np.float32],
    roots: NDArray[np.float32],
    reverse_rows: NDArray[np.bool_],
    first_row: int,
    first_written: int,
    written: int,
    out: NDArray[np.float32],
    finite: NDArray[np.bool_],
) -> None:
    """Weigh and filter projections (view, row, column) into `out` (view, padded column, padded row).

    Weights are those of `reconstruct.kernels.weigh`. `radices` multiply to the length of the transform; `gains` are
    the filter's, in the order of `_forward`, over that length; `roots` (2, length) cosine and sine of its roots of
    unity. `written` columns are written from `first_written` on, and rows from `first_row` on, the last first for views
    with `reverse_rows`. `finite` (view,) becomes false where a view is not.
    """
    views, rows, columns = projections.shape
    size = gains.size
    width, height = out.shape[1], out.shape[2]
    together = 2 * LANES
    groups = (rows + together - 1) // together
    flat = out.reshape(-1)
    cosines, sines = roots[0], roots[1]
    for task in prange(views * groups):
        view = task // groups
        first = (task - view * groups) * together
        scratch = np.zeros(2 * size * LANES + 16, _F)
        aligned = (-(scratch.ctypes.data // 4)) % 16
        real = scratch[aligned : aligned + size * LANES]
        imaginary = scratch[aligned + size * LANES : aligned + 2 * size * LANES]
        weighted = np.zeros((LANES, columns + 16), _F)  # longer, else all begin in the same few sets of the cache
        for half in range(2):
            begin = first + half * LANES
            count = min(LANES, rows - begin)
            if count > 0:
                row, turn = (rows - 1 - begin, -1) if reverse_rows[view] else (begin, 1)
                _weigh(
                    projections[view], row, turn, count, factors[view], redundancy[view], sources[view],
                    first_pixels[view], column_steps[view], row_steps[view], weighted,
                )  # fmt: skip
                _spread_rows(weighted, columns, real if half == 0 else imaginary, first_column * LANES)
        _forward(real, imaginary, radices, cosines, sines)
        _apply(real, imaginary, gains)
        _backward(real, imaginary, radices, cosines, sines)
        at = (view * width + first_written) * height + first_row + first
        for half in range(2):
            count = min(LANES, rows - first - half * LANES)
            if count > 0 and not _write_columns(
                real if half == 0 else imaginary, count, flat, at + half * LANES, written, height
            ):
                finite[view] = False
