"""Listens, and serves the associations that peers open, by the node's own transport."""

from __future__ import annotations

import logging

from config.settings import ScpSettings, TlsSettings
from scp.dispatch import Services, peer_of
from scp.listener import Ended, Listener
from scp.lobby import Arrival
from scp.places import Counted
from scp.sharing import Sharing
from scp.wire.association import WireAssociation
from scp.wire.stream import Alarm

_LOG = logging.getLogger(__name__)


class WireAcceptor:
    """See `scp.acceptor.Acceptor`, which does the same by pynetdicom.

    Parameters
    ----------
    services
        Who answers.
    settings
        ``[scp]``.
    secure
        ``[tls]``.
    sharing, places
        See `scp.listener.Listener`.
    """

    def __init__(
        self,
        services: Services,
        settings: ScpSettings,
        secure: TlsSettings,
        sharing: Sharing | None = None,
        places: Counted | None = None,
    ) -> None:
        self._services = services
        self._settings = settings
        self._alarm = Alarm()
        self._listener = Listener(self._associate, settings, secure, sharing, places)

    def _associate(self, arrival: Arrival, ended: Ended) -> WireAssociation:
        return WireAssociation(
            arrival, self._services, self._settings, self._alarm, self._listener.release, ended
        )

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
    def associations(self) -> list[WireAssociation]:
        """Associations that are open now."""
        return [each for each in self._listener.associations if isinstance(each, WireAssociation)]

    def stop(self, grace_s: float) -> None:
        """Accept no more, let open associations finish for `grace_s` seconds, then abort them."""
        self._listener.close()
        self._listener.join(self.associations, grace_s)
        left = self.associations
        for assoc in left:
            _LOG.warning("aborting the association of %s: still open after %g s", peer_of(assoc), grace_s)
        self._alarm.ring()
        for assoc in left:
            assoc.interrupt()
        self._listener.join(left, self._settings.acse_timeout_s)
        if not self.associations:
            self._alarm.close()
