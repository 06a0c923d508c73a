"""Dates and times: single value and range matching, both as one point in time, and time zones (PS3.4 C.2.2.2.5).

A time of lower precision stands for its whole interval in a query (``1015`` is from 10:15:00 to 10:15:59.999999), and
for its beginning where it is stored.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from functools import lru_cache

from index.condition import Condition
from index.errors import InvalidIdentifier
from index.keys import Key

_EARLIEST_TIME = "000000000000"
_LATEST_TIME = "999999999999"  # also above a leap second
_LATEST_DATE = "99999999"
_LARGEST_OFFSET_H = 14
_ZONE_MARGIN = timedelta(days=2)
"""Two zones are at most 28 hours apart."""

_TIME = re.compile(
    r"(?P<hour>[01]\d|2[0-3])(?:(?P<minute>[0-5]\d)(?P<rest>(?:[0-5]\d|60)(?:\.\d{1,6})?)?)?", re.ASCII
)

_LEGACY_TIME = re.compile(r"\d{2}:\d{2}(:\d{2}(\.\d{1,6})?)?", re.ASCII)
"""As ACR-NEMA wrote it."""


@dataclass(frozen=True)
class Columns:
    """Where the catalogue has a date and its time: SQL expressions.

    Attributes
    ----------
    date, time
        The values, in the zone in which they are compared.
    stored_date
        The column itself where `date` is computed from it; empty: they are the same.
    """

    date: str
    time: str
    stored_date: str = ""


def columns_in_zone(date_column: str, time_column: str, zone_column: str, wanted: str) -> Columns:
    """Return the expressions of a date and its time in the time zone `wanted`, ``±HHMM``."""
    arguments = f"({date_column}, {time_column}, {zone_column}, '{wanted}')"
    return Columns(f"date_in_zone{arguments}", f"time_in_zone{arguments}", date_column)


def date(columns: Columns, value: str, key: Key) -> Condition:
    """Single value or range matching of dates (C.2.2.2.5.1)."""
    low, high = _range(value, key)
    low, high = (_date(low, key), _date(high, key))
    if "-" not in value:
        return _guarded(columns, low, low, Condition(f"{columns.date} = ?", (low,)))
    found = Condition(
        f"({columns.date} >= ? AND {columns.date} <= ? AND {columns.date} <> '')", (low, high or _LATEST_DATE)
    )
    return _guarded(columns, low, high, found)


def time(columns: Columns, value: str, key: Key) -> Condition:
    """Single value or range matching of times (C.2.2.2.5.2)."""
    low, high = _range(value, key)
    earliest, latest = _time(low, _EARLIEST_TIME, key), _time(high, _LATEST_TIME, key)
    comparable = _comparable(columns.time)
    return Condition(f"({columns.time} <> '' AND {comparable} >= ? AND {comparable} <= ?)", (earliest, latest))


def date_time(columns: Columns, date_value: str, time_value: str, keys: tuple[Key, Key]) -> Condition | None:
    """Match a date and its time as one point in time, when both are ranges of the same form (C.2.2.2.5.4).

    A date without a time may be any moment of its day.

    Returns
    -------
    Condition or None
        None when the two are not ranges of the same form: each of them matches on its own then.
    """
    dates, times = _range(date_value, keys[0]), _range(time_value, keys[1])
    is_range = "-" in date_value and "-" in time_value
    if not is_range or [bool(each) for each in dates] != [bool(each) for each in times]:
        return None
    low, high = _date(dates[0], keys[0]), _date(dates[1], keys[0])
    earliest, latest = _time(times[0], _EARLIEST_TIME, keys[1]), _time(times[1], _LATEST_TIME, keys[1])
    comparable = _comparable(columns.time)
    begins = f"{columns.date} || CASE {columns.time} WHEN '' THEN '{_EARLIEST_TIME}' ELSE {comparable} END"
    ends = f"{columns.date} || CASE {columns.time} WHEN '' THEN '{_LATEST_TIME}' ELSE {comparable} END"
    return Condition(
        f"({columns.date} >= ? AND {columns.date} <= ? AND {columns.date} <> '' AND {ends} >= ? AND {begins} <= ?)",
        (low, high or _LATEST_DATE, low + earliest, (high or _LATEST_DATE) + latest),
    )


def _comparable(column: str) -> str:
    return f"substr(replace({column}, '.', '') || '{_EARLIEST_TIME}', 1, 12)"


def _guarded(columns: Columns, low: str, high: str, found: Condition) -> Condition:
    """Bound the stored date as well where the condition is on a computed one, so that an index helps."""
    if not columns.stored_date:
        return found
    earliest = _shifted(low, -_ZONE_MARGIN) if low else ""
    latest = _shifted(high, _ZONE_MARGIN) if high else "A"
    return Condition(
        f"({columns.stored_date} >= ? AND {columns.stored_date} <= ? AND {found.sql})",
        (earliest, latest, *found.parameters),
    )


def _shifted(digits: str, by: timedelta) -> str:
    try:
        return (datetime.strptime(digits, "%Y%m%d") + by).strftime("%Y%m%d")
    except (ValueError, OverflowError):  # no day of the calendar: no bound
        return "" if by < timedelta(0) else "A"


def _range(value: str, key: Key) -> tuple[str, str]:
    low, dash, high = value.partition("-")
    if (dash and not low.strip() and not high.strip()) or "-" in high:
        raise InvalidIdentifier(f"{key.keyword}: malformed range {value[:30]!r}", element=key.keyword)
    return (low.strip(), high.strip()) if dash else (value, value)


def _date(value: str, key: Key) -> str:
    digits = value.replace(".", "") if len(value) == 10 else value
    if digits and not re.fullmatch(r"\d{8}", digits, re.ASCII):
        raise InvalidIdentifier(f"{key.keyword}: expected YYYYMMDD, got {value[:20]!r}", element=key.keyword)
    return digits


def _time(value: str, padding: str, key: Key) -> str:
    digits = value.replace(":", "") if _LEGACY_TIME.fullmatch(value) else value
    if digits and not _TIME.fullmatch(digits):
        raise InvalidIdentifier(f"{key.keyword}: expected HHMMSS, got {value[:20]!r}", element=key.keyword)
    digits = digits.replace(".", "")
    return digits + padding[len(digits) :]


def is_offset(text: str) -> bool:
    """Whether `text` is an offset from UTC, ``±HHMM`` (PS3.3 C.12.1.1.8)."""
    return _offset(text) is not None


@lru_cache(maxsize=1024)
def _offset(text: str) -> timezone | None:
    told = re.fullmatch(r"([+-])(\d{2})([0-5]\d)", text, re.ASCII)
    if told is None or int(told[2]) > _LARGEST_OFFSET_H:
        return None
    minutes = 60 * int(told[2]) + int(told[3])
    return timezone(timedelta(minutes=-minutes if told[1] == "-" else minutes))


def date_in_zone(date: str, time: str, stored: str, wanted: str) -> str:
    """SQL function: the date, stored with its time and offset from UTC, in the time zone `wanted`.

    Without an offset the stored values are in the local zone of this node. What is no date with a time stays as it is.
    """
    return _in_zone(date, time, stored, wanted)[0]


def time_in_zone(date: str, time: str, stored: str, wanted: str) -> str:
    """SQL function: the time that belongs to `date_in_zone`, as precise as it is stored."""
    return _in_zone(date, time, stored, wanted)[1]


@lru_cache(maxsize=4096)
def _in_zone(date: str, time: str, stored: str, wanted: str) -> tuple[str, str]:
    zone, told = _offset(wanted), _TIME.fullmatch(time)
    if zone is None or told is None or not re.fullmatch(r"\d{8}", date, re.ASCII):
        return date, time
    minute, rest = told["minute"], told["rest"] or ""
    try:
        moment = datetime(int(date[:4]), int(date[4:6]), int(date[6:]), int(told["hour"]), int(minute or 0),
                          tzinfo=_offset(stored))  # fmt: skip
        moved = moment.astimezone(zone)
    except (ValueError, OverflowError, OSError):  # 24 o'clock, the 31st of February
        return date, time
    shown = f"{moved:%H}" if minute is None and not moved.minute else f"{moved:%H%M}"
    return f"{moved.year:04d}{moved:%m%d}", shown + rest
