"""Step and shoot: circles about the axis at several axial positions, whose volumes are merged to one.

Each circle is a scan of its own for FDK. Its cone sees less of the axial extent the farther a voxel lies from the axis:
in the corners of its field some views miss a voxel, which then comes out too thin. So a circle counts in a voxel by how
far that lies within the heights that all views of the circle see at the voxel's distance from the axis, and not at all
beyond them; the shares of the circles add up to 1. Where circles overlap, one fades into the next; the weights of
neighbouring images in a panorama fall alike.

A circle that sees a voxel by all its views is as good as a scan of one position there (Feldkamp, Davis & Kress, J. Opt.
Soc. Am. A 1 (1984) 612), so that an object that is the same all along the axis is continued without a seam.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from reconstruct.field_of_view import cylinder_seen
from reconstruct.geometry import ConeBeamGeometry, GeometryError, VolumeGrid
from reconstruct.redundancy import Coverage, redundancy
from reconstruct.weights import MOST_RISE

_LEAST_VIEWS = 10
"""Fewer views at one height are no circle."""

_RADII = 129
"""Distances from the axis at which what is seen is computed; in between it is interpolated."""

_INSIDE = 1e-6
"""Of a voxel: rounding is no gap."""

Vectors = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Station:
    """One axial position of a scan.

    Attributes
    ----------
    views
        Which views of the scan were taken there, ascending, (view,).
    geometry
        Of these views.
    height_mm
        Mean z of their sources.
    """

    views: NDArray[np.intp]
    geometry: ConeBeamGeometry
    height_mm: float

    def of(self, projections: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the projections of the position, (view, row, column); of evenly spaced views without a copy."""
        steps = np.unique(np.diff(self.views))
        if len(steps) != 1:
            return projections[self.views]
        return projections[self.views[0] : self.views[-1] + 1 : steps[0]]


def stations_of(geometry: ConeBeamGeometry) -> tuple[Station, ...]:
    """Return the axial positions of a scan in ascending order; a single one where it is no step and shoot.

    Views stand at one position when the heights of their detectors follow each other within half a row, scaled to the
    isocentre. (Those of the sources alone also change when the focal spot flies.) Several are step and shoot when there
    is a full circle or a short scan among them; and where sources differ so little that they count as one circle,
    when all of them are.
    """
    groups = _levels(geometry)
    whole = (Station(np.arange(geometry.views), geometry, float(geometry.sources[:, 2].mean())),)
    if len(groups) == 1 or min(len(group) for group in groups) < _LEAST_VIEWS:
        return whole
    stations = tuple(
        Station(views, part := geometry.select(views), float(part.sources[:, 2].mean())) for views in groups
    )
    circles = [_is_circle(station.geometry) for station in stations]
    nearly_one = np.ptp(geometry.sources[:, 2]) <= MOST_RISE * geometry.source_to_isocenter_mm.min()
    return stations if (all(circles) if nearly_one else any(circles)) else whole


def at_one_height(geometry: ConeBeamGeometry) -> tuple[ConeBeamGeometry, Vectors]:
    """Return the views of all axial positions in the plane z = 0, and how far the sample had moved, mm, (view,).

    The sample moves against the scanner; its position in the first view is 0. A scan of one position stays as it is.
    """
    stations = stations_of(geometry)
    if len(stations) == 1:
        return geometry, np.zeros(geometry.views)
    heights = np.empty(geometry.views)
    for station in stations:
        heights[station.views] = station.height_mm
    along = np.stack([np.zeros_like(heights), np.zeros_like(heights), heights], axis=1)
    level = replace(
        geometry, sources=geometry.sources - along, detector_centres=geometry.detector_centres - along
    )
    return level, heights[0] - heights


def coverages(geometry: ConeBeamGeometry) -> tuple[Coverage, ...]:
    """Return what each axial position covers, an arc that is no short scan as a limited one."""
    return tuple(redundancy(station.geometry, limited_arc=True).coverage for station in stations_of(geometry))


def fitted_grid(geometry: ConeBeamGeometry, voxel_mm: float = 0.0) -> VolumeGrid:
    """Return the grid of cubic voxels around what a scan can reconstruct, of all its axial positions together.

    Parameters
    ----------
    voxel_mm
        As `ConeBeamGeometry.fitted_grid` takes it.

    Raises
    ------
    GeometryError
        As `ConeBeamGeometry.fitted_grid` does.
    """
    stations = stations_of(geometry)
    if len(stations) == 1:
        return geometry.fitted_grid(voxel_mm)
    narrowest = min((s.geometry.fitted_grid(voxel_mm) for s in stations), key=lambda grid: grid.shape_zyx[1])
    seen = [cylinder_seen(station.geometry.sources, station.geometry.corners()) for station in stations]
    low, high = min(each.low_mm for each in seen), max(each.high_mm for each in seen)
    edge, across = narrowest.voxel_mm_zyx[0], narrowest.shape_zyx[1]
    along = max(1, int((high - low) / edge + _INSIDE))
    return VolumeGrid((along, across, across), (edge, edge, edge), (0.0, 0.0, (low + high) / 2))


def in_field_of_view(geometry: ConeBeamGeometry, grid: VolumeGrid) -> NDArray[np.bool_]:
    """Return which voxels of any slice every view sees, of all axial positions, (y, x)."""
    seen = [cylinder_seen(station.geometry.sources, station.geometry.corners()) for station in stations_of(geometry)]
    distances = np.hypot(grid.x_mm[None, :], grid.y_mm[:, None])
    inside: NDArray[np.bool_] = distances <= min(each.radius_mm for each in seen)
    return inside


@dataclass(frozen=True, eq=False)
class Merging:
    """What each axial position counts for in a voxel.

    Attributes
    ----------
    heights_mm
        Of the positions, (position,).
    radii_mm
        Distances from the axis, ascending from 0 to the edge of the field of view, (radius,).
    low_mm, high_mm
        Least and largest z that all views of a position see at each distance, (position, radius).
    """

    heights_mm: Vectors
    radii_mm: Vectors
    low_mm: Vectors
    high_mm: Vectors

    @classmethod
    def of(cls, stations: tuple[Station, ...]) -> Merging:
        """Return the weights of these positions."""
        fields = [cylinder_seen(station.geometry.sources, station.geometry.corners()) for station in stations]
        radii = np.linspace(0.0, min(each.radius_mm for each in fields), _RADII)
        seen = [heights_seen(station.geometry, radii) for station in stations]
        return cls(
            np.array([station.height_mm for station in stations]),
            radii,
            np.stack([low for low, _ in seen]),
            np.stack([high for _, high in seen]),
        )

    def shares(self, z_mm: float) -> Vectors:
        """Return what each position counts for at a height, (position, radius); the sum over positions is 1.

        Above and below everything that is seen by all views, it is the nearest position alone.
        """
        inside = np.minimum(z_mm - self.low_mm, self.high_mm - z_mm)
        depths = np.maximum(inside, 0.0)
        total = depths.sum(axis=0)
        nearest = np.arange(len(inside))[:, None] == inside.argmax(axis=0)
        return np.where(total > 0, depths / np.where(total > 0, total, 1.0), nearest)

    def image(self, shares: Vectors, grid: VolumeGrid, lines: slice = slice(None)) -> NDArray[np.float32] | float:
        """Return the shares of a position, (radius,), in the voxels of a slice, (y, x); one number if all are equal.

        Parameters
        ----------
        lines
            Only of these.
        """
        if np.ptp(shares) == 0:
            return float(shares[0])
        radii = np.hypot(grid.y_mm[lines, None], grid.x_mm)
        return np.interp(radii, self.radii_mm, shares).astype(np.float32)

    def require_no_gap(self, grid: VolumeGrid) -> None:
        """Refuse a grid with voxels between the positions that none of them sees whole.

        Raises
        ------
        GeometryError
            The sentence says where, and which steps would have done.
        """
        reach = float(np.hypot(np.abs(grid.y_mm).max(), np.abs(grid.x_mm).max()))
        within = self.radii_mm <= max(reach, self.radii_mm[0])
        low, high = self.low_mm[:, within], self.high_mm[:, within]
        z = grid.z_mm[(grid.z_mm > low.min(axis=0).max()) & (grid.z_mm < high.max(axis=0).min())]
        slack = _INSIDE * grid.voxel_mm_zyx[0]
        seen = (z >= low[..., None] - slack) & (z <= high[..., None] + slack)
        missed = ~seen.any(axis=0).all(axis=0)
        if not missed.any():
            return
        first = float(z[missed][0])
        above = int(np.searchsorted(self.heights_mm, first))
        most = float((high - low).min())
        raise GeometryError(
            f"the axial positions leave a gap: at z = {first:.2f} mm, between the positions at "
            f"{self.heights_mm[max(above - 1, 0)]:.2f} and {self.heights_mm[min(above, len(self.heights_mm) - 1)]:.2f} "
            f"mm, the cone does not see all of the field of view; expected steps of at most {most:.2f} mm, or a "
            "narrower grid"
        )


def heights_seen(geometry: ConeBeamGeometry, radii_mm: Vectors) -> tuple[Vectors, Vectors]:
    """Return the least and the largest z that every view sees all around the axis at these distances from it, mm.

    Rays between the centres of the outermost rows count: beyond them a projection falls to 0.
    """
    half = (geometry.rows - 1) / 2 * geometry.row_steps
    across = geometry.columns / 2 * geometry.column_steps
    corners = np.stack(
        [[geometry.detector_centres + c * across + r * half for c in (-1, 1)] for r in (-1, 1)]
    ).transpose(2, 0, 1, 3)
    rays = corners - geometry.sources[:, None, None]
    distances = geometry.source_to_isocenter_mm
    inwards = -geometry.sources[:, :2] / distances[:, None]
    slopes = np.sort(rays[..., 2] / np.einsum("vrcj,vj->vrc", rays[..., :2], inwards), axis=1)
    lowest, highest = slopes[:, 0].max(axis=1), slopes[:, 1].min(axis=1)
    near, far = (distances[:, None] + sign * radii_mm for sign in (-1, 1))
    heights = geometry.sources[:, 2, None]
    low = heights + np.maximum(lowest[:, None] * near, lowest[:, None] * far)
    high = heights + np.minimum(highest[:, None] * near, highest[:, None] * far)
    return low.max(axis=0), high.min(axis=0)


def _levels(geometry: ConeBeamGeometry) -> list[NDArray[np.intp]]:
    """Return the views at each height of the detector, heights ascending."""
    heights = geometry.detector_centres[:, 2]
    row = np.median(np.linalg.norm(geometry.row_steps, axis=1) * geometry.isocentre_depths)
    order = np.argsort(heights, kind="stable")
    ends = np.flatnonzero(np.diff(heights[order]) > row / 2) + 1
    return [np.sort(group) for group in np.split(order, ends)]


def _is_circle(geometry: ConeBeamGeometry) -> bool:
    try:
        redundancy(geometry)
    except GeometryError:
        return False
    return True
