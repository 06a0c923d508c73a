"""Content items of SR documents, acquisition contexts and annotations (Clean Structured Content, PS3.15 E.3.4).

Without the option only references to images, waveforms and other objects stay of a document, with replaced UIDs, so
that it is still known what it was about. With it the tree stays: items that Table E.3.4-1 lists by their concept name
get the action it says, names of persons become dummies, dates go with the profile's dates, and other text is cleaned as
descriptors are. Numbers, codes of public schemes and coordinates stay; a code of a private scheme may mean anything, so
a dummy takes its place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydicom.dataset import Dataset
from pydicom.tag import BaseTag, Tag

from config.deidentification import Option
from index.deidentification import dummies, table
from index.deidentification.profile import Action

if TYPE_CHECKING:
    from index.deidentification.walk import Walk

_CONTENT = Tag(0x0040, 0xA730)
_SEQUENCES = frozenset({_CONTENT, Tag(0x0040, 0x0555), Tag(0x0040, 0x0612)})
"""Content, Acquisition Context and Specimen Preparation Step Content Item."""

_CONCEPT_NAME = Tag(0x0040, 0xA043)
_OF_CODES = ("CodeValue", "LongCodeValue", "URNCodeValue", "CodeMeaning")
_REFERENCES = ("IMAGE", "COMPOSITE", "WAVEFORM")
_VALUES = {
    "TEXT": "TextValue", "PNAME": "PersonName", "DATE": "Date", "TIME": "Time", "DATETIME": "DateTime", "UIDREF": "UID",
}  # fmt: skip
_KEPT = ("NUM", "NUMERIC", "CODE", "CONTAINER", "SCOORD", "SCOORD3D", "TCOORD", "TABLE", *_REFERENCES)


def is_content(tag: BaseTag) -> bool:
    """Whether a sequence holds content items."""
    return tag in _SEQUENCES


def holds_codes(tag: BaseTag, path: tuple[int, ...]) -> bool:
    """Whether what is in a sequence are codes of a content item: of one below `path`, or the name of a whole report."""
    return any(each in _SEQUENCES for each in path) or (tag == _CONCEPT_NAME and not path)


def is_local_code(item: Dataset) -> bool:
    """Whether an item is a code of a private or local scheme, or of none, whose meaning may be any text (PS3.3 8.2)."""
    is_code = any(keyword in item for keyword in _OF_CODES)
    return is_code and is_local_scheme(str(item.get("CodingSchemeDesignator") or ""))


def is_local_scheme(designator: str) -> bool:
    """Whether a coding scheme is private, local, or none."""
    plain = designator.strip().upper()
    return plain.startswith("99") or plain in ("", "L", "LOCAL")


def is_foreign_code(item: Dataset) -> bool:
    """Whether an item is a code of a private scheme, but for the one in which this node writes."""
    return is_local_code(item) and str(item.get("CodingSchemeDesignator") or "").strip() != dummies.SCHEME


def treated(
    walk: Walk, tag: BaseTag, items: list[Dataset], action: Action, path: tuple[int, ...], encodings: list[str]
) -> list[Dataset]:
    """Return the content items of a sequence as they may leave."""
    if action is Action.DUMMY:
        references = [walk.data_set(item, (*path, tag), encodings) for item in _references(items)]
        return references or [dummies.text_item()]
    numbered = any("ReferencedContentItemIdentifier" in item for item in _all(items))
    kept = (_item(walk, item, (*path, tag), encodings, is_numbered=numbered) for item in items)
    return [item for item in kept if item is not None]


def _item(
    walk: Walk, item: Dataset, path: tuple[int, ...], encodings: list[str], *, is_numbered: bool
) -> Dataset | None:
    """Return one item with those below it; None when it has to go.

    Where items are referred to by their position, none goes: it gets a dummy value instead.
    """
    kind = str(item.get("ValueType", "TEXT")).strip()
    action = _action(walk, item, kind)
    if action is Action.REMOVE and not is_numbered:
        return None
    keyword = _VALUES.get(kind)
    made = walk.data_set(_without(item, "ContentSequence", keyword), path, encodings)
    if keyword and keyword in item:
        setattr(made, keyword, _value(walk, item, keyword, kind, action))
        walk.tell((*path, item[keyword].tag), action, item[keyword], made[keyword])
    elif action is not Action.KEEP and kind not in _REFERENCES:
        return None if not is_numbered else dummies.text_item()
    below = item.get("ContentSequence") or []
    children = [_item(walk, child, (*path, _CONTENT), encodings, is_numbered=is_numbered) for child in below]
    left = [child for child in children if child is not None]
    if left:
        made.ContentSequence = left
    return made


def _action(walk: Walk, item: Dataset, kind: str) -> Action:
    names = item.get("ConceptNameCodeSequence") or []
    row = None
    if names:
        code = (str(names[0].get("CodingSchemeDesignator", "")), str(names[0].get("CodeValue", "")), kind)
        row = table.content_items().get(code)
    if row is not None:
        profile = walk.profile
        columns = {*profile.options, f"retain_longitudinal_{profile.dates}_dates"}
        chosen = {action for option, action in row.options.items() if option in columns}
        if chosen:
            return Action("K" if "K" in chosen else chosen.pop())
        return Action(row.basic[0])
    if kind in _KEPT:
        return Action.KEEP
    return Action.DUMMY if kind == "PNAME" else Action.CLEAN


def _value(walk: Walk, item: Dataset, keyword: str, kind: str, action: Action) -> Any:
    value = str(item.get(keyword) or "")
    if action is Action.KEEP:
        return value
    if kind == "UIDREF":
        return value if walk.profile.has(Option.RETAIN_UIDS) else walk.secret.uid(value)
    dummy = dummies.VALUES[{"TEXT": "UT", "PNAME": "PN", "DATE": "DA", "TIME": "TM", "DATETIME": "DT"}[kind]]
    if action is not Action.CLEAN:
        return dummy
    if kind == "TEXT":
        return walk.cleaner.clean(value) or dummy
    if walk.profile.dates == "full":
        return value
    if walk.profile.dates == "remove" or walk.shift is None:
        return dummy
    move = {"DATE": walk.shift.date, "TIME": walk.shift.time, "DATETIME": walk.shift.date_time}[kind]
    return move(value) or dummy


def _without(item: Dataset, *keywords: str | None) -> Dataset:
    made = Dataset()
    for tag, element in item.items():
        if tag not in [Tag(keyword) for keyword in keywords if keyword]:
            made[tag] = element
    return made


def _references(items: list[Dataset]) -> list[Dataset]:
    """Return the items that refer to objects, at any depth, without what they are called."""
    found = []
    for item in _all(items):
        if str(item.get("ValueType", "")) in _REFERENCES and item.get("ReferencedSOPSequence"):
            made = Dataset()
            made.RelationshipType, made.ValueType = "CONTAINS", item.ValueType
            made.ReferencedSOPSequence = item.ReferencedSOPSequence
            found.append(made)
    return found


def _all(items: list[Dataset]) -> list[Dataset]:
    found = []
    for item in items:
        found.append(item)
        found.extend(_all(list(item.get("ContentSequence") or [])))
    return found
