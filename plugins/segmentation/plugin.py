"""Built-in plug-in: the first energy bin of a reconstruction is segmented by thresholds and stored as SEG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
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
from plugins.segmentation.segmenter import Volume
from reconstruct.projections import elements

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


def read_volume(paths: Sequence[Path]) -> tuple[list[Dataset], Volume]:
    """Read an axial CT series: the slices from feet to head, and their volume in HU or 1/cm.

    The effective energy is the one that reconstruction wrote into the slices, None where there is none.
    """
    read: list[Dataset] = [pydicom.dcmread(path) for path in paths]
    slices = sorted(read, key=lambda ds: float(ds.ImagePositionPatient[2]))
    first = slices[0]
    is_hu = str(first.get("RescaleType", "HU")) == "HU"
    values = np.stack([_values(dataset, is_hu=is_hu) for dataset in slices])
    z = abs(float(slices[1].ImagePositionPatient[2]) - float(first.ImagePositionPatient[2])) if len(slices) > 1 else 0
    row, column = (float(value) for value in first.PixelSpacing)
    kev = elements.read(first).get("EffectiveEnergy")
    spacing = (z or float(first.SliceThickness), row, column)
    return slices, Volume(values, spacing, is_hu, None if kev is None else float(kev))


def _values(dataset: Dataset, *, is_hu: bool) -> NDArray[np.float32]:
    """Return the slice in HU, else in the unit of its Real World Value Mapping, which for our own series is 1/cm."""
    stored = dataset.pixel_array.astype(np.float32)
    if is_hu:
        return stored * np.float32(dataset.RescaleSlope) + np.float32(dataset.RescaleIntercept)
    mapping = dataset.RealWorldValueMappingSequence[0]
    return stored * np.float32(mapping.RealWorldValueSlope) + np.float32(mapping.RealWorldValueIntercept)
