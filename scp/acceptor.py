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
from scp.accepting import Accepting
from scp.carried import Carried
from scp.carrier import Carrier
from scp.dispatch import Services, answer, caller_of, peer_of, refuse
from scp.exchange import Exchange
from scp.inbound import Handlers, InboundAssociation
from scp.listener import Ended, Listener
from scp.lobby import Arrival
from scp.negotiation import (
    BY_ACSE,
    NO_REASON,
    PERMANENT,
    Rejected,
    Requested,
    require_admitted,
    supported_contexts,
)
from scp.places import Counted
from scp.reception import Reception
from scp.sharing import Sharing
from scp.status import Status

_LOG = logging.getLogger(__name__)
_AUDIT = logging.getLogger("tharsis.audit")


class Acceptor(Accepting[InboundAssociation]):
    """Listens, and serves the associations that peers open.

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
        self._entity = transport.NodeEntity(settings.aet)
        self._entity.dispatch = self._dispatch
        self._entity.implementation_class_uid = UID(IMPLEMENTATION_CLASS_UID)
        self._entity.implementation_version_name = implementation_version_name()
        self._entity.maximum_pdu_size = settings.max_pdu_bytes
        self._entity.maximum_associations = sys.maxsize  # the listener counts them, and better
        self._entity.acse_timeout = settings.acse_timeout_s
        self._entity.dimse_timeout = settings.dimse_timeout_s
        self._entity.network_timeout = settings.network_timeout_s
        self._handlers: Handlers = [
            (evt.EVT_CONN_OPEN, self._connected),
            (evt.EVT_CONN_CLOSE, transport.connection_closed),
            (evt.EVT_REQUESTED, self._negotiate),
            (evt.EVT_SOP_EXTENDED, _answer_extended),
            (evt.EVT_ESTABLISHED, self._established),
            (evt.EVT_ACSE_RECV, self._ending),
            (evt.EVT_RELEASED, self._ended, ["released"]),
            (evt.EVT_ABORTED, self._ended, ["aborted"]),
        ]
        super().__init__(Listener(self._associate, settings, secure, sharing, places), InboundAssociation)

    def _associate(self, arrival: Arrival, ended: Ended) -> InboundAssociation:
        return InboundAssociation(self._entity, arrival, self._handlers, ended)

    def stop(self, grace_s: float) -> None:
        """Accept no more, let open associations finish for `grace_s` seconds, then abort them."""
        left = self._left_open(grace_s)
        for assoc in left:
            assoc.abort(block=False)
            transport.interrupt(assoc)
        self._listener.join(left, self._settings.acse_timeout_s)

    # Association negotiation

    def _connected(self, event: evt.Event) -> None:
        assoc = event.assoc

        def reception() -> Reception:
            services = self._services
            return Reception(
                services.new_file,
                _carrier(assoc).calling,
                past_cache=services.past_cache,
                waits=False,
                require_space=services.require_space,
            )

        transport.prepare(assoc, reception, self._refuse_incomplete)

    def _negotiate(self, event: evt.Event) -> None:
        """Check both AE titles, then support just the contexts that are proposed (PS3.8 7.1.1)."""
        assoc = event.assoc
        try:
            assoc.acceptor.supported_contexts = []
            requested = _requested(assoc)
            require_admitted(self._services, requested)
            private = caller_of(self._services, _carrier(assoc)).private_sop_classes
            assoc.acceptor.supported_contexts = supported_contexts(requested, private=private)
        except Rejected as rejected:
            self._reject(assoc, rejected)
        except Exception:  # noqa: BLE001  (pynetdicom would go on as if nothing had been wrong)
            _LOG.exception("%s: the association request could not be judged", _peer(assoc))
            self._reject(assoc, Rejected(BY_ACSE, NO_REASON, "it could not be judged"))

    def _reject(self, assoc: Association, rejected: Rejected) -> None:
        _AUDIT.warning("rejected an association of %s with %s: %s", _peer(assoc), _called(assoc), rejected)
        self._release(assoc)
        assoc.acse.send_reject(PERMANENT, rejected.source, rejected.diagnostic)
        assoc.kill()

    def _release(self, assoc: Association) -> None:
        if isinstance(assoc, InboundAssociation):
            self._listener.release(assoc)

    def _ending(self, event: evt.Event) -> None:
        primitive: object = event.primitive  # type: ignore[attr-defined]
        if not isinstance(primitive, A_ASSOCIATE):  # a release or an abort: its place is free before the peer knows
            self._release(event.assoc)

    def _established(self, event: evt.Event) -> None:
        assoc = event.assoc
        subject = assoc.peer_subject if isinstance(assoc, InboundAssociation) else ""
        certificate = f", certificate {subject}" if subject else ""
        _LOG.info("%s opened an association with %s%s", _peer(assoc), _called(assoc), certificate)

    def _ended(self, event: evt.Event, how: str) -> None:
        _LOG.info("%s: association %s", _peer(event.assoc), how)

    # DIMSE requests

    def _dispatch(self, assoc: Association, request: DIMSEPrimitive, context: PresentationContext) -> None:
        received = transport.received_file(request)
        try:
            exchange = Exchange(_carrier(assoc), request, context, received)
            answer(self._services, exchange, caller_of(self._services, exchange.carrier))
        finally:
            if received is not None:
                received.leave()
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


def _requested(assoc: Association) -> Requested:
    requestor, carrier = assoc.requestor, _carrier(assoc)
    request = requestor.primitive
    return Requested(
        calling=carrier.calling,
        called=carrier.called,
        address=carrier.address,
        maximum_length=requestor.maximum_length or 0,
        contexts=request.presentation_context_definition_list if request is not None else [],
        scp_roles=frozenset(str(uid) for uid, role in requestor.role_selection.items() if role.scp_role),
        application_context=str(request.application_context_name or "") if request is not None else "",
    )


def _called(assoc: Association) -> str:
    return _carrier(assoc).called


def _peer(assoc: Association) -> str:
    return peer_of(_carrier(assoc))
