"""Images that are not DICOM as Secondary Capture objects (PS3.3 A.8.1), so that the archive can hold them.

Everything in an object follows from the file and from what the importer says of it: bringing the same file in again
gives the same object. Its UIDs follow from the bytes of the file alone, so that one image is never stored as two.
What the file does not say is not made up: names, dates and sizes stay empty or absent.
"""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from config.identity import IMPLEMENTATION_CLASS_UID, derived_uid, implementation_version_name
from index.image_files import ImageFile

MODALITY = "OT"
_LONGEST = 64
"""Characters of an LO (PS3.5 6.2)."""


@dataclass(frozen=True)
class Description:
    """What is said of an image beyond its samples.

    Attributes
    ----------
    patient_id
        Whose image it is.
    series_description
        Empty: none.
    modality
        A defined term of PS3.3 C.7.3.1.1.1; ``OT`` for other.
    """

    patient_id: str
    series_description: str = ""
    modality: str = MODALITY


def secondary_capture(image: ImageFile, description: Description) -> bytes:
    """Return the Part 10 file (Explicit VR Little Endian) of `image`: a study and a series of its own.

    Burned In Annotation is absent: nobody has looked. An image that came as JPEG says that it was compressed lossily.
    """
    dataset = _identity(image, description)
    dataset.update(_pixels(image))
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.ImplementationClassUID = UID(IMPLEMENTATION_CLASS_UID)
    dataset.file_meta.ImplementationVersionName = implementation_version_name()
    buffer = BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def _identity(image: ImageFile, description: Description) -> Dataset:
    dataset = Dataset()
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.ImageType = ["DERIVED", "SECONDARY"]
    dataset.SOPClassUID = SecondaryCaptureImageStorage
    dataset.SOPInstanceUID, dataset.SeriesInstanceUID, dataset.StudyInstanceUID = (
        derived_uid("secondary capture", what, image.sha256) for what in ("instance", "series", "study")
    )
    dataset.PatientID = one_line(description.patient_id)
    for keyword in ("PatientName", "PatientBirthDate", "PatientSex", "ReferringPhysicianName"):
        setattr(dataset, keyword, "")
    # Laterality: a file does not tell the body part, nor whether it is paired (type 2C).
    for keyword in ("StudyDate", "StudyTime", "StudyID", "AccessionNumber", "PatientOrientation", "Laterality"):
        setattr(dataset, keyword, "")
    dataset.Modality = description.modality
    dataset.ConversionType = "WSD"
    dataset.SeriesNumber = dataset.InstanceNumber = 1
    if description.series_description:
        dataset.SeriesDescription = one_line(description.series_description)
    return dataset


def _pixels(image: ImageFile) -> Dataset:
    samples = image.samples
    dataset = Dataset()
    dataset.Rows, dataset.Columns = samples.shape[:2]
    dataset.BitsAllocated = dataset.BitsStored = 8 * samples.itemsize
    dataset.HighBit, dataset.PixelRepresentation = dataset.BitsStored - 1, 0
    if samples.ndim == 3:
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PlanarConfiguration = 3, "RGB", 0
    else:
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    if image.lossy_ratio is not None:
        dataset.LossyImageCompression, dataset.LossyImageCompressionMethod = "01", "ISO_10918_1"
        dataset.LossyImageCompressionRatio = f"{image.lossy_ratio:.4g}"
    packed = samples.astype(samples.dtype.newbyteorder("<")).tobytes()
    dataset.add_new("PixelData", "OW" if samples.itemsize == 2 else "OB", packed + bytes(len(packed) % 2))
    return dataset


def one_line(text: str) -> str:
    """Return `text` as a value of an LO can be: one line without backslash or control characters, 64 at most."""
    plain = "".join(character if character.isprintable() and character != "\\" else "_" for character in text)
    return " ".join(plain.split())[:_LONGEST]
