"""Where peers come in: the ports, the connections without an association, and the associations that are open."""

from __future__ import annotations

import logging
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from config.settings import ScpSettings, TlsSettings
from scp import tls
from scp.carrier import Carrier
from scp.lobby import Arrival, Door, Lobby, open_port
from scp.places import Alone, Counted
from scp.sharing import Sharing

_LOG = logging.getLogger(__name__)
_AUDIT = logging.getLogger("tharsis.audit")

_LIMIT_EXCEEDED = bytes.fromhex("03000000000400020302")
"""A-ASSOCIATE-RJ: rejected-transient, by the service provider (presentation), local limit exceeded (PS3.8 9.3.4)."""

_CONGESTED = bytes.fromhex("03000000000400020301")
"""The same for temporary congestion."""

_CLOSING = 64
"""Associations that have ended for their peers and whose threads have not, before nobody else is let in."""


class Inbound(Protocol):
    """An association that a peer opens, whichever transport carries it."""

    @property
    def carrier(self) -> Carrier:
        """It, as services see it."""

    def start(self) -> None:
        """Begin; raises `RuntimeError` when there is no thread."""

    def join(self, timeout: float | None = None) -> None:
        """Wait until it has ended."""


Ended = Callable[[Inbound], None]
"""Is told of an association whose connection is closed and whose threads have done their work."""

Associate = Callable[[Arrival, Ended], Inbound]
"""Makes an association of an arrival."""


class Listener:
    """Takes in associations, as many at the same time as the settings allow.

    Parameters
    ----------
    associate
        Makes them.
    settings, secure
        ``[scp]`` and ``[tls]``.
    sharing
        What other processes of the node have as well; None: nothing.
    places
        Counts associations, theirs as well.
    """

    def __init__(
        self,
        associate: Associate,
        settings: ScpSettings,
        secure: TlsSettings,
        sharing: Sharing | None = None,
        places: Counted | None = None,
    ) -> None:
        self._associate = associate
        self._settings = settings
        self._secure = secure
        self._lock = threading.Lock()
        self._open: set[Inbound] = set()
        self._running: set[Inbound] = set()
        self._lobby: Lobby | None = None
        self._doors: list[Door] = []
        self._sharing = sharing or Sharing()
        self._places = places or Alone()
        self._visitors = 0

    def start(self) -> None:
        """Begin to listen.

        Raises
        ------
        CannotListen
            A port cannot be had.
        TlsError
            Certificate, key or authorities cannot be used.
        """
        wanted: list[tuple[int, ssl.SSLContext | None]] = []
        if self._secure.plain:
            wanted.append((self._settings.port, None))
        if self._secure.enabled:
            wanted.append((self._secure.port, tls.server_context(self._secure)))
        try:
            for port, context in wanted:
                listener = self._sharing.listener(secure=context is not None)
                self._doors.append(Door(listener or open_port(self._settings.host, port), context))
        except OSError:
            for door in self._doors:
                door.listener.close()
            self._doors = []
            raise
        self._lobby = Lobby(
            self._doors,
            self._admit,
            patience_s=self._settings.acse_timeout_s,
            most=max(1, self._settings.max_connections // self._sharing.count),
            neighbours=self if self._sharing.count > 1 else None,
        )

    @property
    def is_busier(self) -> bool:
        """Whether another process that listens on these ports has fewer connections."""
        return self._places.is_busier

    def note_visitors(self, count: int) -> None:
        """Be told how many connections are no associations yet."""
        with self._lock:
            self._visitors = count
            self._note_load()

    def _note_load(self) -> None:
        self._places.note_load(self._visitors + len(self._open))

    @property
    def port(self) -> int:
        """TCP port without TLS; 0 for none."""
        return next((door.port for door in self._doors if door.tls is None), 0)

    @property
    def tls_port(self) -> int:
        """TCP port with TLS; 0 for none."""
        return next((door.port for door in self._doors if door.tls is not None), 0)

    @property
    def associations(self) -> list[Inbound]:
        """Associations whose threads run."""
        with self._lock:
            return list(self._running)

    def release(self, assoc: Inbound) -> None:
        """Give the place of an association that has ended to the next one."""
        with self._lock:
            self._leave(assoc)

    def _leave(self, assoc: Inbound) -> None:
        if assoc not in self._open:
            return
        self._open.discard(assoc)
        self._places.give_back()
        self._note_load()

    def close(self) -> None:
        """Let nobody in any more."""
        if self._lobby is not None:
            self._lobby.close()
            self._lobby = None
            self._doors = []

    def join(self, associations: Sequence[Inbound], seconds: float) -> None:
        """Wait until `associations` have ended, `seconds` at most."""
        deadline = time.monotonic() + seconds
        for assoc in associations:
            assoc.join(max(0.0, deadline - time.monotonic()))

    def _admit(self, arrival: Arrival) -> bytes | None:
        most = self._settings.max_associations
        with self._lock:
            is_full = not self._places.take(most)
            is_congested = not is_full and len(self._running) >= most + _CLOSING
            if is_congested:
                self._places.give_back()
        if is_full:
            _AUDIT.warning("rejected an association of %s: %d are open already", arrival.address[0], most)
            return _LIMIT_EXCEEDED
        if is_congested:
            return _CONGESTED
        assoc: Inbound | None = None
        try:
            assoc = self._associate(arrival, self._ended)
            with self._lock:
                self._open.add(assoc)
                self._running.add(assoc)
                self._note_load()
            assoc.start()
        except (OSError, RuntimeError) as error:  # no file handle or no thread is left
            _LOG.error("cannot serve an association of %s: %s", arrival.address[0], error)
            if assoc is not None:
                self._ended(assoc)
            else:
                with self._lock:
                    self._places.give_back()
            return _CONGESTED
        return None

    def _ended(self, assoc: Inbound) -> None:
        with self._lock:
            self._leave(assoc)
            self._running.discard(assoc)
