"""What an archive offers for training: the slices that it would embed, their labels, and the annotations about them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from pydicom.errors import InvalidDicomError

from commands.annotations import annotations_of
from commands.training_masks import Masks, masks_of
from config.settings import Settings
from index.archive import Archive
from index.encoders.learned.corpus import NO_TRUTH, UNKNOWN, Corpus, Truth
from index.encoders.pixels import SIDE
from index.errors import ArchiveError
from plugins.embedding import is_picture
from plugins.node import CannotProceed, Series
from plugins.slices import Slices, choose_slices

logger = logging.getLogger(__name__)

_MOST_SEGMENTS = NO_TRUTH - 1


@dataclass(frozen=True, eq=False)
class _Sample:
    """A series: its slices, and the segment names of their pixels where an annotation tells of it."""

    patient: str
    study: str
    series: str
    slices: Slices
    masks: tuple[Masks | None, ...]


def collect(
    archive: Archive,
    settings: Settings,
    labels: Mapping[str, str],
    progress: Callable[[float], None] = lambda _done: None,
) -> Corpus:
    """Return the images that the node embeds, or would if similarity were enabled, as many of a series as it would.

    A series of which nothing can be read or decoded is left out with a warning, and counted.

    Parameters
    ----------
    labels
        Series Instance UID → label; series without one take part without.
    """
    annotations = annotations_of(archive)
    rows = archive.database.execute(
        "SELECT DISTINCT patient.patient_id, study.study_instance_uid, series.series_instance_uid "
        "FROM patient JOIN study ON study.patient = patient.id JOIN series ON series.study = study.id "
        "JOIN instance ON instance.series = series.id WHERE instance.rows <> '' "
        "ORDER BY series.series_instance_uid, study.study_instance_uid"
    ).fetchall()
    samples = []
    left_out = 0
    for done, (patient, study, uid) in enumerate(rows):
        progress(done / len(rows))
        try:
            series = Series(archive, uid)
            if not is_picture(series):
                continue
            slices = choose_slices(archive, series, settings.similarity.max_frames_per_series, lambda _done: None)
        except (CannotProceed, ArchiveError, InvalidDicomError, OSError) as error:
            logger.warning("series %s takes no part in the training: %s", uid, error)
            left_out += 1
            continue
        samples.append(_Sample(patient, study, uid, slices, masks_of(series, slices.frames, annotations.get(uid, ()))))
    progress(1.0)
    return _corpus(samples, labels, left_out)


def _corpus(samples: list[_Sample], labels: Mapping[str, str], left_out: int) -> Corpus:
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
        left_out=left_out,
    )


def _truth(masks: Iterable[Masks | None], segments: tuple[str, ...]) -> Truth:
    numbers = {name: number for number, name in enumerate(segments, start=1)}
    maps = []
    for mask in masks:
        numbered = np.full((SIDE, SIDE), NO_TRUTH if mask is None else 0, dtype=np.uint8)
        for name, inside in (mask or {}).items():
            if name in numbers:
                numbered[inside] = numbers[name]
        maps.append(numbered)
    return np.stack(maps)
