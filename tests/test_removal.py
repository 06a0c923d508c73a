"""Files that go with their rows: gone on the disk before the catalogue forgets that they have to go."""

from __future__ import annotations

import errno
import os
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from commands import tidying
from config.settings import RetentionSettings, load_settings
from index import archive as archive_module
from index import deletion, files, fsck, retention
from index.errors import NotRemoved
from index.files import FileStore
from index.instances import Outcome
from index.intake import Intake
from index.keys import Level
from index.orphans import Fate, settle, settle_orphans

PREFIX = "1.2.826.0.1.3680043.9.7133"


class Disk:
    """The names below a folder as the disk has them: each folder's since it was flushed last."""

    def __init__(self, root):
        self.root = root
        self.names = {}
        self.flushed = []
        for folder, _, _ in os.walk(root):
            descriptor = os.open(folder, os.O_RDONLY)
            self.note(descriptor)
            os.close(descriptor)

    def note(self, descriptor):
        with os.scandir(descriptor) as entries:
            self.names[os.fstat(descriptor).st_ino] = {entry.name: entry.inode() for entry in entries}

    def has(self, relative):
        """Whether a power cut now would leave a file of that name."""
        inode = self.root.stat().st_ino
        for part in relative.split("/"):
            inode = self.names.get(inode, {}).get(part)
            if inode is None:
                return False
        return True


@pytest.fixture
def filled(archive, make_instance):
    """Studies 1.1, of a series of three and one of one, and 1.2 of one instance; all of one patient."""
    for number, study, series in ((1, "1.1", "1.1.1"), (2, "1.1", "1.1.1"), (3, "1.1", "1.1.1"), (4, "1.1", "1.1.2"),
                                  (5, "1.2", "1.2.1")):
        archive.ingest(make_instance(number, StudyInstanceUID=study, SeriesInstanceUID=series, PatientID="P"))
    return archive


@pytest.fixture
def disk(filled, monkeypatch):
    disk = Disk(filled.data)
    fsync = os.fsync

    def note(descriptor):
        fsync(descriptor)
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            disk.note(descriptor)
            disk.flushed.append(os.fstat(descriptor).st_ino)

    monkeypatch.setattr(os, "fsync", note)
    return disk


@pytest.fixture
def forgotten(disk, monkeypatch):
    """What the catalogue has forgotten, path → whether a power cut at that moment brings it back."""
    paths = {}
    keep_promise = deletion.keep_promise

    def keep(database, told):
        paths.update({path: disk.has(path) for path in told})
        keep_promise(database, told)

    monkeypatch.setattr(deletion, "keep_promise", keep)
    return paths


def promised(archive):
    return deletion.promised(archive.database, 100)


def leave(archive, monkeypatch, level, uid):
    """Delete as a process does that dies before it has removed any file; return the paths."""
    with monkeypatch.context() as patch:
        patch.setattr(Intake, "remove_files", lambda *_arguments: {})
        archive.delete(level, uid)
    return promised(archive)


@pytest.mark.parametrize(
    ("level", "uid", "instances"),
    [
        pytest.param(Level.IMAGE, f"{PREFIX}.9.1", 1, id="of a series that stays"),
        pytest.param(Level.IMAGE, f"{PREFIX}.9.4", 1, id="the last of its series"),
        pytest.param(Level.SERIES, "1.1.1", 3, id="series"),
        pytest.param(Level.STUDY, "1.1", 4, id="study"),
        pytest.param(Level.PATIENT, "P", 5, id="all there is"),
    ],
)
def test_a_power_cut_after_a_deletion_brings_nothing_back(level, uid, instances, filled, disk, forgotten):
    disk.flushed.clear()
    filled.delete(level, uid)
    assert list(forgotten.values()) == [False] * instances
    assert promised(filled) == []
    assert len(disk.flushed) == 1, "of what is left of the folders, not one a file"


def test_a_power_cut_after_a_replacement_brings_the_old_version_not_back(filled, make_instance, forgotten):
    content = make_instance(
        1, StudyInstanceUID="1.1", SeriesInstanceUID="1.1.1", PatientID="P", PatientName="New^Name"
    )
    filled.ingest(content, overwrite="always")
    assert list(forgotten.values()) == [False]
    assert promised(filled) == []


def test_a_power_cut_after_removals_that_were_finished_brings_nothing_back(filled, disk, forgotten, monkeypatch):
    paths = leave(filled, monkeypatch, Level.STUDY, "1.1")
    disk.flushed.clear()
    assert filled.finish_removals() == 4
    assert forgotten == dict.fromkeys(paths, False)
    assert len(disk.flushed) == 1


def test_removals_of_which_the_files_had_gone_are_flushed_as_well(filled, forgotten, monkeypatch):
    """By a process that died between the two: nobody knows whether the disk has heard of it."""
    paths = leave(filled, monkeypatch, Level.STUDY, "1.1")
    for path in paths:
        filled.files._unlink(path)
    assert filled.finish_removals() == 4
    assert forgotten == dict.fromkeys(paths, False)


def test_a_power_cut_after_a_file_was_settled_brings_it_not_back(filled, forgotten, monkeypatch):
    [path] = leave(filled, monkeypatch, Level.IMAGE, f"{PREFIX}.9.4")
    assert settle(filled, path).fate is Fate.REMOVED
    assert forgotten == {path: False}
    assert promised(filled) == []


@pytest.mark.parametrize("removed", [1, 2])
def test_a_folder_that_another_process_removes_meanwhile_is_flushed_above(removed, tmp_path, monkeypatch):
    store = FileStore(tmp_path, reserve_mb=0)
    for name in ("files/1/2/a.dcm", "files/1/2/b.dcm"):
        store.place(store.receive(b"x"), name)
    flush, flushed = files.flush, []

    def come_first(folder):
        if not flushed:
            for path in (tmp_path / "files/1/2/b.dcm", *(tmp_path / "files/1/2/b.dcm").parents[:removed]):
                (path.rmdir if path.is_dir() else path.unlink)()
        flushed.append(folder)
        flush(folder)

    monkeypatch.setattr(files, "flush", come_first)
    store.remove("files/1/2/a.dcm")
    assert flushed == [tmp_path / "files/1/2", tmp_path / "files/1", tmp_path / "files"][: removed + 1]


def test_where_there_is_no_folder_of_files_nothing_counts_as_removed(filled, monkeypatch):
    """It is not mounted."""
    paths = leave(filled, monkeypatch, Level.STUDY, "1.1")
    (filled.data / "files").rename(filled.data / "elsewhere")
    with pytest.raises(NotRemoved):
        filled.finish_removals()
    assert promised(filled) == paths


@pytest.fixture
def stuck(filled, monkeypatch):
    """Paths of files that the disk refuses to remove: at first those of the instances 1 and 4."""
    paths = {filled.open_instance(f"{PREFIX}.9.{number}").path for number in (1, 4)}
    unlink = Path.unlink

    def refuse(path, missing_ok=False):
        if path in paths:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    return paths


def remaining(archive):
    return set((archive.data / "files").rglob("*.dcm"))


def refused(archive, paths):
    return sorted(path.relative_to(archive.data).as_posix() for path in paths)


def test_files_that_cannot_be_removed_keep_no_others_and_are_told(filled, stuck):
    with pytest.raises(NotRemoved, match=r"remove files/1\.1/.*\.dcm and 1 more \(Input/output error\)") as told:
        filled.delete(Level.PATIENT, "P")
    assert told.value.done == 5
    assert remaining(filled) == stuck
    assert promised(filled) == refused(filled, stuck)
    assert filled.database.execute("SELECT count(*) FROM instance").fetchone() == (0,)


@pytest.mark.parametrize("page", [1, 2, 1000])
def test_removals_are_finished_past_files_that_cannot_be_removed(page, filled, stuck, monkeypatch):
    leave(filled, monkeypatch, Level.PATIENT, "P")
    monkeypatch.setattr(archive_module, "_PAGE", page)
    with pytest.raises(NotRemoved, match="and 1 more") as told:
        filled.finish_removals()
    assert told.value.done == 3
    assert remaining(filled) == stuck
    assert promised(filled) == refused(filled, stuck)
    assert list(settle_orphans(filled)) == []
    stuck.clear()
    assert filled.finish_removals() == 2
    assert remaining(filled) == set()
    assert promised(filled) == []


def test_files_whose_folder_cannot_be_flushed_are_still_to_go(filled, monkeypatch):
    flush = files.flush

    def refuse(folder):
        if folder.name == "1.1.1":
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(folder))
        flush(folder)

    with monkeypatch.context() as patch:
        patch.setattr(files, "flush", refuse)
        with pytest.raises(NotRemoved, match="Input/output error"):
            filled.delete(Level.IMAGE, f"{PREFIX}.9.1")
    assert len(promised(filled)) == 1
    assert filled.finish_removals() == 1
    assert promised(filled) == []


def test_a_replacement_is_stored_though_the_old_file_cannot_be_removed(filled, stuck, make_instance, caplog):
    """Its sender is told the truth; the old file goes later."""
    old = refused(filled, stuck)[0]
    content = make_instance(
        1, StudyInstanceUID="1.1", SeriesInstanceUID="1.1.1", PatientID="P", PatientName="New^Name"
    )
    assert filled.ingest(content, overwrite="always").outcome is Outcome.REPLACED
    assert filled.open_instance(f"{PREFIX}.9.1").path.read_bytes() == content
    assert promised(filled) == [old]
    assert f"refuses to remove {old} (Input/output error)" in caplog.text


@pytest.mark.parametrize("tidy_up", [
    tidying.before_the_start, lambda settings: tidying.after(settings, {1}),
], ids=["before the start", "after a death"])
def test_tidying_up_settles_the_orphans_though_a_file_cannot_be_removed(
    tidy_up, filled, stuck, make_instance, monkeypatch, caplog
):
    leave(filled, monkeypatch, Level.STUDY, "1.1")
    left = filled.incoming / "1-left.part"
    left.write_bytes(b"half")
    stuck.add(left)
    orphan = filled.open_instance(f"{PREFIX}.9.5").path.with_name("orphan.dcm")
    orphan.write_bytes(make_instance(6, StudyInstanceUID="1.2", SeriesInstanceUID="1.2.1", PatientID="P"))
    (filled.data / "node.json").write_text("{}")
    tidy_up(load_settings(environment={}, overrides={"archive": {"data": filled.data}}))
    assert filled.open_instance(f"{PREFIX}.9.6")
    assert "1 taken back in" in caplog.text
    assert "and 1 more (Input/output error)" in caplog.text
    assert f"{left} stays: Input/output error" in caplog.text
    assert len(promised(filled)) == 2


def test_a_check_goes_on_past_a_file_that_cannot_be_removed(filled, stuck, monkeypatch):
    leave(filled, monkeypatch, Level.IMAGE, f"{PREFIX}.9.4")
    filled.open_instance(f"{PREFIX}.9.5").path.write_bytes(b"")
    told = {finding.problem: finding for finding in fsck.check(filled, fsck.Options(repair=True), lambda *_step: None)}
    assert set(told) == {fsck.Problem.UNREADABLE, fsck.Problem.ALTERED}
    assert "Input/output error" in told[fsck.Problem.UNREADABLE].detail
    assert not told[fsck.Problem.UNREADABLE].is_solved


def test_retention_tells_of_files_that_cannot_be_removed_and_goes_on(filled, stuck, caplog):
    limits = RetentionSettings(quota_gb=0.0, when_full="refuse", keep_days=1.0, dry_run=False)
    filled.database.execute("DELETE FROM job WHERE kind = 'series_stable'")  # the rules have seen all of it
    studies = list(retention.due(filled, limits, at=datetime.now(UTC) + timedelta(days=2)))
    assert [retention.delete(filled, study) for study in studies] == [True, True]
    audited = [record.getMessage() for record in caplog.records if record.name == "tharsis.audit"]
    assert sum("deleted study" in line for line in audited) == 2
    assert sum("and 1 more (Input/output error)" in line for line in audited) == 1
    assert remaining(filled) == stuck


def test_the_command_tells_of_a_file_that_cannot_be_removed_in_one_sentence(filled, tharsis):
    stuck = filled.open_instance(f"{PREFIX}.9.1").path
    stuck.unlink()
    stuck.mkdir()  # a file of which even root is refused the removal
    told = tharsis("delete", "STUDY", "1.1", "--yes", "--data", filled.data)
    assert told.returncode == 1
    assert "4 instances deleted." in told.stdout
    [line] = told.stderr.splitlines()
    assert f"the disk refuses to remove {stuck.relative_to(filled.data)} (" in line
    assert remaining(filled) - {stuck} == {filled.open_instance(f"{PREFIX}.9.5").path}
