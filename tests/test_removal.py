"""Files that go with their rows: gone on the disk before the catalogue forgets that they have to go."""

from __future__ import annotations

import os
import stat

import pytest

from index import deletion, files
from index.files import FileStore
from index.intake import Intake
from index.keys import Level
from index.orphans import Fate, settle

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
        patch.setattr(Intake, "remove_files", lambda *_arguments: None)
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
    with pytest.raises(FileNotFoundError):
        filled.finish_removals()
    assert promised(filled) == paths
