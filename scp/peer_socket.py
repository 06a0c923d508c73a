"""The connection to a peer as pynetdicom wants it: plain or TLS, with a time limit on every PDU."""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from typing import cast

from pynetdicom import evt
from pynetdicom.association import Association
from pynetdicom.transport import T_CONNECT, AddressInformation, AssociationSocket

from scp.bell import readable

_PIECE = 1 << 20
"""Bytes that are made room for before they have come: a length alone takes no memory."""


class PeerSocket(AssociationSocket):
    """A TCP connection, with or without TLS.

    Only the upper layer's thread reads and writes; any thread may ask `has_input`.

    Attributes
    ----------
    failure
        Why `connect` or reading failed.
    """

    def __init__(
        self,
        assoc: Association,
        connection: socket.socket | None = None,
        address: AddressInformation | None = None,
        *,
        received: bytes = b"",
    ) -> None:
        super().__init__(assoc, client_socket=connection, address=address)
        self.failure: OSError | None = None
        self._received = bytearray(received)

    @property
    def is_open(self) -> bool:
        """Whether there is a connection."""
        return self.socket is not None and self._is_connected

    def fileno(self) -> int:
        """Return the file descriptor of the socket."""
        return self.socket.fileno() if self.socket is not None else -1

    @property
    def has_input(self) -> bool:
        """Whether something has come from the peer that was not read yet."""
        try:
            return bool(self._received) or (self.is_open and readable(self, 0.0))
        except (OSError, ValueError):  # closed at this moment
            return False

    @property
    def ready(self) -> bool:
        """Whether reading will bring something, or the end of the connection. For the upper layer's thread."""
        if self._received:
            return True
        connection = self.socket
        if connection is None or not self._is_connected:
            return False
        if isinstance(connection, ssl.SSLSocket):
            return connection.pending() > 0 or (self.has_input and self._decrypt(connection))
        return self.has_input

    def _decrypt(self, connection: ssl.SSLSocket) -> bool:
        """Whether what came holds data: TLS also has messages of its own, behind which a read would wait."""
        connection.settimeout(0.0)
        try:
            self._received += connection.recv(1)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return False
        except OSError as error:  # the end of the connection, and TLS says only once why
            self.failure = error
        return True

    def recv(self, nr_bytes: int) -> bytearray:
        """Read `nr_bytes`, fewer when the peer closes."""
        return self.receive(nr_bytes, self.assoc.network_timeout)

    def receive(self, size: int, timeout_s: float | None) -> bytearray:
        """Read `size` bytes, fewer when the peer closes: in large pieces, and acknowledged at once.

        `dcmsend` writes a PDU and waits for its acknowledgement: a delayed one halves its rate.

        Raises
        ------
        TimeoutError
            They were not all there in `timeout_s` seconds.
        """
        try:
            return self._receive(cast(socket.socket, self.socket), size, timeout_s)
        except OSError as error:
            self.failure = error
            raise

    def _receive(self, connection: socket.socket, size: int, timeout_s: float | None) -> bytearray:
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        data, self._received = self._received[:size], self._received[size:]
        filled = len(data)
        while filled < size:
            if filled == len(data):
                data.extend(bytes(min(size - filled, _PIECE)))
            with memoryview(data) as view:
                _limit(connection, deadline)
                count = connection.recv_into(view[filled:])
            if not count:
                break
            filled += count
        if hasattr(socket, "TCP_QUICKACK"):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        del data[filled:]
        return data

    def send(self, bytestream: bytes) -> None:
        """Send all of it; a peer that does not take it within the network timeout has lost its connection."""
        connection = self.socket
        if connection is None:
            self.event_queue.put("Evt17")
            return
        timeout_s = self.assoc.network_timeout
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        try:
            with memoryview(bytestream) as view:
                sent = 0
                while sent < len(view):
                    _limit(connection, deadline)
                    sent += connection.send(view[sent:])
        except OSError:
            self.event_queue.put("Evt17")
            return
        evt.trigger(self.assoc, evt.EVT_DATA_SENT, {"data": bytestream})

    def connect(self, primitive: T_CONNECT) -> None:
        """Open the connection, and TLS on it where `tls_args` are set; `failure` tells why it did not work."""
        connection = cast(socket.socket, self.socket)
        try:
            connection.settimeout(self.assoc.connection_timeout)
            connection.connect(primitive.address_info.as_tuple)
            if self.tls_args:
                context, host = self.tls_args
                connection = context.wrap_socket(connection, server_hostname=host)
                self.socket = connection
        except OSError as error:
            self.failure = error
            connection.close()
            self.socket = None
            primitive.result = "Evt17"
        else:
            self.assoc.requestor.address_info = AddressInformation.from_tuple(connection.getsockname())
            self._is_connected = True
            evt.trigger(self.assoc, evt.EVT_CONN_OPEN, {"address": primitive.address_info.as_tuple})
            primitive.result = "Evt2"
        finally:
            self.provider_queue.put(primitive)
            self._ready.set()

    def close(self) -> None:
        """Close the connection.

        That there was one stays known: a requestor that looks only after its peer has rejected it at once would take
        the rejection for a connection that could not be opened.
        """
        self._shutdown_socket()
        if self.is_open:
            self.socket = None
            self.event_queue.put("Evt17")

    def _shutdown_socket(self) -> None:
        """Close the socket; pynetdicom's own leaves it open when the peer was faster."""
        connection = self.socket
        if connection is None:
            return
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(OSError):
            connection.close()

    def hang_up(self) -> None:
        """End the connection, from any thread: the one that reads comes to the end of what there is, and closes it."""
        if self.socket is not None:
            with contextlib.suppress(OSError):  # without TLS's own farewell, which is the business of that thread
                socket.socket.shutdown(self.socket, socket.SHUT_RDWR)

    def end_sending(self) -> None:
        """Tell the peer that nothing more comes, with TLS's own message where there is TLS."""
        connection = self.socket
        if connection is None:
            return
        with contextlib.suppress(OSError, ValueError):
            connection.settimeout(0.0)
            if isinstance(connection, ssl.SSLSocket):
                connection.unwrap()
        with contextlib.suppress(OSError):
            socket.socket.shutdown(connection, socket.SHUT_WR)

    def discard_input(self, timeout_s: float) -> bool:
        """Read and drop what comes within `timeout_s` seconds; True when the peer has closed."""
        connection = self.socket
        if connection is None:
            return True
        try:
            if not readable(connection, timeout_s):
                return True
            connection.settimeout(0.0)
            return not connection.recv(1 << 16)
        except (ssl.SSLWantReadError, BlockingIOError):
            return False
        except (OSError, ValueError):
            return True


def _limit(connection: socket.socket, deadline: float | None) -> None:
    if deadline is None:
        connection.settimeout(None)
        return
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("the peer is too slow")
    connection.settimeout(left)
