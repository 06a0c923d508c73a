"""C-CANCEL of a C-FIND (PS3.7 9.3.2.3): what still arrives after it, at a peer that reads at once and at a slow one."""

from __future__ import annotations

import fcntl
import socket
import struct
import termios
import threading
from io import BytesIO

import pytest
from held_rows import hold_rows
from pydicom.dataset import Dataset
from pydicom.uid import ImplicitVRLittleEndian
from pynetdicom.dimse_messages import C_CANCEL_RQ, C_FIND_RQ
from pynetdicom.dimse_primitives import C_CANCEL, C_FIND
from pynetdicom.dsutils import decode, encode
from raw_peer import message_pdus

from scp.contexts import STUDY_ROOT_FIND

ROOT = "1.2.826.0.1.3680043.9.7133"
ROWS = 3000
ROW_BYTES = 550
"""Of a response with its Identifier, about."""


@pytest.fixture
def node(start_node, make_instance):
    return _fill(start_node(), make_instance)


def _fill(node, make_instance):
    """Give the node a series of 3,000 instances. Only the first is a file: a query opens none."""
    node.archive.ingest(make_instance(1, ContentDescription="x" * 64, ImageComments="y" * 200))
    with node.archive.transaction() as database:
        columns = [each.name for each in database["instance"].columns if each.name not in ("id", "sop_instance_uid")]
        names = ", ".join(columns)
        database.execute(
            "WITH RECURSIVE counter(n) AS (SELECT 2 UNION ALL SELECT n + 1 FROM counter WHERE n < ?) "
            f"INSERT INTO instance (sop_instance_uid, {names}) SELECT '{ROOT}.9.' || n, {names} "
            "FROM counter, (SELECT * FROM instance LIMIT 1)",
            (ROWS,),
        )
    return node


class RawPeer:
    """A C-FIND SCU that reads from its socket just what the test tells it to."""

    def __init__(self, node, receive_buffer=None):
        self._socket = socket.socket()
        if receive_buffer:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self._socket.connect(("127.0.0.1", node.port))
        self._socket.settimeout(120)
        self._socket.sendall(_associate_request())
        kind, _ = self._pdu()
        assert kind == 0x02, "the association was not accepted"

    def find(self, identifier, message_id=7, *, cancelled=False):
        """Ask; with `cancelled`, the C-CANCEL goes out in the same packet."""
        request = C_FIND()
        request.MessageID, request.Priority, request.AffectedSOPClassUID = message_id, 0, STUDY_ROOT_FIND
        request.Identifier = BytesIO(encode(identifier, True, True))
        self._socket.sendall(self._encoded(C_FIND_RQ(), request) + (self._cancel(message_id) if cancelled else b""))

    def cancel(self, message_id=7):
        self._socket.sendall(self._cancel(message_id))

    def _cancel(self, message_id):
        request = C_CANCEL()
        request.MessageIDBeingRespondedTo = message_id
        return self._encoded(C_CANCEL_RQ(), request)

    @staticmethod
    def _encoded(message, primitive):
        return message_pdus(message, primitive)

    def statuses(self):
        """Yield the Status of each response as it is read."""
        command = b""
        while True:
            kind, content = self._pdu()
            assert kind == 0x04, f"expected P-DATA, got PDU {kind:02X}"
            while content:
                length, _, control = struct.unpack(">IBB", content[:6])
                if control & 1:
                    command += content[6 : 4 + length]
                    if control & 2:
                        status = decode(BytesIO(command), True, True).Status
                        command = b""
                        yield status
                        if status not in (0xFF00, 0xFF01):
                            return
                content = content[4 + length :]

    def _pdu(self):
        kind, length = struct.unpack(">BxI", self._exactly(6))
        return kind, self._exactly(length)

    def _exactly(self, size):
        data = b""
        while len(data) < size:
            part = self._socket.recv(size - len(data))
            assert part, "the node closed the connection"
            data += part
        return data

    @property
    def buffer_bytes(self):
        return self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)

    def is_full(self):
        """Whether what has come does not grow any more."""
        waiting = self._waiting()
        threading.Event().wait(0.3)
        return waiting == self._waiting() > 0

    def _waiting(self):
        return struct.unpack("i", fcntl.ioctl(self._socket.fileno(), termios.FIONREAD, b"\0" * 4))[0]

    def close(self):
        self._socket.close()


def _associate_request():
    def item(kind, content):
        return struct.pack(">BxH", kind, len(content)) + content

    context = bytes([1, 0, 0, 0]) + item(0x30, STUDY_ROOT_FIND.encode()) + item(0x40, ImplicitVRLittleEndian.encode())
    user = item(0x51, struct.pack(">I", 16384)) + item(0x52, b"1.2.826.0.1.3680043.9.7133.99")
    content = struct.pack(">HH16s16s32x", 1, 0, b"THARSIS".ljust(16), b"VIEWER".ljust(16))
    content += item(0x10, b"1.2.840.10008.3.1.1.1") + item(0x20, context) + item(0x50, user)
    return struct.pack(">BxI", 0x01, len(content)) + content


def _all_images():
    identifier = Dataset()
    identifier.QueryRetrieveLevel = "IMAGE"
    identifier.StudyInstanceUID, identifier.SeriesInstanceUID, identifier.SOPInstanceUID = f"{ROOT}.1", f"{ROOT}.2", ""
    identifier.ImageComments = identifier.ContentDescription = identifier.PatientName = ""
    return identifier


def _rows_after_cancel(node, wait_until, *, receive_buffer=None, slow=False):
    """Cancel after the first row; return the responses that still come, and the size of the peer's own buffer."""
    peer = RawPeer(node, receive_buffer)
    peer.find(_all_images())
    statuses = peer.statuses()
    assert next(statuses) == 0xFF00
    if slow:  # nothing is read until the node has sent what it can
        wait_until(peer.is_full)
    peer.cancel()
    after, buffer_bytes = list(statuses), peer.buffer_bytes
    peer.close()
    return after, buffer_bytes


def test_a_peer_that_reads_at_once_gets_a_row_or_two_after_its_c_cancel(node, wait_until, monkeypatch):
    hold_rows(monkeypatch, after=1)
    after, _ = _rows_after_cancel(node, wait_until)
    assert after[-1] == 0xFE00
    assert len(after) <= 3


def test_a_c_cancel_that_is_there_already_leaves_a_row_or_two(node, monkeypatch):
    hold_rows(monkeypatch, after=1)
    peer = RawPeer(node)
    peer.find(_all_images(), cancelled=True)
    statuses = list(peer.statuses())
    peer.close()
    assert statuses[-1] == 0xFE00
    assert len(statuses) <= 3


@pytest.mark.parametrize("receive_buffer", [4096, None])
def test_a_peer_that_reads_slowly_gets_no_more_than_its_own_kernel_already_has(node, wait_until, receive_buffer):
    after, buffer_bytes = _rows_after_cancel(node, wait_until, receive_buffer=receive_buffer, slow=True)
    assert after[-1] == 0xFE00
    assert len(after) * ROW_BYTES < buffer_bytes + 16_384
    assert len(after) < ROWS // 2


def test_a_c_cancel_that_comes_after_the_last_row_cancels_nothing_else(start_node, make_instance):
    """Of a peer that gives all its requests the same Message ID, which it may once they are answered (PS3.7 9.1)."""
    node = start_node()
    node.archive.ingest(make_instance(1))
    peer = RawPeer(node)
    for _ in range(2):
        peer.find(_all_images(), message_id=1)
        assert list(peer.statuses())[-1] == 0
        peer.cancel(message_id=1)
    peer.close()


def test_a_peer_that_stops_reading_is_dropped(start_node, make_instance, wait_until):
    node = _fill(start_node(network_timeout_s=3.0), make_instance)
    peer = RawPeer(node, 4096)
    peer.find(_all_images())
    wait_until(lambda: not node.server._acceptor.associations)
    peer.close()
