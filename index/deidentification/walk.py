"""A data set walked element by element, sequences within: each attribute gets what its profile says.

The input is read, never changed: values are decoded from copies of raw elements, and what is kept is taken over as it
was encoded, pixel data that were left in their file included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from io import BytesIO
from typing import Any

from pydicom.charset import convert_encodings, default_encoding
from pydicom.datadict import dictionary_has_tag, dictionary_keyword, dictionary_VR, repeater_has_tag
from pydicom.datadict import tag_for_keyword as tag_for
from pydicom.dataelem import DataElement, RawDataElement, convert_raw_data_element
from pydicom.dataset import Dataset
from pydicom.filereader import read_sequence
from pydicom.sequence import Sequence
from pydicom.tag import BaseTag, Tag

from config.deidentification import Option
from index.deidentification import dummies, structured_content
from index.deidentification.dates import Shift
from index.deidentification.descriptors import Cleaner
from index.deidentification.private import Blocks, Declarations
from index.deidentification.profile import Action, Profile
from index.deidentification.secret import Secret

Element = DataElement | RawDataElement

_CHARSET = Tag(0x0008, 0x0005)
_DECLARATIONS = Tag(0x0008, 0x0300)
_PATIENT_NAME, _PATIENT_ID, _ISSUER = Tag(0x0010, 0x0010), Tag(0x0010, 0x0020), Tag(0x0010, 0x0021)
_CONTENT, _ANNOTATIONS, _LAYER = Tag(0x0040, 0xA730), Tag(0x0070, 0x0001), Tag(0x0070, 0x0002)
_TIMEZONE = Tag(0x0008, 0x0201)
_MARKS = frozenset({Tag(0x0012, 0x0062), Tag(0x0012, 0x0063), Tag(0x0012, 0x0064), Tag(0x0028, 0x0303)})
"""What the de-identifier says of itself; it is written anew."""

_ANSWERED_AS_IS = frozenset({Tag(0x0008, 0x0052), Tag(0x0008, 0x0054), Tag(0x0008, 0x0056)})
"""Of a C-FIND answer: level, AE title of this node, availability."""

_MOST_NESTING = 128


@dataclass(frozen=True)
class Change:
    """What was done with one element.

    Attributes
    ----------
    path
        Tags of the sequences that hold it, outermost first, and its own.
    action
        What the profile says, for example ``X``.
    old, new
        The element before and after; `new` is None when it was removed.
    """

    path: tuple[int, ...]
    action: str
    old: Element
    new: Element | None


@dataclass(frozen=True)
class Walk:
    """One object on its way through a profile.

    Attributes
    ----------
    patient
        Issuer and Patient ID of the object.
    shift
        How its dates move; None where they are not moved, or nobody knows whose they are.
    is_answer
        A C-FIND answer: each key stays, and is empty where an object would lose it.
    observe
        Is told of each element.
    """

    profile: Profile
    secret: Secret
    sop_class: str
    patient: tuple[str, str]
    shift: Shift | None
    cleaner: Cleaner
    declarations: Declarations
    is_answer: bool = False
    observe: Callable[[Change], None] | None = field(default=None, compare=False)

    def data_set(self, source: Dataset, path: tuple[int, ...] = (), encodings: list[str] | None = None) -> Dataset:
        """Return `source`, a data set or an item, as the profile lets it out."""
        if len(path) > _MOST_NESTING:
            raise RecursionError("sequences nested too deeply")
        reader = Reader(source, encodings or [default_encoding])
        target = Dataset()
        blocks = Blocks(reader.creators(), self.profile.has(Option.RETAIN_SAFE_PRIVATE), self.declarations)
        for tag, raw in reader.elements():
            if tag == _DECLARATIONS or (tag in _MARKS and not path):
                continue
            action, new = self._private(reader, tag, raw, blocks, path) if tag.is_private else self._standard(
                reader, tag, raw, path
            )
            if new is None and self.is_answer and not path and tag.element and not tag.is_private:
                new = DataElement(tag, reader.vr(tag, raw), None)
            if new is not None:
                target[tag] = new
            if self.observe is not None:
                self.observe(Change((*path, tag), action, raw, new))
        for tag, creator in blocks.kept_creators():
            target.add_new(tag, "LO", creator)
        declared = None if path else self.declarations.kept()
        if declared is not None:
            target[declared.tag] = declared
        return target

    def _standard(self, reader: Reader, tag: BaseTag, raw: Element, path: tuple[int, ...]) -> tuple[str, Element | None]:
        if tag == _CHARSET or (self.is_answer and tag in _ANSWERED_AS_IS):
            return "K", raw
        action = self.profile.action(tag, sop_class=self.sop_class, parent=path[-1] if path else 0)
        return action.value, self.treated(reader, tag, raw, action, path)

    def _private(
        self, reader: Reader, tag: BaseTag, raw: Element, blocks: Blocks, path: tuple[int, ...]
    ) -> tuple[str, Element | None]:
        """Return a private element that is safe, its UIDs, dates and names treated all the same; else None."""
        if tag.is_private_creator:
            return "X", None  # written again with what is kept of its block
        action = blocks.action(tag)
        vr = reader.vr(tag, raw, blocks.vr(tag))
        if action is Action.REMOVE or vr == "UN":
            return "X", None
        if action is Action.KEEP:
            action = {"UI": Action.REPLACE_UIDS, "PN": Action.DUMMY}.get(vr, Action.KEEP)
            if action is Action.REPLACE_UIDS and self.profile.has(Option.RETAIN_UIDS):
                action = Action.KEEP
            if vr in ("DA", "TM", "DT") and self.profile.dates != "full":
                action = Action.CLEAN if self.profile.dates == "modified" else Action.EMPTY
        new = self.treated(reader, tag, raw, action, path, vr)
        if new is not None:
            blocks.keep(tag)
        return action.value, new

    def treated(
        self, reader: Reader, tag: BaseTag, raw: Element, action: Action, path: tuple[int, ...], vr: str = ""
    ) -> Element | None:
        """Return what becomes of an element under `action`; None when it is removed."""
        vr = vr or reader.vr(tag, raw)
        if action is Action.REMOVE:
            return None
        if action is Action.KEEP and vr != "SQ":
            return raw if isinstance(raw, DataElement) or raw.VR not in (None, "UN") or vr == "UN" else reader.read(tag, raw, vr)
        if action is Action.EMPTY:
            return DataElement(tag, vr, self._emptied(reader, tag, raw))
        try:
            old = reader.read(tag, raw, vr)
        except Exception:  # noqa: BLE001  (a value that cannot be read: nobody can say that it is clean)
            return DataElement(tag, vr, dummies.VALUES.get(vr)) if action is Action.DUMMY else None
        if vr == "SQ":
            return DataElement(tag, "SQ", self._sequence(reader, tag, list(old.value or []), action, path))
        if action is Action.DUMMY:
            return DataElement(tag, vr, self._dummy(tag, old, vr))
        if action is Action.REPLACE_UIDS:
            return DataElement(tag, vr, _each(old.value, self.secret.uid))
        return self._cleaned(reader, tag, old, vr)

    def _emptied(self, reader: Reader, tag: BaseTag, raw: Element) -> Any:
        if tag in (_PATIENT_ID, _PATIENT_NAME):
            return self._pseudonym(reader)
        return None

    def _pseudonym(self, reader: Reader) -> str:
        issuer, patient_id = patient_of(reader)
        return self.secret.pseudonym(issuer, patient_id) if patient_id else self.secret.pseudonym(*self.patient)

    def _dummy(self, tag: BaseTag, old: DataElement, vr: str) -> Any:
        if vr == "UI":
            return _each(old.value, self.secret.uid)
        return dummies.VALUES.get(vr)

    def _cleaned(self, reader: Reader, tag: BaseTag, old: DataElement, vr: str) -> DataElement | None:
        if vr in ("DA", "TM", "DT"):
            return DataElement(tag, vr, self._moved(reader, tag, old, vr))
        if tag == _TIMEZONE:
            return old  # a constant shift leaves it true
        if vr == "AE" or vr not in (*dummies.TEXT, "CS"):
            return None
        return DataElement(tag, vr, _each(old.value, self.cleaner.clean))

    def _moved(self, reader: Reader, tag: BaseTag, old: DataElement, vr: str) -> Any:
        if self.shift is None:
            return None
        if vr == "DT":
            return _each(old.value, self.shift.date_time)
        values, partners = texts(old.value), self._partners(reader, tag, vr)
        if len(partners) != len(values):
            return [self.shift.date(value) if vr == "DA" else self.shift.time(value) for value in values] or None
        pairs = zip(values, partners, strict=True) if vr == "DA" else zip(partners, values, strict=True)
        return [self.shift.pair(day, clock)[0 if vr == "DA" else 1] for day, clock in pairs] or None

    @staticmethod
    def _partners(reader: Reader, tag: BaseTag, vr: str) -> list[str]:
        """Return the times that belong to the dates of `tag`, or the other way round; empty when there are none."""
        keyword = dictionary_keyword(tag) if dictionary_has_tag(tag) else ""
        partner = keyword.replace("Date", "Time", 1) if vr == "DA" else keyword.replace("Time", "Date", 1)
        number = tag_for(partner) if partner != keyword else None
        return [] if number is None else reader.texts(Tag(number))

    def _sequence(
        self, reader: Reader, tag: BaseTag, items: list[Dataset], action: Action, path: tuple[int, ...]
    ) -> list[Dataset]:
        if not items:
            return []
        if structured_content.is_content(tag):
            return structured_content.treated(self, tag, items, action, path, reader.encodings)
        if action is Action.DUMMY:
            return self._dummy_items(reader, tag, items, path)
        done = [self.data_set(item, (*path, tag), reader.encodings) for item in items]
        if action is Action.CLEAN:
            done = [item for item in done if not is_local_code(item)]
        return done

    def _dummy_items(self, reader: Reader, tag: BaseTag, items: list[Dataset], path: tuple[int, ...]) -> list[Dataset]:
        keyword = dictionary_keyword(tag) if dictionary_has_tag(tag) else ""
        if keyword.endswith("CodeSequence"):
            return [dummies.code()]
        if tag == _ANNOTATIONS:
            return [dummies.graphic_annotation((Reader(items[0], reader.encodings).texts(_LAYER) or ["LAYER"])[0])]
        first = self.data_set(items[0], (*path, tag), reader.encodings)
        for element in list(first):
            if element.VR in dummies.TEXT and not element.is_empty:
                first[element.tag] = DataElement(element.tag, element.VR, dummies.VALUES[element.VR])
        return [first]


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


def shift_of(secret: Secret, patient: tuple[str, str], study: str) -> Shift | None:
    """Return how the dates of a patient move; of a study where no Patient ID is told; None where neither is."""
    if patient[1]:
        return Shift(secret.shift(*patient))
    return Shift(secret.shift("", f"study {study}")) if study else None


NO_SHIFT = Shift(timedelta(0))


def is_local_code(item: Dataset) -> bool:
    """Whether an item is a code of a private or local scheme, whose meaning may be any text (PS3.3 8.2)."""
    scheme = str(item.get("CodingSchemeDesignator", "")).upper()
    return "CodeValue" in item and (scheme.startswith("99") or scheme in ("", "L", "LOCAL"))


def texts(value: Any) -> list[str]:
    """Return the values of an element as a list of text."""
    if value is None or value == "":
        return []
    return [str(part) for part in value] if isinstance(value, list | tuple | Sequence) or _is_multiple(value) else [str(value)]


def _is_multiple(value: Any) -> bool:
    return hasattr(value, "__iter__") and not isinstance(value, str | bytes) and not hasattr(value, "original_string")


def _each(value: Any, change: Callable[[str], str]) -> Any:
    done = [change(part) for part in texts(value)]
    return done[0] if len(done) == 1 else done or None
