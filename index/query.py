"""Queries of the Query/Retrieve information models (PS3.4 C.6): Identifier in, Identifiers out.

The one query engine: C-FIND, C-MOVE, C-GET, the similarity query's filters and every later door ask here, so they
cannot disagree about what exists.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from pydicom.datadict import dictionary_has_tag, dictionary_is_retired, dictionary_VR, keyword_for_tag
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag

from index.archive import Archive, StoredInstance
from index.charset import choose_charset
from index.errors import InvalidIdentifier
from index.header import encodings_of, text_of
from index.keys import KEYS, UNIQUE_KEYS, Level
from index.matching import Condition, condition, has_wild_card

_CONTROL = {"QueryRetrieveLevel", "SpecificCharacterSet", "TimezoneOffsetFromUTC"}
_ANSWERED_BY_EDGE = {"RetrieveAETitle", "InstanceAvailability"}
"""Keys that the service answers, since only it knows under which title it was asked."""

_LARGEST_US = 0xFFFF

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
class QueryOptions:
    """What a requestor may use beyond the baseline behaviour (PS3.4 C.5.1.1, C.5.2.1).

    Attributes
    ----------
    relational
        Unique keys of higher levels may be absent (PS3.4 C.4.1.2.2.1).
    combined_date_time
        A date and the time that belongs to it match as one point in time (C.2.2.2.5.3).
    fuzzy
        Fuzzy semantic matching of person names (C.2.2.2.1).
    timezone
        Dates and times of the query are in the time zone that it names (C.4.1.1.3.2).
    lenient
        An AE that the settings mark as lenient: what older peers get wrong is understood, not refused.
    """

    relational: bool = False
    combined_date_time: bool = False
    fuzzy: bool = False
    timezone: bool = False
    lenient: bool = False


BASELINE = QueryOptions()
"""Hierarchical queries of a peer that has negotiated nothing."""


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
    options: QueryOptions = BASELINE,
) -> Query:
    """Check the Identifier of a request against `model` and turn it into a query.

    Parameters
    ----------
    retrieve
        C-MOVE and C-GET: only unique keys select, and the one of the level is required (PS3.4 C.4.2.2.1).
    level
        Instead of the Identifier's own Query/Retrieve Level.
    options
        What was negotiated, and what the settings allow the peer.

    Raises
    ------
    InvalidIdentifier
        What the standard answers with A900.
    """
    level = level or parse_level(identifier, model)
    charset = _charset(identifier)
    encodings = encodings_of("\\".join(charset))
    told: dict[str, list[str]] = {}
    empty = []
    for element in identifier.elements():
        keyword = keyword_for_tag(element.tag)
        if keyword in _CONTROL or keyword in _ANSWERED_BY_EDGE or _is_stripped(element.tag):
            continue
        key = KEYS.get(keyword)
        values = text_of(element, encodings).split("\\") if key is not None else []
        if retrieve and key is not None and keyword in UNIQUE_KEYS.values() and key.level.depth > level.depth:
            _require_empty(keyword, values, level)
        if key is None or key.level.depth > level.depth or element.VR == "SQ":
            empty.append(int(element.tag))
        else:
            told[keyword] = values
    _require_unique_keys(told, model, level, retrieve=retrieve, relational=options.relational)
    unique = [UNIQUE_KEYS[each] for each in model.levels if each.depth <= level.depth]
    selecting = [*UNIQUE_KEYS.values()] if retrieve else list(told)
    found = [condition(KEYS[keyword], values) for keyword, values in told.items() if keyword in selecting]
    return Query(
        level=level,
        conditions=tuple(each for each in found if each is not None),
        keywords=tuple(dict.fromkeys([*told, *unique])),
        empty=tuple(empty),
        all_supported=not empty,
        charset=charset,
    )


def _is_stripped(tag: BaseTag) -> bool:
    """Group lengths, private and retired elements, and those that the dictionary does not know, are not answered."""
    if tag.element == 0 or tag.is_private or not dictionary_has_tag(tag):
        return True
    return dictionary_is_retired(tag) and keyword_for_tag(tag) not in KEYS


def _require_empty(keyword: str, values: list[str], level: Level) -> None:
    if any(value.strip(" \0") for value in values):
        raise InvalidIdentifier(f"{keyword} is below the level {level.value}", element=keyword)


def _require_unique_keys(
    told: dict[str, list[str]], model: Model, level: Level, *, retrieve: bool, relational: bool
) -> None:
    """Require the unique key of each level above (PS3.4 C.4.1.2.1), and to retrieve that of the level (C.4.2.2.1)."""
    above = [each for each in model.levels if each.depth < level.depth]
    required = ([] if relational else above) + ([level] if retrieve else [])
    for each in required:
        keyword = UNIQUE_KEYS[each]
        values = [value for value in told.get(keyword, []) if value.strip(" \0")]
        if not values:
            raise InvalidIdentifier(f"{keyword} is required at this level", element=keyword)
        if each is Level.PATIENT and (len(values) > 1 or has_wild_card(values[0])):
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
    sql = f"SELECT {', '.join([*columns, *charsets])} FROM {_tables(query.level)} WHERE {where}"
    with archive.snapshot() as database:
        for row in database.execute(sql, parameters):
            yield _answer(query, row[: len(columns)], row[len(columns) :])


def _answer(query: Query, values: tuple[Any, ...], charsets: tuple[str, ...]) -> Dataset:
    answer = Dataset()
    for tag in query.empty:
        answer.add_new(tag, dictionary_VR(tag).split(" or ")[0], None)
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
    """The value as it was sent, even where its VR does not allow it; the peer judges that as we did."""
    vr = dictionary_VR(keyword)
    parts = str(value).split("\\") if str(value) else []
    if vr == "US":
        numbers = [int(part) for part in parts if re.fullmatch(r"\d{1,5}", part, re.ASCII) and int(part) <= _LARGEST_US]
        return DataElement(keyword, vr, _single(numbers))
    try:
        return DataElement(keyword, vr, _single(parts))
    except (ValueError, TypeError, OverflowError):  # an IS or DS that is no number
        return DataElement(keyword, vr, _single(parts), already_converted=True)


def _single(values: list[Any]) -> Any:
    return values[0] if len(values) == 1 else values or None


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
