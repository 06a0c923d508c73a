"""The one door in and out: nothing half-stored, nothing lost, counts that are always right."""

from __future__ import annotations

import hashlib
import random
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pydicom import dcmread

from index import archive as archive_module
from index import catalogue, changes
from index import group_commit as group_commit_module
from index import intake as intake_module
from index.archive import Archive, Outcome
from index.changes import ChangeKind
from index.errors import InstanceConflict, InvalidInstance, NotFound, OutOfSpace, PatientMismatch
from index.files import FileStore
from index.keys import Level
from index.orphans import Fate, settle_orphans
from index.senders import all_senders

ROOT = Path(__file__).resolve().parents[1]
PREFIX = "1.2.826.0.1.3680043.9.7133"
MR = "1.2.840.10008.5.1.4.1.1.4"


def uid(number):
    return f"{PREFIX}.9.{number}"


def stored_files(archive):
    return sorted(path.relative_to(archive.data).as_posix() for path in (archive.data / "files").rglob("*.dcm"))


def kinds(archive):
    return [change.kind for change in changes.since(archive.database)]


def check_consistent(archive):
    """Compare every count, list and file with what a computation from scratch gives."""
    database = archive.database

    def rows(sql):
        return database.execute(sql).fetchall()

    assert rows("PRAGMA foreign_key_check") == []
    below = "FROM instance JOIN series ON series.id = instance.series JOIN study ON study.id = series.study"
    assert rows(
        "SELECT id, number_of_series_related_instances FROM series "
        "EXCEPT SELECT series, count(*) FROM instance GROUP BY series"
    ) == []
    assert rows(
        "SELECT id, number_of_study_related_instances, number_of_study_related_series FROM study "
        f"EXCEPT SELECT study.id, count(*), count(DISTINCT series.id) {below} GROUP BY study.id"
    ) == []
    assert rows(
        "SELECT id, number_of_patient_related_instances, number_of_patient_related_series, "
        "number_of_patient_related_studies FROM patient "
        f"EXCEPT SELECT patient, count(*), count(DISTINCT series.id), count(DISTINCT study.id) {below} GROUP BY patient"
    ) == []
    for study, modalities, classes in rows("SELECT id, modalities_in_study, sop_classes_in_study FROM study"):
        expected = {row[0] for row in rows(f"SELECT modality FROM series WHERE study = {study}")} - {""}
        assert modalities.split("\\") == sorted(expected) or (not modalities and not expected)
        expected = {row[0] for row in rows(f"SELECT sop_class_uid {below} WHERE study.id = {study}")}
        assert classes.split("\\") == sorted(expected)
    assert sorted(row[0] for row in rows("SELECT path FROM instance")) == stored_files(archive)
    for path, size, sha256 in rows("SELECT path, size, sha256 FROM instance"):
        content = (archive.data / path).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (size, sha256)
    assert list(archive.incoming.iterdir()) == []


def test_what_was_sent_is_stored_byte_for_byte(archive, make_instance):
    content = make_instance(1)
    ingested = archive.ingest(content, source_aet="CT1")
    assert ingested.outcome is Outcome.STORED
    assert ingested.sop_instance_uid == uid(1)
    instance = archive.open_instance(uid(1))
    assert instance.path.read_bytes() == content
    assert instance.sha256 == hashlib.sha256(content).hexdigest()
    assert instance.size == len(content)
    assert instance.transfer_syntax_uid == "1.2.840.10008.1.2.1"
    assert kinds(archive) == [ChangeKind.STORED]
    assert [(job.kind, job.subject) for job in archive.jobs.recent()] == [("series_stable", f"{PREFIX}.2")]
    check_consistent(archive)


def test_a_file_in_incoming_is_moved_and_any_other_copied(archive, make_instance, tmp_path):
    own = archive.incoming / "received.part"
    own.write_bytes(make_instance(1))
    outside = tmp_path / "outside.dcm"
    outside.write_bytes(make_instance(2))
    archive.ingest(own)
    archive.ingest(outside)
    assert not own.exists()
    assert outside.exists()
    check_consistent(archive)


def test_a_derived_series_is_not_announced_before_it_is_whole(archive, make_instance):
    archive.ingest(make_instance(1), announce=False)
    assert archive.jobs.pending() == 0


@pytest.mark.parametrize(
    ("expected", "element"),
    [(("1.2.840.10008.5.1.4.1.1.4", uid(1)), "SOPClassUID"),
     (("1.2.840.10008.5.1.4.1.1.2", uid(2)), "SOPInstanceUID")],
)
def test_an_instance_that_the_command_does_not_name_is_refused(expected, element, archive, make_instance):
    with pytest.raises(InvalidInstance) as caught:
        archive.ingest(make_instance(1), expected=expected)
    assert caught.value.element == element
    assert stored_files(archive) == []
    check_consistent(archive)


def test_the_command_may_pad_its_uids(archive, make_instance):
    archive.ingest(make_instance(1), expected=("1.2.840.10008.5.1.4.1.1.2\0", uid(1) + "\0"))


@pytest.mark.parametrize("content", [b"", b"no DICOM", b"\0" * 128 + b"DICM"])
def test_rubbish_is_refused_and_leaves_nothing(content, archive):
    with pytest.raises(InvalidInstance):
        archive.ingest(content)
    check_consistent(archive)
    assert kinds(archive) == []


def test_out_of_space_is_told_before_anything_is_written(archive, make_instance, tmp_path):
    full = Archive(archive.data, reserve_mb=1 << 40)
    own = full.incoming / "received.part"
    own.write_bytes(make_instance(1))
    for source in (make_instance(1), own):
        with pytest.raises(OutOfSpace):
            full.ingest(source)
    check_consistent(full)


# Duplicates, conflicts, replacement


def test_the_same_bytes_again_are_a_duplicate_and_nothing_is_written(archive, make_instance):
    archive.ingest(make_instance(1))
    before = stored_files(archive)
    assert archive.ingest(make_instance(1)).outcome is Outcome.DUPLICATE
    assert stored_files(archive) == before
    assert kinds(archive) == [ChangeKind.STORED]
    check_consistent(archive)


def senders_and_time(archive):
    (row,) = archive.database.execute("SELECT source_aet, received_at FROM instance")
    return row


def age(archive):
    """Make what is stored an old one."""
    archive.database.execute("UPDATE instance SET received_at = '2020-01-01T00:00:00.000+00:00'")


def test_a_duplicate_is_received_now_and_all_who_sent_it_are_remembered(archive, make_instance):
    for title in ("A", "B", "A", "", "B", ""):
        age(archive)
        archive.ingest(make_instance(1), source_aet=title)
        assert senders_and_time(archive)[1] > "2026"
    assert all_senders(senders_and_time(archive)[0]) == ("A", "B", "")


def test_a_duplicate_that_is_sent_again_and_again_writes_nothing(archive, make_instance, monkeypatch):
    written = []
    monkeypatch.setattr(intake_module.catalogue, "note_received_again", lambda *row: written.append(row))
    for _ in range(3):
        archive.ingest(make_instance(1), source_aet="A")
    assert not written
    archive.ingest(make_instance(1), source_aet="B")
    assert len(written) == 1


def test_only_the_first_sender_may_replace_what_is_its_own(archive, make_instance):
    for title in ("A", "B"):
        archive.ingest(make_instance(1), source_aet=title)
    changed = make_instance(1, PatientName="New^Name")
    with pytest.raises(InstanceConflict):
        archive.ingest(changed, source_aet="B", overwrite="same_source")
    assert archive.ingest(changed, source_aet="A", overwrite="same_source").outcome is Outcome.REPLACED
    assert senders_and_time(archive)[0] == "A", "B has not sent this version"


def test_another_file_meta_around_the_same_data_set_is_a_duplicate(archive, make_instance):
    archive.ingest(make_instance(1, meta={"SourceApplicationEntityTitle": "A"}))
    again = make_instance(1, meta={"SourceApplicationEntityTitle": "SOMEBODY_ELSE", "ImplementationVersionName": "X"})
    assert archive.ingest(again).outcome is Outcome.DUPLICATE
    assert archive.ingest(again, overwrite="always").outcome is Outcome.DUPLICATE
    check_consistent(archive)


@pytest.mark.parametrize("change", [{"PatientName": "Doe^John"}, {"StudyDescription": "Chest and more"}])
def test_other_content_is_a_conflict_that_keeps_the_old_and_is_recorded(change, archive, make_instance):
    content = make_instance(1)
    archive.ingest(content)
    with pytest.raises(InstanceConflict):
        archive.ingest(make_instance(1, **change), source_aet="OTHER")
    assert archive.open_instance(uid(1)).path.read_bytes() == content
    reopened = Archive(archive.data)
    assert kinds(reopened) == [ChangeKind.STORED, ChangeKind.CONFLICT]
    assert next(changes.since(reopened.database, 1)).detail == "from OTHER"
    check_consistent(archive)


def test_another_transfer_syntax_is_other_content(archive, make_instance):
    archive.ingest(make_instance(1))
    with pytest.raises(InstanceConflict):
        archive.ingest(make_instance(1, transfer_syntax="1.2.840.10008.1.2"))


@pytest.mark.parametrize(
    ("policy", "sender", "replaced"),
    [("never", "A", False), ("same_source", "A", True), ("same_source", "B", False), ("always", "B", True)],
)
def test_the_policy_decides_who_may_replace(policy, sender, replaced, tmp_path, make_instance):
    archive = Archive(tmp_path / "archive", overwrite=policy)
    archive.ingest(make_instance(1), source_aet="A")
    new = make_instance(1, PatientName="New^Name")
    if replaced:
        assert archive.ingest(new, source_aet=sender).outcome is Outcome.REPLACED
        assert kinds(archive)[-1] is ChangeKind.REPLACED
        assert archive.open_instance(uid(1)).path.read_bytes() == new
    else:
        with pytest.raises(InstanceConflict):
            archive.ingest(new, source_aet=sender)
    check_consistent(archive)


def test_contents_may_alternate_and_return(archive, make_instance):
    versions = [make_instance(1, PatientName=name) for name in ("A", "B", "C")]
    seen = set()
    for version in (0, 1, 0, 1, 2, 1, 0, 2, 2):
        archive.ingest(versions[version], overwrite="always")
        path = archive.open_instance(uid(1)).path
        assert path.read_bytes() == versions[version]
        seen.add(path)
        check_consistent(archive)
    assert len(seen) == 8, "a path must never come to mean other content"


def test_a_reader_keeps_the_version_that_it_opened(archive, make_instance):
    archive.ingest(make_instance(1))
    with archive.open_instance(uid(1)).path.open("rb") as file:
        archive.ingest(make_instance(1, PatientName="New^Name"), overwrite="always")
        assert file.read() == make_instance(1)


def test_a_replacement_may_move_to_another_study_and_patient(archive, make_instance):
    archive.ingest(make_instance(1))
    archive.ingest(make_instance(2))
    elsewhere = {"StudyInstanceUID": "1.9", "SeriesInstanceUID": "1.9.1", "PatientID": "P9"}
    archive.ingest(make_instance(1, **elsewhere), overwrite="always")
    assert archive.open_instance(uid(1)).study_instance_uid == "1.9"
    assert {job.subject for job in archive.jobs.recent()} == {f"{PREFIX}.2", "1.9.1"}
    archive.ingest(make_instance(2, **elsewhere), overwrite="always")
    assert archive.database.execute("SELECT study_instance_uid FROM study").fetchall() == [("1.9",)]
    check_consistent(archive)


def test_a_lost_file_is_repaired_by_whoever_sends_it_again(archive, make_instance):
    archive.ingest(make_instance(1))
    archive.open_instance(uid(1)).path.unlink()
    assert archive.ingest(make_instance(1)).outcome is Outcome.REPLACED
    check_consistent(archive)


@pytest.mark.parametrize("same_size", [True, False])
def test_a_file_altered_on_the_disk_is_no_duplicate_and_is_replaced(same_size, archive, make_instance):
    """Nobody has noticed yet: "already stored" would be an untrue answer to the sender."""
    archive.ingest(make_instance(1))
    path = archive.open_instance(uid(1)).path
    altered = make_instance(1)[:-3] + b"xyz" + b"" if same_size else b"cut off"
    path.write_bytes(altered)
    assert archive.ingest(make_instance(1), overwrite="never").outcome is Outcome.REPLACED
    assert archive.open_instance(uid(1)).path.read_bytes() == make_instance(1)
    assert [path.read_bytes() for path in (archive.data / "quarantine").rglob("*.dcm")] == [altered]
    check_consistent(archive)


# Odd identifiers


@pytest.mark.parametrize("odd", ["../../../../tmp/x", "/etc/passwd", "1.2.abc", "1" * 80, "..", "1/2", 'a"b', "a b"])
@pytest.mark.filterwarnings("ignore:Invalid value for VR UI", "ignore:The value length")
def test_odd_uids_are_stored_safely_and_flagged(odd, archive, make_instance):
    archive.ingest(make_instance(1, StudyInstanceUID=odd, SeriesInstanceUID=odd, SOPInstanceUID=odd))
    assert ChangeKind.UID_NONCONFORMING in kinds(archive)
    path = archive.open_instance(odd).path
    assert path.resolve().is_relative_to(archive.data / "files")
    check_consistent(archive)
    assert archive.delete(Level.IMAGE, odd) == 1
    check_consistent(archive)


def test_a_study_of_another_patient_is_recorded(archive, make_instance):
    archive.ingest(make_instance(1))
    archive.ingest(make_instance(2, PatientID="P2"))
    mismatch = [change for change in changes.since(archive.database) if change.kind is ChangeKind.PATIENT_MISMATCH]
    assert [change.uid for change in mismatch] == [uid(2)]
    assert "'P1'" in mismatch[0].detail
    assert "'P2'" in mismatch[0].detail
    check_consistent(archive)


MISMATCHES = [
    # what the second instance says of its patient, the element to blame; None: it is accepted under either policy
    ({"PatientID": "P2"}, "PatientID"),
    ({"PatientID": "p1"}, "PatientID"),
    ({"IssuerOfPatientID": "H2"}, "IssuerOfPatientID"),
    ({"PatientID": ""}, None),
    ({"PatientID": None}, None),
    ({"PatientName": "Doe^Jane^Maria"}, "no mismatch"),
]


@pytest.mark.parametrize(("says", "element"), MISMATCHES)
@pytest.mark.parametrize("policy", ["accept", "reject"])
def test_the_policy_decides_about_instances_of_another_patient(policy, says, element, tmp_path, make_instance):
    archive = Archive(tmp_path / "archive", patient_mismatch=policy)
    archive.ingest(make_instance(1))
    if policy == "reject" and element not in (None, "no mismatch"):
        with pytest.raises(PatientMismatch, match="another patient") as caught:
            archive.ingest(make_instance(2, **says), source_aet="CT1")
        assert caught.value.element == element
        with pytest.raises(NotFound):
            archive.open_instance(uid(2))
        assert archive.jobs.recent()[0].subject == f"{PREFIX}.2"
        (noted,) = [change for change in changes.since(archive.database) if change.kind is ChangeKind.PATIENT_MISMATCH]
        assert noted.detail.startswith("refused from CT1")
    else:
        assert archive.ingest(make_instance(2, **says)).outcome is Outcome.STORED
        assert (ChangeKind.PATIENT_MISMATCH in kinds(archive)) is (element != "no mismatch")
    check_consistent(archive)


def test_the_same_patient_id_of_two_issuers_is_two_patients(archive, make_instance):
    archive.ingest(make_instance(1, IssuerOfPatientID="H1"))
    archive.ingest(make_instance(2, IssuerOfPatientID="H2", StudyInstanceUID="1.9"))
    assert archive.database.execute("SELECT count(*) FROM patient").fetchone() == (2,)
    check_consistent(archive)


@pytest.mark.parametrize("patient_id", [None, ""])
def test_without_a_patient_id_name_and_birth_date_tell_patients_apart(patient_id, archive, make_instance):
    for number, name in enumerate(["Doe^Jane", "DOE^JANE", "Roe^Max"]):
        archive.ingest(make_instance(number, PatientID=patient_id, PatientName=name, StudyInstanceUID=f"1.{number}"))
    assert archive.database.execute("SELECT patient_id, count(*) FROM patient").fetchall() == [("", 2)]
    check_consistent(archive)


def test_one_series_uid_in_two_studies_is_two_series(archive, make_instance):
    archive.ingest(make_instance(1))
    archive.ingest(make_instance(2, StudyInstanceUID="1.9"))
    assert archive.database.execute("SELECT count(*) FROM series").fetchone() == (2,)
    check_consistent(archive)
    assert archive.delete(Level.STUDY, "1.9") == 1
    assert archive.open_instance(uid(1)).series_instance_uid == f"{PREFIX}.2"
    check_consistent(archive)


# Deletion


@pytest.mark.parametrize(
    ("level", "name", "left"),
    [
        (Level.IMAGE, uid(1), {uid(2), uid(3), uid(4)}),
        (Level.SERIES, f"{PREFIX}.2", {uid(3), uid(4)}),
        (Level.STUDY, f"{PREFIX}.1", {uid(4)}),
        (Level.PATIENT, "P1", set()),
    ],
)
def test_deleting_removes_the_level_and_what_it_leaves_empty(level, name, left, archive, make_instance):
    archive.ingest(make_instance(1))
    archive.ingest(make_instance(2))
    archive.ingest(make_instance(3, SeriesInstanceUID="1.8", Modality="MR", SOPClassUID=MR))
    archive.ingest(make_instance(4, StudyInstanceUID="1.9", SeriesInstanceUID="1.9.1"))
    assert archive.delete(level, name) == 4 - len(left)
    assert {row[0] for row in archive.database.execute("SELECT sop_instance_uid FROM instance")} == left
    assert kinds(archive)[-1] is ChangeKind.DELETED
    check_consistent(archive)
    with pytest.raises(NotFound):
        archive.delete(level, name)


def test_deleting_without_a_name_deletes_nothing(archive, make_instance):
    archive.ingest(make_instance(1, PatientID=""))
    with pytest.raises(NotFound):
        archive.delete(Level.PATIENT, "")
    check_consistent(archive)


def test_a_deleted_instance_may_come_again(archive, make_instance):
    for _ in range(3):
        assert archive.ingest(make_instance(1)).outcome is Outcome.STORED
        archive.delete(Level.IMAGE, uid(1))
        with pytest.raises(NotFound):
            archive.open_instance(uid(1))
    assert list((archive.data / "files").iterdir()) == []


def test_removing_a_deleted_file_late_does_not_touch_its_successor(archive, make_instance, monkeypatch):
    archive.ingest(make_instance(1))
    unlink = FileStore._unlink

    def come_again_first(files, relative):
        monkeypatch.setattr(FileStore, "_unlink", unlink)
        Archive(archive.data).ingest(make_instance(1))
        return unlink(files, relative)

    monkeypatch.setattr(FileStore, "_unlink", come_again_first)
    archive.delete(Level.IMAGE, uid(1))
    assert archive.open_instance(uid(1)).path.exists()
    check_consistent(archive)


# Faults


def fail_before(monkeypatch, owner, name):
    def fail(*_arguments, **_keywords):
        raise OSError(28, "injected")

    monkeypatch.setattr(owner, name, fail)


def fail_after(monkeypatch, owner, name):
    original = getattr(owner, name)

    def fail(*arguments, **keywords):
        original(*arguments, **keywords)
        raise OSError(28, "injected")

    monkeypatch.setattr(owner, name, fail)


FAULTS = {
    "after receiving": (fail_before, archive_module, "scan"),
    "before flushing": (fail_before, archive_module, "flush_and_digest"),
    "before the rows": (fail_before, catalogue, "add_instance"),
    "after the rows": (fail_after, catalogue, "add_instance"),
    "before placing": (fail_before, FileStore, "place"),
    "after placing": (fail_after, FileStore, "place"),
    "before flushing the name": (fail_before, group_commit_module, "flush"),
    "before announcing": (fail_before, archive_module.jobs, "push"),
    "after announcing": (fail_after, archive_module.jobs, "push"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("replace", [False, True])
def test_a_fault_at_any_step_leaves_nothing_and_a_retry_succeeds(fault, replace, archive, make_instance):
    old, new = make_instance(1), make_instance(1, PatientName="New^Name", StudyInstanceUID="1.9")
    if replace:
        archive.ingest(old)
    inject, owner, name = FAULTS[fault]
    before = kinds(archive)
    with pytest.MonkeyPatch.context() as monkeypatch:
        inject(monkeypatch, owner, name)
        with pytest.raises(OSError, match="injected"):
            archive.ingest(new, overwrite="always")
    for view in (archive, Archive(archive.data)):
        check_consistent(view)
        assert kinds(view) == before
        if replace:
            assert view.open_instance(uid(1)).path.read_bytes() == old
        else:
            with pytest.raises(NotFound):
                view.open_instance(uid(1))
    archive.ingest(new, overwrite="always")
    assert archive.open_instance(uid(1)).path.read_bytes() == new
    check_consistent(archive)


def test_content_is_compared_while_nobody_has_to_wait(archive, make_instance, monkeypatch):
    archive.ingest(make_instance(1))
    during = []

    def compare(*arguments):
        during.append(archive.database.conn.in_transaction)
        return original(*arguments)

    original = intake_module.compare
    monkeypatch.setattr(intake_module, "compare", compare)
    assert archive.ingest(make_instance(1)).outcome is Outcome.DUPLICATE
    assert during == [False]


def test_what_is_replaced_after_the_comparison_is_compared_again(archive, make_instance, monkeypatch):
    archive.ingest(make_instance(1))
    other = Archive(archive.data)

    def compare(*arguments):
        standing = original(*arguments)
        monkeypatch.setattr(intake_module, "compare", original)
        other.ingest(make_instance(1, PatientName="New^Name"), overwrite="always")
        return standing

    original = intake_module.compare
    monkeypatch.setattr(intake_module, "compare", compare)
    with pytest.raises(InstanceConflict):
        archive.ingest(make_instance(1))
    assert archive.open_instance(uid(1)).path.read_bytes() == make_instance(1, PatientName="New^Name")
    check_consistent(archive)


def test_a_commit_that_fails_leaves_nothing_and_the_next_one_is_its_own(archive, make_instance, monkeypatch):
    def dangle(files, incoming, relative, **how):
        folders = place(files, incoming, relative, **how)
        archive.database.execute("PRAGMA defer_foreign_keys = ON")
        archive.database.execute("INSERT INTO series (study) VALUES (999)")
        return folders

    place = FileStore.place
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FileStore, "place", dangle)
        with pytest.raises(Exception, match="FOREIGN KEY"):
            archive.ingest(make_instance(1))
    check_consistent(archive)
    assert archive.ingest(make_instance(2)).outcome is Outcome.STORED
    reopened = Archive(archive.data)
    check_consistent(reopened)
    assert reopened.open_instance(uid(2)).path.exists()


def test_an_inner_transaction_that_fails_is_undone_alone(archive):
    def push_and_fail(kind):
        with archive.transaction():
            archive.jobs.push(kind, "1")
            raise KeyError(kind)

    with archive.transaction() as database:
        archive.jobs.push("a", "1")
        with pytest.raises(KeyError):
            push_and_fail("b")
        archive.jobs.push("c", "1")
        assert database.conn.in_transaction
    assert {job.kind for job in Archive(archive.data).jobs.recent()} == {"a", "c"}
    with pytest.raises(KeyError):
        push_and_fail("d")
    assert {job.kind for job in Archive(archive.data).jobs.recent()} == {"a", "c"}


def test_ingest_and_delete_refuse_to_be_part_of_a_transaction(archive, make_instance):
    archive.ingest(make_instance(1))
    with archive.transaction():
        with pytest.raises(RuntimeError, match="transaction"):
            archive.ingest(make_instance(2))
        with pytest.raises(RuntimeError, match="transaction"):
            archive.delete(Level.IMAGE, uid(1))
    check_consistent(archive)


DIE = """
import os, sys
from pathlib import Path
from index import archive as module, catalogue
from index.archive import Archive
from index.files import FileStore

owner = {"archive": module, "catalogue": catalogue, "files": FileStore, "jobs": module.jobs}[sys.argv[3]]
original = getattr(owner, sys.argv[4])

def die(*arguments, **keywords):
    if sys.argv[5] == "after":
        original(*arguments, **keywords)
    os._exit(9)

archive = Archive(Path(sys.argv[1]))
setattr(owner, sys.argv[4], die)
archive.ingest(Path(sys.argv[2]), overwrite="always")
"""


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize(
    ("owner", "name", "when", "committed"),
    [
        ("archive", "scan", "before", False),
        ("archive", "flush_and_digest", "after", False),
        ("catalogue", "add_instance", "after", False),
        ("files", "place", "before", False),
        ("files", "place", "after", False),
        ("jobs", "push", "after", False),
        ("files", "_unlink", "before", True),
    ],
)
def test_a_process_that_dies_leaves_the_old_or_the_new_and_never_half(
    owner, name, when, committed, replace, archive, make_instance, tmp_path
):
    old, new = make_instance(1), make_instance(1, PatientName="New^Name")
    if replace:
        archive.ingest(old)
    source = tmp_path / "source.dcm"
    source.write_bytes(new)
    command = [sys.executable, "-c", DIE, str(archive.data), str(source), owner, name, when]
    died = subprocess.run(command, cwd=ROOT, check=False, timeout=600)
    assert died.returncode == (0 if committed and not replace else 9)
    reopened = Archive(archive.data)
    reopened.clear_incoming()
    if committed or replace:
        assert reopened.open_instance(uid(1)).path.read_bytes() == (new if committed else old)
    else:
        with pytest.raises(NotFound):
            reopened.open_instance(uid(1))
    reopened.ingest(new, overwrite="always")
    assert reopened.open_instance(uid(1)).path.read_bytes() == new
    reopened.finish_removals()
    assert len(list(settle_orphans(reopened))) <= 1
    check_consistent(reopened)


def test_orphans_are_settled_without_losing_any_content(archive, make_instance):
    archive.ingest(make_instance(1))
    stored = archive.open_instance(uid(1)).path
    rubbish, copy, other, unknown = (stored.with_name(f"1.2.{number}-0.dcm") for number in range(4))
    rubbish.write_bytes(b"left by a crash")
    copy.write_bytes(make_instance(1, meta={"ImplementationVersionName": "X"}))
    other.write_bytes(make_instance(1, PatientName="Other"))
    unknown.write_bytes(make_instance(2, meta={"SourceApplicationEntityTitle": "CT1"}))
    fates = {Path(settled.path).name: settled.fate for settled in settle_orphans(archive)}
    assert fates == {
        rubbish.name: Fate.QUARANTINED, copy.name: Fate.REMOVED,
        other.name: Fate.QUARANTINED, unknown.name: Fate.TAKEN_IN,
    }
    quarantined = sorted(path.read_bytes() for path in (archive.data / "quarantine").rglob("*.dcm"))
    assert quarantined == sorted([b"left by a crash", make_instance(1, PatientName="Other")])
    (row,) = archive.database.execute("SELECT source_aet FROM instance WHERE sop_instance_uid = ?", (uid(2),))
    assert row == ("CT1",)
    check_consistent(archive)
    assert not list(settle_orphans(archive))


# Several at once


def test_threads_that_bring_the_same_instances_store_each_once(archive, make_instance):
    contents = [make_instance(number, SeriesInstanceUID=f"1.7.{number % 3}") for number in range(12)]
    start = threading.Barrier(4)

    def work(seed):
        mine = contents[:]
        random.Random(seed).shuffle(mine)
        start.wait()
        return [archive.ingest(content).outcome for content in mine]

    with ThreadPoolExecutor(4) as pool:
        outcomes = Counter(outcome for result in pool.map(work, range(4)) for outcome in result)
    assert outcomes == {Outcome.STORED: 12, Outcome.DUPLICATE: 36}
    assert kinds(archive) == [ChangeKind.STORED] * 12
    check_consistent(archive)


def test_threads_that_replace_and_delete_one_instance_keep_it_whole(archive, make_instance):
    versions = [make_instance(1, PatientName=f"Name{number}") for number in range(4)]

    def work(version):
        for turn in range(8):
            archive.ingest(versions[version], overwrite="always")
            if turn % 3 == 2:
                try:
                    archive.delete(Level.IMAGE, uid(1))
                except NotFound:
                    continue

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    check_consistent(archive)


INGEST = """
import random, sys
from pathlib import Path
from index.archive import Archive

archive = Archive(Path(sys.argv[1]))
paths = sorted(Path(sys.argv[2]).glob("*.dcm"))
random.Random(sys.argv[3]).shuffle(paths)
for path in paths:
    print(archive.ingest(path).outcome)
"""


def test_processes_that_open_a_new_archive_at_once_share_it(make_instance, tmp_path):
    sources = tmp_path / "sources"
    sources.mkdir()
    for number in range(15):
        (sources / f"{number}.dcm").write_bytes(make_instance(number, StudyInstanceUID=f"1.7.{number % 4}"))
    command = [sys.executable, "-c", INGEST, str(tmp_path / "archive"), str(sources)]
    processes = [
        subprocess.Popen([*command, str(seed)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for seed in range(3)
    ]
    outcomes: Counter[str] = Counter()
    for process in processes:
        output, errors = process.communicate(timeout=600)
        assert process.returncode == 0, errors
        outcomes.update(output.split())
    assert outcomes == {"stored": 15, "duplicate": 30}
    check_consistent(Archive(tmp_path / "archive"))


OPEN = """
import sys
from pathlib import Path
from index.archive import Archive

print("ready", flush=True)
for line in sys.stdin:
    Archive(Path(line.strip())).jobs.pending()
    print("opened", flush=True)
"""


def test_processes_that_make_one_archive_at_the_same_moment_all_succeed(tmp_path):
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", OPEN]
    processes = [subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True) for _ in range(4)]
    try:
        assert {process.stdout.readline() for process in processes} == {"ready\n"}
        for turn in range(40):
            for process in processes:
                process.stdin.write(f"{tmp_path / str(turn)}\n")
                process.stdin.flush()
            assert {process.stdout.readline() for process in processes} == {"opened\n"}
    finally:
        for process in processes:
            process.stdin.close()
            process.stdout.close()
            process.wait(300)


def test_a_reader_in_the_middle_of_an_answer_hinders_no_writer(archive, make_instance):
    for number in range(3):
        archive.ingest(make_instance(number))
    with archive.snapshot() as database:
        rows = database.execute("SELECT sop_instance_uid FROM instance ORDER BY id")
        assert rows.fetchone() == (uid(0),)
        Archive(archive.data).ingest(make_instance(8))  # somebody else
        archive.ingest(make_instance(9))  # and this thread itself
        assert [row[0] for row in rows] == [uid(1), uid(2)]
    assert archive.open_instance(uid(9)).path.exists()


def test_the_change_feed_can_be_read_while_writing(archive, make_instance, monkeypatch):
    monkeypatch.setattr(changes, "_PAGE", 2)
    for number in range(5):
        archive.ingest(make_instance(number))
    seen = []
    for change in changes.since(archive.database):
        seen.append(change.seq)
        Archive(archive.data).jobs.push("other", str(change.seq))
        archive.jobs.push("own", str(change.seq))
    assert seen == [1, 2, 3, 4, 5]
    assert [change.seq for change in changes.since(archive.database, 3)] == [4, 5]


def test_threads_that_end_leave_no_connection_open(archive):
    def connections():
        catalogue = str(archive.data.resolve() / "catalogue.sqlite")
        return sum(1 for path in Path("/proc/self/fd").iterdir() if str(path.resolve()).startswith(catalogue))

    archive.jobs.pending()
    for _ in range(40):
        thread = threading.Thread(target=archive.jobs.pending)
        thread.start()
        thread.join()
    assert connections() < 10


# Counts


def test_counts_and_lists_stay_right_over_random_histories(tmp_path, make_instance):
    for seed in range(4):
        chosen = random.Random(seed)
        archive = Archive(tmp_path / f"archive{seed}")
        present: dict[str, bytes] = {}
        for _ in range(40):
            number = chosen.randrange(8)
            if chosen.random() < 0.7:
                study = chosen.randrange(2)
                content = make_instance(
                    number,
                    PatientID=chosen.choice(["P1", "P2", ""]),
                    StudyInstanceUID=f"1.{study}",
                    SeriesInstanceUID=f"1.{chosen.randrange(3)}",
                    Modality=chosen.choice(["CT", "MR", "", "US"]),
                    SOPClassUID=chosen.choice([MR, "1.2.840.10008.5.1.4.1.1.2"]),
                )
                archive.ingest(content, overwrite="always")
                present[uid(number)] = content
            elif present:
                instance = archive.open_instance(chosen.choice(sorted(present)))
                level = chosen.choice([Level.IMAGE, Level.IMAGE, Level.SERIES, Level.STUDY])
                name = {Level.IMAGE: instance.sop_instance_uid, Level.SERIES: instance.series_instance_uid,
                        Level.STUDY: instance.study_instance_uid}[level]
                archive.delete(level, name)
            rows = archive.database.execute("SELECT sop_instance_uid FROM instance").fetchall()
            present = {name: present[name] for (name,) in rows}
            check_consistent(archive)
        for name, content in present.items():
            assert archive.open_instance(name).path.read_bytes() == content


def test_every_real_file_with_its_uids_is_stored_as_it_is(archive, shared_data):
    stored: dict[str, bytes] = {}
    for path in sorted((shared_data / "pydicom" / "src").rglob("*.dcm")):
        if path.stat().st_size > 300_000:
            continue
        try:
            ingested = archive.ingest(path)
        except (InvalidInstance, InstanceConflict):
            continue
        stored.setdefault(ingested.sop_instance_uid, path.read_bytes())
    assert len(stored) > 40
    for name, content in stored.items():
        path = archive.open_instance(name).path
        assert path.read_bytes() == content
        assert dcmread(path, stop_before_pixels=True).file_meta.TransferSyntaxUID
    check_consistent(archive)
