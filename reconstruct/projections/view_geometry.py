"""The geometry of views from the attributes of their frames, by precedence.

Matrix, then vectors, then angles and distances (standard attributes, each with its private counterpart behind it).
The first that every view has is taken; the others are compared with it.

Standard attributes follow PS3.3 C.8.19.6.13.1: the isocentre system is that of the table (X to its left, Y down, Z to
its head), which is patient LPS for a patient who lies head first and supine. The central beam at primary angle α and
secondary angle β comes from ``SID (-sin α cos β, cos α cos β, -sin β)``; seen towards the source, columns run from
left to right and rows from top to bottom, and the detector rotation angle turns the detector clockwise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reconstruct.geometry import ConeBeamGeometry, GeometryError
from reconstruct.projections import elements
from reconstruct.projections.frames import ScanError
from reconstruct.projections.functional_groups import Attributes
from reconstruct.projections.quantities import quantities, quantity

LARGEST_ANGLE_DEG = 0.1
LARGEST_SHIFT_PX = 0.5
"""Two descriptions of one view that differ by more are reported."""

_MATRICES = "projection matrices"

Vectors = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class TakenGeometry:
    """The geometry taken, what it was taken from, and what disagrees with it.

    `knows_detector_distance` is False for matrices alone, which do not hold the distance of the detector.
    """

    geometry: ConeBeamGeometry
    taken_from: str
    disagreements: tuple[str, ...]
    knows_detector_distance: bool = True


def geometry_of(views: Sequence[Attributes]) -> TakenGeometry:
    """Return the geometry of views, given the attributes of their frames.

    Raises
    ------
    ScanError
        No complete description of the geometry; the sentence names the first quantity that is missing.
    """
    known: dict[str, ConeBeamGeometry] = {}
    missing = ""
    for name, build in _SOURCES.items():
        try:
            known[name] = build(views)
        except _Missing as error:
            missing = str(error)
        except GeometryError as error:
            if not known:
                raise ScanError(f"the {name} of the views are impossible: {error}") from error
    if not known:
        raise ScanError(missing)
    taken_from, geometry = next(iter(known.items()))
    others = [(name, other) for name, other in known.items() if name != taken_from]
    differences = (_difference(geometry, taken_from, other, name) for name, other in others)
    told = taken_from != _MATRICES or views[0].get("DistanceSourceToDetector") is not None
    return TakenGeometry(geometry, taken_from, tuple(text for text in differences if text), told)


class _Missing(Exception):
    """A quantity that this way of describing the geometry needs and that a view lacks."""


def _numbers(
    views: Sequence[Attributes], keywords: tuple[str, ...], size: int, what: str, default: float | None = None
) -> Vectors:
    """Return a quantity of each view, (view, size), from the first keyword that the view has."""
    rows = []
    for view, attributes in enumerate(views):
        keyword = next((k for k in keywords if attributes.get(k) is not None), None)
        if keyword is None:
            if default is None:
                raise _Missing(f"{what} is missing in view {view + 1}: none of {_tags(keywords)} is present")
            rows.append(np.full(size, default))
            continue
        value = np.atleast_1d(np.asarray(attributes[keyword], dtype=np.float64))
        if value.shape != (size,):
            raise ScanError(f"{what} of view {view + 1} has {value.size} values, expected {size}")
        rows.append(value)
    return np.stack(rows)


_TAGS = {
    "PositionerIsocenterPrimaryAngle": "(0018,9463)",
    "DistanceSourceToIsocenter": "(0018,9402)",
    "DistanceSourceToDetector": "(0018,1110)",
    "ImagerPixelSpacing": "(0018,1164)",
    "DetectorElementSpacing": "(0018,7022)",
}


def _tags(keywords: Sequence[str]) -> str:
    known: Mapping[str, str] = _TAGS | {keyword: e.label for keyword, e in elements.ELEMENTS.items()}
    return ", ".join(known[keyword] for keyword in keywords)


def _size(views: Sequence[Attributes]) -> tuple[int, int]:
    return int(views[0]["Rows"]), int(views[0]["Columns"])


def _from_matrices(views: Sequence[Attributes]) -> ConeBeamGeometry:
    matrices = _numbers(views, ("ProjectionMatrix",), 12, "the projection matrix").reshape(-1, 3, 4)
    rows, columns = _size(views)
    distance = quantity(views[0], "DistanceSourceToDetector")
    return ConeBeamGeometry.from_matrices(matrices, rows=rows, columns=columns, source_to_detector_mm=distance)


def _from_vectors(views: Sequence[Attributes]) -> ConeBeamGeometry:
    rows, columns = _size(views)
    return ConeBeamGeometry.from_vectors(
        _numbers(views, ("SourcePosition",), 3, "the source position"),
        _numbers(views, ("DetectorCentre",), 3, "the detector centre"),
        _numbers(views, ("ColumnStep",), 3, "the column step"),
        _numbers(views, ("RowStep",), 3, "the row step"),
        rows=rows,
        columns=columns,
    )


def _from_angles(views: Sequence[Attributes]) -> ConeBeamGeometry:
    """Build the vectors from angles and distances; see the module for the conventions."""
    rows, columns = _size(views)
    primary = np.deg2rad(
        _numbers(views, ("PositionerIsocenterPrimaryAngle", "ViewAngle"), 1, "the angle of the view")[:, 0]
    )
    secondary = np.deg2rad(_numbers(views, ("PositionerIsocenterSecondaryAngle",), 1, "", 0.0)[:, 0])
    source_to_isocentre = _numbers(views, ("DistanceSourceToIsocenter",), 1, "the source to isocentre distance")
    source_to_detector = _numbers(views, ("DistanceSourceToDetector",), 1, "the source to detector distance")
    pitches = _numbers(views, ("ImagerPixelSpacing", "DetectorElementSpacing"), 2, "the detector pitch")
    sine, cosine = np.sin(primary), np.cos(primary)
    towards_source = np.stack(
        [-sine * np.cos(secondary), cosine * np.cos(secondary), -np.sin(secondary)], axis=1
    )
    right = np.stack([cosine, sine, np.zeros_like(sine)], axis=1)
    right, up = _turned(right, np.cross(right, towards_source), towards_source, views)
    if any(attributes.get("FieldOfViewHorizontalFlip") == "YES" for attributes in views):
        right = -right
    column_steps, row_steps = right * pitches[:, 1:], -up * pitches[:, :1]
    column, row = _principal_point(views, rows, columns).T
    along_axis = np.stack([np.zeros_like(sine), np.zeros_like(sine), -_sample_travel(views)], axis=1)
    centres = (
        (source_to_isocentre - source_to_detector) * towards_source
        + ((columns - 1) / 2 - column)[:, None] * column_steps
        + ((rows - 1) / 2 - row)[:, None] * row_steps
    )
    return ConeBeamGeometry.from_vectors(
        source_to_isocentre * towards_source + along_axis,
        centres + along_axis,
        column_steps,
        row_steps,
        rows=rows,
        columns=columns,
    )


def _turned(
    right: Vectors, up: Vectors, towards_source: Vectors, views: Sequence[Attributes]
) -> tuple[Vectors, Vectors]:
    """Turn the detector's axes by its rotation angle, or by the three private tilts, in that order of precedence."""
    turn = _numbers(views, ("PositionerIsocenterDetectorRotationAngle",), 1, "", 0.0)[:, 0]
    tilts = np.zeros((len(views), 3))
    if all(view.get("PositionerIsocenterDetectorRotationAngle") is None for view in views):
        tilts = _numbers(views, ("DetectorTilt",), 3, "", 0.0)
    for axis, angles in ((towards_source, turn + tilts[:, 2]), (right, tilts[:, 0]), (up, tilts[:, 1])):
        right, up = (_rotated(vectors, axis, np.deg2rad(angles)) for vectors in (right, up))
    return right, up


def _rotated(vectors: Vectors, axes: Vectors, angles: Vectors) -> Vectors:
    """Rotate each vector about its unit axis, counter-clockwise seen against the axis (Rodrigues' formula)."""
    sine, cosine = np.sin(angles)[:, None], np.cos(angles)[:, None]
    along = np.sum(axes * vectors, axis=1, keepdims=True) * axes
    rotated: Vectors = vectors * cosine + np.cross(axes, vectors) * sine + along * (1 - cosine)
    return rotated


def _principal_point(views: Sequence[Attributes], rows: int, columns: int) -> Vectors:
    """Return where the central ray meets the image, (view, 2) as column, row, 0-based; the middle when not given.

    Position of Isocenter Projection counts elements of the physical detector, row before column; Field of View Origin
    and the ratio of image pitch to element pitch (binning) lead from there to the image.
    """
    points = []
    for attributes in views:
        flip = attributes.get("FieldOfViewHorizontalFlip") == "YES"
        if int(attributes.get("FieldOfViewRotation") or 0) % 360:
            raise _Missing(
                f"images turned by a Field of View Rotation (0018,7032) of {attributes['FieldOfViewRotation']} degrees "
                "need projection matrices or vectors (0071,xx12) to (0071,xx15)"
            )
        point = quantities(attributes, "PositionOfIsocenterProjection", 2)
        if point is not None:
            origin = np.asarray(quantities(attributes, "FieldOfViewOrigin", 2) or (0.0, 0.0))
            element_pitch = quantities(attributes, "DetectorElementSpacing", 2, above=0)
            pixel_pitch = quantities(attributes, "ImagerPixelSpacing", 2, above=0)
            # Where only one pitch is given, pixels are detector elements.
            binning = np.asarray(pixel_pitch) / np.asarray(element_pitch) if pixel_pitch and element_pitch else 1.0
            row, column = (np.asarray(point) - origin + 0.5) / binning - 0.5
            points.append((columns - 1 - column if flip else column, row))
        else:
            column, row = quantities(attributes, "PrincipalPoint", 2) or ((columns - 1) / 2, (rows - 1) / 2)
            points.append((column, row))
    return np.asarray(points, dtype=np.float64)


def _sample_travel(views: Sequence[Attributes]) -> Vectors:
    """Return how far the sample moved along z since the first view, mm, (view,)."""
    keywords = ("TableZPositionToIsocenter", "TablePosition", "AxialSamplePosition")
    positions = _numbers(views, keywords, 1, "", 0.0)[:, 0]
    travel: Vectors = positions - positions[0]
    return travel


_SOURCES: Mapping[str, Callable[[Sequence[Attributes]], ConeBeamGeometry]] = {
    _MATRICES: _from_matrices,
    "vectors": _from_vectors,
    "angles and distances": _from_angles,
}


def _difference(geometry: ConeBeamGeometry, name: str, other: ConeBeamGeometry, other_name: str) -> str:
    """Return a sentence on how far two geometries differ, empty when they agree."""
    turn = np.abs(np.angle(np.exp(1j * (geometry.view_angles_rad - other.view_angles_rad))))
    angle = float(np.rad2deg(turn.max()))
    # A box of the size of the detector, scaled to the isocentre: where its corners are seen tells the rest.
    half = 0.25 * geometry.columns * float(np.linalg.norm(geometry.column_steps[0]) * geometry.isocentre_depths[0])
    corners = half * np.array([(x, y, z) for x in (-1, 0, 1) for y in (-1, 0, 1) for z in (-0.5, 0, 0.5)])
    points = np.concatenate([corners, np.ones((len(corners), 1))], axis=1)
    seen = [_seen(g.projection_matrices(), points) for g in (geometry, other)]
    shift = float(np.linalg.norm(seen[0] - seen[1], axis=-1).max())
    if angle <= LARGEST_ANGLE_DEG and shift <= LARGEST_SHIFT_PX:
        return ""
    return f"{name} were taken; {other_name} differ from them by up to {angle:.2f} degrees and {shift:.1f} pixels"


def _seen(matrices: Vectors, points: Vectors) -> Vectors:
    projected = np.einsum("vij,pj->vpi", matrices, points)
    pixels: Vectors = projected[..., :2] / projected[..., 2:]
    return pixels
