"""What a peer may cost: connections, associations, PDUs, time (PS3.8 9). Nobody notices the peer that costs most."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import socket
import statistics
import struct
import threading
import time
from pathlib import Path

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import ImplicitVRLittleEndian
from pynetdicom.presentation import build_context
from raw_peer import ABORT, ACCEPT, answer, associated, dial, echo_pdu, request_pdu

from scp import client, inbox, query, transport
from scp.association_request import LONGEST, flaw, remaining
from scp.client import Requestor
from scp.contexts import STUDY_ROOT_FIND, Proposal
from scp.lobby import Lobby
from scp.requestor import Peer

TLS_HELLO = bytes.fromhex("16030100c8010000c40303") + bytes(194)


PATIENCE_S = 60.0
"""For whom a node waits here, unless a test is about just that: nobody is late because the machine is busy."""


def is_served(node):
    """Whether somebody is served, and does not have to wait until another one's time is over."""
    started = time.monotonic()
    client.echo(Peer("127.0.0.1", node.port, "THARSIS"), Requestor("PROMPT"))
    return time.monotonic() - started < PATIENCE_S / 3


@pytest.fixture
def acceptor(start_node):
    """A node, and what it holds."""

    def start(**scp):
        node = start_node(**{"acse_timeout_s": PATIENCE_S, "network_timeout_s": PATIENCE_S, **scp})
        return node, node.server._acceptor

    return start


# Before there is an association: state Sta2 of PS3.8 table 9-10


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        TLS_HELLO,
        b"\xff" * 1000,
        bytes(1000),
        struct.pack(">BBI", 4, 0, 6) + bytes(6),  # P-DATA-TF: AA-1
        struct.pack(">BBI", 5, 0, 4) + bytes(4),  # A-RELEASE-RQ: AA-1
        struct.pack(">BBI", 1, 0, 0xFFFFFFFF) + bytes(100),
        struct.pack(">BBI", 1, 0, LONGEST + 1) + bytes(100),
        struct.pack(">BBI", 1, 0, 10) + bytes(10),
        request_pdu()[:80] + b"\xff\xff" + request_pdu()[82:],
    ],
    ids=["http", "tls", "ones", "zeros", "p-data", "release", "4-gib", "too-long", "too-short", "items"],
)
def test_what_is_no_association_request_is_aborted(acceptor, wait_until, garbage):
    node, held = acceptor()
    connection = dial(node, garbage)
    pdu = answer(connection)
    assert pdu[0] == ABORT
    assert pdu[8] == 0  # AA-1: service-user source
    assert connection.recv(1) == b""
    connection.close()
    wait_until(lambda: not held.associations and len(held._listener._lobby) == 0)
    assert is_served(node)


def test_a_peer_that_aborts_at_once_is_let_go(acceptor, wait_until):
    node, held = acceptor()
    connection = dial(node, struct.pack(">BBI", 7, 0, 4) + bytes(4))
    connection.close()
    wait_until(lambda: len(held._listener._lobby) == 0)


def test_a_probe_leaves_nothing(acceptor, wait_until):
    node, held = acceptor()
    assert is_served(node)
    wait_until(lambda: not held.associations)
    files, threads = _handles("self"), threading.active_count()
    for _ in range(500):
        dial(node).close()
    wait_until(lambda: len(held._listener._lobby) == 0)
    assert _handles("self") <= files + 2
    assert threading.active_count() <= threads
    assert is_served(node)


@pytest.mark.parametrize("part", [b"", request_pdu()[:3], request_pdu()[:100]], ids=["nothing", "header", "half"])
def test_a_request_that_does_not_come_is_not_waited_for(acceptor, monkeypatch, part):
    """The ARTIM timer (PS3.8 9.1.5) runs from the connection on, whatever trickles in."""
    take_in, taken_in = Lobby._take_in, []
    monkeypatch.setattr(Lobby, "_take_in", lambda lobby, visitor: (taken_in.append(visitor), take_in(lobby, visitor)))
    node, held = acceptor(acse_timeout_s=0.5)
    connection = dial(node, part)
    assert connection.recv(10) == b""
    assert len(taken_in) == 1
    assert len(held._listener._lobby) == 0


def test_the_oldest_connection_goes_when_there_are_too_many(acceptor, wait_until):
    node, held = acceptor(max_connections=5)
    idle = [dial(node) for _ in range(5)]
    wait_until(lambda: len(held._listener._lobby) == 5)
    assert is_served(node)
    assert idle[0].recv(1) == b""
    assert len(held._listener._lobby) == 4
    for connection in idle:
        connection.close()


@pytest.fixture
def association_class(transport_name):
    """Where the listener gets its associations from."""
    return {"own": "scp.wire.acceptor.WireAssociation", "pynetdicom": "scp.acceptor.InboundAssociation"}[transport_name]


@pytest.mark.parametrize("seam", ["scp.lobby.flaw", "scp.lobby._Visitor", ""])
def test_an_error_of_our_own_costs_one_connection_only(acceptor, monkeypatch, wait_until, seam, association_class):
    """Whatever is raised over one connection: it is dropped, and the door stays open."""
    node, held = acceptor()

    def defective(*_, **__):
        raise KeyError("a mistake")

    with monkeypatch.context() as patch:
        patch.setattr(seam or association_class, defective)
        connection = dial(node, request_pdu())
        assert answer(connection) == b""
        connection.close()
    assert is_served(node)
    wait_until(lambda: not held.associations)


def test_an_association_for_which_there_is_no_thread_leaves_its_place(acceptor, monkeypatch, association_class):
    """Two that cannot be started do not count as two that are open; they are told to come again (PS3.8 9.3.4)."""
    node, held = acceptor(max_associations=1)

    def no_thread(_association):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(f"{association_class}.start", no_thread)
        for _ in range(2):
            connection = dial(node, request_pdu())
            assert answer(connection) == bytes.fromhex("03000000000400020301")
            connection.close()
    assert not held.associations
    assert is_served(node)


def test_a_request_may_come_byte_by_byte(acceptor):
    node, _ = acceptor()
    connection = dial(node)
    for byte in request_pdu():
        connection.sendall(bytes([byte]))
    assert answer(connection)[0] == ACCEPT
    connection.close()


@pytest.mark.parametrize(
    ("contexts", "syntaxes"), [(128, 60), (1, 200)], ids=["all-contexts", "one-context-many-syntaxes"]
)
def test_a_large_request_is_answered(acceptor, contexts, syntaxes):
    node, _ = acceptor()
    known = ["1.2.840.10008.1.2", *(f"1.2.826.0.1.3680043.9.7133.77.{number}" for number in range(syntaxes - 1))]
    wanted = [build_context(f"1.2.840.10008.5.1.4.1.1.{number + 1}", known) for number in range(contexts)]
    connection = dial(node, request_pdu(wanted))
    connection.settimeout(120)  # on a busy machine; what grows with the square of the items takes longer by far
    assert answer(connection)[0] == ACCEPT
    connection.close()


def _bomb(item, count, inside=None):
    """A request with so many empty items of one type, at its top or inside another item."""
    fixed = struct.pack(">HH", 1, 0) + b"THARSIS".ljust(16) + b"RAW".ljust(16) + bytes(32)
    items = struct.pack(">BBH", item, 0, 0) * count
    body = items if inside is None else struct.pack(">BBH", inside, 0, len(items)) + items
    return struct.pack(">BBI", 1, 0, len(fixed + body)) + fixed + body


@pytest.mark.parametrize(
    ("pdu", "why"),
    [
        (_bomb(0x20, 100_000), "more than 256 items"),
        (_bomb(0x20, 200), "200 presentation contexts"),
        (_bomb(0x54, 16_000, inside=0x50), "more than 1024 items"),
        (_bomb(0x40, 16_000, inside=0x20), "more than 256 items"),
        (struct.pack(">BBI", 1, 0, 68 + 4) + bytes(68) + struct.pack(">BBH", 0x10, 0, 9), "longer than what holds it"),
    ],
)
def test_a_request_is_counted_before_it_is_decoded(pdu, why):
    begun = time.thread_time()  # of the processor, whatever else the machine does
    assert remaining(pdu) == 0
    assert why in flaw(pdu)
    assert time.thread_time() - begun < 0.1


# Limits of an association


def test_max_associations_counts_associations_only(acceptor, wait_until):
    """One more is rejected-transient, by the presentation provider, local limit exceeded (PS3.8 table 9-21)."""
    node, held = acceptor(max_associations=2)
    waiting = [dial(node, request_pdu()[:50]) for _ in range(10)]
    wait_until(lambda: len(held._listener._lobby) == 10)
    first, second = associated(node), associated(node)
    third = dial(node, request_pdu())
    assert answer(third) == bytes.fromhex("03000000000400020302")
    assert third.recv(1) == b""
    first.sendall(struct.pack(">BBI", 5, 0, 4) + bytes(4))
    assert answer(first)[0] == 0x06
    associated(node).close()  # its place is free as soon as the release is answered
    for connection in (*waiting, first, second, third):
        connection.close()


@pytest.mark.parametrize(
    ("sent", "source", "reason"),
    [
        (b"\x42\0\0\0\0\4abcd", 2, 1),  # unrecognized PDU
        (request_pdu(), 2, 2),  # unexpected PDU
        (struct.pack(">BBI", 4, 0, 0xFFFFFFFF), 2, 6),  # invalid PDU parameter value
        (struct.pack(">BBI", 4, 0, 131072 + 1025), 2, 6),
        (struct.pack(">BBI", 5, 0, 0xFFFFFFFF), 2, 6),
        (struct.pack(">BBI", 4, 0, 8) + struct.pack(">IBB", 0xFFFF, 1, 3) + b"xx", 2, 6),
        (struct.pack(">BBI", 4, 0, 8) + struct.pack(">IBB", 4, 1, 3) + b"xx", 2, 6),  # no command set
    ],
    ids=["unknown", "second-request", "4-gib", "beyond-maximum", "long-release", "pdv-length", "no-command"],
)
def test_a_pdu_that_cannot_be_is_aborted_with_its_reason(acceptor, sent, source, reason):
    """PS3.8 table 9-26, and nothing is allocated for a length that is only claimed."""
    node, _ = acceptor(acse_timeout_s=2.0)  # which pynetdicom waits for the peer to close
    connection = associated(node)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    connection.sendall(sent)
    assert answer(connection) == struct.pack(">BBIBBBB", 7, 0, 4, 0, 0, source, reason)
    assert connection.recv(1) == b""
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kilobytes
    connection.close()
    assert is_served(node)


def test_a_pdu_has_to_come_to_its_end(acceptor, wait_until):
    """Half a P-DATA-TF, and then now and then a byte: the association ends, the others do not notice."""
    node, held = acceptor(network_timeout_s=3.0, acse_timeout_s=3.0)
    connection = associated(node)
    connection.sendall(struct.pack(">BBI", 4, 0, 1000))
    ended = threading.Event()

    def trickle():
        with contextlib.suppress(OSError):
            while not ended.wait(0.1):
                connection.sendall(b"x")

    thread = threading.Thread(target=trickle)
    thread.start()
    assert is_served(node)
    wait_until(lambda: not held.associations)
    ended.set()
    thread.join()
    connection.close()


def test_an_association_without_traffic_is_aborted(acceptor):
    node, _ = acceptor(network_timeout_s=0.5)
    started = time.monotonic()
    connection = associated(node)
    assert answer(connection)[0] == ABORT
    assert time.monotonic() - started > 0.4
    connection.close()


def test_an_association_with_traffic_stays(acceptor):
    node, _ = acceptor(network_timeout_s=4.0)
    connection = associated(node)
    pause, until = threading.Event(), time.monotonic() + 4.5
    while time.monotonic() < until:
        connection.sendall(echo_pdu())
        assert answer(connection)[0] == 0x04
        pause.wait(0.3)
    connection.close()


def test_a_long_answer_is_traffic(start_node, make_file, monkeypatch):
    """A retrieve during which the peer says nothing does not cost it the association when it is done."""
    node = start_node(network_timeout_s=3.0)
    [sent] = client.send(Peer("127.0.0.1", node.port, "THARSIS"), [make_file(1)], Requestor("ME"))
    assert sent.is_stored
    stock = query.find
    pause = threading.Event()

    def slow(*arguments):
        for row in stock(*arguments):
            if row.status.is_success:
                pause.wait(4.0)
            yield row

    monkeypatch.setattr(query, "find", slow)
    peer = Peer("127.0.0.1", node.port, "THARSIS")
    with client._open(peer, [Proposal(STUDY_ROOT_FIND, (ImplicitVRLittleEndian,))], Requestor("SLOW")) as link:
        for _ in range(2):
            transport.hold(link.assoc)
            statuses = [status.Status for status, _ in link.assoc.send_c_find(_study_query(), STUDY_ROOT_FIND)]
            assert statuses == [0xFF00, 0]


def test_a_peer_that_does_not_read_is_dropped(start_node, make_dataset, wait_until):
    """Its answers fill the buffers of TCP; then the PDU on its way has the network timeout and no longer."""
    node = start_node(network_timeout_s=3.0)
    held = node.server._acceptor
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(("127.0.0.1", node.port))
    connection.sendall(request_pdu())
    assert answer(connection)[0] == ACCEPT
    ended = threading.Event()

    def ask():
        connection.settimeout(0.2)
        while not ended.is_set():
            with contextlib.suppress(TimeoutError):
                try:
                    connection.sendall(echo_pdu() * 1000)
                except TimeoutError:
                    continue
                except OSError:
                    return

    thread = threading.Thread(target=ask)
    thread.start()
    wait_until(lambda: not held.associations)
    ended.set()
    thread.join()
    connection.close()
    assert is_served(node)


def find_pdus(size):
    """P-DATA-TFs with a C-FIND-RQ, and `size` bytes of an Identifier that is longer."""
    uid = STUDY_ROOT_FIND.encode() + b"\0" * (len(STUDY_ROOT_FIND) % 2)
    elements = (
        struct.pack("<HHI", 0, 2, len(uid)) + uid
        + struct.pack("<HHIH", 0, 0x0100, 2, 0x0020)
        + struct.pack("<HHIH", 0, 0x0110, 2, 1)
        + struct.pack("<HHIH", 0, 0x0700, 2, 0)
        + struct.pack("<HHIH", 0, 0x0800, 2, 1)
    )  # fmt: skip
    command = struct.pack("<HHII", 0, 0, 4, len(elements)) + elements
    pdus = b""
    for header, content in ((3, command), *((0, bytes(10_000)) for _ in range(size // 10_000))):
        pdv = struct.pack(">IBB", len(content) + 2, 1, header) + content
        pdus += struct.pack(">BBI", 4, 0, len(pdv)) + pdv
    return pdus


def test_large_requests_that_do_not_come_to_their_end_keep_nobody_waiting(acceptor, monkeypatch, wait_until):
    """Eight peers that stop within an Identifier lose their connections; the ninth has waited for its room."""
    monkeypatch.setattr(inbox, "_SLOWEST_S", 3.0)
    node, _ = acceptor()
    contexts = [build_context(STUDY_ROOT_FIND, ImplicitVRLittleEndian)]
    entered, enter = [], inbox.Inbox._enter
    monkeypatch.setattr(inbox.Inbox, "_enter", lambda box: (enter(box), entered.append(box)))
    slow = [associated(node, contexts=contexts) for _ in range(8)]
    for connection in slow:
        connection.sendall(find_pdus(70_000))
    wait_until(lambda: len(entered) == 8)
    monkeypatch.setattr(inbox, "_SLOWEST_S", 300.0)  # the ninth may take its time
    started = time.monotonic()
    assert _large_find(node) == [0]
    assert time.monotonic() - started < 45  # network_timeout_s would be 60
    for connection in slow:
        assert answer(connection) in (b"", struct.pack(">BBIBBBB", ABORT, 0, 4, 0, 0, 0, 0))
        connection.close()


def test_large_requests_that_are_served_keep_nobody_waiting(start_node, monkeypatch, wait_until):
    """Nine at the same time, none of which is done: a ninth that waited for room would wait for ever."""
    monkeypatch.setattr(inbox, "_PATIENCE_S", 3600.0)
    node = start_node()
    stock, begun, end = query.find, [], threading.Event()

    def endless(*arguments):
        begun.append(1)
        end.wait()
        yield from stock(*arguments)

    monkeypatch.setattr(query, "find", endless)
    results = []
    threads = [threading.Thread(target=lambda: results.extend(_large_find(node))) for _ in range(9)]
    for thread in threads:
        thread.start()
    try:
        wait_until(lambda: len(begun) == 9)
    finally:
        end.set()
        for thread in threads:
            thread.join()
    assert results == [0] * 9


def test_a_large_request_that_waits_for_room_hears_that_the_node_stops(acceptor, monkeypatch, wait_until):
    asked = threading.Event()

    class Full:
        def acquire(self, timeout):
            asked.set()
            threading.Event().wait(timeout)

    monkeypatch.setattr(inbox, "_room", Full())
    node, server = acceptor()
    connection = associated(node, contexts=[build_context(STUDY_ROOT_FIND, ImplicitVRLittleEndian)])
    connection.sendall(find_pdus(200_000))
    wait_until(asked.is_set)

    server.stop(0.1)

    assert server.associations == []
    assert answer(connection)[:1] in (b"", bytes([ABORT]))
    connection.close()


def _large_find(node):
    """The statuses of a C-FIND whose Identifier has more than 64 KiB."""
    identifier = _study_query()
    identifier.StudyInstanceUID = [f"1.2.826.0.1.3680043.9.7133.404.{number}" for number in range(10_000)]
    peer = Peer("127.0.0.1", node.port, "THARSIS")
    with client._open(peer, [Proposal(STUDY_ROOT_FIND, (ImplicitVRLittleEndian,))], Requestor("LARGE")) as link:
        transport.hold(link.assoc)
        return [status.Status for status, _ in link.assoc.send_c_find(identifier, STUDY_ROOT_FIND)]


@pytest.mark.parametrize("max_pdu", [0, 8, 64, 1000, 16384])
def test_the_maximum_length_of_the_peer_is_kept(acceptor, make_file, max_pdu):
    """PS3.8 D.1: 0 is no limit; even a P-DATA-TF of 8 bytes holds two of a message."""
    node, _ = acceptor()
    connection = associated(node, max_pdu=max_pdu)
    connection.sendall(echo_pdu())
    command = b""
    while True:
        pdu = answer(connection)
        assert pdu[0] == 4
        if max_pdu:
            assert len(pdu) - 6 <= max_pdu
        command += pdu[12:]
        if pdu[11] & 2:
            break
    assert struct.pack("<HHIH", 0, 0x0900, 2, 0) in command
    connection.close()


def test_a_maximum_length_into_which_nothing_fits_is_rejected(acceptor):
    node, _ = acceptor()
    connection = dial(node, request_pdu(max_pdu=7))
    assert answer(connection) == bytes.fromhex("03000000000400010201")
    connection.close()


def test_a_file_handle_beyond_1023_serves_as_well(acceptor):
    """select() cannot watch it; poll can."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 4096:
        pytest.skip(f"this system allows {hard} open files only")
    node, _ = acceptor()
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, hard))
    taken = [os.open("/dev/null", os.O_RDONLY) for _ in range(1100)]
    try:
        assert is_served(node)
    finally:
        for handle in taken:
            os.close(handle)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# Many at the same time, on a node in processes of its own


def _handles(pid):
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def _figures(pid):
    """Threads, file handles and resident memory (MiB) of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    told = dict(line.split(":", 1) for line in status.splitlines())
    return int(told["Threads"]), _handles(pid), int(told["VmRSS"].split()[0]) / 1024


def _processor_seconds(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.slow
def test_200_associations_and_hostile_peers_hold_up_nobody(serve, make_file, wait_until, capsys):
    """The limit answers with its rejection, the others are served within two seconds, and everything comes back.

    One of them may be late on a busy machine, though not by the time that a hostile peer has.
    """
    node = serve(more="")
    node.end()
    node.config.write_text(
        node.config.read_text().replace("[scp]", "[scp]\nmax_associations = 200\nacse_timeout_s = 120\n"
                                        "network_timeout_s = 300\nmax_connections = 500")
    )  # fmt: skip
    node.start()
    pid = node.processes()["network"]
    peer = Peer("127.0.0.1", node.port, "THARSIS")
    [sent] = client.send(peer, [make_file(1)], Requestor("WARM"))
    assert sent.is_stored
    client.echo(peer, Requestor("WARM"))
    before = _figures(pid)
    generator = random.Random(3)

    idle = [associated(node) for _ in range(100)]
    halves = [associated(node) for _ in range(97)]
    for connection in halves:  # in the middle of a P-DATA-TF
        connection.sendall(struct.pack(">BBI", 4, 0, 5000) + generator.randbytes(generator.randrange(1, 2000)))
    loris = [dial(node, request_pdu()[: generator.randrange(1, 200)]) for _ in range(100)]
    silent = [dial(node) for _ in range(100)]
    for _ in range(50):
        for garbage in (b"GET / HTTP/1.1\r\n\r\n", TLS_HELLO, generator.randbytes(500)):
            dial(node, garbage).close()
    for _ in range(500):
        dial(node).close()

    spent, started = _processor_seconds(pid), time.monotonic()
    ended = threading.Event()

    def trickle():
        while not ended.wait(0.2):
            for connection in (*loris, *halves):
                with contextlib.suppress(OSError):
                    connection.send(b"\0")

    thread = threading.Thread(target=trickle)
    thread.start()
    seconds = []
    identifier = _study_query()
    for number in range(2, 7):
        file = make_file(number)
        for ask in (
            lambda: client.echo(peer, Requestor("PROMPT")),
            lambda file=file: list(client.send(peer, [file], Requestor("PROMPT"))),
            lambda: list(client.find(peer, identifier, STUDY_ROOT_FIND, Requestor("PROMPT"))),
        ):
            begun = time.monotonic()
            assert ask()
            seconds.append(time.monotonic() - begun)
    assert statistics.median(seconds) < 2
    assert max(seconds) < 30
    load = (_processor_seconds(pid) - spent) / (time.monotonic() - started)

    last = [associated(node) for _ in range(3)]
    over = dial(node, request_pdu())
    assert answer(over) == bytes.fromhex("03000000000400020302")  # the 201st
    during = _figures(pid)
    ended.set()
    thread.join()
    for connection in (*idle, *halves, *loris, *silent, *last, over):
        connection.close()
    wait_until(lambda: _figures(pid)[0] <= before[0] and _figures(pid)[1] <= before[1] + 2)
    client.echo(peer, Requestor("AFTER"))
    after = _figures(pid)
    with capsys.disabled():
        print(f"\nthreads, handles, MiB: {before} before, {during} during, {after} after; "
              f"slowest answer {max(seconds):.2f} s, processor load {load:.0%}")  # fmt: skip
    assert after[2] - before[2] < 40
    assert "Traceback" not in node.log()


def _study_query():
    identifier = Dataset()
    identifier.QueryRetrieveLevel, identifier.StudyInstanceUID = "STUDY", ""
    return identifier
