"""When something may happen: windows of the week in local time, as people write them in a settings file.

A window is ``[days] [HH:MM-HH:MM]``, for example ``22:00-06:00``, ``mon-fri 18:00-24:00`` or ``sat,sun``. It belongs to
the day on which it begins, and goes by the wall clock: one over midnight is an hour longer, or shorter, when the clocks
change.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, time, timedelta, tzinfo

_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_MIDNIGHT = 24 * 60
_WINDOW = re.compile(r"(?:(?P<days>[a-z][a-z,\- ]*?)\s*)?(?P<hours>\d{1,2}:\d{2}\s*-\s*\d{1,2}:\d{2})?", re.ASCII)
_LOOK_AHEAD_DAYS = 15
"""In which every window opens: one of a single day may be left out once, when the clocks change."""


@dataclass(frozen=True)
class Window:
    """A part of the week.

    Attributes
    ----------
    days
        On which it begins, 0 for Monday to 6 for Sunday.
    begin, end
        Minutes after midnight; an `end` that is not after `begin` is on the next day.
    """

    days: frozenset[int]
    begin: int
    end: int

    def holds(self, moment: datetime) -> bool:
        """Whether the wall clock time `moment` is in it."""
        minute, day = 60 * moment.hour + moment.minute, moment.weekday()
        if self.begin < self.end:
            return day in self.days and self.begin <= minute < self.end
        yesterday = (day - 1) % 7
        return (day in self.days and minute >= self.begin) or (yesterday in self.days and minute < self.end)


@dataclass(frozen=True)
class Schedule:
    """Windows; without one it is always open.

    Attributes
    ----------
    zone
        Of the wall clock; None: this machine's.
    """

    windows: tuple[Window, ...] = ()
    zone: tzinfo | None = None

    @classmethod
    def read(cls, texts: Sequence[str], zone: tzinfo | None = None) -> Schedule:
        """Read windows; raises `ValueError` with one sentence for what is none."""
        return cls(tuple(_window(text) for text in texts), zone)

    def is_open(self, moment: float) -> bool:
        """Whether it is open at `moment`, seconds since the epoch."""
        wall = datetime.fromtimestamp(moment, self.zone)
        return not self.windows or any(window.holds(wall) for window in self.windows)

    def next_opening(self, moment: float) -> float:
        """Return when it is open next, `moment` itself when it is open then; seconds since the epoch."""
        if self.is_open(moment):
            return moment
        today = datetime.fromtimestamp(moment, self.zone).date()
        begins = sorted(
            datetime.combine(today + timedelta(days=ahead), _clock(window.begin), self.zone).timestamp()
            for ahead in range(_LOOK_AHEAD_DAYS)
            for window in self.windows
        )
        # One that begins in the hour that the clocks leave out opens an hour later, or not on that day.
        return next(begin for begin in begins if begin > moment and self.is_open(begin))


def _clock(minute: int) -> time:
    return time(minute // 60, minute % 60)


def _window(text: str) -> Window:
    told = _WINDOW.fullmatch(text.strip().lower())
    if told is None or not text.strip():
        raise ValueError(f"{text!r} is no window: write [days] [HH:MM-HH:MM], such as 'mon-fri 22:00-6:00' or 'sat'")
    begin, end = (_minute(each, text) for each in (told["hours"] or "00:00-24:00").split("-"))
    if begin in (end, _MIDNIGHT):
        raise ValueError(f"{text!r} is no window: it ends when it begins")
    return Window(_days(told["days"], text), begin, end)


def _minute(clock: str, text: str) -> int:
    hour, minute = map(int, clock.strip().split(":"))
    total = 60 * hour + minute
    if minute > 59 or total > _MIDNIGHT:
        raise ValueError(f"{text!r} is no window: there is no time {clock.strip()}")
    return total


def _days(told: str | None, text: str) -> frozenset[int]:
    if told is None:
        return frozenset(range(7))
    days: set[int] = set()
    for part in told.split(","):
        first, _, last = (each.strip() for each in part.partition("-"))
        if first not in _DAYS or (last or first) not in _DAYS:
            raise ValueError(f"{text!r} is no window: the days are {', '.join(_DAYS)}")
        begin, end = _DAYS.index(first), _DAYS.index(last or first)
        days.update((begin + step) % 7 for step in range((end - begin) % 7 + 1))
    return frozenset(days)
