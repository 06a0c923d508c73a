"""What an acceptor is, whichever transport carries its associations: a listener, and those that are open."""

from __future__ import annotations

import logging
from typing import Generic, TypeVar

from scp.dispatch import peer_of
from scp.listener import Inbound, Listener

_LOG = logging.getLogger(__name__)

Opened = TypeVar("Opened", bound=Inbound)


class Accepting(Generic[Opened]):
    """Listens, and knows the associations that peers have opened.

    Parameters
    ----------
    listener
        Where they come in.
    kind
        What they are.
    """

    def __init__(self, listener: Listener, kind: type[Opened]) -> None:
        self._listener = listener
        self._kind = kind

    def start(self) -> None:
        """Begin to listen.

        Raises
        ------
        CannotListen
            A port cannot be had; `filename` of the error is its address.
        TlsError
            Certificate, key or authorities cannot be used.
        """
        self._listener.start()

    @property
    def port(self) -> int:
        """TCP port without TLS; 0 for none."""
        return self._listener.port

    @property
    def tls_port(self) -> int:
        """TCP port with TLS; 0 for none."""
        return self._listener.tls_port

    @property
    def associations(self) -> list[Opened]:
        """Associations that are open now."""
        return [each for each in self._listener.associations if isinstance(each, self._kind)]

    def _left_open(self, grace_s: float) -> list[Opened]:
        """Accept no more, let open associations finish for `grace_s` seconds; return those that have not."""
        self._listener.close()
        self._listener.join(self.associations, grace_s)
        left = self.associations
        for each in left:
            _LOG.warning("aborting the association of %s: still open after %g s", peer_of(each.carrier), grace_s)
        return left
