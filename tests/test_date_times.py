"""Dates and times as one point in time (PS3.4 C.2.2.2.5.4), and in the time zone of the query (C.2.2.2.5)."""

from __future__ import annotations

import os
import time

import pytest
from pydicom.dataset import Dataset

from index.date_times import _in_zone, date_in_zone, is_offset, time_in_zone
from index.errors import InvalidIdentifier
from index.keys import DATE_TIME_PAIRS, KEYS, Matching
from index.query import BASELINE, Model, QueryOptions, parse_identifier

COMBINED = QueryOptions(combined_date_time=True)
ZONED = QueryOptions(timezone=True)
BOTH = QueryOptions(combined_date_time=True, timezone=True)


@pytest.fixture
def studies(archive, make_instance):
    """Studies by their date and time: noon of 1 to 4 July, 5 o'clock of the 3rd, the 2nd without a time, no date."""
    moments = {"1": ("20240701", "120000"), "2": ("20240702", "12"), "3": ("20240703", "1200"),
               "4": ("20240704", "120000.5"), "5": ("20240703", "050000"), "6": ("20240702", ""), "7": ("", "120000")}
    for number, (date, clock) in moments.items():
        archive.ingest(make_instance(int(number), StudyInstanceUID=f"1.{number}", SeriesInstanceUID=f"2.{number}",
                                     StudyDate=date, StudyTime=clock))  # fmt: skip
    return archive


def found(answers):
    return "".join(sorted(answer.StudyInstanceUID[2:] for answer in answers))


@pytest.mark.parametrize(
    ("date", "clock", "combined", "independent"),
    [
        # The note of C.2.2.2.5.4: from 10 o'clock of the first day to 18 o'clock of the last
        ("20240701-20240703", "1000-1800", "12356", "123"),
        ("20240701-20240703", "1300-0500", "256", ""),
        ("20240702-20240703", "12-12", "2356", "23"),
        ("20240702-20240703", "120000.000001-1159", "56", ""),
        ("20240703-20240704", "06-120000.4", "3", "3"),
        ("20240703-20240704", "06-120000.5", "34", "34"),
        ("20240703-", "0600-", "34", "34"),
        ("20240702-", "1300-", "3456", ""),
        ("-20240703", "-0500", "1256", "5"),
        ("-20240702", "-1159", "16", ""),
        # ranges of other forms, and single values, match each on its own
        ("20240701-20240703", "1000-", "123", "123"),
        ("20240702-", "-1200", "2345", "2345"),
        ("20240702", "1000-1800", "2", "2"),
        ("20240701-20240703", "12", "123", "123"),
        ("20240702", "", "26", "26"),
        ("", "1000-1800", "12347", "12347"),
        ("*", "0500-0600", "5", "5"),
        ("20240704-20240701", "1000-1800", "", ""),
    ],
)
def test_a_date_and_its_time_are_one_point_in_time_when_negotiated(date, clock, combined, independent, studies, ask):
    assert found(ask(studies, StudyDate=date, StudyTime=clock, options=COMBINED)) == combined
    assert found(ask(studies, StudyDate=date, StudyTime=clock, options=BASELINE)) == independent


def test_several_values_of_one_of_them_match_each_on_its_own(studies, ask):
    answers = ask(studies, StudyDate=["20240701-20240702", "20240704"], StudyTime="10-13", options=COMBINED)
    assert found(answers) == "124"


@pytest.mark.parametrize(
    ("keywords", "level"),
    [(("SeriesDate", "SeriesTime"), "SERIES"), (("AcquisitionDate", "AcquisitionTime"), "IMAGE"),
     (("ContentDate", "ContentTime"), "IMAGE"), (("PatientBirthDate", "PatientBirthTime"), "STUDY"),
     (("PerformedProcedureStepStartDate", "PerformedProcedureStepStartTime"), "SERIES")],
)  # fmt: skip
def test_every_pair_of_the_table_is_combined(keywords, level, archive, make_instance, ask):
    archive.ingest(make_instance(1, **dict(zip(keywords, ("20240702", "0500"), strict=True))))
    options = QueryOptions(combined_date_time=True, relational=True)
    ranges = dict(zip(keywords, ("20240701-20240703", "1000-1800"), strict=True))
    assert len(ask(archive, level, options=options, **ranges)) == 1
    assert ask(archive, level, options=QueryOptions(relational=True), **ranges) == []


def test_every_pair_is_a_date_and_a_time_of_one_level():
    for date, clock in DATE_TIME_PAIRS.items():
        assert (KEYS[date].matching, KEYS[clock].matching) == (Matching.DATE, Matching.TIME)
        assert KEYS[date].level is KEYS[clock].level


# Time zones


@pytest.fixture
def local_zone():
    """The node stands in Tokyo, which has no daylight saving time."""
    before = os.environ.get("TZ")
    os.environ["TZ"] = "Asia/Tokyo"
    _in_zone.cache_clear()
    time.tzset()
    yield
    os.environ.pop("TZ") if before is None else os.environ.update(TZ=before)
    time.tzset()
    _in_zone.cache_clear()


@pytest.mark.parametrize(
    ("stored", "zone", "wanted", "expected"),
    [
        (("20240701", "120000"), "+0000", "+0000", ("20240701", "120000")),
        (("20240701", "120000"), "+0200", "+0000", ("20240701", "100000")),
        (("20240701", "010000.123456"), "+0200", "+0000", ("20240630", "230000.123456")),
        (("20241231", "2330"), "-0500", "+0545", ("20250101", "1015")),
        (("20240701", "12"), "+0000", "+0200", ("20240701", "14")),
        (("20240701", "12"), "+0000", "+0530", ("20240701", "1730")),
        (("20240228", "235960"), "-0100", "+0000", ("20240229", "005960")),
        (("20240701", "120000"), "", "+0000", ("20240701", "030000")),
        (("20240701", "120000"), "nonsense", "+0000", ("20240701", "030000")),
        (("20240701", ""), "+0200", "+0000", ("20240701", "")),
        (("", "120000"), "+0200", "+0000", ("", "120000")),
        (("yesterday", "noon"), "+0200", "+0000", ("yesterday", "noon")),
        (("20240231", "120000"), "+0200", "+0000", ("20240231", "120000")),
        (("00010101", "000000"), "+0200", "-1200", ("00010101", "000000")),
        (("20240701", "240000"), "+0200", "+0000", ("20240701", "240000")),
    ],
)
def test_a_stored_date_and_time_in_another_zone(stored, zone, wanted, expected, local_zone):
    assert (date_in_zone(*stored, zone, wanted), time_in_zone(*stored, zone, wanted)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("+0000", True), ("-0330", True), ("+1400", True), ("+1500", False), ("0100", False), ("+100", False),
     ("+0160", False), ("UTC", False), ("", False), ("+0100'); DROP TABLE study; --", False)],
)  # fmt: skip
def test_offsets_of_c_12_1_1_8(text, expected):
    assert is_offset(text) is expected


@pytest.fixture
def zones(archive, make_instance, local_zone):
    """The same moment, 2 July 2024 23:30 UTC, stored in three zones; the last one names none."""
    for number, (zone, date, clock) in enumerate(
        [("+0000", "20240702", "233000"), ("-0500", "20240702", "183000"), (None, "20240703", "083000")], 1
    ):
        more = {"TimezoneOffsetFromUTC": zone} if zone else {}
        archive.ingest(make_instance(number, StudyInstanceUID=f"1.{number}", SeriesInstanceUID=f"2.{number}",
                                     StudyDate=date, StudyTime=clock, **more))  # fmt: skip
    return archive


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"StudyDate": "20240702", "TimezoneOffsetFromUTC": "+0000"}, "123"),
        ({"StudyDate": "20240703", "TimezoneOffsetFromUTC": "+0200"}, "123"),
        ({"StudyDate": "20240702", "TimezoneOffsetFromUTC": "+0200"}, ""),
        ({"StudyDate": "20240703", "StudyTime": "0130", "TimezoneOffsetFromUTC": "+0200"}, "123"),
        ({"StudyTime": "18-19", "TimezoneOffsetFromUTC": "-0500"}, "123"),
        ({"StudyTime": "23", "TimezoneOffsetFromUTC": "-0500"}, ""),
        ({"StudyDate": "20240702-", "TimezoneOffsetFromUTC": "-0500"}, "123"),
        ({"StudyDate": "-20240702", "TimezoneOffsetFromUTC": "+0200"}, ""),
        ({"StudyDate": "20240702"}, "12"),  # without a zone: as they are stored
        ({"StudyDate": "20240702", "TimezoneOffsetFromUTC": ""}, "12"),
    ],
)
def test_a_query_in_a_zone_of_its_own(asked, expected, zones, ask):
    assert found(ask(zones, options=ZONED, supported=True, **asked)) == expected


def test_both_at_once(zones, ask):
    asked = {"StudyDate": "20240702-20240703", "StudyTime": "2300-0000", "TimezoneOffsetFromUTC": "+0000"}
    assert found(ask(zones, options=BOTH, **asked)) == "123"
    asked["StudyTime"] = "2331-0000"
    assert found(ask(zones, options=BOTH, **asked)) == ""


def test_answers_are_in_the_zone_of_the_query(zones, ask):
    answers = ask(zones, StudyDate="", StudyTime="", TimezoneOffsetFromUTC="+0530", options=ZONED)
    assert {(each.StudyDate, each.StudyTime, each.TimezoneOffsetFromUTC) for each in answers} == {
        ("20240703", "050000", "+0530")
    }


def test_an_empty_offset_asks_for_the_stored_one(zones, ask):
    answers = ask(zones, StudyTime="", TimezoneOffsetFromUTC="", supported=True)
    told = {each.StudyInstanceUID: (each.StudyTime, each.TimezoneOffsetFromUTC) for each in answers}
    assert told == {"1.1": ("233000", "+0000"), "1.2": ("183000", "-0500"), "1.3": ("083000", "")}


def test_an_offset_that_was_not_negotiated_adjusts_nothing_and_says_so(zones, ask):
    answers = ask(zones, StudyDate="20240702", TimezoneOffsetFromUTC="+0200", supported=False)
    assert found(answers) == "12"
    assert {each.TimezoneOffsetFromUTC for each in answers} == {"+0000", "-0500"}


@pytest.mark.parametrize("value", ["CET", "+25", "0200", "+0200'", ["+0000", "+0100"]])
def test_a_malformed_offset_is_refused_and_named(value, transmit):
    identifier = Dataset()
    identifier.QueryRetrieveLevel, identifier.TimezoneOffsetFromUTC = "STUDY", value
    with pytest.raises(InvalidIdentifier) as caught:
        parse_identifier(transmit(identifier), Model.STUDY_ROOT, options=ZONED)
    assert caught.value.element == "TimezoneOffsetFromUTC"


def test_an_index_bounds_the_dates_of_a_query_in_a_zone(zones):
    identifier = Dataset()
    identifier.QueryRetrieveLevel = "STUDY"
    identifier.StudyDate, identifier.TimezoneOffsetFromUTC = "20240702-20240703", "+0100"
    where, parameters = parse_identifier(identifier, Model.STUDY_ROOT, options=ZONED).where()
    plan = zones.database.execute(f"EXPLAIN QUERY PLAN SELECT 1 FROM study WHERE {where}", parameters).fetchall()
    assert any("study_date" in row[-1] for row in plan)
