"""Dates moved by a constant: all of a patient by the same whole days, so that every interval stays (PS3.15 E.3.6).

Whole days, so that a date alone and a date with its time move alike, in an object and in an answer about it; the time
of day stays. What is no date or time becomes empty.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date, timedelta

_DATE = re.compile(r"(\d{4})\.?(\d{2})\.?(\d{2})", re.ASCII)
_TIME = re.compile(r"([01]\d|2[0-4])(:?[0-5]\d(:?([0-5]\d|60)(\.\d{1,6})?)?)?", re.ASCII)
_DATE_TIME = re.compile(r"(\d{4}(?:\d{2}){0,2})((?<=\d{8})(?:\d{2}){1,3}(?:\.\d{1,6})?)?([+-]\d{4})?", re.ASCII)
_FIRST = "0101"


@dataclass(frozen=True)
class Shift:
    """How many days back the dates of one patient move."""

    days: int

    def date(self, value: str) -> str:
        """Return a date (DA), moved; "" for what is none."""
        told = _DATE.fullmatch(value.strip(" \0"))
        return self._moved("".join(told.groups())) if told else ""

    def time(self, value: str) -> str:
        """Return a time (TM) as it is; "" for what is none."""
        return value if _TIME.fullmatch(value.strip(" \0")) else ""

    def date_time(self, value: str) -> str:
        """Return a date with time (DT), moved; it keeps its precision, its time and its offset from UTC."""
        told = _DATE_TIME.fullmatch(value.strip(" \0"))
        if told is None:
            return ""
        moved = self._moved(told[1] + _FIRST[len(told[1]) - 4 :])
        return moved and moved[: len(told[1])] + (told[2] or "") + (told[3] or "")

    def _moved(self, digits: str) -> str:
        try:
            day = date(int(digits[:4]), int(digits[4:6]), int(digits[6:])) - timedelta(days=self.days)
        except (ValueError, OverflowError):  # no day of the calendar, or before it began
            return ""
        return f"{day.year:04d}{day:%m%d}"
