"""Several processes on one port: they share the work, the limits, and what was promised to a peer."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pynetdicom import AE, evt

from commands.supervisor import Supervisor
from config.settings import load_settings
from index.archive import Archive
from scp.commitment import SOP_INSTANCE_UID
from scp.contexts import STORAGE_COMMITMENT, VERIFICATION
from scp.places import PLACES_FILE, Places
from scp.server import Server

REJECTED_TRANSIENT, BY_PRESENTATION, LOCAL_LIMIT_EXCEEDED = 2, 3, 2


def associate(port, *, title="SENDER", handlers=()):
    entity = AE(title)
    for sop_class in (VERIFICATION, CTImageStorage, STORAGE_COMMITMENT):
        entity.add_requested_context(sop_class, ExplicitVRLittleEndian)
    return entity.associate("127.0.0.1", port, ae_title="THARSIS", evt_handlers=list(handlers))


def taken(node):
    """Associations that each process has."""
    return [taken for taken, _ in struct.iter_unpack("<qq", (node.data / PLACES_FILE).read_bytes())]


def shared_out(node, **told):
    """At least four associations, of which each process has one."""
    open_ones = []
    while len(open_ones) < 4 or not all(taken(node)):
        assert len(open_ones) < 40, "one process takes them all"
        open_ones.append(associate(node.port, **{name: of(len(open_ones)) for name, of in told.items()}))
        assert open_ones[-1].is_established
    return open_ones


@pytest.fixture(scope="module")
def shared_node(serve_all):
    return serve_all(acceptors=2)


def all_accept(node):
    """Whether each process says how many connections it has: one that died says so again when it is back."""
    return all(load < 1 << 32 for _, load in struct.iter_unpack("<qq", (node.data / PLACES_FILE).read_bytes()))


@pytest.fixture
def node(shared_node, wait_until):
    """A node with two processes that accept associations, and no association."""
    wait_until(lambda: all_accept(shared_node))
    yield shared_node
    wait_until(lambda: taken(shared_node) == [0, 0])


def test_associations_are_dealt_out_evenly(node, wait_until):
    """On a busy machine a process may come to run too late for the next one, and then again; not each time."""
    least = []
    while max(least, default=0) < 3:
        assert len(least) < 10, least
        open_ones = [associate(node.port) for _ in range(12)]
        assert all(assoc.is_established for assoc in open_ones)
        assert sum(taken(node)) == 12
        least.append(min(taken(node)))
        assert all(assoc.send_c_echo().Status == 0 for assoc in open_ones)
        for assoc in open_ones:
            assoc.release()
        wait_until(lambda: taken(node) == [0, 0])


def test_the_limit_of_associations_is_the_nodes(serve, wait_until):
    node = serve(acceptors=2, more="", scp="max_associations = 3\n")
    open_ones = [associate(node.port) for _ in range(3)]
    assert all(assoc.is_established for assoc in open_ones)
    refused = []

    def is_rejected():
        """Ask again where pynetdicom takes what comes at once for a connection that could not be opened."""
        refused.append(associate(node.port))
        return refused[-1].is_rejected

    wait_until(is_rejected)
    answer = refused[-1].acceptor.primitive
    assert (answer.result, answer.result_source, answer.diagnostic) == (
        REJECTED_TRANSIENT, BY_PRESENTATION, LOCAL_LIMIT_EXCEEDED,
    )  # fmt: skip
    open_ones.pop().release()
    wait_until(lambda: sum(taken(node)) == 2)
    open_ones.append(associate(node.port))
    assert open_ones[-1].is_established
    for assoc in open_ones:
        assoc.release()


@pytest.mark.parametrize("name", ["network", "network-2"])
def test_when_one_dies_the_others_go_on_and_nobody_is_turned_away(node, wait_until, make_dataset, name):
    open_ones = shared_out(node)
    has = dict(zip(("network", "network-2"), taken(node), strict=True))
    dead = node.processes()[name]
    os.kill(dead, signal.SIGKILL)
    wait_until(lambda: sum(assoc.is_established for assoc in open_ones) == len(open_ones) - has[name])
    left = [assoc for assoc in open_ones if assoc.is_established]
    assert {assoc.send_c_store(make_dataset(number)).Status for number, assoc in enumerate(left, 1)} == {0}
    fresh = associate(node.port)
    assert fresh.is_established, "the other one accepts what comes meanwhile"
    wait_until(lambda: node.processes()[name] != dead)
    wait_until(lambda: sum(taken(node)) == len(left) + 1)
    for assoc in (*left, fresh):
        assoc.release()
    assert f"{name} (process {dead}) died of SIGKILL" in node.log()


def test_many_senders_store_through_all_processes(node, make_dataset):
    archive, so_far = Archive(node.data), len(node.log())
    senders = shared_out(node, title="SENDER{}".format)
    for number in range(40):
        assert senders[number % len(senders)].send_c_store(make_dataset(number + 1)).Status == 0
    for sender in senders:
        sender.release()
    assert archive.database.execute("SELECT count(*) FROM instance").fetchone() == (40,)
    stored = [line for line in node.log()[so_far:].splitlines() if "C-STORE" in line]
    assert {line.split()[3] for line in stored} == {"network", "network-2"}


def request(uid, instance):
    information, item = Dataset(), Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = CTImageStorage, instance
    information.TransactionUID, information.ReferencedSOPSequence = uid, [item]
    return information


def test_each_report_comes_on_the_association_of_its_request(node, wait_until, make_dataset):
    """The AE has no address of its own: a report that another process tried to bring would never arrive."""
    told = {}

    def note(number):
        def take(event):
            told.setdefault(number, []).append(str(event.event_information.TransactionUID))
            return 0, None

        return [(evt.EVT_N_EVENT_REPORT, take)]

    modalities = shared_out(node, title="MODALITY{}".format, handlers=note)
    assert modalities[0].send_c_store(make_dataset(1)).Status == 0
    for number, assoc in enumerate(modalities):
        information = request(f"1.2.{number}", make_dataset(1).SOPInstanceUID)
        answer, _ = assoc.send_n_action(information, 1, STORAGE_COMMITMENT, SOP_INSTANCE_UID)
        assert answer.Status == 0
    wait_until(lambda: told == {number: [f"1.2.{number}"] for number in range(len(modalities))})
    for assoc in modalities:
        assoc.release()


@pytest.fixture
def two_servers(tmp_path):
    """Two network processes of one node, both in this one, each with a port of its own."""
    overrides = {
        "scp": {"host": "127.0.0.1", "port": 0},
        "jobs": {"retry_delay_s": 3000.0},
        "archive": {"data": str(tmp_path / "data"), "reserve_mb": 0},
    }
    settings = load_settings(environment={}, overrides=overrides)
    archive = Archive.from_settings(settings.archive)
    servers = [Server(archive, settings, name=name) for name in ("network", "network-2")]
    for server in servers:
        server.start()
    yield archive, servers
    for server in servers:
        server.stop(1.0)


def test_who_ended_the_association_gets_the_report_on_one_that_another_process_has(
    two_servers, wait_until, make_instance
):
    archive, (first, second) = two_servers
    uid = archive.ingest(make_instance(1)).sop_instance_uid
    told = []

    def take(event):
        told.append(str(event.event_information.TransactionUID))
        return 0, None

    stays = associate(second.port, title="MODALITY", handlers=[(evt.EVT_N_EVENT_REPORT, take)])
    leaves = associate(first.port, title="MODALITY")
    answer, _ = leaves.send_n_action(request("1.2", uid), 1, STORAGE_COMMITMENT, SOP_INSTANCE_UID)
    leaves.abort()
    assert answer.Status == 0
    wait_until(lambda: told == ["1.2"])
    stays.release()


def test_places_are_counted_over_all_slots_and_a_new_owner_begins_with_none(tmp_path):
    first, second = (Places(tmp_path / "places", slot, 2) for slot in range(2))
    assert [first.take(3), second.take(3), first.take(3), second.take(3)] == [True, True, True, False]
    first.note_load(2)
    second.note_load(1)
    assert (first.is_busier, second.is_busier) == (True, False)
    follower = Places(tmp_path / "places", 0, 2)  # of a process that has died
    assert [second.take(3), second.take(3), second.take(3)] == [True, True, False]
    second.give_back()
    assert follower.take(3)
    follower.close()
    second.close()


def test_who_dies_gives_its_places_back_before_another_follows(tmp_path):
    settings = load_settings(
        environment={}, overrides={"archive": {"data": str(tmp_path)}, "network": {"acceptors": 2}}
    )
    supervisor = Supervisor(settings)
    dead, living = (Places(tmp_path / PLACES_FILE, slot, 2) for slot in range(2))
    assert [dead.take(2), dead.take(2), living.take(2)] == [True, True, False]
    process = supervisor._processes[0]
    process.child = subprocess.Popen([sys.executable, "-c", ""])  # forking is not for a process with threads
    process.child.wait()

    supervisor._look_after(process)

    assert [living.take(2), living.take(2), living.take(2)] == [True, True, False]
    living.note_load(5)
    assert not living.is_busier  # and nobody waits for one that does not run to take a connection
    living.close()
