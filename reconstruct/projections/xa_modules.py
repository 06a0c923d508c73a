"""The modules and functional groups of an Enhanced XA Image that are not private (PS3.3 A.47, C.8.19).

What a micro-CT scanner does not know and the standard wants is written as what it is: empty, or the one code that
says so.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from config.identity import derived_uid
from reconstruct.dicom_items import code, decimal, item_of
from reconstruct.projections.acquisition import Exposure

_UNKNOWN = "UNKNOWN"
"""For type 1 elements of the scanner that nobody told."""

IMAGE_TYPE = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]

_EMPTY_IF_UNKNOWN = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID",
    "ReferringPhysicianName", "AccessionNumber", "AcquiredImageAreaDoseProduct", "PositionReferenceIndicator",
)  # fmt: skip
"""Type 2 elements of modules that the scan may know nothing of. (Laterality is told by the frame anatomy.)"""


def add_acquisition(dataset: Dataset, exposure: Exposure, views: int) -> None:
    """Add what describes a scan of `views` views as a whole; what `dataset`, of a known series, has already is kept."""
    for keyword in _EMPTY_IF_UNKNOWN:
        if keyword not in dataset:
            setattr(dataset, keyword, None)
    started = _acquisition_datetime(dataset)
    defaults: dict[str, Any] = {
        "SpecificCharacterSet": "ISO_IR 192",
        "Modality": "XA",
        "SeriesNumber": 1,
        "SeriesDate": started[:8],
        "SeriesTime": started[8:],
        "ContentDate": started[:8],
        "ContentTime": started[8:],
        "AcquisitionDateTime": started,
        "AcquisitionNumber": 1,
        "Manufacturer": _UNKNOWN,
        "ManufacturerModelName": _UNKNOWN,
        "DeviceSerialNumber": _UNKNOWN,
        "SoftwareVersions": _UNKNOWN,
        "AcquisitionProtocolName": "Cone-beam scan",
        "CArmPositionerTabletopRelationship": "YES",
        "PlanesInAcquisition": "MONOPLANE",
        "PlaneIdentification": "MONOPLANE",
        "RadiationMode": "CONTINUOUS",
        "RadiationSetting": "GR",
        "DetectorType": "DIRECT",
        "DistanceReceptorPlaneToDetectorHousing": None,
        "SynchronizationFrameOfReferenceUID": derived_uid(str(dataset.SeriesInstanceUID), "synchronization"),
        "SynchronizationTrigger": "NO TRIGGER",
        "AcquisitionTimeSynchronized": "N",
        "BodyPartExamined": "WHOLEBODY",
    }
    for keyword, value in defaults.items():
        if keyword not in dataset:
            setattr(dataset, keyword, value)
    dataset.PositionerType = "CARM"
    dataset.XRayReceptorType = "DIGITAL_DETECTOR"
    _add_exposure(dataset, exposure, views)
    if "PatientOrientationCodeSequence" not in dataset:
        # The scan frame is patient LPS: a patient who lies head first and supine.
        lying = code("102538003", "SCT", "recumbent")
        lying.PatientOrientationModifierCodeSequence = [code("40199007", "SCT", "supine")]
        dataset.PatientOrientationCodeSequence = [lying]
        dataset.PatientGantryRelationshipCodeSequence = [code("102540008", "SCT", "headfirst")]
    dataset.AcquisitionContextSequence = []


def _acquisition_datetime(dataset: Dataset) -> str:
    given = str(dataset.get("AcquisitionDateTime") or "")
    if given:
        return given
    date = str(dataset.get("AcquisitionDate") or dataset.get("SeriesDate") or dataset.get("StudyDate") or "")
    time = str(dataset.get("AcquisitionTime") or dataset.get("SeriesTime") or dataset.get("StudyTime") or "")
    return f"{date}{time or '000000'}" if date else datetime.now().astimezone().strftime("%Y%m%d%H%M%S")


def _add_exposure(dataset: Dataset, exposure: Exposure, views: int) -> None:
    if exposure.kvp is not None:
        dataset.KVP = decimal(exposure.kvp)
    if exposure.view_ms is not None:
        dataset.AveragePulseWidth = decimal(exposure.view_ms)
        dataset.AcquisitionDuration = views * exposure.view_ms / 1000
        if exposure.tube_current_ma is not None:
            # Together they stand for Exposure in mAs, which is then absent (PS3.3 C.8.19.3).
            dataset.ExposureTimeInms = views * exposure.view_ms
            dataset.XRayTubeCurrentInmA = exposure.tube_current_ma


def add_image(dataset: Dataset, pixels: NDArray[np.uint16], bits_stored: int) -> None:
    """Add the image modules for frames of pixels in 16 bits, (frame, row, column), to an instance that has its UID."""
    frames, rows, columns = pixels.shape
    dataset.ImageType = IMAGE_TYPE
    dataset.NumberOfFrames = frames
    dataset.Rows, dataset.Columns = rows, columns
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, bits_stored, bits_stored - 1
    dataset.PixelRepresentation = 0
    dataset.BurnedInAnnotation = "NO"
    dataset.LossyImageCompression = "00"
    dataset.ContentQualification = "RESEARCH"
    dataset.PresentationLUTShape = "IDENTITY"
    uid = derived_uid(str(dataset.SOPInstanceUID), "dimensions")
    dataset.DimensionOrganizationSequence = [item_of(DimensionOrganizationUID=uid)]
    dataset.DimensionIndexSequence = [
        item_of(
            DimensionOrganizationUID=uid,
            DimensionIndexPointer=Tag("FrameAcquisitionNumber"),
            FunctionalGroupPointer=Tag("FrameContentSequence"),
        )
    ]
