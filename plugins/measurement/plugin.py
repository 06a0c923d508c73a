"""Built-in plug-in: the segments of a stored SEG are measured, and drawn over three planes.

Two jobs of their own, so that one that fails harms not the other. Both work on the stored SEG, whoever made it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import pydicom
from pydicom.dataset import Dataset

from config.identity import derived_uid
from config.settings import Settings
from index import derivations
from index.archive import Archive
from index.derivations import Output
from plugins.hookspecs import JobFunction, hookimpl
from plugins.measurement.key_picture import key_picture
from plugins.measurement.measuring import measure
from plugins.measurement.subject import (
    Subject,
    energy_bins,
    is_segmentation,
    read_subject,
    segmented_only,
    source_series,
)
from plugins.node import Series, Task, Work
from plugins.publish import is_made, publish, record
from reconstruct.provenance import in_words

MEASURE, PICTURE = "measure", "picture"
_LONGEST_STEP_S = 3600.0


@hookimpl
def jobs_for_series(series: Series, settings: Settings) -> list[Work]:
    """Measure and draw the segments that this node found; those from elsewhere where the settings say so."""
    wanted = settings.report
    if not is_segmentation(series) or not (wanted.foreign or series.made_by is not None):
        return []
    kinds = [kind for kind, on in ((MEASURE, wanted.enabled), (PICTURE, wanted.picture)) if on]
    return [Work(kind, series.uid) for kind in kinds]


@hookimpl
def job_functions() -> Mapping[str, JobFunction]:
    """Offer the jobs `measure` and `picture`."""
    return {MEASURE: write_reports, PICTURE: draw_pictures}


@hookimpl
def stalled_limits() -> Mapping[str, float]:
    """Measuring a hundred segments in one energy bin of a large scan is one step."""
    return dict.fromkeys((MEASURE, PICTURE), _LONGEST_STEP_S)


def write_reports(task: Task) -> None:
    """Store one measurement report for each SEG of the series.

    Raises
    ------
    CannotProceed
        The source is not stored, or the SEG does not lie on it; the sentence says which.
    """
    from plugins.measurement.report import VERSION, report

    least = task.settings.report.min_volume_mm3
    recipe = {"kind": MEASURE, "version": VERSION, "min_volume_mm3": least}

    def made_of(subject: Subject, series_uid: str, progress: Callable[[float], None]) -> Dataset | None:
        measured = measure(task.archive, subject, min_volume_mm3=least, progress=progress)
        if not measured.segments:
            return None
        return report(
            subject.seg, measured, recipe=_told(recipe), observer=task.settings.scp.aet, series_uid=series_uid
        )

    _derive(task, recipe, made_of, every_bin=True)


def draw_pictures(task: Task) -> None:
    """Store one key picture for each SEG of the series that has a voxel; of the energy bin that was segmented.

    Raises
    ------
    CannotProceed
        As `write_reports`.
    """
    from plugins.measurement import picture

    least, width = task.settings.report.min_volume_mm3, task.settings.report.picture_width
    recipe = {"kind": PICTURE, "version": picture.VERSION, "min_volume_mm3": least, "width": width}

    def made_of(subject: Subject, series_uid: str, progress: Callable[[float], None]) -> Dataset | None:
        measured = measure(task.archive, segmented_only(subject), min_volume_mm3=least, progress=progress)
        if not measured.slices:
            return None
        pixels = picture.picture_of(subject, measured, width)
        description = f"Segments over axial, coronal and sagittal planes: {_told(recipe)}"
        return key_picture(pixels, subject.seg, subject.source.slices, series_uid=series_uid, description=description)

    _derive(task, recipe, made_of, every_bin=False)


class _Making(Protocol):
    def __call__(self, subject: Subject, series_uid: str, progress: Callable[[float], None]) -> Dataset | None: ...


def _derive(task: Task, recipe: Mapping[str, Any], made_of: _Making, *, every_bin: bool) -> None:
    """Make an object of each SEG of the task's series, unless that has been done for what is stored now."""
    archive, series = task.archive, task.series()
    segs: list[Dataset] = [pydicom.dcmread(path) for path in series.paths]
    digest = derivations.source_digest(archive.database, series.uid, *_sources(archive, segs, every_bin=every_bin))
    if is_made(archive, series.uid, recipe, digest):
        return
    series_uid = derived_uid(series.uid, derivations.canonical(recipe))
    made = []
    for place, seg in enumerate(segs):
        progress = task.progress_of(place, len(segs))
        made.append(made_of(read_subject(archive, seg), series_uid, progress))
    objects = [dataset for dataset in made if dataset is not None]
    outputs: tuple[Output, ...] = (publish(archive, objects),) if objects else ()
    record(archive, series.uid, recipe, digest, outputs)


def _sources(archive: Archive, segs: Sequence[Dataset], *, every_bin: bool) -> list[str]:
    """Return the series that the SEGs are measured in."""
    used: set[str] = set()
    for seg in segs:
        source = source_series(archive, seg)
        used.update(energy_bins(archive, source) if every_bin else (source.uid,))
    return sorted(used)


def _told(recipe: Mapping[str, Any]) -> str:
    return in_words({key: value for key, value in recipe.items() if key != "kind"})
