"""Response Identifiers of C-FIND encoded straight from the rows of the catalogue (PS3.4 C.4.1.1.3, PS3.5 7).

What `index.query.find` gives as data sets is here bytes in the transfer syntax of the request, the same ones. The shape
of a query becomes a plan: the elements in the order of their tags, with those that are the same in each answer encoded
already. A row then costs a header and a value for each column. What a plan cannot say (items of sequences, text that
was changed to be compared, a value that its VR does not allow) becomes a data set, and who sends it encodes that.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from operator import itemgetter
from typing import Any

from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from index.archive import Archive
from index.charset import CODED, SINGLE_VALUED, Charset, charset_from_text, choose_charset, split
from index.identifier import Query
from index.keys import Level
from index.query import Selection, answer_of, found, select

IS_IMPLICIT = {str(ImplicitVRLittleEndian): True, str(ExplicitVRLittleEndian): False}
"""Transfer syntaxes in which answers are encoded here, and whether their VR is implicit."""

_LONGEST = 0xFFFE
"""Bytes that the 16 bits of a length in Explicit VR can tell."""

_LARGEST_US = 0xFFFF
_LONG_LENGTH = frozenset({"UC", "UR", "UT"})
"""VRs of text whose length has 32 bits in Explicit VR (PS3.5 7.1.2)."""

_NUMBERS = {
    "IS": re.compile(r"[+-]?\d{1,9}", re.ASCII),
    "DS": re.compile(r"(?=.{1,16}\Z)[+-]?\d+(\.\d*)?([Ee][+-]?\d{1,2})?", re.ASCII),
}
_OFFSET = re.compile(r"([+-]\d{4})?", re.ASCII)

_LONGEST_PLAIN = 250
_END = "\x1f"
_MARKS = ("\\", "\0", f" {_END}")
"""What several values, or padding, have; text without them is encoded as it stands."""

Value = Callable[[str, Charset], bytes | None]
"""Gives the value field of an element with that text; None when it is left to pydicom."""

_Plain = tuple[str, list[str], str, Callable[[str], str | None] | None]
"""Of an element: what comes before its length; each length; its padding; what gives its characters for a text."""


@dataclass(frozen=True)
class _Element:
    """An element whose value differs from row to row.

    Attributes
    ----------
    before
        The encoded elements before it, its own tag and, in Explicit VR, its VR.
    column
        Place of its text in the row.
    vr
        Of the element.
    length
        Packs the length of its value field.
    value
        Gives its value field.
    """

    before: bytes
    column: int
    vr: str
    length: Callable[[int], bytes]
    value: Value

    @property
    def plain(self) -> _Plain:
        """The same for text that is ASCII and one value, as characters of Latin-1."""
        lengths = [self.length(size + size % 2).decode("latin-1") for size in range(_LONGEST_PLAIN + 1)]
        check = _checked_offset if self.column < 0 else _CHECKS.get(self.vr)
        return self.before.decode("latin-1"), lengths, "\0" if self.vr == "UI" else " ", check


@dataclass(frozen=True)
class _Plan:
    """How the rows of all queries of one shape are encoded.

    Attributes
    ----------
    first
        Encoded elements before the Specific Character Set.
    elements
        What follows it, in the order of the tags.
    last
        Encoded elements after those.
    is_implicit
        Whether the VR is implicit.
    """

    first: bytes
    elements: tuple[_Element, ...]
    last: bytes
    is_implicit: bool

    @cached_property
    def _texts(self) -> Callable[[tuple[Any, ...]], tuple[Any, ...]]:
        columns = [element.column for element in self.elements]
        return itemgetter(*columns, columns[0])  # of one column it would give no tuple

    @cached_property
    def _plain(self) -> list[_Plain]:
        return [element.plain for element in self.elements]

    def encoded(self, row: tuple[Any, ...], selection: Selection) -> bytes | None:
        """Return the Identifier of a row; None when a data set is needed to encode it."""
        if any(row[selection.originals]):
            return None
        texts = list(map(str, self._texts(row)))
        charset = selection.query.charset
        joined = _END.join(texts)
        if charset.is_known and joined.isascii() and not any(mark in joined for mark in _MARKS):
            return self._plainly(texts, charset)
        needed = [(element.vr, text) for element, text in zip(self.elements, texts, strict=False)]
        stored = (charset_from_text(each) for each in row[selection.charsets] if each)
        return self._in(choose_charset(needed, [charset, *stored]), texts)

    def _plainly(self, texts: list[str], charset: Charset) -> bytes | None:
        pieces: list[str] = []
        for (before, lengths, padding, check), told in zip(self._plain, texts, strict=False):
            text = told if check is None or not told else check(told)
            if text is None or len(text) > _LONGEST_PLAIN:
                return self._in(charset, texts)
            pieces += (before, lengths[len(text)], text)
            if len(text) & 1:
                pieces.append(padding)
        return b"".join((self._begin(charset), "".join(pieces).encode("latin-1"), self.last))

    def _in(self, charset: Charset, texts: list[str]) -> bytes | None:
        pieces = [self._begin(charset)]
        for element, text in zip(self.elements, texts, strict=False):
            value = element.value(text, charset)
            if value is None or len(value) > _LONGEST:
                return None
            pieces += (element.before, element.length(len(value)), value)
        pieces.append(self.last)
        return b"".join(pieces)

    def _begin(self, charset: Charset) -> bytes:
        return self.first + _charset_element(charset.terms, is_implicit=self.is_implicit)


def answers(
    archive: Archive, query: Query, edge: Mapping[str, str], transfer_syntax_uid: str
) -> Iterator[bytes | Dataset]:
    """Yield one response Identifier for each entity that matches, as they are found.

    Parameters
    ----------
    edge
        Keyword → value of what only the network edge knows, the same in each answer.
    transfer_syntax_uid
        In which the Identifiers will be sent.

    Yields
    ------
    bytes or Dataset
        The encoded Identifier, or one that is still to be encoded.
    """
    selection, implicit = select(query), IS_IMPLICIT.get(transfer_syntax_uid)
    plan = None
    if implicit is not None and not query.sequences and not query.zone:
        shape = (query.level, query.keywords, query.empty, query.returns_offset)
        plan = _plan(*shape, tuple(edge.items()), is_implicit=implicit)
    with found(archive, selection) as (database, rows):
        for row in rows:
            encoded = None if plan is None else plan.encoded(row, selection)
            yield encoded if encoded is not None else with_edge(answer_of(database, selection, row), edge)


def with_edge(identifier: Dataset, edge: Mapping[str, str]) -> Dataset:
    """Return `identifier` with what only the network edge knows, keyword → value."""
    for keyword, value in edge.items():
        setattr(identifier, keyword, value)
    return identifier


@lru_cache(maxsize=128)
def _plan(
    level: Level,
    keywords: tuple[str, ...],
    empty: tuple[tuple[int, str], ...],
    returns_offset: bool,  # noqa: FBT001
    edge: tuple[tuple[str, str], ...],
    *,
    is_implicit: bool,
) -> _Plan:
    constants = Dataset()
    for tag, vr in empty:
        constants.add_new(tag, vr, None)
    constants.QueryRetrieveLevel = level.value
    with_edge(constants, dict(edge))
    columns = {_tag(keyword): place for place, keyword in enumerate(keywords)}
    if returns_offset:
        columns[_tag("TimezoneOffsetFromUTC")] = -1
    charset_tag = _tag("SpecificCharacterSet")
    elements: list[_Element] = []
    first, before = b"", b""
    for tag in sorted({*map(int, constants.keys()), *columns, charset_tag}):
        if tag == charset_tag:
            first, before = before, b""
        elif tag in columns:
            elements.append(_element(tag, columns[tag], before, is_implicit=is_implicit))
            before = b""
        else:
            before += _written(constants, tag, is_implicit=is_implicit)
    return _Plan(first, tuple(elements), before, is_implicit)


def _element(tag: int, column: int, before: bytes, *, is_implicit: bool) -> _Element:
    vr = dictionary_VR(tag)
    header = struct.pack("<HH", tag >> 16, tag & 0xFFFF)
    long_length = is_implicit or vr in _LONG_LENGTH
    if not is_implicit:
        header += vr.encode("ascii") + (b"\0\0" if vr in _LONG_LENGTH else b"")
    value = _offset if column < 0 else _VALUES.get(vr) or _text(vr)
    return _Element(before + header, column, vr, struct.Struct("<I" if long_length else "<H").pack, value)


def _tag(keyword: str) -> int:
    tag = tag_for_keyword(keyword)
    if tag is None:
        raise ValueError(f"{keyword!r} is no DICOM keyword")
    return int(tag)


def _written(dataset: Dataset, tag: int, *, is_implicit: bool) -> bytes:
    buffer = DicomBytesIO()
    buffer.is_implicit_VR, buffer.is_little_endian = is_implicit, True
    single = Dataset()
    single.add(dataset[tag])
    write_dataset(buffer, single)
    return buffer.getvalue()


@lru_cache(maxsize=256)
def _charset_element(terms: tuple[str, ...], *, is_implicit: bool) -> bytes:
    if not terms:
        return b""
    dataset = Dataset()
    dataset.SpecificCharacterSet = list(terms) if len(terms) > 1 else terms[0]
    return _written(dataset, _tag("SpecificCharacterSet"), is_implicit=is_implicit)


def _text(vr: str) -> Value:
    """Return what gives the value field of text; a value that is not there between others is left to pydicom."""
    padding = b"\0" if vr == "UI" else b" "

    def value(text: str, charset: Charset) -> bytes | None:
        if not text:
            return b""
        if text.isascii():
            raw = text.encode("ascii")
            if (b"\\" in raw and vr not in SINGLE_VALUED) or raw[-1] in b" \0":
                parts = split(text, vr)
                raw = "\\".join(parts).encode("ascii") if all(parts) else b""
                if not raw:
                    return None
        else:
            encoded = [charset.encode(part, vr) for part in split(text, vr)] if vr in CODED else []
            known = [each for each in encoded if each]
            if not known or len(known) < len(encoded):
                return None
            raw = b"\\".join(known)
        return raw + padding if len(raw) % 2 else raw

    return value


def _name(text: str, charset: Charset) -> bytes | None:
    """Return the value field of names; pydicom knows which delimiters at their end mean nothing."""
    return None if _ends_with_delimiter(text) else _TEXT_OF_NAMES(text, charset)


def _ends_with_delimiter(text: str) -> bool:
    return text[-1:] == "=" or "=\\" in text


def _number(vr: str) -> Value:
    pattern = _NUMBERS[vr]

    def value(text: str, _charset: Charset) -> bytes | None:
        if not text:
            return b""
        if pattern.fullmatch(text) is None and not all(map(pattern.fullmatch, text.split("\\"))):
            return None
        raw = text.encode("ascii")
        return raw + b" " if len(raw) % 2 else raw

    return value


def _unsigned_short(text: str, _charset: Charset) -> bytes | None:
    if not text:
        return b""
    if len(text) > 5 or not (text.isascii() and text.isdigit()) or int(text) > _LARGEST_US:
        return None
    return struct.pack("<H", int(text))


def _offset(text: str, _charset: Charset) -> bytes | None:
    if _OFFSET.fullmatch(text) is None:
        return None
    return text.encode("ascii") + b" " if text else b""


def _checked(pattern: re.Pattern[str]) -> Callable[[str], str | None]:
    def check(text: str) -> str | None:
        return text if pattern.fullmatch(text) is not None else None

    return check


def _checked_unsigned_short(text: str) -> str | None:
    raw = _unsigned_short(text, _DEFAULT)
    return None if raw is None else raw.decode("latin-1")


def _checked_name(text: str) -> str | None:
    return None if _ends_with_delimiter(text) else text


_DEFAULT = Charset()
_TEXT_OF_NAMES = _text("PN")
_VALUES: dict[str, Value] = {"IS": _number("IS"), "DS": _number("DS"), "US": _unsigned_short, "PN": _name}
_CHECKS = {vr: _checked(pattern) for vr, pattern in _NUMBERS.items()} | {
    "US": _checked_unsigned_short,
    "PN": _checked_name,
}
_checked_offset = _checked(_OFFSET)
