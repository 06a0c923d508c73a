"""How SQLite finds what a query asks for: by an index for the usual keys, never sorted into a temporary table."""

from __future__ import annotations

import random
import re

import pytest
from pydicom.dataset import Dataset

from index.keys import KEYS
from index.matching import condition, fold_name, name_matches
from index.query import Model, QueryOptions, parse_identifier, select

USUAL = [
    ("PATIENT", {"PatientID": "P1"}),
    ("PATIENT", {"PatientName": "Doe^Jane"}),
    ("STUDY", {"PatientID": "P1"}),
    ("STUDY", {"PatientID": "P1*"}),
    ("STUDY", {"PatientName": "Doe^Jane"}),
    ("STUDY", {"PatientName": "doe*"}),
    ("STUDY", {"PatientName": "doe^*"}),
    ("STUDY", {"PatientName": "山田*"}),
    ("STUDY", {"PatientBirthDate": "19800101"}),
    ("STUDY", {"AccessionNumber": "A1"}),
    ("STUDY", {"StudyID": "S1"}),
    ("STUDY", {"StudyDate": "20240101"}),
    ("STUDY", {"StudyDate": "20240101-20240201"}),
    ("STUDY", {"StudyDate": "20240101-", "ModalitiesInStudy": "CT"}),
    ("STUDY", {"StudyDate": "20240101-", "PatientName": "doe*", "StudyTime": "10-11"}),
    ("STUDY", {"StudyInstanceUID": "1.2"}),
    ("STUDY", {"StudyInstanceUID": ["1.2", "1.3"]}),
    ("SERIES", {"StudyInstanceUID": "1.2"}),
    ("SERIES", {"StudyInstanceUID": "1.2", "Modality": "CT"}),
    ("SERIES", {"SeriesInstanceUID": "1.2"}),
    ("IMAGE", {"StudyInstanceUID": "1.2", "SeriesInstanceUID": "1.3"}),
    ("IMAGE", {"StudyInstanceUID": "1.2", "SeriesInstanceUID": "1.3", "InstanceNumber": "7"}),
    ("IMAGE", {"SOPInstanceUID": "1.2"}),
    ("IMAGE", {"SOPInstanceUID": ["1.2", "1.3"]}),
]


def plan(archive, level, values):
    asked = Dataset()
    asked.QueryRetrieveLevel = level
    asked.SpecificCharacterSet = "ISO_IR 192"
    for keyword, value in values.items():
        setattr(asked, keyword, value)
    selection = select(parse_identifier(asked, Model.PATIENT_ROOT, options=QueryOptions(relational=True)))
    rows = archive.database.execute(f"EXPLAIN QUERY PLAN {selection.sql}", selection.parameters)
    return [row[3] for row in rows.fetchall()]


@pytest.mark.parametrize(("level", "values"), USUAL)
def test_usual_keys_are_found_by_an_index(archive, level, values):
    steps = plan(archive, level, values)

    assert [step for step in steps if re.match(r"SCAN (?!json_each)", step)] == []
    assert [step for step in steps if "TEMP B-TREE" in step] == []


@pytest.mark.parametrize("level", ["PATIENT", "STUDY", "SERIES", "IMAGE"])
def test_a_query_for_everything_streams_rows_in_the_order_of_a_table(archive, level):
    steps = plan(archive, level, {})

    assert sum(step.startswith("SCAN") for step in steps) == 1
    assert [step for step in steps if "TEMP B-TREE" in step or "AUTOMATIC" in step] == []


def test_names_match_by_an_index_as_they_match_one_by_one(archive):
    random.seed(1)
    parts = ["", "a", "ab", "b", "a^", "^", "smith", "smi[th", "山田", "é"]
    names = {"^".join(random.choices(parts, k=2)) for _ in range(40)}
    names |= {f"{first}{mark}{second}" for mark in "=\\" for first in parts for second in parts}
    folded = sorted({fold_name(name) for name in names})
    with archive.transaction() as database:
        for number, name in enumerate(folded):
            database.execute(
                "INSERT INTO patient (identity, patient_name_folded) VALUES (?, ?)", (str(number), name)
            )
    pieces = [*parts, "*", "?", "^*", "=*", "=", "["]
    for _ in range(300):
        pattern = "".join(random.choices(pieces, k=random.randint(1, 4)))
        asked = condition(KEYS["PatientName"], [pattern])
        if asked is None:
            continue
        rows = archive.database.execute(f"SELECT patient_name_folded FROM patient WHERE {asked.sql}", asked.parameters)

        assert sorted(row[0] for row in rows) == [
            name for name in folded if name_matches(name, fold_name(pattern))
        ], pattern
