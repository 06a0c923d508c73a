"""What each view, and each ray within it, counts for in FDK.

With the source s at the horizontal distance R from the axis, the ray q from it to a pixel, the column step a, and t
the depth of the voxel x as a fraction of the detector's, Feldkamp's formula [1]_ for a flat detector of any
orientation reads::

    f(x) = sum over views  1/t²  sum over columns  h(column(x) - column)  W(q) p(q)
    W(q) = 1/2 R Δφ δ / (|(a × q)_z| |q|),       δ = component of q from the source towards the axis

where h is the ramp kernel in units of a pixel and 1/2 says that each ray is measured twice; where it is not,
`reconstruct.redundancy` has what it counts for. It follows from the fan-beam formula of a flat detector that need not
face the source [2]_, seen along the axis, and the cosine of the ray's elevation. For a detector that faces the source
it is the textbook's ``R² / (R - x·s/R)²`` and ``R / sqrt(R² + u² + v²)``. Moving the detector along the rays changes
nothing.

.. [1] Feldkamp, Davis & Kress, Practical cone-beam algorithm, J. Opt. Soc. Am. A 1 (1984) 612.
.. [2] Kak & Slaney, Principles of Computerized Tomographic Imaging (1988), 3.4.2 and 3.6.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from reconstruct.geometry import ConeBeamGeometry
from reconstruct.grid import GeometryError

MOST_RISE = 0.02
"""How far sources may lie from one plane across the axis, as a fraction of their distance from the axis."""


def require_circular(geometry: ConeBeamGeometry) -> None:
    """Raise `GeometryError` for a scan that is none for FDK, with what is wrong.

    That is a source on the axis or travelling along it, or columns that step along the axis rather than around it.
    """
    radii = geometry.source_to_isocenter_mm
    if radii.min() <= 0:
        raise GeometryError(f"view {int(np.argmin(radii))}: the source lies on the rotation axis")
    heights = geometry.sources[:, 2]
    if np.ptp(heights) > MOST_RISE * radii.min():
        raise GeometryError(
            f"expected the sources in one plane across the axis, got heights from {heights.min():g} to "
            f"{heights.max():g} mm, which need a helical reconstruction"
        )
    columns_along, rows_along = np.abs(geometry.column_steps[:, 2]), np.abs(geometry.row_steps[:, 2])
    lengths = np.linalg.norm(geometry.column_steps, axis=1), np.linalg.norm(geometry.row_steps, axis=1)
    if (turned := columns_along / lengths[0] > rows_along / lengths[1]).any():
        view = int(np.argmax(turned))
        raise GeometryError(
            f"view {view}: columns step along the axis, {geometry.column_steps[view].tolist()}, and rows around it, "
            f"{geometry.row_steps[view].tolist()}: exchange rows and columns of the projections"
        )


def view_factors(geometry: ConeBeamGeometry, shares_rad: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return ``1/2 R Δφ / t0²`` of every view, (view,), where t0 is the depth of the isocentre.

    Depths of voxels are then to be measured in units of t0.

    Parameters
    ----------
    geometry
        Of the scan.
    shares_rad
        Δφ, what each view stands for, rad, (view,); see `reconstruct.arcs`.
    """
    return np.asarray(0.5 * geometry.source_to_isocenter_mm * shares_rad / geometry.isocentre_depths**2)
