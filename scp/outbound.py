"""Associations that this node opens with the peers of its settings: where they listen, TLS, and our patience."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from ssl import SSLContext

from config.application_entities import ApplicationEntity
from config.network import Transport
from config.settings import Settings
from scp.client import Requestor
from scp.contexts import Proposal
from scp.errors import PeerError
from scp.link import Link
from scp.requestor import Peer, Timeouts, connect
from scp.tls import client_context
from scp.wire.requestor import open_link

_LOG = logging.getLogger(__name__)


class Outbound:
    """Opens associations under this node's AE title.

    Parameters
    ----------
    settings
        Of the node.

    Raises
    ------
    TlsError
        What peers are to be reached with over TLS cannot be used.
    """

    def __init__(self, settings: Settings) -> None:
        own = settings.scp
        self._max_pdu_bytes = own.max_pdu_bytes
        self._transport = settings.network.transport
        self._tls = _client_context(settings)
        timeouts = Timeouts(acse=own.acse_timeout_s, dimse=own.dimse_timeout_s, network=own.network_timeout_s)
        self.requestor = Requestor(own.aet, timeouts)

    def peer(self, entity: ApplicationEntity) -> Peer:
        """Return how to reach `entity`: where it listens, and with TLS where the settings say so."""
        return Peer(entity.host, entity.port, entity.title, self._tls if entity.tls else None)

    def open_link(self, entity: ApplicationEntity, proposals: Sequence[Proposal]) -> Link:
        """Open an association with `entity`; raises `PeerError`."""
        return self._open(connect, entity, proposals)

    def open_sending(self, entity: ApplicationEntity, proposals: Sequence[Proposal]) -> Link:
        """Open an association to store many objects at `entity`; raises `PeerError`."""
        return self._open(open_link if self._transport is Transport.OWN else connect, entity, proposals)

    def _open(self, how: Callable[..., Link], entity: ApplicationEntity, proposals: Sequence[Proposal]) -> Link:
        who = self.requestor
        try:
            return how(
                self.peer(entity),
                proposals,
                calling=who.title,
                timeouts=who.timeouts,
                max_pdu_bytes=self._max_pdu_bytes,
            )
        except PeerError as error:
            _LOG.warning("%s", error)
            raise


def _client_context(settings: Settings) -> SSLContext | None:
    """The TLS context for the peers that the settings want reached with TLS; None when there are none."""
    if not any(entity.tls for entity in settings.application_entities):
        return None
    own = settings.tls
    return client_context(ca=own.ca, certificate=own.certificate, key=own.key, check_host=own.check_host)
