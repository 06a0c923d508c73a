"""Built-in plug-in: volumes are segmented, by each segmenter that the settings name, and stored as SEG."""

from __future__ import annotations

from collections.abc import Mapping

from pydicom.uid import CTImageStorage

from config.settings import Settings
from index import derivations
from index.derivations import Output
from plugins import reconstruction
from plugins.hookspecs import JobFunction, hookimpl
from plugins.manager import Plugins
from plugins.node import Cancelled, CannotProceed, Interrupted, Series, Task, Work
from plugins.publish import is_made, publish, record
from plugins.segmentation.classical import Classical
from plugins.segmentation.learned.segmenter import Learned
from plugins.segmentation.offered import Offer, UnknownSegmenter, offered
from plugins.segmentation.segmenter import Segmentation, Segmenter, Volume
from plugins.segmentation.totalsegmentator import TotalSegmentator
from plugins.segmentation.volume_reader import read_volume

KIND = "segment"
SEGMENTER = "segmenter"
"""Parameter of the job: the name of the segmenter."""

_LONGEST_STEP_S = 3600.0
_FEWEST_SLICES = 3
_NOT_VOLUMES = {"LOCALIZER", "PROJECTION IMAGE", "MIP", "MPR"}
"""Values 3 of Image Type and after it whose slices are no volume of their own (PS3.3 C.8.2.1.1.1)."""


@hookimpl
def jobs_for_series(series: Series, settings: Settings) -> list[Work]:
    """Segment the series with each segmenter in use, if it is one of those that the settings want segmented."""
    wanted = settings.segmentation
    if not wanted.enabled or not _is_wanted(series, wanted.images):
        return []
    return [Work(KIND, series.uid, {SEGMENTER: name}) for name in wanted.use]


def _is_wanted(series: Series, images: str) -> bool:
    """The lowest energy bin of what this node reconstructed (the strongest contrast); by setting any CT in HU."""
    if series.instances[0].sop_class_uid != CTImageStorage:
        return False
    if series.made_by is not None:
        return reconstruction.is_lowest_bin(series)
    kinds = {str(value).upper() for value in series.header.get("ImageType") or ()}
    is_hu = str(series.header.get("RescaleType") or "HU").upper() == "HU" and "RescaleSlope" in series.header
    return images == "ct" and is_hu and len(series.instances) >= _FEWEST_SLICES and not kinds & _NOT_VOLUMES


@hookimpl
def job_functions() -> Mapping[str, JobFunction]:
    """Offer the job `segment`."""
    return {KIND: segment}


@hookimpl
def stalled_limits() -> Mapping[str, float]:
    """Reading a large volume, and some steps of `classical` on it, take minutes each on a slow machine."""
    return {KIND: _LONGEST_STEP_S}


@hookimpl
def segmenters(settings: Settings) -> list[Segmenter]:
    """Offer `classical`, `learned` where its weights are in the archive, `totalsegmentator` where it is installed."""
    wanted = settings.segmentation
    classical = Classical(wanted.smoothing_voxels, wanted.min_volume_mm3)
    return [classical, *Learned.offered(settings.archive.data, wanted), *TotalSegmentator.offered(wanted)]


def segment(task: Task) -> None:
    """Segment the CT series with the job's segmenter and store one SEG; nothing when the volume holds no object.

    Raises
    ------
    CannotProceed
        The segmenter is not in use (any more), the images have no Frame of Reference, or what the segmenter returned
        does not fit the volume.
    """
    from plugins.segmentation.seg_object import VERSION, seg_object  # highdicom takes its time

    wanted = task.settings.segmentation
    offer = _offer(task)
    segmenter = offer.segmenter
    series = task.series()
    digest = series.digest
    recipe = {
        "kind": KIND, SEGMENTER: segmenter.name, "object": wanted.object, "object_version": VERSION,
        **segmenter.recipe(),
    }  # fmt: skip
    if is_made(task.archive, series.uid, recipe, digest):
        return
    _refuse_without_frame(series)
    slices, volume = read_volume(series.paths)
    task.progress(0.1)
    result = _segmented(task, offer, volume)
    _check(result, volume, segmenter.name)
    task.progress(0.8)
    outputs: tuple[Output, ...] = ()
    if result.segments:
        dataset = seg_object(result, slices, recipe=derivations.canonical(recipe), kind=wanted.object)
        task.progress(0.9)
        outputs = (publish(task.archive, [dataset]),)
    record(task.archive, series.uid, recipe, digest, outputs)


def _offer(task: Task) -> Offer:
    name = str(task.job.parameters.get(SEGMENTER, ""))
    if task.plugins is None or name not in task.settings.segmentation.use:
        raise CannotProceed(f"expected a segmenter that [segmentation] use names, got {name!r}")
    try:
        return offered(task.plugins, task.settings, name)
    except UnknownSegmenter as error:
        raise CannotProceed(str(error)) from error


def _refuse_without_frame(series: Series) -> None:
    """Refuse what no SEG can be made of, before minutes of work: it lies in the Frame of Reference of its images."""
    if not series.header.get("FrameOfReferenceUID"):
        raise CannotProceed(
            f"the images of series {series.uid} have no Frame of Reference UID (0020,0052), in which a segmentation "
            "would have to lie"
        )


def _segmented(task: Task, offer: Offer, volume: Volume) -> Segmentation:
    """Let the segmenter work; whatever it raises is told with its name and that of the plug-in that offers it."""
    try:
        with task.in_hands_of(offer.plugin, _limit_s(task, offer.plugin)):
            return offer.segmenter.segment(volume, lambda fraction: task.progress(0.1 + 0.7 * fraction))
    except (CannotProceed, Interrupted, Cancelled):
        raise
    except Exception as error:
        who = f"segmenter {offer.segmenter.name} of plug-in {offer.plugin}"
        raise RuntimeError(f"{who}: {type(error).__name__}: {error}") from error


def _limit_s(task: Task, plugin: str) -> float:
    """How long the plug-in's segmenters may report no progress, seconds."""
    return task.plugins.stalled_s(plugin, KIND) if isinstance(task.plugins, Plugins) else task.settings.jobs.stalled_s


def _check(result: Segmentation, volume: Volume, name: str) -> None:
    """Refuse labels that are not on the volume's grid, or stand for no segment."""
    if result.labels.shape != volume.values.shape:
        raise CannotProceed(
            f"segmenter {name}: expected labels of shape {volume.values.shape}, got {result.labels.shape}"
        )
    greatest = int(result.labels.max(initial=0))
    if greatest > len(result.segments):
        raise CannotProceed(f"segmenter {name}: expected labels up to {len(result.segments)}, got {greatest}")
