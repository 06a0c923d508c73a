r"""Values of elements as text: out of what pydicom has read, into the catalogue, and back into an answer.

Several values are joined by a backslash. Nothing is corrected: what its VR does not allow is kept as it stands.
"""

from __future__ import annotations

import re
import struct
import unicodedata
from collections.abc import Iterable
from typing import Any

from pydicom.dataelem import DataElement, RawDataElement
from pydicom.multival import MultiValue
from pydicom.tag import BaseTag

from index.charset import Charset, split, vr_of
from index.keys import Matching

_BINARY = {"US": "H", "SS": "h", "UL": "I", "SL": "i", "FL": "f", "FD": "d"}
_IN_TODAYS_FORM = frozenset({"DA", "TM"})
_PLAIN = _IN_TODAYS_FORM | {"AE", "AS", "CS", "DS", "IS", "LO", "LT", "PN", "SH", "ST", "UC", "UI", "UR", "UT"}
"""VRs whose text needs nothing but to be decoded; dates and times are put into the form of today."""
_US = struct.Struct("<H")
_LARGEST_US = 0xFFFF


def text_of(element: DataElement | RawDataElement, charset: Charset) -> str:
    r"""Return the value of `element` as text, several joined by ``\``; "" for a sequence and for one too long.

    Parameters
    ----------
    element
        As pydicom has read it (not decoded yet), or as somebody has set it.
    charset
        Character set of the data set that it is in.
    """
    vr = vr_of(element)
    value = element.value
    if vr == "SQ" or value is None:
        return ""
    if isinstance(element, RawDataElement):
        return _decode(value, vr, charset, element.is_little_endian)
    parts = value if isinstance(value, (list, tuple, MultiValue)) else [value]
    return "\\".join("" if part is None else str(part) for part in parts)


def values_of(element: DataElement | RawDataElement, charset: Charset) -> list[str]:
    """Return the values of `element`; the text VRs LT, ST and UT have one, which may hold a backslash."""
    if element.value in (None, b"", ""):
        return [""]
    return split(text_of(element, charset), vr_of(element))


def _decode(raw: bytes, vr: str, charset: Charset, little_endian: bool) -> str:  # noqa: FBT001
    if vr in _BINARY:
        size = struct.calcsize(_BINARY[vr])
        count = len(raw) // size
        numbers = struct.unpack(f"{'<' if little_endian else '>'}{count}{_BINARY[vr]}", raw[: count * size])
        return "\\".join(map(str, numbers))
    return charset.decode(raw, vr)


def stored_text(matching: Matching, element: DataElement | RawDataElement, charset: Charset) -> str:
    """Return the text of `element` as the catalogue keeps it: without padding; dates and times in the form of today."""
    raw = element.value
    if isinstance(raw, bytes) and raw.isascii():
        vr = element.VR
        if vr in _PLAIN and b"\\" not in raw and b"\x1b" not in raw:
            text = raw.decode("ascii").strip(" \0")
            return text if vr not in _IN_TODAYS_FORM else _today(matching, text)
        if vr == "US" and len(raw) == _US.size and isinstance(element, RawDataElement) and element.is_little_endian:
            return str(_US.unpack(raw)[0])
    return "\\".join(_today(matching, part.strip(" \0")) for part in values_of(element, charset))


def _today(matching: Matching, text: str) -> str:
    """Return one value as it is written today: ACR-NEMA wrote YYYY.MM.DD, and HH:MM:SS."""
    if matching is Matching.DATE:
        return text.replace(".", "") if len(text) == 10 else text
    return text.replace(":", "") if matching is Matching.TIME else text


def comparable(values: dict[str, str], names: Iterable[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Return `values` as they are compared, in Unicode NFC, and as they were sent those that this changes.

    Names of persons (`names`) have a comparable form of their own, and stay.
    """
    originals = {
        keyword: text
        for keyword, text in values.items()
        if keyword not in names and not text.isascii() and unicodedata.normalize("NFC", text) != text
    }
    return values | {keyword: unicodedata.normalize("NFC", text) for keyword, text in originals.items()}, originals


def element_of(tag: BaseTag, vr: str, text: str) -> DataElement:
    """Return the element of an answer with the value as it was stored; the peer judges what its VR does not allow."""
    parts = split(text, vr) if text else []
    if vr == "US":
        numbers = [int(part) for part in parts if re.fullmatch(r"\d{1,5}", part, re.ASCII) and int(part) <= _LARGEST_US]
        return DataElement(tag, vr, _single(numbers))
    try:
        return DataElement(tag, vr, _single(parts))
    except (ValueError, TypeError, OverflowError):  # an IS or DS that is no number
        return DataElement(tag, vr, _single(parts), already_converted=True)


def _single(values: list[Any]) -> Any:
    return values[0] if len(values) == 1 else values or None
