"""What a sender was told is stored, is: also when the power fails before the disk has its file, name or rows."""

from __future__ import annotations

import hashlib
import shutil
import threading
from contextlib import suppress

import pytest
from arriving import (
    LARGE,
    SMALL,
    UID,
    Stop,
    catalogue_of,
    cut_power,
    empty,
    failing_once,
    lose,
    lose_folder,
    require_whole,
    truncate,
    written,
)

from index import arrivals, catalogue, recovery
from index.archive import Archive, Outcome
from index.arrival_blocks import PAGE, Arrived, Encoder, blocks
from index.arrivals import ArrivalJournal
from index.errors import InstanceConflict, NotFound, PatientMismatch
from index.keys import Level
from index.rebuild import rebuild


@pytest.mark.parametrize("harm", [None, truncate, empty, lose, lose_folder])
@pytest.mark.parametrize("size", [SMALL, LARGE])
@pytest.mark.parametrize("has_rows", [True, False])
def test_what_was_answered_is_there_after_a_power_cut(tmp_path, arrive, monkeypatch, harm, size, has_rows):
    archive = Archive(tmp_path / "data", settle_time_s=0.0)
    before = catalogue_of(archive)
    incoming = {}
    place = archive.files.place

    def noting(source, relative, **how):
        incoming[relative] = source
        return place(source, relative, **how)

    monkeypatch.setattr(archive.files, "place", noting)
    sent = {number: arrive(archive, number, size)[1] for number in (1, 2, 3)}
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
    outcome, content = arrive(again, 4, size)
    assert outcome is Outcome.STORED
    require_whole(again, {**sent, 4: content})


def test_the_catalogue_may_have_lost_any_number_of_the_last(tmp_path, arrive, monkeypatch):
    archive = Archive(tmp_path / "data", settle_time_s=0.0)
    states, sent = [], {}
    for number in range(1, 7):
        states.append(catalogue_of(archive))
        sent[number] = arrive(archive, number, LARGE if number % 2 else SMALL)[1]
    archive.close()
    for lost, state in enumerate(states):
        folder = tmp_path / f"copy-{lost}"
        shutil.copytree(tmp_path / "data", folder)
        copy = Archive(folder, settle_time_s=0.0)
        with monkeypatch.context() as patch:
            cut_power(copy, patch, state)
            require_whole(Archive(folder, settle_time_s=0.0), sent)


def test_a_process_that_dies_makes_nobody_look(tmp_path, arrive, monkeypatch):
    """What the system holds is there for the next process: the journal is read after the system went down, only."""
    archive = Archive(tmp_path / "data", settle_time_s=0.0)
    arrive(archive, 1)
    archive.close()

    def fails(*_arguments):
        raise AssertionError("the journal is read")

    monkeypatch.setattr(arrivals.ArrivalJournal, "doubtful", fails)
    Archive(tmp_path / "data", settle_time_s=0.0)


def test_a_version_that_was_replaced_does_not_come_back(tmp_path, arrive, monkeypatch):
    archive = Archive(tmp_path / "data", settle_time_s=0.0, overwrite="always")
    arrive(archive, 1, PatientName="Old^Name")
    outcome, new = arrive(archive, 1, PatientName="New^Name")
    assert outcome is Outcome.REPLACED
    cut_power(archive, monkeypatch)
    require_whole(Archive(tmp_path / "data", settle_time_s=0.0), {1: new})


def test_what_is_refused_is_on_disk_before_it_is_told(tmp_path, arrive, monkeypatch):
    archive = Archive(tmp_path / "data", settle_time_s=0.0)
    arrive(archive, 1)
    flushed = []
    monkeypatch.setattr(archive._connections, "flush", lambda: flushed.append(True))
    with pytest.raises(InstanceConflict):
        arrive(archive, 1, PatientName="Other^Name")
    assert flushed
    assert list(archive.incoming.iterdir()) == []


def test_segments_are_used_in_turn(tmp_path, arrive, monkeypatch):
    """Blocks whose files have reached the disk make room for others; what is not settled is never overwritten."""
    monkeypatch.setattr(arrivals, "_SEGMENT_BYTES", 3 * 4096)
    archive = Archive(tmp_path / "data", settle_time_s=0.0)
    before = catalogue_of(archive)
    sent, settled = {}, []
    for number in range(1, 20):
        sent[number] = arrive(archive, number)[1]
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


def test_a_block_that_was_cut_short_is_none(tmp_path, arrive, monkeypatch):
    archive = Archive(tmp_path / "data", settle_time_s=0.0)
    sent = {1: arrive(archive, 1)[1]}
    before = catalogue_of(archive)
    at = archive._journal._lane.at
    arrive(archive, 2)
    lost = archive.open_instance(UID.format(2)).path
    cut_power(archive, monkeypatch, before)
    with (archive.data / "arrivals" / "1-0").open("r+b") as segment:
        segment.seek(at + 20)
        segment.write(b"\xff" * 100)
    lost.unlink()
    require_whole(Archive(tmp_path / "data", settle_time_s=0.0), sent)


def test_a_name_is_on_disk_before_the_bytes_of_a_large_object(tmp_path, arrive):
    archive = Archive(tmp_path / "data", settle_time_s=0.0)
    arrive(archive, 1)
    assert list(archive.incoming.iterdir()) == []
    arrive(archive, 2, LARGE)
    ready = list(archive.incoming.iterdir())
    assert ready
    assert all(path.stat().st_size == 0 for path in ready)
    assert list(archive.files.strays(0.0)) == []
    archive.clear_incoming()
    assert arrive(archive, 3, LARGE)[0] is Outcome.STORED  # also when somebody has tidied them up


def test_a_rebuild_after_a_power_cut_finds_what_only_the_journal_has(tmp_path, arrive, monkeypatch):
    archive = Archive(tmp_path / "data", settle_time_s=0.0)
    sent = {number: arrive(archive, number)[1] for number in (1, 2)}
    archive.open_instance(UID.format(2)).path.unlink()
    cut_power(archive, monkeypatch)
    for path in archive.data.glob("catalogue.sqlite*"):
        path.unlink()
    rebuild(archive.data, settle_time_s=0.0, on_file=lambda: None)
    require_whole(Archive(tmp_path / "data", settle_time_s=0.0), sent)


@pytest.mark.parametrize("harm", [truncate, empty, lose])
def test_a_rebuild_after_a_power_cut_takes_nothing_from_the_journal(tmp_path, arrive, monkeypatch, harm):
    """The old catalogue says that the block had its rows; the new one has none of a file that is lost."""
    archive = Archive(tmp_path / "data", settle_time_s=0.0)
    sent = {number: arrive(archive, number)[1] for number in (1, 2)}
    harm(archive.open_instance(UID.format(2)).path)
    cut_power(archive, monkeypatch)
    rebuild(archive.data, settle_time_s=0.0, on_file=lambda: None)
    again = Archive(tmp_path / "data", settle_time_s=0.0)
    for number, content in sent.items():
        assert again.open_instance(UID.format(number)).path.read_bytes() == content


def test_what_a_sender_chose_is_never_taken_for_a_block(tmp_path, arrive, monkeypatch):
    """Bytes of instances lie in the journal: what looks like the next block, where one was overwritten, is none."""
    monkeypatch.setattr(arrivals, "_SEGMENT_BYTES", 5 * PAGE)
    forged = Encoder().encoded(b"a guess", 99, [Arrived("../../outside.dcm", "", 4, "0" * 64, "EVIL", b"evil")])
    archive = Archive(tmp_path / "data", settle_time_s=0.0)
    before = catalogue_of(archive)
    everywhere = bytes(forged)[:1024] * 15  # wherever a page begins
    sent = {number: arrive(archive, number, SMALL)[1] for number in (1, 2, 3)}
    with_it = arrive(archive, 4, SMALL, PixelData=everywhere)[1]
    cut_power(archive, monkeypatch, before)
    for segment in (0, 1):
        path = archive.data / "arrivals" / f"1-{segment}"
        if path.exists():
            with path.open("ab") as file:
                file.write(bytes(forged))
    require_whole(Archive(tmp_path / "data", settle_time_s=0.0), {**sent, 4: with_it})
    key = (tmp_path / "data" / "arrivals" / "key").read_bytes()
    assert len(key) == 32
    assert list(blocks(written(tmp_path / "one", bytes(forged)), 1, key)) == []
    assert [block.number for block in blocks(tmp_path / "one", 1, b"a guess")] == [99]


def test_each_process_has_a_lane_of_its_own_and_takes_over_that_of_a_dead_one(tmp_path, arrive, monkeypatch):
    first = Archive(tmp_path / "data", settle_time_s=0.0)
    before = catalogue_of(first)
    second = Archive(tmp_path / "data", settle_time_s=0.0)
    sent = {1: arrive(first, 1)[1], 2: arrive(second, 2)[1], 3: arrive(first, 3)[1]}
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
    sent[4] = arrive(third, 4)[1]
    lanes = arrivals.standings(third.database)
    assert (lanes[1].settled, lanes[1].number, lanes[2].number) == (2, 3, 1)
    third.open_instance(UID.format(4)).path.unlink()
    cut_power(third, monkeypatch)
    require_whole(Archive(tmp_path / "data", settle_time_s=0.0), sent)


def test_a_block_whose_rows_were_undone_brings_nothing(tmp_path, arrive, monkeypatch):
    """Its sender was told that it failed; whatever was committed later says so, too."""
    archive = Archive(tmp_path / "data", settle_time_s=0.0)
    first = {1: arrive(archive, 1)[1]}
    with monkeypatch.context() as patch:
        patch.setattr(archive._intake, "_insert", lambda *_arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            arrive(archive, 2)
    sent = {**first, 3: arrive(archive, 3)[1]}
    cut_power(archive, monkeypatch)
    again = Archive(tmp_path / "data", settle_time_s=0.0)
    require_whole(again, sent)
    with pytest.raises(NotFound):
        again.open_instance(UID.format(2))
    assert list(again.incoming.iterdir()) == []


@pytest.mark.parametrize("others", [0, 1, 5])
def test_a_block_that_a_dead_process_did_not_commit_hides_no_later_one(tmp_path, arrive, monkeypatch, others):
    """Its number is given again, to a block whose sender was answered."""
    first = Archive(tmp_path / "data", settle_time_s=0.0)
    sent = {number: arrive(first, number)[1] for number in range(10, 10 + others)}
    first._journal.write([Arrived("files/1/2/3.dcm", "", 4, "0" * 64, "DEAD", b"dead")])  # and then it is killed
    first.close()
    first._journal._lane.held.close()
    second = Archive(tmp_path / "data", settle_time_s=0.0)
    before = catalogue_of(second)
    sent[1] = arrive(second, 1)[1]
    assert arrivals.standing(second.database, 1).number == others + 1
    second.open_instance(UID.format(1)).path.unlink()
    cut_power(second, monkeypatch, before)
    require_whole(Archive(tmp_path / "data", settle_time_s=0.0), sent)


def test_who_stores_first_does_not_wait_for_what_others_have_written(tmp_path, arrive, monkeypatch, wait_until):
    """A lane is taken behind the start of the node."""
    flushed = []
    monkeypatch.setattr(
        arrivals.FileSystem, "flush", lambda _self: flushed.append(threading.current_thread().name)
    )
    archive = Archive(tmp_path / "data")
    archive.expect_arrivals()
    wait_until(lambda: flushed)
    assert arrive(archive, 1)[0] is Outcome.STORED
    assert flushed == ["begin-arrivals"]


def test_a_start_that_finds_no_lane_leaves_it_to_who_stores_first(tmp_path, arrive, monkeypatch, wait_until):
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
    assert arrive(archive, 1)[0] is Outcome.STORED
    assert len(tried) == 2
    assert [path.name for path in (archive.data / "arrivals").glob("*.lock")] == ["1.lock"]


def test_a_lane_that_nobody_has_used_since_the_start_puts_nothing_in_doubt(tmp_path, arrive, monkeypatch):
    """A deletion has emptied the journal before: another process that opens the archive leaves who stores alone."""
    data = tmp_path / "data"
    archives = [Archive(data, settle_time_s=0.0) for _ in range(2)]
    for number, archive in enumerate(archives):
        arrive(archive, number)
    archives[0].delete(Level.IMAGE, UID.format(0))
    for archive in archives:
        archive.close()
        archive._journal._lane.held.close()
    monkeypatch.setattr(arrivals, "boot", lambda: "another one")
    one = Archive(data, settle_time_s=0.0)
    arrive(one, 3)
    assert {each.boot for each in arrivals.standings(one.database).values()} != {"another one"}
    assert not ArrivalJournal(data, one._connections).is_in_doubt(one.database)
    two = Archive(data, settle_time_s=0.0)
    assert arrive(two, 4)[0] is Outcome.STORED
    assert not ArrivalJournal(data, one._connections).is_in_doubt(one.database)


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_what_is_stored_while_it_is_brought_back_keeps_its_file(tmp_path, arrive, monkeypatch, size):
    """Somebody else has committed it between two looks at the catalogue."""
    archive = Archive(tmp_path / "data", settle_time_s=0.0)
    arrive(archive, 1)
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
    content = arrive(archive, 2, size)[1]
    assert archive.open_instance(UID.format(2)).path.read_bytes() == content


def test_two_objects_of_one_uid_are_both_kept(tmp_path, arrive, monkeypatch):
    """Nobody knows for which of them somebody was answered: one is stored, one lies in quarantine."""
    one, two = (Archive(tmp_path / "data", settle_time_s=0.0) for _ in range(2))
    arrive(one, 8)
    arrive(two, 9)
    before = catalogue_of(one)
    arrive(two, 1, PatientName="Answered")

    def cut(*_):
        raise Stop

    monkeypatch.setattr(one._intake._commits, "_commit", cut)
    with pytest.raises(Stop):
        arrive(one, 1, PatientName="Never answered")
    cut_power(two, monkeypatch, before)
    one.close()
    again = Archive(tmp_path / "data", settle_time_s=0.0)
    kept = [again.open_instance(UID.format(1)).path, *(again.data / "quarantine").rglob("*.*")]
    contents = b"".join(path.read_bytes() for path in kept if path.is_file())
    assert b"Answered" in contents
    assert b"Never answered" in contents


def test_what_was_refused_does_not_come_in_with_a_new_catalogue(tmp_path, arrive):
    archive = Archive(tmp_path / "data", settle_time_s=0.0, patient_mismatch="reject")
    arrive(archive, 1)
    with pytest.raises(PatientMismatch):
        arrive(archive, 2, PatientID="somebody else")
    archive.close()
    rebuild(archive.data, settle_time_s=0.0, on_file=lambda: None)
    again = Archive(tmp_path / "data", settle_time_s=0.0, patient_mismatch="reject")
    assert [row[0] for row in again.database.execute("SELECT sop_instance_uid FROM instance")] == [UID.format(1)]


def test_two_that_look_whether_somebody_stores_do_not_take_each_other_for_one(tmp_path, arrive, monkeypatch):
    """Else one of two that start at the same time would open the archive as it is."""
    archive = Archive(tmp_path / "data", settle_time_s=0.0)
    arrive(archive, 1)
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


def test_what_goes_to_quarantine_goes_there_once(tmp_path, arrive, monkeypatch):
    """However often it is tried to bring back what comes behind it."""
    archive = Archive(tmp_path / "data", settle_time_s=0.0)
    arrive(archive, 1, PatientName="Stored")
    other = Archive(tmp_path / "other", settle_time_s=0.0)
    content = arrive(other, 1, PatientName="Another")[1]
    sha256 = hashlib.sha256(content).hexdigest()
    arrived = Arrived("files/a/b/c.dcm", "", len(content), sha256, "SENDER", content)
    for _ in range(3):
        assert not recovery._ingest(archive, arrived, trusts_files=True)
    kept = [path for path in (archive.data / "quarantine").rglob("*") if path.is_file()]
    assert [path.read_bytes() for path in kept] == [content]
    assert not [path for path in archive.incoming.iterdir() if path.stat().st_size]
