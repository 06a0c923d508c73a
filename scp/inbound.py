"""An association that a peer opens: from the connection with its request to the end of both threads (PS3.8 7.1)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from pynetdicom import evt
from pynetdicom._globals import MODE_ACCEPTOR
from pynetdicom.association import Association
from pynetdicom.transport import AddressInformation

from scp import tls, transport
from scp.carried import Carried
from scp.lobby import Arrival
from scp.peer_socket import PeerSocket
from scp.upper_layer import UpperLayer

_LOG = logging.getLogger(__name__)

_END_S = 5.0
"""How long the thread of the upper layer may take to end, seconds, before it is left alone."""

Handlers = Sequence[tuple[Any, ...]]
"""(event, handler) or (event, handler, arguments), as pynetdicom takes them."""


class InboundAssociation(Association):
    """An association of which this node is the acceptor.

    Parameters
    ----------
    entity
        Who accepts it.
    arrival
        The connection, and the request that came on it.
    handlers
        Bound to its events before the first one.
    ended
        Called with it when its connection is closed and its threads have done their work.

    Attributes
    ----------
    carrier
        It, as services see it.
    peer_subject
        Subject of the peer's TLS certificate; empty without one.
    """

    def __init__(
        self,
        entity: transport.NodeEntity,
        arrival: Arrival,
        handlers: Handlers,
        ended: Callable[[InboundAssociation], None],
    ) -> None:
        super().__init__(entity, MODE_ACCEPTOR)
        self._ended = ended
        self.name = f"association-{arrival.address[0]}:{arrival.address[1]}"
        layer = UpperLayer(self)
        layer.largest_pdu = entity.maximum_pdu_size
        self.dul = layer
        self.acse_timeout = entity.acse_timeout  # again: the timers are the layer's
        self.network_timeout = entity.network_timeout
        self.carrier = Carried(self)
        self.peer_subject = tls.subject(arrival.connection)
        self.set_socket(PeerSocket(self, arrival.connection, received=arrival.request))
        self.acceptor.maximum_length = entity.maximum_pdu_size
        self.acceptor.ae_title = entity.ae_title
        self.acceptor.address_info = AddressInformation.from_tuple(arrival.connection.getsockname())
        self.acceptor.implementation_class_uid = entity.implementation_class_uid
        self.acceptor.implementation_version_name = entity.implementation_version_name
        self.requestor.address_info = AddressInformation.from_tuple(arrival.address)
        for event, handler, *arguments in handlers:
            self.bind(event, handler, *arguments)
        evt.trigger(self, evt.EVT_CONN_OPEN, {"address": arrival.address})

    def run_reactor(self) -> None:
        """Serve the association until it ends, and leave nothing behind."""
        try:
            super().run_reactor()
        except Exception:  # noqa: BLE001  (one association's trouble is nobody else's)
            _LOG.exception("the association of %s ended", self.requestor.address)
        finally:
            self.is_established = False
            self.dul.kill_dul()
            connection = self.dul.socket
            if connection is not None:
                connection._shutdown_socket()  # noqa: SLF001
            transport.discard_all(self)  # whoever receives, or waits for room to, sees that it is over
            if self.dul.is_alive():
                self.dul.join(_END_S)
            transport.discard_all(self)  # what was received meanwhile
            self._ended(self)
