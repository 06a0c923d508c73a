"""The state table of PS3.8 9.2.3 as requestor: what a peer that accepts associations gets for what it does.

pynetdicom's state machine is the oracle of the node's own transport: each row holds for both.
"""

from __future__ import annotations

import socket
import ssl
import struct
import threading
from contextlib import closing

import pytest
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pynetdicom.presentation import build_context
from raw_peer import ABORT, answer

from scp import requestor
from scp.contexts import Proposal
from scp.errors import AssociationLost, NothingAccepted, PeerRejected, PeerUnreachable
from scp.requestor import Peer, Timeouts
from scp.wire import negotiation
from scp.wire import requestor as wire_requestor

RELEASE_RQ = bytes.fromhex("05000000000400000000")
RELEASE_RP = bytes.fromhex("06000000000400000000")
ABORT_PDU = bytes.fromhex("07000000000400000000")
REJECT_PDU = bytes.fromhex("03000000000400010107")
UNKNOWN = b"\x42\0\0\0\0\4abcd"
P_DATA, RELEASE_REQUEST, RELEASE_RESPONSE = 4, 5, 6
CONTEXT = 1

TIMEOUTS = Timeouts(connect=5.0, acse=1.0, dimse=1.0, network=5.0)
OPEN = {"own": wire_requestor.open_link, "pynetdicom": requestor.connect}


@pytest.fixture(params=["own", "pynetdicom"])
def open_link(request):
    """Opens an association with a peer on this machine, by either transport."""

    def open_link(peer):
        return OPEN[request.param](
            Peer("127.0.0.1", peer.port, "PEER"),
            [Proposal(CTImageStorage, (ExplicitVRLittleEndian,))],
            calling="THARSIS",
            timeouts=TIMEOUTS,
            max_pdu_bytes=65536,
        )

    return open_link


class ScriptedPeer:
    """Accepts one connection and follows a script; keeps every PDU that it got."""

    def __init__(self, script):
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self.got = []
        self._script = script
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self):
        connection, _ = self._server.accept()
        connection.settimeout(20)
        with closing(connection):
            self.connection = connection
            self._script(self)

    def read(self):
        """The next PDU; empty when the node has closed."""
        pdu = answer(self.connection)
        if pdu:
            self.got.append(pdu)
        return pdu

    def read_message(self):
        """Read P-DATA up to the end of a data set; return how long the longest PDU was."""
        longest = 0
        while True:
            pdu = self.read()
            longest = max(longest, len(pdu) - 6)
            if not pdu or pdu[0] != P_DATA or pdu[11] & 0b11 == 0b10:
                return longest

    def rest(self):
        while self.read():
            pass

    def send(self, data):
        self.connection.sendall(data)

    def accept(self, *, max_pdu=16384, supported=(CTImageStorage,)):
        request = negotiation.read_request(self.read(), "127.0.0.1")
        contexts = [build_context(uid, ExplicitVRLittleEndian) for uid in supported]
        self.send(negotiation.accept(request, contexts, max_pdu)[0])

    def join(self):
        self._thread.join(20)
        assert not self._thread.is_alive()
        self._server.close()
        return [pdu[0] for pdu in self.got]


@pytest.fixture
def peer():
    """Start a peer that follows a script."""
    peers = []

    def start(script):
        peers.append(ScriptedPeer(script))
        return peers[-1]

    yield start
    for each in peers:
        each.join()


def stored(status=0, message_id=1, *, comment=""):
    """A P-DATA-TF with a whole C-STORE-RSP."""
    elements = (
        struct.pack("<HHI", 0, 2, 26) + b"1.2.840.10008.5.1.4.1.1.2\0"
        + struct.pack("<HHIH", 0, 0x0100, 2, 0x8001)
        + struct.pack("<HHIH", 0, 0x0120, 2, message_id)
        + struct.pack("<HHIH", 0, 0x0800, 2, 0x0101)
        + struct.pack("<HHIH", 0, 0x0900, 2, status)
        + (struct.pack("<HHI", 0, 0x0902, len(comment)) + comment.encode() if comment else b"")
    )  # fmt: skip
    command = struct.pack("<HHII", 0, 0, 4, len(elements)) + elements
    pdv = struct.pack(">IBB", len(command) + 2, CONTEXT, 3) + command
    return struct.pack(">BBI", P_DATA, 0, len(pdv)) + pdv


def store(link, data=b"\0" * 100):
    return link.store((CTImageStorage, "1.2.3"), ExplicitVRLittleEndian, data)


# Sta5: awaiting the answer to the association request


@pytest.mark.parametrize(
    ("sent", "error", "sentence"),
    [
        (REJECT_PDU, PeerRejected, "rejected the association: called ae title not recognised"),
        (ABORT_PDU, PeerRejected, "aborted, or did not answer, the association request"),
        (UNKNOWN, PeerRejected, "aborted, or did not answer, the association request"),
        (RELEASE_RQ, PeerRejected, "aborted, or did not answer, the association request"),
        (b"", PeerRejected, "aborted, or did not answer, the association request"),
    ],
)
def test_what_answers_the_association_request(open_link, peer, sent, error, sentence):
    def script(self):
        self.read()
        self.send(sent)
        if not sent:
            self.connection.shutdown(socket.SHUT_WR)
        self.rest()

    started = peer(script)
    with pytest.raises(error) as raised:
        open_link(started)
    assert sentence in str(raised.value)
    kinds = started.join()
    assert kinds[1:] == ([ABORT] if sent in (UNKNOWN, RELEASE_RQ) else [])
    if kinds[1:]:
        assert started.got[1][8] == 2, "by the service provider"


def test_a_peer_that_never_answers_is_left_after_the_acse_timeout(open_link, peer):
    started = peer(ScriptedPeer.rest)
    with pytest.raises(PeerRejected, match="did not answer"):
        open_link(started)
    assert started.join()[1:] == [ABORT]


def test_a_peer_that_accepts_nothing(open_link, peer):
    def script(self):
        self.accept(supported=())
        self.rest()

    with pytest.raises(NothingAccepted, match="none of the presentation contexts"):
        open_link(peer(script))


def test_nobody_listens(open_link):
    class Nobody:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]

    with pytest.raises(PeerUnreachable, match=r"cannot reach PEER at 127\.0\.0\.1"):
        open_link(Nobody)


# Sta6: data transfer


@pytest.mark.parametrize("max_pdu", [4096, 16384, 0])
def test_an_object_goes_in_pdus_that_the_peer_takes(open_link, peer, max_pdu):
    longest = []

    def script(self):
        self.accept(max_pdu=max_pdu)
        longest.append(self.read_message())
        self.send(stored())
        self.read()
        self.send(RELEASE_RP)
        self.rest()

    started = peer(script)
    link = open_link(started)
    assert store(link, bytes(range(256)) * 600).is_success
    link.release()
    kinds = started.join()
    assert kinds[-1] == RELEASE_REQUEST
    assert not max_pdu or max_pdu - 8 <= longest[0] <= max_pdu
    pieces = [pdu[12:] for pdu in started.got if pdu[0] == P_DATA and not pdu[11] & 1]
    assert b"".join(pieces) == bytes(range(256)) * 600


def test_a_status_and_its_comment_are_the_peers(open_link, peer):
    def script(self):
        self.accept()
        for answered in (stored(0xA700, 1, comment="no room "), stored(0xB007, 2)):
            self.read_message()
            self.send(answered)
        self.read()
        self.send(RELEASE_RP)

    link = open_link(peer(script))
    refused, warned = store(link), store(link)
    assert (refused.code, refused.comment.strip(), warned.code) == (0xA700, "no room", 0xB007)
    link.release()


@pytest.mark.parametrize(
    ("sent", "last"), [(ABORT_PDU, []), (b"", []), (UNKNOWN, [ABORT]), (RELEASE_RQ, [RELEASE_RESPONSE])]
)
def test_what_comes_instead_of_a_response(open_link, peer, sent, last, request):
    if sent is RELEASE_RQ and "pynetdicom" in request.node.name:
        pytest.skip("pynetdicom waits for the response until the DIMSE timeout, and aborts")

    def script(self):
        self.accept()
        self.read_message()
        self.got.clear()
        self.send(sent)
        if not sent:
            self.connection.shutdown(socket.SHUT_WR)
        self.rest()

    started = peer(script)
    link = open_link(started)
    with pytest.raises(AssociationLost):
        store(link)
    link.release()
    assert started.join() == last


def test_a_peer_that_never_responds_is_aborted(open_link, peer):
    def script(self):
        self.accept()
        self.rest()

    started = peer(script)
    link = open_link(started)
    with pytest.raises(AssociationLost, match="no response to C-STORE"):
        store(link)
    link.release()
    assert started.join()[-1] == ABORT


def test_an_abort_from_another_thread_ends_the_wait(open_link, peer):
    waiting = threading.Event()

    def script(self):
        self.accept()
        self.read_message()
        waiting.set()
        self.rest()

    started = peer(script)
    link = open_link(started)

    def abort():
        assert waiting.wait(20)
        link.abort()

    other = threading.Thread(target=abort)
    other.start()
    with pytest.raises(AssociationLost):
        store(link)
    link.release()
    other.join()
    assert started.join()[-1] == ABORT


# Sta7: awaiting the answer to the release request; Sta9 and Sta11: collision


def test_data_that_is_under_way_is_let_pass_at_release(open_link, peer):
    def script(self):
        self.accept()
        self.read()
        self.send(stored())
        self.send(RELEASE_RP)
        self.rest()

    started = peer(script)
    open_link(started).release()
    assert started.join()[1:] == [RELEASE_REQUEST]


def test_both_ask_for_release(open_link, peer):
    """AR-8, AR-9, AR-3: the requestor answers first."""

    def script(self):
        self.accept()
        self.read()
        self.send(RELEASE_RQ)
        assert self.read() == RELEASE_RP
        self.send(RELEASE_RP)
        self.rest()

    started = peer(script)
    open_link(started).release()
    assert started.join()[1:] == [RELEASE_REQUEST, RELEASE_RESPONSE]


def test_a_release_that_is_not_answered_ends_with_an_abort(open_link, peer):
    def script(self):
        self.accept()
        self.rest()

    started = peer(script)
    open_link(started).release()
    assert started.join()[1:] == [RELEASE_REQUEST, ABORT]


def test_a_peer_without_tls_where_tls_is_wanted(peer):
    def script(self):
        self.connection.recv(10)
        self.send(b"no TLS here")

    started = peer(script)
    context = ssl.create_default_context()
    with pytest.raises(PeerUnreachable, match="TLS"):
        wire_requestor.open_link(
            Peer("127.0.0.1", started.port, "PEER", context),
            [Proposal(CTImageStorage, (ExplicitVRLittleEndian,))],
            calling="THARSIS", timeouts=TIMEOUTS, max_pdu_bytes=65536,
        )  # fmt: skip


@pytest.mark.parametrize("farewell", [ABORT_PDU, RELEASE_RQ, b""], ids=["aborts", "asks for release", "closes"])
def test_an_association_that_its_peer_has_left_is_not_used_any_more(open_link, peer, wait_until, farewell):
    """Between two objects: whoever sends opens another one, and no object fails for it."""
    left = threading.Event()

    def leave(peer):
        peer.accept()
        peer.read_message()
        peer.send(stored() + farewell)
        if not farewell:
            peer.connection.shutdown(socket.SHUT_WR)
        left.set()
        if farewell == RELEASE_RQ:
            assert peer.read() == RELEASE_RP
        peer.rest()

    link = open_link(peer(leave))
    assert store(link).code == 0
    assert left.wait(20)
    wait_until(lambda: not link.is_open, 10)
    link.release()
