"""Storage commitment of what was sent on: asked where it is offered, noted whichever way the report comes."""

from __future__ import annotations

import threading
import time

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import AE, build_role, evt
from requestors import make_steady

from index.archive import Archive
from plugins.routing import confirming
from scp.commitment import SOP_INSTANCE_UID
from scp.contexts import STORAGE_COMMITMENT
from scp.server import Server

UID = "1.2.826.0.1.3680043.9.7133.9.{}".format


def rule(commit="offered", **more):
    return {"name": "all", "to": ["PACS"], "commit": commit, **more}


class Committing:
    """What makes a Pacs take requests for commitment; it keeps all but `lost`, and reports when told to."""

    def __init__(self, pacs, lost=()):
        self.pacs, self.lost = pacs, set(lost)
        self.asked = []
        self.reports_at_once = False
        self._threads = []
        pacs.contexts.append((STORAGE_COMMITMENT, [ExplicitVRLittleEndian]))
        pacs.handlers += [(evt.EVT_CONN_OPEN, make_steady), (evt.EVT_N_ACTION, self._take)]

    def _take(self, event):
        self.asked.append(event.action_information)
        if self.reports_at_once:
            self._threads.append(threading.Thread(target=self._send, args=(event.assoc, event.action_information)))
            self._threads[-1].start()
        return 0, None

    def report(self, port, number=-1, *, role=True):
        """Report on an association of its own; return the Status of the answer."""
        entity = AE(self.pacs.title)
        entity.add_requested_context(STORAGE_COMMITMENT, ExplicitVRLittleEndian)
        roles = [build_role(STORAGE_COMMITMENT, scp_role=True)] if role else []
        assoc = entity.associate("127.0.0.1", port, ae_title="THARSIS", ext_neg=roles)
        assert assoc.is_established
        if role:
            assert assoc.accepted_contexts[0].as_scp
        status = self._send(assoc, self.asked[number])
        assoc.release()
        return status

    def _send(self, assoc, asked):
        information = Dataset()
        information.TransactionUID = asked.TransactionUID
        kept = [item for item in asked.ReferencedSOPSequence if item.ReferencedSOPInstanceUID not in self.lost]
        failed = [item for item in asked.ReferencedSOPSequence if item.ReferencedSOPInstanceUID in self.lost]
        for item in failed:
            item.FailureReason = 0x0110
        if kept:
            information.ReferencedSOPSequence = kept
        if failed:
            information.FailedSOPSequence = failed
        status, _ = assoc.send_n_event_report(
            information, 2 if failed else 1, STORAGE_COMMITMENT, SOP_INSTANCE_UID
        )
        return status.Status

    def close(self):
        for thread in self._threads:
            thread.join(60)


@pytest.fixture
def patient(monkeypatch):
    """Let a report on the association of the request be waited for as long as it takes."""
    monkeypatch.setattr(confirming, "_AT_ONCE_S", 120.0)


@pytest.fixture
def network():
    """Serve the archive of a routed node, as its network process does."""
    served = []

    def serve(node):
        archive = Archive(node.archive.data)
        settings = node.settings.model_copy(
            update={"scp": node.settings.scp.model_copy(update={"host": "127.0.0.1", "port": 0})}
        )
        server = Server(archive, settings)
        server.start()
        served.append((server, archive))
        return server.port

    yield serve
    for server, archive in served:
        server.stop(1.0)
        archive.close()


def test_a_report_on_the_association_of_the_request(routed, start_pacs, make_file, patient):
    pacs = start_pacs()
    committing = Committing(pacs)
    committing.reports_at_once = True
    node = routed([rule()], [pacs.open().entity])
    node.store(make_file(1), make_file(2))
    node.work()
    committing.close()
    assert node.states() == {"1": "committed", "2": "committed"}
    assert [(job.kind, job.state) for job in node.jobs("route", "confirm_route")] == [
        ("route", "done"), ("confirm_route", "done"),
    ]  # fmt: skip


@pytest.mark.parametrize("role", [True, False])
def test_a_report_on_an_association_of_its_own(routed, start_pacs, network, make_file, role):
    pacs = start_pacs()
    committing = Committing(pacs)
    node = routed([rule()], [pacs.open().entity])
    port = network(node)
    node.store(make_file(1))
    node.work()
    (job,) = node.jobs("confirm_route")
    assert job.state == "queued"
    assert "its report has not come yet" in job.error
    assert committing.report(port, role=role) == 0
    assert node.states() == {"1": "committed"}
    node.work()
    assert [job.state for job in node.jobs("confirm_route")] == ["done"]
    assert committing.report(port, role=role) == 0  # once more: nobody waits for it, and it does no harm
    assert node.states() == {"1": "committed"}


def test_what_the_peer_does_not_keep_is_sent_again(routed, start_pacs, network, make_file):
    pacs = start_pacs()
    committing = Committing(pacs, lost=[UID(2)])
    node = routed([rule()], [pacs.open().entity])
    port = network(node)
    node.store(make_file(1), make_file(2))
    node.work()
    committing.report(port)
    assert node.states() == {"1": "committed", "2": "failing"}
    node.hasten()
    committing.lost = set()
    node.work()
    assert pacs.received == {UID(1): 1, UID(2): 2}
    assert [item.ReferencedSOPInstanceUID for item in committing.asked[1].ReferencedSOPSequence] == [UID(2)]
    committing.report(port)
    assert node.states() == {"1": "committed", "2": "committed"}


def test_a_report_that_does_not_come_is_asked_for_again_and_in_the_end_told(routed, start_pacs, make_file):
    pacs = start_pacs()
    committing = Committing(pacs)
    node = routed([rule(retry_hours=1)], [pacs.open().entity])
    node.store(make_file(1))
    node.work()
    node.work()
    assert len(committing.asked) == 1
    node.hasten()
    node.work()
    assert len(committing.asked) == 2
    node.now = time.time() + 3700
    node.hasten()
    node.work()
    (job,) = node.jobs("confirm_route")
    assert (job.state, job.error) == ("failed", "PACS has not said within 1 h that it keeps 1 instances")
    assert pacs.received == {UID(1): 1}


def test_a_report_that_never_came_can_be_asked_for_again(routed, start_pacs, make_file):
    pacs = start_pacs()
    committing = Committing(pacs)
    node = routed([rule(retry_hours=1)], [pacs.open().entity])
    node.store(make_file(1))
    for hours in (0, 2):
        node.let_pass(hours)
        node.work()
    (failed,) = node.jobs("confirm_route")
    assert (failed.state, len(committing.asked)) == ("failed", 1)
    node.archive.jobs.retry(failed.id)
    node.work()
    assert len(committing.asked) == 2
    node.let_pass(2)
    node.work()
    assert node.jobs("confirm_route")[-1].state == "failed"


def test_a_report_that_never_came_keeps_no_later_instance_from_being_asked_about(routed, start_pacs, make_file):
    pacs = start_pacs()
    committing = Committing(pacs)
    node = routed([rule(retry_hours=1)], [pacs.open().entity])
    node.store(make_file(1))
    for hours in (0, 0.8):
        node.let_pass(hours)
        node.work()
    node.store(make_file(2))  # while the job for the first one waits
    node.work()
    node.let_pass(0.8)
    node.work()
    assert [len(asked.ReferencedSOPSequence) for asked in committing.asked] == [1, 1, 2, 2]
    node.let_pass(0.8)
    node.work()
    assert node.jobs("confirm_route")[-1].state == "failed"
    node.store(make_file(3))
    node.work()
    assert len(committing.asked[-1].ReferencedSOPSequence) == 3


def test_what_is_not_kept_days_later_has_all_of_its_time_to_be_sent_again(routed, start_pacs, network, make_file):
    pacs = start_pacs()
    committing = Committing(pacs, lost=[UID(1)])
    node = routed([rule(retry_hours=24)], [pacs.open().entity])
    port = network(node)
    node.store(make_file(1))
    node.work()
    node.let_pass(96)
    committing.report(port)
    pacs.answer = lambda _event: 0x0110
    for hours in (2, 21):
        node.let_pass(hours)
        node.work()
        assert node.states() == {"1": "failing"}
        assert node.jobs()[-1].state == "queued"
    pacs.answer = lambda _event: 0
    node.let_pass(1)
    node.work()
    assert node.states() == {"1": "sent"}


def test_what_is_never_kept_is_sent_again_later_each_time(routed, start_pacs, network, make_file):
    pacs = start_pacs()
    committing = Committing(pacs, lost=[UID(1)])
    node = routed([rule()], [pacs.open().entity])
    port = network(node)
    node.store(make_file(1))
    waits = []
    for _ in range(9):
        node.work()
        reported = time.time()
        committing.report(port)
        waits.append((node.jobs()[-1].not_before - time.time(), node.jobs()[-1].not_before - reported))
        node.let_pass(waits[-1][1] / 3600.0)
    least, most = zip(*waits, strict=True)  # whatever the report and its answer took
    assert least[0] - 5 <= 60 <= most[0] + 5
    assert all(1.9 * earlier < later for earlier, later in zip(least, most[1:6], strict=False))
    assert least[-1] - 5 <= 3600 <= most[-1] + 5


@pytest.mark.parametrize(("commit", "state"), [("offered", "done"), ("required", "failed"), ("never", None)])
def test_a_peer_without_storage_commitment(routed, start_pacs, make_file, commit, state):
    pacs = start_pacs()
    node = routed([rule(commit)], [pacs.open().entity])
    node.store(make_file(1))
    node.work()
    assert node.states() == {"1": "sent"}
    assert [job.state for job in node.jobs("route")] == ["done"]
    confirming = node.jobs("confirm_route")
    assert [job.state for job in confirming] == ([state] if state else [])
    if state == "failed":
        assert "PACS at 127.0.0.1" in confirming[0].error
        assert "offers no storage commitment, which the rule 'all' requires" in confirming[0].error


def test_reports_that_make_no_sense(routed, start_pacs, network, make_file):
    pacs = start_pacs()
    Committing(pacs)
    node = routed([rule()], [pacs.open().entity])
    port = network(node)
    entity = AE("PACS")
    entity.add_requested_context(STORAGE_COMMITMENT, ExplicitVRLittleEndian)
    roles = [build_role(STORAGE_COMMITMENT, scp_role=True)]
    assoc = entity.associate("127.0.0.1", port, ae_title="THARSIS", ext_neg=roles)
    information = Dataset()
    information.RetrieveAETitle = "PACS"
    status, _ = assoc.send_n_event_report(information, 1, STORAGE_COMMITMENT, SOP_INSTANCE_UID)
    assert status.Status == 0x0115
    information.TransactionUID = "1.2.3"
    status, _ = assoc.send_n_event_report(information, 1, STORAGE_COMMITMENT, "1.2.3.4")
    assert status.Status == 0x0112
    status, _ = assoc.send_n_event_report(information, 1, STORAGE_COMMITMENT, SOP_INSTANCE_UID)
    assert status.Status == 0
    assoc.release()


def test_a_second_node_commits(routed, start_node, make_file, reserved_port, patient):
    """Our own courier reports on the association of the request while that is open."""
    own = {"title": "THARSIS", "host": "127.0.0.1", "port": reserved_port, "rights": ["store"]}
    other = start_node(aet="PACS", entities=[own])
    node = routed([rule()], [{"title": "PACS", "host": "127.0.0.1", "port": other.port, "rights": ["store"]}])
    node.store(make_file(1), make_file(2))
    node.work()
    assert set(node.states().values()) == {"committed"}
    assert other.archive.open_instance(UID(1)).sop_instance_uid == UID(1)


@pytest.mark.slow
def test_orthanc_commits(routed, start_orthanc, make_file, wait_until, reserved_port):
    """Orthanc reports on an association of its own, to the address that it knows us by."""
    port = reserved_port
    orthanc = start_orthanc(DicomModalities={"tharsis": ["THARSIS", "127.0.0.1", port]}, DicomAlwaysAllowStore=True)
    node = routed(
        [{**rule("required"), "to": ["ORTHANC"]}],
        [{"title": "ORTHANC", "host": "127.0.0.1", "port": orthanc.port}],
        scp={"port": port},
    )
    archive = Archive(node.archive.data)
    settings = node.settings.model_copy(update={"scp": node.settings.scp.model_copy(update={"host": "127.0.0.1"})})
    server = Server(archive, settings)
    server.start()
    try:
        node.store(make_file(1), make_file(2))
        node.work("ORTHANC")
        wait_until(lambda: set(node.states().values()) == {"committed"})
        node.work("ORTHANC")
        assert [job.state for job in node.jobs("route", "confirm_route")] == ["done", "done"]
        assert len(orthanc.find("Instance")) == 2
    finally:
        server.stop(1.0)
        archive.close()
