"""A peer that accepts an association and follows a script, PDU by PDU."""

from __future__ import annotations

import socket
import struct
import threading
from contextlib import closing

from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pynetdicom.presentation import build_context
from raw_peer import answer

from scp.wire import negotiation

P_DATA = 4
CONTEXT = 1


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
        connection.settimeout(60)
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
        self._thread.join(60)
        assert not self._thread.is_alive()
        self._server.close()
        return [pdu[0] for pdu in self.got]


def stored(status=0, message_id=1, *, comment=""):
    """A P-DATA-TF with a whole C-STORE-RSP; with None for the Message ID, one that does not tell what it answers."""
    elements = (
        struct.pack("<HHI", 0, 2, 26) + b"1.2.840.10008.5.1.4.1.1.2\0"
        + struct.pack("<HHIH", 0, 0x0100, 2, 0x8001)
        + (struct.pack("<HHIH", 0, 0x0120, 2, message_id) if message_id is not None else b"")
        + struct.pack("<HHIH", 0, 0x0800, 2, 0x0101)
        + struct.pack("<HHIH", 0, 0x0900, 2, status)
        + (struct.pack("<HHI", 0, 0x0902, len(comment)) + comment.encode() if comment else b"")
    )  # fmt: skip
    command = struct.pack("<HHII", 0, 0, 4, len(elements)) + elements
    pdv = struct.pack(">IBB", len(command) + 2, CONTEXT, 3) + command
    return struct.pack(">BBI", P_DATA, 0, len(pdv)) + pdv
