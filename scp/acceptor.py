"""Associations that peers open with this node: negotiation, then each DIMSE request to its service and back.

The pynetdicom side of the edge. It decides nothing about archives: it reads the request, calls one service, and builds
the response from the answer.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from pydicom.uid import UID
from pynetdicom import evt
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import DIMSEPrimitive
from pynetdicom.pdu_primitives import A_ASSOCIATE
from pynetdicom.presentation import PresentationContext

from config.application_entities import Right
from config.identity import IMPLEMENTATION_CLASS_UID, implementation_version_name
from config.settings import ScpSettings, TlsSettings
from scp import extended_negotiation, transport
from scp.caller import Caller
from scp.contexts import Operation
from scp.errors import AssociationLost, NotAuthorized
from scp.exchange import Exchange
from scp.inbound import InboundAssociation
from scp.link import Link
from scp.listener import Listener
from scp.messages import ActionRequest, Answer, EventReport, FindRequest, RetrieveRequest, StoreRequest
from scp.negotiation import supported_contexts
from scp.reception import Reception
from scp.status import PROCESSING_FAILURE, SUCCESS, Status, is_expected, status_of

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


class Services(Protocol):
    """What the acceptor asks: who calls, and the answer to each request."""

    def identify(self, calling: str, called: str, address: str) -> Caller | None:
        """Return the caller, None when the calling AE title is not recognised."""

    def refusal(self, calling: str, address: str) -> str | None:
        """Return why that AE title may not associate from that IP address; None when it may."""

    def is_called(self, called: str) -> bool:
        """Whether this node answers to that AE title."""

    def new_file(self) -> Path:
        """Make the empty file for a data set to be received."""

    def store(self, caller: Caller, request: StoreRequest) -> Answer:
        """Answer a C-STORE."""

    def find(self, caller: Caller, request: FindRequest) -> Iterator[Answer]:
        """Answer a C-FIND."""

    def retrieve(self, caller: Caller, request: RetrieveRequest, link: Link | None) -> Iterator[Answer]:
        """Answer a C-MOVE or, with the association to send on, a C-GET."""

    def commit(self, caller: Caller, request: ActionRequest) -> Answer:
        """Answer an N-ACTION that asks for storage commitment."""

    def take_report(self, caller: Caller, request: EventReport) -> Answer:
        """Answer an N-EVENT-REPORT of a peer that this node asked for storage commitment."""


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
            private = self._caller(assoc).private_sop_classes
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
            self._answer(assoc, request, context)
        finally:
            transport.discard_received(request)
            transport.served(assoc, request)

    def _answer(self, assoc: Association, request: DIMSEPrimitive, context: PresentationContext) -> None:
        exchange = Exchange(assoc, request, context)
        started = time.monotonic()
        last = Status(PROCESSING_FAILURE, "no answer")
        count = 0
        caller = self._caller(assoc)
        try:
            for answer in self._answers(caller, exchange):
                last = answer.status
                count += answer.status.is_pending
                exchange.respond(answer)
        except AssociationLost as lost:
            _LOG.warning("%s: %s was cut off: %s", _peer(assoc), exchange.name, lost)
            return
        except Exception as error:  # noqa: BLE001  (nothing that a service raises may end the node: it becomes a Status)
            last = status_of(error)
            if isinstance(error, NotAuthorized) and error.right != Right.SIMILAR:  # that one is told with its question
                _AUDIT.warning("%s %s refused: %s", _peer(assoc), exchange.name, error)
            if not is_expected(error):
                _LOG.exception("%s: %s failed", _peer(assoc), exchange.name)
            try:
                exchange.respond(Answer(last))
            except AssociationLost as lost:
                _LOG.warning("%s: %s was not answered %s: %s", _peer(assoc), exchange.name, last, lost)
                return
        _LOG.info(
            "%s %s %s: %s, %d pending, %.3f s",
            _peer(assoc),
            exchange.name,
            UID(exchange.sop_class_uid).name,
            last,
            count,
            time.monotonic() - started,
        )

    def _caller(self, assoc: Association) -> Caller:
        called = _called(assoc)
        caller = self._services.identify(_calling(assoc), called, assoc.requestor.address)
        return caller or Caller(_calling(assoc), called, assoc.requestor.address, frozenset())

    def _answers(self, caller: Caller, exchange: Exchange) -> Iterator[Answer]:
        operation = exchange.operation
        if operation is Operation.ECHO:
            yield Answer(SUCCESS)
        elif operation is Operation.STORE:
            yield self._services.store(caller, exchange.store_request())
        elif operation is Operation.FIND:
            yield from self._services.find(caller, exchange.find_request())
        elif operation is Operation.ACTION:
            yield self._services.commit(caller, exchange.action_request())
        elif operation is Operation.REPORT:
            yield self._services.take_report(caller, exchange.event_report())
        else:
            link = exchange.link() if operation is Operation.GET else None
            yield from self._services.retrieve(caller, exchange.retrieve_request(), link)

    def _refuse_incomplete(
        self, assoc: Association, context_id: int, request: DIMSEPrimitive, status: Status
    ) -> None:
        context = next((cx for cx in assoc.accepted_contexts if cx.context_id == context_id), None)
        if context is None:
            return
        try:
            Exchange(assoc, request, context).respond(Answer(status))
        except AssociationLost as lost:
            _LOG.warning("%s: an incomplete request was not answered: %s", _peer(assoc), lost)


def _answer_extended(event: evt.Event) -> dict[UID, bytes]:
    proposed = event.assoc.requestor.sop_class_extended
    return extended_negotiation.answer(proposed)


def _calling(assoc: Association) -> str:
    primitive = assoc.requestor.primitive
    return str(primitive.calling_ae_title).strip() if primitive is not None else ""


def _called(assoc: Association) -> str:
    primitive = assoc.requestor.primitive
    return str(primitive.called_ae_title).strip() if primitive is not None else ""


def _peer(assoc: Association) -> str:
    return f"{_calling(assoc) or '?'}@{assoc.requestor.address}"
