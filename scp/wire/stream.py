"""A connection as a stream of PDUs: read in large pieces into one buffer, written with a time limit, plain or TLS.

The thread that owns the connection sleeps in poll() until the peer sends, takes, or closes; nothing looks again and
again. What it reads lies in one buffer for as long as the next read has not begun: nobody copies it before it is
written to a file.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import select
import socket
import ssl
import time
from collections import deque
from collections.abc import Sequence
from itertools import islice

from scp.wire import pdu
from scp.wire.errors import Ended, Interrupted, PeerClosed, Violation
from scp.wire.pdu import HEADER, LONGEST_OTHER, ON_ASSOCIATION, TOLERATED_EXCESS, require_sane

_LINGER_S = 1.0
"""How long a peer may take to close the connection after the last PDU, before this node does, seconds."""

_AT_ONCE = 1 << 17
"""Bytes that a peer has the whole time limit to take, as it would have for one large PDU."""

_WOULD_BLOCK = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
_DISCARDED = 1 << 16
_MOST_PIECES = 512
"""Pieces that are sent by one call; the system takes 1024 (IOV_MAX)."""


class Alarm:
    """Ends the waits of many streams at the same time, once and for all."""

    def __init__(self) -> None:
        self.descriptor, self._other_end = os.pipe()

    def ring(self) -> None:
        """End every wait from now on."""
        descriptor, self._other_end = self._other_end, -1
        if descriptor >= 0:
            os.close(descriptor)  # and the end that they listen to can be read for ever

    def close(self) -> None:
        """Be done with it, when nobody waits any more."""
        self.ring()
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


class Stream:
    """The connection of one association. One thread uses it at a time; `hang_up` is for any thread.

    Parameters
    ----------
    connection
        Whose TLS, if any, is established.
    largest_data
        Maximum length of a P-DATA-TF that is announced to the peer, bytes.
    alarm
        Ends every wait.
    """

    def __init__(self, connection: socket.socket, largest_data: int, alarm: Alarm) -> None:
        connection.setblocking(False)
        self._connection = connection
        self._largest_data = largest_data
        room = 2 * (max(largest_data + TOLERATED_EXCESS, LONGEST_OTHER) + HEADER)
        # Not a bytearray: pages of a map that nobody has written to take no memory.
        self._buffer = memoryview(mmap.mmap(-1, room))
        self._begin = self._end = 0
        self._refused = 0
        self._alarm = alarm.descriptor
        self._is_secure = isinstance(connection, ssl.SSLSocket)
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)
        self._poll.register(self._alarm, select.POLLIN)

    @property
    def descriptor(self) -> int:
        """File descriptor, negative when closed."""
        return self._connection.fileno()

    @property
    def has_begun(self) -> bool:
        """Whether a part of the next PDU is here."""
        return self._end > self._begin

    def _pending(self) -> bool:
        return isinstance(self._connection, ssl.SSLSocket) and self._connection.pending() > 0

    def sleep(self, timeout_s: float | None) -> bool:
        """Wait until something comes, which with TLS need not be data; False when `timeout_s` seconds pass first.

        Meanwhile another thread may send.

        Raises
        ------
        Interrupted
            The alarm has rung.
        """
        return self.has_begun or self._pending() or self._wait(self._poll, timeout_s)

    def wait(self, timeout_s: float | None) -> bool:
        """Wait until there is something to read; False when `timeout_s` seconds pass first.

        Raises
        ------
        Interrupted
            The alarm has rung.
        """
        if self.has_begun or self._pending():
            return True
        deadline = _deadline(timeout_s)
        while self._wait(self._poll, None if deadline is None else deadline - time.monotonic()):
            if not self._is_secure or self._is_readable():
                return True
        return False

    def _is_readable(self) -> bool:
        """Whether what came holds data, or is the end: TLS also has messages of its own, behind which a read waits."""
        self._begin = self._end = 0
        try:
            self._end = self._connection.recv_into(self._buffer)
        except _WOULD_BLOCK:
            return False
        except OSError:  # which the next read tells again
            return True
        return True

    def _wait(self, poll: select.poll, timeout_s: float | None) -> bool:
        ready = poll.poll(None if timeout_s is None else max(0.0, timeout_s) * 1000)
        if any(descriptor == self._alarm for descriptor, _ in ready):
            raise Interrupted("the node stops")
        return bool(ready)

    def pdu(
        self, patience_s: float | None, expected: frozenset[int] = ON_ASSOCIATION
    ) -> tuple[int, memoryview]:
        """Return type and content of the next PDU; the content is there until the next call.

        One that was refused for its type or length is passed over by the next call.

        Parameters
        ----------
        expected
            Types of PDU that may come now.

        Raises
        ------
        TimeoutError
            It was not all here in `patience_s` seconds.
        PeerClosed
            The connection has ended before.
        Violation
            No PDU that may come now.
        Interrupted
            The alarm has rung.
        """
        deadline = _deadline(patience_s)
        if self._refused:
            self._pass_over(deadline)
        self._require(HEADER, deadline)
        begin = self._begin
        kind, length = self._buffer[begin], int.from_bytes(self._buffer[begin + 2 : begin + HEADER], "big")
        try:
            require_sane(kind, length, self._largest_data, expected)
        except Violation:
            self._refused = HEADER + length
            raise
        self._require(HEADER + length, deadline)
        begin = self._begin + HEADER
        self._begin = begin + length
        return kind, self._buffer[begin : self._begin]

    def _pass_over(self, deadline: float | None) -> None:
        while self._refused:
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError("the peer is too slow")
            self._require(1, deadline)
            count = min(self._refused, self._end - self._begin)
            self._begin += count
            self._refused -= count

    def _require(self, size: int, deadline: float | None) -> None:
        """Read until `size` bytes of the next PDU are here."""
        if self._end - self._begin >= size:
            return
        buffer = self._buffer
        if self._begin + size > len(buffer) or self._begin == self._end:
            rest = self._end - self._begin
            buffer[:rest] = buffer[self._begin : self._end]
            self._begin, self._end = 0, rest
        while self._end - self._begin < size:
            try:
                count = self._connection.recv_into(buffer[self._end :])
            except _WOULD_BLOCK:
                if not self._wait(self._poll, None if deadline is None else deadline - time.monotonic()):
                    raise TimeoutError("the peer is too slow") from None
                continue
            except OSError as error:
                raise PeerClosed(error.strerror or str(error)) from error
            if not count:
                raise PeerClosed("it closed the connection" + (" within a PDU" if self.has_begun else ""))
            self._end += count
            self._acknowledge()
            if deadline is not None and self._end - self._begin < size and time.monotonic() > deadline:
                raise TimeoutError("the peer is too slow")

    def _acknowledge(self) -> None:
        """Acknowledge at once: `dcmsend` writes a PDU and waits for that, and a delayed one halves its rate."""
        if hasattr(socket, "TCP_QUICKACK"):
            self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)

    def send(self, pieces: Sequence[bytes | memoryview], patience_s: float | None) -> None:
        """Send all of it.

        Raises
        ------
        TimeoutError
            The peer did not take a large PDU's worth of it in `patience_s` seconds.
        PeerClosed
            The connection has ended before.
        Interrupted
            The alarm has rung.
        """
        left: deque[bytes | memoryview] = deque(pieces if not self._is_secure else [b"".join(pieces)])
        deadline, taken = _deadline(patience_s), 0
        try:
            while left:
                try:
                    count = self._send_some(left)
                    _drop(left, count)
                    taken += count
                    if taken >= _AT_ONCE:
                        deadline, taken = _deadline(patience_s), 0
                except _WOULD_BLOCK as blocked:
                    wanted = select.POLLIN if isinstance(blocked, ssl.SSLWantReadError) else select.POLLOUT
                    self._wait_to_send(wanted, deadline)
        except OSError as error:
            if isinstance(error, TimeoutError):
                raise
            raise PeerClosed(error.strerror or str(error)) from error

    def _send_some(self, pieces: Sequence[bytes | memoryview]) -> int:
        """Send what there is room for, without putting the pieces together first; return how many bytes."""
        if self._is_secure:
            return self._connection.send(memoryview(pieces[0])[:_AT_ONCE])  # TLS tells only when all of it has gone
        return self._connection.sendmsg(islice(pieces, _MOST_PIECES))

    def _wait_to_send(self, wanted: int, deadline: float | None) -> None:
        poll = select.poll()
        poll.register(self._connection, wanted)
        poll.register(self._alarm, select.POLLIN)
        if not self._wait(poll, None if deadline is None else deadline - time.monotonic()):
            raise TimeoutError("the peer takes nothing")

    def finish(self, last: bytes) -> None:
        """Send a last PDU, wait until the peer closes the connection, and close it (Sta13 of PS3.8 9.2).

        The peer has a second, for it may not have read that PDU yet (AA-2). What it sends meanwhile is ignored (AA-6),
        but an A-ABORT answers what is no PDU or asks for an association (AA-7): once, and then nothing more is read
        as PDUs. Without a last PDU, all that the peer still gets is the end of the connection (AA-3, AA-4).
        """
        deadline = time.monotonic() + _LINGER_S
        try:
            self._poll.unregister(self._alarm)  # a node that stops lets its peers read why
            if last:
                self._send_at_once(last)
                if (violation := self._outlast(deadline)) is not None:
                    self._send_at_once(pdu.abort_by_provider(violation.reason))
            self._end_sending()
            self._discard_input(deadline)
        except (OSError, ValueError):
            pass
        finally:
            self.close()

    def _send_at_once(self, last: bytes) -> None:
        with contextlib.suppress(OSError):  # or never: a peer that takes nothing has no use for it
            self._connection.send(last)

    def _outlast(self, deadline: float) -> Violation | None:
        """Ignore PDUs until the peer closes or aborts, or `deadline` passes; return what is wrong with another one."""
        try:
            while (left := deadline - time.monotonic()) > 0:
                kind, content = self.pdu(left, pdu.AFTERWARDS)
                if kind == pdu.ABORT:
                    break
                if kind == pdu.P_DATA:
                    pdu.require_data(content)
        except Violation as violation:
            return violation
        except (Ended, TimeoutError):
            pass
        return None

    def _end_sending(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            if isinstance(self._connection, ssl.SSLSocket):
                self._connection.unwrap()
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self._connection, socket.SHUT_WR)

    def _discard_input(self, deadline: float) -> None:
        while (left := deadline - time.monotonic()) > 0 and self._poll.poll(left * 1000):
            with contextlib.suppress(BlockingIOError):  # as it comes: what TLS would make of it, nobody reads
                if not socket.socket.recv(self._connection, _DISCARDED):
                    return

    def stop_reading(self) -> None:
        """Let the thread that reads come to the end of what there is, from any thread; it can still send."""
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self._connection, socket.SHUT_RD)

    def hang_up(self) -> None:
        """End the connection, from any thread: the one that reads comes to the end of what there is."""
        with contextlib.suppress(OSError):  # without TLS's own farewell, which is the business of that thread
            socket.socket.shutdown(self._connection, socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connection at once."""
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self._connection, socket.SHUT_RDWR)
        with contextlib.suppress(OSError):
            self._connection.close()


def _drop(pieces: deque[bytes | memoryview], count: int) -> None:
    """Drop the first `count` bytes, which have been sent."""
    while pieces and count >= len(pieces[0]):
        count -= len(pieces.popleft())
    if count:
        pieces[0] = memoryview(pieces[0])[count:]


def _deadline(timeout_s: float | None) -> float | None:
    return None if timeout_s is None else time.monotonic() + timeout_s
