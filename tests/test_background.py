"""Work beside others: it is done, whoever waits is told, and nothing is stored before it is."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
)

from index import arrivals, background
from index.archive import Archive
from index.background import Background
from index.direct_io import NewFile
from index.errors import InvalidInstance, PatientMismatch
from index.files import FileStore
from index.group_commit import GroupCommit
from index.part10 import begin_of_data_set
from scp.messages import StoreRequest
from scp.reception import ReceivedFile, Reception

CT, INSTANCE = "1.2.840.10008.5.1.4.1.1.2", "1.2.826.0.1.3680043.9.7133.9.{}"
LARGE = 200_000


def test_it_is_done_in_another_thread_and_waited_for():
    go_on, done = threading.Event(), []
    work = Background(lambda: go_on.wait(300) and done.append(threading.current_thread()))
    assert not done
    go_on.set()
    work.wait()
    assert done[0] is not threading.current_thread()
    work.wait()  # once more is no matter


def test_what_it_raises_is_told_to_all_who_wait():
    def failing():
        raise OSError(errno.ENOSPC, "No space left on device")

    work = Background(failing)
    with ThreadPoolExecutor(3) as pool:
        told = [waiting.exception(300) for waiting in [pool.submit(work.wait) for _ in range(3)]]
    assert all(isinstance(each, OSError) and each.errno == errno.ENOSPC for each in told)


def test_threads_are_used_again_and_are_few():
    """Where all of them are at work, the next one does it himself."""
    go_on, used = threading.Event(), []
    many = [Background(lambda: go_on.wait(300)) for _ in range(background._MOST)]
    one_more = Background(lambda: used.append(threading.current_thread()))
    assert used == [threading.current_thread()]
    go_on.set()
    for each in (*many, one_more):
        each.wait()
    for _ in range(20):
        Background(lambda: used.append(threading.current_thread())).wait()
    assert len(set(used)) <= 1 + background._MOST
    assert sum(each.name == "disk" for each in threading.enumerate()) <= background._MOST


def test_who_has_done_it_holds_nothing_of_it():
    class Held:
        pass

    held = Held()
    gone, work = weakref.ref(held), Background(lambda it=held: id(it))
    work.wait()
    del held, work
    assert gone() is None


def test_without_a_thread_to_be_had_it_is_done_at_once(monkeypatch):
    def refusing(_thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(background, "_idle", background.deque())
    monkeypatch.setattr(background, "_places", background.deque([None]))
    monkeypatch.setattr(threading.Thread, "start", refusing)
    done = []
    for _ in range(2):
        Background(lambda: done.append(threading.current_thread())).wait()
    assert done == [threading.current_thread()] * 2
    assert len(background._places) == 1


def test_a_forked_process_has_threads_of_its_own():
    Background(lambda: None).wait()
    assert background._idle
    child = os.fork()
    if child == 0:
        os._exit(bool(background._idle) or len(background._places) != background._MOST)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


class Sender:
    """Stores instances as a C-STORE does."""

    def __init__(self, archive, make_instance):
        self.archive, self.make_instance = archive, make_instance

    def received(self, number, **values):
        path = self.archive.data.parent / f"sent-{number}"
        path.write_bytes(self.make_instance(number, **{"PixelData": os.urandom(LARGE), **values}))
        with path.open("rb") as opened:
            offset, syntax = begin_of_data_set(opened)
        identity = (CT, INSTANCE.format(number))
        file = ReceivedFile(Reception(self.archive.new_file, "SENDER", past_cache=True, waits=False), identity, syntax)
        file.write(path.read_bytes()[offset:])
        return file

    def store(self, number, *, expected=None, **values):
        file = self.received(number, **values)
        file.close()
        try:
            assert file.error is None
            return self.archive.ingest(file.path, source_aet="SENDER", received=file.known, expected=expected)
        finally:
            file.leave()

    @property
    def instances(self):
        return [row[0] for row in self.archive.database.execute("SELECT sop_instance_uid FROM instance ORDER BY id")]

    @property
    def files(self):
        there = [path for path in self.archive.data.rglob("*") if path.suffix in (".dcm", ".part")]
        return [path for path in there if path.stat().st_size]


@pytest.fixture
def sender(archive, make_instance):
    return Sender(archive, make_instance)


@pytest.fixture
def late_disk(monkeypatch):
    """Let files be written when somebody waits for one, and not before; once the event that it returns is cleared."""
    write, wait, go_on = NewFile.write, Background.wait, threading.Event()

    def late(self, *arguments):
        assert go_on.wait(300)
        write(self, *arguments)

    def waiting(self):
        go_on.set()
        wait(self)

    monkeypatch.setattr(NewFile, "write", late)
    monkeypatch.setattr(Background, "wait", waiting)
    return go_on


def refuse_to_flush(monkeypatch, refused=lambda _file: True):
    flush = NewFile.flush

    def failing(self):
        if refused(self):
            raise OSError(errno.ENOSPC, "No space left on device")
        flush(self)

    monkeypatch.setattr(NewFile, "flush", failing)


def test_rows_are_made_meanwhile_and_the_file_gets_its_name_when_it_is_on_disk(sender, monkeypatch):
    flush, place, order = NewFile.flush, FileStore.place, []
    rows_made = threading.Event()

    def late(self):
        assert rows_made.wait(300)
        flush(self)
        order.append("flushed")

    def noted(self, *arguments, **named):
        order.append("placed")
        return place(self, *arguments, **named)

    announce = sender.archive._intake._announce

    def announced(*arguments):
        announce(*arguments)
        order.append("rows")
        rows_made.set()

    monkeypatch.setattr(NewFile, "flush", late)
    monkeypatch.setattr(FileStore, "place", noted)
    monkeypatch.setattr(sender.archive._intake, "_announce", announced)
    sender.store(1)
    assert order == ["rows", "flushed", "placed"]
    assert sender.instances == [INSTANCE.format(1)]


def test_a_power_cut_while_the_file_is_written_and_its_block_is_there(sender, monkeypatch, tmp_path):
    """Nobody was answered: what is there of the file is no instance, and its sender can send it again."""
    flush, cut, rows_made = NewFile.flush, tmp_path / "cut", threading.Event()
    sender.store(1)

    def cutting(self):
        assert rows_made.wait(300)
        shutil.copytree(sender.archive.data, cut)
        flush(self)

    announce = sender.archive._intake._announce
    monkeypatch.setattr(sender.archive._intake, "_announce", lambda *each: [announce(*each), rows_made.set()])
    with monkeypatch.context() as patched:
        patched.setattr(NewFile, "flush", cutting)
        sender.store(2)
    part = max((cut / "incoming").iterdir(), key=lambda path: path.stat().st_size)
    content = part.read_bytes()
    part.write_bytes(content[: len(content) // 2])

    monkeypatch.setattr(arrivals, "boot", lambda: "another one")
    blocks = arrivals.ArrivalJournal(cut, None).doubtful(sender.archive.database)
    assert [each.incoming for block in blocks for each in block.instances][-1:] == [part.name]
    again = Sender(Archive(cut, settle_time_s=0.0), sender.make_instance)
    assert again.instances == [INSTANCE.format(1)]
    again.archive.clear_incoming()
    assert len(again.files) == 1
    assert again.store(2).outcome == "stored"


def test_a_file_that_cannot_be_written_is_not_stored_and_can_be_sent_again(sender, monkeypatch):
    sender.store(1)
    with monkeypatch.context() as patched:
        refuse_to_flush(patched)
        with pytest.raises(OSError, match="No space"):
            sender.store(2)
    assert sender.instances == [INSTANCE.format(1)]
    assert len(sender.files) == 1
    sender.store(2)
    assert sender.instances == [INSTANCE.format(1), INSTANCE.format(2)]
    assert len(sender.files) == 2


def test_one_of_those_that_share_a_commit_cannot_be_written(sender, monkeypatch):
    """They wait until another one has committed; the others are stored."""
    sender.store(1)
    received = [sender.received(number) for number in range(2, 6)]
    refused = received[1]
    refuse_to_flush(monkeypatch, lambda file: file is refused._file)
    held, go_on = threading.Event(), threading.Event()
    commits: GroupCommit = sender.archive._intake._commits
    write, begun = sender.archive._journal.write, []

    def noted(instances):
        begun.extend(instances)
        return write(instances)

    monkeypatch.setattr(sender.archive._journal, "write", noted)

    def first(_database):
        held.set()
        go_on.wait(300)
        raise InterruptedError

    def store(file):
        file.close()
        try:
            return sender.archive.ingest(file.path, received=file.known)
        finally:
            file.leave()

    with ThreadPoolExecutor(8) as pool:
        leading = pool.submit(commits.run, first)
        assert held.wait(300)
        others = [pool.submit(store, file) for file in received]
        pause = threading.Event()
        while len(commits._waiting) + len(begun) + others[1].done() < len(others):
            pause.wait(0.01)
        go_on.set()
        told = [other.exception(300) for other in others]
        assert isinstance(leading.exception(300), InterruptedError)
    assert [type(each) for each in told] == [type(None), OSError, type(None), type(None)]
    assert sorted(sender.instances) == [INSTANCE.format(number) for number in (1, 2, 4, 5)]
    assert len(sender.files) == 4


def test_who_finds_another_process_at_its_turn_waits_for_its_own_file_first(sender, monkeypatch):
    """So that a transaction that others wait for never waits for the disk."""
    order = []
    commits = sender.archive._intake._commits
    sender.store(1)
    wait, flock = Background.wait, fcntl.flock

    def noted(self):
        wait(self)
        order.append("waited")

    def busy(file, operation):
        if operation == fcntl.LOCK_EX | fcntl.LOCK_NB and file is commits._open_turns:
            raise BlockingIOError
        if file is commits._open_turns and operation == fcntl.LOCK_EX:
            order.append("turn")
        return flock(file, operation)

    monkeypatch.setattr(Background, "wait", noted)
    monkeypatch.setattr("index.group_commit.fcntl.flock", busy)
    sender.store(2)
    assert order[:2] == ["waited", "turn"]


@pytest.mark.parametrize(
    "syntax",
    [
        ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian,
        JPEG2000Lossless,
    ],
    ids=lambda syntax: UID(syntax).keyword,
)  # fmt: skip
def test_nothing_is_read_of_a_file_before_it_is_there(sender, late_disk, syntax):
    """The structure of what lies in memory is looked at there, whatever its transfer syntax is."""
    values = {"PixelData": encapsulate([os.urandom(LARGE)])} if syntax == JPEG2000Lossless else {}
    for number in (1, 2):
        late_disk.clear()
        sender.store(number, transfer_syntax=syntax, PatientName=f"Doe^{number}", **values)
    assert sender.instances == [INSTANCE.format(1), INSTANCE.format(2)]
    rows = sender.archive.database.execute("SELECT transfer_syntax_uid FROM instance").fetchall()
    assert rows == [(str(syntax),)] * 2


def test_what_is_refused_leaves_nothing_behind_however_slow_the_disk_is(sender, late_disk):
    """A file that is still being written when its object is refused does not come back."""
    sender.store(1, PatientID="A")
    late_disk.clear()
    with pytest.raises(InvalidInstance):
        sender.store(2, expected=(CT, "1.2.3"))
    sender.archive._policy = type(sender.archive._policy)("never", "reject")
    late_disk.clear()
    with pytest.raises(PatientMismatch):
        sender.store(3, PatientID="B")
    assert sender.instances == [INSTANCE.format(1)]
    assert len(sender.files) == 1


def test_the_same_object_again_is_compared_when_it_is_written(sender):
    sender.store(1, PixelData=bytes(LARGE))
    assert sender.store(1, PixelData=bytes(LARGE)).outcome == "duplicate"
    assert len(sender.files) == 1


def test_an_object_that_is_dropped_is_not_written_any_more(sender):
    file = sender.received(1)
    file.close()
    file.discard()
    assert not sender.files
    assert file.path is None or not file.path.exists()


def test_who_reads_the_file_itself_waits_for_it(sender):
    file = sender.received(1)
    file.close()
    request = StoreRequest(CT, INSTANCE.format(1), file.path, file.known)
    request.wait()
    assert hashlib.sha256(request.file.read_bytes()).hexdigest() == file.known.sha256
    assert request.file.stat().st_size == file.known.size
    file.leave()


def test_a_process_that_has_no_file_handle_left_tells_it(sender, monkeypatch):
    file = sender.received(1)

    def refusing(*_, **__):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("scp.reception.NewFile", refusing)
    file.close()
    assert isinstance(file.error, OSError)
    assert not sender.files
