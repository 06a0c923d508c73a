"""Scans of several tiles: which frames are of which, where each lies, and the geometry of the virtual detector.

A frame says by Tile Origin (0071,xx30), pixels of the virtual detector, or by Camera Position (0071,xx1A), mm along its
columns and rows, which tile it is. Its geometry is that of its own pixels, and then moves with the tile; or it is the
same for all tiles of a view. Then it describes the virtual detector where there are tile origins, and the camera at
position 0 where there are camera positions. Anything else contradicts itself and is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from reconstruct.corrections.tiles import VirtualDetector
from reconstruct.geometry import ConeBeamGeometry
from reconstruct.projections.frames import ScanError
from reconstruct.projections.functional_groups import Attributes
from reconstruct.projections.quantities import name_of, quantities
from reconstruct.projections.roles import RoledFrame
from reconstruct.projections.view_geometry import LARGEST_ANGLE_DEG, LARGEST_SHIFT_PX, difference

_SAME_MM, _SAME_PX = 0.01, 0.1
"""Places that differ by no more are one: encoders tremble."""

_ORIGIN, _CAMERA = "TileOrigin", "CameraPosition"

Vectors = NDArray[np.float64]


@dataclass(frozen=True)
class TilePlace:
    """Where a frame says that its tile lies: (column, row), in pixels or mm; None where it does not say."""

    origin_px: tuple[float, float] | None = None
    camera_mm: tuple[float, float] | None = None

    def is_near(self, other: TilePlace) -> bool:
        """Whether both are the same tile."""
        return _near(self.origin_px, other.origin_px, _SAME_PX) and _near(self.camera_mm, other.camera_mm, _SAME_MM)

    def fits(self, told: TilePlace) -> bool:
        """Whether a frame that tells so much, or less, is of this tile; one that tells nothing is of any."""
        return (told.origin_px is None or _near(self.origin_px, told.origin_px, _SAME_PX)) and (
            told.camera_mm is None or _near(self.camera_mm, told.camera_mm, _SAME_MM)
        )

    def __str__(self) -> str:
        if self.origin_px is not None:
            return "the tile at column {:g}, row {:g}".format(*self.origin_px)
        if self.camera_mm is None:
            return "the tile without a place"
        column, row = self.camera_mm
        return f"the tile at camera position {column:g} mm" + (f", {row:g} mm along the rows" if row else "")


@dataclass(frozen=True, eq=False)
class TileFrames:
    """The frames of one tile, of each energy bin; `place` is empty where the scan has no tiles."""

    place: TilePlace
    views: list[list[RoledFrame]]
    flats: list[list[RoledFrame]]
    darks: list[list[RoledFrame]]


def split_by_tile(by_bin: Mapping[str, list[list[RoledFrame]]]) -> list[TileFrames]:
    """Divide the frames of each role and bin by the tile that they are of; flats and darks of no tile serve all.

    Raises
    ------
    ScanError
        A tile that one of the energy bins lacks, or that lacks the flat or dark frames that others have.
    """
    places: list[TilePlace] = []
    for frame in by_bin["PROJECTION"][0]:
        place = place_of(frame.attributes)
        if not any(place.is_near(known) for known in places):
            places.append(place)
    if len(places) == 1:
        return [TileFrames(TilePlace(), by_bin["PROJECTION"], by_bin["FLAT"], by_bin["DARK"])]
    _check_places(places)
    views = [_grouped(group, places, "views") for group in by_bin["PROJECTION"]]
    flats = [_grouped(group, places, "flat fields") for group in by_bin["FLAT"]]
    darks = [_grouped(group, places, "dark frames") for group in by_bin["DARK"]]
    return [
        TileFrames(place, *([of_bin[number] for of_bin in part] for part in (views, flats, darks)))
        for number, place in enumerate(places)
    ]


def place_of(attributes: Attributes) -> TilePlace:
    """Return where a frame says that its tile lies.

    Raises
    ------
    ScanError
        A value that is no number, or another number of values.
    """
    origin = quantities(attributes, _ORIGIN, 2)
    camera = attributes.get(_CAMERA)
    if camera is None:
        return TilePlace(None if origin is None else (origin[0], origin[1]))
    size = 2 if isinstance(camera, Sequence) and not isinstance(camera, str) and len(camera) == 2 else 1
    values = quantities(attributes, _CAMERA, size) or ()
    return TilePlace(None if origin is None else (origin[0], origin[1]), (values[0], values[1] if size == 2 else 0.0))


def _near(one: tuple[float, float] | None, other: tuple[float, float] | None, tolerance: float) -> bool:
    if one is None or other is None:
        return one is other
    return max(abs(a - b) for a, b in zip(one, other, strict=True)) <= tolerance


def _check_places(places: Sequence[TilePlace]) -> None:
    origins = [place.origin_px for place in places if place.origin_px is not None]
    if origins and len(origins) < len(places):
        raise ScanError(f"{name_of(_ORIGIN)} is missing in a part of the views")
    if not origins and any(place.camera_mm is None for place in places):
        raise ScanError(f"{name_of(_CAMERA)} is missing in a part of the views")
    if len(set(origins)) < len(origins):
        raise ScanError(
            f"{name_of(_ORIGIN)} repeats at several camera positions (0071,xx1A): expected for each tile its own place "
            "on the virtual detector"
        )


def _grouped(frames: Sequence[RoledFrame], places: Sequence[TilePlace], what: str) -> list[list[RoledFrame]]:
    """Return the frames of each place; a frame serves every place that it does not contradict."""
    groups: list[list[RoledFrame]] = [[] for _ in places]
    for frame in frames:
        place = place_of(frame.attributes)
        found = [group for known, group in zip(places, groups, strict=True) if known.fits(place)]
        if not found:
            raise ScanError(f"there are {what} of {place}, and no views of the first energy bin")
        for group in found:
            group.append(frame)
    for place, group in zip(places, groups, strict=True):
        if frames and not group:
            raise ScanError(f"{place} has no {what}, other tiles have some")
    return groups


def in_the_order_of(reference: ConeBeamGeometry, geometry: ConeBeamGeometry, place: TilePlace) -> list[int]:
    """Return which view of a tile belongs to each view of the reference, by their angles.

    Raises
    ------
    ScanError
        One of the two lacks a view that the other has.
    """
    first, second = reference.view_angles_rad, geometry.view_angles_rad
    tolerance = np.deg2rad(LARGEST_ANGLE_DEG)
    if len(first) == len(second) and (np.abs(_turn(second - first)) <= tolerance).all():
        return list(range(len(first)))
    # Counted from just before the first view: rounding must not put one of two equal angles at the end.
    start = first[0] - tolerance
    ours, theirs = (np.argsort(np.mod(angles - start, 2 * np.pi), kind="stable") for angles in (first, second))
    lacking = [f"{np.rad2deg(first[view]):.1f}" for view in ours if not _has(second, first[view], tolerance)]
    extra = [f"{np.rad2deg(second[view]):.1f}" for view in theirs if not _has(first, second[view], tolerance)]
    if lacking or extra:
        angle, who = (lacking[0], str(place)) if lacking else (extra[0], "the first tile")
        raise ScanError(f"{who} lacks the view at {angle} degrees, which other tiles have")
    if len(first) != len(second) or (np.abs(_turn(second[theirs] - first[ours])) > tolerance).any():
        raise ScanError(f"{place} has {len(second)} views, the first tile has {len(first)} at the same angles")
    order = np.empty(len(first), dtype=np.intp)
    order[ours] = theirs
    return [int(view) for view in order]


def _has(angles: Vectors, angle: float, tolerance: float) -> bool:
    return bool((np.abs(_turn(angles - angle)) <= tolerance).any())


def _turn(angles: Vectors) -> Vectors:
    turned: Vectors = np.angle(np.exp(1j * angles))
    return turned


def check_exposures(tiles: Sequence[TileFrames]) -> None:
    """Refuse tiles of one view that were exposed for different times.

    Raises
    ------
    ScanError
        The sentence gives both times.
    """
    for number, of_bin in enumerate(zip(*(tile.views for tile in tiles), strict=True), start=1):
        for frames in zip(*of_bin, strict=True):
            times = [frame.frame.duration_ms for frame in frames]
            known = [time for time in times if time is not None]
            if known and (len(known) < len(times) or max(known) > 1.001 * min(known)):
                told = " and ".join("unknown" if t is None else f"{t:g} ms" for t in dict.fromkeys(times))
                raise ScanError(
                    f"the tiles of a view of energy bin {number} were exposed unequally: Frame Acquisition Duration "
                    f"(0018,9220) is {told}"
                )


def virtual_detector(
    places: Sequence[TilePlace],
    geometries: Sequence[ConeBeamGeometry],
    of_virtual: Callable[[int, int], ConeBeamGeometry],
    *,
    knows_distance: bool,
) -> tuple[VirtualDetector, ConeBeamGeometry]:
    """Return the detector that the tiles make up, and its geometry.

    Parameters
    ----------
    places
        Where each tile lies, as told.
    geometries
        What the frames of each tile tell, views in the same order.
    of_virtual
        Returns the geometry that the frames tell of a detector of so many rows and columns.
    knows_distance
        Whether the pitch is that of the detector, so that mm can be turned into pixels.

    Raises
    ------
    ScanError
        Places and geometries that contradict each other, tiles that leave a wide gap.
    """
    first = geometries[0]
    told = _told(places, first, knows_distance=knows_distance)
    moved = np.stack([_shift(first, geometry, place) for place, geometry in zip(places, geometries, strict=True)])
    own = told is None or np.abs(moved - (told - told[0])).max() < np.abs(moved).max()
    _check_agreement(places, geometries, moved, told, own=own)
    shape = (first.rows, first.columns)
    try:
        if not own and places[0].origin_px is not None:
            detector = VirtualDetector.around(shape, _pairs(told))
            return detector, of_virtual(detector.rows, detector.columns)
        origins = moved if told is None or own else told
        corner = origins.min(axis=0)
        detector = VirtualDetector.around(shape, _pairs(origins - corner))
    except ValueError as error:
        raise ScanError(str(error)) from error
    return detector, _resized(first, corner, detector.rows, detector.columns)


def _told(places: Sequence[TilePlace], geometry: ConeBeamGeometry, *, knows_distance: bool) -> Vectors | None:
    """Return where tiles are told to lie, pixels, (tile, 2) as column, row; None: mm that no pitch is known for."""
    if places[0].origin_px is not None:
        return np.array([place.origin_px for place in places], dtype=np.float64)
    if not knows_distance:
        return None
    steps = (geometry.column_steps, geometry.row_steps)
    pitches = [float(np.linalg.norm(step, axis=1).mean()) for step in steps]
    return np.array([place.camera_mm for place in places], dtype=np.float64) / pitches


def _shift(first: ConeBeamGeometry, geometry: ConeBeamGeometry, place: TilePlace) -> Vectors:
    """Return where the first pixel of a tile lies on the pixels of the first tile, (column, row), mean over views."""
    steps = np.stack([first.column_steps, first.row_steps], axis=2)
    shifts = np.linalg.pinv(steps) @ (geometry.first_pixels() - first.first_pixels())[:, :, None]
    mean: Vectors = np.round(shifts[:, :, 0].mean(axis=0), 4)
    if (spread := float(np.abs(shifts[:, :, 0] - mean).max())) > LARGEST_SHIFT_PX:
        raise ScanError(f"{place} does not keep its place from view to view: it moves by up to {spread:.1f} pixels")
    return mean


def _check_agreement(
    places: Sequence[TilePlace],
    geometries: Sequence[ConeBeamGeometry],
    moved: Vectors,
    told: Vectors | None,
    *,
    own: bool,
) -> None:
    if told is None and np.abs(moved).max() <= LARGEST_SHIFT_PX:
        raise ScanError(
            f"{name_of(_CAMERA)} in mm cannot be turned into pixels, as the distance of the detector is missing: none "
            "of Distance Source to Detector (0018,1110) and vectors (0071,xx12) to (0071,xx15) is present"
        )
    expected = np.zeros_like(moved) if not own else moved if told is None else told - told[0]
    for place, geometry, shift, meant in zip(places, geometries, moved, expected, strict=True):
        if (far := float(np.abs(shift - meant).max())) > LARGEST_SHIFT_PX:
            raise ScanError(f"{place} is {far:.1f} pixels from there by the geometry of its views")
        back = _resized(geometry, -shift, geometry.rows, geometry.columns)
        if elsewhere := difference(geometries[0], back):
            raise ScanError(f"{place} was taken elsewhere than the first tile: they differ by up to {elsewhere}")


def _resized(geometry: ConeBeamGeometry, corner_px: Vectors, rows: int, columns: int) -> ConeBeamGeometry:
    """Return a detector in the same plane whose first pixel lies at (column, row) `corner_px` of that of `geometry`."""
    column, row = corner_px + np.array([(columns - 1) / 2, (rows - 1) / 2])
    centres = geometry.first_pixels() + column * geometry.column_steps + row * geometry.row_steps
    return replace(geometry, detector_centres=centres, rows=rows, columns=columns)


def _pairs(origins: Vectors | None) -> list[tuple[float, float]]:
    return [] if origins is None else [(float(column), float(row)) for column, row in origins]


def words_of_tiling(detector: VirtualDetector) -> str:
    """Return a sentence for the user: of what the virtual detector is stitched, and what of it is interpolated."""
    rows, columns = detector.tile_shape
    told = (
        f"the virtual detector of {detector.rows} × {detector.columns} pixels is stitched from "
        f"{len(detector.origins_px)} tiles of {rows} × {columns}"
    )
    gap = int(np.count_nonzero(detector.gap))
    if not gap:
        return told
    whole_columns, whole_rows = (np.flatnonzero(detector.gap.all(axis=axis)) for axis in (0, 1))
    lines = [f"{what}{'s' if len(which) > 1 else ''} {_ranges(which)}"
             for what, which in (("column", whole_columns), ("row", whole_rows)) if len(which)]  # fmt: skip
    where = f" ({', '.join(lines)})" if lines else ""
    return f"{told}; {gap} pixels between them{where} are interpolated"


def _ranges(indices: NDArray[np.intp]) -> str:
    runs = np.split(indices, np.flatnonzero(np.diff(indices) > 1) + 1)
    return ", ".join(f"{run[0]}" if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
