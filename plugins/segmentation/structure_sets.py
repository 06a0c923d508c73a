"""RTSTRUCT to label maps: closed planar contours on the slices of a grid (PS3.3 A.19, C.8.8.5, C.8.8.6).

The contours of a region that lie in one plane are filled together, even-odd (`polygons`): CLOSED_PLANAR with keyholes
or with contours in contours, and CLOSEDPLANAR_XOR, alike. A plane of contours goes to the nearest slice, at most half a
step away; of several for one slice the nearest counts. Between contours nothing is made up.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from plugins.node import CannotProceed
from plugins.segmentation.packing import LabelMap, Slab, packed
from plugins.segmentation.planes import Planes
from plugins.segmentation.polygons import Polygon, filled
from plugins.segmentation.segmenter import Segment
from plugins.segmentation.source_grid import SourceGrid
from plugins.segmentation.stored_segments import MANUAL, algorithm_of, code_of, modifiers_of

_CLOSED = frozenset({"CLOSED_PLANAR", "CLOSEDPLANAR_XOR", "CLOSED_PLANAR_XOR"})
"""The last one is no defined term, but written."""

_ANATOMY, _OBJECT, _TARGET = codes.SCT.AnatomicalStructure, codes.SCT.PhysicalObject, codes.DCM.RTTarget
_VOLUME = codes.DCM.NonSpecificVolume

_INTERPRETED = {
    "EXTERNAL": (_ANATOMY, codes.DCM.ExternalBodyModel),
    "ORGAN": (_ANATOMY, _ANATOMY),
    "AVOIDANCE": (_ANATOMY, _ANATOMY),
    "CAVITY": (_ANATOMY, _ANATOMY),
    "GTV": (_TARGET, codes.cid9534.GTV),
    "CTV": (_TARGET, codes.cid9534.CTV),
    "PTV": (_TARGET, codes.cid9534.PTV),
    "TREATED_VOLUME": (_TARGET, codes.cid9534.TreatedVolume),
    "IRRAD_VOLUME": (_TARGET, codes.cid9534.IrradiatedVolume),
    "BOLUS": (_OBJECT, _OBJECT),
    "SUPPORT": (_OBJECT, _OBJECT),
    "FIXATION": (_OBJECT, _OBJECT),
    "CONTRAST_AGENT": (codes.SCT.Substance, codes.SCT.Substance),
}
"""RT ROI Interpreted Type (PS3.3 C.8.8.8.1) → category (CID 9502) and type, where the object has no code itself."""

UNSPECIFIC = frozenset({_ANATOMY, _OBJECT, _VOLUME, codes.SCT.Substance})
"""Types that say no more than a category does: the label says more."""

_FLAT_MM = 0.1
_FLAT_STEPS = 0.1
"""Extent of a contour along the normal, mm or steps whichever is more, up to which it lies in the plane of slices."""

_SAME_PLANE_STEPS = 0.05
"""Distance of contours, steps, up to which they lie in one plane."""


@dataclass(frozen=True, eq=False)
class _Outlines:
    """Contours of one region: slice → the polygons of the plane of contours that is nearest to it."""

    of_slice: dict[int, list[Polygon]]
    left_out: int


def referenced_images(dataset: Dataset) -> dict[str, frozenset[str]]:
    """Return Series Instance UID → SOP Instance UIDs of the images that an RTSTRUCT was drawn on.

    Raises
    ------
    CannotProceed
        It names no series.
    """
    found: dict[str, set[str]] = {}
    for frame_of_reference in dataset.get("ReferencedFrameOfReferenceSequence") or []:
        for study in frame_of_reference.get("RTReferencedStudySequence") or []:
            for series in study.get("RTReferencedSeriesSequence") or []:
                images = series.get("ContourImageSequence") or []
                named = found.setdefault(str(series.get("SeriesInstanceUID") or ""), set())
                named |= {str(item.get("ReferencedSOPInstanceUID")) for item in images}
    if not found:
        raise CannotProceed("the structure set does not say on which series it was drawn")
    return {series: frozenset(named) for series, named in found.items()}


def label_maps(dataset: Dataset, grid: SourceGrid) -> tuple[list[LabelMap], tuple[str, ...]]:
    """Return the regions of an RTSTRUCT on `grid`, in the order of ROI Number, and sentences on what was left out.

    Raises
    ------
    CannotProceed
        No region has closed contours on slices of the grid, in their plane.
    """
    planes, step = grid.planes, grid.step_mm
    if planes is None or step is None:
        raise CannotProceed("contours need images that say where they lie, and how far apart they are")
    names = {int(item.ROINumber): item for item in dataset.get("StructureSetROISequence") or []}
    observations = {int(o.ReferencedROINumber): o for o in dataset.get("RTROIObservationsSequence") or []}
    regions: list[tuple[Segment, _Outlines]] = []
    notes: list[str] = []
    for item in sorted(dataset.get("ROIContourSequence") or [], key=lambda one: int(one.ReferencedROINumber)):
        number = int(item.ReferencedROINumber)
        region = names.get(number, Dataset())
        told = f"region {number} ({region.get('ROIName') or 'without a name'})"
        contours, refusal = _closed(item, region, grid)
        if not refusal and (across := _across_mm(contours, planes)) > max(_FLAT_MM, _FLAT_STEPS * step):
            refusal = f"a contour does not lie in the plane of the slices, it extends {across:.2f} mm across it"
        if refusal:
            notes.append(f"{told} is left out: {refusal}")
            continue
        outlines = _outlines(contours, planes, step)
        if outlines.left_out:
            notes.append(f"{outlines.left_out} of {len(contours)} contours of {told} lie on no slice of the images")
        if outlines.of_slice:
            regions.append((_segment(number, region, observations.get(number, Dataset())), outlines))
    if not regions:
        raise CannotProceed("; ".join(["no region of the structure set lies on the images", *notes])[:500])
    shape_yx = grid.shape_zyx[1:]
    return packed(grid.shape_zyx, ((segment, _slabs(found, shape_yx)) for segment, found in regions)), tuple(notes)


def _closed(item: Dataset, region: Dataset, grid: SourceGrid) -> tuple[list[NDArray[np.float64]], str]:
    """Return the closed contours of a region, axes (point, xyz) in mm, or why there is none to use."""
    contours = item.get("ContourSequence") or []
    closed = [one for one in contours if str(one.get("ContourGeometricType") or "") in _CLOSED]
    if not contours:
        return [], "it has no contour"
    if not closed:
        types = sorted({str(one.get("ContourGeometricType") or "untyped") for one in contours})
        return [], f"its contours are {' and '.join(types)}, and only closed planar ones enclose anything"
    if str(region.get("ReferencedFrameOfReferenceUID") or "") != grid.frame_of_reference_uid and not _drawn_on(
        closed, grid
    ):
        return [], "it is in another Frame of Reference than the images, and was not drawn on any of them"
    try:
        points = [np.asarray(one.ContourData, np.float64).reshape(-1, 3) for one in closed]
    except (AttributeError, TypeError, ValueError):
        return [], "a contour is no list of points with three coordinates"
    if any(not one.size or not np.isfinite(one).all() for one in points):
        return [], "a contour has no points, or coordinates that are no numbers"
    return points, ""


def _drawn_on(contours: Sequence[Dataset], grid: SourceGrid) -> bool:
    uids = {uid for uid, _ in grid.frames}
    return any(
        str(image.get("ReferencedSOPInstanceUID")) in uids
        for contour in contours
        for image in contour.get("ContourImageSequence") or []
    )


def _across_mm(contours: list[NDArray[np.float64]], planes: Planes) -> float:
    """Return the largest extent of a contour along the normal of the slices."""
    return max(float(np.ptp(points @ planes.normal_xyz)) for points in contours)


def _outlines(contours: list[NDArray[np.float64]], planes: Planes, step: float) -> _Outlines:
    distances = planes.distances_mm
    drawn: dict[int, list[tuple[float, Polygon]]] = defaultdict(list)
    left_out = 0
    for points in contours:
        place = float((points @ planes.normal_xyz).mean())
        number = int(np.abs(distances - place).argmin())
        off = abs(place - float(distances[number]))
        if off > step / 2 * (1 + 1e-6):
            left_out += 1
        else:
            drawn[number].append((place, planes.in_plane(points - planes.positions_mm[number])))
    of_slice = {}
    for number, outlines in drawn.items():
        nearest = min((place for place, _ in outlines), key=lambda place: (abs(place - distances[number]), place))
        of_slice[number] = [polygon for place, polygon in outlines if abs(place - nearest) <= _SAME_PLANE_STEPS * step]
    return _Outlines(of_slice, left_out)


def _slabs(outlines: _Outlines, shape_yx: tuple[int, int]) -> list[Slab]:
    def made() -> Iterator[Slab]:
        for number, polygons in sorted(outlines.of_slice.items()):
            yield number, filled(_without_repeats(polygons), shape_yx)

    return list(made())


def _without_repeats(polygons: list[Polygon]) -> list[Polygon]:
    """Leave out a contour that comes twice: it would undo itself."""
    return list({(polygon.shape, np.round(polygon, 3).tobytes()): polygon for polygon in polygons}.values())


def _segment(number: int, region: Dataset, observation: Dataset) -> Segment:
    label = str(region.get("ROIName") or observation.get("ROIObservationLabel") or f"Region {number}")
    category, type_ = _INTERPRETED.get(str(observation.get("RTROIInterpretedType") or ""), (_VOLUME, _VOLUME))
    code: Code | None = code_of(observation, "RTROIIdentificationCodeSequence")
    algorithm = algorithm_of(region, "ROIDerivationAlgorithmIdentificationSequence")
    if algorithm is None and str(region.get("ROIGenerationAlgorithm") or "") == "MANUAL":
        algorithm = MANUAL
    return Segment(
        label, category, code or type_,
        str(observation.get("TrackingID") or ""), str(observation.get("TrackingUID") or ""), number, algorithm,
        modifiers_of(observation, "RTROIIdentificationCodeSequence", "SegmentedPropertyTypeModifierCodeSequence"),
    )  # fmt: skip
