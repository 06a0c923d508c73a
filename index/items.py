"""Items of sequences: read from an instance, kept as rows, matched item by item and returned (PS3.4 C.2.2.2.6).

A row of the table ``item`` stands for one item. It belongs to its study, series or instance, or to the item that its
sequence is in, and goes with it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as ItemSequence
from pydicom.tag import BaseTag, Tag
from sqlite_utils import Database

from index.charset import Charset, charset_in, raw_element, vr_of
from index.condition import Condition
from index.errors import InvalidIdentifier
from index.keys import SEQUENCES, SequenceKey, snake_case
from index.matching import condition
from index.values import comparable, element_of, stored_text, values_of

_LOG = logging.getLogger(__name__)

_MOST_ITEMS = 1000
"""Items of one sequence that are indexed; a request for one procedure has one or two."""


@dataclass(frozen=True)
class Item:
    r"""One item of a sequence.

    Attributes
    ----------
    sequence
        Keyword of the sequence.
    charset
        Specific Character Set of its text, joined by a backslash.
    values
        Keyword → text in Unicode NFC; absent attributes are not there.
    originals
        Those of the values that Unicode NFC changes, as they were sent.
    items
        Items of the sequences inside it.
    """

    sequence: str
    charset: str
    values: dict[str, str]
    originals: dict[str, str]
    items: tuple[Item, ...] = ()


def read_items(
    dataset: Dataset,
    charset: Charset,
    wanted: Iterable[SequenceKey] = tuple(SEQUENCES.values()),
) -> tuple[Item, ...]:
    """Return the items of the `wanted` sequences of `dataset`; a sequence that cannot be read counts as absent."""
    found: list[Item] = []
    for key in wanted:
        tag = Tag(key.keyword)
        if tag not in dataset or vr_of(raw_element(dataset, tag)) != "SQ" or raw_element(dataset, tag).value is None:
            continue
        try:
            items = (_item(key, item, charset) for item in _items_of(dataset, tag)[:_MOST_ITEMS])
            found.extend(item for item in items if item.values or item.items)
        except Exception as error:  # noqa: BLE001  (hostile bytes raise anything; the rest of the instance is as it was)
            _LOG.debug("%s cannot be read: %s", key.keyword, error)
    return tuple(found)


def _items_of(dataset: Dataset, tag: BaseTag) -> list[Dataset]:
    return list(dataset[tag].value or [])


def _item(key: SequenceKey, item: Dataset, inherited: Charset) -> Item:
    charset = charset_in(item, inherited)
    values: dict[str, str] = {}
    for attribute in key.keys:
        tag = Tag(attribute.keyword)
        if tag in item:
            values[attribute.keyword] = stored_text(attribute.matching, raw_element(item, tag), charset)
    compared, originals = comparable(values, ())
    return Item(key.keyword, "\\".join(charset.terms), compared, originals, read_items(item, charset, key.sequences))


def insert_items(database: Database, owner: str, owner_id: int, items: Iterable[Item]) -> None:
    """Add the rows of `items`, which belong to the row `owner_id` of the table (or column) `owner`."""
    for number, item in enumerate(items):
        row: dict[str, Any] = {snake_case(keyword): value for keyword, value in item.values.items()}
        row |= {owner: owner_id, "sequence": item.sequence, "number": number, "specific_character_set": item.charset}
        row["originals"] = json.dumps(item.originals) if item.originals else ""
        columns, marks = ", ".join(row), ", ".join("?" * len(row))
        cursor = database.execute(f"INSERT INTO item ({columns}) VALUES ({marks})", tuple(row.values()))
        insert_items(database, "parent", int(cursor.lastrowid or 0), item.items)


@dataclass(frozen=True)
class SequenceRequest:
    """What an Identifier asks of a sequence.

    Attributes
    ----------
    key
        The sequence.
    keywords
        Attributes of its items to return, in the order of the request.
    conditions
        All of them have to hold in one item.
    sequences
        What it asks of sequences inside the items.
    empty
        Tag and VR of attributes that are returned without a value, because they are not supported.
    is_whole
        It names no attribute: whole items are returned.
    """

    key: SequenceKey
    keywords: tuple[str, ...] = ()
    conditions: tuple[Condition, ...] = ()
    sequences: tuple[SequenceRequest, ...] = ()
    empty: tuple[tuple[int, str], ...] = ()
    is_whole: bool = True

    @property
    def all_supported(self) -> bool:
        """Whether every attribute asked for is supported, inside of it as well."""
        return not self.empty and all(inner.all_supported for inner in self.sequences)

    def condition(self, owner: str) -> Condition | None:
        """Return the condition on the row of `owner`, a table, that it imposes; None when everything matches."""
        inside = self._inside()
        if inside is None:
            return None
        column = "parent" if owner == "item" else owner
        return Condition(
            f"{owner}.id IN (SELECT item.{column} FROM item WHERE item.sequence = ? AND {inside.sql})",
            (self.key.keyword, *inside.parameters),
        )

    def _inside(self) -> Condition | None:
        """Return the condition on an item."""
        nested = [each for each in (inner.condition("item") for inner in self.sequences) if each is not None]
        parts = [*self.conditions, *nested]
        if not parts:
            return None
        return Condition(
            " AND ".join(part.sql for part in parts), tuple(value for part in parts for value in part.parameters)
        )

    def answer(self, database: Database, owner: str, owner_id: int) -> Iterator[tuple[Dataset, str]]:
        """Yield the items that match, with what was asked of them, and their Specific Character Set."""
        inside = self._inside() or Condition("1")
        rows = database.execute(
            f"SELECT * FROM item WHERE item.{owner} = ? AND item.sequence = ? AND {inside.sql} ORDER BY item.number",
            (owner_id, self.key.keyword, *inside.parameters),
        )
        names = [column[0] for column in rows.description]
        for row in rows.fetchall():
            yield from self._answered(database, dict(zip(names, row, strict=True)))

    def _answered(self, database: Database, row: Mapping[str, Any]) -> Iterator[tuple[Dataset, str]]:
        item = Dataset()
        originals = json.loads(row["originals"] or "{}")
        asked = [key.keyword for key in self.key.keys] if self.is_whole else self.keywords
        for keyword in asked:
            value = originals.get(keyword, row[snake_case(keyword)])
            if value is not None or not self.is_whole:
                item.add(element_of(Tag(keyword), dictionary_VR(keyword), value or ""))
        for tag, vr in self.empty:
            item.add(DataElement(tag, vr, None))
        inner = tuple(SequenceRequest(key) for key in self.key.sequences) if self.is_whole else self.sequences
        for request in inner:
            found = list(request.answer(database, "parent", row["id"]))
            if found or not self.is_whole:
                item.add(DataElement(Tag(request.key.keyword), "SQ", ItemSequence([each for each, _ in found])))
        yield item, str(row["specific_character_set"])


def parse_sequence(key: SequenceKey, identifier: Dataset, charset: Charset) -> SequenceRequest:
    """Return what the sequence `key` of `identifier`, a data set with that character set, asks.

    Raises
    ------
    InvalidIdentifier
        More than one item (PS3.4 C.2.2.2.6), or a value that its matching type does not allow.
    """
    items = _items_of(identifier, Tag(key.keyword))
    if len(items) > 1:
        raise InvalidIdentifier(f"{key.keyword}: expected one item, got {len(items)}", element=key.keyword)
    if not items or not len(items[0]):
        return SequenceRequest(key)
    item = items[0]
    charset = charset_in(item, charset)
    attributes = {attribute.keyword: attribute for attribute in key.keys}
    inner_keys = {Tag(inner.keyword): inner for inner in key.sequences}
    keywords: list[str] = []
    conditions: list[Condition] = []
    sequences: list[SequenceRequest] = []
    empty: list[tuple[int, str]] = []
    for tag in list(item.keys()):
        inner_element = raw_element(item, tag)
        vr = vr_of(inner_element)
        attribute = next((each for each in attributes.values() if Tag(each.keyword) == tag), None)
        if tag.element == 0 or tag.is_private or tag == Tag("SpecificCharacterSet"):
            continue
        if vr == "SQ" and tag in inner_keys:
            sequences.append(parse_sequence(inner_keys[tag], item, charset))
        elif attribute is None or vr == "SQ":
            empty.append((int(tag), vr))
        else:
            keywords.append(attribute.keyword)
            found = condition(attribute, values_of(inner_element, charset))
            if found is not None:
                conditions.append(found)
    is_whole = not (keywords or sequences or empty)
    return SequenceRequest(key, tuple(keywords), tuple(conditions), tuple(sequences), tuple(empty), is_whole)
