"""What an archive offers for training: the slices that it would embed, their labels, and the SEG objects about them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import ExplicitVRLittleEndian, SegmentationStorage

from config.settings import Settings
from index.archive import Archive
from index.encoders.learned.corpus import NO_TRUTH, UNKNOWN, Corpus, Truth
from index.encoders.pixels import SIDE, NoPixels, canonical_frames
from index.errors import ArchiveError
from plugins.embedding import jobs_for_series
from plugins.node import CannotProceed, Series
from plugins.segmentation.seg_object import read_labels
from plugins.slices import Slices, choose_slices

logger = logging.getLogger(__name__)

_MOST_SEGMENTS = NO_TRUTH - 1
_OF_THE_PIXELS = (
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
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


@dataclass(frozen=True, eq=False)
class _Sample:
    """A series: its slices, and the segment names of their pixels where there is a SEG (None where there is none)."""

    patient: str
    study: str
    series: str
    slices: Slices
    masks: tuple[Mapping[str, npt.NDArray[np.bool_]] | None, ...]


def collect(
    archive: Archive,
    settings: Settings,
    labels: Mapping[str, str],
    progress: Callable[[float], None] = lambda _done: None,
) -> Corpus:
    """Return the images that the node embeds, as many of a series as it would.

    Parameters
    ----------
    labels
        Series Instance UID → label; series without one take part without.
    """
    segmentations = _segmentations(archive)
    rows = archive.database.execute(
        "SELECT DISTINCT patient.patient_id, study.study_instance_uid, series.series_instance_uid "
        "FROM patient JOIN study ON study.patient = patient.id JOIN series ON series.study = study.id "
        "JOIN instance ON instance.series = series.id WHERE instance.rows <> '' "
        "ORDER BY series.series_instance_uid, study.study_instance_uid"
    ).fetchall()
    samples = []
    for done, (patient, study, uid) in enumerate(rows):
        progress(done / len(rows))
        series = Series(archive, uid)
        if not jobs_for_series(series, settings):
            continue
        try:
            slices = choose_slices(archive, series, settings.similarity.max_frames_per_series, lambda _done: None)
        except (CannotProceed, ArchiveError) as error:
            logger.warning("series %s takes no part in the training: %s", uid, error)
            continue
        samples.append(_Sample(patient, study, uid, slices, _masks(series, slices, segmentations.get(uid, ()))))
    progress(1.0)
    return _corpus(samples, labels)


def _corpus(samples: list[_Sample], labels: Mapping[str, str]) -> Corpus:
    classes = tuple(sorted({labels[sample.series] for sample in samples if sample.series in labels}))
    numbers = {name: number for number, name in enumerate(classes)}
    counts = [len(sample.slices.frames) for sample in samples]
    known = [numbers[labels[sample.series]] if sample.series in labels else UNKNOWN for sample in samples]
    masks = [mask for sample in samples for mask in sample.masks]
    segments = tuple(sorted({name for mask in masks for name in mask or {}}))[:_MOST_SEGMENTS]
    images = [sample.slices.images.astype(np.float16) for sample in samples]
    return Corpus(
        images=np.concatenate([np.zeros((0, SIDE, SIDE), dtype=np.float16), *images]),
        labels=np.repeat(np.array(known, dtype=np.int64), counts),
        classes=classes,
        patients=np.repeat(np.array([sample.patient for sample in samples], dtype=np.str_), counts),
        studies=np.repeat(np.array([sample.study for sample in samples], dtype=np.str_), counts),
        series=np.repeat(np.array([sample.series for sample in samples], dtype=np.str_), counts),
        places=np.concatenate([np.zeros(0, dtype=np.int64), *(np.arange(count) for count in counts)]),
        truth=_truth(masks, segments) if segments else None,
        segments=segments,
    )


def _truth(masks: Iterable[Mapping[str, npt.NDArray[np.bool_]] | None], segments: tuple[str, ...]) -> Truth:
    numbers = {name: number for number, name in enumerate(segments, start=1)}
    maps = []
    for mask in masks:
        numbered = np.full((SIDE, SIDE), NO_TRUTH if mask is None else 0, dtype=np.uint8)
        for name, inside in (mask or {}).items():
            if name in numbers:
                numbered[inside] = numbers[name]
        maps.append(numbered)
    return np.stack(maps)


def _segmentations(archive: Archive) -> dict[str, list[Dataset]]:
    """Return Series Instance UID → the SEG objects that refer to it."""
    found: dict[str, list[Dataset]] = {}
    for (path,) in archive.database.execute(
        "SELECT path FROM instance WHERE sop_class_uid = ? ORDER BY sop_instance_uid", (SegmentationStorage,)
    ):
        try:
            dataset = pydicom.dcmread(archive.files.path(path))
            uid = str(dataset.ReferencedSeriesSequence[0].SeriesInstanceUID)
        except (InvalidDicomError, OSError, AttributeError, IndexError) as error:
            logger.warning("%s is left out: %s", path, error)
            continue
        found.setdefault(uid, []).append(dataset)
    return found


def _masks(
    series: Series, slices: Slices, segmentations: Iterable[Dataset]
) -> tuple[dict[str, npt.NDArray[np.bool_]] | None, ...]:
    """Return for each slice segment name → where it is in the canonical frame; None where no SEG tells of it."""
    found: dict[str, dict[str, npt.NDArray[np.bool_]]] = {}
    paths = {instance.sop_instance_uid: instance.path for instance in series.instances}
    wanted = {uid for uid, frame in slices.frames if frame == 0}
    for seg in segmentations:
        try:
            for uid, labels in _labels_by_instance(seg):
                if uid in wanted:
                    header = pydicom.dcmread(paths[uid], stop_before_pixels=True)
                    own = found.setdefault(uid, {})
                    for number, name in _names(seg).items():
                        own[name] = _canonical_mask(header, labels == number)
        except (ValueError, AttributeError, KeyError, IndexError, RuntimeError, NoPixels) as error:
            logger.warning("the segmentation %s is left out: %s", seg.get("SOPInstanceUID", "without UID"), error)
    return tuple(found.get(uid) for uid, _ in slices.frames)


def _labels_by_instance(seg: Dataset) -> Iterable[tuple[str, npt.NDArray[np.uint8]]]:
    """Yield SOP Instance UID → label map, axes (row, column), of a BINARY SEG."""
    referenced = seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    uids = [str(item.ReferencedSOPInstanceUID) for item in referenced]
    yield from zip(uids, read_labels(seg, (len(uids), int(seg.Rows), int(seg.Columns))), strict=True)


def _names(seg: Dataset) -> dict[int, str]:
    """Return segment number → the meaning of its property type (PS3.3 C.8.20.4)."""
    return {
        int(item.SegmentNumber): str(item.SegmentedPropertyTypeCodeSequence[0].CodeMeaning)
        for item in seg.SegmentSequence
    }


def _canonical_mask(header: Dataset, mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Bring a mask into the canonical form of its image, through the same door: turned, scaled and centred alike."""
    if not mask.any():
        return np.zeros((SIDE, SIDE), dtype=np.bool_)
    dataset = deepcopy(header)
    for keyword in _OF_THE_PIXELS:
        if keyword in dataset:
            delattr(dataset, keyword)
    dataset.Modality, dataset.PhotometricInterpretation, dataset.SamplesPerPixel = "OT", "MONOCHROME2", 1
    dataset.Rows, dataset.Columns = mask.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 8, 8, 7, 0
    dataset.PixelData = mask.astype(np.uint8).tobytes() + b"\0" * (mask.size % 2)
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return np.asarray(canonical_frames(dataset).images[0] > 0.5)
