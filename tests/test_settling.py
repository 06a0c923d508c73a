"""A series is stable when nothing came for it in the settle time, though not every instance moves the job."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from index import intake, jobs
from index.archive import Archive
from index.jobs import SERIES_STABLE, postpone

SETTLE_S = 10.0


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=1_000_000.0)
    clock.time = lambda: clock.now
    monkeypatch.setattr(jobs, "time", clock)
    monkeypatch.setattr(intake, "time", clock)
    return clock


def queued(archive):
    (job,) = (job for job in archive.jobs.recent() if job.state == "queued")
    return job


def changes_of_jobs(archive) -> int:
    """How often a row of a job has been written since the begin of the trace."""
    return sum(statement.startswith("INSERT INTO job") for statement in archive.statements)


@pytest.fixture
def archive(tmp_path):
    archive = Archive(tmp_path, settle_time_s=SETTLE_S)
    archive.statements = []
    archive.database.conn.set_trace_callback(archive.statements.append)
    return archive


@pytest.mark.parametrize("every_s", [0.01, 0.4, 5.0])
def test_the_job_is_never_due_before_the_settle_time_has_passed(archive, clock, make_instance, every_s):
    for number in range(30):
        archive.ingest(make_instance(number + 1))
        assert clock.now + SETTLE_S <= queued(archive).not_before <= clock.now + SETTLE_S + 1.0
        clock.now += every_s
    written = changes_of_jobs(archive)
    assert written == 30 if every_s > 1 else written <= 1 + 30 * every_s


def test_what_is_queued_for_another_time_or_has_failed_gets_the_new_one(archive, clock):
    due = clock.now + SETTLE_S
    for before, attempts in ((due - 0.1, 0), (due + 1.1, 0), (due + 0.5, 2)):
        with archive.transaction() as database:
            jobs.push(database, SERIES_STABLE, "1.2", not_before=before)
            database.execute("UPDATE job SET attempts = ?", (attempts,))
            postpone(database, SERIES_STABLE, "1.2", due=due, slack_s=1.0)
        assert (queued(archive).not_before, queued(archive).attempts) == (due + 1.0, 0)


def test_no_settle_time_is_none(tmp_path, clock, make_instance):
    archive = Archive(tmp_path, settle_time_s=0.0)
    archive.ingest(make_instance())
    assert queued(archive).not_before == clock.now
