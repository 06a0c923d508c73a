"""Tables of the command line: no word is broken in a terminal of any width, no line in a pipe."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydicom.dataset import Dataset
from rich.table import Table

from commands import archive, describe, maintenance, routes
from commands.console import out, print_table
from config.settings import load_settings
from index import fsck
from index.deliveries import Queue
from reconstruct.projections import description, registry
from reconstruct.projections.description import Varying

UID = "2.25.25614280963192986495263802268460570104.3.987654321098765432"
OTHER = f"{UID[:-1]}3"
PATH = f"files/{UID}/{OTHER}/1.2.826.0.1.3680043.9.7133.9.1-4a3f.dcm"
HOST = "archive.radiology.hospital.example:104"
TERMINALS = (60, 80, 120)


@pytest.fixture
def shown() -> Iterator[Callable[..., str]]:
    """Return what is printed in a terminal of a width, or in a pipe (None)."""
    width = out.width

    def show(work: Callable[[], Any], columns: int | None) -> str:
        out.width, out._force_terminal = columns or width, columns is not None
        with out.capture() as captured:
            work()
        return captured.get()

    yield show
    out.width, out._force_terminal = width, None


def box_of(text: str) -> list[str]:
    return [line for line in text.splitlines() if line[:1] in "│┃┏└"]


def findings() -> None:
    kinds = fsck.Problem
    found = [
        fsck.Finding(kinds.MISSING, UID, f"there is no file {PATH} any more"),
        fsck.Finding(kinds.ORPHANED, PATH, "no instance has this file", "taken back in", is_solved=True),
        fsck.Finding(kinds.COUNT, f"study {OTHER}", "number_of_study_related_instances is 5, counted 4"),
    ]
    nothing = SimpleNamespace(execute=lambda _: SimpleNamespace(fetchone=lambda: (3,)))
    maintenance._print_findings(
        SimpleNamespace(database=nothing), Counter(each.problem for each in found), Counter(), found, 1.0
    )


@pytest.mark.parametrize("columns", [*TERMINALS, None])
def test_fsck_breaks_no_uid_and_no_path(shown, monkeypatch, columns):
    monkeypatch.setattr(maintenance, "stored_bytes", lambda _: 5)
    text = shown(findings, columns)
    for word in (UID, PATH, OTHER, "number_of_study_related_instances", "taken back in", "wrong count"):
        assert word in text
    assert any("missing" in line and PATH in line for line in text.splitlines()) is (columns is None)
    assert columns is None or all(len(line) <= columns for line in box_of(text))


def rules() -> None:
    names = [("ARCHIVE_OF_HOSP", HOST), ("WS", "192.0.2.17:11113")]
    settings = load_settings(environment={}, overrides={
        "application_entities": [
            {"title": title, "host": where.split(":")[0], "port": int(where.split(":")[1])} for title, where in names
        ],
        "routes": [
            {"name": "ct to the archive", "to": ["ARCHIVE_OF_HOSP"], "match": {"StudyDescription": "*thorax*"},
             "schedule": ["mon-fri 18:00-06:00", "sat-sun"]},
            {"name": "all", "to": ["WS", "ARCHIVE_OF_HOSP"]},
        ],
    })  # fmt: skip
    routes._print_rules(settings)
    queue = Queue(3, 1, "no answer", time.time() + 60)
    counts = {"sent": 12345, "committed": 12000, "failing": 2, "refused": 1}
    routes._print_standings([routes._Standing(title, where, queue, counts, None) for title, where in names])


@pytest.mark.parametrize("columns", [*TERMINALS, None])
def test_routes_break_no_title_and_no_number(shown, columns):
    text = shown(rules, columns)
    for word in ("ARCHIVE_OF_HOSP", HOST, "192.0.2.17:11113", "StudyDescription", "*thorax*", "18:00-06:00", "24,345",
                 "12,000", "destination", "confirmed"):  # fmt: skip
        assert word in text, word
    assert "…" not in text
    assert columns is None or all(len(line) <= columns for line in box_of(text))


VARYING = [
    Varying("(0029,xx10)", "ACME CT SHADOW HEADER 2", "UN", "", (r"\x00\xb4B", r"\x00\xb6B"), 360, True,
            (("FL", "90.0"), ("UL", "1119092736"))),
    Varying("PositionerPrimaryAngle", "", "DS", "PositionerPrimaryAngle", ("-179.5", "-179.0"), 360, True),
    Varying("IrradiationEventUID", "", "UI", "IrradiationEventUID", (UID, OTHER), 360, False),
]  # fmt: skip


@pytest.mark.parametrize("columns", [*TERMINALS, None])
def test_describe_breaks_no_element(shown, monkeypatch, columns):
    monkeypatch.setattr(registry, "read_header", lambda _: Dataset())
    monkeypatch.setattr(description, "varying_elements", lambda _: VARYING)
    text = shown(lambda: describe.describe([Path(__file__)], None, "x", None), columns)
    for word in ("(0029,xx10)", "PositionerPrimaryAngle", "IrradiationEventUID", "1119092736", "-179.5", "different"):
        assert word in text, word
    if columns is None:
        assert any(UID in line and OTHER in line for line in text.splitlines())
    else:
        assert f"{UID[:11]}…{UID[-11:]}" in text
        assert f"{OTHER[:11]}…{OTHER[-11:]}" in text
        assert all(len(line) <= columns for line in box_of(text))


@pytest.mark.parametrize("columns", [*TERMINALS, None])
def test_status_breaks_no_word(shown, monkeypatch, columns):
    facts = {
        "data": "/srv/pacs", "patients": 12, "studies": 34, "series": 56, "instances": 7890, "bytes": 123456789,
        "node": {"aet": "THARSIS", "host": "0.0.0.0", "port": 11112, "tls_port": 2762, "pid": 12345},
        "damaged": 1, "all_verified_since": "2026-11-29T10:00:00+00:00", "studies_deleted_by_retention": 3,
        "jobs": {"queued": 1, "running": 2, "done": 300, "failed": 4},
        "plugins_left_out": {"mip": "cannot be imported: ModuleNotFoundError: No module named 'nothing'"},
        "encoders": [{"model_id": "texture-2f6ab7c0d1e2", "embeddings": 4711}],
        "vector_indexes": [{"kind": "hnsw", "vectors": 100_000, "grain": "image", "model_id": "texture-2f6ab7c0d1e2",
                            "recall": 0.991, "recall_bound": 0.98, "target": 0.95}],
    }  # fmt: skip
    monkeypatch.setattr(archive, "_facts", lambda *_: facts)
    monkeypatch.setattr(archive, "open_archive", lambda *_: SimpleNamespace(data=Path("/srv/pacs")))
    text = shown(lambda: archive.status(None, None, as_json=False), columns)
    for word in ("/srv/pacs", "THARSIS", "11112", "ModuleNotFoundError:", "texture-2f6ab7c0d1e2", "instances", "0.991"):
        assert word in text, word
    assert all(len(line) <= (columns or 200) for line in box_of(text))


@pytest.mark.parametrize("columns", range(20, 120, 3))
def test_whatever_the_width_words_stay_whole_and_cells_complete(shown, columns):
    words = ["a-word-of-22-characters", "short", "a few words that may be wrapped anywhere", "x", "first\nsecond"]

    def work() -> None:
        table = Table(*(f"name{number}" for number in range(len(words))))
        table.add_row(*words)
        table.add_row(*reversed(words))
        print_table(table)

    text = shown(work, columns)
    for word in " ".join(words).split():
        assert text.count(word) >= 2
    assert all(len(line) <= columns for line in box_of(text))
    assert "…" not in text
