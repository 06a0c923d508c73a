"""Stacks of images anywhere in the patient, and labels on them, for tests of annotations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sr.coding import Code
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    ExplicitVRLittleEndian,
    RTStructureSetStorage,
    generate_uid,
)

from plugins.segmentation.segmenter import Algorithm, Segment, Segmentation

AXIAL = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0))
SAGITTAL = ((0.0, 1.0, 0.0), (0.0, 0.0, -1.0))
CORONAL = ((1.0, 0.0, 0.0), (0.0, 0.0, -1.0))
OBLIQUE = ((0.8, 0.6, 0.0), (-0.36, 0.48, 0.8))
"""Directions along a row and along a column."""

ORGANS = (("Liver", "10200004"), ("Spleen", "78961009"), ("Kidney", "64033007"), ("Heart", "80891009"))
ALGORITHM = Algorithm("Test", "1", Code("123105", "DCM", "Histogram Analysis"), {"level": "5"})


def uid(*words: object) -> str:
    """The same UID for the same words."""
    return str(generate_uid(entropy_srcs=[str(word) for word in words]))


def images(
    shape: tuple[int, int, int],
    *,
    directions: tuple[Sequence[float], Sequence[float]] = AXIAL,
    origin: Sequence[float] = (-20.0, 10.0, 5.0),
    spacing: tuple[float, float, float] = (2.5, 0.8, 0.7),
    places: Sequence[float] | None = None,
    name: str = "stack",
    frame_of_reference: str = "frame",
    values: np.ndarray | None = None,
    **attributes: Any,
) -> list[Dataset]:
    """CT slices along the normal; `places` are their distances from `origin` in steps, 0, 1, 2 … when not told."""
    row, column = np.asarray(directions)
    normal = np.cross(row, column)
    slices = []
    for number, place in enumerate(range(shape[0]) if places is None else places):
        dataset = _patient(name, frame_of_reference, number)
        dataset.Rows, dataset.Columns = shape[1:]
        dataset.ImageOrientationPatient = [*map(float, row), *map(float, column)]
        dataset.ImagePositionPatient = [round(float(v), 6) for v in np.asarray(origin) + place * spacing[0] * normal]
        dataset.PixelSpacing, dataset.SliceThickness = [spacing[1], spacing[2]], spacing[0]
        stored = np.full(shape[1:], number) if values is None else values[number]
        dataset.PixelData = np.asarray(stored, "<i2").tobytes()
        for keyword, value in attributes.items():
            setattr(dataset, keyword, value)
        slices.append(dataset)
    return slices


def multi_frame(slices: Sequence[Dataset], order: Sequence[int]) -> Dataset:
    """The slices as frames of one enhanced CT image, in `order`."""
    first = slices[0]
    dataset = _patient("multi-frame", "frame", 0)
    dataset.FrameOfReferenceUID = first.FrameOfReferenceUID
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = EnhancedCTImageStorage
    dataset.Rows, dataset.Columns, dataset.NumberOfFrames = first.Rows, first.Columns, len(order)
    del dataset.RescaleSlope, dataset.RescaleIntercept
    shared = Dataset()
    shared.PlaneOrientationSequence = [_item(ImageOrientationPatient=first.ImageOrientationPatient)]
    shared.PixelMeasuresSequence = [_item(PixelSpacing=first.PixelSpacing, SliceThickness=first.SliceThickness)]
    shared.PixelValueTransformationSequence = [_item(RescaleSlope=2, RescaleIntercept=-1000, RescaleType="HU")]
    dataset.SharedFunctionalGroupsSequence = [shared]
    dataset.PerFrameFunctionalGroupsSequence = [
        _item(PlanePositionSequence=[_item(ImagePositionPatient=slices[index].ImagePositionPatient)])
        for index in order
    ]
    dataset.PixelData = b"".join(slices[index].PixelData for index in order)
    return dataset


def random_labels(shape: tuple[int, int, int], segments: int, seed: int) -> np.ndarray:
    """Every segment somewhere, most of it background, two slices of more than three without any."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, segments + 1, shape).astype(np.uint8) * (random.random(shape) < 0.3)
    if shape[0] > 3:
        labels[1] = labels[-1] = 0
    labels.reshape(-1)[shape[1] * shape[2] * (2 if shape[0] > 3 else 0) :][:segments] = np.arange(1, segments + 1)
    return labels.astype(np.uint8)


def segmentation(labels: np.ndarray) -> Segmentation:
    """Labels with organs as their segments."""
    category = Code("91723000", "SCT", "Anatomical Structure")
    organs = ORGANS[: int(labels.max())]
    segments = tuple(Segment(name.lower(), category, Code(value, "SCT", name)) for name, value in organs)
    return Segmentation(labels, segments, ALGORITHM)


def structure_set(
    slices: Sequence[Dataset], regions: Sequence[tuple[str, Sequence[tuple[int | float, np.ndarray]]]], **options: Any
) -> Dataset:
    """An RTSTRUCT with regions drawn on `slices`.

    Each region is a name and contours, each the slice (or a place between two) and points, axes (point, (row, column)).
    Options: ``kind`` is the geometric type, ``observations`` attributes of each region's observation.
    """
    first, step = slices[0], np.zeros(3)
    if len(slices) > 1:
        step = np.subtract(slices[1].ImagePositionPatient, first.ImagePositionPatient)
    row, column = np.reshape(first.ImageOrientationPatient, (2, 3))
    dataset = _patient("structures", "frame", 0)
    for keyword in ("Rows", "FrameOfReferenceUID", "RescaleSlope", "RescaleIntercept"):
        if keyword in dataset:
            delattr(dataset, keyword)
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = RTStructureSetStorage
    dataset.Modality, dataset.StructureSetLabel = "RTSTRUCT", "Test"
    images_of = [
        _item(ReferencedSOPClassUID=one.SOPClassUID, ReferencedSOPInstanceUID=one.SOPInstanceUID) for one in slices
    ]
    series = _item(SeriesInstanceUID=first.SeriesInstanceUID, ContourImageSequence=images_of)
    study = _item(ReferencedSOPInstanceUID=first.StudyInstanceUID, RTReferencedSeriesSequence=[series])
    dataset.ReferencedFrameOfReferenceSequence = [
        _item(FrameOfReferenceUID=first.FrameOfReferenceUID, RTReferencedStudySequence=[study])
    ]
    names, drawn, observed = [], [], []
    for number, (name, contours) in enumerate(regions, start=1):
        names.append(_item(
            ROINumber=number, ReferencedFrameOfReferenceUID=first.FrameOfReferenceUID, ROIName=name,
            ROIGenerationAlgorithm="MANUAL",
        ))  # fmt: skip
        items = []
        for place, points in contours:
            corner = np.asarray(first.ImagePositionPatient, float) + place * step
            down, across = column * first.PixelSpacing[0], row * first.PixelSpacing[1]
            coordinates = corner + np.outer(points[:, 0], down) + np.outer(points[:, 1], across)
            items.append(_item(
                ContourGeometricType=options.get("kind", "CLOSED_PLANAR"), NumberOfContourPoints=len(points),
                ContourData=[f"{value:.6f}"[:16] for value in coordinates.ravel()],
            ))  # fmt: skip
        drawn.append(_item(ReferencedROINumber=number, ContourSequence=items))
        observed.append(_item(ReferencedROINumber=number, **options.get("observations", {}).get(name, {})))
    dataset.StructureSetROISequence, dataset.ROIContourSequence = names, drawn
    dataset.RTROIObservationsSequence = observed
    del dataset.PixelRepresentation, dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit
    del dataset.SamplesPerPixel, dataset.PhotometricInterpretation
    return dataset


def _item(**values: Any) -> Dataset:
    dataset = Dataset()
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    return dataset


def _patient(name: str, frame_of_reference: str, number: int) -> Dataset:
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, uid(name, number)
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = uid("study"), uid(name)
    dataset.FrameOfReferenceUID, dataset.PositionReferenceIndicator = uid(frame_of_reference), ""
    dataset.PatientID, dataset.PatientName, dataset.PatientBirthDate, dataset.PatientSex = "P1", "Doe^Jane", "", ""
    dataset.StudyDate, dataset.StudyTime, dataset.AccessionNumber, dataset.StudyID = "20240102", "101500", "", "S1"
    dataset.ReferringPhysicianName, dataset.Modality = "", "CT"
    dataset.SeriesNumber, dataset.InstanceNumber = 1, number + 1
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 1
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.RescaleSlope, dataset.RescaleIntercept = 2, -1000
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = CTImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    return dataset
