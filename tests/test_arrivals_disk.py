"""What was answered, on a disk that has no room or fails: it is kept, and brought back when that can be done."""

from __future__ import annotations

import errno
import sqlite3
from contextlib import closing

import pytest
from arriving import LARGE, SMALL, UID, catalogue_of, cut_power, failing_once, require_whole

from index import arrivals
from index.archive import Archive, Outcome
from index.arrival_blocks import PAGE
from index.arrivals import ArrivalJournal
from index.errors import CatalogueBusy, DiskFailed, NotRecovered, OutOfSpace
from index.files import FileStore
from index.intake import Intake
from index.keys import Level


def test_without_room_to_bring_back_the_archive_stays_closed_and_keeps_the_journal(tmp_path, arrive, monkeypatch):
    archive = Archive(tmp_path / "data", settle_time_s=0.0)
    sent = {1: arrive(archive, 1)[1]}
    archive.open_instance(UID.format(1)).path.unlink()
    cut_power(archive, monkeypatch)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(FileStore, "receive", full)
        with pytest.raises(NotRecovered, match=r"No space.*the journal is kept"):
            Archive(tmp_path / "data", settle_time_s=0.0)
    require_whole(Archive(tmp_path / "data", settle_time_s=0.0), sent)


def test_the_reserve_is_there_to_bring_back_what_was_answered(tmp_path, arrive, monkeypatch):
    """Else the archive would stay closed, for reading as well, where nobody can make room by a deletion."""
    archive = Archive(tmp_path / "data", settle_time_s=0.0)
    before = catalogue_of(archive)
    sent = {number: arrive(archive, number, size)[1] for number, size in ((1, SMALL), (2, LARGE))}
    archive.open_instance(UID.format(1)).path.unlink()
    cut_power(archive, monkeypatch, before)
    require_whole(Archive(tmp_path / "data", settle_time_s=0.0, reserve_mb=1 << 40), sent)


@pytest.mark.parametrize("why", ["no room", "catalogue busy", "disk"])
@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_what_cannot_be_brought_back_now_is_brought_back_later(tmp_path, arrive, monkeypatch, size, why):
    """Neither the journal nor what was received may go before the instance is stored again."""
    archive = Archive(tmp_path / "data", settle_time_s=0.0)
    before, incoming, place = catalogue_of(archive), {}, archive.files.place

    def noting(source, relative, **how):
        incoming[relative] = source
        return place(source, relative, **how)

    monkeypatch.setattr(archive.files, "place", noting)
    content = arrive(archive, 1, size)[1]
    path = archive.open_instance(UID.format(1)).path
    if size == LARGE:  # the disk has it under its first name only
        path.rename(incoming[str(path.relative_to(archive.data))])
    else:
        path.unlink()
    cut_power(archive, monkeypatch, before)
    with monkeypatch.context() as trouble:
        error = {
            "no room": OutOfSpace("the disk is full"),
            "catalogue busy": CatalogueBusy("locked"),
            "disk": OSError(errno.EIO, "Input/output error"),
        }[why]

        def failing(*_, **__):
            raise error

        trouble.setattr(Intake, "store", failing)
        with pytest.raises(NotRecovered):
            Archive(tmp_path / "data", settle_time_s=0.0)
    again = Archive(tmp_path / "data", settle_time_s=0.0)
    require_whole(again, {1: content})
    assert not [path for path in again.incoming.iterdir() if path.stat().st_size]


@pytest.mark.parametrize("told_to", ["a segment that is left", "a deletion", "the next start", "a late segment"])
def test_what_the_disk_has_not_taken_is_written_again_at_the_next_start(
    tmp_path, arrive, monkeypatch, caplog, wait_until, told_to
):
    """The system tells of it once, and shows what it has in memory until then: the journal has the only copy."""
    monkeypatch.setattr(arrivals, "_SEGMENT_BYTES", 3 * PAGE)
    archive = Archive(tmp_path / "data", settle_time_s=0.0)
    sent = {number: arrive(archive, number)[1] for number in (1, 2)}
    told = failing_once(monkeypatch)
    refused = []

    def store(number):
        try:
            sent[number] = arrive(archive, number)[1]
        except (DiskFailed, OSError) as error:
            refused.append(error)

    if told_to == "the next start":
        archive.close()
        archive._journal._lane.held.close()
        archive = Archive(tmp_path / "data", settle_time_s=0.0)
        archive.expect_arrivals()
        wait_until(lambda: told == ["begin-arrivals"] and archive._journal._failure)
    elif told_to == "a deletion":
        with pytest.raises(OSError, match="Input/output error"):
            archive.delete(Level.IMAGE, UID.format(2))
        with pytest.raises(DiskFailed):
            archive.delete(Level.IMAGE, UID.format(2))
    elif told_to == "a late segment":
        monkeypatch.setattr(ArrivalJournal, "_settle_soon", lambda *_: None)
    for number in range(3, 12):
        store(number)
        if archive._journal._settling is not None:
            archive._journal._settling.join()
    assert len(told) == 1
    assert isinstance(refused[-1], DiskFailed)
    assert sum("the disk has not taken all that was stored" in line for line in caplog.messages) == 1
    if told_to != "the next start":  # while somebody stores, others leave it as it is, and take nothing from it
        other = Archive(tmp_path / "data", settle_time_s=0.0)
        with pytest.raises(DiskFailed):
            other.delete(Level.IMAGE, UID.format(2))
        with pytest.raises(DiskFailed):
            arrive(other, 20)
        other.close()

    written, place = set(), FileStore.place

    def placed(files, source, to, **how):
        written.add(to)
        return place(files, source, to, **how)

    monkeypatch.setattr(FileStore, "place", placed)
    archive.close()
    if archive._journal._lane is not None:
        archive._journal._lane.held.close()
    again = Archive(tmp_path / "data", settle_time_s=0.0)
    require_whole(again, sent)
    assert again.open_instance(UID.format(1)).path.relative_to(again.data).as_posix() in written
    assert arrive(again, 30)[0] is Outcome.STORED


def test_what_else_the_disk_has_not_taken_keeps_nobody_from_storing(tmp_path, arrive, monkeypatch, wait_until):
    """At the start of a process, with a journal that stands for nothing."""
    told = failing_once(monkeypatch)
    archive = Archive(tmp_path / "data", settle_time_s=0.0)
    archive.expect_arrivals()
    wait_until(lambda: archive._journal._lane)
    assert arrive(archive, 1)[0] is Outcome.STORED
    assert told


def test_what_was_just_received_may_be_what_the_disk_has_not_taken(tmp_path, arrive, monkeypatch):
    failing_once(monkeypatch)
    archive = Archive(tmp_path / "data", settle_time_s=0.0)
    with pytest.raises(OSError, match="Input/output error"):
        arrive(archive, 1)
    with pytest.raises(DiskFailed):
        arrive(archive, 2)
    archive.close()
    assert arrive(Archive(tmp_path / "data", settle_time_s=0.0), 3)[0] is Outcome.STORED


def test_who_goes_on_beside_a_recovery_stores_and_deletes_again(tmp_path, arrive, monkeypatch):
    """The disk's error is told to each who asks, also when all has been written anew: that is an old one."""
    archive = Archive(tmp_path / "data", settle_time_s=0.0)
    sent = {number: arrive(archive, number)[1] for number in (1, 2)}
    others = [Archive(tmp_path / "data", settle_time_s=0.0) for _ in range(2)]
    failing_once(monkeypatch)
    with pytest.raises(OSError, match="Input/output error"):
        archive.delete(Level.IMAGE, UID.format(2))
    with pytest.raises(DiskFailed):
        others[0].delete(Level.IMAGE, UID.format(2))
    archive.close()
    archive._journal._lane.held.close()
    require_whole(Archive(tmp_path / "data", settle_time_s=0.0), sent)
    failing_once(monkeypatch)
    assert arrive(others[1], 3)[0] is Outcome.STORED
    monkeypatch.undo()
    others[0].delete(Level.IMAGE, UID.format(2))
    assert arrive(others[0], 4)[0] is Outcome.STORED


def test_the_log_of_the_catalogue_is_on_disk_before_the_journal_lets_go(tmp_path, arrive, monkeypatch):
    """What the disk has not taken may have been a part of it."""
    archive = Archive(tmp_path / "data", settle_time_s=0.0)
    arrive(archive, 1)
    failing_once(monkeypatch)
    with pytest.raises(OSError, match="Input/output error"):
        archive.delete(Level.IMAGE, UID.format(2))
    archive.close()
    archive._journal._lane.held.close()
    remove, logs = arrivals.remove, []

    def noted(paths):
        with closing(sqlite3.connect(f"file:{archive.data / 'catalogue.sqlite'}?immutable=1", uri=True)) as alone:
            logs.append(alone.execute("SELECT sop_instance_uid FROM instance").fetchall())
        remove(paths)

    monkeypatch.setattr(arrivals, "remove", noted)
    Archive(tmp_path / "data", settle_time_s=0.0)
    assert logs == [[(UID.format(1),)]]


def test_rows_that_are_lost_as_well_bring_no_file_back_that_the_disk_may_lack(tmp_path, arrive, monkeypatch):
    """The file can be read, and may be nowhere but in memory: what the journal has is written to another one."""
    archive = Archive(tmp_path / "data", settle_time_s=0.0)
    before = catalogue_of(archive)
    content = arrive(archive, 1)[1]
    old = archive.open_instance(UID.format(1)).path.stat().st_ino
    failing_once(monkeypatch)
    with pytest.raises(OSError, match="Input/output error"):
        archive.delete(Level.IMAGE, UID.format(1))
    held = archive.open_instance(UID.format(1)).path.open("rb")  # so that its number is not given away again
    archive._journal._lane.held.close()
    cut_power(archive, monkeypatch, before)
    again = Archive(tmp_path / "data", settle_time_s=0.0)
    require_whole(again, {1: content})
    assert again.open_instance(UID.format(1)).path.stat().st_ino != old
    held.close()
