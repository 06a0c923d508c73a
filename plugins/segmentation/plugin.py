"""Built-in plug-in: the first energy bin of a reconstruction is segmented by thresholds and stored as SEG."""

from __future__ import annotations

from collections.abc import Mapping

from pydicom.uid import CTImageStorage

from config.settings import Settings
from index import derivations
from index.derivations import Output
from plugins import reconstruction
from plugins.hookspecs import JobFunction, hookimpl
from plugins.node import Series, Task, Work
from plugins.publish import is_made, publish, record
from plugins.segmentation import thresholds
from plugins.segmentation.seg_object import seg_object
from plugins.segmentation.volume_reader import read_volume

KIND = "segment"


@hookimpl
def jobs_for_series(series: Series, settings: Settings) -> list[Work]:
    """Segment the lowest energy bin of what this node reconstructed: it has the strongest contrast."""
    made_by = series.made_by
    is_first_bin = (
        made_by is not None
        and made_by.kind == reconstruction.KIND
        and series.header.SOPClassUID == CTImageStorage
        and made_by.outputs[0] == series.uid
    )
    return [Work(KIND, series.uid)] if is_first_bin and settings.segmentation.enabled else []


@hookimpl
def job_functions() -> Mapping[str, JobFunction]:
    """Offer the job `segment`."""
    return {KIND: segment}


def segment(task: Task) -> None:
    """Segment the CT series and store one SEG; nothing when the volume holds no object."""
    settings = task.settings.segmentation
    series = task.series()
    digest = series.digest
    recipe = {
        "kind": KIND,
        "version": thresholds.VERSION,
        "min_volume_mm3": settings.min_volume_mm3,
        "smoothing_voxels": settings.smoothing_voxels,
    }
    if is_made(task.archive, series.uid, recipe, digest):
        return
    slices, volume = read_volume(series.paths)
    task.progress(0.2)
    result = thresholds.segment(
        volume, smoothing_voxels=settings.smoothing_voxels, min_volume_mm3=settings.min_volume_mm3
    )
    task.progress(0.5)
    outputs: tuple[Output, ...] = ()
    if result.segments:
        dataset = seg_object(result, slices, recipe=derivations.canonical(recipe))
        task.progress(0.9)
        outputs = (publish(task.archive, [dataset]),)
    record(task.archive, series.uid, recipe, digest, outputs)
