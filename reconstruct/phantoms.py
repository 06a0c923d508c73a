"""Objects whose projections are known exactly: sums of ellipsoids.

What a reconstruction of `line_integrals` should give is `voxelise` of the same ellipsoids.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reconstruct.geometry import ConeBeamGeometry, VolumeGrid
from reconstruct.kernels_phantom import add_chords, fill_voxels

_VIEWS_A_STEP = 16
"""Views between two calls of `progress`."""


@dataclass(frozen=True)
class Ellipsoid:
    """An ellipsoid of constant attenuation; where several overlap, their values add.

    Attributes
    ----------
    centre_mm_xyz
        Centre in the scan frame, mm.
    semi_axes_mm
        Half lengths along its own axes, mm.
    rotation_rad
        Angle from the x axis to its first axis, about z, counter-clockwise seen from +z.
    value_per_mm
        What it adds to the attenuation, 1/mm; may be negative.
    """

    centre_mm_xyz: tuple[float, float, float]
    semi_axes_mm: tuple[float, float, float]
    rotation_rad: float = 0.0
    value_per_mm: float = 1.0

    def __post_init__(self) -> None:
        if len(self.centre_mm_xyz) != 3 or not np.all(np.isfinite(self.centre_mm_xyz)):
            raise ValueError(f"expected a centre of three finite coordinates, got {self.centre_mm_xyz}")
        axes = self.semi_axes_mm
        if len(axes) != 3 or not np.all(np.isfinite(axes)) or min(axes) <= 0:
            raise ValueError(f"expected three semi-axes above 0 mm, got {axes}")
        angle, value = self.rotation_rad, self.value_per_mm
        if not np.isfinite([angle, value]).all():
            raise ValueError(f"expected a finite angle and value, got {angle} and {value}")

    def to_unit_ball(self) -> NDArray[np.float64]:
        """Return the matrix (3, 3) from an offset to the centre, mm, to where the ellipsoid is the unit ball."""
        cosine, sine = math.cos(self.rotation_rad), math.sin(self.rotation_rad)
        rotation = np.array([[cosine, sine, 0.0], [-sine, cosine, 0.0], [0.0, 0.0, 1.0]])
        return np.asarray(rotation / np.array(self.semi_axes_mm)[:, None])


def line_integrals(
    ellipsoids: Sequence[Ellipsoid],
    geometry: ConeBeamGeometry,
    *,
    progress: Callable[[float], None] | None = None,
) -> NDArray[np.float32]:
    """Return the exact integrals of attenuation along the rays, no unit, (view, row, column) float32.

    A ray starts at the source and runs through the centre of the pixel and beyond, so that the distance of
    the detector does not matter.

    Parameters
    ----------
    ellipsoids
        The object.
    geometry
        Source and detector of every view.
    progress
        Called with the fraction done; may raise to stop the work.
    """
    table = _table(ellipsoids)
    firsts = geometry.first_pixels()
    out = np.empty((geometry.views, geometry.rows, geometry.columns), dtype=np.float32)
    for start in range(0, geometry.views, _VIEWS_A_STEP):
        block = slice(start, min(start + _VIEWS_A_STEP, geometry.views))
        add_chords(
            table,
            geometry.sources[block],
            firsts[block],
            geometry.column_steps[block],
            geometry.row_steps[block],
            out[block],
        )
        if progress is not None:
            progress(block.stop / geometry.views)
    return out


def voxelise(
    ellipsoids: Sequence[Ellipsoid], grid: VolumeGrid, *, supersampling: int = 1
) -> NDArray[np.float32]:
    """Return the attenuation of the object in each voxel, 1/mm, (z, y, x) float32.

    Parameters
    ----------
    ellipsoids
        The object.
    grid
        Where the voxels are.
    supersampling
        Points along each edge of a voxel whose mean is taken; 1: its centre.
    """
    if supersampling < 1:
        raise ValueError(f"expected a supersampling of at least 1, got {supersampling}")
    inner = (np.arange(supersampling) + 0.5) / supersampling - 0.5
    points = [
        (centres[:, None] + inner[None, :] * edge).reshape(-1)
        for centres, edge in zip((grid.z_mm, grid.y_mm, grid.x_mm), grid.voxel_mm_zyx, strict=True)
    ]
    out = np.empty(grid.shape_zyx, dtype=np.float32)
    fill_voxels(_table(ellipsoids), *points, supersampling, out)
    return out


def shepp_logan(half_width_mm: float, *, skull_per_mm: float = 0.1) -> tuple[Ellipsoid, ...]:
    """Return the three-dimensional Shepp-Logan head with Toft's contrasts.

    Kak & Slaney, Principles of Computerized Tomographic Imaging (1988), chapter 3, with the contrasts of P. Toft
    (1996), which can be seen on a screen.

    Parameters
    ----------
    half_width_mm
        What the table calls 1: the head reaches 0.92 of it along y, 0.81 along z, 0.69 along x.
    skull_per_mm
        Attenuation of the skull, 1/mm. The brain has a fifth of it: water at 60 keV for the default.
    """
    return tuple(
        Ellipsoid(
            centre_mm_xyz=(x * half_width_mm, y * half_width_mm, z * half_width_mm),
            semi_axes_mm=(a * half_width_mm, b * half_width_mm, c * half_width_mm),
            rotation_rad=math.radians(degrees),
            value_per_mm=value * skull_per_mm,
        )
        for value, a, b, c, x, y, z, degrees in _SHEPP_LOGAN
    )


def asymmetric(half_width_mm: float) -> tuple[Ellipsoid, ...]:
    """Return a water body with inserts that no rotation or mirror maps onto itself.

    The last ellipsoid is the marker: dense, small, in the octant left (+x), posterior (+y), head (+z). A dark
    insert lies to the right, a faint one anterior towards the feet.

    Parameters
    ----------
    half_width_mm
        The body reaches 0.8 of it along x, 0.7 along y, 0.6 along z.
    """
    return tuple(
        Ellipsoid(
            centre_mm_xyz=(x * half_width_mm, y * half_width_mm, z * half_width_mm),
            semi_axes_mm=(a * half_width_mm, b * half_width_mm, c * half_width_mm),
            rotation_rad=math.radians(degrees),
            value_per_mm=value,
        )
        for value, a, b, c, x, y, z, degrees in _ASYMMETRIC
    )


# value, semi-axes a b c, centre x y z, degrees about z; lengths as fractions of the half width
_SHEPP_LOGAN = (
    (1.0, 0.6900, 0.920, 0.810, 0.0, 0.0, 0.0, 0.0),
    (-0.8, 0.6624, 0.874, 0.780, 0.0, -0.0184, 0.0, 0.0),
    (-0.2, 0.1100, 0.310, 0.220, 0.22, 0.0, 0.0, -18.0),
    (-0.2, 0.1600, 0.410, 0.280, -0.22, 0.0, 0.0, 18.0),
    (0.1, 0.2100, 0.250, 0.410, 0.0, 0.35, -0.15, 0.0),
    (0.1, 0.0460, 0.046, 0.050, 0.0, 0.1, 0.25, 0.0),
    (0.1, 0.0460, 0.046, 0.050, 0.0, -0.1, 0.25, 0.0),
    (0.1, 0.0460, 0.023, 0.050, -0.08, -0.605, 0.0, 0.0),
    (0.1, 0.0230, 0.023, 0.020, 0.0, -0.606, 0.0, 0.0),
    (0.1, 0.0230, 0.046, 0.020, 0.06, -0.605, 0.0, 0.0),
)

_ASYMMETRIC = (
    (0.02, 0.80, 0.70, 0.60, 0.0, 0.0, 0.0, 0.0),
    (-0.015, 0.20, 0.12, 0.20, -0.40, -0.10, 0.05, 25.0),
    (0.006, 0.15, 0.10, 0.12, 0.15, -0.35, -0.25, 0.0),
    (0.04, 0.10, 0.08, 0.09, 0.35, 0.25, 0.20, 0.0),
)


def _table(ellipsoids: Sequence[Ellipsoid]) -> NDArray[np.float64]:
    """Return the rows that `kernels_phantom` reads, (ellipsoid, 13)."""
    table = np.empty((len(ellipsoids), 13))
    for row, ellipsoid in zip(table, ellipsoids, strict=True):
        row[:9] = ellipsoid.to_unit_ball().reshape(-1)
        row[9:12] = ellipsoid.centre_mm_xyz
        row[12] = ellipsoid.value_per_mm
    return table
