"""Drawn pictures as Secondary Capture (PS3.3 A.8.1): one image that every viewer shows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import SecondaryCaptureImageStorage

from config.identity import MANUFACTURER, MODEL_NAME, version

KEY_PICTURE, SCAN_QUALITY = "KEY PICTURE", "SCAN QUALITY"
"""Third value of Image Type, ours to choose (PS3.3 C.7.6.1.1.2): what a picture shows."""


def image_type(kind: str) -> list[str]:
    """Return the Image Type of a drawn picture."""
    return ["DERIVED", "SECONDARY", kind]


def is_drawn(header: Dataset) -> bool:
    """Whether an image is a picture that this node or another one drew: it tells of a case, but is none."""
    told = list(header.get("ImageType") or ())
    return told in ([*map(image_type, (KEY_PICTURE, SCAN_QUALITY))]) and header.get("Manufacturer") == MANUFACTURER


def complete(dataset: Dataset, pixels: NDArray[np.uint8], kind: str) -> None:
    """Make a data set that has patient, study and series a Secondary Capture of `pixels`, (row, column, 3) RGB."""
    dataset.SOPClassUID = SecondaryCaptureImageStorage
    dataset.Modality = "OT"
    dataset.ImageType = image_type(kind)
    dataset.Laterality = dataset.PatientOrientation = None
    dataset.ConversionType = "WSD"
    dataset.Manufacturer = dataset.SecondaryCaptureDeviceManufacturer = MANUFACTURER
    dataset.ManufacturerModelName = dataset.SecondaryCaptureDeviceManufacturerModelName = MODEL_NAME
    dataset.SoftwareVersions = dataset.SecondaryCaptureDeviceSoftwareVersions = version()
    dataset.LossyImageCompression = "00"
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PlanarConfiguration = 3, "RGB", 0
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit, dataset.PixelRepresentation = 7, 0
    packed = pixels.tobytes()
    dataset.add_new("PixelData", "OB", packed + bytes(len(packed) % 2))
