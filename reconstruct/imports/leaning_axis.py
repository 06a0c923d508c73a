"""A rotation axis that leans: source and detector, which stand upright in the laboratory, in the frame of the axis."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import scipy  # loads its parts when they are used
from numpy.typing import NDArray

from reconstruct.geometry import ConeBeamGeometry


def about_leaning_axis(geometry: ConeBeamGeometry, roll_deg: float, tilt_deg: float) -> ConeBeamGeometry:
    """Return the views of a circle about z as they are when the axis leans, in the frame of the axis.

    Parameters
    ----------
    geometry
        With the axis upright; what it turns about stays the isocentre.
    roll_deg
        How far the top of the axis leans to the right seen from the source, degrees.
    tilt_deg
        How far it then leans away from the source.
    """
    towards = geometry.sources * [1.0, 1.0, 0.0]
    forward = -towards / np.linalg.norm(towards, axis=1, keepdims=True)
    up = np.broadcast_to([0.0, 0.0, 1.0], forward.shape)
    axes = np.stack([np.cross(forward, up), forward, up], axis=2)
    leaning = scipy.spatial.transform.Rotation.from_euler("XY", [-tilt_deg, roll_deg], degrees=True)
    turn = axes @ leaning.inv().as_matrix() @ axes.transpose(0, 2, 1)

    def turned(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(np.einsum("vij,vj->vi", turn, vectors), dtype=np.float64)

    return replace(
        geometry,
        sources=turned(geometry.sources),
        detector_centres=turned(geometry.detector_centres),
        column_steps=turned(geometry.column_steps),
        row_steps=turned(geometry.row_steps),
    )
