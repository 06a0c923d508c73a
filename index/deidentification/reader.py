"""Reads elements of a data set and leaves the data set as it is: what is decoded is a copy of the raw element."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from typing import Any

from pydicom.charset import convert_encodings
from pydicom.datadict import dictionary_has_tag, dictionary_VR, repeater_has_tag
from pydicom.dataelem import DataElement, RawDataElement, convert_raw_data_element
from pydicom.dataset import Dataset
from pydicom.filereader import read_sequence
from pydicom.tag import BaseTag, Tag

Element = DataElement | RawDataElement

_CHARSET = Tag(0x0008, 0x0005)
_PATIENT_ID, _ISSUER = Tag(0x0010, 0x0020), Tag(0x0010, 0x0021)


class Reader:
    """Reads the elements of a data set or item, and leaves it as it is.

    Parameters
    ----------
    encodings
        Python's names of the character sets that hold where the data set names none.
    """

    def __init__(self, dataset: Dataset, encodings: list[str]) -> None:
        self._dataset = dataset
        self._elements = dict(dataset.items())
        self.encodings = encodings
        if _CHARSET in self._elements:
            told = self.texts(_CHARSET)
            self.encodings = convert_encodings(told if told else "")

    def elements(self) -> Iterator[tuple[BaseTag, Element]]:
        """Yield tags and elements in order, those left in the file without a value."""
        for tag in sorted(self._elements):
            yield tag, self._elements[tag]

    def creators(self) -> dict[tuple[int, int], str]:
        """Return the private creators by group and block."""
        found = {}
        for tag in self._elements:
            if tag.is_private_creator:
                found[tag.group, tag.element] = "\\".join(self.texts(tag)).strip(" \0")
        return found

    def vr(self, tag: BaseTag, raw: Element, known: str = "") -> str:
        """Return the VR: as encoded, else `known`, else that of the dictionary; UN when nobody knows it."""
        if raw.VR not in (None, "UN"):
            return str(raw.VR)
        if known or tag.is_private:
            return known or "UN"
        told = dictionary_VR(tag) if dictionary_has_tag(tag) or repeater_has_tag(tag) else "UN"
        return told.split(" or ")[-1]

    def read(self, tag: BaseTag, raw: Element, vr: str = "") -> DataElement:
        """Return the element with its value, decoded; raises what a decoder raises."""
        if isinstance(raw, DataElement):
            return raw
        vr = vr or self.vr(tag, raw)
        content = self._dataset.get_item(tag) if raw.value is None and raw.length else raw
        if isinstance(content, DataElement):
            return content
        if raw.VR in (None, "UN") and vr == "SQ" and content.value:
            is_implicit = True if raw.VR == "UN" else raw.is_implicit_VR
            items = read_sequence(
                BytesIO(content.value), is_implicit, raw.is_little_endian, len(content.value), self.encodings
            )
            return DataElement(tag, "SQ", items)
        return convert_raw_data_element(content._replace(VR=vr), encoding=self.encodings)

    def value(self, tag: BaseTag, raw: Element) -> Any:
        """Return the decoded value; None for one that cannot be decoded."""
        try:
            return self.read(tag, raw).value
        except Exception:  # noqa: BLE001  (whatever a decoder raises)
            return None

    def texts(self, tag: BaseTag) -> list[str]:
        """Return the values of an element as text; none when it is absent, empty or cannot be read."""
        raw = self._elements.get(tag)
        return [] if raw is None else texts(self.value(tag, raw))


def patient_of(reader: Reader) -> tuple[str, str]:
    """Return Issuer of Patient ID and Patient ID; "" for what is absent."""
    return "\\".join(reader.texts(_ISSUER)).strip(), "\\".join(reader.texts(_PATIENT_ID)).strip()


def texts(value: Any) -> list[str]:
    """Return the values of an element as a list of text."""
    if value is None or value == "":
        return []
    return [str(part) for part in value] if _is_multiple(value) else [str(value)]


def _is_multiple(value: Any) -> bool:
    return hasattr(value, "__iter__") and not isinstance(value, str | bytes) and not hasattr(value, "original_string")
