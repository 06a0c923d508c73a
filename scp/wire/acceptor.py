"""Listens, and serves the associations that peers open, by the node's own transport."""

from __future__ import annotations

from config.settings import ScpSettings, TlsSettings
from scp.accepting import Accepting
from scp.dispatch import Services
from scp.listener import Ended, Listener
from scp.lobby import Arrival
from scp.places import Counted
from scp.sharing import Sharing
from scp.wire.association import WireAssociation
from scp.wire.stream import Alarm


class WireAcceptor(Accepting[WireAssociation]):
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
        super().__init__(Listener(self._associate, settings, secure, sharing, places), WireAssociation)

    def _associate(self, arrival: Arrival, ended: Ended) -> WireAssociation:
        return WireAssociation(
            arrival, self._services, self._settings, self._alarm, self._listener.release, ended
        )

    def stop(self, grace_s: float) -> None:
        """Accept no more, let open associations finish for `grace_s` seconds, then abort them."""
        left = self._left_open(grace_s)
        self._alarm.ring()
        for assoc in left:
            assoc.interrupt()
        self._listener.join(left, self._settings.acse_timeout_s)
        if not self.associations:
            self._alarm.close()
