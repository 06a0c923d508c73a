"""Dates and times moved by a constant: all of a patient by the same, so that every interval stays (PS3.15 E.3.6).

A date moves together with its time, over midnight where it has to. A date that has no time beside it moves by whole
days, and a time without its date stays within its day. What is no date or time becomes empty.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta

_DATE = re.compile(r"(\d{4})\.?(\d{2})\.?(\d{2})", re.ASCII)
_TIME = re.compile(r"(\d{2})(?::?(\d{2})(?::?(\d{2})(\.\d{1,6})?)?)?", re.ASCII)
_DATE_TIME = re.compile(r"(\d{4}(?:\d{2}(?:\d{2}(?:\d{2}(?:\d{2}(?:\d{2})?)?)?)?)?)(\.\d{1,6})?([+-]\d{4})?", re.ASCII)
_EARLIEST = "00010101000000"


@dataclass(frozen=True)
class Shift:
    """How far back the dates of one patient move; an offset from UTC stays what it is."""

    back: timedelta

    def pair(self, date_value: str, time_value: str) -> tuple[str, str]:
        """Return a date (DA) and its time (TM) moved as one; both keep their precision."""
        day, clock = _day(date_value), _clock(time_value)
        if day is None or clock is None:
            return self.date(date_value), self.time(time_value)
        try:
            moved = datetime.combine(day, clock) - self.back
        except OverflowError:
            return "", ""
        return f"{moved.year:04d}{moved:%m%d}", _with_precision(moved, time_value)

    def date(self, value: str) -> str:
        """Return a date (DA) without a time, moved by whole days; "" for what is none."""
        day = _day(value)
        try:
            moved = day - timedelta(days=self.back.days) if day else None
        except OverflowError:
            moved = None
        return f"{moved.year:04d}{moved:%m%d}" if moved else ""

    def time(self, value: str) -> str:
        """Return a time (TM) without a date, moved within its day; "" for what is none."""
        clock = _clock(value)
        if clock is None:
            return ""
        return _with_precision(datetime.combine(date(2001, 1, 2), clock) - self.back % timedelta(days=1), value)

    def date_time(self, value: str) -> str:
        """Return a date with time (DT), moved; it keeps its precision, its fraction and its offset from UTC."""
        told = _DATE_TIME.fullmatch(value.strip(" \0"))
        if told is None:
            return ""
        digits, fraction, zone = told[1], told[2] or "", told[3] or ""
        whole = digits + _EARLIEST[len(digits) :]
        if len(digits) == 14 and digits.endswith("60"):
            whole = digits[:12] + "59"
        try:
            moved = datetime.strptime(whole, "%Y%m%d%H%M%S") - self.back
        except (ValueError, OverflowError):
            return ""
        return f"{moved.year:04d}{moved:%m%d%H%M%S}"[: len(digits)] + fraction + zone


def _day(value: str) -> date | None:
    told = _DATE.fullmatch(value.strip(" \0"))
    try:
        return date(int(told[1]), int(told[2]), int(told[3])) if told else None
    except ValueError:
        return None


def _clock(value: str) -> time | None:
    told = _TIME.fullmatch(value.strip(" \0"))
    try:
        return time(int(told[1]), int(told[2] or 0), min(int(told[3] or 0), 59)) if told else None
    except ValueError:
        return None


def _with_precision(moved: datetime, like: str) -> str:
    told = _TIME.fullmatch(like.strip(" \0"))
    parts = sum(1 for part in told.groups()[:3] if part) if told else 3
    return f"{moved:%H%M%S}"[: 2 * parts] + ((told[4] or "") if told else "")
