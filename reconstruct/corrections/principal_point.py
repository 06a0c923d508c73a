"""Where the rotation axis falls on the detector, estimated from the data when nobody has calibrated it.

On a full circle every ray in the plane of the source is measured twice: at view angle β and fan angle γ, and the other
way round at β + π + 2γ under -γ. Only about the true column of the axis do the two agree. (Azevedo et al., "Calculation
of the rotational centers in computed tomography sinograms", IEEE Trans. Nucl. Sci. 37 (1990) 1525; for cone beams
Patel et al., "Self-calibration of a cone-beam micro-CT system", Med. Phys. 36 (2009) 48.)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
import scipy  # loads its parts when they are used
from numpy.typing import NDArray

from reconstruct.arcs import arc_of
from reconstruct.geometry import ConeBeamGeometry
from reconstruct.working_memory import pieces

_PARTS = 6
"""Parts of the circle whose estimates are compared."""

_COARSE = 40
"""Columns tried over the range."""

_SMOOTH_PX = 1.0
"""Sigma of the Gaussian on the sinogram: interpolation must not look like agreement because it smooths noise."""

_LEAST_CLARITY = 0.5


@dataclass(frozen=True)
class PrincipalColumn:
    """The column, 0-based, in which the axis is seen.

    Attributes
    ----------
    column, uncertainty
        And the standard error of it, from parts of the circle, pixels.
    given
        Where the geometry had it.
    clarity
        How much less conjugate rays disagree about it than about other columns, 0 to 1.
    """

    column: float
    uncertainty: float
    given: float
    clarity: float


def axis_columns(geometry: ConeBeamGeometry) -> NDArray[np.float64]:
    """Return the column, 0-based, that sees the axis at the height of the source in each view, (view,)."""
    column, _ = _axis_pixels(geometry)
    return column


def estimate_principal_column(
    integrals: NDArray[np.float32], geometry: ConeBeamGeometry, *, reach: float = 0.1
) -> PrincipalColumn:
    """Return the column of the axis about which conjugate rays agree best.

    Parameters
    ----------
    integrals
        (view, row, column) float32; an array or a memory map, of which the rows near the plane of the source are read.
    geometry
        Of the scan, with the principal column that is doubted.
    reach
        How far from there is searched, as a fraction of the columns.

    Raises
    ------
    ValueError
        No full circle, a plane of the source that the detector does not see, or conjugate rays that do not tell.
    """
    if not arc_of(geometry.view_angles_rad).is_circle:
        raise ValueError("the principal point cannot be estimated: conjugate views need a full circle")
    sinogram, angles = _central_sinogram(integrals, geometry), geometry.view_angles_rad
    conjugates = _Conjugates.of(sinogram, angles, geometry)
    given = float(axis_columns(geometry).mean())
    half = max(2.0, reach * geometry.columns)
    tried = np.linspace(given - half, given + half, _COARSE + 1)
    disagreement = conjugates.disagreement(tried)
    total = disagreement.mean(axis=1)
    best = int(np.argmin(total))
    clarity = 1.0 - float(total[best] / max(np.median(total), 1e-30))
    if best in (0, _COARSE) or clarity < _LEAST_CLARITY:
        raise ValueError(
            f"the principal point cannot be estimated: conjugate rays agree about no column within {half:.1f} pixels "
            f"of {given:.1f}"
        )
    step, centre = tried[1] - tried[0], tried[best]
    for _ in range(3):
        near = centre + step * np.linspace(-1.5, 1.5, 7)
        disagreement = conjugates.disagreement(near)
        centre, step = _lowest(near, disagreement.mean(axis=1)), step / 2
    own = np.array([_lowest(near, part) for part in disagreement.T])
    spread = float(own.std(ddof=1) / np.sqrt(len(own)))
    return PrincipalColumn(centre, spread, given, clarity)


def with_principal_column(geometry: ConeBeamGeometry, column: float) -> ConeBeamGeometry:
    """Return the same geometry with the detector shifted along its rows so that `column` sees the axis."""
    shift = float(axis_columns(geometry).mean()) - column
    return replace(geometry, detector_centres=geometry.detector_centres + shift * geometry.column_steps)


@dataclass(frozen=True, eq=False)
class _Conjugates:
    """The sinogram of the plane of the source, by angle, periodic, and what leads from a ray to its conjugate."""

    padded: NDArray[np.float32]
    angles: NDArray[np.float64]
    step: float
    pixels_per_radian: float

    @classmethod
    def of(
        cls, sinogram: NDArray[np.float32], angles: NDArray[np.float64], geometry: ConeBeamGeometry
    ) -> _Conjugates:
        """Resample views to equal steps of the angle, as many as there are."""
        views = len(angles)
        turned = np.mod(angles, 2 * np.pi)
        order = np.argsort(turned)
        own = np.concatenate([order[-1:], order, order[:1]])
        at = turned[order]
        at = np.concatenate([[at[-1] - 2 * np.pi], at, [at[0] + 2 * np.pi]])
        even = np.arange(views) * 2 * np.pi / views
        right = np.clip(np.searchsorted(at, even), 1, len(at) - 1)
        share = ((even - at[right - 1]) / np.maximum(at[right] - at[right - 1], 1e-12)).astype(np.float32)[:, None]
        resampled = sinogram[own[right - 1]] * (1 - share) + sinogram[own[right]] * share
        smooth = scipy.ndimage.gaussian_filter1d(resampled, _SMOOTH_PX, axis=1, mode="nearest")
        pitch = float(np.linalg.norm(geometry.column_steps, axis=1).mean())
        return cls(
            smooth, even, 2 * np.pi / views, _sense(geometry) * float(geometry.source_to_detector_mm.mean()) / pitch
        )

    def disagreement(self, columns: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the mean squared difference of conjugate rays about each column, (column, part of the circle)."""
        views, width = self.padded.shape
        here = np.arange(width, dtype=np.float64)
        told = np.empty((len(columns), _PARTS))
        for number, axis in enumerate(columns):
            there = 2 * axis - here
            seen = (there >= 0) & (there <= width - 1)
            fan = np.arctan((here[seen] - axis) / self.pixels_per_radian)
            turned = (self.angles[:, None] + np.pi + 2 * fan) / self.step
            at = np.stack(np.broadcast_arrays(np.mod(turned, views), there[seen]))
            other = scipy.ndimage.map_coordinates(self.padded, at, order=1, mode="grid-wrap")
            squares = ((self.padded[:, seen] - other) ** 2).mean(axis=1)
            told[number] = [part.mean() for part in np.array_split(squares, _PARTS)]
        return told


def _central_sinogram(integrals: NDArray[np.float32], geometry: ConeBeamGeometry) -> NDArray[np.float32]:
    """Return the mean over the rows nearest to the plane of the source, (view, column)."""
    _, rows = _axis_pixels(geometry)
    if rows.min() < 0 or rows.max() > geometry.rows - 1:
        raise ValueError("the principal point cannot be estimated: the detector does not see the plane of the source")
    reach = max(1, geometry.rows // 50)
    middle = np.rint(rows).astype(int)
    first = np.clip(middle - reach, 0, geometry.rows - 1)
    views = zip(chain.from_iterable(pieces(integrals)), first, strict=True)
    return np.stack([image[low : low + 2 * reach + 1].mean(axis=0) for image, low in views])


def _axis_pixels(geometry: ConeBeamGeometry) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return where the point of the axis at the height of the source is seen in each view: columns and rows."""
    points = np.zeros((geometry.views, 4))
    points[:, 2], points[:, 3] = geometry.sources[:, 2], 1.0
    projected = np.einsum("vij,vj->vi", geometry.projection_matrices(), points)
    return projected[:, 0] / projected[:, 2], projected[:, 1] / projected[:, 2]


def _sense(geometry: ConeBeamGeometry) -> float:
    """1 where columns step counterclockwise of the axis, seen from +z at the source; else -1."""
    inwards, steps = -geometry.sources[0], geometry.column_steps[0]
    return float(np.sign(inwards[0] * steps[1] - inwards[1] * steps[0]))


def _lowest(columns: NDArray[np.float64], values: NDArray[np.float64]) -> float:
    """Return where a parabola through the values is lowest, within the columns."""
    square, slope, _ = np.polyfit(columns - columns.mean(), values, 2)
    if square <= 0:
        return float(columns[np.argmin(values)])
    return float(np.clip(columns.mean() - slope / (2 * square), columns[0], columns[-1]))
