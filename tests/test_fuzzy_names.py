"""Fuzzy semantic matching of person names (PS3.4 C.2.2.2.1.1): names stored and asked for, with and without it."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from index.matching import FUNCTIONS, fold_name, name_matches
from index.phonetic import code, sounds_like
from index.query import QueryOptions

FUZZY = QueryOptions(fuzzy=True)


@pytest.mark.parametrize(
    ("stored", "asked", "expected"),
    [
        ("Meier^Hans", "Mayer^Hans", True),
        ("Schmidt^Stefan", "Schmitt^Stephan", True),
        ("Filip^Anna", "Philipp^Anna", True),
        ("Catherine^Smyth", "Smith^Katherine", True),
        ("Wagner^Jürgen", "Vagner^Jurgen", True),
        ("Yamada^Tarou", "Yamada^Taro", True),
        ("Müller^Jörg", "jorg muller", True),  # in any order, whichever component
        ("Müller^Jörg", "Muller", True),
        ("Müller^Jörg", "Muller^J", True),
        ("Müller^Jörg", "Muller^Jo*", True),
        ("Müller^Jörg^Karl", "Karl^Muller", True),
        ("Müller-Lüdenscheidt^Klaus", "Ludenscheidt", True),
        ("Müller^Jörg", "Muller^Muller", False),  # each word needs a stored one of its own
        ("Müller^Jörg", "Muller^Anna", False),
        ("Müller^Jörg", "Huber", False),
        ("Lee^Ann\\Roe^Max", "Max Row", True),
        ("Lee^Ann\\Roe^Max", "Lee^Max", False),
        ("Yamada^Tarou=山田^太郎=やまだ^たろう", "山田", True),
        ("Yamada^Tarou=山田^太郎=やまだ^たろう", "太郎^山田", True),
        ("Yamada^Tarou=山田^太郎=やまだ^たろう", "山", True),
        ("Yamada^Tarou=山田^太郎=やまだ^たろう", "田", False),
        ("Yamada^Tarou=山田^太郎=やまだ^たろう", "Yamado=山田", True),
        ("Yamada^Tarou=山田^太郎=やまだ^たろう", "Yamado=鈴木", False),
        ("Yamada^Tarou=山田^太郎=やまだ^たろう", "=太郎", True),
        ("Иванов^Пётр", "петр", True),
        ("Иванов^Пётр", "сидоров", False),
        ("A1^B2", "A1", True),
        ("", "Smith", False),
        ("Smith", "Smith^*", True),
        ("Smith", "*^Smith", True),
    ],
)
def test_names_that_sound_alike(stored, asked, expected):
    folded = fold_name(stored), fold_name(asked)
    assert (sounds_like(*folded) or name_matches(*folded)) is expected


@pytest.mark.parametrize(
    ("word", "expected"),
    [("robert", "r163"), ("rupert", "r163"), ("tymczak", "t522"), ("pfister", "p236"), ("ashcraft", "a261"),
     ("knight", "n230"), ("hans", "a520"), ("lee", "l000"), ("山田", ""), ("山田a", ""), ("", "")],
)  # fmt: skip
def test_codes(word, expected):
    assert code(word) == expected


def test_without_negotiation_names_match_literally_only(archive, make_instance, ask):
    archive.ingest(make_instance(1, PatientName="Meier^Hans", OperatorsName="Smyth^Ann"))
    assert ask(archive, PatientName="Mayer^Hans") == []
    (answer,) = ask(archive, PatientName="Mayer^Hans", options=FUZZY)
    assert answer.PatientName == "Meier^Hans"
    options = QueryOptions(fuzzy=True, relational=True)
    assert len(ask(archive, "SERIES", OperatorsName="Ann^Smith", options=options)) == 1
    assert len(ask(archive, PatientName="", options=FUZZY)) == 1
    assert len(ask(archive, PatientName="*", options=FUZZY)) == 1
    assert ask(archive, StudyDescription="Hed", options=FUZZY) == []


_NAMES = st.lists(st.text("abkMüñ山たИ-. ", max_size=6), max_size=3).map("^".join)


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(groups=st.lists(_NAMES, min_size=1, max_size=3), cut=st.integers(0, 6), data=st.data())
def test_fuzzy_matching_finds_whatever_literal_matching_finds(groups, cut, data):
    """Property: the condition that is negotiated is a superset of the one that is not."""
    import sqlite3

    from index.keys import KEYS
    from index.matching import condition

    stored = "=".join(groups)
    asked = data.draw(st.sampled_from([stored, *groups])).swapcase()
    asked = asked[:cut] + data.draw(st.sampled_from(["*", "", "?" + asked[cut + 1 :], asked[cut:]]))
    database = sqlite3.connect(":memory:")
    for name, (parameters, function) in FUNCTIONS.items():
        database.create_function(name, parameters, function)
    database.execute("CREATE TABLE patient (patient_name TEXT, patient_name_folded TEXT)")
    database.execute("INSERT INTO patient VALUES (?, ?)", (stored, fold_name(stored)))
    literal, fuzzy = (condition(KEYS["PatientName"], [asked], fuzzy=each) for each in (False, True))
    if literal is not None and fuzzy is not None:
        rows = [database.execute(f"SELECT 1 FROM patient WHERE {each.sql}", each.parameters).fetchall()
                for each in (literal, fuzzy)]  # fmt: skip
        assert len(rows[1]) >= len(rows[0])
    database.close()
