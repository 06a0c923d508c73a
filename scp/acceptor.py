"""Associations that peers open with this node: negotiation, then each DIMSE request to its service and back.

The pynetdicom side of the edge. It decides nothing about archives: it reads the request, calls one service, and builds
the response from the answer.
"""

from __future__ import annotations

import logging
import sys

from pydicom.uid import UID
from pynetdicom import evt
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import DIMSEPrimitive
from pynetdicom.pdu_primitives import A_ASSOCIATE
from pynetdicom.presentation import PresentationContext

from config.identity import IMPLEMENTATION_CLASS_UID, implementation_version_name
from config.settings import ScpSettings, TlsSettings
from scp import extended_negotiation, transport
from scp.carried import Carried
from scp.carrier import Carrier
from scp.dispatch import Services, answer, caller_of, peer_of, refuse
from scp.exchange import Exchange
from scp.inbound import InboundAssociation
from scp.listener import Listener
from scp.negotiation import supported_contexts
from scp.reception import Reception
from scp.status import Status

_LOG = logging.getLogger(__name__)
_AUDIT = logging.getLogger("tharsis.audit")

# Parameters of an A-ASSOCIATE-RJ (PS3.8 table 9-21).
_REJECTED_PERMANENT = 0x01
_BY_SERVICE_USER = 0x01
_BY_PROVIDER_ACSE = 0x02
_NO_REASON = 0x01
_CALLING_UNKNOWN = 0x03
_CALLED_UNKNOWN = 0x07

_SHORTEST_PDU = 8
"""Bytes of a P-DATA-TF that hold two bytes of a message (PS3.8 9.3.5)."""


class Acceptor:
    """Listens, and serves the associations that peers open.

    Parameters
    ----------
    services
        Who answers.
    settings
        ``[scp]``.
    secure
        ``[tls]``.
    """

    def __init__(self, services: Services, settings: ScpSettings, secure: TlsSettings) -> None:
        self._services = services
        self._settings = settings
        self._entity = transport.NodeEntity(settings.aet)
        self._entity.dispatch = self._dispatch
        self._entity.implementation_class_uid = UID(IMPLEMENTATION_CLASS_UID)
        self._entity.implementation_version_name = implementation_version_name()
        self._entity.maximum_pdu_size = settings.max_pdu_bytes
        self._entity.maximum_associations = sys.maxsize  # the listener counts them, and better
        self._entity.acse_timeout = settings.acse_timeout_s
        self._entity.dimse_timeout = settings.dimse_timeout_s
        self._entity.network_timeout = settings.network_timeout_s
        self._listener = Listener(
            self._entity,
            settings,
            secure,
            [
                (evt.EVT_CONN_OPEN, self._connected),
                (evt.EVT_CONN_CLOSE, transport.connection_closed),
                (evt.EVT_REQUESTED, self._negotiate),
                (evt.EVT_SOP_EXTENDED, _answer_extended),
                (evt.EVT_ESTABLISHED, self._established),
                (evt.EVT_ACSE_RECV, self._ending),
                (evt.EVT_RELEASED, self._ended, ["released"]),
                (evt.EVT_ABORTED, self._ended, ["aborted"]),
            ],
        )

    def start(self) -> None:
        """Begin to listen.

        Raises
        ------
        OSError
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
    def associations(self) -> list[InboundAssociation]:
        """Associations that are open now."""
        return self._listener.associations

    def stop(self, grace_s: float) -> None:
        """Accept no more, let open associations finish for `grace_s` seconds, then abort them."""
        self._listener.close()
        self._listener.join(self.associations, grace_s)
        left = self.associations
        for assoc in left:
            _LOG.warning("aborting the association of %s: still open after %g s", _peer(assoc), grace_s)
            assoc.abort(block=False)
        self._listener.join(left, self._settings.acse_timeout_s)

    # Association negotiation

    def _connected(self, event: evt.Event) -> None:
        assoc = event.assoc

        def reception() -> Reception:
            return Reception(self._services.new_file, _calling(assoc))

        transport.prepare(assoc, reception, self._refuse_incomplete)

    def _negotiate(self, event: evt.Event) -> None:
        """Check both AE titles, then support just the contexts that are proposed (PS3.8 7.1.1)."""
        assoc = event.assoc
        try:
            assoc.acceptor.supported_contexts = []
            self._admit(assoc)
        except Exception:  # noqa: BLE001  (pynetdicom would go on as if nothing had been wrong)
            _LOG.exception("%s: the association request could not be judged", _peer(assoc))
            self._reject(assoc, _BY_PROVIDER_ACSE, _NO_REASON, "it could not be judged")

    def _admit(self, assoc: Association) -> None:
        calling, called, address = _calling(assoc), _called(assoc), assoc.requestor.address
        refusal = self._services.refusal(calling, address)
        longest = assoc.requestor.maximum_length
        if not self._services.is_called(called):
            self._reject(assoc, _BY_SERVICE_USER, _CALLED_UNKNOWN, f"called AE title {called!r} is not ours")
        elif refusal is not None:
            self._reject(assoc, _BY_SERVICE_USER, _CALLING_UNKNOWN, refusal)
        elif longest and longest < _SHORTEST_PDU:
            why = f"nothing fits into PDUs of {longest} bytes, at least {_SHORTEST_PDU} are needed"
            self._reject(assoc, _BY_PROVIDER_ACSE, _NO_REASON, why)
        else:
            private = caller_of(self._services, _carrier(assoc)).private_sop_classes
            assoc.acceptor.supported_contexts = supported_contexts(assoc, private=private)

    def _reject(self, assoc: Association, source: int, diagnostic: int, why: str) -> None:
        _AUDIT.warning("rejected an association of %s with %s: %s", _peer(assoc), _called(assoc), why)
        self._listener.release(assoc)
        assoc.acse.send_reject(_REJECTED_PERMANENT, source, diagnostic)
        assoc.kill()

    def _ending(self, event: evt.Event) -> None:
        primitive: object = event.primitive  # type: ignore[attr-defined]
        if not isinstance(primitive, A_ASSOCIATE):  # a release or an abort: its place is free before the peer knows
            self._listener.release(event.assoc)

    def _established(self, event: evt.Event) -> None:
        assoc = event.assoc
        subject = assoc.peer_subject if isinstance(assoc, InboundAssociation) else ""
        certificate = f", certificate {subject}" if subject else ""
        _LOG.info("%s opened an association with %s%s", _peer(assoc), _called(assoc), certificate)

    def _ended(self, event: evt.Event, how: str) -> None:
        _LOG.info("%s: association %s", _peer(event.assoc), how)

    # DIMSE requests

    def _dispatch(self, assoc: Association, request: DIMSEPrimitive, context: PresentationContext) -> None:
        try:
            exchange = Exchange(_carrier(assoc), request, context, transport.received_file(request))
            answer(self._services, exchange, caller_of(self._services, exchange.carrier))
        finally:
            transport.discard_received(request)
            transport.served(assoc, request)

    def _refuse_incomplete(
        self, assoc: Association, context_id: int, request: DIMSEPrimitive, status: Status
    ) -> None:
        context = next((cx for cx in assoc.accepted_contexts if cx.context_id == context_id), None)
        if context is not None:
            refuse(Exchange(_carrier(assoc), request, context), status)


def _answer_extended(event: evt.Event) -> dict[UID, bytes]:
    proposed = event.assoc.requestor.sop_class_extended
    return extended_negotiation.answer(proposed)


def _carrier(assoc: Association) -> Carrier:
    return assoc.carrier if isinstance(assoc, InboundAssociation) else Carried(assoc)


def _calling(assoc: Association) -> str:
    return _carrier(assoc).calling


def _called(assoc: Association) -> str:
    return _carrier(assoc).called


def _peer(assoc: Association) -> str:
    return peer_of(_carrier(assoc))
