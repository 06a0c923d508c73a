"""What an archive offers for training segmenters: its CT volumes, with what annotations of others tell of them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.errors import InvalidDicomError

from commands.annotations import Annotation, annotations_of
from index.archive import Archive
from index.errors import ArchiveError
from plugins.node import CannotProceed, Series
from plugins.segmentation.classes import SegmentClass, told_apart
from plugins.segmentation.learned.examples import Example, Examples
from plugins.segmentation.learned.losses import UNKNOWN
from plugins.segmentation.learned.preparation import Prepared, prepared, prepared_labels
from plugins.segmentation.reading import read_segmentation
from plugins.segmentation.segmenter import Segmentation
from plugins.segmentation.source_grid import SourceGrid, grid_of_files
from plugins.segmentation.volume_reader import read_on_grid

logger = logging.getLogger(__name__)

_MOST_CLASSES = UNKNOWN - 1
_ROWS_SEEN = 160
"""A network sees images of about so many pixels a side where nobody says otherwise."""


@dataclass(frozen=True)
class Pair:
    """A series and what is stored about it."""

    patient: str
    study: str
    series: Series
    annotations: tuple[Annotation, ...]

    @property
    def grid(self) -> SourceGrid:
        """The grid of its images."""
        return grid_of_files(self.series.paths)

    @property
    def may_be_in_hu(self) -> bool:
        """Whether its images are CT, or say that they are in Hounsfield units: no others can be learned from."""
        header = self.series.header
        return str(header.get("Modality")) == "CT" or str(header.get("RescaleType")) == "HU"


def pairs_of(archive: Archive) -> list[Pair]:
    """Return the series that somebody has annotated; what this node segmented itself does not count."""
    annotated = {
        uid: tuple(one for one in about if not one.is_own) for uid, about in annotations_of(archive).items()
    }
    rows = archive.database.execute(
        "SELECT DISTINCT patient.patient_id, study.study_instance_uid, series.series_instance_uid "
        "FROM patient JOIN study ON study.patient = patient.id JOIN series ON series.study = study.id "
        "ORDER BY series.series_instance_uid, study.study_instance_uid"
    ).fetchall()
    found = []
    for patient, study, uid in rows:
        if annotated.get(uid):
            try:
                found.append(Pair(patient, study, Series(archive, uid), annotated[uid]))
            except (CannotProceed, ArchiveError) as error:
                logger.warning("series %s takes no part in the training: %s", uid, error)
    return found


def spacings_of(pairs: Sequence[Pair]) -> tuple[float, float]:
    """Return what a network of these images sees: spacing of its pixels and distance of its neighbours, mm.

    CT images as wide as usual have 160 pixels, but never finer ones than they have; neighbours are as far as slices
    usually are, and at least a pixel.

    Raises
    ------
    CannotProceed
        None of the series is a stack of slices.
    """
    widths, pixels, slices = [], [], []
    for pair in pairs:
        try:
            if not pair.may_be_in_hu:
                continue
            grid = pair.grid
            z, y, x = grid.spacing_mm_zyx
        except (CannotProceed, InvalidDicomError, OSError):
            continue  # told when the volume is read
        widths.append(max(grid.shape_zyx[1] * y, grid.shape_zyx[2] * x))
        pixels.append(max(y, x))
        slices.append(z)
    if not widths:
        raise CannotProceed("none of the annotated series is a stack of slices that lie in the patient")
    spacing = max(float(np.median(pixels)), float(np.median(widths)) / _ROWS_SEEN)
    return round(spacing, 4), round(max(float(np.median(slices)), spacing), 4)


def collect(
    pairs: Sequence[Pair],
    spacing_mm: float,
    reach_mm: float,
    segments: Collection[str] | None = None,
    progress: Callable[[float], None] = lambda _done: None,
) -> Examples:
    """Return the volumes of `pairs` with the classes of their voxels; what cannot be read is left out with a warning.

    Parameters
    ----------
    segments
        Names of classes (`SegmentClass.is_called`, in any case) to learn; all when None. The others are background.
    """
    wanted = None if segments is None else {name.casefold() for name in segments}
    found: list[tuple[Pair, Prepared, tuple[_Told, ...]]] = []
    for done, pair in enumerate(pairs):
        progress(done / len(pairs))
        try:
            _, grid, volume = read_on_grid(pair.series.paths)
            onto = prepared(volume, spacing_mm, reach_mm)
            told = tuple(_told(pair.annotations, grid, onto, wanted))
            if told:
                found.append((pair, onto, told))
        except (CannotProceed, InvalidDicomError, OSError) as error:
            logger.warning("series %s takes no part in the training: %s", pair.series.uid, error)
    progress(1.0)
    classes = _classes(each for _, _, told in found for each in told)
    numbers = {each.key: number for number, each in enumerate(classes, start=1)}
    return Examples(classes, tuple(_example(*parts, numbers) for parts in found))


@dataclass(frozen=True, eq=False)
class _Told:
    """What one annotation tells, at the spacing of the network.

    Attributes
    ----------
    is_told
        Where it tells anything, ``(z, y, x)``.
    maps
        Label maps ``(z, y, x)``, each with the classes that are wanted of it by their labels.
    """

    is_told: npt.NDArray[np.bool_]
    maps: tuple[tuple[npt.NDArray[np.uint8], Mapping[int, SegmentClass]], ...]


def _told(
    annotations: Iterable[Annotation], grid: SourceGrid, onto: Prepared, wanted: Collection[str] | None
) -> Iterator[_Told]:
    for annotation in annotations:
        try:
            reading = read_segmentation(pydicom.dcmread(annotation.path), grid)
        except (CannotProceed, InvalidDicomError, OSError, ValueError) as error:
            logger.warning("the annotation %s is left out: %s", annotation.path.name, error)
            continue
        is_named = np.array([not annotation.images or uid in annotation.images for uid, _ in grid.frames])
        for segmentation in reading.segmentations:  # a slice with a segment is told of, whatever the object names
            is_named |= segmentation.labels.any(axis=(1, 2))
        slices = np.broadcast_to(is_named.astype(np.uint8)[:, None, None], grid.shape_zyx)
        maps = tuple(
            (prepared_labels(segmentation.labels, onto), _wanted_of(segmentation, wanted))
            for segmentation in reading.segmentations
        )
        yield _Told(prepared_labels(slices, onto) > 0, maps)


def _wanted_of(segmentation: Segmentation, wanted: Collection[str] | None) -> dict[int, SegmentClass]:
    classes = {label: SegmentClass.of(segment) for label, segment in enumerate(segmentation.segments, start=1)}
    return {label: own for label, own in classes.items() if wanted is None or own.is_called(wanted)}


def _classes(told: Iterable[_Told]) -> tuple[SegmentClass, ...]:
    """Return the classes by name; the first spelling of a code counts."""
    found: dict[tuple[object, ...], SegmentClass] = {}
    for each in told:
        for _, own in each.maps:
            for one in own.values():
                found.setdefault(one.key, one)
    classes = told_apart(found.values())
    if len(classes) > _MOST_CLASSES:
        raise CannotProceed(
            f"the annotations tell of {len(classes)} classes, and a network tells at most {_MOST_CLASSES} apart: "
            "name those to learn"
        )
    return classes


def _example(
    pair: Pair, onto: Prepared, told: Sequence[_Told], numbers: Mapping[tuple[object, ...], int]
) -> Example:
    truth = np.full(onto.values.shape, UNKNOWN, np.uint8)
    is_told = np.zeros((len(truth), 1 + len(numbers)), dtype=np.bool_)
    is_told[:, 0] = True
    segments = []
    for each in told:
        truth[each.is_told] = 0
        for labels, classes in each.maps:
            counts = np.bincount(labels.ravel(), minlength=256)
            for label, own in classes.items():
                is_told[each.is_told.any(axis=(1, 2)), numbers[own.key]] = True
                segments.append((int(counts[label]), numbers[own.key], labels, label))
    # Where segments overlap the smaller one is the one that says more.
    for _, number, labels, label in sorted(segments, key=lambda segment: -segment[0]):
        truth[(labels == label) & is_told[:, number, None, None]] = number
    return Example(
        pair.patient, pair.study, pair.series.uid, onto.values, truth, is_told, onto.step, onto.slice_mm, onto.lowest_mm
    )
