"""What a sender was told is stored, is: also when the power fails before the disk has its file, name or rows."""

from __future__ import annotations

import errno
import hashlib
import shutil
import sqlite3
import threading
from contextlib import closing, suppress
from pathlib import Path

import pytest

from index import arrival_segments, arrivals, catalogue, recovery
from index.archive import Archive, Outcome
from index.arrival_blocks import PAGE, Arrived, Encoder, blocks
from index.arrivals import ArrivalJournal
from index.durable import FileSystem
from index.errors import (
    CatalogueBusy,
    DiskFailed,
    InstanceConflict,
    NotFound,
    NotRecovered,
    OutOfSpace,
    PatientMismatch,
)
from index.files import FileStore
from index.fsck import Options, check
from index.intake import Intake
from index.keys import Level
from index.rebuild import rebuild
from scp.reception import ReceivedFile, Reception

CT = "1.2.840.10008.5.1.4.1.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
UID = "1.2.826.0.1.3680043.9.7133.9.{}"
SMALL, LARGE = 0, 200_000
"""Bytes of pixels: of an object that goes to the journal with its bytes, of one that is flushed beside it."""


@pytest.fixture
def send(make_instance):
    """Store an instance as a C-STORE does, in fragments, and return what became of it and the bytes of its file."""

    def send(archive, number, size=SMALL, **values):
        content = make_instance(number, **({"PixelData": bytes(size)} if size else {}), **values)
        data_set = content[132 + 12 + int.from_bytes(content[140:144], "little") :]
        file = ReceivedFile(Reception(archive.new_file, "SENDER"), (CT, UID.format(number)), EXPLICIT)
        for begin in range(0, len(data_set), 50_000):
            file.write(data_set[begin : begin + 50_000])
        file.close()
        written = file.path.read_bytes()
        known = file.known
        assert bool(known.content) == (len(written) < 160 << 10)
        return archive.ingest(file.path, source_aet="SENDER", received=known).outcome, written

    return send


def catalogue_of(archive):
    """Return the catalogue as it is now, as one file."""
    copy = archive.data.parent / f"catalogue-{len(list(archive.data.parent.iterdir()))}"
    with closing(sqlite3.connect(archive.data / "catalogue.sqlite")) as now, closing(sqlite3.connect(copy)) as then:
        now.backup(then)
    return copy


def cut_power(archive, monkeypatch, catalogue=None):
    """Leave what a power cut may leave: the catalogue, or an older state of it; the system starts anew."""
    archive.close()
    if catalogue is not None:
        for suffix in ("", "-wal", "-shm"):
            (archive.data / f"catalogue.sqlite{suffix}").unlink(missing_ok=True)
        shutil.copy(catalogue, archive.data / "catalogue.sqlite")
    monkeypatch.setattr(arrivals, "boot", lambda: "another one")


def truncate(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def empty(path):
    path.write_bytes(bytes(path.stat().st_size))


def lose(path):
    path.unlink()


def lose_folder(path):
    shutil.rmtree(path.parent.parent)


def require_whole(archive, sent):
    for number, content in sent.items():
        assert archive.open_instance(UID.format(number)).path.read_bytes() == content
    assert list(check(archive, Options(idle_s=1e9), lambda *_step: None)) == []


@pytest.mark.parametrize("harm", [None, truncate, empty, lose, lose_folder])
@pytest.mark.parametrize("size", [SMALL, LARGE])
@pytest.mark.parametrize("has_rows", [True, False])
def test_what_was_answered_is_there_after_a_power_cut(tmp_path, send, monkeypatch, harm, size, has_rows):
    archive = Archive(tmp_path / "data", settle_time_s=0.0)
    before = catalogue_of(archive)
    incoming = {}
    place = archive.files.place

    def noting(source, relative, **how):
        incoming[relative] = source
        return place(source, relative, **how)

    monkeypatch.setattr(archive.files, "place", noting)
    sent = {number: send(archive, number, size)[1] for number in (1, 2, 3)}
    stored = archive.open_instance(UID.format(2))
    if size == LARGE and harm is not None:  # its bytes are flushed under its first name: only the second can be lost
        shutil.copy(stored.path, incoming[str(stored.path.relative_to(archive.data))])
    if harm is not None:
        for number in (1, 3) if harm is lose_folder and size == LARGE else ():
            other = archive.open_instance(UID.format(number)).path
            shutil.copy(other, incoming[str(other.relative_to(archive.data))])
        harm(stored.path)
    cut_power(archive, monkeypatch, None if has_rows else before)

    again = Archive(tmp_path / "data", settle_time_s=0.0)
    require_whole(again, sent)
    assert [row[0] for row in again.database.execute("SELECT source_aet FROM instance")] == ["SENDER"] * 3
    series = again.database.execute("SELECT number_of_series_related_instances FROM series").fetchall()
    assert series == [(3,)]
    again.clear_incoming()
    outcome, content = send(again, 4, size)
    assert outcome is Outcome.STORED
    require_whole(again, {**sent, 4: content})


def test_the_catalogue_may_have_lost_any_number_of_the_last(tmp_path, send, monkeypatch):
    archive = Archive(tmp_path / "data", settle_time_s=0.0)
    states, sent = [], {}
    for number in range(1, 7):
        states.append(catalogue_of(archive))
        sent[number] = send(archive, number, LARGE if number % 2 else SMALL)[1]
    archive.close()
    for lost, state in enumerate(states):
        folder = tmp_path / f"copy-{lost}"
        shutil.copytree(tmp_path / "data", folder)
        copy = Archive(folder, settle_time_s=0.0)
        with monkeypatch.context() as patch:
            cut_power(copy, patch, state)
            require_whole(Archive(folder, settle_time_s=0.0), sent)


def test_a_process_that_dies_makes_nobody_look(tmp_path, send, monkeypatch):
    """What the system holds is there for the next process: the journal is read after the system went down, only."""
    archive = Archive(tmp_path / "data", settle_time_s=0.0)
    send(archive, 1)
    archive.close()

    def fails(*_arguments):
        raise AssertionError("the journal is read")

    monkeypatch.setattr(arrivals.ArrivalJournal, "doubtful", fails)
    Archive(tmp_path / "data", settle_time_s=0.0)


def test_what_was_deleted_stays_deleted_and_leaves_the_journal(tmp_path, send, monkeypatch):
    archive = Archive(tmp_path / "data", settle_time_s=0.0)
    before = catalogue_of(archive)
    send(archive, 1, PatientName="Secret^Name")
    assert b"Secret^Name" in b"".join(path.read_bytes() for path in (archive.data / "arrivals").iterdir())
    archive.delete(Level.IMAGE, UID.format(1))
    assert b"Secret" not in b"".join(path.read_bytes() for path in (archive.data / "arrivals").iterdir())
    kept = send(archive, 2)[1]
    cut_power(archive, monkeypatch, before)  # more than a power cut can take: the deletion was flushed
    again = Archive(tmp_path / "data", settle_time_s=0.0)
    require_whole(again, {2: kept})
    with pytest.raises(NotFound):
        again.open_instance(UID.format(1))


def test_a_version_that_was_replaced_does_not_come_back(tmp_path, send, monkeypatch):
    archive = Archive(tmp_path / "data", settle_time_s=0.0, overwrite="always")
    send(archive, 1, PatientName="Old^Name")
    outcome, new = send(archive, 1, PatientName="New^Name")
    assert outcome is Outcome.REPLACED
    cut_power(archive, monkeypatch)
    require_whole(Archive(tmp_path / "data", settle_time_s=0.0), {1: new})


def test_what_is_refused_is_on_disk_before_it_is_told(tmp_path, send, monkeypatch):
    archive = Archive(tmp_path / "data", settle_time_s=0.0)
    send(archive, 1)
    flushed = []
    monkeypatch.setattr(archive._connections, "flush", lambda: flushed.append(True))
    with pytest.raises(InstanceConflict):
        send(archive, 1, PatientName="Other^Name")
    assert flushed
    assert list(archive.incoming.iterdir()) == []


def test_segments_are_used_in_turn(tmp_path, send, monkeypatch):
    """Blocks whose files have reached the disk make room for others; what is not settled is never overwritten."""
    monkeypatch.setattr(arrivals, "_SEGMENT_BYTES", 3 * 4096)
    archive = Archive(tmp_path / "data", settle_time_s=0.0)
    before = catalogue_of(archive)
    sent, settled = {}, []
    for number in range(1, 20):
        sent[number] = send(archive, number)[1]
        settled.append(arrivals.standing(archive.database, 1).settled)
    if archive._journal._settling is not None:
        archive._journal._settling.join()
    now = arrivals.standing(archive.database, 1)
    assert now.number == 19
    assert now.settled >= now.number - 6
    assert settled == sorted(settled)
    unsettled = [path for block in archive._journal.doubtful(archive.database) for path in block.instances]
    assert len(unsettled) == now.number - now.settled
    for instance in unsettled:
        archive.files.path(instance.path).unlink()
    cut_power(archive, monkeypatch)
    require_whole(Archive(tmp_path / "data", settle_time_s=0.0), sent)
    assert before.exists()


def test_a_block_that_was_cut_short_is_none(tmp_path, send, monkeypatch):
    archive = Archive(tmp_path / "data", settle_time_s=0.0)
    sent = {1: send(archive, 1)[1]}
    before = catalogue_of(archive)
    at = archive._journal._lane.at
    send(archive, 2)
    lost = archive.open_instance(UID.format(2)).path
    cut_power(archive, monkeypatch, before)
    with (archive.data / "arrivals" / "1-0").open("r+b") as segment:
        segment.seek(at + 20)
        segment.write(b"\xff" * 100)
    lost.unlink()
    require_whole(Archive(tmp_path / "data", settle_time_s=0.0), sent)


def test_a_name_is_on_disk_before_the_bytes_of_a_large_object(tmp_path, send):
    archive = Archive(tmp_path / "data", settle_time_s=0.0)
    send(archive, 1)
    assert list(archive.incoming.iterdir()) == []
    send(archive, 2, LARGE)
    ready = list(archive.incoming.iterdir())
    assert ready
    assert all(path.stat().st_size == 0 for path in ready)
    assert list(archive.files.strays(0.0)) == []
    archive.clear_incoming()
    assert send(archive, 3, LARGE)[0] is Outcome.STORED  # also when somebody has tidied them up


def test_a_rebuild_after_a_power_cut_finds_what_only_the_journal_has(tmp_path, send, monkeypatch):
    archive = Archive(tmp_path / "data", settle_time_s=0.0)
    sent = {number: send(archive, number)[1] for number in (1, 2)}
    archive.open_instance(UID.format(2)).path.unlink()
    cut_power(archive, monkeypatch)
    for path in archive.data.glob("catalogue.sqlite*"):
        path.unlink()
    rebuild(archive.data, settle_time_s=0.0, on_file=lambda: None)
    require_whole(Archive(tmp_path / "data", settle_time_s=0.0), sent)


def test_without_room_to_bring_back_the_archive_stays_closed_and_keeps_the_journal(tmp_path, send, monkeypatch):
    archive = Archive(tmp_path / "data", settle_time_s=0.0)
    sent = {1: send(archive, 1)[1]}
    archive.open_instance(UID.format(1)).path.unlink()
    cut_power(archive, monkeypatch)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(FileStore, "receive", full)
        with pytest.raises(NotRecovered, match=r"No space.*the journal is kept"):
            Archive(tmp_path / "data", settle_time_s=0.0)
    require_whole(Archive(tmp_path / "data", settle_time_s=0.0), sent)


def test_the_reserve_is_there_to_bring_back_what_was_answered(tmp_path, send, monkeypatch):
    """Else the archive would stay closed, for reading as well, where nobody can make room by a deletion."""
    archive = Archive(tmp_path / "data", settle_time_s=0.0)
    before = catalogue_of(archive)
    sent = {number: send(archive, number, size)[1] for number, size in ((1, SMALL), (2, LARGE))}
    archive.open_instance(UID.format(1)).path.unlink()
    cut_power(archive, monkeypatch, before)
    require_whole(Archive(tmp_path / "data", settle_time_s=0.0, reserve_mb=1 << 40), sent)


@pytest.mark.parametrize("harm", [truncate, empty, lose])
def test_a_rebuild_after_a_power_cut_takes_nothing_from_the_journal(tmp_path, send, monkeypatch, harm):
    """The old catalogue says that the block had its rows; the new one has none of a file that is lost."""
    archive = Archive(tmp_path / "data", settle_time_s=0.0)
    sent = {number: send(archive, number)[1] for number in (1, 2)}
    harm(archive.open_instance(UID.format(2)).path)
    cut_power(archive, monkeypatch)
    rebuild(archive.data, settle_time_s=0.0, on_file=lambda: None)
    again = Archive(tmp_path / "data", settle_time_s=0.0)
    for number, content in sent.items():
        assert again.open_instance(UID.format(number)).path.read_bytes() == content


def test_two_deletions_between_a_block_and_its_rows(tmp_path, send, monkeypatch):
    archive = Archive(tmp_path / "data", settle_time_s=0.0)
    journal = archive._journal
    other = Archive(tmp_path / "data", settle_time_s=0.0)._journal
    send(archive, 1)
    arrived = [Arrived(f"files/a/b/{name}.dcm", "", 4, "0" * 64, "SENDER", b"DICM") for name in "cd"]
    written = [journal.write([each]) for each in arrived]
    for block in written:
        with archive.transaction() as database:
            other.empty(database)
        with archive.transaction() as database:
            journal.note(database, block)
    assert [each.path for block in journal.doubtful(archive.database) for each in block.instances] == [arrived[1].path]


def test_what_a_sender_chose_is_never_taken_for_a_block(tmp_path, send, monkeypatch):
    """Bytes of instances lie in the journal: what looks like the next block, where one was overwritten, is none."""
    monkeypatch.setattr(arrivals, "_SEGMENT_BYTES", 5 * PAGE)
    forged = Encoder().encoded(b"a guess", 99, [Arrived("../../outside.dcm", "", 4, "0" * 64, "EVIL", b"evil")])
    archive = Archive(tmp_path / "data", settle_time_s=0.0)
    before = catalogue_of(archive)
    everywhere = bytes(forged)[:1024] * 15  # wherever a page begins
    sent = {number: send(archive, number, SMALL)[1] for number in (1, 2, 3)}
    with_it = send(archive, 4, SMALL, PixelData=everywhere)[1]
    cut_power(archive, monkeypatch, before)
    for segment in (0, 1):
        path = archive.data / "arrivals" / f"1-{segment}"
        if path.exists():
            with path.open("ab") as file:
                file.write(bytes(forged))
    require_whole(Archive(tmp_path / "data", settle_time_s=0.0), {**sent, 4: with_it})
    key = (tmp_path / "data" / "arrivals" / "key").read_bytes()
    assert len(key) == 32
    assert list(blocks(_written(tmp_path / "one", bytes(forged)), 1, key)) == []
    assert [block.number for block in blocks(tmp_path / "one", 1, b"a guess")] == [99]


def _written(path, content):
    path.write_bytes(content)
    return path


def test_a_deletion_between_a_block_and_its_rows_loses_nothing(tmp_path, send, monkeypatch):
    """The block that was written is gone with the others: it is written once more, in the order of the commits."""
    archive = Archive(tmp_path / "data", settle_time_s=0.0)
    send(archive, 1, PatientName="Secret^Name")
    other = Archive(tmp_path / "data", settle_time_s=0.0)  # as of another process
    write, deleted = ArrivalJournal.write, []

    def delete_behind(journal, instances):
        written = write(journal, instances)
        if not deleted:
            deleted.append(other.delete(Level.IMAGE, UID.format(1)))
        return written

    before = catalogue_of(archive)
    monkeypatch.setattr(ArrivalJournal, "write", delete_behind)
    sent = {number: send(archive, number, LARGE if number == 3 else SMALL)[1] for number in (2, 3, 4)}
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


def test_each_process_has_a_lane_of_its_own_and_takes_over_that_of_a_dead_one(tmp_path, send, monkeypatch):
    first = Archive(tmp_path / "data", settle_time_s=0.0)
    before = catalogue_of(first)
    second = Archive(tmp_path / "data", settle_time_s=0.0)
    sent = {1: send(first, 1)[1], 2: send(second, 2)[1], 3: send(first, 3)[1]}
    assert {lane: each.number for lane, each in arrivals.standings(first.database).items()} == {1: 2, 2: 1}
    for number in sent:
        first.open_instance(UID.format(number)).path.unlink()
    copied = tmp_path / "copy"
    shutil.copytree(tmp_path / "data", copied)
    with monkeypatch.context() as patch:
        copy = Archive(copied, settle_time_s=0.0)
        cut_power(copy, patch, before)
        require_whole(Archive(copied, settle_time_s=0.0), sent)

    for number in sent:  # they were on disk after all
        path = first.open_instance(UID.format(number)).path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(sent[number])
    first.close()
    first._journal._lane.held.close()  # as the system does when a process dies
    third = Archive(tmp_path / "data", settle_time_s=0.0)
    sent[4] = send(third, 4)[1]
    lanes = arrivals.standings(third.database)
    assert (lanes[1].settled, lanes[1].number, lanes[2].number) == (2, 3, 1)
    third.open_instance(UID.format(4)).path.unlink()
    cut_power(third, monkeypatch)
    require_whole(Archive(tmp_path / "data", settle_time_s=0.0), sent)


def test_a_block_whose_rows_were_undone_brings_nothing(tmp_path, send, monkeypatch):
    """Its sender was told that it failed; whatever was committed later says so, too."""
    archive = Archive(tmp_path / "data", settle_time_s=0.0)
    first = {1: send(archive, 1)[1]}
    with monkeypatch.context() as patch:
        patch.setattr(archive._intake, "_insert", lambda *_arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            send(archive, 2)
    sent = {**first, 3: send(archive, 3)[1]}
    cut_power(archive, monkeypatch)
    again = Archive(tmp_path / "data", settle_time_s=0.0)
    require_whole(again, sent)
    with pytest.raises(NotFound):
        again.open_instance(UID.format(2))
    assert list(again.incoming.iterdir()) == []


@pytest.mark.parametrize("others", [0, 1, 5])
def test_a_block_that_a_dead_process_did_not_commit_hides_no_later_one(tmp_path, send, monkeypatch, others):
    """Its number is given again, to a block whose sender was answered."""
    first = Archive(tmp_path / "data", settle_time_s=0.0)
    sent = {number: send(first, number)[1] for number in range(10, 10 + others)}
    first._journal.write([Arrived("files/1/2/3.dcm", "", 4, "0" * 64, "DEAD", b"dead")])  # and then it is killed
    first.close()
    first._journal._lane.held.close()
    second = Archive(tmp_path / "data", settle_time_s=0.0)
    before = catalogue_of(second)
    sent[1] = send(second, 1)[1]
    assert arrivals.standing(second.database, 1).number == others + 1
    second.open_instance(UID.format(1)).path.unlink()
    cut_power(second, monkeypatch, before)
    require_whole(Archive(tmp_path / "data", settle_time_s=0.0), sent)


def test_who_stores_first_does_not_wait_for_what_others_have_written(tmp_path, send, monkeypatch, wait_until):
    """A lane is taken behind the start of the node."""
    flushed = []
    monkeypatch.setattr(
        arrivals.FileSystem, "flush", lambda _self: flushed.append(threading.current_thread().name)
    )
    archive = Archive(tmp_path / "data")
    archive.expect_arrivals()
    wait_until(lambda: flushed)
    assert send(archive, 1)[0] is Outcome.STORED
    assert flushed == ["begin-arrivals"]


def test_a_start_that_finds_no_lane_leaves_it_to_who_stores_first(tmp_path, send, monkeypatch, wait_until):
    tried, real = [], ArrivalJournal._new_segments

    def new_segments(journal, lane):
        tried.append(threading.current_thread())
        if len(tried) == 1:
            raise OSError("broken")
        return real(journal, lane)

    monkeypatch.setattr(ArrivalJournal, "_new_segments", new_segments)
    archive = Archive(tmp_path / "data")
    archive.expect_arrivals()
    wait_until(lambda: tried and not tried[0].is_alive())
    assert send(archive, 1)[0] is Outcome.STORED
    assert len(tried) == 2
    assert [path.name for path in (archive.data / "arrivals").glob("*.lock")] == ["1.lock"]


def test_a_deletion_that_finds_nothing_takes_nothing_from_the_journal(tmp_path, send, monkeypatch):
    archive = Archive(tmp_path / "data", settle_time_s=0.0)
    sent = {number: send(archive, number)[1] for number in (1, 2)}
    with pytest.raises(NotFound):
        archive.delete(Level.STUDY, "1.2.3.4")
    before = catalogue_of(archive)
    sent[3] = send(archive, 3)[1]
    archive.open_instance(UID.format(3)).path.unlink()
    cut_power(archive, monkeypatch, before)
    require_whole(Archive(tmp_path / "data"), sent)


@pytest.mark.parametrize("comes", ["after it", "between its block and its rows"])
def test_a_deletion_that_is_undone_loses_nothing(tmp_path, send, monkeypatch, comes):
    """It has emptied the journal; that its transaction failed then cannot bring that back."""
    archive = Archive(tmp_path / "data", settle_time_s=0.0)
    for number in (1, 2):
        send(archive, number)
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
    sent = {number: send(archive, number)[1] for number in (3, 4)}
    for number in sent:
        archive.open_instance(UID.format(number)).path.unlink()
    cut_power(archive, monkeypatch, before)
    archive = Archive(tmp_path / "data")
    for number, content in sent.items():
        assert archive.open_instance(UID.format(number)).path.read_bytes() == content


class Stop(Exception):
    """Whatever comes between."""


@pytest.mark.parametrize("why", ["no room", "catalogue busy", "disk"])
@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_what_cannot_be_brought_back_now_is_brought_back_later(tmp_path, send, monkeypatch, size, why):
    """Neither the journal nor what was received may go before the instance is stored again."""
    archive = Archive(tmp_path / "data", settle_time_s=0.0)
    before, incoming, place = catalogue_of(archive), {}, archive.files.place

    def noting(source, relative, **how):
        incoming[relative] = source
        return place(source, relative, **how)

    monkeypatch.setattr(archive.files, "place", noting)
    content = send(archive, 1, size)[1]
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


def test_a_lane_that_nobody_has_used_since_the_start_puts_nothing_in_doubt(tmp_path, send, monkeypatch):
    """A deletion has emptied the journal before: another process that opens the archive leaves who stores alone."""
    data = tmp_path / "data"
    archives = [Archive(data, settle_time_s=0.0) for _ in range(2)]
    for number, archive in enumerate(archives):
        send(archive, number)
    archives[0].delete(Level.IMAGE, UID.format(0))
    for archive in archives:
        archive.close()
        archive._journal._lane.held.close()
    monkeypatch.setattr(arrivals, "boot", lambda: "another one")
    one = Archive(data, settle_time_s=0.0)
    send(one, 3)
    assert {each.boot for each in arrivals.standings(one.database).values()} != {"another one"}
    assert not ArrivalJournal(data, one._connections).is_in_doubt(one.database)
    two = Archive(data, settle_time_s=0.0)
    assert send(two, 4)[0] is Outcome.STORED
    assert not ArrivalJournal(data, one._connections).is_in_doubt(one.database)


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_what_is_stored_while_it_is_brought_back_keeps_its_file(tmp_path, send, monkeypatch, size):
    """Somebody else has committed it between two looks at the catalogue."""
    archive = Archive(tmp_path / "data", settle_time_s=0.0)
    send(archive, 1)
    block, commits = [], archive._intake._commits
    commit, write = commits._commit, archive._journal.write
    monkeypatch.setattr(archive._journal, "write", lambda instances: block.extend(instances) or write(instances))

    def meanwhile(group):
        """The block is written and its rows are not: in front of them, and behind the last look, they come."""
        held = catalogue.find_instance

        def late(database, uid):
            monkeypatch.setattr("index.recovery.find_instance", held)
            commit(group)
            return held(database, uid)

        monkeypatch.setattr("index.recovery.find_instance", late)
        other = Archive(tmp_path / "data", settle_time_s=0.0)
        with suppress(FileNotFoundError):
            recovery._ingest(other, block[-1], trusts_files=True)
        other.close()

    monkeypatch.setattr(commits, "_commit", meanwhile)
    content = send(archive, 2, size)[1]
    assert archive.open_instance(UID.format(2)).path.read_bytes() == content


def failing_once(monkeypatch):
    """Have the system tell once that something could not be written, as it does (syncfs(2))."""
    flush, told = FileSystem.flush, []

    def failing(file_system):
        if not told:
            told.append(threading.current_thread().name)
            raise OSError(errno.EIO, "Input/output error")
        flush(file_system)

    monkeypatch.setattr(FileSystem, "flush", failing)
    return told


@pytest.mark.parametrize("told_to", ["a segment that is left", "a deletion", "the next start", "a late segment"])
def test_what_the_disk_has_not_taken_is_written_again_at_the_next_start(
    tmp_path, send, monkeypatch, caplog, wait_until, told_to
):
    """The system tells of it once, and shows what it has in memory until then: the journal has the only copy."""
    monkeypatch.setattr(arrivals, "_SEGMENT_BYTES", 3 * PAGE)
    archive = Archive(tmp_path / "data", settle_time_s=0.0)
    sent = {number: send(archive, number)[1] for number in (1, 2)}
    told = failing_once(monkeypatch)
    refused = []

    def store(number):
        try:
            sent[number] = send(archive, number)[1]
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
            send(other, 20)
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
    assert send(again, 30)[0] is Outcome.STORED


def test_what_else_the_disk_has_not_taken_keeps_nobody_from_storing(tmp_path, send, monkeypatch, wait_until):
    """At the start of a process, with a journal that stands for nothing."""
    told = failing_once(monkeypatch)
    archive = Archive(tmp_path / "data", settle_time_s=0.0)
    archive.expect_arrivals()
    wait_until(lambda: archive._journal._lane)
    assert send(archive, 1)[0] is Outcome.STORED
    assert told


def test_what_was_just_received_may_be_what_the_disk_has_not_taken(tmp_path, send, monkeypatch):
    failing_once(monkeypatch)
    archive = Archive(tmp_path / "data", settle_time_s=0.0)
    with pytest.raises(OSError, match="Input/output error"):
        send(archive, 1)
    with pytest.raises(DiskFailed):
        send(archive, 2)
    archive.close()
    assert send(Archive(tmp_path / "data", settle_time_s=0.0), 3)[0] is Outcome.STORED


def test_who_goes_on_beside_a_recovery_stores_and_deletes_again(tmp_path, send, monkeypatch):
    """The disk's error is told to each who asks, also when all has been written anew: that is an old one."""
    archive = Archive(tmp_path / "data", settle_time_s=0.0)
    sent = {number: send(archive, number)[1] for number in (1, 2)}
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
    assert send(others[1], 3)[0] is Outcome.STORED
    monkeypatch.undo()
    others[0].delete(Level.IMAGE, UID.format(2))
    assert send(others[0], 4)[0] is Outcome.STORED


def test_the_log_of_the_catalogue_is_on_disk_before_the_journal_lets_go(tmp_path, send, monkeypatch):
    """What the disk has not taken may have been a part of it."""
    archive = Archive(tmp_path / "data", settle_time_s=0.0)
    send(archive, 1)
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


@pytest.mark.parametrize("at", ["names", "first name", "content"])
def test_a_deletion_that_ends_while_it_empties_the_journal_leaves_one_that_protects(tmp_path, send, monkeypatch, at):
    archive = Archive(tmp_path / "data", settle_time_s=0.0)
    sent = {number: send(archive, number)[1] for number in (1, 2)}
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
        outcome, sent[number] = send(archive, number)
        assert outcome is Outcome.STORED
        archive.open_instance(UID.format(number)).path.unlink()
    cut_power(archive, monkeypatch, before)
    require_whole(Archive(tmp_path / "data", settle_time_s=0.0), sent)


def test_two_objects_of_one_uid_are_both_kept(tmp_path, send, monkeypatch):
    """Nobody knows for which of them somebody was answered: one is stored, one lies in quarantine."""
    one, two = (Archive(tmp_path / "data", settle_time_s=0.0) for _ in range(2))
    send(one, 8)
    send(two, 9)
    before = catalogue_of(one)
    send(two, 1, PatientName="Answered")

    def cut(*_):
        raise Stop

    monkeypatch.setattr(one._intake._commits, "_commit", cut)
    with pytest.raises(Stop):
        send(one, 1, PatientName="Never answered")
    cut_power(two, monkeypatch, before)
    one.close()
    again = Archive(tmp_path / "data", settle_time_s=0.0)
    kept = [again.open_instance(UID.format(1)).path, *(again.data / "quarantine").rglob("*.*")]
    contents = b"".join(path.read_bytes() for path in kept if path.is_file())
    assert b"Answered" in contents
    assert b"Never answered" in contents


def test_what_was_refused_does_not_come_in_with_a_new_catalogue(tmp_path, send):
    archive = Archive(tmp_path / "data", settle_time_s=0.0, patient_mismatch="reject")
    send(archive, 1)
    with pytest.raises(PatientMismatch):
        send(archive, 2, PatientID="somebody else")
    archive.close()
    rebuild(archive.data, settle_time_s=0.0, on_file=lambda: None)
    again = Archive(tmp_path / "data", settle_time_s=0.0, patient_mismatch="reject")
    assert [row[0] for row in again.database.execute("SELECT sop_instance_uid FROM instance")] == [UID.format(1)]


def test_two_that_look_whether_somebody_stores_do_not_take_each_other_for_one(tmp_path, send, monkeypatch):
    """Else one of two that start at the same time would open the archive as it is."""
    archive = Archive(tmp_path / "data", settle_time_s=0.0)
    send(archive, 1)
    failing_once(monkeypatch)
    with pytest.raises(OSError, match="Input/output error"):
        archive.delete(Level.IMAGE, UID.format(1))
    other = Archive(tmp_path / "data", settle_time_s=0.0)
    assert not other._journal.is_in_doubt(other.database)
    archive._journal._lane.held.close()
    flock, answers = arrivals.fcntl.flock, []

    def looking(file, operation):
        flock(file, operation)
        if file.name.endswith(".lock") and not answers:
            answers.append(None)
            answers.append(other._journal.is_in_doubt(other.database))

    monkeypatch.setattr(arrivals.fcntl, "flock", looking)
    assert archive._journal.is_in_doubt(archive.database)
    assert answers == [None, True]


def test_rows_that_are_lost_as_well_bring_no_file_back_that_the_disk_may_lack(tmp_path, send, monkeypatch):
    """The file can be read, and may be nowhere but in memory: what the journal has is written to another one."""
    archive = Archive(tmp_path / "data", settle_time_s=0.0)
    before = catalogue_of(archive)
    content = send(archive, 1)[1]
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


def test_what_goes_to_quarantine_goes_there_once(tmp_path, send, monkeypatch):
    """However often it is tried to bring back what comes behind it."""
    archive = Archive(tmp_path / "data", settle_time_s=0.0)
    send(archive, 1, PatientName="Stored")
    other = Archive(tmp_path / "other", settle_time_s=0.0)
    content = send(other, 1, PatientName="Another")[1]
    sha256 = hashlib.sha256(content).hexdigest()
    arrived = Arrived("files/a/b/c.dcm", "", len(content), sha256, "SENDER", content)
    for _ in range(3):
        assert not recovery._ingest(archive, arrived, trusts_files=True)
    kept = [path for path in (archive.data / "quarantine").rglob("*") if path.is_file()]
    assert [path.read_bytes() for path in kept] == [content]
    assert not [path for path in archive.incoming.iterdir() if path.stat().st_size]
