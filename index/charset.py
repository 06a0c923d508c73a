r"""Specific Character Set (0008,0005): text decoded by it, and the one of an answer, which loses nothing (PS3.5 6.1).

Text is decoded as a whole and split into values afterwards: the second byte of a character of GBK or GB18030 may be
that of a backslash. Terms that writers misspell (``ISO IR 100``, ``ISO_IR_100``, ``ISO-2022-IR-87``) are understood.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

from pydicom.datadict import dictionary_has_tag, dictionary_VR
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence
from pydicom.tag import BaseTag
from pydicom.valuerep import PersonName

from index import code_extensions
from index.code_extensions import REPERTOIRES, Repertoire

UTF_8 = ("ISO_IR 192",)

SINGLE_VALUED = frozenset({"LT", "ST", "UT"})
"""VRs with one value, which may hold a backslash (PS3.5 6.4)."""

CODED = frozenset({"LO", "LT", "PN", "SH", "ST", "UC", "UT"})
"""VRs whose text is in the Specific Character Set; all others are in the default repertoire (PS3.5 6.1.2.3)."""

_STAND_ALONE = {"ISO_IR 192": "utf-8", "GB18030": "gb18030", "GBK": "gbk"}
_ALIASES = {"ISO 2022 GBK": "GBK", "ISO 2022 58": "ISO 2022 IR 58", "UTF-8": "ISO_IR 192", "UTF8": "ISO_IR 192"}
_MULTI_BYTE = frozenset({"IR 87", "IR 159", "IR 149", "IR 58"})
_TERM = re.compile(r"ISO[ _-]*(?P<extended>2022)?[ _-]*IR[ _-]*0*(?P<number>\d+)")


@dataclass(frozen=True)
class Charset:
    r"""A Specific Character Set.

    Attributes
    ----------
    terms
        Its defined terms, spelled as the standard has them; none for the default repertoire.
    stand_alone
        Python codec of a set without code extensions that replaces everything; else empty.
    first
        Set of the right half, None for none.
    more
        Sets that escape sequences may name.
    is_known
        Whether all terms are those of the standard, in a combination that it allows.
    """

    terms: tuple[str, ...] = ()
    stand_alone: str = ""
    first: Repertoire | None = None
    more: tuple[Repertoire, ...] = ()
    is_known: bool = True

    def decode(self, raw: bytes, vr: str) -> str:
        r"""Decode the value field of an element of that VR; several values stay joined by a backslash."""
        if vr not in CODED or (raw.isascii() and b"\x1b" not in raw):
            return raw.decode("iso8859-1")
        if self.stand_alone:
            try:
                return raw.decode(self.stand_alone)
            except UnicodeDecodeError:  # one wrong byte makes no other text
                return raw.decode(self.stand_alone, errors="replace")
        if self.first is REPERTOIRES["IR 13"] and not self.more and (text := _shift_jis(raw)) is not None:
            return text
        return code_extensions.decode(raw, self.first, is_name=vr == "PN")

    def encode(self, text: str, vr: str) -> bytes | None:
        """Encode one value; None when that would lose something."""
        if text.isascii():
            return text.encode("ascii")
        if not self.is_known:
            return None
        if self.stand_alone:
            try:
                encoded: bytes | None = text.encode(self.stand_alone)
            except UnicodeEncodeError:
                return None
        else:
            encoded = code_extensions.encode(text, self.first, self.more, is_name=vr == "PN")
        return encoded if encoded is not None and self.decode(encoded, vr) == text else None


def _shift_jis(raw: bytes) -> str | None:
    """Text of senders that say ISO_IR 13 and write two-byte Shift JIS; None for what is truly ISO-IR 13."""
    if not any(0x80 <= byte < 0xA0 or byte >= 0xE0 for byte in raw):
        return None
    try:
        return raw.decode("shift_jis")
    except UnicodeDecodeError:
        return None


@lru_cache(maxsize=256)
def charset_of(told: tuple[str, ...]) -> Charset:
    """Return the character set that values of Specific Character Set name; unknown terms count as the default."""
    spelled = [_spelling(term) for term in told]
    if not any(spelled):
        return Charset()
    if spelled[0] in _STAND_ALONE:
        return Charset((spelled[0],), _STAND_ALONE[spelled[0]], is_known=len(spelled) == 1)
    registrations = [term.removeprefix("ISO_").removeprefix("ISO 2022 ") for term in spelled]
    known = all(
        registration in REPERTOIRES or registration == "IR 6" or (place == 0 and not registration)
        for place, registration in enumerate(registrations)
    )
    if registrations[0] in _MULTI_BYTE:  # these are reached by escape sequences only
        spelled, registrations = ["", *spelled], ["", *registrations]
    if len(spelled) > 1:  # with code extensions the terms are those of ISO 2022
        spelled = [f"ISO 2022 {term.removeprefix('ISO_')}" if term.startswith("ISO_IR") else term for term in spelled]
    first, *more = [REPERTOIRES.get(registration) for registration in registrations]
    return Charset(tuple(spelled), "", first, tuple(each for each in more if each is not None), known)


def _spelling(term: str) -> str:
    """Return the defined term that was meant, or `term` as it stands."""
    bare = term.strip(" \0").upper()
    bare = _ALIASES.get(bare, bare)
    told = _TERM.fullmatch(bare)
    if told is None:
        return bare
    if told["number"] == "192":
        return "ISO_IR 192"
    return f"ISO 2022 IR {told['number']}" if told["extended"] else f"ISO_IR {told['number']}"


def charset_from_text(joined: str) -> Charset:
    r"""Return the character set of a Specific Character Set joined by a backslash."""
    return charset_of(tuple(joined.split("\\")) if joined else ())


def charset_in(identifier: Dataset, inherited: Charset | None = None) -> Charset:
    """Return the character set of a data set; an item without one has that of what it is in (PS3.5 7.5.3)."""
    element = raw_element(identifier, "SpecificCharacterSet") if "SpecificCharacterSet" in identifier else None
    value = None if element is None else element.value
    if not value:
        return inherited or Charset()
    if isinstance(value, bytes):
        return charset_from_text(value.decode("ascii", errors="replace").strip(" \0"))
    return charset_of(tuple(map(str, value)) if isinstance(value, (list, tuple, MultiValue)) else (str(value),))


def choose_charset(texts: Iterable[tuple[str, str]], candidates: Iterable[Charset]) -> Charset:
    """Return the first of `candidates` that represents every text without loss, else that of ``ISO_IR 192``.

    Parameters
    ----------
    texts
        VR and value; several values are joined by a backslash.
    candidates
        The preferred one first.
    """
    needed = [(vr, text) for vr, text in texts if not text.isascii()]
    for candidate in candidates:
        if candidate.is_known and all(_survives(candidate, vr, text) for vr, text in needed):
            return candidate
    return charset_of(UTF_8)


def _survives(charset: Charset, vr: str, text: str) -> bool:
    if vr not in CODED:  # nobody could read it in any other way than it was read
        return True
    parts = [text] if vr in SINGLE_VALUED else text.split("\\")
    return all(charset.encode(part, vr) is not None for part in parts)


def decode_in_place(identifier: Dataset, inherited: Charset | None = None) -> None:
    """Decode the text of a data set as it was read, sequences included, by its own character set."""
    charset = charset_in(identifier, inherited)
    for tag in list(identifier.keys()):
        element = raw_element(identifier, tag)
        if isinstance(element, RawDataElement) and not element.value:
            continue
        vr = vr_of(element)
        if isinstance(element, RawDataElement) and vr in CODED and isinstance(element.value, bytes):
            parts = split(charset.decode(element.value, vr), vr)
            values: MultiValue[Any] = MultiValue(PersonName if vr == "PN" else str, parts)
            identifier[tag] = DataElement(tag, vr, values[0] if len(values) == 1 else values, already_converted=True)
        elif vr == "SQ":
            for item in identifier[tag].value:
                decode_in_place(item, charset)


def encoded(identifier: Dataset, inherited: Charset | None = None) -> Dataset:
    """Return a copy with its text encoded by its own character set, as the bytes that are to be written.

    Text that the set cannot represent is left to the writer; `choose_charset` prevents that.
    """
    charset = charset_in(identifier, inherited)
    copy = Dataset()
    for element in identifier:
        if element.VR == "SQ":
            items = [encoded(item, charset) for item in element.value]
            copy.add(DataElement(element.tag, "SQ", Sequence(items)))
            continue
        copy.add(element)
        if element.VR in CODED and not element.is_empty:
            parts = element.value if isinstance(element.value, (list, tuple, MultiValue)) else [element.value]
            tried = [charset.encode(str(part or ""), element.VR) for part in parts]
            raw = [each for each in tried if each is not None]
            if len(raw) == len(tried):
                values: list[Any] = [PersonName(each) if element.VR == "PN" else each for each in raw]
                value = values[0] if len(values) == 1 else values
                copy[element.tag] = DataElement(element.tag, element.VR, value, already_converted=True)
    return copy


def split(text: str, vr: str) -> list[str]:
    """Return the values of a decoded value field, without the padding at their ends."""
    parts = [text] if vr in SINGLE_VALUED else text.split("\\")
    return [part.rstrip(" \0") for part in parts]


def raw_element(dataset: Dataset, tag: BaseTag | str) -> DataElement | RawDataElement:
    """Return an element as it is in `dataset`: not decoded when it was read and not used since."""
    element = cast(DataElement | RawDataElement, dataset.get_item(tag, keep_deferred=True))
    if isinstance(element, RawDataElement) and element.length and not element.value:  # it was left in its file
        return cast(DataElement | RawDataElement, dataset.get_item(tag))
    return element


def vr_of(element: DataElement | RawDataElement) -> str:
    """Return the VR of an element, from the dictionary where its encoding does not tell."""
    if element.VR not in (None, "UN"):
        return str(element.VR)
    return dictionary_VR(element.tag) if dictionary_has_tag(element.tag) else "UN"
