"""C-MOVE over several associations at the same time, and destinations that fail in every way."""

from __future__ import annotations

import itertools
import threading
import time
from functools import partial
from types import SimpleNamespace

import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless
from pynetdicom import AE, evt
from retrieved import STUDY, UID_OF, counts
from scripted_peer import ScriptedPeer, stored
from state_table import RELEASE_RP

from scp import conversion, destination, retrieve
from scp.contexts import STUDY_ROOT_MOVE
from scp.outcomes import LOOK_S
from scp.status import SUCCESS, Status


class Receiver:
    """A Storage SCP that counts its associations; `answer` is called with (number of the object, event)."""

    def __init__(self, answer=None, **limits):
        self.stored: set[str] = set()
        self.associations: set[object] = set()
        self.most_associations = 0
        self._answer = answer or (lambda _number, _event: 0x0000)
        self._numbers = itertools.count(1)
        entity = AE("RECEIVER")
        entity.add_supported_context(CTImageStorage, [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
        for name, value in limits.items():
            setattr(entity, name, value)
        handlers = [(evt.EVT_C_STORE, self._keep), (evt.EVT_ESTABLISHED, self._begin), (evt.EVT_CONN_CLOSE, self._end)]
        self.server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
        self.port = self.server.server_address[1]

    def _begin(self, event):
        self.associations.add(event.assoc)
        self.most_associations = max(self.most_associations, len(self.associations))

    def _end(self, event):
        self.associations.discard(event.assoc)

    def _keep(self, event):
        status = self._answer(next(self._numbers), event)
        if status == 0x0000:
            self.stored.add(str(event.request.AffectedSOPInstanceUID))
        return status


@pytest.fixture
def move(start_node, make_file):
    """Send `count` instances to a receiver over `associations`; return the responses."""
    servers = []

    def run(receiver, count, associations=1, *, on_pending=None, syntax=ExplicitVRLittleEndian, make=make_file, **scp):
        servers.append(receiver.server)
        entities = [{"title": "RECEIVER", "host": "127.0.0.1", "port": receiver.port}]
        node = start_node(entities=entities, retrieve_associations=associations, **scp)
        for number in range(1, count + 1):
            node.archive.ingest(make(number).read_bytes())
        return _asked(node, syntax, on_pending)

    yield run
    for server in servers:
        server.shutdown()


def _asked(node, syntax=ExplicitVRLittleEndian, on_pending=None):
    entity = AE("VIEWER")
    entity.maximum_pdu_size = 0
    entity.dimse_timeout = 60
    entity.add_requested_context(STUDY_ROOT_MOVE, syntax)
    assoc = entity.associate("127.0.0.1", node.port, ae_title="THARSIS")
    identifier = Dataset()
    identifier.QueryRetrieveLevel, identifier.StudyInstanceUID = "STUDY", STUDY
    answers = []
    for answer in assoc.send_c_move(identifier, "RECEIVER", STUDY_ROOT_MOVE, msg_id=9):
        answers.append(answer)
        if on_pending is not None:
            on_pending(assoc, answer[0])
        if assoc.is_aborted:
            return answers
    assoc.release()
    return answers


def _lanes():
    return [thread for thread in threading.enumerate() if thread.name.startswith("sub-association")]


def test_so_many_at_the_same_time_as_the_settings_say(move, wait_until):
    """Four objects are only ever answered together: with fewer associations than four none would be."""
    together = threading.Barrier(4)
    receiver = Receiver(lambda _number, _event: 0x0000 if together.wait(60) is not None else 0xA700)
    answers = move(receiver, 40, 4)
    assert (answers[-1][0].Status, counts(answers[-1][0])) == (0x0000, (None, 40, 0, 0))
    assert receiver.stored == {UID_OF(number) for number in range(1, 41)}
    assert receiver.most_associations == 4
    wait_until(lambda: not receiver.associations and not _lanes())
    pending = [counts(status) for status, _ in answers[:-1]]
    assert pending[0] == (40, 0, 0, 0)
    assert all(sum(counts) == 40 for counts in pending)
    assert [counts[0] for counts in pending] == sorted((counts[0] for counts in pending), reverse=True)


def test_no_more_associations_than_instances(move):
    receiver = Receiver()
    assert move(receiver, 2, 16)[-1][0].Status == 0x0000
    assert receiver.most_associations <= 2


def test_associations_that_the_destination_rejects_cost_no_instance(move):
    receiver = Receiver(lambda _number, _event: time.sleep(0.02) or 0x0000, maximum_associations=2)
    answers = move(receiver, 20, 8)
    assert (answers[-1][0].Status, counts(answers[-1][0])) == (0x0000, (None, 20, 0, 0))
    assert receiver.most_associations <= 2


@pytest.mark.parametrize("associations", [1, 4])
def test_a_destination_that_rejects_all_of_them(move, associations):
    receiver = Receiver(require_calling_aet=["SOMEBODY"])
    status, identifier = move(receiver, 5, associations)[-1]
    assert (status.Status, counts(status)) == (0xA702, (None, 0, 5, 0))
    assert "5 of 5 failed" in status.ErrorComment
    assert sorted(identifier.FailedSOPInstanceUIDList) == [UID_OF(number) for number in range(1, 6)]


def test_a_destination_that_answers_twice_does_not_answer_for_the_next_object(start_node, make_file):
    """The second answer to the first object comes when the second, which it refuses, is under way."""

    def script(self):
        self.accept()
        for answered in (stored(0, 1), stored(0, 1) + stored(0xA700, 2), stored(0, 3)):
            self.read_message()
            self.send(answered)
        self.read()
        self.send(RELEASE_RP)

    peer = ScriptedPeer(script)
    node = start_node(entities=[{"title": "RECEIVER", "host": "127.0.0.1", "port": peer.port}])
    for number in (1, 2, 3):
        node.archive.ingest(make_file(number).read_bytes())
    status, identifier = _asked(node)[-1]
    peer.join()
    assert (status.Status, counts(status)) == (0xB000, (None, 2, 1, 0))
    assert identifier.FailedSOPInstanceUIDList == UID_OF(2)


@pytest.mark.parametrize("associations", [1, 3])
def test_after_an_abort_of_the_destination_the_rest_goes_on(move, associations):
    def answer(number, event):
        if number == 3:
            event.assoc.abort()
        return 0x0000

    receiver = Receiver(answer)
    status, identifier = move(receiver, 12, associations)[-1]
    assert (status.Status, counts(status)) == (0xB000, (None, 11, 1, 0))
    assert identifier.FailedSOPInstanceUIDList


def test_a_destination_that_hangs_is_given_up_after_the_dimse_timeout(move):
    woken = threading.Event()
    receiver = Receiver(lambda number, _event: (number == 2 and woken.wait(60) and 0) or 0x0000)
    answers = move(receiver, 4, dimse_timeout_s=5.0)
    woken.set()
    status, _ = answers[-1]
    assert (status.Status, counts(status)) == (0xB000, (None, 3, 1, 0))
    assert (3, 1, 0, 0) in [counts(pending) for pending, _ in answers[:-1]], "who asked hears of it meanwhile"


def test_a_pending_goes_out_at_least_every_second_though_nothing_ends(monkeypatch):
    """By the clock of the one who waits for outcomes, whatever the machine does meanwhile."""
    now = [0.0]
    monkeypatch.setattr(retrieve, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def nothing_ends():
        for _ in range(100):
            now[0] += LOOK_S
            yield None

    answers = retrieve.sub_operations(4, nothing_ends(), lambda: False)
    told = [now[0] for answer in answers if answer.status.is_pending]
    assert len(told) > 1
    assert max(later - earlier for earlier, later in itertools.pairwise([*told, now[0]])) < 1.0


@pytest.mark.parametrize("associations", [1, 4])
def test_cancel_stops_what_is_under_way(move, associations, wait_until, monkeypatch):
    """PS3.4 C.4.2.3.1: FE00, all four counts, and the list of what failed; nobody waits for the DIMSE timeout."""
    monkeypatch.setattr(destination, "_GRACE_S", 60.0)  # for an association to notice that it was aborted
    woken, sent = threading.Event(), []
    receiver = Receiver(lambda number, _event: (number > 5 and woken.wait(300) and 0) or 0x0000)

    def cancel(assoc, pending):
        if counts(pending)[1] == 5 and not sent:
            sent.append(time.monotonic())
            assoc.send_c_cancel(9, query_model=STUDY_ROOT_MOVE)

    status, identifier = move(receiver, 30, associations, on_pending=cancel, dimse_timeout_s=300.0)[-1]
    assert time.monotonic() - sent[0] < 150
    woken.set()
    remaining, completed, failed, warning = counts(status)
    assert status.Status == 0xFE00
    assert (completed, warning) == (5, 0)
    assert 1 <= failed <= associations
    assert remaining == 30 - 5 - failed
    failures = identifier.FailedSOPInstanceUIDList
    assert failed == (1 if isinstance(failures, str) else len(failures))
    wait_until(lambda: not _lanes())


def test_a_requestor_that_leaves_stops_the_sub_operations(start_node, make_file, wait_until):
    woken = threading.Event()
    receiver = Receiver(lambda number, _event: (number > 1 and woken.wait(60) and 0) or 0x0000)
    entities = [{"title": "RECEIVER", "host": "127.0.0.1", "port": receiver.port}]
    node = start_node(entities=entities, retrieve_associations=2)
    for number in range(1, 20):
        node.archive.ingest(make_file(number).read_bytes())
    _asked(node, on_pending=lambda assoc, _pending: receiver.stored and assoc.abort())
    wait_until(lambda: not _lanes())
    woken.set()
    receiver.server.shutdown()


@pytest.fixture
def make_compressed(make_dataset, tmp_path):
    """Make an object that the receiver does not take as it is; those in `broken` cannot be decoded."""

    def make(number, *, broken=()):
        dataset = make_dataset(number)
        dataset.compress(RLELossless, encoding_plugin="pydicom", generate_instance_uid=False)
        if number in broken:
            dataset.PixelData = encapsulate([b"nothing that was ever run-length encoded"])
        path = tmp_path / f"compressed{number}.dcm"
        dataset.save_as(path, enforce_file_format=True)
        return path

    return make


@pytest.fixture
def conversions(monkeypatch, tmp_path):
    """Let every converted object be a scratch file; note which were begun, and tell which files are there."""
    begun, convert = [], conversion._convert

    def note(instance, *rest):
        begun.append(instance.sop_instance_uid)
        return convert(instance, *rest)

    monkeypatch.setattr(conversion, "_IN_MEMORY_BYTES", 0)
    monkeypatch.setattr(conversion, "_convert", note)
    return SimpleNamespace(begun=begun, files=lambda: list(tmp_path.rglob("*.scratch")))


@pytest.fixture
def comes_true(wait_until):
    """Wait for a condition, and tell whether it came true."""

    def wait(condition):
        try:
            wait_until(condition, timeout=45)  # less than the DIMSE timeout
        except AssertionError:
            return False
        return True

    return wait


@pytest.mark.parametrize("associations", [1, 2])
def test_the_next_object_is_converted_while_one_waits_for_its_response(
    move, make_compressed, conversions, comes_true, associations
):
    """Each association has one on its way and one ready: with a response before that, the object fails."""

    def answer(number, _event):
        is_ready = number > associations or comes_true(lambda: len(conversions.begun) >= 2 * associations)
        return 0x0000 if is_ready else 0xA700

    receiver = Receiver(answer)
    status, _ = move(receiver, 6, associations, make=make_compressed)[-1]
    assert (status.Status, counts(status)) == (0x0000, (None, 6, 0, 0))
    assert receiver.stored == {UID_OF(number) for number in range(1, 7)}
    assert len(conversions.begun) <= 6 + associations - 1  # once each, but for what is taken over at the end
    assert not conversions.files()


@pytest.mark.parametrize("associations", [1, 2])
def test_one_that_cannot_be_converted_while_another_is_sent_fails_with_its_own_status(
    move, make_compressed, conversions, associations
):
    status, identifier = move(Receiver(), 5, associations, make=partial(make_compressed, broken={3}))[-1]
    assert (status.Status, counts(status)) == (0xB000, (None, 4, 1, 0))
    assert identifier.FailedSOPInstanceUIDList == UID_OF(3)
    assert status.ErrorComment == "1 of 5 failed: undecodable RLE Lossless"
    assert not conversions.files()


@pytest.mark.parametrize("associations", [1, 2])
def test_a_cancelled_move_leaves_no_converted_file(move, make_compressed, conversions, wait_until, associations):
    woken, sent = threading.Event(), []

    def answer(number, _event):
        return 0x0000 if number <= 2 or woken.wait(60) else 0xA700

    def cancel(assoc, pending):
        if len(conversions.files()) > associations and counts(pending)[1] == 2 and not sent:
            sent.append(len(conversions.files()))
            assoc.send_c_cancel(9, query_model=STUDY_ROOT_MOVE)

    receiver = Receiver(answer)
    status, _ = move(receiver, 12, associations, on_pending=cancel, make=make_compressed)[-1]
    woken.set()
    assert sent, "nothing was ready before its turn"
    remaining, completed, failed, warning = counts(status)
    assert (status.Status, completed, warning, remaining + failed) == (0xFE00, 2, 0, 10)
    assert failed <= associations
    wait_until(lambda: not _lanes())
    assert not conversions.files()


@pytest.mark.parametrize("associations", [1, 2])
def test_what_was_ready_goes_over_a_new_association_after_an_abort(
    move, make_compressed, conversions, comes_true, associations
):
    def answer(number, event):
        if number == 2:
            comes_true(lambda: len(conversions.files()) > 1)
            event.assoc.abort()
        return 0x0000

    receiver = Receiver(answer)
    status, _ = move(receiver, 8, associations, make=make_compressed)[-1]
    assert (status.Status, counts(status)) == (0xB000, (None, 7, 1, 0))
    assert len(receiver.stored) >= 7
    assert not conversions.files()


def test_what_an_association_has_ready_is_sent_by_another_while_it_is_held_up(
    move, make_compressed, conversions, comes_true
):
    def answer(number, _event):
        return 0xA700 if number == 1 and not comes_true(lambda: len(receiver.stored) == 7) else 0x0000

    receiver = Receiver(answer)
    status, _ = move(receiver, 8, 2, make=make_compressed)[-1]
    assert (status.Status, counts(status)) == (0x0000, (None, 8, 0, 0))
    assert not conversions.files()


@pytest.mark.slow
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian], ids=lambda uid: uid.keyword)
@pytest.mark.filterwarnings("ignore:The value for the data element")
def test_more_sub_operations_than_their_counts_can_tell(start_node, make_file, monkeypatch, syntax):
    """Of 70,000 rows 68,000 fail: counts are US (PS3.7 E.1); the list is whole, in Explicit VR as UN (PS3.5 6.2.2)."""
    receiver = Receiver()
    node = start_node(entities=[{"title": "RECEIVER", "host": "127.0.0.1", "port": receiver.port}])
    node.archive.ingest(make_file(0))
    with node.archive.transaction() as database:
        [row] = database.execute("SELECT * FROM instance").fetchall()
        names = [column[1] for column in database.execute("PRAGMA table_info(instance)").fetchall()]
        values = dict(zip(names, row, strict=True))
        rows = (
            {**values, "id": values["id"] + number, "sop_instance_uid": UID_OF(number), "path": f"missing{number}"}
            for number in range(1, 70_000)
        )
        columns = ", ".join(names)
        database.conn.executemany(
            f"INSERT INTO instance ({columns}) VALUES ({', '.join(':' + name for name in names)})", rows
        )
    sent = itertools.count(1)
    failure = Status(0xA700, "no room")
    monkeypatch.setattr(retrieve, "send", lambda *_args, **_options: SUCCESS if next(sent) <= 2000 else failure)
    answers = _asked(node, syntax)
    receiver.server.shutdown()
    status, identifier = answers[-1]
    assert counts(answers[0][0]) == (0xFFFF, 0, 0, 0)
    assert (status.Status, counts(status)) == (0xB000, (None, 2000, 0xFFFF, 0))
    assert status.ErrorComment == "68000 of 70000 failed: no room"
    failures = identifier.FailedSOPInstanceUIDList
    uids = failures.rstrip(b"\0").decode().split("\\") if isinstance(failures, bytes) else failures
    assert len(set(uids)) == 68_000


@pytest.mark.slow
def test_many_instances_over_four_associations(move):
    receiver = Receiver()
    answers = move(receiver, 600, 4)
    assert (answers[-1][0].Status, counts(answers[-1][0])) == (0x0000, (None, 600, 0, 0))
    assert len(receiver.stored) == 600
