"""Windows of the week: what they mean by the wall clock, over midnight, and when the clocks change."""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

import pytest

from config.schedule import Schedule

ZURICH = ZoneInfo("Europe/Zurich")


def at(text, fold=0):
    """Seconds since the epoch of a wall clock time in Zurich. 2026-11-23 is a Monday."""
    return datetime.fromisoformat(text).replace(tzinfo=ZURICH, fold=fold).timestamp()


@pytest.mark.parametrize(
    ("windows", "moment", "is_open"),
    [
        ([], "2026-11-23 12:00", True),
        (["22:00-06:00"], "2026-11-23 22:00", True),
        (["22:00-06:00"], "2026-11-23 05:59", True),
        (["22:00-06:00"], "2026-11-23 06:00", False),
        (["22:00-06:00"], "2026-11-23 21:59", False),
        (["mon 22:00-06:00"], "2026-11-24 05:00", True),  # begins on Monday, ends on Tuesday
        (["mon 22:00-06:00"], "2026-11-23 05:00", False),
        (["sun 22:00-06:00"], "2026-11-23 05:00", True),
        (["mon-fri 18:00-24:00"], "2026-11-27 23:59", True),
        (["mon-fri 18:00-24:00"], "2026-11-28 00:00", False),
        (["sat,sun"], "2026-11-28 00:00", True),
        (["sat, sun"], "2026-11-27 23:59", False),
        (["fri-mon"], "2026-11-29 12:00", True),
        (["fri-mon"], "2026-11-24 00:00", False),
        (["12:00-13:00", "Sat"], "2026-11-28 09:00", True),
    ],
)
def test_a_window_is_open(windows, moment, is_open):
    assert Schedule.read(windows, ZURICH).is_open(at(moment)) is is_open


@pytest.mark.parametrize(
    ("windows", "moment", "opens"),
    [
        (["22:00-06:00"], "2026-11-23 12:00", "2026-11-23 22:00"),
        (["22:00-06:00"], "2026-11-23 23:00", "2026-11-23 23:00"),
        (["sat,sun"], "2026-11-23 12:00", "2026-11-28 00:00"),
        (["mon 08:00-09:00"], "2026-11-23 09:00", "2026-11-30 08:00"),
        (["20:00-21:00", "12:30-13:00"], "2026-11-23 12:00", "2026-11-23 12:30"),
        (["02:30-02:45"], "2026-03-29 00:00", "2026-03-30 02:30"),  # that night has no such time
        (["02:30-06:00"], "2026-03-29 00:00", "2026-03-29 03:30"),
        (["sun 02:00-03:00"], "2026-03-22 03:00", "2026-04-05 02:00"),  # not in the week of that night
        (["sun 02:00-03:00"], "2026-03-28 12:00", "2026-04-05 02:00"),
        (["sun 02:00-03:00"], "2026-10-24 12:00", "2026-10-25 02:00"),
    ],
)
def test_when_it_opens_next(windows, moment, opens):
    assert Schedule.read(windows, ZURICH).next_opening(at(moment)) == at(opens)


def test_a_night_is_as_long_as_the_wall_clock_says():
    night = Schedule.read(["22:00-06:00"], ZURICH)

    def hours(begin):
        minutes = range(int(at(f"{begin} 20:00")), int(at(f"{begin} 20:00")) + 12 * 3600, 60)
        return sum(night.is_open(moment) for moment in minutes) / 60

    assert (hours("2026-11-23"), hours("2026-03-28"), hours("2026-10-24")) == (8, 7, 9)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is no window"),
        ("22-6", "write [days] [HH:MM-HH:MM]"),
        ("25:00-26:00", "there is no time 25:00"),
        ("10:60-11:00", "there is no time 10:60"),
        ("10:00-10:00", "it ends when it begins"),
        ("monday 10:00-11:00", "the days are mon, tue"),
    ],
)
def test_what_is_no_window_is_said_in_one_sentence(text, words):
    with pytest.raises(ValueError, match="is no window") as caught:
        Schedule.read([text])
    assert words in str(caught.value)
