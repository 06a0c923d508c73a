"""Projection matrices to vectors and back.

A matrix maps ``(x, y, z, 1)``, mm, to ``t (column, row, 1)``. With the source s, the centre p of pixel (0, 0), the
column step a and the row step b, a point on the ray of pixel (column, row) is ``s + t (p - s + column a + row b)``,
so the left 3 × 3 block is the inverse of ``[a b p-s]`` (Hartley & Zisserman, Multiple View Geometry, 6.2).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from reconstruct.grid import GeometryError

_SINGULAR = 1e-9
"""Determinant of a block with rows of length 1 below which no source can be found."""


class PixelVectors(NamedTuple):
    """Source, centre of pixel (0, 0), column step and row step of every view, each (view, 3), mm."""

    sources: NDArray[np.float64]
    first_pixels: NDArray[np.float64]
    column_steps: NDArray[np.float64]
    row_steps: NDArray[np.float64]


def compose(vectors: PixelVectors) -> NDArray[np.float64]:
    """Return the matrices (view, 3, 4), scaled so that t is 0 at the source and 1 on the detector."""
    sources, first_pixels, column_steps, row_steps = vectors
    block = np.linalg.inv(np.stack([column_steps, row_steps, first_pixels - sources], axis=2))
    return np.concatenate([block, -block @ sources[:, :, None]], axis=2)


def decompose(matrices: NDArray[np.float64], source_to_detector_mm: float | None) -> PixelVectors:
    """Return the vectors of matrices (view, 3, 4) of any sign and scale.

    The isocentre is taken to lie in front of the source. The distance of the detector is not in a matrix.

    Parameters
    ----------
    matrices
        mm to (column, row), (view, 3, 4).
    source_to_detector_mm
        Perpendicular distance from the source to the detector plane; None: the plane through the isocentre.

    Raises
    ------
    GeometryError
        Another shape, numbers that are not finite, a singular matrix, an isocentre beside the source.
    """
    if matrices.ndim != 3 or matrices.shape[1:] != (3, 4):
        raise GeometryError(f"expected matrices of shape (view, 3, 4), got {matrices.shape}")
    _refuse(np.any(~np.isfinite(matrices), axis=(1, 2)), "is not finite")
    block, isocentre_w = matrices[:, :, :3], matrices[:, 2, 3]
    lengths = np.linalg.norm(block, axis=2, keepdims=True)
    _refuse((lengths == 0).any(axis=(1, 2)), "has a row of zeros")
    # Rows differ by orders of magnitude (pixels against 1): scaled before judging whether it can be inverted.
    _refuse(np.abs(np.linalg.det(block / lengths)) < _SINGULAR, "is singular, so that it has no source")
    _refuse(np.abs(isocentre_w) < _SINGULAR * lengths[:, 2, 0], "has the isocentre beside the source")

    inverse = np.linalg.inv(block)
    sources = -np.einsum("vij,vj->vi", inverse, matrices[:, :, 3])
    # This factor makes t 1 at the isocentre, whatever the sign: the detector passes through it.
    inverse = inverse * isocentre_w[:, None, None]
    if source_to_detector_mm is not None:
        if not source_to_detector_mm > 0:
            raise GeometryError(
                f"expected a source to detector distance above 0 mm, got {source_to_detector_mm}"
            )
        normals = np.cross(inverse[:, :, 0], inverse[:, :, 1])
        normals /= np.linalg.norm(normals, axis=1, keepdims=True)
        distances = np.abs(np.sum(normals * inverse[:, :, 2], axis=1))
        inverse *= (source_to_detector_mm / distances)[:, None, None]
    return PixelVectors(sources, sources + inverse[:, :, 2], inverse[:, :, 0], inverse[:, :, 1])


def _refuse(views: NDArray[np.bool_], why: str) -> None:
    if views.any():
        raise GeometryError(f"the matrix of view {int(np.argmax(views))} of {len(views)} {why}")
