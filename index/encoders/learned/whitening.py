"""From features to vectors: centred, whitened, shortened, of length 1.

With labels: whitened by the covariance within the classes, then rotated on the principal axes of what that leaves
(Mikolajczyk and Matas, ICCV 2007; Radenović et al., PAMI 2018, "learned whitening"). Directions in which images of one
class differ count little, directions that tell classes apart count much. Without labels: principal components whitened.
Both with shrinkage towards the mean variance, since small variances are noise that a plain whitening would blow up.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Features = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]

SHRINKAGE = 0.3
"""Of each variance towards the mean variance. Features of images that a network was trained on vary less than others
do, and in other directions: what is measured on them is not to be trusted far."""


@dataclass(frozen=True, eq=False)
class Whitening:
    """An affine map.

    Attributes
    ----------
    mean
        Axis (channel,).
    projection
        Axes (channel, d).
    """

    mean: Features
    projection: Features

    def __call__(self, features: Features) -> Features:
        """Return the vectors, axes (n, d), not yet of length 1, of `features`, axes (n, channel)."""
        return np.asarray((features - self.mean) @ self.projection, dtype=np.float32)


def fit(features: Features, labels: Labels, dimension: int, shrinkage: float = SHRINKAGE) -> Whitening:
    """Fit the whitening on `features`, axes (n, channel).

    Parameters
    ----------
    labels
        Class numbers, axis (n,), below 0 where none is known. Fewer than two classes: they are not used.
    dimension
        Length d of the vectors, at most: no more than channels or samples.
    shrinkage
        Of each variance towards the mean variance: 0 whitens fully, 1 only rotates.
    """
    values = features.astype(np.float64)
    mean = values.mean(axis=0)
    centred = values - mean
    dimension = min(dimension, *centred.shape)
    if len(np.unique(labels[labels >= 0])) < 2:
        variances, axes = _principal(_covariance(centred), dimension)
        shrunk = (1.0 - shrinkage) * variances + shrinkage * variances.mean()
        return _whitening(mean, axes / np.sqrt(shrunk))
    within = centred[labels >= 0]
    known = labels[labels >= 0]
    for label in np.unique(known):
        within[known == label] -= within[known == label].mean(axis=0)
    variances, axes = _principal(_covariance(within), within.shape[1])
    shrunk = (1.0 - shrinkage) * np.maximum(variances, 0.0) + shrinkage * variances.mean()
    whiten = axes / np.sqrt(shrunk)
    _, rotation = _principal(_covariance(centred @ whiten), dimension)
    return _whitening(mean, whiten @ rotation)


def _covariance(centred: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return centred.T @ centred / len(centred)


def _principal(
    covariance: npt.NDArray[np.float64], dimension: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the largest variances, and the axes as columns, each with its largest component positive."""
    variances, axes = np.linalg.eigh(covariance)
    variances, axes = variances[::-1][:dimension], axes[:, ::-1][:, :dimension]
    return variances, axes * np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])])


def _whitening(mean: npt.NDArray[np.float64], projection: npt.NDArray[np.float64]) -> Whitening:
    return Whitening(mean.astype(np.float32), projection.astype(np.float32))
