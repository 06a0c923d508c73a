"""Which materials a voxel holds, and how much of each, from its attenuation in several energy bins.

Attenuation adds up, so a voxel's values ``y`` (one a bin) are ``A f`` plus noise: column k of ``A`` is the attenuation
of the pure material k in each bin, ``f`` the volume fractions, none negative, together at most about 1. With as many
materials as bins or more, ``f`` is not determined. As in MARS-MD (C. J. Bateman et al., arXiv:1802.05366), the problem
is therefore split into sub-problems of few materials each, all are solved, and all but one are rejected:

1. Every admissible set of materials is fitted by least squares, weighted by the inverse of the noise's covariance plus
   that of the model's error, under both constraints, exactly.
2. The set is taken whose squared residual plus a penalty for each material is least. This is decided on volumes that
   are smoothed more than those that the fractions are worked out from.
3. The fractions of that set are fitted again to the voxel's own values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import scipy  # loads its parts when they are used
from numpy.typing import NDArray

from reconstruct.kernel_threads import kernel_threads
from reconstruct.kernels_materials import choose_supports, solve_supports

Numbers = NDArray[np.float64]
Volumes = NDArray[np.float32]
Allocate = Callable[[tuple[int, ...]], Volumes]
"""Makes an array of a shape, float32, in memory or in a file."""

_WIDEST = 3.0
"""Differences beyond so many standard deviations are edges of the object, not noise."""
_KEPT_VARIANCE = 0.9733
"""Variance of a standard normal variable that is cut off there."""
_NOISE_SAMPLES = 400_000
_NEAREST_COPY = 2
"""Voxels between two that are compared for noise: neighbours share it by the interpolation of back-projection."""
_FARTHEST_SMOOTHED = 3.0
"""The same for smoothed volumes, in sigmas of the Gaussian."""


@dataclass(frozen=True)
class Method:
    """How to decompose.

    Attributes
    ----------
    together
        Most materials in a voxel.
    penalty
        What each material in a voxel costs, in squared standard deviations of the residual. 2 is Akaike's criterion,
        the logarithm of the number of bins Schwarz's.
    model_error
        Standard deviation of the error of the attenuation in each bin that is not noise, as a fraction of that of
        water: beam hardening, scatter, a spectrum that is not quite the assumed one.
    most_filled
        Largest sum of the volume fractions. At exactly 1 the noise of what is full goes one way only, and the
        concentrations come out a few percent too high.
    smoothing_voxels, choice_voxels
        Sigma of the Gaussian that is applied to the volumes for the fractions, and for the choice of materials.
    """

    together: int = 2
    penalty: float = 4.0
    model_error: float = 0.03
    most_filled: float = 1.02
    smoothing_voxels: float = 0.7
    choice_voxels: float = 1.5


@dataclass(frozen=True, eq=False)
class Decomposition:
    """What was found.

    Attributes
    ----------
    fractions
        Volume fractions, (material, z, y, x) float32.
    residual
        Root mean square over the bins of what the fractions do not explain, (z, y, x) float32, in standard deviations
        of noise and model error.
    """

    fractions: Volumes
    residual: Volumes


@dataclass(frozen=True, eq=False)
class Supports:
    """The admissible sets of materials, set 0 being none.

    Attributes
    ----------
    members, sizes
        Materials of each set, (set, place), filled up with -1, and how many they are, (set,).
    subsets
        Sets that each one contains, itself among them, (set, number), filled up with -1.
    """

    members: NDArray[np.int64]
    sizes: NDArray[np.int64]
    subsets: NDArray[np.int64]

    @classmethod
    def of(cls, materials: int, together: int, admissible: Sequence[Sequence[int]] = ()) -> Supports:
        """Return the sets of at most `together` of so many materials, or just `admissible`, with all their subsets.

        Raises
        ------
        ValueError
            No material, or a material that there is not.
        """
        if not 1 <= together <= materials:
            raise ValueError(f"expected 1 to {materials} materials in a voxel, got {together}")
        largest = admissible or list(combinations(range(materials), together))
        for chosen in largest:
            if not chosen or not set(chosen) <= set(range(materials)):
                raise ValueError(f"expected sets of materials 0 to {materials - 1}, got {list(chosen)}")
        sets = {
            tuple(sorted(part))
            for chosen in largest
            for size in range(len(set(chosen)) + 1)
            for part in combinations(set(chosen), size)
        }
        ordered = sorted(sets, key=lambda each: (len(each), each))
        contained = [[n for n, part in enumerate(ordered) if set(part) <= set(whole)] for whole in ordered]
        return cls(_filled_up(ordered), np.array([len(each) for each in ordered]), _filled_up(contained))


def _filled_up(rows: Sequence[Sequence[int]]) -> NDArray[np.int64]:
    table = np.full((len(rows), max(1, *(len(row) for row in rows))), -1, dtype=np.int64)
    for number, row in enumerate(rows):
        table[number, : len(row)] = row
    return table


@dataclass(frozen=True, eq=False)
class _Operators:
    """What the kernels need of a covariance and a matrix of attenuations; see `kernels_materials`."""

    whitening: Numbers
    columns: Numbers
    solvers: Numbers
    slopes: Numbers

    @classmethod
    def of(cls, per_cm: Numbers, supports: Supports, covariance: Numbers) -> _Operators:
        try:
            whitening = np.linalg.inv(np.linalg.cholesky(covariance))
        except np.linalg.LinAlgError as error:
            raise ValueError("the covariance of the energy bins has no inverse") from error
        columns = np.ascontiguousarray((whitening @ per_cm).T)
        sets, places = supports.members.shape
        solvers, slopes = np.zeros((sets, places, len(per_cm))), np.zeros((sets, places))
        for number, size in enumerate(supports.sizes):
            if size:
                matrix = columns[supports.members[number, :size]].T
                if np.linalg.matrix_rank(matrix) < size:
                    told = supports.members[number, :size].tolist()
                    raise ValueError(f"the energy bins do not tell the materials {told} apart")
                inverse = np.linalg.inv(matrix.T @ matrix)
                solvers[number, :size] = inverse @ matrix.T
                slopes[number, :size] = inverse.sum(axis=1) / inverse.sum()
        return cls(whitening, columns, solvers, slopes)


def decompose(
    volumes: Volumes,
    per_cm: Numbers,
    method: Method,
    *,
    admissible: Sequence[Sequence[int]] = (),
    noise: Numbers | None = None,
    threads: int = 0,
    allocate: Allocate | None = None,
) -> Decomposition:
    """Return the volume fractions of materials in each voxel.

    Parameters
    ----------
    volumes
        Attenuation in each energy bin, 1/cm, (bin, z, y, x) float32.
    per_cm
        Attenuation of each pure material, 1/cm, (bin, material); the first is the one whose attenuation scales the
        error of the model, usually water.
    admissible
        Sets of materials, by their numbers, that may be together in a voxel; with all their subsets. Empty: every set
        of at most ``method.together``.
    noise
        Covariance of the noise of the bins, 1/cm², (bin, bin), after smoothing; None: measured, see
        `noise_covariance`.
    threads
        Of the kernels; 0: all cores.
    allocate
        Makes the fractions, the residual, and one smoothed copy of the volumes at a time; None: in memory.

    Raises
    ------
    ValueError
        Shapes that do not fit, a material that does not attenuate, materials in a set that outnumber the bins or look
        alike in all of them, a covariance without an inverse.
    """
    per_cm = np.asarray(per_cm, dtype=np.float64)
    if volumes.ndim != 4 or per_cm.ndim != 2 or len(per_cm) != len(volumes):
        raise ValueError(
            f"expected volumes (bin, z, y, x) and per_cm (bin, material), got {volumes.shape} and {per_cm.shape}"
        )
    if not np.isfinite(per_cm).all() or (per_cm <= 0).any():
        raise ValueError("expected materials with an attenuation above 0 in every bin")
    supports = Supports.of(per_cm.shape[1], min(method.together, per_cm.shape[1]), admissible)
    if supports.sizes.max() > len(volumes):
        raise ValueError(f"{len(volumes)} energy bins do not tell {supports.sizes.max()} materials in a voxel apart")
    model = np.diag((method.model_error * per_cm[:, 0]) ** 2)
    allocate = allocate or _in_memory
    with kernel_threads(threads):
        choice = _smoothed(volumes, method.choice_voxels, allocate)
        chosen = _choose(choice, per_cm, supports, _noise(choice, method.choice_voxels, noise) + model, method)
        del choice
        fitted = _smoothed(volumes, method.smoothing_voxels, allocate)
        operators = _Operators.of(per_cm, supports, _noise(fitted, method.smoothing_voxels, noise) + model)
        fractions = allocate((per_cm.shape[1], *volumes.shape[1:]))
        residual = allocate(volumes.shape[1:])
        solve_supports(
            _rows(fitted), _rows(chosen), operators.whitening, operators.columns, supports.members, supports.sizes,
            supports.subsets, operators.solvers, operators.slopes, method.most_filled, _rows(fractions),
            _rows(residual),
        )  # fmt: skip
    return Decomposition(fractions, residual)


def _in_memory(shape: tuple[int, ...]) -> Volumes:
    return np.empty(shape, np.float32)


def _choose(
    volumes: Volumes, per_cm: Numbers, supports: Supports, covariance: Numbers, method: Method
) -> NDArray[np.int16]:
    operators = _Operators.of(per_cm, supports, covariance)
    chosen = np.zeros(volumes.shape[1:], np.int16)
    choose_supports(
        _rows(volumes), operators.whitening, operators.columns, supports.members, supports.sizes, operators.solvers,
        operators.slopes, method.most_filled, method.penalty, float(np.sum(operators.columns[0] ** 2)), _rows(chosen),
    )  # fmt: skip
    return chosen


def _rows(array: NDArray[Any]) -> NDArray[Any]:
    """Return the array with z and y as one axis."""
    return array.reshape(*array.shape[:-3], -1, array.shape[-1])


def _smoothed(volumes: Volumes, sigma_voxels: float, allocate: Allocate) -> Volumes:
    if not sigma_voxels:
        return np.ascontiguousarray(volumes, dtype=np.float32)
    smoothed = allocate(volumes.shape)
    for volume, out in zip(volumes, smoothed, strict=True):
        scipy.ndimage.gaussian_filter(volume, sigma_voxels, output=out)
    return smoothed


def _noise(volumes: Volumes, sigma_voxels: float, told: Numbers | None) -> Numbers:
    if told is not None:
        return np.asarray(told, dtype=np.float64)
    return noise_covariance(volumes, max(_NEAREST_COPY, round(_FARTHEST_SMOOTHED * sigma_voxels)))


def noise_covariance(volumes: Volumes, apart_voxels: int = _NEAREST_COPY) -> Numbers:
    """Return the covariance of the noise of the bins, 1/cm², (bin, bin), as the volumes themselves show it.

    Half the covariance of the differences of voxels that are `apart_voxels` from each other along x, those left out
    that lie on edges of the object: beyond 3 standard deviations of the median absolute difference in any bin.

    Parameters
    ----------
    volumes
        Attenuation in each energy bin, 1/cm, (bin, z, y, x).
    """
    if volumes.shape[-1] <= apart_voxels:
        raise ValueError(f"expected rows of more than {apart_voxels} voxels, got {volumes.shape[-1]}")
    some = _some_differences(volumes, apart_voxels)
    sigmas = np.median(np.abs(some), axis=1, keepdims=True) / 0.6745
    kept = some[:, (np.abs(some) <= _WIDEST * sigmas).all(axis=0)]
    covariance: Numbers = np.atleast_2d(kept @ kept.T) / kept.shape[1] / 2 / _KEPT_VARIANCE
    return covariance


def _some_differences(volumes: Volumes, apart_voxels: int) -> Numbers:
    """Return differences along x, evenly spread over the volumes, (bin, number)."""
    lines = volumes.reshape(len(volumes), -1, volumes.shape[-1])
    length = lines.shape[2] - apart_voxels
    count = lines.shape[1] * length
    line, place = np.divmod(np.arange(0, count, max(1, count // _NOISE_SAMPLES)), length)
    differences: Numbers = (lines[:, line, place + apart_voxels] - lines[:, line, place]).astype(np.float64)
    return differences
