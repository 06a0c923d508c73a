"""Writing projections as P1: Enhanced XA instances with the private block.

One instance a counter and role, split where its pixels would not fit into one. What standard attributes can say is said
twice: there for everybody, and in the private vectors exactly.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import EnhancedXAImageStorage

from config.identity import new_uid
from reconstruct.dicom_items import item_of
from reconstruct.geometry import ConeBeamGeometry
from reconstruct.part10 import with_file_meta
from reconstruct.projections import elements
from reconstruct.projections.acquisition import Acquisition, CounterImages, ImageSource
from reconstruct.projections.frames import ScanError
from reconstruct.projections.moments import later
from reconstruct.projections.plausible import (
    Limits,
    bright,
    bright_limits,
    meant_limits,
    refuse_other_meaning,
    strays,
)
from reconstruct.projections.positioner import PositionerAngles, positioner_angles
from reconstruct.projections.request import request_elements
from reconstruct.projections.scan import PixelMeaning
from reconstruct.projections.xa_functional_groups import shared_item, view_item
from reconstruct.projections.xa_modules import add_acquisition, add_image
from reconstruct.stations import at_one_height

_NAMES = {"PROJECTION": "the views", "FLAT": "the flat frames", "DARK": "the dark frames"}

LARGEST_PIXEL_DATA = 0xFFFFFFFE
"""Pixel Data (7FE0,0010) has a 32-bit even length that is not FFFFFFFF (PS3.5 7.1.1)."""


@dataclass(frozen=True, eq=False)
class _Part:
    """The frames of one instance: which images, and which view each is of (flats are taken at the first)."""

    counter: CounterImages
    role: str
    images: ImageSource
    first: int
    count: int

    def pixels(self, scale: _Scale) -> NDArray[np.uint16]:
        """Read the images and return their stored values."""
        pixels = np.empty((self.count, *self.images.shape[1:]), dtype="<u2")
        for index in range(self.count):
            values = np.array(self.images[self.first + index], dtype=np.float64)
            np.clip(values, scale.least, scale.largest, out=values)
            pixels[index] = np.rint((values - scale.intercept) / scale.slope)
        return pixels


class _Scale(NamedTuple):
    """What makes values of stored ones: slope × stored + intercept; what lies outside is clipped."""

    slope: float
    intercept: float
    least: float = -np.inf
    largest: float = np.inf


@dataclass(frozen=True, eq=False)
class _Stand:
    """How the scanner stood: exactly, and as standard attributes can say it, which has the sample travel instead."""

    geometry: ConeBeamGeometry
    level: ConeBeamGeometry
    travel_mm: NDArray[np.float64]
    angles: PositionerAngles


def write_p1(
    counters: Sequence[CounterImages],
    geometry: ConeBeamGeometry,
    header: Dataset,
    acquisition: Acquisition,
    *,
    scan_uid: str = "",
    largest_pixel_data: int = LARGEST_PIXEL_DATA,
) -> list[Dataset]:
    """Return the instances of a scan all at once, see `p1_instances`."""
    return list(
        p1_instances(
            counters, geometry, header, acquisition, scan_uid=scan_uid, largest_pixel_data=largest_pixel_data
        )
    )


def p1_instances(
    counters: Sequence[CounterImages],
    geometry: ConeBeamGeometry,
    header: Dataset,
    acquisition: Acquisition,
    *,
    scan_uid: str = "",
    largest_pixel_data: int = LARGEST_PIXEL_DATA,
    instance_uid: Callable[[int], str] | None = None,
    leave_out: Container[str] = (),
    tell: Callable[[str], None] | None = None,
) -> Iterator[Dataset]:
    """Yield the instances of a scan, complete with file meta information, Explicit VR Little Endian.

    Images are read when their instance is asked for; those that need a rescale once before, for its range.

    Counts are stored as they are, in 16 bits, the most that the SOP class allows (PS3.3 A.47); other values are stored
    in 65,535 steps from the least to the largest, with a rescale. Single values that cannot be meant, of dead and hot
    pixels, are clipped to the range of the others before: they would make the steps too wide for all that is ordinary.

    Parameters
    ----------
    counters
        What each counter measured, ascending with energy.
    geometry
        Source and detector of every view.
    header
        Patient, study, series and equipment attributes; every instance bears them. Series Instance UID and dates are
        made up where they are missing from it.
    acquisition
        How the scan was taken.
    scan_uid
        UID of the scan set; new when empty.
    largest_pixel_data
        Bytes of Pixel Data in one instance.
    instance_uid
        Returns the SOP Instance UID for an Instance Number, from 1; None: all are new.
    leave_out
        SOP Instance UIDs of instances that are there already: their images are not read.
    tell
        Called with a sentence for the user where values are clipped.

    Raises
    ------
    ScanError
        Shapes that do not agree, counts over 65,535 or not whole, many values that cannot be meant, a frame larger than
        an instance may be.
    """
    _check(counters, geometry, acquisition)
    parts = [part for counter in counters for part in _parts(counter, largest_pixel_data)]
    named = [(number, instance_uid(number) if instance_uid else new_uid(), part)
             for number, part in enumerate(parts, start=1)]  # fmt: skip
    wanted = [(number, uid, part) for number, uid, part in named if uid not in leave_out]
    if not wanted:
        return
    scales = _scales([part for _, _, part in wanted], acquisition, tell or (lambda _sentence: None))
    level, travel = at_one_height(geometry)
    stand = _Stand(geometry, level, travel, positioner_angles(level))
    series = _series(header, scan_uid or new_uid(), acquisition, counters, parts)
    for number, uid, part in wanted:
        series.SOPInstanceUID, series.InstanceNumber = uid, number
        yield _instance(part, scales[id(part.images)], series, stand, acquisition)


def _check(counters: Sequence[CounterImages], geometry: ConeBeamGeometry, acquisition: Acquisition) -> None:
    if not counters:
        raise ScanError("a scan needs at least one counter")
    if (acquisition.exposure.view_ms is None) != (acquisition.exposure.flat_ms is None):
        raise ScanError("the exposures of views and of flat fields are given together or not at all")
    expected = (geometry.views, geometry.rows, geometry.columns)
    for counter in counters:
        if counter.views.shape != expected:
            raise ScanError(f"expected projections of shape {expected}, got {counter.views.shape}")
        for frames in (counter.flats, counter.darks):
            if frames is not None and (len(frames.shape) != 3 or frames.shape[1:] != expected[1:]):
                raise ScanError(f"expected flat and dark frames of shape (frame, {expected[1]}, {expected[2]}), "
                                f"got {frames.shape}")


def _parts(counter: CounterImages, largest: int) -> Iterator[_Part]:
    roles = (("PROJECTION", counter.views), ("FLAT", counter.flats), ("DARK", counter.darks))
    for role, images in roles:
        if images is None:
            continue
        per_instance = largest // (2 * images.shape[1] * images.shape[2])
        if per_instance == 0:
            raise ScanError(f"a frame of {images.shape[1]} × {images.shape[2]} exceeds {largest} bytes of Pixel Data")
        for first in range(0, len(images), per_instance):
            yield _Part(counter, role, images, first, min(per_instance, len(images) - first))


def _scales(
    parts: Sequence[_Part], acquisition: Acquisition, tell: Callable[[str], None]
) -> dict[int, _Scale]:
    """Return the scale of the images of each part, by their identity; every image that needs one is read for it."""
    sources = {id(part.images): part for part in parts}
    ranges = {key: _range(part.images) for key, part in sources.items() if not _fits(part.images, acquisition)}
    brightest = max((found.bright for found in ranges.values()), default=0.0)
    if len(ranges) < len(sources):  # the others may hold whatever fits
        brightest = max(brightest, _most(acquisition))
    scales = {}
    for key, part in sources.items():
        if key not in ranges:
            scales[key] = _Scale(1.0, 0.0)
        elif acquisition.pixel_meaning is PixelMeaning.COUNTS:
            scales[key] = _scale_of_counts(part.images, ranges[key], acquisition)
        else:
            meant = meant_limits(acquisition.pixel_meaning) if part.role == "PROJECTION" else None
            scales[key] = _scale_of(part, ranges[key], meant or bright_limits(brightest), acquisition, tell)
    return scales


def _most(acquisition: Acquisition) -> int:
    return (1 << acquisition.bits_stored) - 1


def _fits(images: ImageSource, acquisition: Acquisition) -> bool:
    """Whether they are whole numbers that are stored as they are."""
    return np.issubdtype(images.dtype, np.unsignedinteger) and np.iinfo(images.dtype).max <= _most(acquisition)


def _scale_of(
    part: _Part, found: _Range, limits: Limits, acquisition: Acquisition, tell: Callable[[str], None]
) -> _Scale:
    """Return the range of the values that can be meant, in steps of the bits."""
    least, largest = found.low, found.high
    if least < limits[0] or largest > limits[1]:
        stray, least, largest = _within(part.images, limits)
        if part.role == "PROJECTION":
            count = int(np.prod(part.images.shape))
            refuse_other_meaning(acquisition.pixel_meaning, stray, count, (found.low, found.high))
        tell(
            f"{stray} values of {_NAMES[part.role]} cannot be meant (the range is {found.low:g} to {found.high:g}) "
            f"and are clipped to what the others reach, {least:g} to {largest:g}"
        )
    return _Scale((largest - least) / _most(acquisition) or 1.0, least, least, largest)


def _scale_of_counts(images: ImageSource, found: _Range, acquisition: Acquisition) -> _Scale:
    """Return 1 and 0 for counts, which are stored as they are."""
    if found.low < 0 or found.high > _most(acquisition):
        raise ScanError(
            f"counts from {found.low:g} to {found.high:g} do not fit into {acquisition.bits_stored} bits; "
            "an Enhanced XA pixel has at most 16"
        )
    whole = np.issubdtype(images.dtype, np.integer)
    if not whole and not all(np.array_equal(images[index], np.rint(images[index])) for index in range(len(images))):
        raise ScanError(f"counts are whole numbers, got {images.dtype} with fractions")
    return _Scale(1.0, 0.0)


class _Range(NamedTuple):
    """The least and the largest value of images, and what the bright pixels of the brightest image reach."""

    low: float
    high: float
    bright: float


def _range(images: ImageSource) -> _Range:
    """Return the range of all images.

    Raises
    ------
    ScanError
        A value is not finite.
    """
    low, high, brightest = np.inf, -np.inf, -np.inf
    for index in range(len(images)):
        image = images[index]
        low, high = np.minimum(low, np.min(image)), np.maximum(high, np.max(image))
        if not np.isfinite([low, high]).all():
            raise ScanError(f"the images hold values that are not finite, from {low:g} to {high:g}")
        brightest = max(brightest, bright(image))
    return _Range(float(low), float(high), brightest)


def _within(images: ImageSource, limits: Limits) -> tuple[int, float, float]:
    """Return how many values lie outside, and the least and the largest of the others."""
    stray, least, largest = 0, np.inf, -np.inf
    for index in range(len(images)):
        values = np.asarray(images[index])
        outside = strays(values, limits)
        stray += int(np.count_nonzero(outside))
        if not outside.all():
            inside = values[~outside]
            least, largest = min(least, float(inside.min())), max(largest, float(inside.max()))
    return (stray, least, largest) if least <= largest else (stray, *limits)


def _series(
    header: Dataset,
    scan_uid: str,
    acquisition: Acquisition,
    counters: Sequence[CounterImages],
    parts: Sequence[_Part],
) -> Dataset:
    """Return what all instances of the scan share."""
    dataset = copy.deepcopy(header)
    dataset.SOPClassUID = EnhancedXAImageStorage
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
        if keyword not in dataset:
            setattr(dataset, keyword, new_uid())
    add_acquisition(dataset, acquisition.exposure, len(counters[0].views))
    elements.put(
        dataset,
        ScanSetUID=scan_uid,
        ExpectedFrames=sum(part.count for part in parts),
        ExpectedInstances=len(parts),
        PixelMeaning=str(acquisition.pixel_meaning),
        EnergyBinCount=len(counters),
        CountingMode=acquisition.counting_mode or None,
        CounterKind=str(acquisition.counter_kind),
        **request_elements(acquisition.request),
    )
    elements.declare(dataset)
    return dataset


def _instance(part: _Part, scale: _Scale, series: Dataset, stand: _Stand, acquisition: Acquisition) -> Dataset:
    dataset = copy.deepcopy(series)
    energy = part.counter.bin
    elements.put(
        dataset,
        UnattenuatedValue=part.counter.unattenuated,
        FrameRole=part.role,
        EnergyBinIndex=energy.index,
        EnergyThresholdLow=energy.low_kev,
        EnergyThresholdHigh=energy.high_kev,
        EffectiveEnergy=energy.effective_kev,
        WaterAttenuation=energy.water_per_cm,
    )
    pixels = part.pixels(scale)
    add_image(dataset, pixels, acquisition.bits_stored)
    dataset.SharedFunctionalGroupsSequence = [
        shared_item(dataset, stand.level, stand.angles, scale.slope, scale.intercept)
    ]
    exposure = acquisition.exposure
    duration = exposure.view_ms if part.role == "PROJECTION" else exposure.flat_ms
    times = {"PROJECTION": acquisition.view_times_s, "FLAT": acquisition.flat_times_s}.get(part.role, ())
    matrices = stand.geometry.projection_matrices() if acquisition.with_matrices else None
    dataset.PerFrameFunctionalGroupsSequence = [
        _frame_item(dataset, part, index, stand, matrices, duration, times)
        for index in range(part.count)
    ]
    dataset.PixelData = pixels.tobytes()
    dataset["PixelData"].VR = "OW"
    return with_file_meta(dataset)


def _frame_item(
    dataset: Dataset,
    part: _Part,
    index: int,
    stand: _Stand,
    matrices: NDArray[np.float64] | None,
    duration_ms: float | None,
    times_s: Sequence[float],
) -> Dataset:
    view = part.first + index if part.role == "PROJECTION" else 0
    geometry = stand.geometry
    item = view_item(stand.level, stand.angles, view, float(stand.travel_mm[view]))
    number = part.first + index + 1
    moment = later(str(dataset.AcquisitionDateTime), times_s[number - 1]) if times_s else dataset.AcquisitionDateTime
    content = item_of(
        FrameAcquisitionNumber=number,
        FrameReferenceDateTime=moment,
        FrameAcquisitionDateTime=moment,
        DimensionIndexValues=[number],
    )
    # The standard wants a duration of an original frame; 0 would be a lie, so an unknown one is left out.
    if duration_ms is not None:
        content.FrameAcquisitionDuration = duration_ms
    item.FrameContentSequence = [content]
    elements.put(
        item,
        SourcePosition=geometry.sources[view].tolist(),
        DetectorCentre=geometry.detector_centres[view].tolist(),
        ColumnStep=geometry.column_steps[view].tolist(),
        RowStep=geometry.row_steps[view].tolist(),
        AxialSamplePosition=float(stand.travel_mm[view]) if stand.travel_mm.any() else None,
        ProjectionMatrix=None if matrices is None else matrices[view].reshape(-1).tolist(),
    )
    return item
