"""From stored instances to a scan, the same for every encoding: roles, bins, order, completeness, geometry.

An `encoding.Encoding` says where its instances keep what; nothing here asks which encoding it is.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from reconstruct.corrections.wanted import APPLIED
from reconstruct.geometry import ConeBeamGeometry
from reconstruct.patient_position import in_patient_axes, patient_position
from reconstruct.projections.completeness import check_complete, distinct
from reconstruct.projections.curved_detector import CurvedDetector
from reconstruct.projections.encoding import ROLES, Encoding
from reconstruct.projections.energy_bins import counter_kind, energy_bins, group_by_bin
from reconstruct.projections.frames import Counter, Frame, ScanError
from reconstruct.projections.moments import timed
from reconstruct.projections.quantities import name_of, quantity
from reconstruct.projections.reference import check_reference
from reconstruct.projections.request import read_request
from reconstruct.projections.roles import RoledFrame, role_of, words_of
from reconstruct.projections.scan import CounterKind, PixelMeaning, Scan, SourceInstance, Tiles
from reconstruct.projections.tiling import (
    TileFrames,
    check_exposures,
    in_the_order_of,
    place_of,
    split_by_tile,
    virtual_detector,
    words_of_tiling,
)
from reconstruct.projections.view_geometry import ANGLES, TakenGeometry, difference, geometry_of

_OVERLAPPING = (
    "the counters are cumulative and their pixels no counts, which cannot be subtracted: each energy bin holds all "
    "above its threshold",
)


@dataclass(frozen=True, eq=False)
class _Detector:
    """What a scan was taken with: its geometry, its frames, and notes for the user; several tiles have `tiles`."""

    taken: TakenGeometry
    views_of_bins: Sequence[Sequence[RoledFrame]]
    counters: tuple[Counter, ...]
    notes: tuple[str, ...]
    tiles: Tiles | None = None


def assemble(encoding: Encoding, instances: Iterable[Path | Dataset]) -> Scan:
    """Return the scan that the instances hold together; pixels stay where they are.

    Parameters
    ----------
    encoding
        How they are encoded.
    instances
        Part 10 files or data sets of one scan, in any order; the same instance twice counts once.

    Raises
    ------
    ScanError
        Something is missing or contradicts itself; the sentence names it.
    """
    headers = distinct((_header(encoding, instance), instance) for instance in instances)
    frames_of = [_frames(encoding, header, instance) for header, instance in headers]
    check_complete([frames[0].attributes for frames in frames_of], sum(len(frames) for frames in frames_of))
    frames = timed([frame for frames in frames_of for frame in frames])
    projections = [frame for frame in frames if frame.role == "PROJECTION"]
    if not projections:
        raise ScanError(f"the scan has {len(frames)} frames, none of them a projection: Frame Role (0071,xx10)")
    _check_equal_sizes(frames)
    meaning = _meaning(encoding, projections)
    corrections = _corrections(projections)
    kind = counter_kind([frame.attributes for frame in projections])
    relative = meaning in (PixelMeaning.TRANSMISSION, PixelMeaning.LINE_INTEGRAL)
    bins = energy_bins([frame.attributes for frame in projections], kind, relative=relative)
    by_bin = {
        role: group_by_bin([f for f in frames if f.role == role], lambda f: f.attributes, bins) for role in ROLES
    }
    header = next(
        header
        for (header, _), own in zip(headers, frames_of, strict=True)
        if any(frame.role == "PROJECTION" for frame in own)
    )
    tiles = split_by_tile(by_bin)
    one = _detector(encoding, tiles[0], header) if len(tiles) == 1 else _tiled_detector(encoding, tiles, header)
    taken = one.taken
    curved = _curved(encoding, one.views_of_bins[0], header, taken.geometry)
    if curved is not None and one.tiles is not None:
        raise ScanError("the detector is a cylinder of several tiles, and only plane ones can be stitched")
    scan = Scan(
        uid=str(projections[0].attributes.get("ScanSetUID") or header.SeriesInstanceUID),
        geometry=taken.geometry if curved is None else curved.plane,
        geometry_from=taken.taken_from,
        bins=bins,
        counters=one.counters,
        header=header,
        sources=tuple(SourceInstance(str(h.SOPClassUID), str(h.SOPInstanceUID)) for h, _ in headers),
        pixel_meaning=meaning,
        counter_kind=kind,
        counting_mode=str(projections[0].attributes.get("CountingMode") or ""),
        corrections=corrections,
        request=read_request(projections[0].attributes),
        notes=(
            *one.notes,
            *_words_of_unknown(corrections),
            *(_OVERLAPPING if relative and kind is CounterKind.CUMULATIVE and len(bins) > 1 else ()),
        ),
        knows_detector_distance=taken.knows_detector_distance,
        curved=curved,
        tiles=one.tiles,
    )
    for counters in scan.detectors:
        check_reference(scan, counters)
    return scan


def _header(encoding: Encoding, instance: Path | Dataset) -> Dataset:
    if isinstance(instance, Dataset):
        header = instance
    else:
        try:
            header = dcmread(instance, stop_before_pixels=True)
        except (InvalidDicomError, OSError) as error:
            raise ScanError(f"{instance.name} cannot be read as a DICOM file: {error}") from error
    if not encoding.recognise(header):
        raise ScanError(
            f"{_name(header, instance)} is no {encoding.described}: its SOP Class UID is "
            f"{header.get('SOPClassUID', 'missing')}"
        )
    for keyword in ("Rows", "Columns", "BitsStored"):
        if not header.get(keyword):
            raise ScanError(f"{_name(header, instance)} has no {name_of(keyword)}")
    if int(header.get("SamplesPerPixel") or 1) != 1:
        raise ScanError(f"instance {header.SOPInstanceUID} is a colour image: Samples per Pixel (0028,0002) is "
                        f"{header.SamplesPerPixel}, expected 1")
    return header


def _name(header: Dataset, instance: Path | Dataset) -> str:
    return instance.name if isinstance(instance, Path) else f"instance {header.get('SOPInstanceUID', '?')}"


def _frames(encoding: Encoding, header: Dataset, instance: Path | Dataset) -> list[RoledFrame]:
    try:
        attributes_of_frames = encoding.attributes(header)
    except (TypeError, ValueError) as error:
        raise ScanError(f"{_name(header, instance)} has an element that cannot be understood: {error}") from error
    stated = int(header.get("NumberOfFrames") or 1)
    if len(attributes_of_frames) != stated:
        raise ScanError(
            f"instance {header.SOPInstanceUID} has {stated} frames (0028,0008), but functional groups for "
            f"{len(attributes_of_frames)}"
        )
    frames = []
    for index, attributes in enumerate(attributes_of_frames):
        slope = quantity(attributes, "RescaleSlope")
        if slope == 0:
            raise ScanError(f"{name_of('RescaleSlope')} of frame {index + 1} of instance {header.SOPInstanceUID} is 0")
        frame = Frame(
            instance=instance,
            index=index,
            slope=1.0 if slope is None else slope,
            intercept=quantity(attributes, "RescaleIntercept") or 0.0,
            duration_ms=quantity(attributes, "FrameAcquisitionDuration", above=0),
            bits_stored=int(header.BitsStored),
            corrections=frozenset(words_of(attributes.get("CorrectionsApplied"))),
        )
        frames.append(RoledFrame(encoding.stored(frame), attributes, role_of(attributes)))
    return frames


def _meaning(encoding: Encoding, projections: Sequence[RoledFrame]) -> PixelMeaning:
    told = [frame.attributes.get("PixelMeaning") for frame in projections]
    if None in told:
        return encoding.meaning(projections[0].attributes)
    stated = {str(word) for word in told}
    unknown = stated - set(PixelMeaning)
    if unknown or len(stated) > 1:
        raise ScanError(
            f"Pixel Meaning (0071,xx07) is {' and '.join(sorted(stated))}, expected one of {', '.join(PixelMeaning)}"
        )
    return PixelMeaning(stated.pop())


def _corrections(projections: Sequence[RoledFrame]) -> frozenset[str]:
    """Return what was corrected in all of the projections."""
    told = {frame.frame.corrections for frame in projections}
    if len(told) > 1:
        ways = " and ".join(sorted(", ".join(sorted(words)) or "nothing" for words in told))
        raise ScanError(f"Corrections Applied (0071,xx08) differs between the projections: {ways}")
    return told.pop()


def _words_of_unknown(corrections: frozenset[str]) -> tuple[str, ...]:
    unknown = ", ".join(sorted(corrections - APPLIED.keys()))
    if not unknown:
        return ()
    known = ", ".join(APPLIED)
    return (f"Corrections Applied (0071,xx08) says {unknown}, which changes nothing: it is none of {known}",)


def _in_order(group: Sequence[RoledFrame]) -> list[RoledFrame]:
    """Sort the views of a counter by Frame Acquisition Number (0020,9156), else by instance and frame."""
    numbers = [frame.attributes.get("FrameAcquisitionNumber") for frame in group]
    if None not in numbers and len(set(numbers)) == len(numbers):
        return sorted(group, key=lambda frame: int(frame.attributes["FrameAcquisitionNumber"]))
    return sorted(
        group, key=lambda frame: (int(frame.attributes.get("InstanceNumber") or 0), frame.frame.index)
    )


def _check_equal_sizes(frames: Sequence[RoledFrame]) -> None:
    sizes = {(int(frame.attributes["Rows"]), int(frame.attributes["Columns"])) for frame in frames}
    if len(sizes) > 1:
        told = " and ".join(f"{rows} × {columns}" for rows, columns in sorted(sizes))
        raise ScanError(f"the frames have several sizes, rows × columns: {told}")


def _detector(encoding: Encoding, frames: TileFrames, header: Dataset) -> _Detector:
    """Read the geometry of one detector, or of one tile, its views in order of acquisition."""
    views_of_bins = [_in_order(group) for group in frames.views]
    for number, views in enumerate(views_of_bins, start=1):
        if len(views) != len(views_of_bins[0]):
            raise ScanError(
                f"energy bin {number} has {len(views)} views, energy bin 1 has {len(views_of_bins[0])}"
            )
    taken, notes = _geometry(encoding, views_of_bins, header)
    camera = place_of(views_of_bins[0][0].attributes).camera_mm
    if camera is not None and any(camera) and taken.taken_from == ANGLES:
        notes = (*notes, f"the camera stood at {camera[0]:g} mm, which the principal point is taken to include")
    return _Detector(taken, views_of_bins, _counters(frames, views_of_bins), notes)


def _tiled_detector(encoding: Encoding, tiles: Sequence[TileFrames], header: Dataset) -> _Detector:
    """Put the tiles of a scan on one virtual detector, their views in the order of the first tile."""
    first = _detector(encoding, tiles[0], header)
    geometries, ordered = [first.taken.geometry], [replace(tiles[0], views=[list(v) for v in first.views_of_bins])]
    for tile in tiles[1:]:
        other = _detector(encoding, tile, header)
        order = in_the_order_of(first.taken.geometry, other.taken.geometry, tile.place)
        geometries.append(other.taken.geometry.select(order))
        ordered.append(replace(tile, views=[[views[view] for view in order] for views in other.views_of_bins]))
    check_exposures(ordered)

    def of_virtual(rows: int, columns: int) -> ConeBeamGeometry:
        size = {"Rows": rows, "Columns": columns}
        views = [[replace(v, attributes=ChainMap(size, v.attributes)) for v in views]  # type: ignore[arg-type]
                 for views in ordered[0].views]  # fmt: skip
        return _geometry(encoding, views, header)[0].geometry

    detector, geometry = virtual_detector(
        [tile.place for tile in tiles],
        geometries,
        of_virtual,
        knows_distance=first.taken.knows_detector_distance,
    )
    counters = tuple(_counters(tile, tile.views) for tile in ordered)
    notes = [note for note in first.notes if not note.startswith("the camera stood")]
    return _Detector(
        replace(first.taken, geometry=geometry),
        first.views_of_bins,
        counters[0],
        (*notes, words_of_tiling(detector)),
        Tiles(detector, counters),
    )


def _counters(frames: TileFrames, views_of_bins: Sequence[Sequence[RoledFrame]]) -> tuple[Counter, ...]:
    return tuple(
        _counter(views, flats, darks)
        for views, flats, darks in zip(views_of_bins, frames.flats, frames.darks, strict=True)
    )


def _counter(views: Sequence[RoledFrame], flats: Sequence[RoledFrame], darks: Sequence[RoledFrame]) -> Counter:
    for what, others in (("projections", views), ("flat fields", flats), ("dark frames", darks)):
        if len({frame.frame.duration_ms is None for frame in others}) > 1:
            raise ScanError(f"Frame Acquisition Duration (0018,9220) is given for only some of the {what}")
        if others and (others[0].frame.duration_ms is None) != (views[0].frame.duration_ms is None):
            raise ScanError(
                f"Frame Acquisition Duration (0018,9220) is given for only one of the projections and the {what}"
            )
    unattenuated = [quantity(view.attributes, "UnattenuatedValue", above=0) for view in views]
    return Counter(
        views=tuple(view.frame for view in views),
        flats=tuple(flat.frame for flat in flats),
        darks=tuple(dark.frame for dark in darks),
        unattenuated=() if None in unattenuated else tuple(value for value in unattenuated if value is not None),
    )


def _geometry(
    encoding: Encoding, views_of_bins: Sequence[Sequence[RoledFrame]], header: Dataset
) -> tuple[TakenGeometry, tuple[str, ...]]:
    taken = geometry_of([view.attributes for view in views_of_bins[0]], encoding.places)
    _check_same_views(encoding, views_of_bins, taken.geometry)
    origins = f": {taken.origins}" if taken.origins else ""
    notes = [f"geometry taken from {taken.taken_from}{origins}", *taken.disagreements]
    if taken.taken_from == ANGLES and not encoding.places.patient_axes:
        position = patient_position(header)
        notes.append(f"patient position {position or 'not given, taken as HFS'}")
        taken = replace(taken, geometry=in_patient_axes(taken.geometry, position))
    return taken, tuple(notes)


def _check_same_views(
    encoding: Encoding, views_of_bins: Sequence[Sequence[RoledFrame]], geometry: ConeBeamGeometry
) -> None:
    """Refuse energy bins that were not taken together: one geometry serves all of them."""
    for number, views in enumerate(views_of_bins[1:], start=2):
        other = geometry_of([view.attributes for view in views], encoding.places).geometry
        far = difference(geometry, other)
        if far:
            raise ScanError(f"energy bin {number} was taken elsewhere than energy bin 1: they differ by up to {far}")


def _curved(
    encoding: Encoding, views: Sequence[RoledFrame], header: Dataset, geometry: ConeBeamGeometry
) -> CurvedDetector | None:
    """Return the cylinder that the detector is, None for a flat one."""
    if not encoding.curved(views[0].attributes):
        return None
    still = [{key: value for key, value in v.attributes.items() if key != "FocalSpotShift"} for v in views]
    unshifted = geometry_of(still, encoding.places).geometry
    return CurvedDetector.of(geometry, in_patient_axes(unshifted, patient_position(header)))
