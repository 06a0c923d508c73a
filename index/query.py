"""Queries of the Query/Retrieve information models (PS3.4 C.6): Identifier in, Identifiers out.

The one query engine: C-FIND, C-MOVE, C-GET, the similarity query's filters and every later door ask here, so they
cannot disagree about what exists.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from pydicom.datadict import dictionary_has_tag, dictionary_VR, keyword_for_tag
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

from index.archive import Archive, StoredInstance
from index.charset import choose_charset
from index.errors import InvalidIdentifier
from index.keys import KEYS, UNIQUE_KEYS, Level, Matching
from index.matching import Condition, condition, has_wild_card

_CONTROL = {"QueryRetrieveLevel", "SpecificCharacterSet", "TimezoneOffsetFromUTC"}
_ANSWERED_BY_EDGE = {"RetrieveAETitle", "InstanceAvailability"}
"""Keys that the service answers, since only it knows under which title it was asked."""

_JOINS = (
    "{top} JOIN study ON study.patient = patient.id",
    "{top} JOIN series ON series.study = study.id",
    "{top} JOIN instance ON instance.series = series.id",
)


class Model(StrEnum):
    """Information model (PS3.4 C.6.1, C.6.2)."""

    PATIENT_ROOT = "PATIENT"
    STUDY_ROOT = "STUDY"

    @property
    def levels(self) -> list[Level]:
        """The levels that this model has."""
        return [level for level in Level if self is Model.PATIENT_ROOT or level is not Level.PATIENT]


@dataclass(frozen=True)
class Query:
    """A query that has been checked against its information model.

    Attributes
    ----------
    conditions
        All of them have to hold.
    keywords
        Keys to return, in the order of the request.
    empty
        Requested elements that are returned without a value, because they are not supported.
    all_supported
        False when a requested key cannot be matched or returned (the answers are then FF01).
    charset
        Specific Character Set of the request.
    """

    level: Level
    conditions: tuple[Condition, ...]
    keywords: tuple[str, ...]
    empty: tuple[int, ...]
    all_supported: bool
    charset: tuple[str, ...]

    def where(self) -> tuple[str, list[str | int | float]]:
        """SQL of all conditions over tables ``patient``, ``study``, ``series``, ``instance``, and its parameters."""
        sql = " AND ".join(condition.sql for condition in self.conditions) or "1"
        return sql, [value for condition in self.conditions for value in condition.parameters]


def parse_level(identifier: Dataset, model: Model) -> Level:
    """Return the Query/Retrieve Level of `identifier`; raises `InvalidIdentifier` when the model has none such."""
    value = str(identifier.get("QueryRetrieveLevel", "") or "").strip()
    if not value:
        raise InvalidIdentifier("Query/Retrieve Level is missing", element="QueryRetrieveLevel")
    if value not in [level.value for level in model.levels]:
        raise InvalidIdentifier(
            f"level {value[:16]!r}: this model has {', '.join(model.levels)}", element="QueryRetrieveLevel"
        )
    return Level(value)


def parse_identifier(
    identifier: Dataset,
    model: Model,
    *,
    retrieve: bool = False,
    level: Level | None = None,
    relational: bool = False,
) -> Query:
    """Check the Identifier of a request against `model` and turn it into a query.

    Parameters
    ----------
    retrieve
        C-MOVE and C-GET: only unique keys select, and the one of the level is required (PS3.4 C.4.2.2.1).
    level
        Instead of the Identifier's own Query/Retrieve Level.
    relational
        Unique keys of higher levels may be absent (PS3.4 C.4.1.2.2.1).

    Raises
    ------
    InvalidIdentifier
        What the standard answers with A900.
    """
    level = level or parse_level(identifier, model)
    required = [lvl for lvl in model.levels if lvl.depth < level.depth or (retrieve and lvl is level)]
    conditions, keywords, empty = [], [], []
    all_supported = True
    for element in identifier:
        keyword = keyword_for_tag(element.tag)
        if keyword in _CONTROL or keyword in _ANSWERED_BY_EDGE or _is_stripped(element):
            continue
        key = KEYS.get(keyword)
        if key is None or key.level.depth > level.depth or isinstance(element.value, Dataset):
            all_supported = False
            empty.append(int(element.tag))
            continue
        keywords.append(keyword)
        is_unique = keyword == UNIQUE_KEYS[key.level]
        found = condition(key, _values(element)) if is_unique or not retrieve else None
        if found is not None:
            conditions.append(found)
    if not relational or retrieve:
        _require_unique_keys(identifier, required, relational=relational)
    return Query(
        level=level,
        conditions=tuple(conditions),
        keywords=tuple(keywords),
        empty=tuple(empty),
        all_supported=all_supported,
        charset=_charset(identifier),
    )


def _is_stripped(element: DataElement) -> bool:
    """Group lengths, private elements and those that are no longer in the dictionary are not answered."""
    return element.tag.element == 0 or element.tag.is_private or not dictionary_has_tag(element.tag)


def _values(element: DataElement) -> list[str]:
    value = element.value
    if value is None:
        return []
    if isinstance(value, bytes):
        value = value.decode("ascii", errors="replace")
    if isinstance(value, str):
        return value.split("\\")
    return [str(part) for part in value] if isinstance(value, (list, tuple, MultiValue)) else [str(value)]


def _require_unique_keys(identifier: Dataset, levels: list[Level], *, relational: bool) -> None:
    for level in levels[-1:] if relational else levels:
        keyword = UNIQUE_KEYS[level]
        values = _values(identifier[keyword]) if keyword in identifier else []
        if not any(value.strip() for value in values):
            raise InvalidIdentifier(f"{keyword} is required at this level", element=keyword)
        if level is Level.PATIENT and any(has_wild_card(value) for value in values):
            raise InvalidIdentifier(f"{keyword}: a single value is required here", element=keyword)


def _charset(identifier: Dataset) -> tuple[str, ...]:
    value = identifier.get("SpecificCharacterSet", None)
    if not value:
        return ()
    return (value,) if isinstance(value, str) else tuple(value)


def _tables(level: Level) -> str:
    tables = "patient"
    for join in _JOINS[: level.depth]:
        tables = join.format(top=tables)
    return tables


def find(archive: Archive, query: Query) -> Iterator[Dataset]:
    """Yield one response Identifier for each entity that matches, straight from the cursor.

    Keys that only the network edge can answer (Retrieve AE Title, Instance Availability) are left to it.
    """
    columns = [KEYS[keyword].column for keyword in query.keywords]
    levels = [level for level in Level if level.depth <= query.level.depth]
    charsets = [f"{level.table}.specific_character_set" for level in levels]
    where, parameters = query.where()
    cursor = archive.database.execute(
        f"SELECT {', '.join([*columns, *charsets])} FROM {_tables(query.level)} WHERE {where}", parameters
    )
    for row in cursor:
        yield _answer(query, row[: len(columns)], row[len(columns) :])


def _answer(query: Query, values: tuple[Any, ...], charsets: tuple[str, ...]) -> Dataset:
    answer = Dataset()
    for tag in query.empty:
        answer.add_new(tag, dictionary_VR(tag), None)
    for keyword, value in zip(query.keywords, values, strict=True):
        answer.add(_element(keyword, value))
    answer.QueryRetrieveLevel = query.level.value
    texts = [str(value) for value in values]
    stored = [tuple(charset.split("\\")) for charset in charsets if charset]
    charset = choose_charset(texts, [query.charset, *stored])
    if charset:
        answer.SpecificCharacterSet = list(charset) if len(charset) > 1 else charset[0]
    return answer


def _element(keyword: str, value: Any) -> DataElement:
    tag_vr = dictionary_VR(keyword)
    text = str(value)
    parts: list[Any] = text.split("\\") if text else []
    if tag_vr in ("US", "UL", "SS", "SL"):
        parts = [int(part) for part in parts]
    multi = KEYS[keyword].matching is Matching.MODALITIES
    content = parts if multi else (parts[0] if len(parts) == 1 else text if parts else None)
    return DataElement(keyword, tag_vr, content)


def instances(archive: Archive, query: Query) -> list[StoredInstance]:
    """Return every instance below what matches, series by series, in the order of their numbers."""
    where, parameters = query.where()
    cursor = archive.database.execute(
        "SELECT instance.*, series.series_instance_uid, study.study_instance_uid "
        f"FROM {_tables(Level.IMAGE)} WHERE {where} "
        "ORDER BY study.id, CAST(series.series_number AS INTEGER), series.id, "
        "CAST(instance.instance_number AS INTEGER), instance.id",
        parameters,
    )
    names = [column[0] for column in cursor.description]
    return [archive.stored(dict(zip(names, row, strict=True))) for row in cursor]


def count(archive: Archive, query: Query) -> int:
    """Return how many entities match."""
    where, parameters = query.where()
    row = archive.database.execute(
        f"SELECT count(*) FROM {_tables(query.level)} WHERE {where}", parameters
    ).fetchone()
    return int(row[0])


__all__ = ["Model", "Query", "count", "find", "instances", "parse_identifier", "parse_level"]
