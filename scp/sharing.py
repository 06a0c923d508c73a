"""What a process that accepts associations shares with others of the same node: ports, and the count of places."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path

from scp.places import PLACES_FILE, Places


@dataclass(frozen=True)
class Sharing:
    """Sockets that somebody else has opened, and this process's slot.

    Attributes
    ----------
    plain, secure
        Listening sockets without and with TLS, by their file descriptors; -1 for none.
    slot, count
        Of the processes: this one, from 0, and all of them.
    """

    plain: int = -1
    secure: int = -1
    slot: int = 0
    count: int = 1

    def listener(self, *, secure: bool) -> socket.socket | None:
        """Return the socket to accept from, None where this process has to open its own."""
        descriptor = self.secure if secure else self.plain
        return socket.socket(fileno=descriptor) if descriptor >= 0 else None

    def places(self, data: Path) -> Places:
        """Return this process's slot in the data folder."""
        return Places(data / PLACES_FILE, self.slot, self.count)
