"""Where the source and the detector stand in each view of a scan.

Scan frame: right-handed, mm; z is the rotation axis, the origin is the isocentre, the axes are patient LPS (x left,
y posterior, z head). A cone-beam geometry is four vectors a view, so that offsets, tilts and measured trajectories
need no special case::

                     row_step (v)
                        |   detector_centre
      source  * - - - - o - - + - - o      a pixel (column, row) lies at
                        |   .     |        detector_centre + (column - (columns-1)/2) column_step
                        o - - - - o                        + (row    - (rows-1)/2)    row_step
                          column_step (u)

Nothing here assumes that columns grow with the view angle, or rows with z.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reconstruct.field_of_view import cylinder_seen
from reconstruct.grid import GeometryError, VolumeGrid
from reconstruct.projection_matrix import PixelVectors, compose, decompose

__all__ = ["ConeBeamGeometry", "GeometryError", "VolumeGrid"]

Vectors = NDArray[np.float64]

_FLAT = 1e-6
"""Sine of the smallest angle between two directions that must not be parallel."""

_PARALLEL = 1e-6
"""Largest angle, rad, between row step and axis that counts as parallel: 1/1000 pixel on 1000 rows."""


@dataclass(frozen=True, eq=False)
class ConeBeamGeometry:
    """Source and flat detector of every view; immutable, validated once.

    Attributes
    ----------
    sources
        Focal spots, (view, 3), mm.
    detector_centres
        Centres of the detector's area, that is the mean of its pixel centres, (view, 3), mm.
    column_steps
        From one column to the next (u), (view, 3), mm.
    row_steps
        From one row to the next (v), (view, 3), mm.
    rows, columns
        Size of the detector, pixels.

    Raises
    ------
    GeometryError
        Wrong shapes, numbers that are not finite, a detector without area or seen edge-on, an isocentre that is
        not in front of the source.
    """

    sources: Vectors
    detector_centres: Vectors
    column_steps: Vectors
    row_steps: Vectors
    rows: int
    columns: int

    def __post_init__(self) -> None:
        if self.rows < 1 or self.columns < 1:
            raise GeometryError(f"expected at least 1 row and 1 column, got {self.rows} and {self.columns}")
        views = max(1, len(np.atleast_1d(self.sources)))
        for name in ("sources", "detector_centres", "column_steps", "row_steps"):
            array = np.array(getattr(self, name), dtype=np.float64)
            if array.shape != (views, 3):
                raise GeometryError(f"expected {name} of shape ({views}, 3), got {array.shape}")
            if not np.isfinite(array).all():
                view = int(np.argmin(np.isfinite(array).all(axis=1)))
                raise GeometryError(f"{name} of view {view} are not finite: {array[view].tolist()}")
            array.setflags(write=False)
            object.__setattr__(self, name, array)
        self._refuse_degenerate()

    def _refuse_degenerate(self) -> None:
        area = np.linalg.norm(np.cross(self.column_steps, self.row_steps), axis=1)
        pitches = np.linalg.norm(self.column_steps, axis=1) * np.linalg.norm(self.row_steps, axis=1)
        if (flat := area <= _FLAT * pitches).any():
            view = int(np.argmax(flat))
            raise GeometryError(
                f"view {view}: column step {self.column_steps[view].tolist()} and row step "
                f"{self.row_steps[view].tolist()} span no area"
            )
        reach = np.linalg.norm(self.detector_centres - self.sources, axis=1)
        height = self.source_to_detector_mm
        if (edge_on := height <= _FLAT * reach).any():
            view = int(np.argmax(edge_on))
            raise GeometryError(
                f"view {view}: the source lies in the detector's plane, {height[view]:g} mm from it and "
                f"{reach[view]:g} mm from its centre"
            )
        if (behind := self.isocentre_depths <= _FLAT).any():
            view = int(np.argmax(behind))
            raise GeometryError(
                f"view {view}: the isocentre is not in front of the source at {self.sources[view].tolist()}, "
                f"whose detector is at {self.detector_centres[view].tolist()}"
            )

    @classmethod
    def circular(
        cls,
        *,
        source_to_isocenter_mm: float,
        source_to_detector_mm: float,
        view_angles_rad: ArrayLike,
        rows: int,
        columns: int,
        row_pitch_mm: float,
        column_pitch_mm: float,
        principal_point_px: tuple[float, float] | None = None,
    ) -> ConeBeamGeometry:
        """Return the geometry of a circle around z.

        At angle φ the source is at ``SID (cos φ, sin φ, 0)``, columns step along ``(-sin φ, cos φ, 0)`` and rows
        along z. Positioner Isocenter Primary Angle (0018,9463) is φ - 90° (PS3.3 C.8.19.6.13).

        Parameters
        ----------
        source_to_isocenter_mm, source_to_detector_mm
            Radius of the circle, and perpendicular distance from the source to the detector.
        view_angles_rad
            φ of every view, in any order, (view,).
        rows, columns
            Size of the detector, pixels.
        row_pitch_mm, column_pitch_mm
            From a row, or column, to the next on the detector; negative where the index runs the other way.
        principal_point_px
            (column, row), 0-based, where the ray through the isocentre meets the detector; None: its centre.
        """
        if not (source_to_isocenter_mm > 0 and source_to_detector_mm > 0):
            raise GeometryError(
                f"expected distances above 0 mm, got {source_to_isocenter_mm} from source to isocentre and "
                f"{source_to_detector_mm} to detector"
            )
        angles = np.asarray(view_angles_rad, dtype=np.float64).reshape(-1)
        zeros = np.zeros_like(angles)
        radial = np.stack([np.cos(angles), np.sin(angles), zeros], axis=1)
        column_steps = column_pitch_mm * np.stack([-np.sin(angles), np.cos(angles), zeros], axis=1)
        row_steps = np.broadcast_to([0.0, 0.0, row_pitch_mm], radial.shape)
        middle = ((columns - 1) / 2, (rows - 1) / 2)
        column, row = middle if principal_point_px is None else principal_point_px
        shift = (middle[0] - column) * column_steps + (middle[1] - row) * row_steps
        centres = (source_to_isocenter_mm - source_to_detector_mm) * radial + shift
        return cls(source_to_isocenter_mm * radial, centres, column_steps, row_steps, rows, columns)

    @classmethod
    def from_vectors(
        cls,
        sources: ArrayLike,
        detector_centres: ArrayLike,
        column_steps: ArrayLike,
        row_steps: ArrayLike,
        *,
        rows: int,
        columns: int,
    ) -> ConeBeamGeometry:
        """Return the geometry of measured vectors, each (view, 3), mm; the class says what they mean."""
        return cls(
            np.asarray(sources, dtype=np.float64),
            np.asarray(detector_centres, dtype=np.float64),
            np.asarray(column_steps, dtype=np.float64),
            np.asarray(row_steps, dtype=np.float64),
            rows,
            columns,
        )

    @classmethod
    def from_matrices(
        cls, matrices: ArrayLike, *, rows: int, columns: int, source_to_detector_mm: float | None = None
    ) -> ConeBeamGeometry:
        """Return the geometry of projection matrices of any sign and scale, mm to (column, row), (view, 3, 4).

        A matrix does not hold the distance of the detector, and no reconstruction depends on it: it is
        `source_to_detector_mm` measured perpendicular to the detector, or else the detector is put through the
        isocentre. The isocentre is taken to lie in front of the source.
        """
        vectors = decompose(np.asarray(matrices, dtype=np.float64), source_to_detector_mm)
        sources, first_pixels, column_steps, row_steps = vectors
        centres = first_pixels + (columns - 1) / 2 * column_steps + (rows - 1) / 2 * row_steps
        return cls(sources, centres, column_steps, row_steps, rows, columns)

    @property
    def views(self) -> int:
        """Number of views."""
        return len(self.sources)

    @property
    def source_to_isocenter_mm(self) -> Vectors:
        """Distance from the source to the rotation axis, mm, (view,)."""
        return np.asarray(np.hypot(self.sources[:, 0], self.sources[:, 1]))

    @property
    def source_to_detector_mm(self) -> Vectors:
        """Perpendicular distance from the source to the detector's plane, mm, (view,)."""
        normals = np.cross(self.column_steps, self.row_steps)
        along = np.sum(normals * (self.detector_centres - self.sources), axis=1)
        return np.asarray(np.abs(along) / np.linalg.norm(normals, axis=1))

    @property
    def view_angles_rad(self) -> Vectors:
        """φ of every source in the xy plane, -π to π, (view,)."""
        return np.asarray(np.arctan2(self.sources[:, 1], self.sources[:, 0]))

    @property
    def isocentre_depths(self) -> Vectors:
        """Depth of the isocentre as a fraction of the detector's, (view,): 0 at the source, 1 on the detector."""
        normals = np.cross(self.column_steps, self.row_steps)
        to_detector = np.sum(normals * (self.detector_centres - self.sources), axis=1)
        return np.asarray(np.sum(normals * -self.sources, axis=1) / to_detector)

    @property
    def rows_step_along_axis(self) -> bool:
        """Whether rows step parallel to z in every view.

        Then the column that a voxel projects to does not depend on its z, wherever source and columns are.
        """
        across = np.hypot(self.row_steps[:, 0], self.row_steps[:, 1])
        return bool((across <= _PARALLEL * np.abs(self.row_steps[:, 2])).all())

    def first_pixels(self) -> Vectors:
        """Return the centre of pixel (column 0, row 0) of every view, mm, (view, 3)."""
        return self._at(-(self.columns - 1) / 2, -(self.rows - 1) / 2)

    def corners(self) -> Vectors:
        """Return the corners of the detector's area, half a pixel outside of the pixel centres, (view, 2, 2, 3), mm.

        Axis 1 counts the ends of the columns, axis 2 those of the rows.
        """
        half = (self.columns / 2, self.rows / 2)
        ends = np.stack([[self._at(c, r) for c in (-half[0], half[0])] for r in (-half[1], half[1])])
        return np.asarray(np.moveaxis(ends, 2, 0))

    def projection_matrices(self) -> Vectors:
        """Return the matrices that map ``(x, y, z, 1)``, mm, to ``t (column, row, 1)``, (view, 3, 4).

        t is the depth of the point as a fraction of the detector's: 0 at the source, 1 on the detector.
        """
        return compose(PixelVectors(self.sources, self.first_pixels(), self.column_steps, self.row_steps))

    def select(self, view_indices: ArrayLike | slice) -> ConeBeamGeometry:
        """Return the geometry of some of the views, named by integers, a mask or a slice."""
        chosen = view_indices if isinstance(view_indices, slice) else np.asarray(view_indices)
        vectors = (self.sources, self.detector_centres, self.column_steps, self.row_steps)
        source, centre, column_step, row_step = (vector[chosen] for vector in vectors)
        return ConeBeamGeometry(source, centre, column_step, row_step, self.rows, self.columns)

    def extended(self, before: int, after: int) -> ConeBeamGeometry:
        """Return the same with so many more columns before the first and behind the last one."""
        if not (before or after):
            return self
        centres = self.detector_centres + (after - before) / 2 * self.column_steps
        columns = self.columns + before + after
        return ConeBeamGeometry(self.sources, centres, self.column_steps, self.row_steps, self.rows, columns)

    def band(self, first: int, end: int) -> ConeBeamGeometry:
        """Return the same with the rows `first` to `end` (exclusive) of the detector only."""
        if not 0 <= first < end <= self.rows:
            raise GeometryError(f"expected a band within rows 0 to {self.rows}, got {first} to {end}")
        centres = self.detector_centres + ((first + end) / 2 - self.rows / 2) * self.row_steps
        return ConeBeamGeometry(self.sources, centres, self.column_steps, self.row_steps, end - first, self.columns)

    def fitted_grid(self, voxel_mm: float = 0.0) -> VolumeGrid:
        """Return the grid of cubic voxels around the cylinder about z that can be reconstructed; see `cylinder_seen`.

        Parameters
        ----------
        voxel_mm
            Edge of a voxel; 0: the smaller of the two detector pitches, scaled to the isocentre.

        Raises
        ------
        GeometryError
            No such cylinder (a view does not see the axis), or an edge that is not a length.
        """
        if not 0 <= voxel_mm < np.inf:
            raise GeometryError(f"expected a voxel edge of 0 mm or more, got {voxel_mm}")
        seen = cylinder_seen(self.sources, self.corners())
        pitches = np.minimum(
            np.linalg.norm(self.column_steps, axis=1), np.linalg.norm(self.row_steps, axis=1)
        )
        edge = voxel_mm or float(np.median(pitches * self.isocentre_depths))
        # The tolerance keeps rounding from costing a voxel where the field is a whole number of them.
        across = max(1, int(2 * seen.radius_mm / edge + 1e-6))
        along = max(1, int((seen.high_mm - seen.low_mm) / edge + 1e-6))
        middle = (seen.low_mm + seen.high_mm) / 2
        return VolumeGrid((along, across, across), (edge, edge, edge), (0.0, 0.0, middle))

    def _at(self, columns: float, rows: float) -> Vectors:
        """Points that many columns and rows from the detector's centre, mm, (view, 3)."""
        return np.asarray(self.detector_centres + columns * self.column_steps + rows * self.row_steps)
