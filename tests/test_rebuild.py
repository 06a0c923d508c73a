"""rebuild: the catalogue made again from the files alone is the one that was lost."""

from __future__ import annotations

import errno
import json
import os
import sqlite3
from pathlib import Path

import pytest
from pydicom import dcmread

from config.settings import load_settings
from index import (
    catalogue,
    changes,
    commitments,
    deliveries,
    derivations,
    elsewhere,
    embeddings,
    fsck,
    jobs,
    old_catalogue,
)
from index import rebuild as rebuild_module
from index.archive import Archive
from index.changes import ChangeKind
from index.commitments import Reference
from index.deliveries import Delivery, State, Way
from index.derivations import Output
from index.errors import CatalogueLost
from index.fsck import Options
from index.intake import Intake
from index.keys import Level
from index.old_catalogue import Missing, RebuildError
from index.rebuild import count_files, rebuild
from plugins.worker import Worker

PREFIX = "1.2.826.0.1.3680043.9.7133"
MR = "1.2.840.10008.5.1.4.1.1.4"


def uid(number):
    return f"{PREFIX}.9.{number}"


def problems(archive):
    return list(fsck.check(archive, Options(), lambda *_step: None))


def make_again(data, **keywords):
    return rebuild(data, settle_time_s=0.0, on_file=lambda: None, **keywords)


def lose_catalogue(archive):
    archive.close()
    for path in archive.data.glob("catalogue.sqlite*"):
        path.unlink()


def everything(archive):
    """Every row of what exists, without the numbers of the rows and what only the clock tells."""
    database, told = archive.database, []
    for table, parent in (("patient", ""), ("study", "patient"), ("series", "study"), ("instance", "series")):
        cursor = database.execute(f"SELECT * FROM {table}")
        names = [column[0] for column in cursor.description]
        for values in cursor.fetchall():
            row = dict(zip(names, values, strict=True))
            for name in ("id", parent, "received_at", "verified_at"):
                row.pop(name, None)
            told.append((table, sorted((name, str(value)) for name, value in row.items())))
    return sorted(told)


@pytest.fixture
def filled(archive, make_instance):
    """Two patients, three studies, several series, one of them with a name in Cyrillic."""
    meta = {"SourceApplicationEntityTitle": "CT1"}
    for number in (1, 2):
        archive.ingest(make_instance(number, meta=meta), source_aet="CT1")
    archive.ingest(make_instance(3, SeriesInstanceUID="1.8", Modality="MR", SOPClassUID=MR))
    archive.ingest(make_instance(4, StudyInstanceUID="1.9", SeriesInstanceUID="1.9.1"))
    archive.ingest(make_instance(
        5, StudyInstanceUID="1.7", SeriesInstanceUID="1.7.1", PatientID="P2", SpecificCharacterSet="ISO_IR 192",
        PatientName="Пушкин^Александр",
    ))
    return archive


@pytest.mark.parametrize("state", ["lost", "broken", "whole"])
def test_the_catalogue_is_the_same_again(state, filled):
    before = everything(filled)
    if state == "lost":
        lose_catalogue(filled)
    elif state == "broken":
        filled.close()
        (filled.data / "catalogue.sqlite").write_bytes(b"no database at all" * 1000)
    made = make_again(filled.data)
    again = Archive(filled.data)
    assert everything(again) == before
    assert problems(again) == []
    assert (made.patients, made.studies, made.series, made.instances) == (2, 3, 4, 5)
    assert made.aside == []
    assert bool(made.backup) is (state != "lost")


def test_the_old_catalogue_stays_beside_the_new_one_with_its_log(filled):
    filled.jobs.push("kept", "1.2.3")
    made = make_again(filled.data)
    with sqlite3.connect(filled.data / made.backup) as old:
        assert old.execute("SELECT count(*) FROM job WHERE kind = 'kept'").fetchone() == (1,)
        assert old.execute("SELECT count(*) FROM instance").fetchone() == (5,)
    old.close()
    again = Archive(filled.data)
    assert not [job for job in again.jobs.recent() if job.kind == "kept"]
    assert again.database.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_every_series_is_queued_to_be_looked_at(filled):
    lose_catalogue(filled)
    make_again(filled.data)
    queued = Archive(filled.data).jobs.recent(states=("queued",))
    assert {job.subject for job in queued} == {f"{PREFIX}.2", "1.8", "1.9.1", "1.7.1"}
    assert {job.kind for job in queued} == {"series_stable"}


def received(archive):
    """When the instances 4 and 1 were received, and who has sent them."""
    rows = archive.database.execute(
        "SELECT received_at, source_aet FROM instance WHERE sop_instance_uid IN (?, ?) ORDER BY received_at",
        (uid(4), uid(1)),
    )
    return rows.fetchall()


def test_without_the_old_catalogue_received_is_when_the_file_was_written(filled):
    path = filled.open_instance(uid(4)).path
    os.utime(path, (1_700_000_000, 1_700_000_000))
    lose_catalogue(filled)
    make_again(filled.data)
    (moment, _), (_, senders) = received(Archive(filled.data))
    assert moment == "2023-11-14T22:13:20.000+00:00"
    assert senders == "CT1"


def test_that_a_file_was_received_once_more_and_from_whom_outlives_the_catalogue(filled):
    path = filled.open_instance(uid(4)).path
    filled.ingest(path, source_aet="CT2")
    os.utime(path, (1_700_000_000, 1_700_000_000))
    before = received(filled)
    assert any(senders.endswith("\\CT2") for _, senders in before)
    make_again(filled.data)
    assert received(Archive(filled.data)) == before


def test_of_two_files_of_one_instance_the_newer_stays_and_the_other_is_put_aside(filled, make_instance):
    path = filled.open_instance(uid(1)).path
    older, newer = path.with_name("a.dcm"), path.with_name("z.dcm")
    older.write_bytes(make_instance(1, PatientName="Old^Name"))
    newer.write_bytes(make_instance(1, PatientName="New^Name"))
    os.utime(older, (1_000_000_000, 1_000_000_000))
    os.utime(path, (1_100_000_000, 1_100_000_000))
    os.utime(newer, (1_200_000_000, 1_200_000_000))
    lose_catalogue(filled)
    made = make_again(filled.data)
    again = Archive(filled.data)
    assert str(dcmread(again.open_instance(uid(1)).path).PatientName) == "New^Name"
    assert {Path(each.path).name for each in made.aside} == {path.name, "a.dcm"}
    assert len(list((filled.data / "quarantine").rglob("*.dcm"))) == 2
    assert problems(again) == []


def test_a_file_that_is_no_instance_is_put_aside_and_told(filled):
    filled.open_instance(uid(1)).path.with_name("rubbish.dcm").write_bytes(b"rubbish")
    made = make_again(filled.data)
    assert ["not a DICOM Part 10 file" in each.why for each in made.aside] == [True]
    assert made.instances == 5
    assert problems(Archive(filled.data)) == []


def test_an_alteration_that_the_old_catalogue_can_still_tell_is_not_taken_for_the_truth(filled):
    path = filled.open_instance(uid(1)).path
    content = bytearray(path.read_bytes())
    content[-3] ^= 0xFF
    path.write_bytes(content)
    assert make_again(filled.data).altered == 1
    again = Archive(filled.data)
    assert again.open_instance(uid(1)).damage == "altered"
    assert [finding.problem for finding in problems(again)] == ["altered"]


def test_the_change_feed_goes_on_behind_the_old_one(filled):
    last = max(change.seq for change in changes.since(filled.database))
    make_again(filled.data)
    feed = list(changes.since(Archive(filled.data).database))
    assert feed[0].kind is ChangeKind.REBUILT
    assert feed[0].seq == last + 1
    lose_catalogue(filled)
    make_again(filled.data)
    assert next(changes.since(Archive(filled.data).database)).seq > 1_000_000_000, "more than any feed has"


@pytest.mark.parametrize("step", ["_fill", "_finish", "_make_durable", "_swap"])
def test_an_interrupted_rebuild_has_changed_nothing_and_can_be_done_again(step, filled, monkeypatch):
    def die(*_arguments, **_keywords):
        raise KeyboardInterrupt

    before = everything(filled)
    with monkeypatch.context() as patch:
        patch.setattr(rebuild_module, step, die)
        with pytest.raises(KeyboardInterrupt):
            make_again(filled.data)
    assert everything(Archive(filled.data)) == before
    make_again(filled.data)
    assert everything(Archive(filled.data)) == before
    assert not list(filled.data.glob("*.new*"))


def test_nobody_writes_to_the_old_catalogue_meanwhile(filled, make_instance, monkeypatch):
    tried = []
    original = rebuild_module._finish

    def try_to_write(*arguments):
        with sqlite3.connect(filled.data / "catalogue.sqlite", timeout=0.1) as other:
            try:
                other.execute("DELETE FROM job")
            except sqlite3.OperationalError as error:
                tried.append(str(error))
        other.close()
        original(*arguments)

    monkeypatch.setattr(rebuild_module, "_finish", try_to_write)
    make_again(filled.data)
    assert tried == ["database is locked"]


def test_transactions_of_few_files_make_the_same(filled, monkeypatch):
    before = everything(filled)
    monkeypatch.setattr(rebuild_module, "_BATCH", 2)
    lose_catalogue(filled)
    make_again(filled.data)
    assert everything(Archive(filled.data)) == before
    assert count_files(filled.data) == 5


# What the old catalogue still knows


def test_an_archive_that_stays_open_does_not_write_to_what_was_replaced(filled, make_instance):
    make_again(filled.data)
    with pytest.raises(CatalogueLost, match=r"catalogue\.sqlite is no longer the one that this process opened"):
        filled.ingest(make_instance(6))
    filled.close()
    filled.ingest(make_instance(6))
    assert Archive(filled.data).open_instance(uid(6)).path.exists()


@pytest.mark.parametrize("step", ["_make_durable", "_swap"])
def test_the_old_catalogue_stays_locked_until_it_is_replaced(step, filled, monkeypatch):
    tried = []
    original = getattr(rebuild_module, step)

    def try_to_write(*arguments):
        with sqlite3.connect(filled.data / "catalogue.sqlite", timeout=0.1) as other:
            try:
                other.execute("DELETE FROM job")
            except sqlite3.OperationalError as error:
                tried.append(str(error))
        other.close()
        return original(*arguments)

    monkeypatch.setattr(rebuild_module, step, try_to_write)
    make_again(filled.data)
    assert tried == ["database is locked"]


def test_somebody_who_writes_is_told_of_in_one_sentence(filled, monkeypatch):
    monkeypatch.setattr(old_catalogue, "BUSY_TIMEOUT_S", 0.1)
    with filled.transaction(), pytest.raises(RebuildError, match="another process is writing"):
        make_again(filled.data)


def test_what_was_deleted_does_not_come_back(filled, monkeypatch):
    path = filled.open_instance(uid(4)).path
    relative = path.relative_to(filled.data).as_posix()
    with monkeypatch.context() as patch:
        patch.setattr(Intake, "remove_files", lambda *_arguments: {})  # the process dies before it removes any
        filled.delete(Level.IMAGE, uid(4))
    assert path.exists()
    made = make_again(filled.data)
    again = Archive(filled.data)
    assert (made.instances, made.aside, made.missing) == (4, [], [])
    assert again.database.execute("SELECT path FROM removal").fetchall() == [(relative,)]
    assert again.finish_removals() == 1
    assert not path.exists()


@pytest.mark.parametrize("code", [errno.EMFILE, errno.EACCES, errno.EIO])
def test_a_file_that_cannot_be_read_just_now_ends_it_and_changes_nothing(code, filled, monkeypatch):
    before = everything(filled)

    def refuse(_path):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(rebuild_module, "flush_and_digest", refuse)
        with pytest.raises(RebuildError, match=f"{os.strerror(code)}.*nothing was changed"):
            make_again(filled.data)
    assert everything(Archive(filled.data)) == before
    assert not (filled.data / "quarantine").exists()
    assert make_again(filled.data).instances == 5


@pytest.mark.parametrize("name", ["a.dcm", "z.dcm"])
def test_of_two_files_of_one_instance_the_acknowledged_one_stays(name, filled, make_instance):
    path = filled.open_instance(uid(1)).path
    other = path.with_name(name)
    other.write_bytes(make_instance(1, PatientName="Never^Acknowledged"))
    os.utime(other, (4_000_000_000, 4_000_000_000))
    made = make_again(filled.data)
    assert Archive(filled.data).open_instance(uid(1)).path == path
    assert [Path(each.path).name for each in made.aside] == [name]


@pytest.mark.parametrize("name", ["a.dcm", "z.dcm"])
def test_a_whole_copy_is_preferred_to_the_altered_file(name, filled):
    path = filled.open_instance(uid(1)).path
    path.with_name(name).write_bytes(path.read_bytes())
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    made = make_again(filled.data)
    again = Archive(filled.data)
    assert again.open_instance(uid(1)).path.name == name
    assert problems(again) == []
    assert (made.altered, [each.path for each in made.aside]) == (0, [path.relative_to(filled.data).as_posix()])


def test_an_instance_whose_file_is_gone_is_told(filled):
    path = filled.open_instance(uid(4)).path
    path.unlink()
    made = make_again(filled.data)
    assert made.missing == [Missing(uid(4), path.relative_to(filled.data).as_posix())]
    feed = [change for change in changes.since(Archive(filled.data).database) if change.kind is ChangeKind.MISSING]
    assert [change.uid for change in feed] == [uid(4)]


def test_what_an_orthanc_holds_and_who_sent_what_is_still_known(filled, make_instance):
    filled.ingest(make_instance(6, SeriesInstanceUID="1.6"), source_aet="ORTHANC")  # its File Meta names nobody
    with filled.transaction() as database:
        for place, series in (("series-a", "1.6"), ("series-b", "1.9.1")):
            elsewhere.note_series(database, elsewhere.OrthancSeries(place, "study", series, "listing", "content"))
        elsewhere.note_instance(database, elsewhere.Held(uid(6), "instance-6", "version-6"), "series-a")
        elsewhere.note_instance(database, elsewhere.Held(uid(4), "instance-4", "version-4"), "series-b")
    filled.open_instance(uid(4)).path.unlink()
    make_again(filled.data)
    again = Archive(filled.data)
    assert catalogue.find_instance(again.database, uid(6))["source_aet"] == "ORTHANC"
    assert elsewhere.held(again.database, [uid(6)])[uid(6)].version == "version-6"
    assert elsewhere.all_series(again.database) == {"series-a": "listing", "series-b": ""}, "a gap is fetched again"


def test_what_was_sent_on_is_not_sent_again_and_what_waits_still_is(filled):
    series = filled.open_instance(uid(1)).series_instance_uid
    one, way = filled.open_instance(uid(1)), Way("PACS")
    sent_as = Reference(one.sop_class_uid, one.sop_instance_uid)
    deliveries.record(filled, Delivery(way, uid(1), series, one.sha256, sent_as), State.SENT)
    filled.jobs.push(jobs.ROUTE, series, {"destination": "PACS", "rule": "all"})
    make_again(filled.data)
    again = Archive(filled.data)
    left = {each.sop_instance_uid for each in deliveries.pending(again, series, way, tried_since=0.0)}
    assert left
    assert uid(1) not in left
    job = again.jobs.claim("router/PACS", claim_s=60.0, max_attempts=3, kinds=jobs.ROUTING_KINDS, destination="PACS")
    assert job is not None
    assert job.subject == series


@pytest.mark.parametrize("state", ["queued", "running"])
def test_open_requests_for_storage_commitment_are_taken_over(state, filled):
    reference = Reference("1.2.840.10008.5.1.4.1.1.2", uid(1))
    commitments.ask(filled, "CT1", "1.2.3", [reference], address="192.0.2.1")
    if state == "running":
        job = filled.jobs.claim("n", claim_s=60.0, max_attempts=3, kinds=jobs.NETWORK_KINDS)
        assert job is not None
    assert make_again(filled.data).commitments == 1
    again = Archive(filled.data)
    taken = commitments.get(again, "CT1", "1.2.3")
    assert taken is not None
    assert (taken.state, taken.references, taken.address) == ("requested", (reference,), "192.0.2.1")
    job = again.jobs.claim("m", claim_s=60.0, max_attempts=3, kinds=jobs.NETWORK_KINDS)
    assert job is not None
    assert (job.subject, job.parameters) == ("1.2.3", {"requestor": "CT1"})


def test_the_encoder_that_answered_answers_again(filled):
    for model_id in ("texture-1-0", "learned-1-0"):
        embeddings.register(filled, model_id, 4)
    embeddings.activate(filled, "learned-1-0")
    make_again(filled.data)
    again = Archive(filled.data)
    active, previous = embeddings.active_model(again), embeddings.previous_model(again)
    assert active is not None
    assert previous is not None
    assert (active.model_id, previous.model_id) == ("learned-1-0", "texture-1-0")


def test_a_file_system_without_hard_links_will_do(filled, monkeypatch):
    def refuse(*_arguments):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    before = everything(filled)
    monkeypatch.setattr(Path, "hardlink_to", refuse)
    made = make_again(filled.data)
    assert everything(Archive(filled.data)) == before
    with sqlite3.connect(filled.data / made.backup) as old:
        assert old.execute("SELECT count(*) FROM instance").fetchone() == (5,)
    old.close()


# What this node derived


@pytest.fixture
def settings(tmp_path):
    overrides = {"archive": {"data": tmp_path / "archive"}, "reconstruct": {"voxel_mm": 1.0},
                 "scan_quality": {"enabled": False}}  # fmt: skip
    return load_settings(environment={}, overrides=overrides)


@pytest.mark.slow
@pytest.mark.parametrize("state", ["lost", "whole"])
def test_derived_objects_are_not_made_a_second_time(state, archive, settings, tharsis, tmp_path):
    """Lost: made again under the same UIDs, with the same bytes. Whole: known from the old catalogue, so not made."""
    scan = tmp_path / "scan"
    made = tharsis("simulate-scan", "--phantom", "plaque", "--views", 48, "--rows", 48, "--columns", 64, "--out", scan)
    assert made.returncode == 0, made.stderr
    for path in sorted(scan.iterdir()):
        archive.ingest(path)
    Worker(archive, settings, "w").run_until_idle()

    def rows(sql):
        opened = Archive(archive.data)
        return opened.database.execute(sql).fetchall()

    def derived():
        return rows(
            "SELECT sop_instance_uid, sha256, modality FROM instance JOIN series ON series.id = instance.series "
            "WHERE sop_instance_uid LIKE '2.25.%.3.%' ORDER BY sop_instance_uid"
        )

    def embedded():
        return rows("SELECT count(*) FROM embedding")

    def recorded():
        return rows("SELECT source, recipe, source_digest, outputs FROM derivation ORDER BY source")

    before, vectors, records = derived(), embedded(), recorded()
    assert {row[2] for row in before} >= {"CT"}
    if state == "lost":
        lose_catalogue(archive)
    else:
        archive.close()
    told = make_again(archive.data)
    assert derived() == before
    again = Archive(archive.data, settle_time_s=0.0)
    Worker(again, settings, "w").run_until_idle()
    assert not again.jobs.recent(states=("failed",))
    made_again = [change for change in changes.since(again.database) if change.kind is ChangeKind.DERIVED]
    if state == "lost":
        assert told.derivations == 0
        assert made_again, "carried out again"
    else:
        assert told.derivations == len(records)
        assert not made_again, "not carried out again"
    after = derived()
    assert [row[0] for row in after] == [row[0] for row in before], "the same UIDs, and none besides"
    assert [row for row in after if row[2] == "CT"] == [row for row in before if row[2] == "CT"]
    assert embedded() == vectors
    assert [row[:2] for row in recorded()] == [row[:2] for row in records]


# The command


def test_the_command_makes_it_again_and_the_node_finds_everything(filled, tharsis):
    lose_catalogue(filled)
    data = ["--data", filled.data]
    refused = tharsis("status", *data)
    assert refused.returncode == 1
    assert "tharsis rebuild" in refused.stderr
    assert tharsis("serve", *data, "--port", 0).returncode == 1
    told = tharsis("rebuild", *data)
    assert told.returncode == 0, told.stderr
    assert "there was none" in told.stdout
    report = json.loads(tharsis("rebuild", "--json", *data).stdout)
    assert report["instances"] == 5
    assert report["backup"].startswith("catalogue.sqlite.")
    assert tharsis("fsck", *data).returncode == 0


def test_it_is_refused_while_a_node_runs(serve, tharsis):
    node = serve()
    refused = tharsis("rebuild", "--data", node.data)
    assert refused.returncode == 1
    assert "stop it first" in refused.stderr


@pytest.mark.parametrize("what", ["aside", "missing"])
def test_the_command_fails_when_something_has_no_place_in_the_catalogue(what, filled, tharsis):
    path = filled.open_instance(uid(4)).path
    if what == "missing":
        path.unlink()
    else:
        path.with_name("rubbish.dcm").write_bytes(b"rubbish")
    told = tharsis("rebuild", "--data", filled.data)
    assert told.returncode == 1
    assert (uid(4) if what == "missing" else "rubbish.dcm") in told.stdout


def test_derivations_of_an_older_schema_do_not_stop_it(filled):
    with filled.transaction() as database:
        derivations.record(database, f"{PREFIX}.2", {"kind": "x"}, "d", [Output("1.8", 1)])
        database.execute("ALTER TABLE derivation_output RENAME COLUMN instances TO other")
    filled.close()
    assert make_again(filled.data).derivations == 0
