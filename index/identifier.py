"""The Identifier of a request, checked against its information model and turned into a query (PS3.4 C.4, C.6)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

from pydicom.datadict import dictionary_has_tag, dictionary_is_retired, dictionary_VR, keyword_for_tag
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag

from index import date_times
from index.charset import Charset, charset_in, vr_of
from index.condition import Condition
from index.date_times import Columns
from index.errors import InvalidIdentifier
from index.items import SequenceRequest, parse_sequence
from index.keys import DATE_TIME_PAIRS, KEYS, SEQUENCES, UNIQUE_KEYS, Key, Level, Matching
from index.matching import condition, has_wild_card, wanted_values
from index.values import values_of

_CONTROL = {"QueryRetrieveLevel", "SpecificCharacterSet"}
_OFFSET = "TimezoneOffsetFromUTC"
ANSWERED_BY_EDGE = frozenset({"RetrieveAETitle", "InstanceAvailability"})
"""Keys that the service answers, since only it knows under which title it was asked."""

_PAIR_OF = {each: pair for pair in DATE_TIME_PAIRS.items() for each in pair}
_NOTHING: Mapping[str, Condition] = {}
_SELECTING_IF_LENIENT = ("PatientID", "AccessionNumber")
"""Keys that may select alone what a lenient AE retrieves."""


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
        A date and the time that belongs to it match as one point in time (C.2.2.2.5.4).
    fuzzy
        Fuzzy semantic matching of person names (C.2.2.2.1.1).
    timezone
        Dates and times of the query are in the time zone that it names, and so are those of the answers (C.2.2.2.5).
    lenient
        An AE that the settings mark as lenient: what older peers get wrong is understood, not refused. The level may be
        in lower case or absent (the lowest unique key tells it), Study Root has the level PATIENT, unique keys of
        higher levels may be absent, and a Patient ID or an Accession Number alone selects what is retrieved.
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
        Tag and VR of requested elements that are returned without a value, because they are not supported.
    all_supported
        False when a requested key cannot be matched or returned (the answers are then FF01).
    charset
        Specific Character Set of the request.
    sequences
        Sequences to return.
    zone
        Offset from UTC, ``±HHMM``, of the zone that dates and times are answered in; empty: as they are stored.
    returns_offset
        Whether the answers tell the Timezone Offset From UTC.
    """

    level: Level
    conditions: tuple[Condition, ...]
    keywords: tuple[str, ...]
    empty: tuple[tuple[int, str], ...]
    all_supported: bool
    charset: Charset
    sequences: tuple[SequenceRequest, ...] = ()
    zone: str = ""
    returns_offset: bool = False

    def where(self) -> tuple[str, list[str | int | float]]:
        """SQL of all conditions over tables ``patient``, ``study``, ``series``, ``instance``, and its parameters."""
        sql = " AND ".join(condition.sql for condition in self.conditions) or "1"
        return sql, [value for condition in self.conditions for value in condition.parameters]


def parse_level(
    identifier: Dataset, model: Model, *, retrieve: bool = False, options: QueryOptions = BASELINE
) -> Level:
    """Return the Query/Retrieve Level of `identifier`; raises `InvalidIdentifier` when the model has none such."""
    value = str(identifier.get("QueryRetrieveLevel", "") or "").strip(" \0")
    levels = model.levels
    if options.lenient:
        if not value:
            return _lowest_level(identifier, model, retrieve=retrieve)
        value, levels = value.upper(), list(Level)
    if not value:
        raise InvalidIdentifier("Query/Retrieve Level is missing", element="QueryRetrieveLevel")
    if value not in [level.value for level in levels]:
        raise InvalidIdentifier(
            f"level {value[:16]!r}: this model has {', '.join(model.levels)}", element="QueryRetrieveLevel"
        )
    return Level(value)


def _lowest_level(identifier: Dataset, model: Model, *, retrieve: bool) -> Level:
    """Return the level of the lowest unique key that is there, to retrieve: with a value; else the model's first."""
    for level in reversed(model.levels):
        keyword = UNIQUE_KEYS[level]
        if keyword in identifier and (not retrieve or str(identifier[keyword].value or "").strip(" \0")):
            return level
    return model.levels[0]


def parse_identifier(
    identifier: Dataset,
    model: Model,
    *,
    retrieve: bool = False,
    level: Level | None = None,
    options: QueryOptions = BASELINE,
    instead: Mapping[str, Condition] = _NOTHING,
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
    instead
        Keyword → the condition that the values of that key, or sequence, stand for, where they do not speak for
        themselves.

    Raises
    ------
    InvalidIdentifier
        What the standard answers with A900.
    """
    level = level or parse_level(identifier, model, retrieve=retrieve, options=options)
    charset = charset_in(identifier)
    told: dict[str, list[str]] = {}
    sequences: list[SequenceRequest] = []
    empty: list[tuple[int, str]] = []
    unmatched = False
    for element in list(identifier.elements()):
        keyword, is_stripped = _known(element.tag)
        if keyword in _CONTROL:
            continue
        if is_stripped:  # a retired key is not answered, and one with a value has not been matched
            unmatched |= not element.tag.is_private and bool(element.tag.element) and not _is_empty(element, charset)
            continue
        vr, key = vr_of(element), KEYS.get(keyword)
        if keyword in ANSWERED_BY_EDGE:
            unmatched |= not _is_empty(element, charset)
        elif keyword == _OFFSET:
            told[keyword] = values_of(element, charset)
        elif keyword in SEQUENCES and vr == "SQ" and SEQUENCES[keyword].level.depth <= level.depth:
            sequences.append(parse_sequence(SEQUENCES[keyword], identifier, charset))
        elif key is not None and vr != "SQ":
            values = values_of(element, charset)
            if retrieve and keyword in UNIQUE_KEYS.values() and key.level.depth > level.depth:
                _require_empty(keyword, values, level)
            if key.level.depth <= level.depth:
                told[keyword] = values
            else:
                empty.append((int(element.tag), _answer_vr(element)))
        else:
            empty.append((int(element.tag), _answer_vr(element)))
    offset = told.pop(_OFFSET, None)
    zone = _zone(offset) if options.timezone else ""
    _require_unique_keys(told, model, level, retrieve=retrieve, options=options)
    selecting = set(told)
    if retrieve:
        selecting &= {*UNIQUE_KEYS.values(), *(_SELECTING_IF_LENIENT if options.lenient else ())}
    found: list[Condition | None] = [instead[keyword] for keyword in told if keyword in selecting & instead.keys()]
    selecting -= instead.keys()
    found += _conditions({keyword: told[keyword] for keyword in told if keyword in selecting}, options, zone)
    if not retrieve:
        found += [instead.get(each.key.keyword, each.condition(each.key.level.table)) for each in sequences]
    unique = [UNIQUE_KEYS[each] for each in model.levels if each.depth <= level.depth]
    return Query(
        level=level,
        conditions=tuple(each for each in found if each is not None),
        keywords=tuple(dict.fromkeys([*told, *(unique or [UNIQUE_KEYS[level]])])),
        empty=tuple(empty),
        all_supported=not empty
        and not unmatched
        and all(each.all_supported for each in sequences)
        and (bool(zone) or not any(offset or [])),
        charset=charset,
        sequences=tuple(sequences),
        zone=zone,
        returns_offset=offset is not None,
    )


def columns_of(key: Key, zone: str) -> Columns:
    """Return where the date or time `key`, and what belongs to it, is compared in the time zone `zone`."""
    if key.keyword not in _PAIR_OF:
        return Columns(key.column, key.column)
    date, time = (KEYS[keyword].column for keyword in _PAIR_OF[key.keyword])
    if not zone:
        return Columns(date, time)
    return date_times.columns_in_zone(date, time, f"{key.level.table}.timezone_offset_from_utc", zone)


def _conditions(told: dict[str, list[str]], options: QueryOptions, zone: str) -> Iterator[Condition | None]:
    combined: set[str] = set()
    if options.combined_date_time:
        for pair in DATE_TIME_PAIRS.items():
            if (found := _combined(pair, told, zone)) is not None:
                combined.update(pair)
                yield found
    for keyword, values in told.items():
        key = KEYS[keyword]
        if keyword not in combined:
            is_moment = key.matching in (Matching.DATE, Matching.TIME)
            yield condition(key, values, fuzzy=options.fuzzy, columns=columns_of(key, zone) if is_moment else None)


def _combined(pair: tuple[str, str], told: dict[str, list[str]], zone: str) -> Condition | None:
    date, time = (KEYS[keyword] for keyword in pair)
    dates, times = (wanted_values(key, told.get(key.keyword, [])) for key in (date, time))
    if len(dates) != 1 or len(times) != 1:
        return None
    return date_times.date_time(columns_of(date, zone), dates[0], times[0], (date, time))


def _zone(offset: list[str] | None) -> str:
    """Return the time zone that the Identifier names; empty when it names none."""
    values = [value.strip() for value in offset or [] if value.strip()]
    if not values:
        return ""
    if len(values) > 1 or not date_times.is_offset(values[0]):
        raise InvalidIdentifier(f"{_OFFSET}: expected one ±HHMM, got {values[0][:20]!r}", element=_OFFSET)
    return values[0]


def _is_empty(element: DataElement | RawDataElement, charset: Charset) -> bool:
    """Whether the key asks for any value: it has none, or a universal one."""
    return vr_of(element) == "SQ" or not any(value.strip(" \0*") for value in values_of(element, charset))


@lru_cache(maxsize=4096)
def _known(tag: BaseTag) -> tuple[str, bool]:
    """Return the keyword of an element, and whether it is neither matched nor answered.

    That is so of group lengths, private and retired elements.
    """
    keyword = keyword_for_tag(tag)
    if tag.element == 0 or tag.is_private:
        return keyword, True
    return keyword, dictionary_has_tag(tag) and dictionary_is_retired(tag) and keyword not in KEYS


def _answer_vr(element: DataElement | RawDataElement) -> str:
    """Return the VR of an empty element of the answer: the dictionary's, or that of the request."""
    try:
        return dictionary_VR(element.tag).split(" or ")[0]
    except KeyError:
        return str(element.VR or "UN")


def _require_empty(keyword: str, values: list[str], level: Level) -> None:
    if any(value.strip(" \0") for value in values):
        raise InvalidIdentifier(f"{keyword} is below the level {level.value}", element=keyword)


def _require_unique_keys(
    told: dict[str, list[str]], model: Model, level: Level, *, retrieve: bool, options: QueryOptions
) -> None:
    """Require the unique key of each level above (PS3.4 C.4.1.2.1), and to retrieve that of the level (C.4.2.2.1)."""
    if retrieve and options.lenient and _selects_alone(told):
        return
    above = [each for each in model.levels if each.depth < level.depth]
    required = ([] if options.relational or options.lenient else above) + ([level] if retrieve else [])
    for each in required:
        keyword = UNIQUE_KEYS[each]
        values = [value for value in told.get(keyword, []) if value.strip(" \0")]
        if not values:
            raise InvalidIdentifier(f"{keyword} is required at this level", element=keyword)
        if each is Level.PATIENT:
            _require_single(keyword, values)


def _selects_alone(told: dict[str, list[str]]) -> bool:
    selecting = False
    for keyword in _SELECTING_IF_LENIENT:
        if values := [value for value in told.get(keyword, []) if value.strip(" \0")]:
            _require_single(keyword, values)
            selecting = True
    return selecting


def _require_single(keyword: str, values: list[str]) -> None:
    if len(values) > 1 or has_wild_card(values[0]):
        raise InvalidIdentifier(f"{keyword}: a single value is required here", element=keyword)
