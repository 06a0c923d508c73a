"""The node's own transport, part by part; pynetdicom's codecs are the oracle."""

from __future__ import annotations

import random
import socket
import struct
import threading
from contextlib import suppress
from io import BytesIO

import pytest
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pynetdicom.dimse_messages import (
    C_CANCEL_RQ,
    C_ECHO_RQ,
    C_ECHO_RSP,
    C_FIND_RSP,
    C_GET_RSP,
    C_MOVE_RSP,
    C_STORE_RQ,
    C_STORE_RSP,
    N_ACTION_RSP,
    N_EVENT_REPORT_RQ,
)
from pynetdicom.dimse_primitives import C_CANCEL, C_ECHO, C_FIND, C_GET, C_MOVE, C_STORE, N_ACTION, N_EVENT_REPORT
from pynetdicom.dsutils import encode
from pynetdicom.presentation import build_context
from raw_peer import answer, associated, echo_pdu, request_pdu

from index.errors import NotFound
from scp import transport  # noqa: F401  (its additions to the command sets are part of the oracle)
from scp.contexts import VERIFICATION
from scp.wire import commands, negotiation, pdu
from scp.wire.errors import Interrupted, PeerClosed, Violation
from scp.wire.stream import Alarm, Stream

UID = "1.2.826.0.1.3680043.9.7133.9.1"


def primitive(kind, **values):
    made = kind()
    for keyword, value in values.items():
        setattr(made, keyword, value)
    return made


RESPONDING = {"MessageIDBeingRespondedTo": 7}
MESSAGES = [
    (C_ECHO_RSP, primitive(C_ECHO, **RESPONDING, AffectedSOPClassUID="1.2.840.10008.1.1", Status=0)),
    (C_FIND_RSP, primitive(C_FIND, **RESPONDING, AffectedSOPClassUID="1.2.3", Status=0xFF00,
                           Identifier=BytesIO(b"xx"))),
    (C_FIND_RSP, primitive(C_FIND, **RESPONDING, AffectedSOPClassUID="1.2.3", Status=0xA900, ErrorComment="odd",
                           OffendingElement=[0x00100010, 0x00080052])),
    (C_MOVE_RSP, primitive(C_MOVE, **RESPONDING, AffectedSOPClassUID="1.2.34", Status=0xFF00,
                           NumberOfRemainingSuboperations=3, NumberOfCompletedSuboperations=1,
                           NumberOfFailedSuboperations=0, NumberOfWarningSuboperations=2)),
    (C_GET_RSP, primitive(C_GET, **RESPONDING, AffectedSOPClassUID="1.2.34", Status=0xB000,
                          NumberOfCompletedSuboperations=1, NumberOfFailedSuboperations=1,
                          NumberOfWarningSuboperations=0, Identifier=BytesIO(b"xx"))),
    (C_STORE_RSP, primitive(C_STORE, **RESPONDING, AffectedSOPClassUID=CTImageStorage, AffectedSOPInstanceUID=UID,
                            Status=0)),
    (C_STORE_RQ, primitive(C_STORE, MessageID=9, Priority=2, AffectedSOPClassUID=CTImageStorage,
                           AffectedSOPInstanceUID=UID, DataSet=BytesIO(b"xx"))),
    (N_ACTION_RSP, primitive(N_ACTION, **RESPONDING, AffectedSOPClassUID="1.2.3", AffectedSOPInstanceUID="1.2.4",
                             ActionTypeID=1, Status=0x0115, ErrorComment="none")),
    (N_EVENT_REPORT_RQ, primitive(N_EVENT_REPORT, MessageID=3, AffectedSOPClassUID="1.2.3",
                                  AffectedSOPInstanceUID="1.2.4", EventTypeID=2, EventInformation=BytesIO(b"xx"))),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "message"), MESSAGES, ids=[kind.__name__ for kind, _ in MESSAGES])
def test_command_sets_are_those_of_pynetdicom(kind, message):
    stock = kind()
    stock.primitive_to_message(message)
    has_data = bool(stock.data_set is not None and stock.data_set.getvalue())
    assert commands.encoded(message, has_data_set=has_data) == encode(stock.command_set, True, True)


@pytest.mark.parametrize(
    ("status", "comment", "offending"), [(0, "", ()), (0xA900, "odd", (0x00100010,)), (0xB006, "kept", ())]
)
def test_the_response_to_a_c_store_is_that_of_pynetdicom(status, comment, offending):
    told = {"ErrorComment": comment or None, "OffendingElement": list(offending) or None}
    message = primitive(
        C_STORE, **RESPONDING, AffectedSOPClassUID=CTImageStorage, AffectedSOPInstanceUID=UID, Status=status, **told
    )
    stock = C_STORE_RSP()
    stock.primitive_to_message(message)
    request = commands.StoreRequest(7, CTImageStorage, UID)
    assert commands.stored(request, status, comment, offending) == encode(stock.command_set, True, True)


def store_command(**values):
    message = C_STORE_RQ()
    told = {"MessageID": 9, "Priority": 0, "AffectedSOPClassUID": CTImageStorage, "AffectedSOPInstanceUID": UID}
    message.primitive_to_message(primitive(C_STORE, **{**told, "DataSet": BytesIO(b"xx"), **values}))
    return encode(message.command_set, True, True)


def test_a_c_store_is_read_without_pydicom():
    assert commands.store_request(store_command()) == commands.StoreRequest(9, CTImageStorage, UID)
    told = store_command(MoveOriginatorApplicationEntityTitle="A", MoveOriginatorMessageID=4)
    assert commands.store_request(told) is not None


@pytest.mark.parametrize(
    "command",
    [
        b"", store_command()[:-1], store_command()[:30], store_command() + bytes(4), store_command() * 2,
        store_command().replace(struct.pack("<HHLH", 0, 0x0100, 2, 1), struct.pack("<HHLH", 0, 0x0100, 2, 0x30)),
        store_command().replace(struct.pack("<HHLH", 0, 0x0700, 2, 0), struct.pack("<HHLH", 0, 0x0700, 2, 5)),
        store_command().replace(struct.pack("<HHLH", 0, 0x0110, 2, 9), b""),
        store_command(AffectedSOPInstanceUID=None), store_command().replace(b"7133.9.1", b"71\\3.9.1"),
    ],
)  # fmt: skip
def test_what_is_unusual_is_left_to_pynetdicom(command):
    assert commands.store_request(command) is None


def test_an_ordinary_response_to_a_c_store_that_has_a_pdu_for_itself_is_read_at_once():
    command = commands.encoded(
        primitive(C_STORE, **RESPONDING, AffectedSOPClassUID=CTImageStorage, AffectedSOPInstanceUID=UID, Status=0xB007),
        has_data_set=False,
    )

    def value(content, header=pdu.COMMAND | pdu.LAST):
        return struct.pack(">IBB", len(content) + 2, 1, header) + content

    read = commands.lone_store_response(memoryview(value(command)))
    assert (read.MessageIDBeingRespondedTo, read.Status) == (7, 0xB007)
    cut = value(command[:20], pdu.COMMAND) + value(command[20:])
    for other in (b"", b"\0\0\0\2\1\3", cut, value(command, pdu.COMMAND), value(command, 0), value(command)[:-1]):
        assert commands.lone_store_response(memoryview(other)) is None


def test_a_request_that_came_before_is_answered_in_the_same_way_and_for_each_caller_in_his():
    private = "1.2.40.0.13.9.9"
    asked = request_pdu(contexts=[build_context(CTImageStorage, ExplicitVRLittleEndian), build_context(private)])
    first, second = (negotiation.answered(asked, private=False, max_pdu_bytes=16384) for _ in range(2))
    assert first == second
    assert [context.abstract_syntax for context in first[1]] == [CTImageStorage]
    trusted = negotiation.answered(asked, private=True, max_pdu_bytes=16384)
    assert [context.abstract_syntax for context in trusted[1]] == [CTImageStorage, private]
    addresses = [negotiation.read_request(asked, address).requested.address for address in ("192.0.2.1", "192.0.2.2")]
    assert addresses == ["192.0.2.1", "192.0.2.2"]


@pytest.mark.parametrize("largest", [8, 9, 64, 16384])
def test_fragments_keep_to_the_maximum_length(largest):
    content = random.Random(largest).randbytes(1001)
    pieces = list(pdu.fragments(5, pdu.COMMAND, content, largest))
    whole, headers = b"", []
    for head, piece in zip(pieces[::2], pieces[1::2], strict=True):
        encoded = head + piece
        assert len(encoded) - pdu.HEADER <= largest
        [(context_id, header, fragment)] = pdu.data_values(memoryview(encoded)[pdu.HEADER :])
        assert context_id == 5
        headers.append(header)
        whole += fragment
    assert whole == content
    assert headers == [1] * (len(headers) - 1) + [3]


@pytest.fixture
def streams():
    """Make a stream and the other end of its connection."""
    made = []

    def make(largest=4096):
        ours, theirs = socket.socketpair()
        listener = socket.create_server(("127.0.0.1", 0))
        ours.close()
        theirs.close()
        theirs = socket.create_connection(listener.getsockname())
        ours, _ = listener.accept()
        listener.close()
        alarm = Alarm()
        made.extend([theirs, alarm])
        stream = Stream(ours, largest, alarm)
        made.append(stream)
        return stream, theirs, alarm

    yield make
    for each in made:
        each.close()


def test_a_stream_gives_pdus_however_they_were_cut(streams):
    stream, peer, _ = streams()
    generator = random.Random(1)
    sent = [generator.randbytes(generator.randrange(0, 4096)) for _ in range(200)]
    wire = b"".join(struct.pack(">BBI", 4, 0, len(content)) + content for content in sent)

    def send():
        begin = 0
        while begin < len(wire):
            step = generator.choice([1, 5, 6, 7, 100, 5000, 20000])
            peer.sendall(wire[begin : begin + step])
            begin += step

    thread = threading.Thread(target=send)
    thread.start()
    for content in sent:
        kind, got = stream.pdu(60.0)
        assert (kind, bytes(got)) == (4, content)
    thread.join()


def test_a_stream_ends_in_words(streams):
    stream, peer, alarm = streams()
    with pytest.raises(TimeoutError):
        stream.pdu(0.01)
    peer.sendall(struct.pack(">BBI", 4, 0, 6000))
    with pytest.raises(Violation):
        stream.pdu(60.0)
    stream, peer, _ = streams()
    peer.sendall(b"\4\0\0")
    peer.shutdown(socket.SHUT_WR)
    with pytest.raises(PeerClosed, match="within a PDU"):
        stream.pdu(60.0)
    stream, peer, alarm = streams()
    alarm.ring()
    with pytest.raises(Interrupted):
        stream.pdu(None)


def values(context_id, kind, content, step, *, empty):
    """Presentation data values of `step` bytes each; `empty`: with one of no bytes before each, and as the last one."""
    pieces = [content[begin : begin + step] for begin in range(0, len(content), step)]
    if empty:
        pieces = [*(each for piece in pieces for each in (b"", piece)), b""]
    for number, piece in enumerate(pieces, 1):
        last = pdu.LAST if number == len(pieces) else 0
        yield struct.pack(">IBB", len(piece) + 2, context_id, kind | last) + piece


@pytest.mark.parametrize("empty", [False, True], ids=["", "empty"])
@pytest.mark.parametrize("step", [1, 2, 7, 1000, 130_000])
def test_an_object_in_fragments_of_any_size_is_stored_as_it_was_sent(start_node, make_dataset, step, empty):
    """Command and data set cut anywhere, several values in one PDU, a cancel and an echo pipelined behind."""
    node = start_node()
    data = encode(make_dataset(1), False, True)
    cancel = C_CANCEL_RQ()
    cancel.primitive_to_message(primitive(C_CANCEL, MessageIDBeingRespondedTo=9))
    echo = C_ECHO_RQ()
    echo.primitive_to_message(primitive(C_ECHO, MessageID=10, AffectedSOPClassUID=VERIFICATION))
    sent = [
        (1, pdu.COMMAND, store_command()), (1, 0, data), (1, pdu.COMMAND, encode(cancel.command_set, True, True)),
        (3, pdu.COMMAND, encode(echo.command_set, True, True)),
    ]  # fmt: skip
    connection = associated(
        node, contexts=[build_context(CTImageStorage, ExplicitVRLittleEndian), build_context(VERIFICATION)]
    )
    items = [item for each in sent for item in values(*each, step, empty=empty)]
    for begin in range(0, len(items), 3):  # three values to a PDU
        body = b"".join(items[begin : begin + 3])
        connection.sendall(struct.pack(">BBI", 4, 0, len(body)) + body)
    for responding_to in (9, 10):
        response = answer(connection)
        assert struct.pack("<HHLH", 0, 0x0120, 2, responding_to) in response
        assert struct.pack("<HHLH", 0, 0x0900, 2, 0) in response
    connection.close()
    stored = node.archive.open_instance(UID)
    content = stored.path.read_bytes()
    assert content.endswith(data)
    assert stored.size == len(content)


@pytest.mark.own_transport("pynetdicom reads on while it serves: more than 16 requests that wait end the association")
def test_pipelined_requests_are_answered_in_order(start_node):
    node = start_node()
    connection = associated(node)
    connection.sendall(b"".join(echo_pdu(number) for number in range(1, 101)))
    for number in range(1, 101):
        assert struct.pack("<HHLH", 0, 0x0120, 2, number) in answer(connection)
    connection.close()


def test_a_transfer_that_ends_early_leaves_nothing(start_node, wait_until):
    node = start_node()
    connection = associated(node, contexts=[build_context(CTImageStorage, ExplicitVRLittleEndian)])
    command = store_command()
    body = struct.pack(">IBB", len(command) + 2, 1, 3) + command + struct.pack(">IBB", 1002, 1, 0) + bytes(1000)
    connection.sendall(struct.pack(">BBI", 4, 0, len(body)) + body)
    for _ in range(20):  # more than is kept in memory
        connection.sendall(struct.pack(">BBIIBB", 4, 0, 60_006, 60_002, 1, 0) + bytes(60_000))

    def begun():
        with suppress(FileNotFoundError):  # removed at that moment
            return [path for path in node.archive.incoming.iterdir() if path.stat().st_size]
        return []

    wait_until(begun)
    connection.close()
    wait_until(lambda: not begun())
    with pytest.raises(NotFound):
        node.archive.open_instance(UID)
