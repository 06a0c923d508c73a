"""Attribute matching on a header in memory: the conditions of C-FIND (`index.matching`), asked of one data set.

For rules that look at an object, so that they mean what the same value means in a query.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from index.charset import Charset, charset_from_text
from index.errors import InvalidIdentifier
from index.keys import KEYS, Key, Level, Matching, snake_case
from index.matching import FUNCTIONS, condition, fold_name
from index.values import stored_text

_BY_VR = {"DA": Matching.DATE, "TM": Matching.TIME, "PN": Matching.PERSON_NAME, "UI": Matching.UID} | dict.fromkeys(
    ("IS", "DS", "US", "SS", "UL", "SL", "FL", "FD"), Matching.NUMBER
)
_WITHOUT_MATCHING = frozenset({"SQ", "OB", "OW", "OF", "OD", "OL", "OV", "UN"})


@dataclass(frozen=True)
class Finding:
    """One attribute and what was made of it.

    Attributes
    ----------
    value
        As it stands in the data set, several joined by a backslash; "" where it is absent.
    """

    keyword: str
    wanted: tuple[str, ...]
    value: str
    holds: bool


def require_criteria(criteria: Mapping[str, Sequence[str]]) -> None:
    """Raise `InvalidIdentifier` unless each keyword is an attribute that can be matched, with values that it allows."""
    for keyword, wanted in criteria.items():
        condition(_key(keyword), list(wanted))


def findings(dataset: Dataset, criteria: Mapping[str, Sequence[str]]) -> list[Finding]:
    """Compare the attributes of a data set with what is wanted of them, any of the values of each (PS3.4 C.2.2.2).

    Raises
    ------
    InvalidIdentifier
        As `require_criteria`.
    """
    charset = charset_from_text(_text(dataset, "SpecificCharacterSet", Matching.TEXT, Charset()))
    with closing(sqlite3.connect(":memory:")) as database:
        for name, (parameters, function) in FUNCTIONS.items():
            database.create_function(name, parameters, function, deterministic=True)
        return [_finding(database, dataset, charset, keyword, tuple(wanted)) for keyword, wanted in criteria.items()]


def _finding(
    database: sqlite3.Connection, dataset: Dataset, charset: Charset, keyword: str, wanted: tuple[str, ...]
) -> Finding:
    key = _key(keyword)
    value = _text(dataset, keyword, key.matching, charset)
    asked = condition(key, list(wanted))
    if asked is None:  # universal matching
        return Finding(keyword, wanted, value, holds=True)
    name = snake_case(keyword)
    row = f"SELECT ? AS {name}, ? AS {name}_folded"
    found = database.execute(
        f"SELECT 1 FROM ({row}) AS series WHERE {asked.sql}", (value, fold_name(value), *asked.parameters)
    )
    holds = found.fetchone() is not None or _any_value(key, value, wanted)
    return Finding(keyword, wanted, value, holds)


def _any_value(key: Key, value: str, wanted: tuple[str, ...]) -> bool:
    """Whether one of several UIDs or numbers is wanted."""
    parts = value.split("\\")
    return key.matching in (Matching.UID, Matching.NUMBER) and len(parts) > 1 and not set(parts).isdisjoint(wanted)


def _key(keyword: str) -> Key:
    if tag_for_keyword(keyword) is None:
        raise InvalidIdentifier(f"{keyword!r} is no DICOM keyword", element=keyword)
    vr = dictionary_VR(keyword).split(" ")[0]
    known = KEYS.get(keyword)
    if vr in _WITHOUT_MATCHING or (known is not None and known.counted):
        raise InvalidIdentifier(f"{keyword} has no value in an object that could be matched", element=keyword)
    matching = known.matching if known is not None else _BY_VR.get(vr, Matching.MODALITIES)
    # Several values are possible in most text VRs: any of them may match.
    return Key(keyword, Level.SERIES, Matching.MODALITIES if matching is Matching.TEXT else matching)


def _text(dataset: Dataset, keyword: str, matching: Matching, charset: Charset) -> str:
    element = dict(dataset.items()).get(Tag(keyword))
    return "" if element is None else stored_text(matching, element, charset)


