"""A detector on a cylinder about the focal spot, as of clinical CT, brought to a plane that FDK can filter."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import scipy  # loads its parts when they are used
from numpy.typing import NDArray

from reconstruct.geometry import ConeBeamGeometry
from reconstruct.grid import GeometryError

Image = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class CurvedDetector:
    """The cylinder, and the plane that touches it where the central ray meets it.

    Attributes
    ----------
    plane
        Geometry of the plane: the same steps, and as many columns as see what the cylinder sees.
    radius_mm
        Of the cylinder about the focal centre, mm.
    pitches_mm
        Of rows and columns on its surface, mm.
    principal_point
        Column and row of the touching point on the cylinder, 0-based, (view, 2).
    columns_before
        How many columns the plane has more, before the first.
    focal_spots
        Where the focal spot stands in each view relative to the focal centre, along columns, rows and towards the
        detector, mm, (view, 3): 0 unless it flies.
    """

    plane: ConeBeamGeometry
    radius_mm: float
    pitches_mm: tuple[float, float]
    principal_point: NDArray[np.float64]
    columns_before: int
    focal_spots: NDArray[np.float64]

    @classmethod
    def of(cls, shifted: ConeBeamGeometry, unshifted: ConeBeamGeometry) -> CurvedDetector:
        """Return the detector whose surface, unrolled, is that of the geometries.

        Parameters
        ----------
        shifted
            Geometry with the focal spot where it is, pixels numbered along the surface.
        unshifted
            The same with the focal spot in the focal centre, which is the cylinder's axis.

        Raises
        ------
        GeometryError
            A fan of half a turn or more.
        """
        radius = float(unshifted.source_to_detector_mm.mean())
        pitches = (
            float(np.linalg.norm(unshifted.row_steps, axis=1).mean()),
            float(np.linalg.norm(unshifted.column_steps, axis=1).mean()),
        )
        u, v = unshifted.column_steps / pitches[1], unshifted.row_steps / pitches[0]
        to_centre = unshifted.detector_centres - unshifted.sources
        middle = (unshifted.columns - 1) / 2, (unshifted.rows - 1) / 2
        points = np.stack(
            [
                middle[0] - np.sum(to_centre * u, axis=1) / pitches[1],
                middle[1] - np.sum(to_centre * v, axis=1) / pitches[0],
            ],
            axis=1,
        )
        before = _more(float(points[:, 0].max()), pitches[1], radius)
        after = _more(float(unshifted.columns - 1 - points[:, 0].min()), pitches[1], radius)
        away = to_centre - np.sum(to_centre * u, axis=1)[:, None] * u - np.sum(to_centre * v, axis=1)[:, None] * v
        spots = shifted.sources - unshifted.sources
        plane = replace(
            shifted,
            columns=shifted.columns + before + after,
            detector_centres=shifted.detector_centres + (after - before) / 2 * shifted.column_steps,
        )
        local = np.stack([np.sum(spots * axis, axis=1) for axis in (u, v, away / radius)], axis=1)
        return cls(plane, radius, pitches, points, before, local)

    def flattened(self, image: Image, view: int) -> Image:
        """Return an image of the cylinder, (row, column), as the plane sees it, by linear interpolation.

        A ray from the focal spot to a pixel of the plane crosses the cylinder where its height above the axis is.
        """
        column, row = self.principal_point[view]
        across = (np.arange(self.plane.columns) - self.columns_before - column) * self.pitches_mm[1]
        along = (np.arange(self.plane.rows) - row) * self.pitches_mm[0]
        spot_u, spot_v, spot_w = self.focal_spots[view]
        ray_u, ray_w = across - spot_u, self.radius_mm - spot_w
        square = ray_u**2 + ray_w**2
        half = spot_u * ray_u + spot_w * ray_w
        rest = spot_u**2 + spot_w**2 - self.radius_mm**2
        share = (np.sqrt(half**2 - square * rest) - half) / square
        angles = np.arctan2(spot_u + share * ray_u, spot_w + share * ray_w)
        columns = column + angles * self.radius_mm / self.pitches_mm[1]
        rows = row + (spot_v + share[None, :] * (along[:, None] - spot_v)) / self.pitches_mm[0]
        where = np.stack([rows, np.broadcast_to(columns, rows.shape)])
        flat: Image = scipy.ndimage.map_coordinates(image, where, order=1, mode="nearest")
        return flat


def _more(columns: float, pitch_mm: float, radius_mm: float) -> int:
    """How many columns the plane needs beyond those of the cylinder on one side of the central ray."""
    half_fan = columns * pitch_mm / radius_mm
    if half_fan >= math.pi / 2:
        raise GeometryError(f"the detector covers {math.degrees(half_fan):.0f} degrees on one side, expected under 90")
    return max(0, math.floor(radius_mm * math.tan(half_fan) / pitch_mm - columns))
