"""Deletion: durable, and propagated to vectors, derivations, jobs and files."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest

from index import changes, deletion, derivations, embeddings, fsck, jobs
from index.archive import Archive
from index.changes import ChangeKind
from index.derivations import Output
from index.errors import NotFound, UnknownQuery
from index.files import FileStore
from index.fsck import Options
from index.keys import Level
from index.neighbours import SimilarityRequest
from index.orphans import settle_orphans
from index.similarity import Similarity
from index.vectors import Grain, Selection, VectorIndex

PREFIX = "1.2.826.0.1.3680043.9.7133"
SERIES = f"{PREFIX}.2"
MADE = "2.25.1"
MADE_OF_MADE = "2.25.2"


def uid(number):
    return f"{PREFIX}.9.{number}"


def problems(archive):
    return list(fsck.check(archive, Options(), lambda *_step: None))


@pytest.fixture
def worked_on(archive, make_instance):
    """A series of three, one made from it, one made from that; vectors of the first, jobs on all."""
    for number in (1, 2, 3):
        archive.ingest(make_instance(number))
    archive.ingest(make_instance(4, SeriesInstanceUID=MADE))
    archive.ingest(make_instance(5, SeriesInstanceUID=MADE_OF_MADE, StudyInstanceUID="1.9"))
    archive.ingest(make_instance(6, SeriesInstanceUID="1.8", StudyInstanceUID="1.8.1", PatientID="P8"))
    embeddings.register(archive, "m", 4)
    for series, numbers in ((SERIES, (1, 2, 3)), ("1.8", (6,))):
        embeddings.store(archive, "m", series, [(uid(n), 0, np.eye(4, dtype=np.float32)[n % 4]) for n in numbers])
    with archive.transaction() as database:
        derivations.record(database, SERIES, {"kind": "a"}, "d", [Output(MADE, 1)])
        derivations.record(database, MADE, {"kind": "b"}, "d", [Output(MADE_OF_MADE, 1)])
    return archive


def rows(archive, sql):
    return archive.database.execute(sql).fetchall()


def test_what_will_go_is_told(worked_on):
    extent = deletion.extent(worked_on.database, Level.SERIES, SERIES)
    assert (extent.patients, extent.studies, extent.series, extent.instances) == (0, 0, 1, 3)
    assert len(extent.of) == 1
    assert extent.size == sum(worked_on.open_instance(uid(n)).size for n in (1, 2, 3))
    assert set(extent.derived) == {MADE, MADE_OF_MADE}
    assert deletion.extent(worked_on.database, Level.STUDY, f"{PREFIX}.1").derived == (MADE_OF_MADE,)
    with pytest.raises(NotFound):
        deletion.extent(worked_on.database, Level.STUDY, "1.2.3")


def test_the_vectors_go_and_the_index_follows(worked_on):
    index = VectorIndex(worked_on, "m", 8, Grain.SERIES)
    index.refresh()
    assert index.count(Selection()) == 2
    Archive(worked_on.data).delete(Level.SERIES, SERIES)
    index.refresh()
    assert index.count(Selection()) == 1
    assert rows(worked_on, "SELECT count(*) FROM embedding") == [(2,)]
    with pytest.raises(UnknownQuery):
        Similarity(worked_on).search(SimilarityRequest(level=Level.SERIES, series_instance_uid=SERIES))


def test_derivations_from_what_is_gone_go_and_what_was_made_stays(worked_on):
    worked_on.delete(Level.SERIES, SERIES)
    assert derivations.find(worked_on.database, SERIES, {"kind": "a"}) is None
    assert derivations.find(worked_on.database, MADE, {"kind": "b"}) is not None
    assert worked_on.open_instance(uid(4)).path.exists()
    worked_on.delete(Level.SERIES, MADE_OF_MADE)
    assert rows(worked_on, "SELECT count(*) FROM derivation") == [(0,)]
    assert problems(worked_on) == []


def test_a_derivation_goes_only_with_the_last_of_what_it_made(worked_on, make_instance):
    worked_on.ingest(make_instance(7, SeriesInstanceUID="2.25.3"))
    with worked_on.transaction() as database:
        derivations.record(database, SERIES, {"kind": "a"}, "d", [Output(MADE, 1), Output("2.25.3", 1)])
    worked_on.delete(Level.SERIES, "2.25.3")
    assert not derivations.is_whole(worked_on.database, SERIES, {"kind": "a"})
    worked_on.delete(Level.SERIES, MADE)
    assert derivations.find(worked_on.database, SERIES, {"kind": "a"}) is None


def test_jobs_on_what_is_gone_are_cancelled_and_others_stay(worked_on):
    running = worked_on.jobs.claim("w", claim_s=60, max_attempts=5)
    assert running.subject == SERIES
    worked_on.jobs.push("embed", SERIES)
    worked_on.delete(Level.SERIES, SERIES)
    states = {(job.kind, job.state) for job in worked_on.jobs.recent() if job.subject == SERIES}
    assert states == {("series_stable", "cancelled"), ("embed", "cancelled")}
    assert not worked_on.jobs.renew(running, claim_s=60, progress=0.5), "its worker has to notice"
    assert {job.subject for job in worked_on.jobs.recent(states=("queued",))} == {MADE, MADE_OF_MADE, "1.8"}


def test_a_series_that_loses_an_instance_is_looked_at_again(worked_on):
    with worked_on.transaction() as database:
        database.execute("UPDATE job SET state = 'done'")
    worked_on.delete(Level.IMAGE, uid(1))
    assert [job.subject for job in worked_on.jobs.recent(states=("queued",))] == [SERIES]
    assert worked_on.jobs.recent(states=("queued",))[0].kind == jobs.SERIES_STABLE


def test_a_uid_that_two_studies_use_keeps_the_work_on_the_one_that_is_left(archive, make_instance):
    archive.ingest(make_instance(1))
    archive.ingest(make_instance(2, StudyInstanceUID="1.9"))
    archive.delete(Level.STUDY, "1.9")
    assert [job.state for job in archive.jobs.recent()] == ["queued"]


def test_files_that_a_crash_left_are_removed_at_the_next_start(worked_on, monkeypatch):
    removed = []
    unlink = FileStore._unlink

    def die(files, relative):
        if removed:
            raise SystemExit(9)
        removed.append(relative)
        return unlink(files, relative)

    with monkeypatch.context() as patch:
        patch.setattr(FileStore, "_unlink", die)
        with pytest.raises(SystemExit):
            worked_on.delete(Level.SERIES, SERIES)
    reopened = Archive(worked_on.data)
    with pytest.raises(NotFound):
        reopened.open_instance(uid(2))
    assert len(list((reopened.data / "files").rglob("*.dcm"))) == 3 + 2
    assert reopened.finish_removals() == 3
    assert problems(reopened) == []
    assert list(settle_orphans(reopened)) == []


@pytest.mark.parametrize("step", ["_cancel_jobs", "_forget_derivations", "promise_removal"])
def test_a_crash_before_the_commit_deletes_nothing(step, worked_on, monkeypatch):
    def die(*_arguments):
        raise SystemExit(9)

    before = rows(worked_on, "SELECT count(*), (SELECT count(*) FROM embedding) FROM instance")
    with monkeypatch.context() as patch:
        patch.setattr(deletion, step, die)
        with pytest.raises(SystemExit):
            worked_on.delete(Level.SERIES, SERIES)
    assert rows(worked_on, "SELECT count(*), (SELECT count(*) FROM embedding) FROM instance") == before
    assert problems(worked_on) == []
    assert worked_on.delete(Level.SERIES, SERIES) == 3


def test_a_file_on_the_list_of_removals_that_came_to_be_known_is_kept(worked_on):
    """No name is ever used twice; even so, what a row points to is not removed."""
    path = os.path.relpath(worked_on.open_instance(uid(1)).path, worked_on.data)
    with worked_on.transaction() as database:
        deletion.promise_removal(database, [path])
    worked_on.finish_removals()
    assert worked_on.open_instance(uid(1)).path.exists()


def test_the_reason_is_in_the_change_feed(worked_on):
    worked_on.delete(Level.STUDY, f"{PREFIX}.1", reason="by the user")
    last = list(changes.since(worked_on.database))[-1]
    assert (last.kind, last.level, last.detail) == (ChangeKind.DELETED, Level.STUDY, "4 instances: by the user")


def test_the_changes_of_vectors_may_be_forgotten(worked_on):
    """An index that had not seen them reads all rows again."""
    index = VectorIndex(worked_on, "m", 4, Grain.FRAME)
    index.refresh()
    worked_on.delete(Level.IMAGE, uid(1))
    embeddings.store(worked_on, "m", "1.8", [(uid(6), 0, np.ones(4, np.float32))])
    worked_on.database.execute(
        "DELETE FROM embedding_change WHERE seq < (SELECT max(seq) FROM embedding_change)"
    )
    index.refresh()
    fresh = VectorIndex(worked_on, "m", 4, Grain.FRAME)
    fresh.refresh()
    assert index.competing(Selection()).tolist() == fresh.competing(Selection()).tolist()
    np.testing.assert_array_equal(
        index.vectors(index.competing(Selection())), fresh.vectors(fresh.competing(Selection()))
    )


def test_the_command_shows_asks_and_deletes(worked_on, tharsis):
    data = ["--data", worked_on.data]
    shown = tharsis("delete", "SERIES", SERIES, *data)
    assert shown.returncode == 1, "nobody answered"
    assert "2 derived series" in shown.stdout
    assert worked_on.open_instance(uid(1)).path.exists()
    told = json.loads(tharsis("delete", "series", SERIES, "--yes", "--derived", "--json", *data).stdout)
    assert told["deleted"] == 5
    assert rows(worked_on, "SELECT sop_instance_uid FROM instance") == [(uid(6),)]
    assert tharsis("delete", "INSTANCE", uid(6), "--yes", *data).returncode == 0
    assert tharsis("delete", "PATIENT", "P8", "--yes", *data).returncode == 1
    assert problems(worked_on) == []

