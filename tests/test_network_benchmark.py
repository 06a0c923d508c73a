"""The benchmark of the network side, and the soak: that they run, count right, and notice what they look for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from pydicom import dcmread
from routed import Pacs

from index.archive import Archive
from index.counts import wrong_counts

CHECKOUT = Path(__file__).resolve().parents[1]
MINUTES = 5


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(CHECKOUT))


def run(*arguments, timeout=900, nice=0):
    command = ["nice", "-n", str(nice), sys.executable, *map(str, arguments), "--json"]
    return subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=timeout, check=False)


@pytest.mark.slow
def test_every_measurement_is_made_of_every_node_that_serves_it(tmp_path):
    sizes = ["--instances", 4, "--tiny", 8, "--multiframes", 1, "--multiframe-mb", 4, "--studies", 6, "--queries", 8]
    ran = run("benchmarks/network", "--peers", "storescp", *sizes, "--folder", tmp_path)
    assert ran.returncode == 0, ran.stderr
    facts = json.loads(ran.stdout)

    made = {(row["node"], row["what"].split()[0]) for row in facts["rows"]}
    assert made == {(node, what) for node in ("tharsis", "storescp") for what in ("started", "C-STORE")} | {
        ("tharsis", what) for what in ("C-FIND", "C-MOVE", "C-GET")
    }
    assert all(row["peak_mb"] > 0 and (row.get("per_s") or row["ready_s"]) > 0 for row in facts["rows"])
    assert all(facts["nodes"][name]["durability"] for name in ("tharsis", "storescp"))
    assert list(tmp_path.iterdir()) == []  # nothing is left behind


@pytest.mark.slow(310)
def test_a_node_under_load_neither_grows_nor_loses_anything(tmp_path):
    """Four senders, two movers and a finder, for five minutes; nicer than the tests beside it."""
    ran = run("benchmarks/soak.py", "--minutes", MINUTES, "--batch", 20, "--folder", tmp_path, nice=10)
    assert ran.stdout, ran.stderr
    facts = json.loads(ran.stdout)

    assert facts["problems"] == []
    assert min(facts["stored"], facts["moved"], facts["asked"]) > 0


def test_growth_and_loss_are_noticed(tmp_path, make_instance):
    from benchmarks import soak

    steady = {"memory_mb": 300.0, "handles": 60.0, "threads": 20.0, "wal_mb": 4.0}
    leaking = [{**steady, "handles": 60.0 + number} for number in range(200)]
    assert soak.complaints(soak.growth([steady] * 40)) == []
    assert soak.complaints(soak.growth(leaking)) == ["handles grew from 134 to 234"]

    archive = Archive(tmp_path / "data")
    archive.ingest(make_instance(1))
    study = "1.2.826.0.1.3680043.9.7133.1"
    assert soak.missing(archive.data, {study: 1}) == []
    assert soak.missing(archive.data, {study: 2, "1.2.3": 1}) == [study, "1.2.3"]


def test_a_catalogue_made_in_bulk_is_as_c_store_leaves_it(archive):
    from benchmarks.network import catalogue

    catalogue.fill(archive, 3, instances=4)
    catalogue.fill(archive, 2, first=3)

    count = archive.database.execute("SELECT count(*), count(DISTINCT sop_instance_uid) FROM instance").fetchone()
    assert count == (14, 14)
    assert list(wrong_counts(archive.database)) == []


def test_a_renewed_corpus_is_of_new_instances_with_the_same_pixels(tmp_path):

    from benchmarks.network import corpus

    kind = corpus.make(tmp_path, "tiny", 3, side=8, instances_a_study=2)
    before = [dcmread(file) for file in kind.files]
    kind.renew(7)
    after = [dcmread(file) for file in kind.files]

    assert len({each.SOPInstanceUID for each in [*before, *after]}) == 6
    assert [each.StudyInstanceUID for each in after] == [kind.study_uids()[0]] * 2 + [kind.study_uids()[1]]
    assert after[2].PatientID == corpus.patient_id(7, 1)
    assert all(each.file_meta.MediaStorageSOPInstanceUID == each.SOPInstanceUID for each in after)
    assert {each.PixelData for each in before} == {each.PixelData for each in after}


@pytest.mark.parametrize("tool", ["client", "dcmsend"])
def test_what_a_peer_does_not_manage_is_told_in_its_row_and_its_objects_are_there_all_the_same(
    tmp_path, tool, monkeypatch
):
    from benchmarks.network import corpus, measure, report

    monkeypatch.setenv("TCP_NODELAY", "1")

    kind = corpus.make(tmp_path, "tiny", 6, side=8, instances_a_study=3)
    pacs = Pacs()
    answers = iter([0, 0xC000])
    pacs.answer = lambda _event: next(answers, 0)
    pacs.open()
    node = SimpleNamespace(
        key="busy", name="busy", title="PACS", port=pacs.port, pids=lambda: [os.getpid()], services={"store"}
    )
    try:
        refused = measure.store(node, kind, tool=tool, associations=2)
        again = measure.store(node, kind, tool=tool, associations=2)
    finally:
        pacs.give_back()

    assert "per_s" not in refused
    assert len(pacs.received) == len(kind.files)
    assert measure.figures(again)["per_s"] > 0
    with pytest.raises(measure.NotMeasured, match="C-STORE tiny"):
        measure.figures(refused)
    rows = [{"node": "busy", **row} for row in (refused, again)]
    table = report.text({"processors": 1, "load_average": 0.0, "seconds": 1.0, "rows": rows})
    assert f"not measured: {refused['not_measured']}" in table
    assert "c000" in refused["not_measured"].lower()


def test_a_peer_that_loses_what_it_has_answered_is_found_out(tmp_path, monkeypatch):
    """Its tools call a C-MOVE of what is left a success."""
    from benchmarks.network import corpus, measure

    kind = corpus.make(tmp_path, "tiny", 6, side=8, instances_a_study=3)
    pacs, kept, asked = Pacs(), [5], []
    pacs.open()
    node = SimpleNamespace(
        key="leaky", name="leaky", title="PACS", port=pacs.port, pids=lambda: [os.getpid()], services={"store", "move"}
    )

    def ask(_port, _called, _calling, identifiers):
        if kept[0] < 0:
            raise RuntimeError("PACS answered C-FIND with A700")
        asked.append([(each.QueryRetrieveLevel, each.StudyInstanceUID, each.SeriesInstanceUID) for each in identifiers])
        return SimpleNamespace(answers=kept[0])

    monkeypatch.setattr(measure.client, "ask", ask)
    monkeypatch.setattr(measure, "run_tools", lambda _commands: 2.0)
    try:
        stored = measure.store(node, kind, tool="client", associations=1)
        moved = measure.retrieve(node, kind, tool="movescu", associations=1)
        kept[0] = 0
        nothing = measure.retrieve(node, kind, tool="movescu", associations=1)
        kept[0] = -1
        refused = measure.retrieve(node, kind, tool="movescu", associations=1)
    finally:
        pacs.give_back()

    assert "has 5 of them" in stored["not_measured"]
    assert (moved["count"], moved["per_s"]) == (5, 2.5)
    assert nothing["not_measured"] == "it has none of them"
    assert refused["not_measured"] == "PACS answered C-FIND with A700"
    series = {(each.StudyInstanceUID, each.SeriesInstanceUID) for each in map(dcmread, kind.files)}
    assert {(study, own) for _, study, own in asked[0]} == series
