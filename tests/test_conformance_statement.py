"""The Conformance Statement: written from the tables, complete, and up to date in docs/ (PS3.2)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydicom.uid import UID

from config.settings import load_settings
from index.errors import CatalogueLost, InvalidIdentifier, NotRecovered, NotRemoved, WrongState
from index.keys import KEYS, SEQUENCES, Key, Matching, SequenceKey
from index.matching import condition
from scp import asking, commitment, conformance, dispatch, query, retrieve, similarity, status, storage
from scp.contexts import QUERY_RETRIEVE, STORAGE, TRANSFER_SYNTAXES
from scp.private_elements import ELEMENTS
from scp.wire import association

ANY_REQUEST = [dispatch.answer, association.WireAssociation._refuse_incomplete]
DOCUMENT = Path(__file__).parents[1] / "docs" / "conformance-statement.md"


@pytest.fixture(scope="module")
def text() -> str:
    return conformance.statement(load_settings(environment={}))


def test_the_document_is_what_the_code_says(text):
    assert DOCUMENT.read_text(encoding="utf-8") == text, (
        "run: tharsis conformance --out docs/conformance-statement.md"
    )


def test_every_refusal_of_the_status_table_belongs_to_a_service():
    told = {error for errors in conformance.RAISED.values() for error in errors}
    elsewhere = {WrongState, CatalogueLost, NotRecovered, NotRemoved}  # of the command line, and of the start
    assert told == set(status.CODES) - elsewhere


@pytest.mark.parametrize(
    ("service", "functions"),
    [
        ("storage", [storage.store]),
        ("inbox", [storage.store_deidentified]),
        ("asking", [asking.receive]),
        ("commitment", [commitment.commit, commitment.take_report]),
        ("query", [query.find]),
        ("similarity", [similarity.find]),
        ("retrieve", [retrieve.sub_operations, retrieve._Tally.final]),
        *((service, ANY_REQUEST) for service in conformance.RAISED),
    ],
)
def test_every_status_that_a_service_names_is_in_its_table(text, service, functions):
    """What it raises is in a table of its own; `tests/answered.py` listens to what nodes answer in all other tests."""
    names = {name for function in functions for name in function.__code__.co_names}
    named = [value for name, value in vars(status).items() if name in names]
    codes = {value.code if isinstance(value, status.Status) else value for value in named if not callable(value)}
    rows = conformance.answered(service)
    assert codes
    assert codes <= {code for code, _ in rows}
    told = re.findall(r"^\| ([0-9A-F]{4}) \| [a-z]+ \| (.*) \|$", text, re.MULTILINE)
    assert {(f"{code:04X}", when) for code, when in rows} <= set(told)


@pytest.mark.parametrize(
    "wanted",
    [
        pytest.param(sorted(STORAGE), id="storage classes"),
        pytest.param(list(TRANSFER_SYNTAXES), id="transfer syntaxes"),
        pytest.param([UID(uid).name for uid, kind in QUERY_RETRIEVE.items() if not kind.similarity], id="query"),
        pytest.param([uid for uid, kind in QUERY_RETRIEVE.items() if kind.similarity], id="similarity"),
        pytest.param([str(conformance.tag(keyword)) for keyword in [*KEYS, *SEQUENCES]], id="keys"),
        pytest.param(list(ELEMENTS), id="private elements"),
    ],
)
def test_everything_that_the_node_knows_is_in_it(text, wanted):
    assert wanted
    assert [each for each in wanted if f"| {each} |" not in text] == []


def test_it_speaks_of_the_settings_that_it_is_given():
    overrides = {"scp": {"aet": "LAB", "port": 4242, "max_associations": 7}, "archive": {"overwrite": "always"}}
    text = conformance.statement(load_settings(environment={}, overrides=overrides))
    for words in ("`LAB`, `LAB_SIM`", "4242", "| 7; more are", "it replaces the stored object"):
        assert words in text


def test_the_command_writes_it(tharsis, tmp_path):
    file = tmp_path / "statement.md"
    told = tharsis("conformance", "--out", file)
    assert told.returncode == 0, told.stderr
    assert file.read_text(encoding="utf-8").startswith("# DICOM Conformance Statement")


def _of_items(sequence: SequenceKey) -> list[Key]:
    return [*sequence.keys, *(key for inner in sequence.sequences for key in _of_items(inner))]


IN_ITEMS = [key for sequence in SEQUENCES.values() for key in _of_items(sequence)]


def _takes(key: Key, value: str) -> bool:
    try:
        condition(key, [value])
    except InvalidIdentifier:
        return False
    return True


@pytest.mark.parametrize("key", [*KEYS.values(), *IN_ITEMS], ids=lambda key: f"{key.level}-{key.keyword}")
def test_what_it_claims_of_a_key_the_matching_takes_and_refuses_the_rest(text, key):
    rows = re.findall(rf"^\| {re.escape(conformance.tag(key.keyword))} \| .*? \| (.*) \|$", text, re.MULTILINE)
    claims = {row.rpartition(" | ")[2].removesuffix(" (kept by the node)") for row in rows if row[:2] != "SQ"}
    assert len(claims) == 1, "a key is matched alike wherever it stands"
    claim = claims.pop()
    for wild in ("1*", "?", "1.2.*"):
        assert _takes(key, wild) is ("wild card" in claim), f"{claim}: {wild}"
    assert _takes(key, "*") is ("list of UID" not in claim)
    if "range" in claim:
        assert _takes(key, {Matching.DATE: "20240131-", Matching.TIME: "10-"}[key.matching])
    if "numeric" in claim:
        assert (_takes(key, "02"), _takes(key, "1-5")) == (True, False)
