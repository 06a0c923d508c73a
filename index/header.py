"""What the catalogue needs of an instance: read from the Part 10 header, text decoded, pixels untouched.

Values are taken as the sender wrote them: a date that is none, a name that is too long or a number that does not parse
is indexed as it stands (older modalities write such things), never refused and never "corrected".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from io import BytesIO
from pathlib import Path

from pydicom import dcmread
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_dataset, read_file_meta_info
from pydicom.tag import BaseTag, Tag
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian

from index.charset import Charset, charset_from_text
from index.errors import InvalidInstance
from index.items import Item, read_items
from index.keys import KEYS, SEQUENCES, Matching, indexed_keywords
from index.part10 import begin_of_data_set, inflated
from index.structure import Scan
from index.values import comparable, stored_text

_TAGS: dict[str, BaseTag] = {
    keyword: Tag(tag)
    for keyword in [*indexed_keywords(), *SEQUENCES, "SpecificCharacterSet", "TimezoneOffsetFromUTC"]
    if (tag := tag_for_keyword(keyword)) is not None
}
_INDEXED = (*indexed_keywords(), "TimezoneOffsetFromUTC")
_BY_TAG = {
    int(_TAGS[keyword]): (keyword, KEYS[keyword].matching if keyword in KEYS else Matching.TEXT) for keyword in _INDEXED
}
_IDENTITY = ("SOPInstanceUID", "SOPClassUID", "StudyInstanceUID", "SeriesInstanceUID")
_NAMES = frozenset(keyword for keyword, key in KEYS.items() if key.matching is Matching.PERSON_NAME)
_PIXEL_DATA = frozenset({Tag("PixelData"), Tag("FloatPixelData"), Tag("DoubleFloatPixelData")})
_LONGEST_VALUE = 1 << 16
"""Bytes of the longest value that is indexed: more than any VR of a key allows, in any character set."""
_LONGEST_HEADER = 1 << 26
"""Bytes of a deflated data set that are inflated to find the keys; a small file may inflate to any size."""


Elements = Mapping[BaseTag, DataElement | RawDataElement]


@dataclass(frozen=True)
class Header:
    """Identity and key values of one instance.

    Attributes
    ----------
    values
        Keyword → text in Unicode NFC, names of persons as sent; multi-valued elements joined by a backslash; "" where
        absent.
    charset
        Specific Character Set as it stands, joined by a backslash.
    originals
        Those of the values that Unicode NFC changes, as they were sent.
    timezone
        Timezone Offset From UTC as it stands; "" where absent.
    items
        Items of the sequences that are indexed.
    """

    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    study_instance_uid: str
    transfer_syntax_uid: str
    charset: str
    values: dict[str, str]
    originals: dict[str, str] = field(default_factory=dict)
    timezone: str = ""
    items: tuple[Item, ...] = ()

    @property
    def uids(self) -> tuple[str, str, str]:
        """Study, Series and SOP Instance UID."""
        return self.study_instance_uid, self.series_instance_uid, self.sop_instance_uid


WANTED = frozenset(int(tag) for tag in _TAGS.values())
"""Tags of what the catalogue needs."""


def header_of(scan: Scan) -> Header | None:
    """Return the header that one pass over a data set has found; None when that does not tell all, and a parser has to.

    What is missing is for `read_header` to judge.
    """
    elements = scan.elements
    if elements is None:
        return None
    if b"\0" in _raw(elements, "SpecificCharacterSet"):  # no parser takes that
        return None
    told = _value(elements, "SpecificCharacterSet", Charset())
    charset = charset_from_text(told)
    values = dict.fromkeys(_INDEXED, "")
    for tag, element in elements.items():
        if (known := _BY_TAG.get(int(tag))) is not None:
            keyword, matching = known
            values[keyword] = stored_text(matching, element, charset)
    if not all(values[keyword] for keyword in _IDENTITY):
        return None
    items: tuple[Item, ...] | None = ()
    if scan.sequences:
        items = _items(scan.sequences, scan.is_implicit, scan.transfer_syntax_uid != ExplicitVRBigEndian, told)
    return None if items is None else _header(scan.transfer_syntax_uid, told, values, items)


@lru_cache(maxsize=32)
def _items(encoded: bytes, is_implicit: bool, is_little_endian: bool, charset: str) -> tuple[Item, ...] | None:  # noqa: FBT001
    """Return the items of sequences that one pass has found; None when these cannot be read by themselves.

    The images of a series have the same ones.
    """
    try:
        dataset = read_dataset(BytesIO(encoded), is_implicit, is_little_endian)
        return read_items(dataset, charset_from_text(charset))
    except Exception:  # noqa: BLE001  (whatever it is, who reads all of it tells what is wrong)
        return None


def header_like(header: Header, changed: Mapping[int, bytes], sequences: bytes | None, scan: Scan) -> Header | None:
    """Return the header of a data set that differs from another one, of the same layout, in some values.

    Parameters
    ----------
    header
        Of the other one.
    changed
        Tags and encoded values of elements of the top level that differ.
    sequences
        The sequences that are indexed (`Scan.sequences`), where they differ; else None.
    scan
        What was found in the other one.

    Returns
    -------
    Header or None
        None when that does not tell all, and all has to be read.
    """
    charset, elements = charset_from_text(header.charset), scan.elements or {}
    values: dict[str, str] = {}
    for tag, value in changed.items():
        if (known := _BY_TAG.get(tag)) is None:
            if tag in WANTED:  # a character set, of which all the others depend
                return None
            continue
        keyword, matching = known
        element = elements.get(BaseTag(tag))
        if element is None:  # it is behind pixels, though not the last ones
            return None
        values[keyword] = text = stored_text(matching, element._replace(value=value), charset)
        if not text.isascii() or keyword in header.originals or (not text and keyword in _IDENTITY):
            return None
    timezone = values.pop("TimezoneOffsetFromUTC", header.timezone)
    items = header.items
    if sequences is not None:
        is_little_endian = header.transfer_syntax_uid != ExplicitVRBigEndian
        found = _items(sequences, scan.is_implicit, is_little_endian, header.charset)
        if found is None:
            return None
        items = found
    told = {**header.values, **values}
    return Header(
        told["SOPClassUID"], told["SOPInstanceUID"], told["SeriesInstanceUID"], told["StudyInstanceUID"],
        header.transfer_syntax_uid, header.charset, told, header.originals, timezone, items,
    )  # fmt: skip


def read_header(path: Path, *, named_by_meta: bool = True) -> Header:
    """Read the identity and the key values of the Part 10 file at `path`.

    Parameters
    ----------
    named_by_meta
        Whether File Meta Information may name the instance where the data set does not. Not of what came by C-STORE:
        this node has written that from the command.

    Raises
    ------
    InvalidInstance
        Not a Part 10 file, cut off or unreadable, or without SOP Instance, Series or Study Instance UID.
    """
    transfer_syntax, charset, values, items = _read(path, named_by_meta=named_by_meta)
    for keyword in _IDENTITY:
        if not values[keyword]:
            raise InvalidInstance(f"{keyword} is missing or empty", element=keyword)
    if not transfer_syntax:
        raise InvalidInstance("the file has no Transfer Syntax UID", element="TransferSyntaxUID")
    return _header(transfer_syntax, charset, values, items)


def _header(transfer_syntax: str, charset: str, values: dict[str, str], items: tuple[Item, ...]) -> Header:
    timezone = values.pop("TimezoneOffsetFromUTC")
    compared, originals = comparable(values, _NAMES)
    return Header(
        sop_class_uid=values["SOPClassUID"],
        sop_instance_uid=values["SOPInstanceUID"],
        series_instance_uid=values["SeriesInstanceUID"],
        study_instance_uid=values["StudyInstanceUID"],
        transfer_syntax_uid=transfer_syntax,
        charset=charset,
        values=compared,
        originals=originals,
        timezone=timezone,
        items=items,
    )


def _read(path: Path, *, named_by_meta: bool) -> tuple[str, str, dict[str, str], tuple[Item, ...]]:
    """Return Transfer Syntax UID, Specific Character Set, the key values and the items of sequences."""
    try:
        meta = read_file_meta_info(path)
        transfer_syntax = _uid(meta, "TransferSyntaxUID")
        dataset = _read_deflated(path) if transfer_syntax == DeflatedExplicitVRLittleEndian else _read_plain(path)
        elements = dict(dataset.items())  # as they are: elements() would read what is longer than the limit after all
        told = _value(elements, "SpecificCharacterSet", Charset())
        charset = charset_from_text(told)
        values = _values(elements, charset)
        items = read_items(dataset, charset)
        values["SOPClassUID"] = values["SOPClassUID"] or _uid(meta, "MediaStorageSOPClassUID")
        if named_by_meta:
            values["SOPInstanceUID"] = values["SOPInstanceUID"] or _uid(meta, "MediaStorageSOPInstanceUID")
    except InvalidInstance:
        raise
    except InvalidDicomError as error:
        raise InvalidInstance("not a DICOM Part 10 file") from error
    except OSError as error:
        if error.errno is not None:  # the disk is at fault; without a number it is pydicom that came to the end
            raise
        raise InvalidInstance(f"unreadable data set: {error}"[:200]) from error
    except Exception as error:  # a parser fed with hostile bytes raises anything; the file is at fault, not the node
        raise InvalidInstance(f"unreadable data set: {type(error).__name__}: {error}"[:200]) from error
    return transfer_syntax, told, values, items


def _values(elements: Elements, charset: Charset) -> dict[str, str]:
    return {keyword: _value(elements, keyword, charset) for keyword in _INDEXED}


def _uid(meta: FileMetaDataset, keyword: str) -> str:
    return str(meta.get(keyword, "")).strip(" \0")


def _read_plain(path: Path) -> Dataset:
    return dcmread(path, stop_before_pixels=True, specific_tags=list(_TAGS.values()), defer_size=_LONGEST_VALUE)


def _read_deflated(path: Path) -> Dataset:
    with path.open("rb") as file:
        begin_of_data_set(file)
        with inflated(file, _LONGEST_HEADER) as (content, _is_whole):
            return read_dataset(
                BytesIO(content),
                is_implicit_VR=False,
                is_little_endian=True,
                stop_when=lambda tag, _vr, _length: tag in _PIXEL_DATA,
                specific_tags=list(_TAGS.values()),
                defer_size=_LONGEST_VALUE,
            )


def _raw(elements: Mapping[BaseTag, RawDataElement], keyword: str) -> bytes:
    element = elements.get(_TAGS[keyword])
    return element.value or b"" if element is not None else b""


def _value(elements: Elements, keyword: str, charset: Charset) -> str:
    element = elements.get(_TAGS[keyword])
    if element is None:
        return ""
    matching = KEYS[keyword].matching if keyword in KEYS else Matching.TEXT
    return stored_text(matching, element, charset)
