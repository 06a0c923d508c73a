"""What every view of a scan sees: the largest cylinder about the rotation axis."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reconstruct.grid import GeometryError


@dataclass(frozen=True)
class Cylinder:
    """A cylinder about the z axis: radius, lowest and highest z, mm."""

    radius_mm: float
    low_mm: float
    high_mm: float


def cylinder_seen(sources: NDArray[np.float64], corners: NDArray[np.float64]) -> Cylinder:
    """Return the cylinder that every view sees whole.

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
    radius = _radius_seen(sources, rays)
    distances = np.hypot(sources[:, 0], sources[:, 1])
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


def _radius_seen(sources: NDArray[np.float64], rays: NDArray[np.float64]) -> float:
    # Distance of the axis from each corner's ray, seen along z, with a sign: the two column ends must enclose it.
    cross = rays[..., 1] * sources[:, 0, None, None] - rays[..., 0] * sources[:, 1, None, None]
    distance = cross / np.hypot(rays[..., 0], rays[..., 1])
    left, right = distance[:, :, 0], distance[:, :, 1]
    sense = np.sign(np.mean(right - left, axis=1))[:, None]
    radius = float(min((-sense * left).min(), (sense * right).min()))
    if radius <= 0:
        raise GeometryError(f"every view must see the rotation axis, yet one misses it by {-radius:g} mm")
    return radius
