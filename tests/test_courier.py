"""Reports of storage commitment reach who asked, whatever he does meanwhile, and whatever happens to this node."""

from __future__ import annotations

import threading
import time

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, evt
from routed import ReservedPort

from config.settings import load_settings
from index import commitments
from index.archive import Archive
from index.commitments import Reference, State
from index.integrity import Verdict
from index.jobs import STORAGE_COMMITMENT as JOB_KIND
from scp import client, courier
from scp.client import Requestor
from scp.commitment import SOP_INSTANCE_UID
from scp.contexts import STORAGE_COMMITMENT, VERIFICATION
from scp.server import Server

SYNTAXES = [ExplicitVRLittleEndian, ImplicitVRLittleEndian]


def request(uid, *instances):
    information = Dataset()
    information.TransactionUID = uid
    information.ReferencedSOPSequence = []
    for instance in instances:
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = CTImageStorage, instance
        information.ReferencedSOPSequence.append(item)
    return information


class Mailbox:
    """Takes reports; `answer` says with which Status, or does something before."""

    def __init__(self, answer=lambda: 0):
        self.transactions = []
        self.roles = []
        self.answer = answer

    def take(self, event):
        self.transactions.append(str(event.event_information.TransactionUID))
        role = event.assoc.requestor.role_selection.get(STORAGE_COMMITMENT)
        self.roles.append(None if role is None else (role.scu_role, role.scp_role))
        return self.answer(), None


class Modality:
    """A peer that asks for storage commitment, and may listen for reports."""

    def __init__(self, title="MODALITY"):
        self.title = title
        self.inbox = Mailbox()
        self.gone = threading.Event()
        self._servers = []
        self._reserved = ReservedPort()
        self.port = self._reserved.number

    def listen(self, *, negotiates_roles=True):
        entity = AE(self.title)
        roles = {"scu_role": True, "scp_role": True} if negotiates_roles else {}
        entity.add_supported_context(STORAGE_COMMITMENT, SYNTAXES, **roles)
        handlers = [(evt.EVT_N_EVENT_REPORT, self.inbox.take)]
        self._servers.append(entity.start_server(("127.0.0.1", self.port), block=False, evt_handlers=handlers))

    def associate(self, port, mailbox):
        entity = AE(self.title)
        entity.add_requested_context(STORAGE_COMMITMENT, SYNTAXES)
        entity.add_requested_context(VERIFICATION)
        entity.add_requested_context(CTImageStorage, ExplicitVRLittleEndian)
        handlers = [(evt.EVT_N_EVENT_REPORT, mailbox.take)]
        assoc = entity.associate("127.0.0.1", port, ae_title="THARSIS", evt_handlers=handlers)
        assert assoc.is_established
        return assoc

    @property
    def entity(self):
        return {"title": self.title, "host": "127.0.0.1", "port": self.port, "rights": ["store"]}

    def too_late(self):
        """Answer a report when the test is over."""
        self.gone.wait(300)
        return 0

    def close(self):
        self.gone.set()
        for server in self._servers:
            server.shutdown()
        self._reserved.close()


@pytest.fixture
def modality():
    modality = Modality()
    yield modality
    modality.close()


class Node:
    """A node in this process whose settings for storage commitment are the test's."""

    def __init__(self, folder, entities, settings):
        overrides = {
            "archive": {"data": str(folder), "reserve_mb": 0},
            "application_entities": entities,
            **settings,
            "scp": {"host": "127.0.0.1", "port": 0, **settings.get("scp", {})},
        }
        self.settings = load_settings(environment={}, overrides=overrides)
        self.archive = Archive.from_settings(self.settings.archive)
        self.server = Server(self.archive, self.settings)
        self.server.start()

    @property
    def port(self):
        return self.server.port

    def jobs(self):
        return [job for job in self.archive.jobs.recent() if job.kind == JOB_KIND]

    def job(self):
        [job] = self.jobs()
        return job

    def all_done(self):
        return all(job.state == "done" for job in self.jobs())


@pytest.fixture
def start(tmp_path, make_instance):
    """Start nodes that hold the instances 1 and 2 of `make_instance`; gives the node and their UIDs."""
    nodes = []

    def start(*entities, **settings):
        settings.setdefault("jobs", {})
        settings["jobs"] = {"retry_delay_s": 0.1, **settings["jobs"]}
        node = Node(tmp_path / f"node{len(nodes)}", list(entities), settings)
        nodes.append(node)
        return node, [node.archive.ingest(make_instance(number)).sop_instance_uid for number in (1, 2)]

    yield start
    for node in nodes:
        node.server.stop(1.0)


def ask(assoc, uid, *instances):
    answer, _ = assoc.send_n_action(request(uid, *instances), 1, STORAGE_COMMITMENT, SOP_INSTANCE_UID)
    assert answer.Status == 0


def test_the_report_comes_on_the_association_of_the_request(start, modality, wait_until):
    modality.listen()
    node, uids = start(modality.entity)
    mailbox = Mailbox()
    assoc = modality.associate(node.port, mailbox)
    ask(assoc, "1.2", *uids)
    wait_until(lambda: node.job().state == "done")
    assoc.release()
    assert (mailbox.transactions, modality.inbox.transactions) == (["1.2"], [])
    assert commitments.get(node.archive, "MODALITY", "1.2").state is State.REPORTED


@pytest.mark.parametrize("end", ["release", "abort"])
def test_who_ends_the_association_at_once_gets_an_association_of_his_own(start, modality, wait_until, end):
    """PS3.4 J.3.3, PS3.7 D.3.3.4: this node requests it, and proposes to be the SCP."""
    modality.listen()
    node, uids = start(modality.entity)
    for number in range(5):
        assoc = modality.associate(node.port, Mailbox(modality.too_late))
        ask(assoc, f"1.2.{number}", *uids)
        getattr(assoc, end)()
    expected = {f"1.2.{number}" for number in range(5)}
    wait_until(lambda: set(modality.inbox.transactions) == expected)
    wait_until(node.all_done)
    assert set(modality.inbox.roles) == {(False, True)}


def test_a_peer_that_ignores_roles_gets_its_report_all_the_same(start, modality, wait_until):
    modality.listen(negotiates_roles=False)
    node, uids = start(modality.entity)
    commitments.ask(node.archive, "MODALITY", "1.2", [Reference(CTImageStorage, uids[0])], address="192.0.2.1")
    wait_until(lambda: node.job().state == "done")
    assert modality.inbox.transactions == ["1.2"]


# The peer here is pynetdicom, whose late answer may meet its own release, which its state machine does not bear.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_peer_that_leaves_the_report_unanswered_gets_it_another_way(start, modality, wait_until):
    modality.listen()
    node, uids = start(modality.entity)
    deaf = Mailbox(modality.too_late)
    assoc = modality.associate(node.port, deaf)
    (its,) = node.server._acceptor.associations
    its.dimse_timeout = 0.5  # not on the other way, where the answer may take its time
    ask(assoc, "1.2", *uids)
    wait_until(lambda: node.job().state == "done")
    assert (deaf.transactions, modality.inbox.transactions) == (["1.2"], ["1.2"])
    assert assoc.send_c_echo().Status == 0, "the association itself goes on"
    ask(assoc, "1.3", *uids)
    wait_until(lambda: modality.inbox.transactions == ["1.2", "1.3"])
    assert deaf.transactions == ["1.2"], "it is not asked to wait for the same peer again"
    modality.gone.set()
    assoc.release()


def test_the_peer_is_served_while_it_has_the_report(start, modality, wait_until, make_dataset):
    """Its requests cross the report: each is answered, and the report as well."""
    node, uids = start(modality.entity)
    has_it, served = threading.Event(), threading.Event()

    def busy():
        has_it.set()
        return 0 if served.wait(300) else 0x0110

    assoc = modality.associate(node.port, Mailbox(answer=busy))
    ask(assoc, "1.2", *uids)
    assert has_it.wait(300)
    assert assoc.send_c_echo().Status == 0
    assert assoc.send_c_store(make_dataset(3)).Status == 0
    ask(assoc, "1.3", *uids)
    served.set()
    wait_until(node.all_done)
    assert len(node.jobs()) == 2
    assoc.release()


def test_reports_between_many_requests(start, modality, wait_until, make_dataset):
    """Ten requests for commitment in between fifty objects, one association: nothing is lost, nothing is mixed up."""
    node, uids = start()
    mailbox = Mailbox()
    assoc = modality.associate(node.port, mailbox)
    for number in range(50):
        assert assoc.send_c_store(make_dataset(number + 10)).Status == 0
        if number % 5 == 0:
            ask(assoc, f"1.2.{number}", *uids)
    wait_until(lambda: len(mailbox.transactions) >= 10)
    wait_until(node.all_done)
    assoc.release()
    assert sorted(mailbox.transactions) == sorted({f"1.2.{number}" for number in range(0, 50, 5)})


def test_who_has_no_address_gets_the_report_when_he_calls_again(start, modality, wait_until):
    node, uids = start(jobs={"retry_delay_s": 3000.0})
    modality.associate(node.port, Mailbox()).release()
    wait_until(lambda: not node.server._acceptor.associations)  # on which a courier might bring it at once
    commitments.ask(node.archive, "MODALITY", "1.2", [Reference(CTImageStorage, uids[0])], address="127.0.0.1")
    wait_until(lambda: node.job().attempts == 1 and node.job().state == "queued")
    assert node.job().error == (
        "MODALITY: it has no host and port in [[application_entities]], and no association is open"
    )
    mailbox = Mailbox()
    assoc = modality.associate(node.port, mailbox)
    wait_until(lambda: node.job().state == "done")
    assoc.release()
    assert mailbox.transactions == ["1.2"]


def test_a_report_is_not_given_to_a_namesake_at_another_address(start, modality, wait_until):
    node, uids = start(jobs={"retry_delay_s": 0.1})
    mailbox = Mailbox()
    assoc = modality.associate(node.port, mailbox)
    commitments.ask(node.archive, "MODALITY", "1.2", [Reference(CTImageStorage, uids[0])], address="192.0.2.1")
    wait_until(lambda: node.job().attempts >= 3)
    assoc.release()
    assert mailbox.transactions == []


def test_a_peer_that_is_down_is_tried_again_until_it_is_there(start, modality, wait_until):
    node, uids = start(modality.entity)
    assoc = modality.associate(node.port, Mailbox())
    commitments.ask(node.archive, "MODALITY", "1.2", [Reference(CTImageStorage, uids[0])], address="192.0.2.1")
    assoc.release()
    wait_until(lambda: f"cannot reach MODALITY at 127.0.0.1:{modality.port}" in node.job().error)
    modality.listen()
    wait_until(lambda: node.job().state == "done")
    assert modality.inbox.transactions == ["1.2"]


@pytest.mark.parametrize(
    ("code", "state"), [(0x0115, "failed"), (0x0112, "failed"), (0x0110, "queued"), (0x0213, "queued")]
)
def test_a_peer_that_refuses_the_report(start, modality, wait_until, code, state):
    """PS3.7 10.1.1.1.8: what may pass is tried again, what will not is a failed job that says so."""
    modality.listen()
    node, uids = start(modality.entity, jobs={"retry_delay_s": 3000.0})
    modality.inbox.answer = lambda: code
    assoc = modality.associate(node.port, Mailbox())
    assoc.release()
    commitments.ask(node.archive, "MODALITY", "1.2", [Reference(CTImageStorage, uids[0])], address="192.0.2.1")
    wait_until(lambda: node.job().error)
    assert node.job().state == state
    assert node.job().error == f"MODALITY answered the report with status {code:04X}"


def test_a_report_is_given_up_after_the_time_of_the_settings(start, modality, wait_until):
    node, uids = start(modality.entity, commitment={"retry_hours": 0.0})
    commitments.ask(node.archive, "MODALITY", "1.2", [Reference(CTImageStorage, uids[0])], address="192.0.2.1")
    wait_until(lambda: node.job().state == "failed")
    assert node.job().error.endswith("; given up after 0 h")
    modality.listen()
    node.archive.jobs.retry(node.job().id)
    wait_until(lambda: modality.inbox.transactions == ["1.2"])


def test_a_node_that_stops_gives_the_job_back(start, modality, wait_until, monkeypatch):
    node, uids = start(modality.entity)
    reading = threading.Event()
    monkeypatch.setattr(courier, "_STOP_S", 120.0)

    def endless(root, file, *, on_block):
        while True:
            reading.set()
            on_block(1)

    monkeypatch.setattr(commitments, "examine", endless)
    commitments.ask(node.archive, "MODALITY", "1.2", [Reference(CTImageStorage, uids[0])], address="")
    assert reading.wait(300)
    began = time.monotonic()
    node.server.stop(0.0)
    assert time.monotonic() - began < 60
    assert (node.job().state, node.job().attempts) == ("queued", 0)


def test_what_was_checked_is_not_read_again_for_each_attempt(start, modality, wait_until, monkeypatch):
    node, uids = start(modality.entity)
    read = []

    def whole(root, file, *, on_block):
        read.append(file.sop_instance_uid)
        return Verdict(None)

    monkeypatch.setattr(commitments, "examine", whole)
    commitments.ask(node.archive, "MODALITY", "1.2", [Reference(CTImageStorage, uids[0])], address="")
    wait_until(lambda: node.job().attempts >= 3)
    assert read == uids[:1]


def test_workers_and_couriers_leave_each_other_their_jobs(archive):
    from index.jobs import NETWORK_KINDS
    from plugins.worker import Worker

    archive.jobs.push("series_stable", "1")
    commitments.ask(archive, "A", "1.2", [Reference(CTImageStorage, "1")], address="")
    worker = Worker(archive, load_settings(environment={}), "w")
    worker.run_until_idle()
    assert {job.kind: job.state for job in archive.jobs.recent()}[JOB_KIND] == "queued"
    archive.jobs.push("series_stable", "2")
    job = archive.jobs.claim("c", claim_s=-1, max_attempts=9, kinds=NETWORK_KINDS)
    assert job.kind == JOB_KIND
    assert archive.jobs.claim("c2", claim_s=60, max_attempts=1, excluding=NETWORK_KINDS).kind == "series_stable"
    assert archive.jobs.get(job.id).state == "running", "its claim has expired, which is none of a worker's business"


@pytest.mark.slow
def test_a_request_that_was_answered_survives_a_kill(serve, modality, make_file, wait_until):
    """kill -9 after the N-ACTION-RSP, the requestor is down for a while: the report comes in the end."""
    more = (
        "[jobs]\nretry_delay_s = 0.2\n[[application_entities]]\n"
        f'title = "MODALITY"\nhost = "127.0.0.1"\nport = {modality.port}\nrights = ["store"]\n'
    )
    node = serve(more=more)
    files = [make_file(number) for number in range(1, 4)]
    assert all(sent.is_stored for sent in client.send(node.peer, files, Requestor("MODALITY")))
    uids = [f"1.2.826.0.1.3680043.9.7133.9.{number}" for number in range(1, 4)]
    assoc = modality.associate(node.port, Mailbox(modality.too_late))
    ask(assoc, "1.2", *uids)
    node.kill()
    node.start()
    archive = Archive(node.data)

    def job():
        [found] = [each for each in archive.jobs.recent() if each.kind == JOB_KIND]
        return found

    wait_until(lambda: job().state == "queued" and "cannot reach MODALITY" in job().error)
    modality.listen()
    wait_until(lambda: job().state == "done")
    assert modality.inbox.transactions == ["1.2"]
    assert commitments.get(archive, "MODALITY", "1.2").state is State.REPORTED
