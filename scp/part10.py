"""Part 10 files as they are sent: where the data set begins, how it is encoded, which object it is (PS3.10 7.1).

Strict about nothing: files without a preamble or without File Meta Information are found in every archive, and their
data set can be sent as it stands.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MediaStorageDirectoryStorage,
)

from index.files import is_valid_uid
from scp.reception import encoded_meta

_PREAMBLE = 128
_LONG_VR = {b"OB", b"OW", b"OF", b"OD", b"OL", b"OV", b"SQ", b"UC", b"UR", b"UT", b"UN", b"SV", b"UV"}
_IDENTITY = ["SOPClassUID", "SOPInstanceUID"]
_FIRST_GROUPS = {b"\x02\x00", b"\x08\x00", b"\x00\x08"}
"""Of a file without a preamble: 0002 or 0008, little or big endian."""
_READ_WHOLE = 1 << 20
"""Bytes of a file that is read whole before it is sent: nobody has to hold more for an association."""


class NotDicomError(ValueError):
    """The file holds no DICOM object that could be sent."""


@dataclass(frozen=True)
class EncodedObject:
    """A DICOM object in a file, with the place of its encoded data set.

    Attributes
    ----------
    offset
        Of the first byte of the data set in the file.
    """

    path: Path
    offset: int
    transfer_syntax_uid: str
    sop_class_uid: str
    sop_instance_uid: str


def data_set_offset(path: Path) -> int:
    """Return where the data set begins in the file at `path`: behind the preamble and the group 0002, if there."""
    with path.open("rb") as file:
        return _skip_meta(file)


def encoded_data_set(path: Path, size: int) -> memoryview | tuple[Path, int]:
    """Return the data set of the file at `path` as it stands: read, or where it lies if that is too much to hold.

    Parameters
    ----------
    size
        Of the file, bytes, as far as is known: where it is another, it is not read here.

    Returns
    -------
    memoryview or (Path, int)
        The bytes of the data set, or the file and the offset of the first of them.

    Raises
    ------
    OSError
        The file cannot be read.
    """
    if size <= _READ_WHOLE:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            content = os.read(descriptor, size + 1)
        finally:
            os.close(descriptor)
        if len(content) == size:
            return memoryview(content)[_skip_meta(BytesIO(content)) :]
    return path, data_set_offset(path)


def _skip_meta(file: BinaryIO) -> int:
    start = file.read(_PREAMBLE + 4)
    offset = _PREAMBLE + 4 if start[_PREAMBLE:] == b"DICM" else 0
    while True:
        file.seek(offset)
        header = file.read(12)
        if len(header) < 8 or header[:2] != b"\x02\x00":
            return offset
        if header[4:6] in _LONG_VR:
            offset += 12 + struct.unpack("<I", header[8:12])[0]
        elif header[4:6].isalpha():
            offset += 8 + struct.unpack("<H", header[6:8])[0]
        else:  # a group 0002 in Implicit VR, as some old writers left it
            offset += 8 + struct.unpack("<I", header[4:8])[0]


def read_object(path: Path) -> EncodedObject:
    """Find out what the file at `path` holds.

    Raises
    ------
    NotDicomError
        No DICOM object, or one without SOP Class and SOP Instance UID.
    OSError
        The file cannot be read.
    """
    try:
        offset = data_set_offset(path)
        dataset = pydicom.dcmread(path, stop_before_pixels=True, force=True, specific_tags=_IDENTITY)
        meta = dataset.file_meta
        sop_class = _value(dataset, "SOPClassUID") or _value(meta, "MediaStorageSOPClassUID")
        sop_instance = _value(dataset, "SOPInstanceUID") or _value(meta, "MediaStorageSOPInstanceUID")
        transfer_syntax = _value(meta, "TransferSyntaxUID") or _guessed_syntax(dataset)
    except OSError:
        raise
    except Exception as error:  # pydicom raises whatever a malformed file makes it stumble over
        raise NotDicomError(f"unreadable as DICOM ({type(error).__name__}: {error})") from error
    if not sop_class or not sop_instance:
        raise NotDicomError("no DICOM object with a SOP Class and a SOP Instance UID")
    return EncodedObject(path, offset, transfer_syntax, sop_class, sop_instance)


def is_directory(path: Path) -> bool:
    """Whether the file is a DICOMDIR: it lists the files of a medium and is no object of a patient (PS3.3 F)."""
    try:
        return read_object(path).sop_class_uid == MediaStorageDirectoryStorage
    except (NotDicomError, OSError):
        return False


def with_preamble(path: Path) -> bytes | None:
    """Return the object of a file without a preamble as a Part 10 file, its data set as it stands; None for no object.

    Raises
    ------
    OSError
        The file cannot be read.
    """
    with path.open("rb") as file:
        if file.read(2) not in _FIRST_GROUPS:
            return None
    try:
        found = read_object(path)
    except NotDicomError:
        return None
    identity = (found.sop_class_uid, found.sop_instance_uid)
    if not all(map(is_valid_uid, (*identity, found.transfer_syntax_uid))):
        return None
    with path.open("rb") as file:
        file.seek(found.offset)
        return bytes(_PREAMBLE) + b"DICM" + encoded_meta(identity, found.transfer_syntax_uid, "") + file.read()


def _value(dataset: Dataset, keyword: str) -> str:
    return str(dataset.get(keyword) or "").strip(" \0")


def _guessed_syntax(dataset: Dataset) -> str:
    """The transfer syntax that pydicom found the data set of a file without File Meta Information to be in."""
    implicit, little = dataset.original_encoding
    if implicit:
        return str(ImplicitVRLittleEndian)
    return str(ExplicitVRLittleEndian if little else ExplicitVRBigEndian)
