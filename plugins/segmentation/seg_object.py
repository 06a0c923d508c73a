"""Label maps to DICOM SEG, binary (PS3.3 A.51) or as a label map (A.51 since Supplement 243), through highdicom."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Literal

import highdicom
import numpy as np
from highdicom.color import CIELabColor
from highdicom.sr import CodedConcept
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code
from pydicom.valuerep import DSfloat

from config.identity import MANUFACTURER, MODEL_NAME, derived_uid, version
from plugins.segmentation.colours import colour
from plugins.segmentation.segmenter import Algorithm, Segment, Segmentation
from plugins.segmentation.source_grid import source_grid
from reconstruct.dicom_items import code, decimal, item_of
from reconstruct.provenance import TYPE_2, copy_patient_and_study, number_after

VERSION = 2
"""Part of the recipe: raised when the same labels would become another object."""

Kind = Literal["binary", "labelmap"]

_TYPES = {
    "binary": highdicom.seg.SegmentationTypeValues.BINARY,
    "labelmap": highdicom.seg.SegmentationTypeValues.LABELMAP,
}
_SERIES_NUMBER_OFFSET = 1000
_LONGEST_LABEL = 64
"""Segment Label, Code Meaning and the descriptions are LO (PS3.5 table 6.2-1)."""

_LONGEST_DESCRIPTION = 1024
"""Contribution Description is an ST."""

_CHARACTER_SET = "ISO_IR 192"
"""Labels may be in any script, and the names of patient and physicians in another."""

_EQUIPMENT = ("InstitutionName", "StationName", "ManufacturerModelName", "DeviceSerialNumber", "SoftwareVersions")


def seg_object(
    result: Segmentation, source_images: Sequence[Dataset], *, recipe: str, kind: Kind = "binary"
) -> Dataset:
    """Return a Segmentation that refers to `source_images`.

    Frames without a segment are left out; the others go by segment and slice. All UIDs follow from the source series
    and the recipe.

    Parameters
    ----------
    result
        Labels on the grid of the source images, with at least one segment.
    source_images
        The slices, in the order of the labels' first axis.
    recipe
        Canonical recipe: with the source series it determines the UIDs, so that a re-run replaces.
    kind
        One frame for each segment of a slice, or one for all: the latter is another SOP class.
    """
    first = source_images[0]
    context = _context(first, recipe)
    series_uid = derived_uid(str(first.SeriesInstanceUID), recipe)
    dataset = highdicom.seg.Segmentation(
        source_images=_stand_ins(source_images),
        pixel_array=result.labels,
        segmentation_type=_TYPES[kind],
        segment_descriptions=_descriptions(result.segments, result.algorithm, series_uid),
        series_instance_uid=series_uid,
        series_number=number_after(first, _SERIES_NUMBER_OFFSET),
        sop_instance_uid=derived_uid(series_uid, "1"),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=MODEL_NAME,
        software_versions=version(),
        device_serial_number="0",
        content_label="SEGMENTATION",
        content_description=result.algorithm.name[:_LONGEST_LABEL],
        series_description=f"Segments: {result.algorithm.name}"[:_LONGEST_LABEL],
        omit_empty_frames=True,
        specific_character_set=_CHARACTER_SET,
    )
    dataset.update(context)
    _name_dimensions(dataset, derived_uid(series_uid, "dimensions"))
    return dataset  # type: ignore[no-any-return]  # highdicom is not typed


def _context(image: Dataset, recipe: str) -> Dataset:
    """Return patient, study and equipment as the image tells them, in Unicode."""
    context = Dataset()
    copy_patient_and_study(image, context)
    context.ContributingEquipmentSequence = _equipment(image, recipe)
    for _ in context.iterall():  # texts are read while it is known in which character set they are written
        pass
    context.SpecificCharacterSet = _CHARACTER_SET
    return context


def _stand_ins(images: Sequence[Dataset]) -> list[Dataset]:
    """Return the images as highdicom takes them: what it would refuse is left empty, and comes from the images later.

    UIDs that an image lacks are those of its File Meta Information; one that is not told how thick it is, is as thick
    as the images are far apart.
    """
    is_told = all(image.get("SliceThickness") for image in images)
    step = None if is_told else source_grid(images).step_mm
    return [_stand_in(image, None if step is None else decimal(step)) for image in images]


def _stand_in(image: Dataset, thickness: DSfloat | None) -> Dataset:
    taken = Dataset(dict(image.items()))
    for keyword in ("SOPClassUID", "SOPInstanceUID"):
        if not image.get(keyword):
            _replace(taken, keyword, image.file_meta.get(f"MediaStorage{keyword}"))
    for keyword in TYPE_2:
        _replace(taken, keyword, None)
    if not image.get("SliceThickness"):
        _replace(taken, "SliceThickness", thickness)
    return taken


def _replace(dataset: Dataset, keyword: str, value: str | DSfloat | None) -> None:
    """Set a value in `dataset` alone: pydicom would set it in the element, which may be that of others, too."""
    dataset.pop(keyword, None)
    setattr(dataset, keyword, value)


def _descriptions(
    segments: Sequence[Segment], algorithm: Algorithm, series_uid: str
) -> list[highdicom.seg.SegmentDescription]:
    identification = highdicom.AlgorithmIdentificationSequence(
        name=algorithm.name, family=algorithm.family, version=algorithm.version, parameters=dict(algorithm.parameters)
    )
    described = [
        highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=segment.label[:_LONGEST_LABEL],
            segmented_property_category=_coded(segment.category),
            segmented_property_type=_coded(segment.type),
            algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=identification,
            tracking_id=segment.label,
            tracking_uid=derived_uid(series_uid, "segment", segment.label),
            display_color=CIELabColor.from_rgb(*colour(segment.type, number)),
        )
        for number, segment in enumerate(segments, start=1)
    ]
    for description, segment in zip(described, segments, strict=True):
        if segment.modifiers:
            modifiers = [_coded(one) for one in segment.modifiers]
            description.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = modifiers
    return described


def _coded(told: Code) -> CodedConcept:
    """Return a code whose meaning fits, whatever those say that a segmenter has learned from."""
    return CodedConcept.from_code(told._replace(meaning=told.meaning[:_LONGEST_LABEL]))


def _name_dimensions(dataset: Dataset, uid: str) -> None:
    """Give the dimension organization a UID that is the same in each run (PS3.3 C.7.6.17)."""
    for item in (*dataset.DimensionOrganizationSequence, *dataset.DimensionIndexSequence):
        item.DimensionOrganizationUID = uid


def _equipment(image: Dataset, recipe: str) -> list[Dataset]:
    """What made the images, and this node with its recipe (PS3.3 C.12.1.1.5)."""
    earlier = copy.deepcopy(list(image.get("ContributingEquipmentSequence") or []))
    if image.get("Manufacturer") != MANUFACTURER:
        scanner = item_of(
            PurposeOfReferenceCodeSequence=[code("109101", "DCM", "Acquisition Equipment")],
            Manufacturer=str(image.get("Manufacturer") or "UNKNOWN"),
            ContributionDescription="Acquisition of the images",
        )
        for keyword in _EQUIPMENT:
            if image.get(keyword):
                scanner[keyword] = copy.deepcopy(image[keyword])
        earlier.append(scanner)
    node = item_of(
        PurposeOfReferenceCodeSequence=[code("109102", "DCM", "Processing Equipment")],
        Manufacturer=MANUFACTURER,
        ManufacturerModelName=MODEL_NAME,
        SoftwareVersions=version(),
        ContributionDescription=f"Segmentation {recipe}"[:_LONGEST_DESCRIPTION],
    )
    return [*earlier, node]


def read_labels(dataset: Dataset, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Return the label map ``(z, y, x)`` of a SEG written by `seg_object`, on a grid of `shape`."""
    seg = highdicom.seg.Segmentation.from_dataset(dataset, copy=False)
    uids = [item.ReferencedSOPInstanceUID for item in dataset.ReferencedSeriesSequence[0].ReferencedInstanceSequence]
    labels = seg.get_pixels_by_source_instance(uids, combine_segments=True, assert_missing_frames_are_empty=True)
    if labels.shape != shape:
        raise ValueError(f"expected a label map of {shape}, got {labels.shape}")
    return np.asarray(labels, np.uint8)
