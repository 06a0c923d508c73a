"""Label maps to DICOM SEG (PS3.3 A.51), through highdicom."""

from __future__ import annotations

from collections.abc import Sequence

import highdicom
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from config.identity import MANUFACTURER, MODEL_NAME, derived_uid, version
from plugins.segmentation.segmenter import Algorithm, Segment, Segmentation

_SERIES_NUMBER_OFFSET = 1000


def seg_object(result: Segmentation, source_images: Sequence[Dataset], *, recipe: str) -> Dataset:
    """Return a BINARY Segmentation that refers to `source_images`.

    Parameters
    ----------
    result
        Labels on the grid of the source images, with at least one segment.
    source_images
        The slices, in the order of the labels' first axis.
    recipe
        Canonical recipe: with the source series it determines the UIDs, so that a re-run replaces.
    """
    source = str(source_images[0].SeriesInstanceUID)
    series_uid = derived_uid(source, recipe)
    return highdicom.seg.Segmentation(  # type: ignore[no-any-return]  # highdicom is not typed
        source_images=list(source_images),
        pixel_array=result.labels,
        segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=_descriptions(result.segments, result.algorithm),
        series_instance_uid=series_uid,
        series_number=_series_number(source_images[0]),
        sop_instance_uid=derived_uid(series_uid, "1"),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=MODEL_NAME,
        software_versions=version(),
        device_serial_number="0",
        content_label="SEGMENTATION",
        content_description=result.algorithm.name[:64],
        series_description=f"Segments: {result.algorithm.name}"[:64],
        omit_empty_frames=True,
    )


def _series_number(image: Dataset) -> int:
    """Number the series after that of the images; by the offset alone where that would be no IS (PS3.5 6.2)."""
    number = _SERIES_NUMBER_OFFSET + int(image.get("SeriesNumber", 0) or 0)
    return number if number < 1 << 31 else _SERIES_NUMBER_OFFSET


def _descriptions(segments: Sequence[Segment], algorithm: Algorithm) -> list[highdicom.seg.SegmentDescription]:
    identification = highdicom.AlgorithmIdentificationSequence(
        name=algorithm.name, family=algorithm.family, version=algorithm.version, parameters=dict(algorithm.parameters)
    )
    return [
        highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=segment.label,
            segmented_property_category=segment.category,
            segmented_property_type=segment.type,
            algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=identification,
            tracking_uid=None,
        )
        for number, segment in enumerate(segments, start=1)
    ]


def read_labels(dataset: Dataset, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Return the label map ``(z, y, x)`` of a BINARY SEG written by `seg_object`, on a grid of `shape`."""
    seg = highdicom.seg.Segmentation.from_dataset(dataset, copy=False)
    uids = [item.ReferencedSOPInstanceUID for item in dataset.ReferencedSeriesSequence[0].ReferencedInstanceSequence]
    labels = seg.get_pixels_by_source_instance(uids, combine_segments=True, assert_missing_frames_are_empty=True)
    if labels.shape != shape:
        raise ValueError(f"expected a label map of {shape}, got {labels.shape}")
    return np.asarray(labels, np.uint8)
