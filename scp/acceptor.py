"""Associations that peers open with this node: negotiation, then each DIMSE request to its service and back.

The pynetdicom side of the edge. It decides nothing about archives: it reads the request, calls one service, and builds
the response from the answer.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from pydicom.uid import UID, ImplicitVRLittleEndian
from pynetdicom import evt
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import DIMSEPrimitive
from pynetdicom.presentation import PresentationContext

from config.identity import IMPLEMENTATION_CLASS_UID, implementation_version_name
from config.settings import ScpSettings
from scp import extended_negotiation, transport
from scp.caller import Caller
from scp.contexts import VERIFICATION, Operation
from scp.errors import AssociationLost
from scp.exchange import Exchange
from scp.link import Link
from scp.messages import Answer, FindRequest, RetrieveRequest, StoreRequest
from scp.negotiation import presentation_context, supported_contexts
from scp.reception import Reception
from scp.status import PROCESSING_FAILURE, SUCCESS, Status, is_expected, status_of

_LOG = logging.getLogger(__name__)

_REJECTED_PERMANENT = 0x01
_BY_SERVICE_USER = 0x01
_CALLING_UNKNOWN = 0x03
_CALLED_UNKNOWN = 0x07


class Services(Protocol):
    """What the acceptor asks: who calls, and the answer to each request."""

    def identify(self, calling: str, called: str, address: str) -> Caller | None:
        """Return the caller, None when the calling AE title is not recognised."""

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


class Acceptor:
    """Listens on one port and serves the associations that are opened there.

    Parameters
    ----------
    services
        Who answers.
    settings
        ``[scp]``.
    """

    def __init__(self, services: Services, settings: ScpSettings) -> None:
        self._services = services
        self._settings = settings
        self._entity = transport.NodeEntity(settings.aet)
        self._entity.dispatch = self._dispatch
        self._entity.implementation_class_uid = UID(IMPLEMENTATION_CLASS_UID)
        self._entity.implementation_version_name = implementation_version_name()
        self._entity.maximum_pdu_size = settings.max_pdu_bytes
        self._entity.maximum_associations = settings.max_associations
        self._entity.acse_timeout = settings.acse_timeout_s
        self._entity.dimse_timeout = settings.dimse_timeout_s
        self._entity.network_timeout = settings.network_timeout_s
        self._server: Any = None

    def start(self) -> int:
        """Begin to listen; return the port.

        Raises
        ------
        OSError
            The port cannot be had.
        """
        self._server = self._entity.start_server(
            (self._settings.host, self._settings.port),
            block=False,
            contexts=[presentation_context(VERIFICATION, [ImplicitVRLittleEndian])],
            evt_handlers=[
                (evt.EVT_CONN_OPEN, self._connected),
                (evt.EVT_CONN_CLOSE, transport.connection_closed),
                (evt.EVT_REQUESTED, self._negotiate),
                (evt.EVT_SOP_EXTENDED, _answer_extended),
                (evt.EVT_ESTABLISHED, self._established),
                (evt.EVT_RELEASED, self._ended, ["released"]),
                (evt.EVT_ABORTED, self._ended, ["aborted"]),
            ],
        )
        self._server.socket.listen(self._settings.max_associations)
        return int(self._server.server_address[1])

    @property
    def associations(self) -> list[Association]:
        """Associations that are open now."""
        return [] if self._server is None else self._server.active_associations

    def stop(self, grace_s: float) -> None:
        """Accept no more, let open associations finish for `grace_s` seconds, then abort them."""
        if self._server is None:
            return
        self._server.shutdown()
        deadline = time.monotonic() + grace_s
        for assoc in self.associations:
            assoc.join(max(0.0, deadline - time.monotonic()))
        left = self.associations
        for assoc in left:
            _LOG.warning("aborting the association of %s: still open after %g s", _peer(assoc), grace_s)
            assoc.abort(block=False)
        for assoc in left:
            assoc.join(self._settings.acse_timeout_s)
        self._server = None

    # Association negotiation

    def _connected(self, event: evt.Event) -> None:
        assoc = event.assoc

        def reception() -> Reception:
            return Reception(self._services.new_file, _calling(assoc))

        transport.prepare(
            assoc, reception, self._refuse_incomplete, network_timeout_s=self._settings.network_timeout_s
        )

    def _negotiate(self, event: evt.Event) -> None:
        """Check both AE titles, then support just the contexts that are proposed (PS3.8 7.1.1)."""
        assoc = event.assoc
        calling, called = _calling(assoc), _called(assoc)
        if not self._services.is_called(called):
            self._reject(assoc, _CALLED_UNKNOWN, f"called AE title {called!r} is not ours")
        elif self._services.identify(calling, called, assoc.requestor.address) is None:
            self._reject(assoc, _CALLING_UNKNOWN, f"calling AE title {calling!r} is not known")
        else:
            assoc.acceptor.supported_contexts = supported_contexts(assoc)

    def _reject(self, assoc: Association, diagnostic: int, why: str) -> None:
        _LOG.warning("rejected an association of %s: %s", _peer(assoc), why)
        assoc.acse.send_reject(_REJECTED_PERMANENT, _BY_SERVICE_USER, diagnostic)
        assoc.kill()

    def _established(self, event: evt.Event) -> None:
        assoc = event.assoc
        _LOG.info("%s opened an association with %s", _peer(assoc), _called(assoc))

    def _ended(self, event: evt.Event, how: str) -> None:
        _LOG.info("%s: association %s", _peer(event.assoc), how)

    # DIMSE requests

    def _dispatch(self, assoc: Association, request: DIMSEPrimitive, context: PresentationContext) -> None:
        try:
            self._answer(assoc, request, context)
        finally:
            transport.discard_received(request)

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
            if not is_expected(error):
                _LOG.exception("%s: %s failed", _peer(assoc), exchange.name)
            exchange.respond(Answer(last))
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
