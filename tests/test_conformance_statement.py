"""The Conformance Statement: written from the tables, complete, and up to date in docs/ (PS3.2)."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydicom.uid import UID

from config.settings import load_settings
from index.errors import CatalogueLost, NotRecovered, NotRemoved, WrongState
from index.keys import KEYS, SEQUENCES
from scp import conformance, status
from scp.contexts import QUERY_RETRIEVE, STORAGE, TRANSFER_SYNTAXES
from scp.private_elements import ELEMENTS

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
