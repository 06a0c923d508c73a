"""Compiled loops over voxels: constrained least squares over sets of materials. Arrays in, arrays out.

A *support* is a set of materials that are present, set 0 being none. For each of them the least-squares solution is a
matrix product, worked out beforehand; the best feasible one of all subsets is the exact solution of the constrained
problem, for at its optimum some of them are present and the others are 0.
"""

from __future__ import annotations

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

_INFEASIBLE = 1e300


@njit(cache=True, nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]
def fit_support(
    support: int,
    values: NDArray[np.float64],
    columns: NDArray[np.float64],
    members: NDArray[np.int64],
    sizes: NDArray[np.int64],
    solvers: NDArray[np.float64],
    slopes: NDArray[np.float64],
    most: float,
    fractions: NDArray[np.float64],
) -> float:
    """Write into `fractions` (size,) what a support holds of each member and return the squared residual.

    Where the sum would exceed `most` it is held there. When a fraction is negative, the support is not the solution and
    a residual of 1e300 is returned.

    Parameters
    ----------
    values
        Whitened measurement, (bin,).
    columns
        Whitened attenuation of the materials, (material, bin).
    members, sizes
        Materials of each support, (support, place), and how many they are, (support,).
    solvers
        From measurement to fractions, (support, place, bin).
    slopes
        How the fractions give way when their sum is held, (support, place); they sum to 1 for each support.
    """
    size = sizes[support]
    total = 0.0
    for place in range(size):
        fraction = 0.0
        for k in range(values.shape[0]):
            fraction += solvers[support, place, k] * values[k]
        fractions[place] = fraction
        total += fraction
    excess = max(0.0, total - most)
    for place in range(size):
        fractions[place] -= excess * slopes[support, place]
        if fractions[place] < 0.0:
            return _INFEASIBLE
    squared = 0.0
    for k in range(values.shape[0]):
        left = values[k]
        for place in range(size):
            left -= columns[members[support, place], k] * fractions[place]
        squared += left * left
    return squared


@njit(cache=True, nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]
def whiten(
    volumes: NDArray[np.float32],
    whitening: NDArray[np.float64],
    row: int,
    voxel: int,
    out: NDArray[np.float64],
) -> float:
    """Write the whitened measurement of one voxel of `volumes` (bin, row, voxel) into `out` (bin,).

    Returns
    -------
    float
        Its squared length.
    """
    squared = 0.0
    for k in range(volumes.shape[0]):
        value = 0.0
        for j in range(volumes.shape[0]):
            value += whitening[k, j] * volumes[j, row, voxel]
        out[k] = value
        squared += value * value
    return squared


@njit(parallel=True, cache=True, nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]
def choose_supports(
    volumes: NDArray[np.float32],
    whitening: NDArray[np.float64],
    columns: NDArray[np.float64],
    members: NDArray[np.int64],
    sizes: NDArray[np.int64],
    solvers: NDArray[np.float64],
    slopes: NDArray[np.float64],
    most: float,
    penalty: float,
    reference: float,
    out: NDArray[np.int16],
) -> None:
    """Write into `out` (row, voxel) the support with the least squared residual plus `penalty` for each member.

    The penalty grows with the squared length of the whitened measurement in units of `reference`, from there on.
    `volumes` is (bin, row, voxel), `whitening` (bin, bin), the rest as in `fit_support`.
    """
    bins, rows, length = volumes.shape
    for row in prange(rows):
        values = np.empty(bins)
        fractions = np.empty(members.shape[1])
        for voxel in range(length):
            squared = whiten(volumes, whitening, row, voxel, values)
            price = penalty * max(1.0, squared / reference)
            best, least = 0, squared
            for support in range(1, members.shape[0]):
                cost = price * sizes[support]
                if cost >= least:
                    continue
                cost += fit_support(
                    support, values, columns, members, sizes, solvers, slopes, most, fractions
                )
                if cost < least:
                    best, least = support, cost
            out[row, voxel] = best


@njit(parallel=True, cache=True, nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]
def solve_supports(
    volumes: NDArray[np.float32],
    supports: NDArray[np.int16],
    whitening: NDArray[np.float64],
    columns: NDArray[np.float64],
    members: NDArray[np.int64],
    sizes: NDArray[np.int64],
    subsets: NDArray[np.int64],
    solvers: NDArray[np.float64],
    slopes: NDArray[np.float64],
    most: float,
    out: NDArray[np.float32],
    residual: NDArray[np.float32],
) -> None:
    """Write the volume fractions of the materials of each voxel's support, all others 0, and the rms residual.

    `subsets` (support, number) are the supports that each one contains, itself among them, filled up with -1; `out`
    is (material, row, voxel), `residual` (row, voxel) the root mean square over the bins, whitened. The rest is as in
    `choose_supports`.
    """
    bins, rows, length = volumes.shape
    for row in prange(rows):
        values = np.empty(bins)
        fractions = np.empty(members.shape[1])
        found = np.empty(members.shape[1])
        for voxel in range(length):
            least = whiten(volumes, whitening, row, voxel, values)
            best = 0
            for number in range(subsets.shape[1]):
                support = subsets[supports[row, voxel], number]
                if support < 0:
                    break
                squared = fit_support(
                    support, values, columns, members, sizes, solvers, slopes, most, fractions
                )
                if squared < least:
                    best, least = support, squared
                    for place in range(sizes[support]):
                        found[place] = fractions[place]
            out[:, row, voxel] = 0.0
            for place in range(sizes[best]):
                out[members[best, place], row, voxel] = found[place]
            residual[row, voxel] = np.sqrt(least / bins)
