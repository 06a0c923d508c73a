"""The state table of PS3.8 9.2.3 as acceptor, event by event, for both transports: what a peer gets for what it sends.

pynetdicom's state machine is the oracle of the node's own transport: each row holds for both.
"""

from __future__ import annotations

import struct
import threading
from io import BytesIO

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import ImplicitVRLittleEndian
from pynetdicom.dimse_messages import C_FIND_RQ
from pynetdicom.dimse_primitives import C_FIND
from pynetdicom.dsutils import encode
from pynetdicom.presentation import build_context
from raw_peer import ABORT, ACCEPT, answer, associated, dial, echo_pdu, message_pdus, request_pdu

from scp import query
from scp.contexts import STUDY_ROOT_FIND

RELEASE_RQ = struct.pack(">BBI", 5, 0, 4) + bytes(4)
RELEASE_RP = struct.pack(">BBI", 6, 0, 4) + bytes(4)
ABORT_PDU = struct.pack(">BBI", 7, 0, 4) + bytes(4)
REJECT_PDU = bytes.fromhex("03000000000400010101")
UNKNOWN = b"\x42\0\0\0\0\4abcd"
MALFORMED = struct.pack(">BBI", 4, 0, 8) + struct.pack(">IBB", 0xFFFF, 1, 3) + b"xx"
CLOSE = b""


def abort(source, reason):
    return struct.pack(">BBIBBBB", ABORT, 0, 4, 0, 0, source, reason)


@pytest.fixture(params=["own", "pynetdicom"])
def node(request, start_node):
    return start_node(carried_by=request.param, acse_timeout_s=5.0, network_timeout_s=5.0)


def accept_pdu(node):
    """An A-ASSOCIATE-AC, such as a peer should never send to an acceptor."""
    connection = dial(node, request_pdu())
    accepted = answer(connection)
    connection.close()
    return accepted


def replies(connection, sent):
    """Send, and return every PDU that comes until the node closes the connection."""
    if sent is CLOSE:
        connection.shutdown(1)
    else:
        connection.sendall(sent)
    told = []
    while pdu := answer(connection):
        told.append(pdu)
        if pdu[0] != 4:
            connection.shutdown(1)
    connection.close()
    return told


EVENTS = {
    "A-ASSOCIATE-AC": None, "A-ASSOCIATE-RJ": REJECT_PDU, "A-ASSOCIATE-RQ": request_pdu(), "P-DATA-TF": echo_pdu(),
    "A-RELEASE-RQ": RELEASE_RQ, "A-RELEASE-RP": RELEASE_RP, "A-ABORT": ABORT_PDU, "unknown PDU": UNKNOWN,
    "malformed PDU": MALFORMED, "close": CLOSE,
}  # fmt: skip


def sent_in(event, node):
    return accept_pdu(node) if event == "A-ASSOCIATE-AC" else EVENTS[event]


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        ("A-ASSOCIATE-AC", [abort(0, 0)]),  # AA-1
        ("A-ASSOCIATE-RJ", [abort(0, 0)]),
        ("P-DATA-TF", [abort(0, 0)]),
        ("A-RELEASE-RQ", [abort(0, 0)]),
        ("A-RELEASE-RP", [abort(0, 0)]),
        ("unknown PDU", [abort(0, 0)]),
        ("malformed PDU", [abort(0, 0)]),
        ("close", []),  # AA-5
    ],
)
def test_sta2_awaiting_the_request(node, event, expected):
    assert replies(dial(node), sent_in(event, node)) == expected


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        ("A-ASSOCIATE-AC", [abort(2, 2)]),  # AA-8
        ("A-ASSOCIATE-RJ", [abort(2, 2)]),
        ("A-ASSOCIATE-RQ", [abort(2, 2)]),
        ("A-RELEASE-RQ", [RELEASE_RP]),  # AR-2, AR-4
        ("A-RELEASE-RP", [abort(2, 2)]),
        ("A-ABORT", []),  # AA-3
        ("unknown PDU", [abort(2, 1)]),
        ("malformed PDU", [abort(2, 6)]),
        ("close", []),  # AA-4
    ],
)
def test_sta6_data_transfer(node, event, expected):
    assert replies(associated(node), sent_in(event, node)) == expected


def test_sta6_data_is_an_indication_and_the_association_stands(node):
    """DT-2, and DT-1 for the answer."""
    connection = associated(node)
    for number in (1, 2, 3):
        connection.sendall(echo_pdu(number))
        assert answer(connection)[0] == 4
    assert replies(connection, RELEASE_RQ) == [RELEASE_RP]


@pytest.mark.parametrize("event", ["A-ASSOCIATE-RQ", "P-DATA-TF", "A-RELEASE-RQ", "A-RELEASE-RP", "A-ABORT", "close"])
def test_sta13_awaiting_the_end_of_the_connection(node, event):
    """AA-6, AA-7, AA-2: whatever comes after the last PDU, nothing more is sent, and the connection ends."""
    connection = associated(node)
    connection.sendall(RELEASE_RQ)
    assert answer(connection) == RELEASE_RP
    try:
        assert replies(connection, sent_in(event, node)) == []
    except OSError:  # the node has closed already
        connection.close()


@pytest.fixture
def slow_find(monkeypatch):
    """A C-FIND that is answered when it is told to."""
    begun, go_on = threading.Event(), threading.Event()
    stock = query.find

    def find(*arguments):
        begun.set()
        go_on.wait(30)
        yield from stock(*arguments)

    monkeypatch.setattr(query, "find", find)
    yield begun, go_on
    go_on.set()


def find_pdus():
    identifier = Dataset()
    identifier.QueryRetrieveLevel, identifier.StudyInstanceUID = "STUDY", ""
    request = C_FIND()
    request.MessageID, request.Priority, request.AffectedSOPClassUID = 1, 0, STUDY_ROOT_FIND
    request.Identifier = BytesIO(encode(identifier, True, True))
    return message_pdus(C_FIND_RQ(), request)


@pytest.mark.parametrize(("event", "is_answered"), [("A-RELEASE-RQ", True), ("A-ABORT", False), ("close", False)])
def test_what_comes_while_a_request_is_served(node, slow_find, event, is_answered):
    """Sta8: the answers go out first (AR-7), then the release; after an abort there is nobody to answer."""
    begun, go_on = slow_find
    connection = associated(node, contexts=[build_context(STUDY_ROOT_FIND, ImplicitVRLittleEndian)])
    connection.sendall(find_pdus())
    assert begun.wait(30)
    if EVENTS[event]:
        connection.sendall(EVENTS[event])
        go_on.set()
        told = []
        while pdu := answer(connection):
            told.append(pdu)
        assert [pdu[0] for pdu in told] in ([[4, 6]] if is_answered else [[], [4]])
    else:
        connection.close()
        go_on.set()
    connection.close()


@pytest.mark.own_transport("pynetdicom reads in a second thread: whether this state is seen is a race")
def test_sta3_awaiting_the_answer_of_this_node(start_node):
    """AA-8 and AA-3."""
    node = start_node()
    connection = dial(node, request_pdu() + echo_pdu())
    assert answer(connection) == abort(2, 2)
    connection.close()
    connection = dial(node, request_pdu() + ABORT_PDU)
    assert answer(connection) == b""
    connection.close()
    assert answer(dial(node, request_pdu()))[0] == ACCEPT
