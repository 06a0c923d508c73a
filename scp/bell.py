"""Wakes a thread that waits for its peer, when this node has something for it to do."""

from __future__ import annotations

import select
import socket
from typing import Protocol


class HasFileno(Protocol):
    """A socket, or what wraps one."""

    def fileno(self) -> int:
        """Return the file descriptor, negative when closed."""


def readable(connection: HasFileno, timeout_s: float) -> bool:
    """Whether `connection` can be read, or has been closed by its peer, within `timeout_s` seconds."""
    # Not select(), which knows no file descriptor beyond 1023.
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    return bool(poll.poll(max(0.0, timeout_s) * 1000))


class Bell:
    """Rung by any thread, heard by the one that waits."""

    def __init__(self) -> None:
        self._ringer, self._listener = socket.socketpair()
        for end in (self._ringer, self._listener):
            end.setblocking(False)

    def ring(self) -> None:
        """End the wait in progress, or the next one; nothing happens when the bell is closed."""
        try:
            self._ringer.send(b"\0")
        except OSError:  # full: it rings already; or closed
            return

    def wait(self, connection: HasFileno | None, timeout_s: float) -> None:
        """Wait until the bell rings, `connection` can be read, or `timeout_s` seconds have passed."""
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        if connection is not None:
            poll.register(connection, select.POLLIN)
        for descriptor, _ in poll.poll(timeout_s * 1000):
            if descriptor == self._listener.fileno():
                self._silence()

    def _silence(self) -> None:
        try:
            while self._listener.recv(1024):
                pass
        except BlockingIOError:
            return

    def close(self) -> None:
        """Take it down."""
        self._ringer.close()
        self._listener.close()
