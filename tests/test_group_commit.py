"""Commits that are shared: as few as possible, none delayed, and nobody pays for what another one does wrong."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from index import group_commit
from index.archive import Archive, Outcome
from index.errors import InstanceConflict, OutOfSpace
from index.group_commit import NOTHING, GroupCommit, Written


@pytest.fixture
def commits(archive, tmp_path):
    """A group commit on a table of names, the number of its transactions, and what they have flushed."""

    class Counted:
        def __init__(self):
            self.begun = 0
            self.turns = tmp_path / "turns"

        def transaction(self):
            self.begun += not archive._connections.in_transaction
            return archive._connections.transaction()

    archive.database.execute("CREATE TABLE name (name TEXT UNIQUE)")
    counted = Counted()
    return GroupCommit(counted, archive._journal), counted


def add(name, *folders):
    def work(database):
        database.execute("INSERT INTO name VALUES (?)", (name,))
        return Written(folders)

    return work


def names(archive):
    return [row[0] for row in archive.database.execute("SELECT name FROM name ORDER BY name")]


def together(commits, counted, works):
    """Run all of them while another one is committing: they share the next transaction. Return what each raised."""
    held, go_on = threading.Event(), threading.Event()

    def first(_database):
        held.set()
        go_on.wait(300)
        return NOTHING

    def run(work):
        try:
            commits.run(work)
        except Exception as error:  # noqa: BLE001  (what each got is what the tests look at)
            return error
        else:
            return None

    with ThreadPoolExecutor(len(works) + 1) as pool:
        leading = pool.submit(run, first)
        assert held.wait(300)
        others = [pool.submit(run, work) for work in works]
        pause = threading.Event()
        while len(commits._waiting) < len(works):
            pause.wait(0.01)
        go_on.set()
        assert leading.result() is None
        before = counted.begun
        told = [other.result() for other in others]
    assert counted.begun - before <= 1
    assert counted.begun == 2
    return told


def test_who_waits_shares_one_transaction(archive, commits):
    shared, counted = commits
    assert together(shared, counted, [add(f"n{number}") for number in range(8)]) == [None] * 8
    assert len(names(archive)) == 8


def test_a_single_one_does_not_wait_for_others(archive, commits):
    shared, counted = commits
    shared.run(add("alone"))
    assert (names(archive), counted.begun) == (["alone"], 1)


def test_what_one_of_them_raises_is_its_own(archive, commits):
    shared, counted = commits

    def refuse(database):
        database.execute("INSERT INTO name VALUES ('undone')")
        raise InstanceConflict("no")

    told = together(shared, counted, [add("a"), refuse, add("b"), add("a")])
    assert told[0] is None or told[3] is None
    assert [type(error).__name__ for error in told if error is not None] in (
        ["InstanceConflict", "IntegrityError"], ["IntegrityError", "InstanceConflict"]
    )  # fmt: skip
    assert names(archive) == ["a", "b"]


def test_a_commit_that_fails_fails_all_of_them(archive, commits, monkeypatch, tmp_path):
    """Names of files are on disk before the rows that promise them: when they are not, nothing is stored."""
    shared, counted = commits

    def full(_folder):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(group_commit, "flush", full)
    told = together(shared, counted, [add("a", tmp_path), add("b", tmp_path)])
    assert [error.errno for error in told] == [28, 28]
    assert names(archive) == []
    monkeypatch.undo()
    shared.run(add("a", tmp_path))
    assert names(archive) == ["a"]


def test_a_folder_is_flushed_once_for_all(commits, monkeypatch, tmp_path):
    shared, counted = commits
    flushed = []
    monkeypatch.setattr(group_commit, "flush", flushed.append)
    one, other = tmp_path / "one", tmp_path / "other"
    together(shared, counted, [add("a", one), add("b", one), add("c", other), add("d")])
    assert flushed == [one, other]


def test_many_threads_that_store_the_same_series_lose_nothing(tmp_path, make_instance):
    """Eight senders of five instances each, two of which send the same: each gets its answer, the counts are right."""
    archive = Archive(tmp_path / "shared", settle_time_s=0.0)
    numbers = [[10 * min(sender, 6) + number for number in range(5)] for sender in range(8)]

    def send(mine):
        for number in mine:
            archive.ingest(make_instance(number), source_aet="S")
        archive.close()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(send, numbers))
    [(count,)] = archive.database.execute("SELECT number_of_series_related_instances FROM series").fetchall()
    stored = archive.database.execute("SELECT path FROM instance").fetchall()
    assert count == len(stored) == 35
    assert all(archive.files.path(path).exists() for (path,) in stored)
    assert len([name for paths in archive.files.all_paths() for name in paths]) == 35


def test_the_same_instance_four_times_in_one_commit(archive, make_instance):
    """Twice as it is, once with other content, beside a stranger: one is stored, and each hears what became of his."""
    sent = [make_instance(1), make_instance(1), make_instance(1, PatientName="Other^One"), make_instance(2)]
    held, go_on = threading.Event(), threading.Event()

    def hold(_database):
        held.set()
        go_on.wait(300)
        return NOTHING

    def send(content):
        try:
            return archive.ingest(content).outcome
        except InstanceConflict as conflict:
            return conflict

    with ThreadPoolExecutor(len(sent) + 1) as pool:
        pool.submit(archive._intake._commits.run, hold)
        assert held.wait(300)
        told = [pool.submit(send, content) for content in sent]
        pause = threading.Event()
        while len(archive._intake._commits._waiting) < len(sent):
            pause.wait(0.01)
        go_on.set()
        outcomes = [each.result() for each in told]
    assert outcomes[3] is Outcome.STORED
    by_content = {sent[0]: outcomes[:2], sent[2]: outcomes[2:3]}
    content = archive.open_instance("1.2.826.0.1.3680043.9.7133.9.1").path.read_bytes()
    kept, lost = by_content.pop(content), next(iter(by_content.values()))
    assert sorted(kept) == sorted([Outcome.DUPLICATE, Outcome.STORED])[-len(kept):]
    assert all(isinstance(each, InstanceConflict) for each in lost)
    assert sum(len(paths) for paths in archive.files.all_paths()) == 2
    assert list(archive.incoming.iterdir()) == []


def test_a_full_catalogue_is_told_to_each(archive, make_instance, monkeypatch):
    def full():
        raise OutOfSpace("the disk is full: the catalogue cannot grow, nothing stored")

    monkeypatch.setattr(archive._connections, "transaction", full)
    with pytest.raises(OutOfSpace):
        archive.ingest(make_instance(1))
    assert list(archive.incoming.iterdir()) == []
