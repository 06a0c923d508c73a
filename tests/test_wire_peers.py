"""What peers do to the node's own transport that they should not, or might: nothing is lost, left behind or held up."""

from __future__ import annotations

import errno
import logging
import socket
import ssl
import struct
import threading
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import pytest
from authorities import Authority
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom.dimse_messages import C_GET_RQ, C_STORE_RQ
from pynetdicom.dimse_primitives import C_GET, C_STORE
from pynetdicom.dsutils import encode
from pynetdicom.presentation import build_context
from raw_peer import ABORT, ACCEPT, answer, associated, dial, echo_pdu, message_pdus, request_pdu

from index.blocks import Blocks
from index.errors import NotFound
from scp import upper_layer
from scp.contexts import STUDY_ROOT_GET
from scp.errors import AssociationLost
from scp.reception import Reception
from scp.wire import pdu
from scp.wire import stream as wire_stream
from scp.wire.channel import Channel
from scp.wire.errors import Refused
from scp.wire.stream import Alarm, Stream

UID = "1.2.826.0.1.3680043.9.7133.9.1"
STORAGE = [build_context(CTImageStorage, ExplicitVRLittleEndian)]
SUCCESS = struct.pack("<HHLH", 0, 0x0900, 2, 0)


def abort(source, reason):
    return struct.pack(">BBIBBBB", ABORT, 0, 4, 0, 0, source, reason)


def store_pdus(dataset, **values):
    request = C_STORE()
    request.MessageID, request.Priority = 1, 0
    request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = dataset.SOPClassUID, dataset.SOPInstanceUID
    for keyword, value in values.items():
        setattr(request, keyword, value)
    request.DataSet = BytesIO(encode(dataset, False, True))
    return message_pdus(C_STORE_RQ(), request)


def refuse_to_remove(patch, folder):
    """Let no file of a folder be removed."""
    unlink = Path.unlink

    def refusing(path, *, missing_ok=False):
        if path.parent == folder:
            raise OSError(errno.EROFS, "Read-only file system", str(path))
        unlink(path, missing_ok=missing_ok)

    patch.setattr(Path, "unlink", refusing)


@pytest.fixture
def node(start_node):
    return start_node()


# What comes


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (struct.pack(">BBI", 5, 0, 131072 + 1025), 6),
        (struct.pack(">BBI", 7, 0, 600_000), 6),
        pytest.param(
            struct.pack(">BBI", 1, 0, 600_000), 2,
            marks=pytest.mark.own_transport("pynetdicom judges the place of a PDU when it has read all of it"),
        ),
    ],
    ids=["long-release", "long-abort", "long-request"],
)
def test_a_pdu_for_which_there_is_no_room_is_told_with_its_reason(node, sent, reason):
    connection = associated(node)
    connection.sendall(sent + bytes(1000))
    assert answer(connection) == abort(2, reason)
    connection.close()


@pytest.mark.own_transport("pynetdicom compares the whole protocol version with 1")
@pytest.mark.parametrize(
    ("version", "expected"), [(1, None), (3, None), (2, bytes.fromhex("03000000000400010202")), (0x8001, None)]
)
def test_one_bit_of_the_protocol_version_counts(node, version, expected):
    """PS3.8 9.3.2: a receiver tests bit 0 alone."""
    request = request_pdu()
    connection = dial(node, request[:6] + struct.pack(">H", version) + request[8:])
    told = answer(connection)
    assert told[0] == ACCEPT if expected is None else told == expected
    connection.close()


def test_another_application_context_is_rejected(start_node):
    """PS3.8 table 9-21: by the service user, application context name not supported."""
    request = request_pdu().replace(b"1.2.840.10008.3.1.1.1", b"1.2.840.10008.3.1.1.9")
    for transport in ("own", "pynetdicom"):
        connection = dial(start_node(carried_by=transport), request)
        assert answer(connection) == bytes.fromhex("03000000000400010102")
        connection.close()


@pytest.mark.own_transport("pynetdicom reads in a second thread: whether it sees the abort before it accepts is a race")
def test_an_association_that_ends_before_it_was_accepted_was_never_opened(node, caplog, wait_until):
    with caplog.at_level(logging.INFO):
        connection = dial(node, request_pdu() + struct.pack(">BBI", 7, 0, 4) + bytes(4))
        assert answer(connection) == b""
        connection.close()
        wait_until(lambda: not node.server._acceptor.associations)
    told = [record.message for record in caplog.records]
    assert "RAW@127.0.0.1: association aborted" in told
    assert not any("opened" in sentence for sentence in told)


@pytest.mark.parametrize("extra", [b"\0\0\1\0\4\0\0\0\x10\0\0\0", b"\0\0\0\x56\2\0\0\0AB"], ids=["retired", "unknown"])
def test_a_command_with_elements_that_are_retired_or_unknown_is_served(node, make_dataset, extra):
    """Older modalities send Length to End (0000,0001) and other elements that PS3.7 E.2 has retired."""
    dataset = make_dataset(1)
    pdus = store_pdus(dataset)
    first = int.from_bytes(pdus[2:6], "big") + 6
    command, rest = pdus[12:first], pdus[first:]
    command = command + extra if extra[3:4] == b"\x56" else command[:12] + extra + command[12:]
    connection = associated(node, contexts=STORAGE)
    head = struct.pack(">BBIIBB", 4, 0, len(command) + 6, len(command) + 2, 1, 3)
    connection.sendall(head + command + rest)
    assert SUCCESS in answer(connection)
    assert node.archive.open_instance(UID).size
    connection.close()


# Peers that die


@pytest.mark.parametrize("how", ["reset", "close"])
def test_a_sender_that_dies_within_an_object_leaves_nothing(
    node, make_dataset, wait_until, caplog, how, transport_name
):
    dataset = make_dataset(1, PixelData=bytes(1_600_000), Rows=1000, Columns=800)  # more than is kept in memory
    connection = associated(node, contexts=STORAGE)
    connection.sendall(store_pdus(dataset)[:1_590_000])

    def begun():
        return [path for path in node.archive.incoming.iterdir() if path.stat().st_size]

    wait_until(begun)
    if how == "reset":  # as the kernel does for a process that is killed with unread answers
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
    wait_until(lambda: not node.server._acceptor.associations)
    assert begun() == []
    with pytest.raises(NotFound):
        node.archive.open_instance(UID)
    if transport_name == "pynetdicom":  # it tells in other words, and only where the connection ends within a PDU
        return
    [told] = [record for record in caplog.records if "association lost" in record.message]
    assert told.levelno == logging.WARNING
    assert told.message.startswith("RAW@127.0.0.1: association lost: ")


def test_an_association_leaves_its_place_though_its_file_cannot_be_removed(
    start_node, make_dataset, monkeypatch, wait_until
):
    node = start_node(max_associations=1)
    dataset = make_dataset(1, PixelData=bytes(1_600_000), Rows=1000, Columns=800)  # more than is kept in memory

    def left():
        return [path for path in node.archive.incoming.iterdir() if path.stat().st_size]

    with monkeypatch.context() as patch:
        refuse_to_remove(patch, node.archive.incoming)
        connection = associated(node, contexts=STORAGE)
        connection.sendall(store_pdus(dataset)[:1_590_000])
        wait_until(left)
        connection.shutdown(socket.SHUT_WR)
        assert answer(connection) == b""
        connection.close()
        wait_until(lambda: not node.server._acceptor.associations)
    connection = associated(node)
    connection.close()
    assert left()
    node.archive.clear_incoming()
    assert not left()


def test_of_several_files_one_that_cannot_be_removed_keeps_no_other(channel, make_dataset, tmp_path, monkeypatch):
    """Two objects wait for their answers, and another one is coming, as the association ends."""
    names = iter(tmp_path / name / "file" for name in ("first", "second", "third"))

    def new_file(_size):
        path = next(names)
        path.parent.mkdir()
        return path

    receiver, peer = channel(reception=lambda: Reception(new_file, "RAW"))
    [context] = STORAGE
    receiver.contexts[1] = context
    small, large = make_dataset(1), make_dataset(2, PixelData=bytes(1_600_000), Rows=1000, Columns=800)

    def send():
        peer.sendall(store_pdus(small) * 2 + store_pdus(large)[:1_590_000])
        peer.shutdown(socket.SHUT_WR)

    sender = threading.Thread(target=send)
    sender.start()
    while receiver.end is None:
        receiver._take()
    sender.join(60)
    assert [len(receiver.waiting), receiver.is_under_way] == [2, True]
    refuse_to_remove(monkeypatch, tmp_path / "first")
    refuse_to_remove(monkeypatch, tmp_path / "third")
    receiver.discard()
    assert {path.parent.name for path in tmp_path.rglob("file")} == {"first", "third"}
    assert not receiver.waiting
    assert not receiver.is_under_way
    assert receiver.inbox.is_closed


# What goes


def test_a_peer_that_takes_pdus_of_any_length_gets_those_of_128_kib(node, make_instance):
    """Nobody has to hold a whole object for a peer that announces 4 GiB."""
    node.archive.ingest(make_instance(1, PixelData=bytes(1 << 20), Rows=1024, Columns=512))
    request, keys = C_GET(), Dataset()
    keys.QueryRetrieveLevel, keys.StudyInstanceUID = "STUDY", "1.2.826.0.1.3680043.9.7133.1"
    request.MessageID, request.Priority, request.AffectedSOPClassUID = 1, 0, STUDY_ROOT_GET
    request.Identifier = BytesIO(encode(keys, True, True))
    contexts = [build_context(STUDY_ROOT_GET, ImplicitVRLittleEndian), *STORAGE]
    connection = associated(node, contexts=contexts, max_pdu=0xFFFFFFFF, as_scp=[CTImageStorage])
    connection.sendall(message_pdus(C_GET_RQ(), request))
    received = b""
    while len(received) < 1 << 20:
        got = answer(connection)
        assert len(got) <= (1 << 17) + pdu.HEADER
        received += got[12:] if got[11] in (0, 2) else b""
    assert received.endswith(bytes(1 << 19))
    connection.close()


@pytest.fixture
def channel():
    """Make a channel, and the other end of its connection."""
    made = []

    def make(patience_s=60.0, buffer=0, reception=lambda: None):
        listener = socket.create_server(("127.0.0.1", 0))
        theirs = socket.socket()
        if buffer:
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        theirs.connect(listener.getsockname())
        theirs.settimeout(60)
        ours, _ = listener.accept()
        if buffer:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
        listener.close()
        alarm = Alarm()
        stream = Stream(ours, 16384, alarm)
        made.extend([theirs, stream, alarm])
        return Channel(stream, reception, patience_s, lambda: None), theirs

    yield make
    for each in made:
        each.close()


def test_a_file_that_is_gone_costs_nothing_but_its_own_object(channel, tmp_path):
    """The peer has not heard of it yet, so the association goes on."""
    sender, peer = channel()
    with pytest.raises(FileNotFoundError):
        sender.send_file(b"command!", 1, tmp_path / "gone.dcm", 0)
    sender.send(b"the next", 1)
    assert answer(peer)[12:] == b"the next"
    assert sender.end is None


def _read_away(connection):
    """Read all that comes until its end, in a thread."""

    def read():
        while connection.recv(1 << 20):
            pass

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    return reader


def test_a_file_that_cannot_be_read_to_its_end_ends_the_association(channel, tmp_path, monkeypatch):
    """What comes next would be taken for the rest of the object."""
    path = tmp_path / "short.dcm"
    path.write_bytes(bytes(3 << 20))
    sender, peer = channel()
    reader = _read_away(peer)
    send = sender._send

    def send_and_cut(pieces):
        send(pieces)
        path.write_bytes(bytes(1000))

    monkeypatch.setattr(sender, "_send", send_and_cut)
    try:
        with pytest.raises(AssociationLost, match="cannot be read to its end"):
            sender.send_file(b"command!", 1, path, 0)
    finally:
        sender._stream.close()
        reader.join(60)
    assert isinstance(sender.end, Refused)


def test_a_file_without_a_data_set_costs_nothing_but_its_own_object(channel, tmp_path):
    path = tmp_path / "empty.dcm"
    path.write_bytes(bytes(352))
    sender, peer = channel()
    with pytest.raises(OSError, match="no data set"):
        sender.send_file(b"command!", 1, path, 352)
    sender.send(b"the next", 1)
    assert answer(peer)[12:] == b"the next"
    assert sender.end is None


def test_whatever_fails_in_the_middle_of_a_file_ends_the_association(channel, tmp_path, monkeypatch):
    """A thread that cannot be had, for instance: the next object would come behind the begin of this one."""
    path = tmp_path / "large.dcm"
    path.write_bytes(bytes(3 << 20))
    sender, peer = channel()
    reader = _read_away(peer)

    def read(_file, _step):
        yield memoryview(bytes(1 << 20))
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(Blocks, "read", read)
    try:
        with pytest.raises(AssociationLost, match="cannot be read to its end"):
            sender.send_file(b"command!", 1, path, 0)
    finally:
        sender._stream.close()
        reader.join(60)
    assert isinstance(sender.end, Refused)
    assert "can't start new thread" in str(sender.end)


def test_a_peer_with_tiny_pdus_is_sent_a_file_a_few_at_a_time(channel, tmp_path, monkeypatch):
    """All the pieces of a block of a MiB would take a hundred times its memory."""
    path = tmp_path / "image.dcm"
    content = bytes(range(256)) * 64
    path.write_bytes(content)
    sender, _peer = channel()
    sender.limit(8)
    sent = []
    monkeypatch.setattr(sender, "_send", sent.append)
    sender.send_file(b"command!", 1, path, 0)
    assert max(map(len, sent)) <= 1024 + 8
    pieces = [bytes(piece) for each in sent for piece in each]
    begin = 2 * (len(b"command!") // 2)
    assert b"".join(pieces[begin + 1 :: 2]) == content
    assert [head[-1] for head in pieces[begin::2]] == [0] * (len(content) // 2 - 1) + [pdu.LAST]


def test_a_peer_that_takes_little_at_a_time_gets_all_of_it(channel, monkeypatch):
    """The time limit is for a PDU's worth, not for the object: by a clock that goes on as the peer reads."""
    sender, peer = channel(patience_s=600.0, buffer=1 << 16)
    got = bytearray()
    monkeypatch.setattr(wire_stream, "time", SimpleNamespace(monotonic=lambda: 60.0 * len(got) / (1 << 16)))

    def read():
        while piece := peer.recv(1 << 16):
            got.extend(piece)

    reader = threading.Thread(target=read)
    reader.start()
    content = bytes(range(256)) * (1 << 14)
    try:
        sender.send(b"command!", 1, content)
    finally:
        monkeypatch.undo()
        sender._stream.finish(b"")
        reader.join(60)
    assert len(got) > len(content)


def test_a_peer_that_takes_nothing_is_given_up(channel):
    sender, _peer = channel(patience_s=0.2, buffer=4096)
    with pytest.raises(AssociationLost, match=r"takes nothing for 0\.2 s"):
        sender.send(b"command!", 1, bytes(1 << 22))


# TLS


@pytest.fixture(scope="module")
def contexts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    authority = Authority(folder / "authority", "Ours")
    certificate, key = authority.issue("node")
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context(cafile=str(authority.ca))
    server.load_cert_chain(certificate, key)
    settings = {"enabled": True, "port": 0, "certificate": str(certificate), "key": str(key)}
    return server, client, settings


def test_a_tls_stream_that_sleeps_touches_nothing_that_a_sender_uses(contexts):
    """Reports are sent by other threads meanwhile, and OpenSSL is for one thread at a time."""
    server, client, _ = contexts
    ours, theirs = socket.socketpair()
    with ours, theirs:
        dialling = threading.Thread(target=lambda: made.append(client.wrap_socket(theirs, server_hostname="localhost")))
        made: list[ssl.SSLSocket] = []
        dialling.start()
        secure = server.wrap_socket(ours, server_side=True)
        dialling.join(60)
        alarm = Alarm()
        stream = Stream(secure, 4096, alarm)
        assert not stream.sleep(0.01)
        made[0].sendall(echo_pdu())
        assert stream.sleep(60.0)
        assert not stream.has_begun
        assert stream.wait(0.0)
        assert stream.pdu(60.0)[0] == pdu.P_DATA
        stream.close()
        alarm.close()
        made[0].close()


def test_over_tls_the_last_pdu_arrives_whatever_is_still_under_way(start_node, contexts):
    """PS3.8 9.2.1, Sta13: the node does not close before its peer could read why."""
    _, client, settings = contexts
    node = start_node(tls=settings)
    plain = socket.create_connection(("127.0.0.1", node.server.tls_port), timeout=60)
    with client.wrap_socket(plain, server_hostname="localhost") as connection:
        connection.sendall(request_pdu())
        assert answer(connection)[0] == ACCEPT
        connection.sendall(b"\x42\0\0\0\0\4abcd" + bytes(100_000))
        assert answer(connection) == abort(2, 1)


@pytest.mark.parametrize("carried_by", ["own", "pynetdicom"])
def test_over_tls_what_comes_behind_the_last_pdu_is_answered(start_node, contexts, carried_by, monkeypatch):
    """AA-6, AA-7."""
    monkeypatch.setattr(wire_stream, "_LINGER_S", 60.0)
    monkeypatch.setattr(upper_layer, "_CLOSE_S", 60.0)
    _, client, settings = contexts
    node = start_node(tls=settings, carried_by=carried_by)
    plain = socket.create_connection(("127.0.0.1", node.server.tls_port), timeout=60)
    with client.wrap_socket(plain, server_hostname="localhost") as connection:
        connection.sendall(request_pdu())
        assert answer(connection)[0] == ACCEPT
        connection.sendall(pdu.RELEASE)
        assert answer(connection) == pdu.RELEASED
        connection.sendall(echo_pdu())
        connection.sendall(request_pdu())
        assert answer(connection) == abort(2, 2)
        assert answer(connection) == b""
