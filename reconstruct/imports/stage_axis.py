"""An axis of rotation beside the central ray, or leaning: source and detector as they are in the frame of the axis."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import scipy  # loads its parts when they are used
from numpy.typing import NDArray

from reconstruct.geometry import ConeBeamGeometry


@dataclass(frozen=True)
class StageAxis:
    """Where the axis of a stage is.

    Attributes
    ----------
    right_mm
        How far it stands to the right of the central ray, seen from the source.
    roll_deg
        How far its top leans to the right, degrees.
    tilt_deg
        How far it then leans away from the source.
    """

    right_mm: float = 0.0
    roll_deg: float = 0.0
    tilt_deg: float = 0.0


def about_axis(geometry: ConeBeamGeometry, axis: StageAxis) -> ConeBeamGeometry:
    """Return the views of a circle about z as they are with that axis, which becomes z.

    Parameters
    ----------
    geometry
        With the axis upright on the ray from the source that meets the detector at right angles.
    axis
        Where it is instead.
    """
    towards = geometry.sources * [1.0, 1.0, 0.0]
    forward = -towards / np.linalg.norm(towards, axis=1, keepdims=True)
    up = np.broadcast_to([0.0, 0.0, 1.0], forward.shape)
    axes = np.stack([np.cross(forward, up), forward, up], axis=2)
    leaning = scipy.spatial.transform.Rotation.from_euler("XY", [-axis.tilt_deg, axis.roll_deg], degrees=True)
    aside = axis.right_mm * axes[:, :, 0]
    turn = axes @ leaning.inv().as_matrix() @ axes.transpose(0, 2, 1)

    def turned(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(np.einsum("vij,vj->vi", turn, vectors), dtype=np.float64)

    return replace(
        geometry,
        sources=turned(geometry.sources - aside),
        detector_centres=turned(geometry.detector_centres - aside),
        column_steps=turned(geometry.column_steps),
        row_steps=turned(geometry.row_steps),
    )
