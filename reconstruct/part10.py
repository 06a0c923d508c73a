"""The file meta information of the objects that this node makes (PS3.10 7.1)."""

from __future__ import annotations

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian

from config.identity import IMPLEMENTATION_CLASS_UID, implementation_version_name


def with_file_meta(dataset: Dataset) -> Dataset:
    """Return `dataset` with the file meta information of an Explicit VR Little Endian Part 10 file."""
    meta = FileMetaDataset()
    meta.FileMetaInformationVersion = b"\x00\x01"
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = UID(IMPLEMENTATION_CLASS_UID)
    meta.ImplementationVersionName = implementation_version_name()
    dataset.file_meta = meta
    return dataset
