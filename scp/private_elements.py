"""The private block of the similarity query: group 0073, creator ``THARSIS SIMILARITY 1.0`` (PS3.5 7.8).

Values are read from the bytes that arrived, whatever VR they came with: a client without this dictionary sends UN.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydicom.datadict import add_private_dict_entries
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset

from index.errors import InvalidIdentifier

CREATOR = "THARSIS SIMILARITY 1.0"
GROUP = 0x0073

_FORMATS = {"US": "H", "UL": "I", "FD": "d", "OF": "f"}
_NUMBER = re.compile(rb"[0-9.eE+\-\\ ]+")
"""Numbers as text. The two bytes of a US that look like this mean 8224 or more: no value that any element takes."""


@dataclass(frozen=True)
class PrivateElement:
    """An element of the block: the low byte of its number, VR, VM, and the keyword that the manual uses."""

    number: int
    vr: str
    vm: str
    keyword: str


_TABLE = (
    PrivateElement(0x01, "UI", "1", "QuerySOPInstanceUID"),
    PrivateElement(0x02, "UI", "1", "QuerySeriesInstanceUID"),
    PrivateElement(0x03, "UI", "1", "QueryStudyInstanceUID"),
    PrivateElement(0x04, "US", "1", "QueryFrameNumber"),
    PrivateElement(0x05, "US", "4", "QueryRegion"),
    PrivateElement(0x06, "US", "1", "MaximumResults"),
    PrivateElement(0x07, "FD", "1", "MinimumScore"),
    PrivateElement(0x08, "LO", "1", "ModelID"),
    PrivateElement(0x0A, "CS", "1", "Aggregation"),
    PrivateElement(0x0B, "CS", "1-n", "Exclude"),
    PrivateElement(0x0C, "OF", "1", "QueryVector"),
    PrivateElement(0x0D, "CS", "1", "SearchMode"),
    PrivateElement(0x20, "US", "1", "Rank"),
    PrivateElement(0x21, "FD", "1", "Score"),
    PrivateElement(0x22, "FD", "1", "Distance"),
    PrivateElement(0x23, "UI", "1", "MatchedSOPInstanceUID"),
    PrivateElement(0x24, "US", "1", "MatchedFrameNumber"),
    PrivateElement(0x25, "LO", "1", "MatchedModelID"),
    PrivateElement(0x26, "UL", "1", "IndexSize"),
    PrivateElement(0x27, "CS", "1", "UsedSearchMode"),
    PrivateElement(0x28, "FD", "1", "EstimatedRecall"),
)
ELEMENTS: dict[str, PrivateElement] = {element.keyword: element for element in _TABLE}
"""By keyword. ``MatchedModelID`` and ``UsedSearchMode`` are the answers to ``ModelID`` and ``SearchMode``."""

_BY_NUMBER = {element.number: element for element in _TABLE}

def private_tag(keyword: str) -> int:
    """Tag of an element of the block, with the block where it usually lies (0073,10xx)."""
    return (GROUP << 16) | 0x1000 | ELEMENTS[keyword].number


add_private_dict_entries(
    CREATOR,
    {private_tag(element.keyword): (element.vr, element.vm, element.keyword, "") for element in _TABLE},
)


def dcmtk_dictionary() -> str:
    """Return the block as a data dictionary of DCMTK (for DCMDICTPATH), so that its tools know the VRs."""
    return "".join(
        f'({GROUP:04x},"{CREATOR}",{element.number:02x})'
        f"\t{element.vr}\t{element.keyword}\t{element.vm}\tPrivateTag\n"
        for element in _TABLE
    )


def take_block(identifier: Dataset) -> dict[str, Any] | None:
    """Take the block out of `identifier` and return its values by keyword; None when there is no block.

    UI, LO and CS give text, Exclude a list of it; US, UL an int, QueryRegion a tuple of them; FD a float; OF an array.
    An empty element is left out.

    Raises
    ------
    InvalidIdentifier
        A value that cannot be what its element means.
    """
    tags = [tag for tag in identifier.keys() if tag.group == GROUP]  # noqa: SIM118  (iterating would decode)
    raw = {tag.element: identifier.get_item(tag) for tag in tags}
    for tag in tags:
        del identifier[tag]
    block = next((number for number in sorted(raw) if 0x10 <= number < 0x100 and _text(raw[number]) == CREATOR), None)
    if block is None:
        return None
    values: dict[str, Any] = {}
    for number, element in raw.items():
        known = _BY_NUMBER.get(number & 0xFF)
        if number >> 8 == block and known is not None:
            value = _value(known, element)
            if value not in (None, "", []) if not isinstance(value, np.ndarray) else value.size:
                values[known.keyword] = value
    return values


def _bytes(element: Any) -> bytes:
    value = element.value if element is not None else b""
    return value if isinstance(value, bytes) else str(value or "").encode("ascii", errors="replace")


def _text(element: Any) -> str:
    return _bytes(element).decode("ascii", errors="replace").strip(" \0")


def _value(known: PrivateElement, element: Any) -> Any:
    if known.vr not in _FORMATS:
        text = _text(element)
        if text and not text.isprintable():
            raise InvalidIdentifier(f"{known.keyword}: expected {known.vr}, got other bytes (sent as UN?)")
        return [part.strip() for part in text.split("\\")] if known.vm == "1-n" and text else text
    if not isinstance(element, RawDataElement) and not isinstance(element.value, bytes):
        return element.value
    little = element.is_little_endian if isinstance(element, RawDataElement) else True
    numbers = _numbers(known, _bytes(element), "<" if little else ">", may_be_text=known.vr != element.VR)
    if known.vr == "OF":
        return np.asarray(numbers, dtype=np.float32)
    if not numbers:
        return None
    return tuple(numbers) if known.vm != "1" else numbers[0]


def _numbers(known: PrivateElement, raw: bytes, order: str, *, may_be_text: bool) -> list[Any]:
    """Numbers in binary; or as text, which is how a client without a dictionary may write them."""
    kind = _FORMATS[known.vr]
    size = struct.calcsize(kind)
    if may_be_text and known.vr != "OF" and _NUMBER.fullmatch(raw):
        convert: Callable[[bytes], Any] = float if known.vr == "FD" else int
        try:
            return [convert(part.strip(b" \0")) for part in raw.split(b"\\")]
        except ValueError as error:
            raise InvalidIdentifier(f"{known.keyword}: expected a number, got {raw[:16]!r}") from error
    if len(raw) % size:
        raise InvalidIdentifier(f"{known.keyword}: expected {size} bytes a value, got {len(raw)}")
    return list(struct.unpack(f"{order}{len(raw) // size}{kind}", raw))


def put_block(identifier: Dataset, values: dict[str, Any]) -> None:
    """Add the block with `values`, by keyword, to `identifier`; None makes an empty element."""
    block = identifier.private_block(GROUP, CREATOR, create=True)
    for keyword, value in values.items():
        element = ELEMENTS[keyword]
        block.add_new(element.number, element.vr, value)
