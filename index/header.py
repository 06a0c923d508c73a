"""What the catalogue needs of an instance: read from the Part 10 header, text decoded, pixels untouched.

Values are taken as the sender wrote them: a date that is none, a name that is too long or a number that does not parse
is indexed as it stands (older modalities write such things), never refused and never "corrected".
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import pydicom
from pydicom.charset import convert_encodings, decode_bytes
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.dataset import FileDataset
from pydicom.errors import InvalidDicomError
from pydicom.multival import MultiValue
from pydicom.valuerep import TEXT_VR_DELIMS, PersonName

from index.errors import InvalidInstance
from index.keys import KEYS, Matching, indexed_keywords
from index.matching import normalise

_KEYWORDS = indexed_keywords()
_WANTED = [*_KEYWORDS, "SpecificCharacterSet"]
_DECODED = {"LO", "LT", "SH", "ST", "UC", "UT"}
_BINARY = {"US": "H", "SS": "h", "UL": "I", "SL": "i", "FL": "f", "FD": "d"}


@dataclass(frozen=True)
class Header:
    """Identity and key values of one instance.

    Attributes
    ----------
    values
        Keyword → text; multi-valued elements joined by a backslash; "" where absent.
    charset
        Specific Character Set as it stands, joined by a backslash.
    """

    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    study_instance_uid: str
    transfer_syntax_uid: str
    charset: str
    values: dict[str, str]


def read_header(path: Path) -> Header:
    """Read the identity and the key values of the Part 10 file at `path`.

    Raises
    ------
    InvalidInstance
        Not a Part 10 file, cut off or unreadable, or without SOP Instance, Series or Study Instance UID.
    """
    dataset = _read(path)
    meta = dataset.file_meta
    charset = _text_of(dataset, "SpecificCharacterSet", [])
    encodings = _encodings(charset)
    values = {keyword: _text_of(dataset, keyword, encodings) for keyword in _KEYWORDS}
    for keyword, from_meta in (
        ("SOPClassUID", meta.get("MediaStorageSOPClassUID", "")),
        ("SOPInstanceUID", meta.get("MediaStorageSOPInstanceUID", "")),
    ):
        values[keyword] = values[keyword] or normalise(str(from_meta))
    for keyword in ("SOPInstanceUID", "SOPClassUID", "StudyInstanceUID", "SeriesInstanceUID"):
        if not values[keyword]:
            raise InvalidInstance(f"{keyword} is missing or empty", element=keyword)
    transfer_syntax = str(meta.get("TransferSyntaxUID", ""))
    if not transfer_syntax:
        raise InvalidInstance("the file has no Transfer Syntax UID", element="TransferSyntaxUID")
    return Header(
        sop_class_uid=values["SOPClassUID"],
        sop_instance_uid=values["SOPInstanceUID"],
        series_instance_uid=values["SeriesInstanceUID"],
        study_instance_uid=values["StudyInstanceUID"],
        transfer_syntax_uid=transfer_syntax,
        charset=charset,
        values=values,
    )


def _read(path: Path) -> FileDataset:
    try:
        return pydicom.dcmread(path, stop_before_pixels=True, specific_tags=_WANTED)
    except InvalidDicomError as error:
        raise InvalidInstance("not a DICOM Part 10 file") from error
    except Exception as error:
        raise InvalidInstance(f"unreadable data set: {type(error).__name__}: {error}"[:200]) from error


def _encodings(charset: str) -> list[str]:
    try:
        return list(convert_encodings(charset.split("\\") if charset else ""))
    except LookupError:  # an unknown character set: bytes are read as the default repertoire
        return list(convert_encodings(""))


def _text_of(dataset: FileDataset, keyword: str, encodings: list[str]) -> str:
    tag = tag_for_keyword(keyword)
    if tag is None or tag not in dataset:
        return ""
    element: object = dataset.get_item(tag)
    if isinstance(element, RawDataElement):
        vr = element.VR if element.VR not in (None, "UN") else dictionary_VR(tag)
        return _clean(keyword, _decode(element.value or b"", str(vr), encodings, element.is_little_endian))
    # pydicom has parsed this one already (Specific Character Set, or elements that decide how others are read)
    value = dataset[tag].value
    parts = value if isinstance(value, (list, tuple, MultiValue)) else [value]
    return _clean(keyword, "\\".join("" if part is None else str(part) for part in parts))


def _decode(raw: bytes, vr: str, encodings: list[str], little_endian: bool) -> str:  # noqa: FBT001
    if vr in _BINARY:
        size = struct.calcsize(_BINARY[vr])
        count = len(raw) // size
        numbers = struct.unpack(f"{'<' if little_endian else '>'}{count}{_BINARY[vr]}", raw[: count * size])
        return "\\".join(map(str, numbers))
    if vr == "PN":
        return str(PersonName(raw.rstrip(b" \0"), encodings))
    if vr in _DECODED and encodings:
        return decode_bytes(raw, encodings, TEXT_VR_DELIMS)
    return raw.decode("iso8859")


def _clean(keyword: str, value: str) -> str:
    parts = [normalise(part) for part in value.split("\\")]
    matching = KEYS[keyword].matching if keyword in KEYS else Matching.TEXT
    if matching is Matching.DATE:  # ACR-NEMA wrote YYYY.MM.DD
        parts = [part.replace(".", "") if len(part) == 10 else part for part in parts]
    elif matching is Matching.TIME:
        parts = [part.replace(":", "") for part in parts]
    return "\\".join(parts)

