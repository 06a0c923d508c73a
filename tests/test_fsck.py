"""fsck: everything that can be wrong between files and catalogue is found, and put right where that loses nothing."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import pytest

from index import archive as archive_module
from index import changes, fsck, orphans
from index.archive import Archive, Outcome
from index.changes import ChangeKind
from index.errors import ArchiveError, CatalogueLost, OutOfSpace
from index.files import FileStore
from index.fsck import Options, Problem
from index.intake import Intake
from index.keys import Level

PREFIX = "1.2.826.0.1.3680043.9.7133"


def uid(number):
    return f"{PREFIX}.9.{number}"


def check(archive, **options):
    return list(fsck.check(archive, Options(**options), lambda *_step: None))


def found(archive, **options):
    return Counter(finding.problem for finding in check(archive, **options))


def flip(path: Path, position: int = -3) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 0xFF
    path.write_bytes(content)


@pytest.fixture
def filled(archive, make_instance):
    for number in range(1, 5):
        archive.ingest(make_instance(number), source_aet="CT1")
    return archive


def path_of(archive, number):
    return archive.open_instance(uid(number)).path


def test_a_whole_archive_has_nothing_wrong(filled):
    assert check(filled) == []
    assert check(filled, repair=True) == []
    assert check(filled, quick=True) == []


def lose(archive):
    path_of(archive, 1).unlink()


def alter(archive):
    flip(path_of(archive, 1))


def shorten(archive):
    os.truncate(path_of(archive, 1), 500)


def add_orphan(archive):
    path_of(archive, 1).with_name("1.2-0.dcm").write_bytes(b"rubbish")


def add_stray(archive):
    (archive.data / "files" / "notes.txt").write_text("mine")


def forget_half_received(archive):
    (archive.incoming / "half.part").write_bytes(b"half")


def miscount_instances(archive):
    archive.database.execute("UPDATE study SET number_of_study_related_instances = 9")


def miscount_series_of_patient(archive):
    archive.database.execute("UPDATE patient SET number_of_patient_related_series = 9")


def mislist_modalities(archive):
    archive.database.execute("UPDATE study SET modalities_in_study = 'CT\\MR'")


def unlist_classes(archive):
    archive.database.execute("UPDATE study SET sop_classes_in_study = ''")


def mis_sum(archive):
    archive.database.execute("UPDATE tally SET value = 1 WHERE name = 'stored_bytes'")


def dangle(archive):
    archive.database.execute("PRAGMA foreign_keys = OFF")
    archive.database.execute("INSERT INTO series (study, series_instance_uid) VALUES (99, '1.1')")


DAMAGES = [
    # damage, found, found by --quick, left after --repair, found once more
    (lose, Problem.MISSING, True, True, Problem.MISSING),
    (alter, Problem.ALTERED, False, True, Problem.MISSING),
    (shorten, Problem.ALTERED, True, True, Problem.MISSING),
    (add_orphan, Problem.ORPHANED, True, False, None),
    (add_stray, Problem.STRAY, True, False, None),
    (forget_half_received, Problem.STRAY, True, False, None),
    (miscount_instances, Problem.COUNT, True, False, None),
    (miscount_series_of_patient, Problem.COUNT, True, False, None),
    (mislist_modalities, Problem.COUNT, True, False, None),
    (unlist_classes, Problem.COUNT, True, False, None),
    (mis_sum, Problem.COUNT, True, False, None),
]


@pytest.mark.parametrize(("damage", "problem", "quick", "left", "again"), DAMAGES, ids=[d[0].__name__ for d in DAMAGES])
def test_what_is_wrong_is_found_and_put_right(damage, problem, quick, left, again, filled):
    damage(filled)
    before = sorted(path for path in filled.data.rglob("*") if not path.name.startswith("catalogue"))
    assert found(filled) == {problem: 1}
    assert found(filled, quick=True) == ({problem: 1} if quick else {})
    after = sorted(path for path in filled.data.rglob("*") if not path.name.startswith("catalogue"))
    assert before == after, "without --repair nothing is changed"
    (finding,) = check(filled, repair=True)
    assert finding.is_solved is not left
    assert finding.action
    assert found(filled) == ({again: 1} if again else {})


def test_a_row_that_points_nowhere_is_found(filled):
    dangle(filled)
    assert Problem.DATABASE in found(filled)


def test_a_catalogue_that_sqlite_finds_broken_is_told(filled):
    filled.database.execute("PRAGMA writable_schema = ON")
    filled.database.execute("DELETE FROM sqlite_schema WHERE name = 'study_date'")
    filled.close()
    assert Problem.DATABASE in found(Archive(filled.data))


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_cannot_be_read_is_told(filled):
    path_of(filled, 1).chmod(0)
    assert found(filled) == {Problem.UNREADABLE: 1}


def test_an_input_output_error_is_told_and_the_file_stays_where_it_is(filled, monkeypatch):
    broken, original = path_of(filled, 1), Path.open

    def refuse(path, *arguments, **keywords):
        if path == broken:
            raise OSError(5, "Input/output error", str(path))
        return original(path, *arguments, **keywords)

    monkeypatch.setattr(Path, "open", refuse)
    (finding,) = check(filled, repair=True)
    assert (finding.problem, finding.is_solved) == (Problem.UNREADABLE, False)
    assert broken.exists()
    assert filled.open_instance(uid(1)).damage == "unreadable"


# Orphans


def test_an_orphan_whose_instance_is_not_stored_is_taken_back_in(filled, make_instance):
    content = make_instance(9, meta={"SourceApplicationEntityTitle": "MR7"})
    path_of(filled, 1).with_name("anything.dcm").write_bytes(content)
    (finding,) = check(filled, repair=True)
    assert "taken back in" in finding.action
    assert path_of(filled, 9).read_bytes() == content
    (row,) = filled.database.execute("SELECT source_aet FROM instance WHERE sop_instance_uid = ?", (uid(9),))
    assert row == ("MR7",)
    assert check(filled) == []


def test_an_orphan_that_is_what_a_lost_instance_was_is_put_back(filled):
    path = path_of(filled, 1)
    content = path.read_bytes()
    path.rename(path.with_name("moved.dcm"))
    assert found(filled) == {Problem.MISSING: 1, Problem.ORPHANED: 1}
    findings = check(filled, repair=True)
    assert [finding.problem for finding in findings] == [Problem.ORPHANED]
    assert path_of(filled, 1).read_bytes() == content
    assert filled.open_instance(uid(1)).damage == ""
    assert check(filled) == []


def test_an_orphan_that_is_what_an_altered_instance_was_is_put_back_and_the_altered_kept_aside(filled):
    path = path_of(filled, 1)
    content = path.read_bytes()
    path.with_name("copy.dcm").write_bytes(content)
    flip(path)
    altered = path.read_bytes()
    check(filled, repair=True)
    assert path_of(filled, 1).read_bytes() == content
    assert [path.read_bytes() for path in (filled.data / "quarantine").rglob("*.dcm")] == [altered]
    assert check(filled) == []


def test_another_version_of_a_missing_instance_takes_its_place(filled, make_instance):
    """As after a replacement, when the catalogue was restored from an older copy: there is no other good file."""
    version = make_instance(1, PatientName="New^Name")
    path_of(filled, 1).with_name("version.dcm").write_bytes(version)
    path_of(filled, 1).unlink()
    (finding,) = check(filled, repair=True)
    assert "put back" in finding.action
    assert path_of(filled, 1).read_bytes() == version
    assert check(filled) == []


def test_another_version_of_an_altered_instance_does_not_take_its_place(filled, make_instance):
    path_of(filled, 1).with_name("older.dcm").write_bytes(make_instance(1, PatientName="Old^Name"))
    alter(filled)
    findings = check(filled, repair=True)
    assert [finding.problem for finding in findings] == [Problem.ORPHANED, Problem.ALTERED]
    assert "quarantined" in findings[0].action


def test_an_orphan_in_another_transfer_syntax_is_no_second_copy(filled, make_instance):
    """The bytes of a data set mean something else in another Transfer Syntax (PS3.5 10)."""
    content = make_instance(1).replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.99")
    path_of(filled, 1).with_name("other.dcm").write_bytes(content)
    (finding,) = check(filled, repair=True)
    assert "quarantined" in finding.action


def test_an_orphan_is_taken_in_whatever_the_policies_say_by_now(tmp_path, make_instance):
    open_handed = Archive(tmp_path / "data")
    open_handed.ingest(make_instance(1))
    nested = b"".join([b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"] * 20)
    nested += b"\xfe\xff\x0d\xe0\0\0\0\0\xfe\xff\xdd\xe0\0\0\0\0" * 20
    deep = make_instance(3)
    at = deep.index(b"\x08\x00\x60\x00CS")
    left = {2: make_instance(2, PatientID="other"), 3: deep[:at] + nested + deep[at:]}
    for number, content in left.items():
        path_of(open_handed, 1).with_name(f"{number}.dcm").write_bytes(content)
    strict = Archive(open_handed.data, patient_mismatch="reject", quota_bytes=1, max_nesting=8)
    assert all("taken back in" in finding.action for finding in check(strict, repair=True))
    assert {number: path_of(strict, number).read_bytes() for number in left} == left


def test_an_orphan_that_the_disk_refuses_to_read_stays_and_the_others_are_settled(filled, make_instance, monkeypatch):
    folder, original = path_of(filled, 1).parent, orphans.read_header
    bad, good = folder / "a.dcm", folder / "b.dcm"
    bad.write_bytes(make_instance(8))
    good.write_bytes(make_instance(9))

    def refuse(path):
        if path == bad:
            raise OSError(5, "Input/output error", str(path))
        return original(path)

    monkeypatch.setattr(orphans, "read_header", refuse)
    first, second = check(filled, repair=True)
    assert (first.is_solved, "Input/output error" in first.action, bad.exists()) == (False, True, True)
    assert (second.is_solved, good.exists()) == (True, False)


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: path.symlink_to("nowhere"), os.mkfifo],
                         ids=["folder", "dangling link", "pipe"])
def test_what_is_no_file_but_named_like_one_is_a_stray(make, filled):
    make(path_of(filled, 1).with_name("odd.dcm"))
    (finding,) = check(filled, repair=True)
    assert (finding.problem, finding.is_solved) == (Problem.STRAY, True)
    assert check(filled) == []


def test_a_folder_that_cannot_be_listed_is_told_and_the_check_goes_on(filled, monkeypatch):
    def refuse(_store):
        raise OSError(5, "Input/output error", "files/1.2")

    monkeypatch.setattr(FileStore, "all_paths", refuse)
    lose(filled)
    assert found(filled) == {Problem.UNREADABLE: 1, Problem.MISSING: 1}


def test_what_somebody_is_just_bringing_is_no_stray(filled):
    received = filled.files.receive(b"half")
    assert check(filled, repair=True) == []
    assert received.exists()
    filled.files.release(received)
    assert not received.exists()


def test_what_a_deletion_left_is_removed_and_does_not_come_back(filled, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Intake, "remove_files", lambda *_arguments: {})  # the process died before
        filled.delete(Level.IMAGE, uid(1))
    left = filled.data / filled.database.execute("SELECT path FROM removal").fetchone()[0]
    assert left.exists()
    assert check(filled) == [], "the catalogue knows that it goes: it may be going at this moment"
    assert check(filled, repair=True) == []
    assert not left.exists()
    assert filled.database.execute("SELECT count(*) FROM instance").fetchone() == (3,)


def test_an_orphan_for_which_there_is_no_room_stays(archive, make_instance, monkeypatch):
    archive.ingest(make_instance(1))
    path = path_of(archive, 1).with_name("orphan.dcm")
    path.write_bytes(make_instance(2))

    def full(*_arguments):
        raise OutOfSpace("no room")

    monkeypatch.setattr(archive.files, "require_space", full)
    (finding,) = check(archive, repair=True)
    assert (finding.is_solved, path.exists()) == (False, True)
    assert list(archive.incoming.iterdir()) == []


def test_taking_an_orphan_in_loses_nothing_when_it_is_interrupted(archive, make_instance, monkeypatch):
    archive.ingest(make_instance(1))
    path_of(archive, 1).with_name("orphan.dcm").write_bytes(make_instance(2))
    with monkeypatch.context() as patch:
        patch.setattr(archive_module.jobs, "push", lambda *_a, **_k: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            check(archive, repair=True)
    archive.clear_incoming()
    check(archive, repair=True)
    assert path_of(archive, 2).read_bytes() == make_instance(2)


# Damaged instances


def test_an_altered_instance_is_repaired_by_whoever_sends_it_again(filled, make_instance):
    flip(path_of(filled, 1))
    check(filled, repair=True)
    assert filled.ingest(make_instance(1)).outcome is Outcome.REPLACED
    assert path_of(filled, 1).read_bytes() == make_instance(1)
    assert check(filled) == []


def test_forget_deletes_the_rows_of_what_is_lost_and_says_so_in_the_feed(filled):
    path_of(filled, 1).unlink()
    flip(path_of(filled, 2))
    assert all(finding.is_solved for finding in check(filled, repair=True, forget=True))
    assert check(filled) == []
    deleted = [change for change in changes.since(filled.database) if change.kind is ChangeKind.DELETED]
    assert {change.uid for change in deleted} == {uid(1), uid(2)}
    assert all("its content is lost" in change.detail for change in deleted)


def test_forget_is_refused_when_no_file_is_found_at_all(filled):
    """As when the file system below files/ is not mounted."""
    away = filled.data / "away"
    (filled.data / "files").rename(away)
    (filled.data / "files").mkdir()
    before = list(changes.since(filled.database))
    with pytest.raises(ArchiveError, match="none of the 4 instances"):
        check(filled, repair=True, forget=True)
    assert list(changes.since(filled.database)) == before
    (filled.data / "files").rmdir()
    away.rename(filled.data / "files")
    assert check(filled) == []


def test_repair_notes_each_damage_once_in_the_feed(filled):
    path_of(filled, 1).unlink()
    for _ in range(3):
        check(filled, repair=True)
    kinds = [change.kind for change in changes.since(filled.database)]
    assert kinds.count(ChangeKind.MISSING) == 1


def test_an_instance_replaced_while_it_is_checked_is_no_finding(filled, make_instance, monkeypatch):
    original = fsck.examine

    def replace_first(root, file, **keywords):
        if file.sop_instance_uid == uid(2):
            Archive(filled.data).ingest(make_instance(2, PatientName="New^Name"), overwrite="always")
        return original(root, file, **keywords)

    monkeypatch.setattr(fsck, "examine", replace_first)
    assert check(filled) == []


def test_pages_cover_every_instance(filled, monkeypatch):
    monkeypatch.setattr(fsck, "_PAGE", 3)
    for number in range(1, 5):
        path_of(filled, number).unlink()
    assert found(filled) == {Problem.MISSING: 4}


def test_an_archive_without_its_catalogue_is_not_opened_as_an_empty_one(filled):
    for path in filled.data.glob("catalogue.sqlite*"):
        path.unlink()
    with pytest.raises(CatalogueLost, match="tharsis rebuild"):
        Archive(filled.data)


# The command


def test_the_command_tells_repairs_and_ends_with_the_right_code(filled, tharsis):
    data = ["--data", filled.data]
    assert tharsis("fsck", *data).returncode == 0
    flip(path_of(filled, 1))
    path_of(filled, 2).with_name("orphan.dcm").write_bytes(b"rubbish")
    told = tharsis("fsck", *data)
    assert told.returncode == 1
    assert "altered: 1 found, 0 put right" in told.stdout
    assert "orphaned: 1 found, 0 put right" in told.stdout
    report = json.loads(tharsis("fsck", "--repair", "--forget", "--json", *data).stdout)
    assert (report["left"], report["found"]) == (0, {"orphaned": 1, "altered": 1})
    assert tharsis("fsck", *data).returncode == 0


@pytest.mark.slow
def test_it_works_while_a_node_is_being_sent_to(serve, tharsis, make_file):
    from scp import client
    from scp.client import Requestor

    node = serve(settle_time_s=0.1)
    files = [make_file(number) for number in range(1, 60)]
    sending = client.send(node.peer, files, Requestor())
    next(sending)
    report = tharsis("fsck", "--json", "--data", node.data)
    assert all(sent.is_stored for sent in sending)
    assert report.returncode == 0, report.stdout
    assert tharsis("fsck", "--json", "--data", node.data).returncode == 0


def test_forget_without_repair_is_wrong_usage(tharsis, tmp_path):
    told = tharsis("fsck", "--forget", "--data", tmp_path)
    assert told.returncode == 2
    assert "--forget needs --repair" in told.stderr
