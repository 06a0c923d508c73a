"""The geometry of views from the attributes of their frames, by precedence.

Matrix, then vectors, then angles and distances, each of which may stand in several places (`places`): standard
attributes, private scalars, CT-PD, constants of a site. The first that every view has is taken; the others are compared
with it.

Angles are those of PS3.3 C.8.19.6.13.1: the isocentre system is that of the table (X to its left, Y down, Z to its
head), which is patient LPS for a patient who lies head first and supine. The central beam at primary angle α and
secondary angle β comes from ``SID (-sin α cos β, cos α cos β, -sin β)``; seen towards the source, columns run from
left to right and rows from top to bottom, and the detector rotation angle turns the detector clockwise. Other encodings
state theirs by scale and offset.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from reconstruct.geometry import ConeBeamGeometry, GeometryError
from reconstruct.projections.frames import ScanError
from reconstruct.projections.functional_groups import Attributes
from reconstruct.projections.places import Level, Place, Places
from reconstruct.projections.quantities import name_of, quantities, quantity

LARGEST_ANGLE_DEG = 0.1
LARGEST_SHIFT_PX = 0.5
"""Two descriptions of one view that differ by more are reported."""

_MATRICES = "projection matrices"
_VECTORS = "vectors"
ANGLES = "angles and distances"

Vectors = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class TakenGeometry:
    """The geometry taken, what it was taken from, and what disagrees with it.

    `knows_detector_distance` is False for matrices alone, which do not hold the distance of the detector. `origins`
    names the elements that angles and distances came from, empty for matrices and vectors.
    """

    geometry: ConeBeamGeometry
    taken_from: str
    disagreements: tuple[str, ...]
    knows_detector_distance: bool = True
    origins: str = ""


def geometry_of(views: Sequence[Attributes], places: Places) -> TakenGeometry:
    """Return the geometry of views, given the attributes of their frames and where an encoding keeps its numbers.

    Raises
    ------
    ScanError
        No complete description of the geometry; the sentence names the first quantity that is missing.
    """
    known: dict[str, ConeBeamGeometry] = {}
    missing = ""
    builders: dict[str, Callable[[], ConeBeamGeometry]] = {
        _MATRICES: lambda: _from_matrices(views, places),
        _VECTORS: lambda: _from_vectors(views),
        ANGLES: lambda: _from_angles(views, places),
    }
    for name, build in builders.items():
        try:
            known[name] = build()
        except _Missing as error:
            missing = str(error)
        except GeometryError as error:
            if not known:
                raise ScanError(f"the {name} of the views are impossible: {error}") from error
    if not known:
        raise ScanError(missing)
    taken_from, geometry = next(iter(known.items()))
    others = [(name, other) for name, other in known.items() if name != taken_from]
    differences = [_disagreement(geometry, taken_from, other, name) for name, other in others]
    if ANGLES in known:
        differences += _disagreeing_levels(views, places, known[ANGLES])
    told = taken_from != _MATRICES or _is_given(views[:1], places.source_to_detector)
    origins = _origins(views, places) if taken_from == ANGLES else ""
    return TakenGeometry(geometry, taken_from, tuple(text for text in differences if text), told, origins)


def _disagreeing_levels(views: Sequence[Attributes], places: Places, taken: ConeBeamGeometry) -> list[str]:
    """Compare the angles and distances taken with what lower levels of precedence say of the same views."""
    first = next(place.level for place in places.angle if views[0].get(place.keyword) is not None)
    told = []
    for level in Level:
        if level is first or not any(_is_given(views, quantity.of(level)) for quantity in places.all):
            continue
        try:
            other = _from_angles(views, places.preferring(level))
        except (_Missing, GeometryError):
            continue
        told.append(_disagreement(taken, str(first), other, str(level)))
    return told


def _origins(views: Sequence[Attributes], places: Places) -> str:
    """Say which element the angle, the distances and the pitch came from."""
    found = []
    for place in places.required:
        keyword = next((p.keyword for p in place if views[0].get(p.keyword) is not None), None)
        if keyword is not None:
            found.append(name_of(keyword))
    return ", ".join(found)


def _is_given(views: Sequence[Attributes], places: Sequence[Place]) -> bool:
    return any(attributes.get(place.keyword) is not None for attributes in views for place in places)


class _Missing(Exception):
    """A quantity that this way of describing the geometry needs and that a view lacks."""


def _numbers(
    views: Sequence[Attributes], places: Sequence[Place], size: int, what: str, default: float | None = None
) -> Vectors:
    """Return a quantity of each view, (view, size), from the first place in which the view has it."""
    rows = []
    for view, attributes in enumerate(views):
        place = next((p for p in places if attributes.get(p.keyword) is not None), None)
        if place is None:
            if default is None:
                names = ", ".join(name_of(p.keyword) for p in places)
                raise _Missing(f"{what} is missing in view {view + 1}: none of {names} is present")
            rows.append(np.full(size, default))
            continue
        values = quantities(attributes, place.keyword, size) or ()
        rows.append(place.scale * np.asarray(values) + place.offset)
    return np.stack(rows)


def _size(views: Sequence[Attributes]) -> tuple[int, int]:
    return int(views[0]["Rows"]), int(views[0]["Columns"])


def _from_matrices(views: Sequence[Attributes], places: Places) -> ConeBeamGeometry:
    matrices = _numbers(views, _private("ProjectionMatrix"), 12, "the projection matrix").reshape(-1, 3, 4)
    rows, columns = _size(views)
    place = next((p for p in places.source_to_detector if views[0].get(p.keyword) is not None), None)
    distance = None if place is None else quantity(views[0], place.keyword)
    return ConeBeamGeometry.from_matrices(matrices, rows=rows, columns=columns, source_to_detector_mm=distance)


def _from_vectors(views: Sequence[Attributes]) -> ConeBeamGeometry:
    rows, columns = _size(views)
    return ConeBeamGeometry.from_vectors(
        _numbers(views, _private("SourcePosition"), 3, "the source position"),
        _numbers(views, _private("DetectorCentre"), 3, "the detector centre"),
        _numbers(views, _private("ColumnStep"), 3, "the column step"),
        _numbers(views, _private("RowStep"), 3, "the row step"),
        rows=rows,
        columns=columns,
    )


def _private(keyword: str) -> tuple[Place, ...]:
    return (Place(keyword, Level.PRIVATE),)


def _from_angles(views: Sequence[Attributes], places: Places) -> ConeBeamGeometry:
    """Build the vectors from angles and distances; see the module for the conventions."""
    rows, columns = _size(views)
    primary = np.deg2rad(_numbers(views, places.angle, 1, "the angle of the view")[:, 0])
    secondary = np.deg2rad(_numbers(views, places.secondary_angle, 1, "", 0.0)[:, 0])
    source_to_isocentre = _numbers(views, places.source_to_isocentre, 1, "the source to isocentre distance")
    source_to_detector = _numbers(views, places.source_to_detector, 1, "the source to detector distance")
    pitches = _numbers(views, places.pitch, 2, "the detector pitch")
    sine, cosine = np.sin(primary), np.cos(primary)
    towards_source = np.stack(
        [-sine * np.cos(secondary), cosine * np.cos(secondary), -np.sin(secondary)], axis=1
    )
    right = np.stack([cosine, sine, np.zeros_like(sine)], axis=1)
    right, up = _turned(right, np.cross(right, towards_source), towards_source, views, places)
    if any(_is_flipped(attributes) for attributes in views) != places.seen_from_source:
        right = -right
    column_steps, row_steps = right * pitches[:, 1:], (up if places.rows_up else -up) * pitches[:, :1]
    column, row = _principal_point(views, places, rows, columns).T
    along_axis = np.stack([np.zeros_like(sine), np.zeros_like(sine), -_sample_travel(views, places)], axis=1)
    centres = (
        (source_to_isocentre - source_to_detector) * towards_source
        + ((columns - 1) / 2 - column)[:, None] * column_steps
        + ((rows - 1) / 2 - row)[:, None] * row_steps
    )
    return ConeBeamGeometry.from_vectors(
        _focal_spots(views, towards_source, source_to_isocentre) + along_axis,
        centres + along_axis,
        column_steps,
        row_steps,
        rows=rows,
        columns=columns,
    )


def _focal_spots(views: Sequence[Attributes], towards_source: Vectors, distances: Vectors) -> Vectors:
    """Return the focal spots about the isocentre, shifted where the spot flies: radially, in angle, along the axis."""
    spots: Vectors = distances * towards_source
    if not any("FocalSpotShift" in attributes for attributes in views):
        return spots
    shifts = _numbers(views, (Place("FocalSpotShift"),), 3, "", 0.0)
    axes = np.broadcast_to([0.0, 0.0, 1.0], spots.shape)
    spots = _rotated((distances + shifts[:, :1]) * towards_source, axes, shifts[:, 1])
    spots += shifts[:, 2:] * axes
    return spots


def _turned(
    right: Vectors, up: Vectors, towards_source: Vectors, views: Sequence[Attributes], places: Places
) -> tuple[Vectors, Vectors]:
    """Turn the detector's axes by its three tilts; a rotation angle of the standard goes before the third."""
    tilts = _numbers(views, places.tilt, 3, "", 0.0)
    if _is_given(views, places.turn):
        tilts[:, 2] = _numbers(views, places.turn, 1, "", 0.0)[:, 0]
    for axis, angles in ((towards_source, tilts[:, 2]), (right, tilts[:, 0]), (up, tilts[:, 1])):
        right, up = (_rotated(vectors, axis, np.deg2rad(angles)) for vectors in (right, up))
    return right, up


def _rotated(vectors: Vectors, axes: Vectors, angles: Vectors) -> Vectors:
    """Rotate each vector about its unit axis, counter-clockwise seen against the axis (Rodrigues' formula)."""
    sine, cosine = np.sin(angles)[:, None], np.cos(angles)[:, None]
    along = np.sum(axes * vectors, axis=1, keepdims=True) * axes
    rotated: Vectors = vectors * cosine + np.cross(axes, vectors) * sine + along * (1 - cosine)
    return rotated


def _is_flipped(attributes: Attributes) -> bool:
    return attributes.get("FieldOfViewHorizontalFlip") == "YES"


def _principal_point(views: Sequence[Attributes], places: Places, rows: int, columns: int) -> Vectors:
    """Return where the central ray meets the image, (view, 2) as column, row, 0-based; the middle when not given."""
    points = []
    for attributes in views:
        if int(attributes.get("FieldOfViewRotation") or 0) % 360:
            raise _Missing(
                f"images turned by a Field of View Rotation (0018,7032) of {attributes['FieldOfViewRotation']} degrees "
                "need projection matrices or vectors (0071,xx12) to (0071,xx15)"
            )
        place = next((p for p in places.principal_point if attributes.get(p.keyword) is not None), None)
        if place is None:
            points.append(((columns - 1) / 2, (rows - 1) / 2))
        elif place.keyword == "PositionOfIsocenterProjection":
            column, row = _isocentre_projection(attributes)
            points.append((columns - 1 - column if _is_flipped(attributes) else column, row))
        else:
            column, row = quantities(attributes, place.keyword, 2) or (0.0, 0.0)
            points.append((place.scale * column + place.offset, place.scale * row + place.offset))
    return np.asarray(points, dtype=np.float64)


def _isocentre_projection(attributes: Attributes) -> tuple[float, float]:
    """Return the column and row of Position of Isocenter Projection (0018,9430).

    It counts elements of the physical detector, row before column; Field of View Origin and the ratio of image pitch to
    element pitch (binning) lead from there to the image.
    """
    point = np.asarray(quantities(attributes, "PositionOfIsocenterProjection", 2))
    origin = np.asarray(quantities(attributes, "FieldOfViewOrigin", 2) or (0.0, 0.0))
    element_pitch = quantities(attributes, "DetectorElementSpacing", 2, above=0)
    pixel_pitch = quantities(attributes, "ImagerPixelSpacing", 2, above=0)
    # Where only one pitch is given, pixels are detector elements.
    binning = np.asarray(pixel_pitch) / np.asarray(element_pitch) if pixel_pitch and element_pitch else 1.0
    row, column = (point - origin + 0.5) / binning - 0.5
    return float(column), float(row)


def _sample_travel(views: Sequence[Attributes], places: Places) -> Vectors:
    """Return how far the sample moved along z since the first view, mm, (view,)."""
    positions = _numbers(views, places.travel, 1, "", 0.0)[:, 0]
    travel: Vectors = positions - positions[0]
    return travel


def _disagreement(geometry: ConeBeamGeometry, name: str, other: ConeBeamGeometry, other_name: str) -> str:
    """Return a sentence on how far two descriptions of the views differ, empty when they agree.

    Where the scan stands along the axis is not compared: angles and distances count from their first view.
    """
    rise = np.array([0.0, 0.0, float(np.mean(geometry.sources[:, 2] - other.sources[:, 2]))])
    far = difference(
        geometry, replace(other, sources=other.sources + rise, detector_centres=other.detector_centres + rise)
    )
    return f"{name} were taken; {other_name} differ from them by up to {far}" if far else ""


def difference(geometry: ConeBeamGeometry, other: ConeBeamGeometry) -> str:
    """Return how far two geometries of the same views differ at most, in words, empty when they agree."""
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
    return f"{angle:.2f} degrees and {shift:.1f} pixels"


def _seen(matrices: Vectors, points: Vectors) -> Vectors:
    projected = np.einsum("vij,pj->vpi", matrices, points)
    pixels: Vectors = projected[..., :2] / projected[..., 2:]
    return pixels
