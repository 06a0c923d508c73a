"""The tables of PS3.15 Annex E as they were generated (`index.deidentification.generate`): looked up, never edited."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources

PRIVATE = "PRIVATE"
"""The pattern of the row for all private attributes."""

_ROOT = "1.2.840.10008."
_STORAGE = "1.2.840.10008.5.1.4.1.1."
"""What the table of types leaves out of UIDs of storage SOP Classes."""

_SOP_CLASS_UID = 0x00080016
"""Every SOP Class requires it."""

_NOT_ACTIONS = ("tag", "name", "retired", "iod", "code", "scheme", "meaning", "value_type", "basic")


@dataclass(frozen=True)
class Attribute:
    """A row of Table E.1-1.

    Attributes
    ----------
    pattern
        Eight digits of the tag, ``x`` for any of a repeating group; ``PRIVATE`` for private attributes.
    basic
        Action of the Basic Profile, for example ``X/Z/D``.
    options
        Actions of the options that have one, by their column.
    """

    pattern: str
    name: str
    basic: str
    options: Mapping[str, str]


@dataclass(frozen=True)
class ContentItem:
    """A row of Table E.3.4-1: a content item, by the code of its concept name."""

    scheme: str
    code: str
    meaning: str
    value_type: str
    basic: str
    options: Mapping[str, str]


@cache
def edition() -> str:
    """Return the edition of PS3.15 that the tables were generated from, for example ``2026d``."""
    first = _text("basic_profile.csv").partition("\n")[0]
    found = re.search(r"PS3\.15 (\S+),", first)
    return found[1] if found else ""


@cache
def attributes() -> tuple[Attribute, ...]:
    """Return the rows of Table E.1-1, in its order."""
    return tuple(
        Attribute(row["tag"], row["name"], row["basic"], _actions(row)) for row in _rows("basic_profile.csv")
    )


@cache
def attribute(tag: int) -> Attribute | None:
    """Return the row for `tag`, that of private attributes for an odd group; None when there is none."""
    group = tag >> 16
    if group % 2:
        return _by_pattern()[PRIVATE]
    digits = f"{tag:08X}"
    patterns = _by_pattern()
    if 0x5000 <= group < 0x5100:
        return patterns["50xxxxxx"]
    if 0x6000 <= group < 0x6100:
        digits = f"60xx{digits[4:]}"
    return patterns.get(digits)


@cache
def content_items() -> Mapping[tuple[str, str, str], ContentItem]:
    """Return Table E.3.4-1 by coding scheme, code value and value type."""
    items = (
        ContentItem(row["scheme"], row["code"], row["meaning"], row["value_type"], row["basic"], _actions(row))
        for row in _rows("content_items.csv")
    )
    return {(item.scheme, item.code, item.value_type): item for item in items}


@cache
def safe_private() -> Mapping[tuple[str, int, int], str]:
    """Return the VR, "" for none, of safe private attributes (Table E.3.10-1) by creator, group and last byte."""
    return {
        (row["creator"], int(row["tag"][:4], 16), int(row["tag"][-2:], 16)): row["vr"]
        for row in _rows("safe_private.csv")
    }


@cache
def attribute_type(sop_class: str, parent: int, tag: int) -> str:
    """Return whether a SOP Class requires an attribute: ``1``, ``2`` (may be empty) or ``3`` (may be absent).

    Conditional types count as those without a condition: what the object has, it has for a reason. Of a SOP Class that
    is not known the strictest answer of all is given.

    Parameters
    ----------
    parent
        Tag of the sequence that holds it; 0 at the top of the data set.
    """
    known = _types().get((parent, tag), {})
    if not sop_class or sop_class not in _known_classes():
        return min(known.values(), default="2")
    return known.get(sop_class, "3")


@cache
def _types() -> Mapping[tuple[int, int], Mapping[str, str]]:
    types: dict[tuple[int, int], dict[str, str]] = {}
    for row in _rows("attribute_types.csv"):
        where = types.setdefault((int(row["parent"], 16), int(row["tag"], 16)), {})
        classes = (uid if uid.startswith(_ROOT) else _STORAGE + uid for uid in row["sop_classes"].split())
        where.update(dict.fromkeys(classes, row["type"]))
    return types


@cache
def _known_classes() -> frozenset[str]:
    return frozenset(_types()[0, _SOP_CLASS_UID])


@cache
def _by_pattern() -> Mapping[str, Attribute]:
    return {row.pattern: row for row in attributes()}


def _actions(row: Mapping[str, str]) -> Mapping[str, str]:
    return {column: action for column, action in row.items() if action and column not in _NOT_ACTIONS}


def _rows(name: str) -> Iterator[dict[str, str]]:
    return csv.DictReader(line for line in _text(name).splitlines() if not line.startswith("#"))


@cache
def _text(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
