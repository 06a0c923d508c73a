"""A data set walked element by element, sequences within: each attribute gets what its profile says.

The input is read, never changed: values are decoded from copies of raw elements, and what is kept is taken over as it
was encoded, pixel data that were left in their file included.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pydicom.charset import default_encoding
from pydicom.datadict import dictionary_has_tag, dictionary_keyword
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag, Tag

from config.deidentification import Option
from index.deidentification import dummies, structured_content
from index.deidentification.dates import Shift
from index.deidentification.descriptors import Cleaner
from index.deidentification.private import Blocks, Declarations
from index.deidentification.profile import Action, Profile, required
from index.deidentification.reader import Element, Reader, patient_of, texts
from index.deidentification.secret import Secret
from index.deidentification.table import attribute

_CHARSET = Tag(0x0008, 0x0005)
_DECLARATIONS = Tag(0x0008, 0x0300)
_PATIENT_NAME, _PATIENT_ID = Tag(0x0010, 0x0010), Tag(0x0010, 0x0020)
_CONTENT, _ANNOTATIONS, _LAYER = Tag(0x0040, 0xA730), Tag(0x0070, 0x0001), Tag(0x0070, 0x0002)
_TIMEZONE = Tag(0x0008, 0x0201)
_SCHEME = Tag(0x0008, 0x0102)
_OF_CODES = frozenset({Tag(0x0008, 0x0100), _SCHEME, Tag(0x0008, 0x0103), Tag(0x0008, 0x0119)})
"""Value, Long Value, scheme and version: in public codes short ones are no words, and mean nothing when changed."""

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
        are_kept = self.profile.has(Option.RETAIN_SAFE_PRIVATE)
        blocks = Blocks(reader.creators(), self.declarations, are_kept=are_kept, is_answer=self.is_answer)
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
            self.tell((*path, tag), action, raw, new)
        for tag, creator in blocks.kept_creators():
            target.add_new(tag, "LO", creator)
        declared = None if path else self.declarations.kept()
        if declared is not None:
            target[declared.tag] = declared
        return target

    def tell(self, path: tuple[int, ...], action: str, old: Element, new: Element | None) -> None:
        """Tell the observer, where there is one, what became of an element."""
        if self.observe is not None:
            self.observe(Change(path, str(action), old, new))

    def _standard(
        self, reader: Reader, tag: BaseTag, raw: Element, path: tuple[int, ...]
    ) -> tuple[str, Element | None]:
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
        vr = "UN" if action is Action.REMOVE else reader.vr(tag, raw, blocks.vr(tag))
        if vr == "UN":
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
            return self._checked(reader, tag, raw, vr)
        if action is Action.EMPTY:
            return DataElement(tag, vr, self._emptied(reader, tag))
        try:
            old = reader.read(tag, raw, vr)
        except Exception:  # noqa: BLE001  (a value that cannot be read: nobody can say that it is clean)
            return DataElement(tag, vr, dummies.VALUES.get(vr)) if action is Action.DUMMY else None
        if vr == "SQ":
            return DataElement(tag, "SQ", self._sequence(reader, tag, list(old.value or []), action, path))
        if action is Action.DUMMY:
            return DataElement(tag, vr, self._dummy(old, vr))
        if action is Action.REPLACE_UIDS:
            return DataElement(tag, vr, _each(old.value, self.secret.uid))
        return self._cleaned(tag, old, vr, path)

    def _checked(self, reader: Reader, tag: BaseTag, raw: Element, vr: str) -> Element | None:
        """Return what is kept as it is, unless it is text in which the object repeats one of its identifiers.

        What an option retains is not looked at: it was asked for.
        """
        is_listed = not tag.is_private and attribute(int(tag)) is not None
        if is_listed or vr not in dummies.TEXT:
            return raw
        is_public_code = tag in _OF_CODES and not structured_content.is_local_scheme("".join(reader.texts(_SCHEME)))
        if not self.cleaner.names(" ".join(reader.texts(tag)), short=not is_public_code):
            return raw
        return DataElement(tag, vr, _each(reader.value(tag, raw), self.cleaner.clean) or dummies.VALUES[vr])

    def _emptied(self, reader: Reader, tag: BaseTag) -> Any:
        if tag in (_PATIENT_ID, _PATIENT_NAME):
            return self._pseudonym(reader)
        return None

    def _pseudonym(self, reader: Reader) -> str:
        issuer, patient_id = patient_of(reader)
        return self.secret.pseudonym(issuer, patient_id) if patient_id else self.secret.pseudonym(*self.patient)

    def _dummy(self, old: DataElement, vr: str) -> Any:
        if vr == "UI":
            return _each(old.value, self.secret.uid)
        return dummies.VALUES.get(vr)

    def _cleaned(self, tag: BaseTag, old: DataElement, vr: str, path: tuple[int, ...]) -> DataElement | None:
        if vr in ("DA", "TM", "DT"):
            return self._or_required(DataElement(tag, vr, self._moved(old, vr)), path)
        if tag == _TIMEZONE:
            return old  # a constant shift leaves it true
        if vr == "AE" or vr not in (*dummies.TEXT, "CS"):
            return None
        return self._or_required(DataElement(tag, vr, _each(old.value, self.cleaner.clean)), path)

    def _or_required(self, made: DataElement, path: tuple[int, ...]) -> DataElement:
        """Return `made`; with a dummy value where cleaning left nothing of a required attribute."""
        if any(texts(made.value)):
            return made
        is_required = required(int(made.tag), self.sop_class, path[-1] if path else 0) is Action.DUMMY
        return DataElement(made.tag, made.VR, dummies.VALUES[made.VR] if is_required else None)

    def _moved(self, old: DataElement, vr: str) -> Any:
        if self.shift is None:
            return None
        move = {"DA": self.shift.date, "TM": self.shift.time, "DT": self.shift.date_time}[vr]
        return _each(old.value, move)

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
        if structured_content.holds_codes(tag, path):
            return [dummies.code() if structured_content.is_foreign_code(item) else item for item in done]
        if action is Action.CLEAN:
            done = [item for item in done if not structured_content.is_local_code(item)]
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


def shift_of(secret: Secret, patient: tuple[str, str], study: str) -> Shift | None:
    """Return how the dates of a patient move; of a study where no Patient ID is told; None where neither is."""
    if patient[1]:
        return Shift(secret.shift(*patient))
    return Shift(secret.shift("", f"study {study}")) if study else None


def _each(value: Any, change: Callable[[str], str]) -> Any:
    done = [change(part) for part in texts(value)]
    return done[0] if len(done) == 1 else done or None
