"""The angles of PS3.3 C.8.19.6.13.1.2 that belong to vectors: the inverse of what `view_geometry` reads."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reconstruct.geometry import ConeBeamGeometry

Numbers = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class PositionerAngles:
    """What standard attributes can say of a geometry; angles per view, degrees.

    Attributes
    ----------
    primary_deg, secondary_deg, detector_rotation_deg
        (0018,9463), (0018,9464), (0018,9465); (view,).
    mirrored
        Whether the image is the mirror image of what an eye behind the detector would see.
    principal_point_row_column
        Mean of where the isocentre is seen, pixels, 0-based.
    """

    primary_deg: Numbers
    secondary_deg: Numbers
    detector_rotation_deg: Numbers
    mirrored: bool
    principal_point_row_column: tuple[float, float]


def positioner_angles(geometry: ConeBeamGeometry) -> PositionerAngles:
    """Return the angles of each view; a detector tilted against the central ray cannot be described and is not."""
    towards_source = geometry.sources / np.linalg.norm(geometry.sources, axis=1, keepdims=True)
    primary = np.arctan2(-towards_source[:, 0], towards_source[:, 1])
    right = np.stack([np.cos(primary), np.sin(primary), np.zeros_like(primary)], axis=1)
    up = np.cross(right, towards_source)
    normals = np.cross(geometry.row_steps, geometry.column_steps)
    mirrored = bool(np.mean(np.sum(normals * towards_source, axis=1)) > 0)
    columns = -geometry.column_steps if mirrored else geometry.column_steps
    rotation = np.arctan2(-np.sum(columns * up, axis=1), np.sum(columns * right, axis=1))
    seen = geometry.projection_matrices()[:, :, 3]
    column, row = (seen[:, :2] / seen[:, 2:]).mean(axis=0)
    return PositionerAngles(
        primary_deg=np.rad2deg(primary),
        secondary_deg=np.rad2deg(np.arcsin(np.clip(-towards_source[:, 2], -1, 1))),
        detector_rotation_deg=np.rad2deg(rotation),
        mirrored=mirrored,
        principal_point_row_column=(float(row), float(geometry.columns - 1 - column if mirrored else column)),
    )
