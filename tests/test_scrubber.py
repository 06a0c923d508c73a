"""The scrubber: files are read back in turn, at a pace, and what is found is told."""

from __future__ import annotations

import json
import logging
import time

import pytest

from config.settings import load_settings
from index import changes, integrity, scrub
from index.archive import Archive
from index.changes import ChangeKind
from index.jobs import Job
from plugins import scrubber
from plugins.manager import load_plugins
from plugins.node import Interrupted, Task
from plugins.worker import Worker

PREFIX = "1.2.826.0.1.3680043.9.7133"
DAY_S = 86_400.0


def uid(number):
    return f"{PREFIX}.9.{number}"


@pytest.fixture
def filled(archive, make_instance):
    for number in range(1, 6):
        archive.ingest(make_instance(number))
    return archive


def age(archive, *numbers, days=100.0):
    """Let the instances have been read so long ago, the first longest ago."""
    for place, number in enumerate(numbers):
        archive.database.execute(
            "UPDATE instance SET verified_at = ? WHERE sop_instance_uid = ?",
            (time.time() - days * DAY_S + place, uid(number)),
        )


def read_back(archive, days=30.0, budget=10**9):
    return scrub.scrub_slice(
        archive, due_before=time.time() - days * DAY_S, budget=budget, on_fraction=lambda _fraction: None
    )


def verified(archive):
    rows = archive.database.execute(
        "SELECT sop_instance_uid FROM instance WHERE verified_at > ?", (time.time() - DAY_S,)
    )
    return {row[0] for row in rows}


def flip(path):
    content = bytearray(path.read_bytes())
    content[-3] ^= 0xFF
    path.write_bytes(content)


def test_what_was_just_received_is_not_due(filled):
    done = read_back(filled)
    assert (done.size, done.is_all) == (0, True)


def test_those_not_read_for_longest_come_first(filled):
    age(filled, 3, 1, 5)
    size = filled.open_instance(uid(3)).size
    assert read_back(filled, budget=size).size == size
    assert verified(filled) == {uid(2), uid(4), uid(3)}
    assert not read_back(filled, budget=size).is_all
    assert read_back(filled).is_all
    assert verified(filled) == {uid(number) for number in range(1, 6)}


def test_damage_is_noted_once_in_the_feed_and_told_in_the_log(filled, caplog):
    flip(filled.open_instance(uid(1)).path)
    filled.open_instance(uid(2)).path.unlink()
    for _ in range(2):
        age(filled, 1, 2, 3)
        with caplog.at_level(logging.ERROR):
            read_back(filled)
    damage = {change.uid: change.kind for change in changes.since(filled.database) if change.kind != ChangeKind.STORED}
    assert damage == {uid(1): ChangeKind.ALTERED, uid(2): ChangeKind.MISSING}
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert len(told) == 2
    assert "expected SHA-256" in told[0]
    assert integrity.damaged(filled.database) == 2
    assert filled.open_instance(uid(1)).damage == "altered"


def test_what_is_whole_again_is_told_as_well(filled, make_instance):
    path = filled.open_instance(uid(1)).path
    flip(path)
    age(filled, 1)
    read_back(filled)
    path.write_bytes(make_instance(1))
    age(filled, 1)
    read_back(filled)
    assert [change.kind for change in changes.since(filled.database)][-2:] == [ChangeKind.ALTERED, ChangeKind.REPAIRED]
    assert integrity.damaged(filled.database) == 0


def test_an_instance_replaced_meanwhile_is_not_accused(filled, make_instance, monkeypatch):
    age(filled, 1)
    original = scrub.examine

    def replace_first(root, file, **keywords):
        Archive(filled.data).ingest(make_instance(1, PatientName="New^Name"), overwrite="always")
        return original(root, file, **keywords)

    monkeypatch.setattr(scrub, "examine", replace_first)
    read_back(filled)
    assert integrity.damaged(filled.database) == 0


def test_what_was_read_before_a_stop_is_not_read_again(filled):
    age(filled, 1, 2, 3)
    calls = []

    def stop(_fraction):
        calls.append(1)
        if len(calls) == 2:
            raise Interrupted

    with pytest.raises(Interrupted):
        scrub.scrub_slice(filled, due_before=time.time() - DAY_S, budget=10**9, on_fraction=stop)
    assert uid(1) in verified(filled)
    assert uid(2) not in verified(filled)


# The job


def settings(archive, **integrity_settings):
    return load_settings(environment={}, overrides={
        "archive": {"data": archive.data}, "integrity": integrity_settings,
    })


def run(archive, function=scrubber.do_scrub, kind="scrub", **integrity_settings):
    job = Job(0, kind, scrubber.SUBJECT)
    function(Task(archive, settings(archive, **integrity_settings), job, lambda _fraction: None))
    (queued,) = [job for job in archive.jobs.recent(states=("queued",)) if job.kind == kind]
    return queued.not_before - time.time()


def test_the_next_slice_waits_until_the_pace_allows_it(filled, monkeypatch):
    age(filled, 1, 2, 3, 4, 5)
    monkeypatch.setattr(scrubber, "_SHARE_S", 0.1)
    size = filled.open_instance(uid(1)).size
    wait = run(filled, scrub_mb_per_s=size / 1e6 / 100)  # a file takes 100 s at this pace
    assert 90 < wait <= 100


def test_without_anything_due_it_sleeps_until_something_is(filled):
    assert 3500 < run(filled) <= 3600
    age(filled, 1, days=30.0 - 100 / DAY_S)
    assert 90 < run(filled, scrub_days=30.0) <= 101


def test_zero_days_reads_nothing(filled):
    age(filled, 1)
    run(filled, scrub_days=0.0)
    assert uid(1) not in verified(filled)


def test_a_run_that_fails_is_followed_by_the_next(filled, monkeypatch):
    monkeypatch.setattr(scrub, "scrub_slice", lambda *_a, **_k: 1 / 0)
    filled.jobs.push("scrub", scrubber.SUBJECT, not_before=0)
    worker = Worker(filled, settings(filled), "w")
    assert worker.run_one()
    assert [job.state for job in filled.jobs.recent() if job.kind == "scrub"].count("queued") == 1


def test_its_own_jobs_do_not_pile_up_and_nobody_waits_for_them(filled):
    plugins = load_plugins()
    worker = Worker(filled, settings(filled), "w", plugins)
    plugins.hook.worker_started(archive=filled, settings=settings(filled))
    worker.run_until_idle()
    for _ in range(4):
        filled.database.execute("UPDATE job SET not_before = 0 WHERE state = 'queued'")
        while worker.run_one():
            pass
    assert filled.jobs.pending() == 0
    recurring = [job for job in filled.jobs.recent() if job.kind in ("scrub", "retention")]
    assert sorted((job.kind, job.state) for job in recurring) == [
        ("retention", "done"), ("retention", "queued"), ("scrub", "done"), ("scrub", "queued"),
    ]


def test_jobs_that_ended_long_ago_are_forgotten(filled):
    for kind in ("old", "new"):
        filled.jobs.push(kind, "1")
    for name, ago in (("old", 31), ("new", 29)):
        filled.database.execute(
            "UPDATE job SET state = 'done', finished = ? WHERE kind = ?", (time.time() - ago * DAY_S, name)
        )
    run(filled)
    assert {job.kind for job in filled.jobs.recent()} == {"new", "scrub", "series_stable"}


def test_old_changes_of_vectors_are_forgotten(filled, monkeypatch):
    monkeypatch.setattr(scrub, "_KEPT_VECTOR_CHANGES", 3)
    for number in range(10):
        filled.database.execute(
            "INSERT INTO embedding_change (model_id, embedding, removed) VALUES ('m', ?, 0)", (number,)
        )
    run(filled)
    assert filled.database.execute("SELECT seq FROM embedding_change").fetchall() == [(8,), (9,), (10,)]


def test_status_tells_what_is_damaged_and_since_when_everything_was_read(filled, tharsis):
    flip(filled.open_instance(uid(1)).path)
    age(filled, 1, 2, 3, 4, 5)
    read_back(filled)
    told = json.loads(tharsis("status", "--json", "--data", filled.data).stdout)
    assert told["damaged"] == 1
    assert told["all_verified_since"][:4] == time.strftime("%Y", time.gmtime())
    filled.database.execute("UPDATE instance SET verified_at = 0 WHERE sop_instance_uid = ?", (uid(2),))
    told = json.loads(tharsis("status", "--json", "--data", filled.data).stdout)
    assert told["all_verified_since"] is None
    assert "not every file yet" in tharsis("status", "--data", filled.data).stdout


@pytest.mark.slow
def test_a_node_finds_by_itself_what_was_altered(serve, make_file, wait_until):
    from scp import client
    from scp.client import Requestor

    node = serve(settle_time_s=0.1)
    assert all(sent.is_stored for sent in client.send(node.peer, [make_file(1), make_file(2)], Requestor()))
    archive = Archive(node.data)
    flip(archive.open_instance(uid(1)).path)
    age(archive, 1, 2)
    archive.jobs.push("scrub", scrubber.SUBJECT)
    wait_until(lambda: integrity.damaged(archive.database) == 1)
    wait_until(lambda: f"instance {uid(1)} is altered" in node.log())
