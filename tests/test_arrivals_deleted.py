"""Deletions and the journal of arrivals: what is deleted stays deleted, and nothing goes with it."""

from __future__ import annotations

import sqlite3
import threading
from contextlib import closing, suppress
from pathlib import Path

import pytest
from arriving import LARGE, SMALL, UID, Stop, catalogue_of, cut_power, require_whole

from index import arrival_segments
from index.archive import Archive, Outcome
from index.arrival_blocks import Arrived
from index.arrivals import ArrivalJournal
from index.errors import NotFound
from index.keys import Level


def test_what_was_deleted_stays_deleted_and_leaves_the_journal(tmp_path, arrive, monkeypatch):
    archive = Archive(tmp_path / "data", settle_time_s=0.0)
    before = catalogue_of(archive)
    arrive(archive, 1, PatientName="Secret^Name")
    assert b"Secret^Name" in b"".join(path.read_bytes() for path in (archive.data / "arrivals").iterdir())
    archive.delete(Level.IMAGE, UID.format(1))
    assert b"Secret" not in b"".join(path.read_bytes() for path in (archive.data / "arrivals").iterdir())
    kept = arrive(archive, 2)[1]
    cut_power(archive, monkeypatch, before)  # more than a power cut can take: the deletion was flushed
    again = Archive(tmp_path / "data", settle_time_s=0.0)
    require_whole(again, {2: kept})
    with pytest.raises(NotFound):
        again.open_instance(UID.format(1))


def test_two_deletions_between_a_block_and_its_rows(tmp_path, arrive, monkeypatch):
    archive = Archive(tmp_path / "data", settle_time_s=0.0)
    journal = archive._journal
    other = Archive(tmp_path / "data", settle_time_s=0.0)._journal
    arrive(archive, 1)
    arrived = [Arrived(f"files/a/b/{name}.dcm", "", 4, "0" * 64, "SENDER", b"DICM") for name in "cd"]
    written = [journal.write([each]) for each in arrived]
    for block in written:
        with archive.transaction() as database:
            other.empty(database)
        with archive.transaction() as database:
            journal.note(database, block)
    assert [each.path for block in journal.doubtful(archive.database) for each in block.instances] == [arrived[1].path]


def test_a_deletion_between_a_block_and_its_rows_loses_nothing(tmp_path, arrive, monkeypatch):
    """The block that was written is gone with the others: it is written once more, in the order of the commits."""
    archive = Archive(tmp_path / "data", settle_time_s=0.0)
    arrive(archive, 1, PatientName="Secret^Name")
    other = Archive(tmp_path / "data", settle_time_s=0.0)  # as of another process
    write, deleted = ArrivalJournal.write, []

    def delete_behind(journal, instances):
        written = write(journal, instances)
        if not deleted:
            deleted.append(other.delete(Level.IMAGE, UID.format(1)))
        return written

    before = catalogue_of(archive)
    monkeypatch.setattr(ArrivalJournal, "write", delete_behind)
    sent = {number: arrive(archive, number, LARGE if number == 3 else SMALL)[1] for number in (2, 3, 4)}
    assert deleted == [1]
    assert b"Secret" not in b"".join(path.read_bytes() for path in (archive.data / "arrivals").iterdir())
    with closing(sqlite3.connect(before)) as then:  # what the deletion flushed is in every later state
        then.executescript(
            "DELETE FROM instance; DELETE FROM series; DELETE FROM study; DELETE FROM patient;"
            "UPDATE arrivals SET settled = number, emptied = emptied + 1"
        )
        then.commit()
    for number in (2, 4):
        archive.open_instance(UID.format(number)).path.unlink()
    cut_power(archive, monkeypatch, before)
    require_whole(Archive(tmp_path / "data", settle_time_s=0.0), sent)


def test_a_deletion_that_finds_nothing_takes_nothing_from_the_journal(tmp_path, arrive, monkeypatch):
    archive = Archive(tmp_path / "data", settle_time_s=0.0)
    sent = {number: arrive(archive, number)[1] for number in (1, 2)}
    with pytest.raises(NotFound):
        archive.delete(Level.STUDY, "1.2.3.4")
    before = catalogue_of(archive)
    sent[3] = arrive(archive, 3)[1]
    archive.open_instance(UID.format(3)).path.unlink()
    cut_power(archive, monkeypatch, before)
    require_whole(Archive(tmp_path / "data"), sent)


@pytest.mark.parametrize("comes", ["after it", "between its block and its rows"])
def test_a_deletion_that_is_undone_loses_nothing(tmp_path, arrive, monkeypatch, comes):
    """It has emptied the journal; that its transaction failed then cannot bring that back."""
    archive = Archive(tmp_path / "data", settle_time_s=0.0)
    for number in (1, 2):
        arrive(archive, number)
    before = catalogue_of(archive)
    write, write_one = ArrivalJournal.write, []

    def delete():
        with suppress(ZeroDivisionError), archive.transaction() as database:
            archive._journal.empty(database)
            raise ZeroDivisionError

    def write_and_delete(journal, instances):
        written = write(journal, instances)
        if not write_one:
            write_one.append(written)
            thread = threading.Thread(target=delete)
            thread.start()
            thread.join()
        return written

    if comes == "after it":
        delete()
    else:
        monkeypatch.setattr(ArrivalJournal, "write", write_and_delete)
    sent = {number: arrive(archive, number)[1] for number in (3, 4)}
    for number in sent:
        archive.open_instance(UID.format(number)).path.unlink()
    cut_power(archive, monkeypatch, before)
    archive = Archive(tmp_path / "data")
    for number, content in sent.items():
        assert archive.open_instance(UID.format(number)).path.read_bytes() == content


@pytest.mark.parametrize("at", ["names", "first name", "content"])
def test_a_deletion_that_ends_while_it_empties_the_journal_leaves_one_that_protects(tmp_path, arrive, monkeypatch, at):
    archive = Archive(tmp_path / "data", settle_time_s=0.0)
    sent = {number: arrive(archive, number)[1] for number in (1, 2)}
    unlink, truncated = Path.unlink, []

    def stopping(path, *arguments, **how):
        if path.parent.name == "arrivals":
            if at == "names" or (at == "first name" and truncated):
                raise Stop
            truncated.append(path)
        unlink(path, *arguments, **how)

    def no_flush(path):
        if path.name == "arrivals":
            raise Stop

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", stopping)
        if at == "content":
            patched.setattr(arrival_segments, "flush", no_flush)
        with pytest.raises(Stop):
            Archive(tmp_path / "data", settle_time_s=0.0).delete(Level.IMAGE, UID.format(2))
    before = catalogue_of(archive)
    for number in range(3, 8):
        outcome, sent[number] = arrive(archive, number)
        assert outcome is Outcome.STORED
        archive.open_instance(UID.format(number)).path.unlink()
    cut_power(archive, monkeypatch, before)
    require_whole(Archive(tmp_path / "data", settle_time_s=0.0), sent)
