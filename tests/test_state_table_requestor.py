"""The state table of PS3.8 9.2.3 as requestor: what a peer that accepts associations gets for what it does.

pynetdicom's table is the oracle of the rows, and its state machine, which is what carries the other transport, of the
node's own: each row holds for both, but for what is said at the test.
"""

from __future__ import annotations

import contextlib
import functools
import socket
import ssl
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from raw_peer import ABORT
from scripted_peer import P_DATA, ScriptedPeer, stored
from state_table import ABORT_PDU, EVENTS, RELEASE_RP, RELEASE_RQ, agree, contradictions, rows, told

from scp import requestor
from scp.contexts import Proposal
from scp.errors import AssociationLost, NothingAccepted, PeerRejected, PeerUnreachable
from scp.requestor import Peer, Timeouts
from scp.wire import requestor as wire_requestor
from scp.wire import stream

RELEASE_REQUEST = 5

BY_PROVIDER = ["A-ABORT 2"]
TABLE = {
    "Sta5": {
        "A-ASSOCIATE-RJ": [], "A-ASSOCIATE-RQ": BY_PROVIDER, "P-DATA-TF": BY_PROVIDER, "A-RELEASE-RQ": BY_PROVIDER,
        "A-RELEASE-RP": BY_PROVIDER, "A-ABORT": [], "close": [],
        "unknown PDU": BY_PROVIDER, "malformed PDU": BY_PROVIDER,
    },
    "Sta6": {
        "A-ASSOCIATE-AC": BY_PROVIDER, "A-ASSOCIATE-RJ": BY_PROVIDER, "A-ASSOCIATE-RQ": BY_PROVIDER,
        "A-RELEASE-RQ": ["A-RELEASE-RP"], "A-RELEASE-RP": BY_PROVIDER, "A-ABORT": [], "close": [],
        "unknown PDU": BY_PROVIDER, "malformed PDU": BY_PROVIDER,
    },
    "Sta7": {
        "A-ASSOCIATE-AC": BY_PROVIDER, "A-ASSOCIATE-RJ": BY_PROVIDER, "A-ASSOCIATE-RQ": BY_PROVIDER, "P-DATA-TF": [],
        "A-RELEASE-RQ": ["A-RELEASE-RP"], "A-RELEASE-RP": [], "A-ABORT": [], "close": [],
        "unknown PDU": BY_PROVIDER, "malformed PDU": BY_PROVIDER,
    },
    "Sta11": {
        "A-ASSOCIATE-AC": BY_PROVIDER, "A-ASSOCIATE-RJ": BY_PROVIDER, "A-ASSOCIATE-RQ": BY_PROVIDER,
        "P-DATA-TF": BY_PROVIDER, "A-RELEASE-RQ": BY_PROVIDER, "A-RELEASE-RP": [], "A-ABORT": [], "close": [],
        "unknown PDU": BY_PROVIDER, "malformed PDU": BY_PROVIDER,
    },
    "Sta13": {
        "A-ASSOCIATE-AC": [], "A-ASSOCIATE-RJ": [], "A-ASSOCIATE-RQ": BY_PROVIDER, "P-DATA-TF": [],
        "A-RELEASE-RQ": [], "A-RELEASE-RP": [], "A-ABORT": [], "close": [], "ARTIM": [],
        "unknown PDU": BY_PROVIDER, "malformed PDU": BY_PROVIDER,
    },
}  # fmt: skip
"""State → event → what the peer gets.

Not here: Sta4, where there is no connection, and Sta9, which is left at once: the node's response is not waited for.
"""

DIFFERENT = {
    ("Sta5", "A-ASSOCIATE-AC"): "AE-3: each test of Sta6 begins with it",
    ("Sta6", "P-DATA-TF"): "DT-2: it is a response, that of `test_a_status_and_its_comment_are_the_peers`",
}

TIMEOUTS = Timeouts(connect=60.0, acse=60.0, dimse=60.0, network=60.0)
"""For a peer that does something: however slow the machine is, it is not taken for silent."""

SILENT_S = 1.0
"""For a peer that does nothing."""

OPEN = {"own": wire_requestor.open_link, "pynetdicom": requestor.connect}


PATIENCE = {"own": {}, "pynetdicom": {"dimse": 5 * SILENT_S}}
"""Where the association ends while a response is awaited: pynetdicom's requestor waits on until the DIMSE timeout."""


@pytest.fixture(params=["own", "pynetdicom"])
def open_link(request):
    """Opens an association with a peer on this machine, by either transport."""

    return functools.partial(opened, request.param)


def opened(carried_by, peer, **silent):
    return OPEN[carried_by](
        Peer("127.0.0.1", peer.port, "PEER"),
        [Proposal(CTImageStorage, (ExplicitVRLittleEndian,))],
        calling="THARSIS",
        timeouts=replace(TIMEOUTS, **silent),
        max_pdu_bytes=65536,
    )


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


def store(link, data=b"\0" * 100):
    return link.store((CTImageStorage, "1.2.3"), ExplicitVRLittleEndian, data)


def test_the_rows_are_those_of_the_oracle():
    assert contradictions(TABLE, DIFFERENT) == []


def rows_of(state):
    """The rows of a state as parameters of a test."""
    return pytest.mark.parametrize(("event", "expected"), [row[1:] for row in rows(TABLE) if row[0] == state])


def do(peer, event):
    """Have the peer do what the event is, and read what it gets for that until the node closes."""
    peer.got.clear()
    if event == "close":
        peer.connection.shutdown(socket.SHUT_WR)
    elif EVENTS[event] is not None:
        peer.send(EVENTS[event])
    peer.rest()


def got(peer):
    peer.join()
    return [told(pdu) for pdu in peer.got]


# Sta5: awaiting the answer to the association request


@rows_of("Sta5")
def test_sta5_awaiting_the_answer(open_link, peer, event, expected):
    """AE-4, AA-8, AA-3, AA-4."""

    def script(self):
        self.read()
        do(self, event)

    started = peer(script)
    is_rejected = event == "A-ASSOCIATE-RJ"
    why = "rejected the association: called ae title not recognised" if is_rejected else "aborted, or did not answer"
    with pytest.raises(PeerRejected, match=why):
        open_link(started)
    assert agree(got(started), expected)


def test_a_peer_that_never_answers_is_left_after_the_acse_timeout(open_link, peer):
    started = peer(ScriptedPeer.rest)
    with pytest.raises(PeerRejected, match="did not answer"):
        open_link(started, acse=SILENT_S)
    assert started.join()[1:] == [ABORT]


def test_a_peer_that_accepts_nothing(open_link, peer):
    def script(self):
        self.accept(supported=())
        self.rest()

    with pytest.raises(NothingAccepted, match="none of the presentation contexts"):
        open_link(peer(script))


def test_nobody_listens(open_link, reserved_port):
    with pytest.raises(PeerUnreachable, match=r"cannot reach PEER at 127\.0\.0\.1"):
        open_link(SimpleNamespace(port=reserved_port))


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


@pytest.mark.parametrize("comment", ["", "once more "], ids=["ordinary", "unusual"])
def test_a_response_to_another_request_is_not_taken_for_this_one(open_link, peer, comment):
    def script(self):
        self.accept()
        for answered in ([stored(0, 1)], [stored(0, 1, comment=comment), stored(0xA700, 2), stored(0, 2)]):
            self.read_message()
            self.send(b"".join(answered))
        self.read()
        self.send(RELEASE_RP)

    link = open_link(peer(script))
    assert [store(link).code, store(link).code] == [0, 0xA700]
    link.release()


def test_responses_to_other_requests_do_not_put_off_the_end_of_the_wait(open_link, peer):
    given_up = threading.Event()

    def script(self):
        self.accept()
        self.read_message()
        latest = time.monotonic() + 60
        with contextlib.suppress(OSError):
            while not given_up.is_set() and time.monotonic() < latest:
                self.send(stored(0, 7))
            self.send(stored(0, 1))
            self.rest()

    link = open_link(peer(script), dimse=SILENT_S)
    try:
        with pytest.raises(AssociationLost, match="no response to C-STORE"):
            store(link)
    finally:
        given_up.set()
        link.release()


def test_pynetdicom_takes_a_response_that_does_not_tell_what_it_answers(peer):
    def script(self):
        self.accept()
        self.read_message()
        self.send(stored(0xB007, None))
        self.read()
        self.send(RELEASE_RP)

    link = opened("pynetdicom", peer(script))
    assert store(link).code == 0xB007
    link.release()


@rows_of("Sta6")
def test_sta6_what_comes_instead_of_a_response(open_link, peer, event, expected, request):
    """AA-8, AR-2, AA-3, AA-4."""
    if event == "A-RELEASE-RQ" and "pynetdicom" in request.node.name:
        pytest.skip("pynetdicom waits for the response until the DIMSE timeout, and aborts")

    def script(self):
        self.accept()
        self.read_message()
        do(self, event)

    started = peer(script)
    link = open_link(started, **PATIENCE[open_link.args[0]])
    with pytest.raises(AssociationLost):
        store(link)
    link.release()
    assert agree(got(started), expected)


def test_a_peer_that_never_responds_is_aborted(open_link, peer):
    def script(self):
        self.accept()
        self.rest()

    started = peer(script)
    link = open_link(started, dimse=SILENT_S)
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
    link = open_link(started, **PATIENCE[open_link.args[0]])

    def abort():
        assert waiting.wait(60)
        link.abort()

    other = threading.Thread(target=abort)
    other.start()
    with pytest.raises(AssociationLost):
        store(link)
    link.release()
    other.join()
    assert started.join()[-1] == ABORT


# Sta7: awaiting the answer to the release request; Sta9 and Sta11: collision


@rows_of("Sta7")
def test_sta7_awaiting_the_answer_to_the_release_request(open_link, peer, event, expected):
    """AR-6, AR-8, AR-9, AR-3, AA-8, AA-3, AA-4."""

    def script(self):
        self.accept()
        assert self.read() == RELEASE_RQ
        if event in ("P-DATA-TF", "A-RELEASE-RQ"):  # it goes on
            self.got.clear()
            self.send(EVENTS[event])
            assert event == "P-DATA-TF" or self.read() == RELEASE_RP
            self.send(RELEASE_RP)
            self.rest()
        else:
            do(self, event)

    started = peer(script)
    open_link(started).release()
    assert agree(got(started), expected)


@rows_of("Sta11")
def test_sta11_both_have_asked_for_release(open_link, peer, event, expected):
    """AR-3, AA-8, AA-3, AA-4: the requestor has answered."""

    def script(self):
        self.accept()
        self.read()
        self.send(RELEASE_RQ)
        assert self.read() == RELEASE_RP
        do(self, event)

    started = peer(script)
    open_link(started).release()
    assert agree(got(started), expected)


@rows_of("Sta13")
def test_sta13_awaiting_the_end_of_the_connection(peer, monkeypatch, event, expected):
    """AA-6, AA-7, AA-2, AR-5, on the node's own transport: pynetdicom's requestor closes at once."""
    monkeypatch.setattr(stream, "_LINGER_S", 0.3 if event == "ARTIM" else 60.0)

    def script(self):
        self.accept()
        self.read_message()
        self.send(EVENTS["unknown PDU"])
        assert self.read()[0] == ABORT
        if event in ("A-ABORT", "ARTIM", "close"):
            do(self, event)
        else:
            self.got.clear()
            self.send(EVENTS[event])
            self.connection.shutdown(socket.SHUT_WR)
            self.rest()

    started = peer(script)
    link = opened("own", started)
    with pytest.raises(AssociationLost):
        store(link)
    link.release()
    assert agree(got(started), expected)


def test_a_release_that_is_not_answered_ends_with_an_abort(open_link, peer):
    def script(self):
        self.accept()
        self.rest()

    started = peer(script)
    open_link(started, acse=5 * SILENT_S).release()  # of which it has as much for the answer to the first request
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
    assert left.wait(60)
    wait_until(lambda: not link.is_open)
    link.release()
