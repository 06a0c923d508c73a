"""What many objects of this node share: file meta information (PS3.10 7.1), and values encoded once for all of them."""

from __future__ import annotations

from io import BytesIO

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filereader import read_dataset
from pydicom.filewriter import dcmwrite
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


def encoded(dataset: Dataset) -> Dataset:
    """Return `dataset` with every value as it is written: what many objects have in common is encoded once.

    The values are the same to whoever reads them; `copy_of_encoded` gives the objects.
    """
    content = BytesIO()
    dcmwrite(content, dataset, implicit_vr=False, little_endian=True, overwrite=True)
    content.seek(0)
    return read_dataset(content, is_implicit_VR=False, is_little_endian=True)


def copy_of_encoded(common: Dataset) -> Dataset:
    """Return a data set with the elements of `common`, which `encoded` has made, to which others can be added."""
    dataset = Dataset(dict(common.items()))
    implicit_vr, little_endian = common.original_encoding
    dataset.set_original_encoding(implicit_vr, little_endian, common.original_character_set)
    return dataset
