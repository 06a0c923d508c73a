"""What the views of a scan see: the fan, and the largest cylinder about the rotation axis."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reconstruct.arcs import Arc, arc_of
from reconstruct.grid import GeometryError

_OFFSET = 0.1
"""A detector is offset when its middle is more than this fraction of its width beside the axis."""


@dataclass(frozen=True)
class Fan:
    """How far every view sees to both sides of the axis.

    Attributes
    ----------
    shorter_rad, longer_rad
        Angles between the axis and the outermost ray of the shorter and of the longer side, seen from the source.
    shorter_mm, longer_mm
        Radii of the cylinders about the axis that are seen on the shorter side, and on the longer one.
    longer_side
        1: the longer side lies counterclockwise of the axis, seen from the source and +z; -1: clockwise.
    """

    shorter_rad: float
    longer_rad: float
    shorter_mm: float
    longer_mm: float
    longer_side: int

    @property
    def is_offset(self) -> bool:
        """Whether one side is so much longer that it is worth seeing each ray of it only once."""
        return self.longer_rad - self.shorter_rad > _OFFSET * (self.longer_rad + self.shorter_rad)


@dataclass(frozen=True)
class Cylinder:
    """A cylinder about the z axis: radius, lowest and highest z, mm."""

    radius_mm: float
    low_mm: float
    high_mm: float


def fan_of(sources: NDArray[np.float64], ends: NDArray[np.float64]) -> Fan:
    """Return how far every view sees to both sides.

    Parameters
    ----------
    sources
        (view, 3), mm.
    ends
        Points on the two ends of the rows, (view, any number, column end, 3), mm.

    Raises
    ------
    GeometryError
        A view does not see the axis, or the longer side changes from view to view.
    """
    rays = ends - sources[:, None, None]
    inwards = -sources[:, None, None, :2]
    across = inwards[..., 0] * rays[..., 1] - inwards[..., 1] * rays[..., 0]
    angles = np.arctan2(across, np.sum(inwards * rays[..., :2], axis=-1))
    distances = np.hypot(sources[:, 0], sources[:, 1])[:, None] * np.sin(np.stack([angles.max(2), -angles.min(2)]))
    radii = distances.min(axis=(1, 2))
    if radii.min() <= 0:
        raise GeometryError(f"every view must see the rotation axis, yet one misses it by {-radii.min():g} mm")
    reach = float(angles.max(axis=2).min()), float(-angles.min(axis=2).max())
    longer = int(np.argmax(reach))
    return Fan(
        reach[1 - longer], reach[longer], float(radii[1 - longer]), float(radii[longer]), 1 if longer == 0 else -1
    )


def cylinder_seen(sources: NDArray[np.float64], corners: NDArray[np.float64]) -> Cylinder:
    """Return the cylinder that can be reconstructed: the one that every view sees whole.

    Of a detector that is offset to one side, and goes all the way round, it is what the longer side sees. Of an arc
    that is longer than half a turn, and too short for all of the fan, it is the part for which the arc is enough.

    Parameters
    ----------
    sources
        (view, 3), mm.
    corners
        Corners of the detector's area, (view, row end, column end, 3), mm.

    Raises
    ------
    GeometryError
        A view that misses the axis (a detector shifted to one side), or no height that all views see.
    """
    rays = corners - sources[:, None, None]
    distances = np.hypot(sources[:, 0], sources[:, 1])
    radius = _radius(fan_of(sources, corners), arc_of(np.arctan2(sources[:, 1], sources[:, 0])), distances.min())
    # The near side of the cylinder, where the cone is lowest, decides how much of its height is seen.
    near = distances - radius
    if near.min() <= 0:
        raise GeometryError(f"the source, {distances.min():g} mm from the axis, is within the field of {radius:g} mm")
    inwards = -sources[:, :2] / distances[:, None]
    slopes = rays[..., 2] / np.einsum("vrcj,vj->vrc", rays[..., :2], inwards)
    heights = np.sort(sources[:, 2, None, None] + slopes * near[:, None, None], axis=1)
    low, high = float(heights[:, 0].max()), float(heights[:, 1].min())
    if not low < high:
        raise GeometryError(f"no slice is seen by every view: one sees from {low:g} mm up, one to {high:g} mm")
    return Cylinder(radius, low, high)


def _radius(fan: Fan, arc: Arc, distance_mm: float) -> float:
    if arc.is_circle:
        return fan.longer_mm if fan.is_offset else fan.shorter_mm
    if arc.length_rad <= np.pi:
        return fan.shorter_mm
    enough = (arc.length_rad + arc.step_rad - np.pi) / 2
    return min(fan.shorter_mm, float(distance_mm * np.sin(min(enough, np.pi / 2))))
