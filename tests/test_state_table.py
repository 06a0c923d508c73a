"""The state table of PS3.8 9.2.3 as acceptor, event by event, for both transports: what a peer gets for what it sends.

pynetdicom's table is the oracle of the rows, and its state machine, which is what carries the other transport, of the
node's own: each row holds for both.
"""

from __future__ import annotations

import contextlib
import threading
import time
from io import BytesIO

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import ImplicitVRLittleEndian
from pynetdicom.dimse_messages import C_FIND_RQ
from pynetdicom.dimse_primitives import C_FIND
from pynetdicom.dsutils import encode
from pynetdicom.presentation import build_context
from raw_peer import ACCEPT, REJECT, answer, associated, dial, echo_pdu, message_pdus, request_pdu
from state_table import CLOSE, EVENTS, RELEASE_RP, RELEASE_RQ, UNKNOWN, agree, contradictions, rows, told

from scp import acceptor, query, upper_layer
from scp.contexts import STUDY_ROOT_FIND
from scp.wire import association, stream

BY_USER = ["A-ABORT 0/0"]
UNEXPECTED = ["A-ABORT 2/2"]
UNRECOGNISED = ["A-ABORT 2/1"]
INVALID = ["A-ABORT 2/6"]
BY_PROVIDER = ["A-ABORT 2"]
"""For one of two reasons: it is malformed, and it was not to come."""

TABLE = {
    "Sta2": {
        "A-ASSOCIATE-AC": BY_USER, "A-ASSOCIATE-RJ": BY_USER, "P-DATA-TF": BY_USER, "A-RELEASE-RQ": BY_USER,
        "A-RELEASE-RP": BY_USER, "A-ABORT": [], "close": [], "ARTIM": [], "unknown PDU": BY_USER,
        "malformed PDU": BY_USER,
    },
    "Sta3": {
        "A-ASSOCIATE-AC": UNEXPECTED, "A-ASSOCIATE-RJ": UNEXPECTED, "A-ASSOCIATE-RQ": UNEXPECTED,
        "P-DATA-TF": UNEXPECTED, "A-RELEASE-RQ": UNEXPECTED, "A-RELEASE-RP": UNEXPECTED, "A-ABORT": [], "close": [],
        "unknown PDU": UNRECOGNISED, "malformed PDU": BY_PROVIDER,
    },
    "Sta6": {
        "A-ASSOCIATE-AC": UNEXPECTED, "A-ASSOCIATE-RJ": UNEXPECTED, "A-ASSOCIATE-RQ": UNEXPECTED,
        "P-DATA-TF": ["P-DATA-TF"], "A-RELEASE-RQ": ["A-RELEASE-RP"], "A-RELEASE-RP": UNEXPECTED, "A-ABORT": [],
        "close": [], "unknown PDU": UNRECOGNISED, "malformed PDU": INVALID,
    },
    "Sta8": {
        "A-ASSOCIATE-AC": UNEXPECTED, "A-ASSOCIATE-RJ": UNEXPECTED, "A-ASSOCIATE-RQ": UNEXPECTED,
        "P-DATA-TF": UNEXPECTED, "A-RELEASE-RQ": UNEXPECTED, "A-RELEASE-RP": UNEXPECTED, "A-ABORT": [], "close": [],
        "unknown PDU": UNRECOGNISED, "malformed PDU": BY_PROVIDER,
    },
    "Sta13": {
        "A-ASSOCIATE-AC": [], "A-ASSOCIATE-RJ": [], "A-ASSOCIATE-RQ": UNEXPECTED, "P-DATA-TF": [], "A-RELEASE-RQ": [],
        "A-RELEASE-RP": [], "A-ABORT": [], "close": [], "ARTIM": [], "unknown PDU": UNRECOGNISED,
        "malformed PDU": INVALID,
    },
}  # fmt: skip
"""State → event → what the peer gets: type, and of an A-ABORT source and reason.

Not here: Sta4, Sta5, Sta7, Sta9 and Sta11, which a requestor has, and Sta10 and Sta12: an acceptor that asks for
release, as this node never does. Sta13 is that behind an association or its rejection; who was refused before, in Sta2,
is told so with the end of what this node sends (AA-1), and nothing more.
"""

DIFFERENT = {("Sta2", "A-ASSOCIATE-RQ"): "AE-6, AE-7: what it gets is that of Sta3"}


def test_the_rows_are_those_of_the_oracle():
    assert contradictions(TABLE, DIFFERENT) == []


def rows_of(*states):
    """The rows of states as parameters of a test."""
    return pytest.mark.parametrize(("event", "expected"), [row[1:] for row in rows(TABLE) if row[0] in states])


@pytest.fixture(params=["own", "pynetdicom"])
def carried_by(request):
    return request.param


@pytest.fixture
def node(carried_by, start_node):
    return start_node(carried_by=carried_by, acse_timeout_s=60.0, network_timeout_s=60.0)


def send(connection, event):
    if EVENTS[event] == CLOSE:
        connection.shutdown(1)
    elif EVENTS[event] is not None:
        connection.sendall(EVENTS[event])


def rest(connection):
    """Every PDU that comes until the node closes the connection, in words; after the first one it may."""
    got = []
    while pdu := answer(connection):
        if not got:
            with contextlib.suppress(OSError):  # both have closed
                connection.shutdown(1)
        got.append(told(pdu))
    connection.close()
    return got


@rows_of("Sta2")
def test_sta2_awaiting_the_request(carried_by, start_node, event, expected):
    """AA-1, AA-2, AA-5."""
    node = start_node(carried_by=carried_by, acse_timeout_s=1.0 if event == "ARTIM" else 60.0)
    connection = dial(node)
    send(connection, event)
    assert rest(connection) == expected


@pytest.fixture
def slow_judge(monkeypatch):
    """An association request that is judged when it is told to."""
    begun, go_on = threading.Event(), threading.Event()
    stock = association.require_admitted

    def judge(*arguments):
        begun.set()
        go_on.wait(60)
        stock(*arguments)

    for module in (association, acceptor):
        monkeypatch.setattr(module, "require_admitted", judge)
    yield begun, go_on
    go_on.set()


def answered_in_time(carried_by, connection, go_on):
    """What comes while, or as soon as, this node's user goes on: pynetdicom's provider is a thread of its own."""
    first = answer(connection) if carried_by == "pynetdicom" else b""
    go_on.set()
    return ([told(first)] if first else []) + rest(connection)


@rows_of("Sta3")
def test_sta3_awaiting_the_answer_of_this_node(node, carried_by, slow_judge, event, expected):
    """AA-8, AA-3, AA-4."""
    begun, go_on = slow_judge
    connection = dial(node, request_pdu())
    assert begun.wait(60)
    send(connection, event)
    assert agree(answered_in_time(carried_by, connection, go_on), expected)
    assert answer(dial(node, request_pdu()))[0] == ACCEPT


@rows_of("Sta6")
def test_sta6_data_transfer(node, event, expected):
    """AA-8, DT-2, AR-2, AA-3, AA-4."""
    connection = associated(node)
    send(connection, event)
    assert rest(connection) == expected


def test_sta6_data_is_an_indication_and_the_association_stands(node):
    """DT-2, and DT-1 for the answer."""
    connection = associated(node)
    for number in (1, 2, 3):
        connection.sendall(echo_pdu(number))
        assert answer(connection)[0] == 4
    send(connection, "A-RELEASE-RQ")
    assert rest(connection) == ["A-RELEASE-RP"]


@pytest.fixture
def linger_s(monkeypatch):
    """Set how long the node waits in Sta13."""

    def linger(seconds):
        monkeypatch.setattr(stream, "_LINGER_S", seconds)
        monkeypatch.setattr(upper_layer, "_CLOSE_S", seconds)

    return linger


def released(node):
    connection = associated(node)
    connection.sendall(RELEASE_RQ)
    assert answer(connection) == RELEASE_RP
    return connection


def rejected(node):
    connection = dial(node, request_pdu(called="NOBODY"))
    assert answer(connection)[0] == REJECT
    return connection


@pytest.mark.parametrize("ended", [released, rejected])
@rows_of("Sta13")
def test_sta13_awaiting_the_end_of_the_connection(node, linger_s, ended, event, expected):
    """AA-6, AA-7, AA-2, AR-5."""
    linger_s(0.3 if event == "ARTIM" else 60.0)
    connection = ended(node)
    send(connection, event)
    if event not in ("A-ABORT", "ARTIM", "close"):
        connection.shutdown(1)
    assert rest(connection) == expected


def test_sta13_a_pdu_that_was_refused_is_passed_over_and_the_next_one_is_not(node, linger_s):
    """AA-8, AA-6, AA-7: it is long, and comes in parts."""
    linger_s(60.0)
    connection = associated(node)
    connection.sendall(b"\x42\0" + (1 << 20).to_bytes(4, "big"))
    assert told(answer(connection)) == "A-ABORT 2/1"
    connection.sendall(bytes(1 << 20) + echo_pdu())
    send(connection, "A-ASSOCIATE-RQ")
    assert rest(connection) == UNEXPECTED


def test_sta13_garbage_is_answered_once(node, linger_s):
    """AA-7, which the table has for each: who sends garbage without an end is not sent A-ABORTs without an end."""
    linger_s(60.0)
    connection = associated(node)
    connection.sendall(UNKNOWN * 100)  # the first one in Sta6
    assert told(answer(connection)) == "A-ABORT 2/1"
    assert rest(connection) == UNRECOGNISED


@pytest.mark.parametrize("sent", [UNKNOWN, echo_pdu(), b"\4\0\xff\xff\xff\xff"], ids=["garbage", "P-DATA", "long"])
def test_sta13_ends_though_the_peer_sends_without_an_end(node, linger_s, sent):
    """AA-2."""
    linger_s(0.3)
    connection, late = released(node), time.monotonic() + 60

    def go_on():
        while time.monotonic() < late:
            connection.sendall(sent * 1000)

    with contextlib.closing(connection), pytest.raises(OSError, match=r"reset|pipe"):
        go_on()


@pytest.fixture
def slow_find(monkeypatch):
    """A C-FIND that is answered when it is told to."""
    begun, go_on = threading.Event(), threading.Event()
    stock = query.find

    def find(*arguments):
        begun.set()
        go_on.wait(60)
        yield from stock(*arguments)

    monkeypatch.setattr(query, "find", find)
    yield begun, go_on
    go_on.set()


def finding(node, begun):
    """A connection on which a C-FIND is served."""
    identifier = Dataset()
    identifier.QueryRetrieveLevel, identifier.StudyInstanceUID = "STUDY", ""
    request = C_FIND()
    request.MessageID, request.Priority, request.AffectedSOPClassUID = 1, 0, STUDY_ROOT_FIND
    request.Identifier = BytesIO(encode(identifier, True, True))
    connection = associated(node, contexts=[build_context(STUDY_ROOT_FIND, ImplicitVRLittleEndian)])
    connection.sendall(message_pdus(C_FIND_RQ(), request))
    assert begun.wait(60)
    return connection


@pytest.mark.parametrize(("event", "is_answered"), [("A-RELEASE-RQ", True), ("A-ABORT", False), ("close", False)])
def test_what_comes_while_a_request_is_served(node, slow_find, event, is_answered):
    """Sta8: the answers go out first (AR-7), then the release; after an abort there is nobody to answer."""
    begun, go_on = slow_find
    connection = finding(node, begun)
    if EVENTS[event]:
        send(connection, event)
        go_on.set()
        got = []
        while pdu := answer(connection):
            got.append(pdu[0])
        assert got in ([[4, 6]] if is_answered else [[], [4]])
    else:
        connection.close()
        go_on.set()
    connection.close()


@rows_of("Sta8")
def test_sta8_awaiting_the_release_by_this_node(node, carried_by, slow_find, event, expected):
    """AA-8, AA-3, AA-4: a C-FIND is served when its peer asks for release."""
    begun, go_on = slow_find
    connection = finding(node, begun)
    connection.sendall(RELEASE_RQ)
    send(connection, event)
    got = answered_in_time(carried_by, connection, go_on)
    assert agree([each for each in got if each != "P-DATA-TF"], expected)
