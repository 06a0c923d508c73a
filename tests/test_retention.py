"""Quota and retention: the sum is kept, nothing goes before somebody has looked, and nothing goes silently."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime, timedelta

import pytest

from config.settings import RetentionSettings, load_settings
from index import changes, fsck, retention, tally
from index.archive import Archive, Outcome
from index.changes import ChangeKind
from index.errors import OutOfSpace
from index.fsck import Options
from index.jobs import CONFIRM_ROUTE, ROUTE, SERIES_STABLE, Job
from index.keys import Level
from plugins import scrubber
from plugins.node import Task


def limits(**told):
    return RetentionSettings(**{"quota_gb": 0.0, "when_full": "refuse", "keep_days": 0.0, "dry_run": False, **told})


def receive(archive, content, days_ago):
    ingested = archive.ingest(content)
    moment = (datetime.now(UTC) - timedelta(days=days_ago)).isoformat(timespec="milliseconds")
    archive.database.execute(
        "UPDATE instance SET received_at = ? WHERE sop_instance_uid = ?", (moment, ingested.sop_instance_uid)
    )
    return ingested


@pytest.fixture
def filled(archive, make_instance):
    """Studies 1.1 to 1.4 of two instances each, 1.4 received first; the second half of 1.3 came just now.

    The rules have seen all of them.
    """
    for study, days in ((1, 10), (2, 20), (3, 30), (4, 40)):
        for number in (0, 1):
            content = make_instance(10 * study + number, StudyInstanceUID=f"1.{study}", PatientID=f"P{study}")
            receive(archive, content, 0 if (study, number) == (3, 1) else days)
    end_jobs(archive)
    return archive


def end_jobs(archive):
    while (job := archive.jobs.claim("worker", claim_s=60.0, max_attempts=1)) is not None:
        archive.jobs.done(job)


def uids(studies):
    return [study.study_instance_uid for study in studies]


def stored(archive):
    return {row[0] for row in archive.database.execute("SELECT study_instance_uid FROM study")}


def true_sum(archive):
    return archive.database.execute("SELECT coalesce(sum(size), 0) FROM instance").fetchone()[0]


@pytest.mark.parametrize(
    ("kind", "parameters"),
    [(SERIES_STABLE, {}), (ROUTE, {"destination": "PACS", "rule": "all"}), (CONFIRM_ROUTE, {"destination": "PACS"})],
)
def test_a_study_that_is_still_to_be_sent_or_confirmed_or_seen_by_the_rules_stays(kind, parameters, filled):
    (series,) = filled.database.execute(
        "SELECT series_instance_uid FROM series JOIN study ON study.id = series.study "
        "WHERE study.study_instance_uid = '1.4'"
    ).fetchone()
    first = list(retention.due(filled, limits(keep_days=5.0)))
    assert "1.4" in uids(first)
    filled.jobs.push(kind, series, parameters)
    assert uids(retention.due(filled, limits(keep_days=5.0))) == []  # all four share one Series Instance UID
    assert not retention.delete(filled, first[0])
    job = filled.jobs.claim("worker", claim_s=60.0, max_attempts=1)
    assert job.kind == kind
    assert not retention.delete(filled, first[0]), "while it is done"
    filled.jobs.fail(job, "given up", max_attempts=1, retry_delay_s=0.0)
    assert retention.delete(filled, first[0]), "what has failed keeps nothing for ever"


def test_a_study_of_which_something_was_sent_again_stays(filled, make_instance):
    (study,) = retention.due(filled, limits(keep_days=35.0))
    assert filled.ingest(make_instance(41, StudyInstanceUID="1.4", PatientID="P4")).outcome is Outcome.DUPLICATE
    assert not retention.delete(filled, study)
    assert uids(retention.due(filled, limits(keep_days=15.0))) == ["1.2"]


def test_the_sum_follows_every_change(archive, make_instance):
    steps = [
        lambda: archive.ingest(make_instance(1)),
        lambda: archive.ingest(make_instance(2, ImageComments="x" * 999)),
        lambda: archive.ingest(make_instance(1)),
        lambda: archive.ingest(make_instance(1, ImageComments="x" * 500), overwrite="always"),
        lambda: archive.delete(Level.IMAGE, "1.2.826.0.1.3680043.9.7133.9.2"),
        lambda: archive.delete(Level.PATIENT, "P1"),
    ]
    for step in steps:
        step()
        assert tally.stored_bytes(archive.database) == true_sum(archive)
    assert tally.stored_bytes(archive.database) == 0


def test_a_full_quota_refuses_before_the_write_and_never_by_a_byte_too_much(tmp_path, make_instance):
    content = make_instance(1)
    archive = Archive(tmp_path / "archive", quota_bytes=2 * len(content))
    archive.ingest(content)
    with pytest.raises(OutOfSpace, match="quota"):
        archive.ingest(make_instance(2, ImageComments="one byte too much"))
    archive.ingest(make_instance(3))
    with pytest.raises(OutOfSpace, match="quota"):
        archive.require_space()
    assert list(archive.incoming.iterdir()) == []
    assert list(fsck.check(archive, Options(), lambda *_step: None)) == []
    archive.delete(Level.IMAGE, "1.2.826.0.1.3680043.9.7133.9.3")
    archive.require_space()


def test_a_replacement_that_fits_is_stored_at_the_brim(tmp_path, make_instance):
    content = make_instance(1)
    archive = Archive(tmp_path / "archive", quota_bytes=len(content) + 10)
    archive.ingest(content)
    archive.ingest(make_instance(1, PatientName="Doe^Jony"), overwrite="always")
    assert tally.stored_bytes(archive.database) == true_sum(archive)


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({}, []),
        ({"keep_days": 15.0}, ["1.4", "1.2"]),
        ({"keep_days": 35.0}, ["1.4"]),
        ({"keep_days": 5.0}, ["1.4", "1.2", "1.1"]),
        ({"quota": 1.00, "when_full": "delete_oldest"}, ["1.4"]),        # down to 0.90
        ({"quota": 0.80, "when_full": "delete_oldest"}, ["1.4", "1.2"]),  # of 8 instances, 5.76 are left
        ({"quota": 0.01, "when_full": "delete_oldest"}, ["1.4", "1.2", "1.1"]),  # 1.3 may still be arriving
        ({"quota": 1.10, "when_full": "delete_oldest"}, []),             # below 95 %
        ({"quota": 0.80, "when_full": "refuse"}, []),
        ({"quota": 0.80, "when_full": "delete_oldest", "keep_days": 35.0}, ["1.4", "1.2"]),
        ({"quota": 0.80, "when_full": "delete_oldest", "keep_days": 1e6}, ["1.4", "1.2"]),  # for ever, in other words
        ({"keep_days": 1e12}, []),
    ],
)
def test_what_is_due(told, expected, filled):
    share = told.pop("quota", 0.0)
    if share:
        told["quota_gb"] = share * tally.stored_bytes(filled.database) / 1e9
    assert uids(retention.due(filled, limits(**told))) == expected


def test_a_deletion_is_told_in_the_feed_in_the_audit_log_and_counted(filled, caplog):
    (study,) = retention.due(filled, limits(keep_days=35.0))
    with caplog.at_level(logging.INFO, logger="tharsis.audit"):
        assert retention.delete(filled, study)
    last = list(changes.since(filled.database))[-1]
    assert (last.kind, last.level, last.uid) == (ChangeKind.DELETED, Level.STUDY, "1.4")
    assert "kept for 35 days" in last.detail
    (told,) = [record.getMessage() for record in caplog.records if record.name == "tharsis.audit"]
    assert "1.4" in told
    assert "'P4'" in told
    assert tally.value(filled.database, tally.STUDIES_DELETED_BY_RETENTION) == 1


def test_a_study_of_which_something_came_meanwhile_stays(filled, make_instance):
    (study,) = retention.due(filled, limits(keep_days=35.0))
    filled.ingest(make_instance(49, StudyInstanceUID="1.4", PatientID="P4"))
    end_jobs(filled)
    assert not retention.delete(filled, study)
    assert "1.4" in stored(filled)


def run(archive, **told):
    overrides = {"archive": {"data": archive.data}, "retention": told}
    settings = load_settings(environment={}, overrides=overrides)
    task = Task(archive, settings, Job(0, "retention", scrubber.SUBJECT), lambda _fraction: None)
    scrubber.do_retention(task)
    (queued,) = [job for job in archive.jobs.recent(states=("queued",)) if job.kind == "retention"]
    return queued.not_before


def test_the_defaults_and_a_dry_run_delete_nothing(filled):
    run(filled)
    run(filled, keep_days=1.0)
    quota = 0.1 * tally.stored_bytes(filled.database) / 1e9
    run(filled, quota_gb=quota, when_full="delete_oldest", keep_days=1.0)
    assert stored(filled) == {"1.1", "1.2", "1.3", "1.4"}


def test_the_job_deletes_what_is_due_and_looks_again(filled, monkeypatch):
    run(filled, keep_days=15.0, dry_run=False)
    assert stored(filled) == {"1.1", "1.3"}
    monkeypatch.setattr(scrubber, "_STUDIES_A_RUN", 1)
    due = run(filled, keep_days=5.0, dry_run=False)
    assert due <= datetime.now(UTC).timestamp() + 1, "there may be more"
    assert stored(filled) == {"1.3"}


def test_a_quota_is_looked_at_every_minute(filled):
    due = run(filled, quota_gb=1.0, when_full="delete_oldest", dry_run=False)
    assert due < datetime.now(UTC).timestamp() + 61


def test_the_command_shows_what_would_go_and_deletes_nothing(filled, tharsis, tmp_path):
    config = tmp_path / "settings.toml"
    config.write_text(f'[archive]\ndata = "{filled.data}"\n[retention]\nkeep_days = 15\n', encoding="utf-8")
    told = tharsis("retention", "--config", config)
    assert told.returncode == 0, told.stderr
    assert "2 studies" in told.stdout
    assert "dry_run is set: nothing is deleted" in told.stdout
    report = json.loads(tharsis("retention", "--json", "--config", config).stdout)
    assert [row["study_instance_uid"] for row in report["due"]] == ["1.4", "1.2"]
    assert report["stored_bytes"] == true_sum(filled)
    assert stored(filled) == {"1.1", "1.2", "1.3", "1.4"}


def test_a_node_makes_room_by_itself_when_it_may(serve, make_file, wait_until, tharsis):
    """The quota is used up: A700, until the oldest studies have gone."""
    from scp import client
    from scp.client import Requestor

    files = [make_file(number, StudyInstanceUID=f"1.{number}", SeriesInstanceUID=f"1.{number}.1") for number in (1, 2)]
    size = files[0].stat().st_size
    quota = 1.5 * size / 1e9
    more = f"[retention]\nquota_gb = {quota:.12f}\nwhen_full = \"delete_oldest\"\ndry_run = false\n"
    node = serve(settle_time_s=0.1, more=more)
    (first,) = client.send(node.peer, files[:1], Requestor())
    assert first.is_stored
    (second,) = client.send(node.peer, files[1:], Requestor())
    assert second.status.code == 0xA700
    assert "quota" in second.status.comment
    archive = Archive(node.data, settle_time_s=0.0)
    for number in (3, 4):  # somebody else fills it further: an import knows no quota of another node
        archive.ingest(make_file(number, StudyInstanceUID=f"1.{number}", SeriesInstanceUID=f"1.{number}.1"))
    archive.database.execute("UPDATE instance SET received_at = '2020-01-01T00:00:00.000+00:00'")
    wait_until(lambda: not archive.jobs.pending())  # what the rules have not seen yet would stay, for a minute
    archive.jobs.push("retention", scrubber.SUBJECT)
    wait_until(lambda: len(stored(archive)) == 1)
    (second,) = client.send(node.peer, files[1:], Requestor())
    assert second.status.code == 0xA700, "one and a half fit, one is stored"
    archive.delete(Level.STUDY, stored(archive).pop())
    (second,) = client.send(node.peer, files[1:], Requestor())
    assert second.is_stored
    assert json.loads(tharsis("status", "--json", "--data", node.data).stdout)["studies_deleted_by_retention"] == 2
