"""A small CT with segments of known voxels, and its SEG, for the tests of what is made of segments."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import CTImageStorage

from config.settings import Settings, load_settings
from index.archive import Archive
from plugins.worker import Worker
from reconstruct.dicom_items import code, item_of
from reconstruct.part10 import with_file_meta

STUDY, CT, SEG, FRAME = "2.25.71", "2.25.72", "2.25.73", "2.25.74"
SHAPE, SPACING = (12, 40, 32), (2.5, 0.5, 0.75)
LIVER, BONE = codes.SCT.Liver, codes.SCT.Bone
LABELS = ("Liver", "Κνήμη")


def truth() -> tuple[np.ndarray, np.ndarray]:
    """Stored values ``(z, y, x)``, and two segments ``(2, z, y, x)`` that overlap in a few voxels."""
    values = np.random.default_rng(5).integers(-1000, 1500, SHAPE).astype(np.int16)
    masks = np.zeros((2, *SHAPE), bool)
    masks[0, 2:7, 5:20, 4:11] = True
    masks[1, 6:10, 18:30, 9:28] = True
    return values, masks


def slices(values: np.ndarray, *, per_cm: bool = False, **attributes: Any) -> list[Dataset]:
    """The CT images of `values`, in HU or, with a Real World Value Mapping, in 1/cm (a ten thousandth a step)."""
    return [_slice(values, z, per_cm, attributes) for z in range(len(values))]


def _slice(values: np.ndarray, z: int, per_cm: bool, attributes: dict[str, Any]) -> Dataset:
    dataset = Dataset()
    dataset.SpecificCharacterSet = "ISO_IR 100"
    dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, f"{CT}.{z}"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = STUDY, CT, FRAME
    dataset.PatientName, dataset.PatientID = "Müller^Jörg", "P1"
    dataset.PatientBirthDate, dataset.PatientSex, dataset.ReferringPhysicianName = "19700101", "M", "Weiß"
    dataset.StudyDate, dataset.StudyTime, dataset.StudyID, dataset.AccessionNumber = "20240102", "101500", "S", "A"
    dataset.Modality, dataset.SeriesNumber, dataset.InstanceNumber = "CT", 4, z + 1
    dataset.Manufacturer, dataset.BodyPartExamined, dataset.PatientPosition = "M", "ABDOMEN", "HFS"
    dataset.ImageType, dataset.AcquisitionNumber, dataset.KVP = ["ORIGINAL", "PRIMARY", "AXIAL"], 1, 120
    dataset.PositionReferenceIndicator, dataset.SliceThickness = "", SPACING[0]
    dataset.PixelSpacing, dataset.ImageOrientationPatient = list(SPACING[1:]), [1, 0, 0, 0, 1, 0]
    dataset.ImagePositionPatient = [-10, 20, 30 + SPACING[0] * z]
    dataset.Rows, dataset.Columns = values.shape[1:]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PixelRepresentation = 1, "MONOCHROME2", 1
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.RescaleIntercept, dataset.RescaleSlope = 15, 0, 1
    dataset.RescaleType = "US" if per_cm else "HU"
    if per_cm:
        mapping = item_of(
            LUTExplanation="Attenuation", LUTLabel="ATT", RealWorldValueIntercept=0.2, RealWorldValueSlope=1e-4,
            MeasurementUnitsCodeSequence=[code("/cm", "UCUM", "/cm")],
        )  # fmt: skip
        mapping.add_new("RealWorldValueFirstValueMapped", "SS", -32768)
        mapping.add_new("RealWorldValueLastValueMapped", "SS", 32767)
        dataset.RealWorldValueMappingSequence = [mapping]
    dataset.PixelData = values[z].tobytes()
    dataset["PixelData"].VR = "OW"
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value(z) if callable(value) else value)
    return with_file_meta(dataset)


def seg_of(images: list[Dataset], masks: np.ndarray, number: int = 1) -> Dataset:
    """The SEG of the masks ``(segment, z, y, x)``, as another program writes it."""
    algorithm = highdicom.AlgorithmIdentificationSequence(
        name="By hand", family=codes.DCM.ManualProcessing, version="1"
    )
    described = [
        highdicom.seg.SegmentDescription(
            place, label, codes.SCT.Organ if kind == LIVER else codes.SCT.Tissue, kind, "AUTOMATIC", algorithm,
            tracking_uid=f"{SEG}.9.{place}", tracking_id=f"lesion {place}",
        )
        for place, (label, kind) in enumerate(zip(LABELS, (LIVER, BONE), strict=True), start=1)
    ]  # fmt: skip
    images = [with_charset(image) for image in images]
    return highdicom.seg.Segmentation(
        images, np.moveaxis(masks, 0, -1).astype(np.uint8), "BINARY", described, SEG, 7, f"{SEG}.{number}", number,
        "Other", "Other", "1", "1",
    )  # fmt: skip


def with_charset(image: Dataset) -> Dataset:
    """Return the header in Unicode: the labels of the segments are Greek."""
    image = Dataset(image)
    image.SpecificCharacterSet = "ISO_IR 192"
    return image


def report_settings(tmp_path: Path, **report: Any) -> Settings:
    overrides = {
        "archive": {"data": tmp_path / "archive"}, "jobs": {"max_attempts": 1}, "report": {"foreign": True, **report},
    }  # fmt: skip
    return load_settings(environment={}, overrides=overrides)


def store(archive: Archive, *objects: Dataset) -> None:
    for dataset in objects:
        buffer = BytesIO()
        dataset.save_as(buffer, enforce_file_format=True)
        archive.ingest(buffer.getvalue(), overwrite="always")


def work(archive: Archive, settings: Settings) -> dict[str, str]:
    """Do what is queued; return the sentence of each kind of job that failed."""
    Worker(archive, settings, "w").run_until_idle()
    return {job.kind: job.error for job in archive.jobs.recent(states=("failed",))}


def paths_of(archive: Archive, modality: str) -> list[Path]:
    rows = archive.database.execute(
        "SELECT sop_instance_uid FROM instance JOIN series ON series.id = instance.series WHERE modality = ? "
        "ORDER BY sop_instance_uid",
        (modality,),
    ).fetchall()
    return [archive.open_instance(uid).path for (uid,) in rows]
