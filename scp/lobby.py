"""Connections before they are associations: one thread accepts them, finishes TLS and reads the A-ASSOCIATE-RQ.

An association costs threads; a connection in here costs a file handle. So a port scan, a peer that speaks another
protocol and one that trickles its request byte by byte (state Sta2 of PS3.8 9.2) hold up nobody.
"""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from scp.association_request import HEADER, flaw, remaining

_LOG = logging.getLogger(__name__)
_AUDIT = logging.getLogger("tharsis.audit")

_ABORT = bytes.fromhex("07000000000400000000")
"""A-ABORT by the service user, as action AA-1 of PS3.8 9.2 wants it before there is an association."""

_LOOK_S = 0.25
_CLOSE_S = 2.0
"""How long a peer that was refused may take to close the connection itself, seconds."""

_ACCEPTED_AT_ONCE = 64
_READ_AT_ONCE = 1 << 16
_AFTER_YOU_S = 0.001
"""How long a process leaves a connection to those that have fewer, before it takes it itself, seconds."""

_WAITING_TO_BE_ACCEPTED = 512


@dataclass(frozen=True)
class Door:
    """A listening socket, and the TLS context of those who come through it."""

    listener: socket.socket
    tls: ssl.SSLContext | None = None

    @property
    def port(self) -> int:
        """TCP port."""
        return int(self.listener.getsockname()[1])


@dataclass(frozen=True)
class Arrival:
    """A connection whose peer asks for an association: its socket, and the whole A-ASSOCIATE-RQ PDU."""

    connection: socket.socket
    address: tuple[str, int]
    request: bytes


Admit = Callable[[Arrival], bytes | None]
"""Takes an arrival over, or returns the PDU that refuses it."""


class Neighbours(Protocol):
    """Other processes that accept connections from the same doors."""

    @property
    def is_busier(self) -> bool:
        """Whether another one has fewer connections than this process."""

    def note_visitors(self, count: int) -> None:
        """Be told how many connections are no associations yet."""


class CannotListen(OSError):
    """A port cannot be had; `filename` is its address."""


def open_port(host: str, port: int) -> socket.socket:
    """Listen on `host` and `port` (0: any free one); raises `CannotListen`."""
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, *_, address = min(found, key=lambda entry: entry[0] is not socket.AF_INET)
        listener = socket.create_server(address[:2], family=family, backlog=_WAITING_TO_BE_ACCEPTED)
    except OSError as error:
        is_named = isinstance(error, socket.gaierror)  # its numbers are its own; else Python adds the address once more
        why = error.strerror if is_named else os.strerror(error.errno or 0)
        raise CannotListen(error.errno, why, f"{host}:{port}") from error
    listener.setblocking(False)
    return listener


@dataclass
class _Visitor:
    """A connection that is not an association yet."""

    connection: socket.socket
    address: tuple[str, int]
    deadline: float
    shaking_hands: bool = False
    leaving: bool = False
    request: bytearray = field(default_factory=bytearray)


class _Refused(Exception):
    """The peer is no DICOM peer, or asks for something that cannot be; the message says what it did."""


class Lobby:
    """Accepts connections until `close`, and hands on those that ask for an association.

    Parameters
    ----------
    doors
        Where to listen.
    admit
        Called from this lobby's thread with each arrival.
    patience_s
        Time for TLS handshake and request together, seconds: the ARTIM timer.
    most
        Connections in here at the same time; one more closes the oldest.
    neighbours
        Those who accept from the same doors; None: this process alone does.
    """

    def __init__(
        self,
        doors: Sequence[Door],
        admit: Admit,
        *,
        patience_s: float,
        most: int,
        neighbours: Neighbours | None = None,
    ) -> None:
        self._doors = doors
        self._admit = admit
        self._patience_s = patience_s
        self._most = most
        self._neighbours = neighbours
        self._visitors: dict[socket.socket, _Visitor] = {}
        self._selector = selectors.DefaultSelector()
        self._closing = threading.Event()
        self._deaf_until = 0.0
        for door in doors:
            self._selector.register(door.listener, selectors.EVENT_READ, door)
        self._thread = threading.Thread(target=self._run, name="lobby", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        """Connections that are not associations yet."""
        return len(self._visitors)

    def close(self) -> None:
        """Listen no more, and drop everybody who is still in here."""
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        looked = 0.0
        while not self._closing.is_set():
            for key, _ in self._selector.select(_LOOK_S):
                self._see_to(key.data)
            now = time.monotonic()
            if now - looked > _LOOK_S:
                looked = now
                self._drop_late(now)
        for door in self._doors:
            self._selector.unregister(door.listener)
            door.listener.close()
        for visitor in list(self._visitors.values()):
            self._drop(visitor)
        self._selector.close()

    def _see_to(self, ready: Door | _Visitor) -> None:
        """Do what there is to do; what goes wrong over one connection is no other's trouble."""
        try:
            if isinstance(ready, Door):
                self._open(ready)
            elif ready.connection in self._visitors:
                self._attend(ready)
        except Exception:  # noqa: BLE001  (without this thread the node would be deaf)
            _LOG.exception("a connection had to be dropped")
            if isinstance(ready, Door):
                self._deaf_until = time.monotonic() + _LOOK_S
            else:
                self._drop(ready)

    def _open(self, door: Door) -> None:
        if time.monotonic() < self._deaf_until:
            time.sleep(0.01)
            return
        if self._neighbours is not None and self._neighbours.is_busier:
            time.sleep(_AFTER_YOU_S)
        # One by one where others wait at the same door, so that each of them gets its share.
        for _ in range(_ACCEPTED_AT_ONCE if self._neighbours is None else 1):
            try:
                connection, address = door.listener.accept()
            except BlockingIOError:
                return
            except OSError as error:  # most likely no file handles are left: one that does nothing is given up for it
                _LOG.warning("cannot accept a connection: %s", error.strerror or error)
                self._drop_oldest()
                self._deaf_until = time.monotonic() + _LOOK_S
                return
            self._receive(door, connection, address[:2])

    def _receive(self, door: Door, connection: socket.socket, address: tuple[str, int]) -> None:
        try:
            connection.setblocking(False)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if door.tls is not None:
                connection = door.tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
            if len(self._visitors) >= self._most:
                self._drop_oldest()
            visitor = _Visitor(
                connection, address, time.monotonic() + self._patience_s, shaking_hands=door.tls is not None
            )
            self._take_in(visitor)
        except OSError:  # it is gone already
            connection.close()
        except BaseException:
            connection.close()
            raise

    def _take_in(self, visitor: _Visitor) -> None:
        self._visitors[visitor.connection] = visitor
        self._selector.register(visitor.connection, selectors.EVENT_READ, visitor)
        self._tell_neighbours()

    def _tell_neighbours(self) -> None:
        if self._neighbours is not None:
            self._neighbours.note_visitors(len(self._visitors))

    def _attend(self, visitor: _Visitor) -> None:
        """Do what can be done for a connection that has something to read, or may be written to again."""
        try:
            if visitor.shaking_hands:
                self._shake_hands(visitor)
            if not visitor.shaking_hands:
                self._read(visitor)
        except (ssl.SSLWantReadError, BlockingIOError):
            self._watch(visitor, selectors.EVENT_READ)
        except ssl.SSLWantWriteError:
            self._watch(visitor, selectors.EVENT_WRITE)
        except _Refused as refused:
            if not visitor.leaving:
                _AUDIT.warning("refused a connection of %s: %s", visitor.address[0], refused)
            has_aborted = visitor.request.startswith(_ABORT[:1])  # AA-2: it is answered with nothing
            self._dismiss(visitor, b"" if visitor.shaking_hands or has_aborted else _ABORT)
        except OSError:  # the peer closed or reset it: a probe, or its own business
            self._drop(visitor)

    def _watch(self, visitor: _Visitor, event: int) -> None:
        if self._selector.get_key(visitor.connection).events != event:
            self._selector.modify(visitor.connection, event, visitor)

    def _shake_hands(self, visitor: _Visitor) -> None:
        connection = visitor.connection
        if not isinstance(connection, ssl.SSLSocket):
            return
        try:
            connection.do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError, ssl.SSLEOFError):
            raise
        except ssl.SSLError as error:
            why = error.verify_message if isinstance(error, ssl.SSLCertVerificationError) else error.reason
            raise _Refused(f"TLS handshake: {(why or 'it failed').lower().replace('_', ' ')}") from error
        visitor.shaking_hands = False

    def _read(self, visitor: _Visitor) -> None:
        """Read up to the end of the A-ASSOCIATE-RQ and no byte further: what follows is the association's."""
        for _ in range(_READ_AT_ONCE >> 12):
            if visitor.leaving:
                if not socket.socket.recv(visitor.connection, _READ_AT_ONCE):
                    raise ConnectionResetError
                continue
            data = visitor.connection.recv(min(remaining(visitor.request), _READ_AT_ONCE))
            if not data:
                raise ConnectionResetError
            visitor.request += data
            if len(visitor.request) >= HEADER and (why := flaw(visitor.request)) is not None:
                raise _Refused(why)
            if not remaining(visitor.request):
                self._hand_on(visitor)
                return
        if isinstance(visitor.connection, ssl.SSLSocket) and visitor.connection.pending():
            self._watch(visitor, selectors.EVENT_WRITE)  # what TLS has decrypted already, the selector knows nothing of

    def _hand_on(self, visitor: _Visitor) -> None:
        self._forget(visitor)
        refusal = self._admit(Arrival(visitor.connection, visitor.address, bytes(visitor.request)))
        if refusal is not None:
            self._take_in(visitor)
            self._dismiss(visitor, refusal)

    def _dismiss(self, visitor: _Visitor, pdu: bytes) -> None:
        """Send a last PDU and wait a moment for the peer to close: closing first could take the PDU away from it.

        After a TLS handshake that failed there is no PDU, but an alert that says why, which TLS has sent already. Nor
        is there one for a peer that has aborted.
        """
        if visitor.leaving:
            return
        secure = visitor.connection if isinstance(visitor.connection, ssl.SSLSocket) else None
        visitor.leaving = True
        visitor.deadline = min(visitor.deadline, time.monotonic() + _CLOSE_S)
        visitor.request.clear()
        try:
            if pdu and not visitor.shaking_hands:
                visitor.connection.send(pdu)
            if secure is not None and not visitor.shaking_hands:
                with contextlib.suppress(ssl.SSLWantReadError):
                    secure.unwrap()
            visitor.shaking_hands = False
            socket.socket.shutdown(visitor.connection, socket.SHUT_WR)
            self._watch(visitor, selectors.EVENT_READ)
        except OSError:
            self._drop(visitor)

    def _forget(self, visitor: _Visitor) -> None:
        self._visitors.pop(visitor.connection, None)
        with contextlib.suppress(KeyError, ValueError):  # it is out already
            self._selector.unregister(visitor.connection)
        self._tell_neighbours()

    def _drop(self, visitor: _Visitor) -> None:
        self._forget(visitor)
        with contextlib.suppress(OSError):
            visitor.connection.close()

    def _drop_oldest(self) -> None:
        if self._visitors:
            oldest = next(iter(self._visitors.values()))
            _LOG.info("dropped the connection of %s: the oldest of too many without a request", oldest.address[0])
            self._drop(oldest)

    def _drop_late(self, now: float) -> None:
        for visitor in [visitor for visitor in self._visitors.values() if visitor.deadline < now]:
            if not visitor.leaving:
                _LOG.info(
                    "dropped the connection of %s: no association request in %g s", visitor.address[0], self._patience_s
                )
            self._drop(visitor)
