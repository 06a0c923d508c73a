"""What the catalogue needs of an instance: read from the Part 10 header, text decoded, pixels untouched.

Values are taken as the sender wrote them: a date that is none, a name that is too long or a number that does not parse
is indexed as it stands (older modalities write such things), never refused and never "corrected".
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from pydicom import dcmread
from pydicom.charset import convert_encodings, decode_bytes
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_dataset, read_file_meta_info
from pydicom.multival import MultiValue
from pydicom.tag import BaseTag, Tag
from pydicom.uid import DeflatedExplicitVRLittleEndian
from pydicom.valuerep import TEXT_VR_DELIMS, PersonName

from index.errors import InvalidInstance
from index.keys import KEYS, Matching, indexed_keywords
from index.matching import normalise
from index.part10 import inflate

_TAGS: dict[str, BaseTag] = {
    keyword: Tag(tag)
    for keyword in [*indexed_keywords(), "SpecificCharacterSet"]
    if (tag := tag_for_keyword(keyword)) is not None
}
_PIXEL_DATA = frozenset({Tag("PixelData"), Tag("FloatPixelData"), Tag("DoubleFloatPixelData")})
_DECODED = {"LO", "LT", "SH", "ST", "UC", "UT"}
_BINARY = {"US": "H", "SS": "h", "UL": "I", "SL": "i", "FL": "f", "FD": "d"}
_LONGEST_VALUE = 1 << 16
"""Bytes of the longest value that is indexed: more than any VR of a key allows, in any character set."""
_LONGEST_HEADER = 1 << 26
"""Bytes of a deflated data set that are inflated to find the keys; a small file may inflate to any size."""


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

    @property
    def uids(self) -> tuple[str, str, str]:
        """Study, Series and SOP Instance UID."""
        return self.study_instance_uid, self.series_instance_uid, self.sop_instance_uid


def read_header(path: Path) -> Header:
    """Read the identity and the key values of the Part 10 file at `path`.

    Raises
    ------
    InvalidInstance
        Not a Part 10 file, cut off or unreadable, or without SOP Instance, Series or Study Instance UID.
    """
    transfer_syntax, charset, values = _read(path)
    for keyword in ("SOPInstanceUID", "SOPClassUID", "StudyInstanceUID", "SeriesInstanceUID"):
        if not values[keyword]:
            raise InvalidInstance(f"{keyword} is missing or empty", element=keyword)
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


def _read(path: Path) -> tuple[str, str, dict[str, str]]:
    """Return Transfer Syntax UID, Specific Character Set and the key values."""
    try:
        meta = read_file_meta_info(path)
        transfer_syntax = _uid(meta, "TransferSyntaxUID")
        dataset = _read_deflated(path) if transfer_syntax == DeflatedExplicitVRLittleEndian else _read_plain(path)
        elements = dict(dataset.items())  # as they are: elements() would read what is longer than the limit after all
        charset = _value(elements, "SpecificCharacterSet", [])
        encodings = encodings_of(charset)
        values = {keyword: _value(elements, keyword, encodings) for keyword in indexed_keywords()}
        for keyword in ("SOPClassUID", "SOPInstanceUID"):
            values[keyword] = values[keyword] or _uid(meta, f"MediaStorage{keyword}")
    except InvalidDicomError as error:
        raise InvalidInstance("not a DICOM Part 10 file") from error
    except OSError as error:
        if error.errno is not None:  # the disk is at fault; without a number it is pydicom that came to the end
            raise
        raise InvalidInstance(f"unreadable data set: {error}"[:200]) from error
    except Exception as error:  # a parser fed with hostile bytes raises anything; the file is at fault, not the node
        raise InvalidInstance(f"unreadable data set: {type(error).__name__}: {error}"[:200]) from error
    return transfer_syntax, charset, values


def _uid(meta: FileMetaDataset, keyword: str) -> str:
    return normalise(str(meta.get(keyword, "")))


def _read_plain(path: Path) -> Dataset:
    return dcmread(path, stop_before_pixels=True, specific_tags=list(_TAGS.values()), defer_size=_LONGEST_VALUE)


def _read_deflated(path: Path) -> Dataset:
    return read_dataset(
        BytesIO(inflate(path, _LONGEST_HEADER)),
        is_implicit_VR=False,
        is_little_endian=True,
        stop_when=lambda tag, _vr, _length: tag in _PIXEL_DATA,
        specific_tags=list(_TAGS.values()),
        defer_size=_LONGEST_VALUE,
    )


def encodings_of(charset: str) -> list[str]:
    r"""Python encodings for a Specific Character Set joined by ``\``; pydicom takes an unknown one for the default."""
    return convert_encodings(charset.split("\\") if charset else "")


def _value(elements: dict[BaseTag, DataElement | RawDataElement], keyword: str, encodings: list[str]) -> str:
    element = elements.get(_TAGS[keyword])
    return "" if element is None else _clean(keyword, text_of(element, encodings))


def text_of(element: DataElement | RawDataElement, encodings: list[str]) -> str:
    r"""Return the value of `element` as text, several joined by ``\``; "" for a sequence and for one too long.

    Parameters
    ----------
    element
        As pydicom has read it (not decoded yet), or as somebody has set it.
    encodings
        Python encodings of the Specific Character Set.
    """
    vr = str(element.VR) if element.VR not in (None, "UN") else dictionary_VR(element.tag)
    value = element.value
    if vr == "SQ" or value is None:
        return ""
    if isinstance(element, RawDataElement):
        return _decode(value, vr, encodings, element.is_little_endian)
    parts = value if isinstance(value, (list, tuple, MultiValue)) else [value]
    return "\\".join("" if part is None else str(part) for part in parts)


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
    matching = KEYS[keyword].matching if keyword in KEYS else Matching.TEXT
    if matching is Matching.PERSON_NAME:  # kept as it is (NFC unifies some ideographs); compared by its folded form
        return "\\".join(part.strip(" \0") for part in value.split("\\"))
    parts = [normalise(part) for part in value.split("\\")]
    if matching is Matching.DATE:  # ACR-NEMA wrote YYYY.MM.DD
        parts = [part.replace(".", "") if len(part) == 10 else part for part in parts]
    elif matching is Matching.TIME:
        parts = [part.replace(":", "") for part in parts]
    return "\\".join(parts)

