"""The stored annotations of an archive, SEG and RTSTRUCT, as masks of the slices that it would embed."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from copy import deepcopy
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import ExplicitVRLittleEndian, SegmentationStorage

from commands.annotations import Annotation
from index.encoders.functional_groups import of_frame
from index.encoders.pixels import SIDE, NoPixels, canonical_frames
from plugins.node import CannotProceed, Series
from plugins.segmentation.reading import name_of, read_segmentation
from plugins.segmentation.source_grid import HEADER, SourceGrid, source_grid
from plugins.slices import Frame

logger = logging.getLogger(__name__)

Masks = Mapping[str, npt.NDArray[np.bool_]]
"""Segment name → where it is in the canonical frame of a slice."""

_OF_THE_PIXELS = (
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
    "FloatPixelPaddingValue",
    "FloatPixelPaddingRangeLimit",
    "DoubleFloatPixelPaddingValue",
    "DoubleFloatPixelPaddingRangeLimit",
    "ModalityLUTSequence",
    "VOILUTSequence",
    "WindowCenter",
    "WindowWidth",
    "RescaleSlope",
    "RescaleIntercept",
    "RescaleType",
    "PresentationLUTShape",
)
"""What a header says of the values of its pixels, which those of a mask are not."""

_OF_THE_FRAMES = ("NumberOfFrames", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")


def masks_of(
    series: Series, frames: Iterable[Frame], annotations: Iterable[Annotation]
) -> tuple[Masks | None, ...]:
    """Return the masks of each of `frames`; None where no annotation tells of it.

    An annotation tells of the images that it names, and of all images of the series when it names none: where it has
    no segment there, there is none. What cannot be read is left out with a warning.
    """
    wanted = tuple(frames)
    found: dict[Frame, dict[str, npt.NDArray[np.bool_]]] = {}
    headers: dict[str, Dataset] = {}
    for annotation in annotations:
        try:
            for frame, name, mask in _masks(series, set(wanted), annotation, headers):
                own = found.setdefault(frame, {})
                if name:
                    own[name] = own[name] | mask if name in own else mask
        except (CannotProceed, InvalidDicomError, OSError, ValueError, NoPixels) as error:
            logger.warning("the annotation %s is left out: %s", annotation.path.name, error)
    return tuple(found.get(frame) for frame in wanted)


def _masks(
    series: Series, wanted: set[Frame], annotation: Annotation, headers: dict[str, Dataset]
) -> Iterable[tuple[Frame, str, npt.NDArray[np.bool_]]]:
    """Yield frame, segment name and canonical mask; frames without any segment come once, without a name."""
    grid = _grid(series, annotation, headers)
    shown = {frame: number for number, frame in enumerate(grid.frames) if frame in wanted}
    if not shown:
        return
    reading = read_segmentation(pydicom.dcmread(annotation.path), grid)
    for note in reading.notes:
        logger.info("the annotation %s: %s", annotation.path.name, note)
    paths = {instance.sop_instance_uid: instance.path for instance in series.instances}
    for frame, number in shown.items():
        header = _header_of_mask(paths[frame[0]], max(frame[1], 1) - 1)
        yield frame, "", np.zeros((0, 0), np.bool_)
        for segmentation in reading.segmentations:
            for label, segment in enumerate(segmentation.segments, start=1):
                mask = segmentation.labels[number] == label
                yield frame, name_of(segment), _canonical_mask(header, mask)


def _grid(series: Series, annotation: Annotation, headers: dict[str, Dataset]) -> SourceGrid:
    """Return the grid of the images that the annotation names; of a series of several time points, say, of one."""
    named = [one for one in series.instances if not annotation.images or one.sop_instance_uid in annotation.images]
    if not named:
        raise CannotProceed(f"none of the {len(annotation.images)} images that it names is stored in its series")
    for instance in named:
        if instance.sop_instance_uid not in headers:
            headers[instance.sop_instance_uid] = pydicom.dcmread(
                instance.path, stop_before_pixels=True, specific_tags=list(HEADER)
            )
    return source_grid([headers[instance.sop_instance_uid] for instance in named])


def _header_of_mask(path: Path, index: int) -> Dataset:
    """Return the header of an image's frame, from 0, as that of a single-frame image of a mask."""
    header = pydicom.dcmread(path, stop_before_pixels=True)
    for group, keyword in (
        ("PlaneOrientationSequence", "ImageOrientationPatient"), ("PixelMeasuresSequence", "PixelSpacing"),
    ):  # fmt: skip
        value = of_frame(header, index, group, keyword)
        if value is not None:
            setattr(header, keyword, value)
    for keyword in (*_OF_THE_PIXELS, *_OF_THE_FRAMES):
        if keyword in header:
            delattr(header, keyword)
    header.SOPClassUID = SegmentationStorage  # bytes of an ultrasound or captured image keep their greys: 1 is black
    header.Modality, header.PhotometricInterpretation, header.SamplesPerPixel = "OT", "MONOCHROME2", 1
    header.BitsAllocated, header.BitsStored, header.HighBit, header.PixelRepresentation = 8, 8, 7, 0
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return header


def _canonical_mask(header: Dataset, mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Bring a mask into the canonical form of its frame, through the same door: turned, scaled and centred alike."""
    if not mask.any():
        return np.zeros((SIDE, SIDE), dtype=np.bool_)
    if mask.all() and mask.size > 1:  # an image of one value is black, whatever the value
        first, last = mask.copy(), mask.copy()
        first.flat[0] = last.flat[-1] = False
        return _canonical_mask(header, first) | _canonical_mask(header, last)
    dataset = deepcopy(header)
    dataset.PixelData = mask.astype(np.uint8).tobytes() + b"\0" * (mask.size % 2)
    return np.asarray(canonical_frames(dataset).images[0] > 0.5)
