"""From a DIMSE request to the service that answers it, and back, behind any transport."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from pydicom.uid import UID

from config.application_entities import Right
from scp.caller import Caller
from scp.carrier import Carrier
from scp.contexts import Operation
from scp.errors import AssociationLost, NotAuthorized
from scp.exchange import Exchange
from scp.link import Link
from scp.messages import ActionRequest, Answer, EventReport, FindRequest, RetrieveRequest, StoreRequest
from scp.status import PROCESSING_FAILURE, SUCCESS, Status, is_expected, status_of

_LOG = logging.getLogger(__name__)
_AUDIT = logging.getLogger("tharsis.audit")
_NAMES = 256


class Services(Protocol):
    """What the acceptor asks: who calls, and the answer to each request."""

    def identify(self, calling: str, called: str, address: str) -> Caller | None:
        """Return the caller, None when the calling AE title is not recognised."""

    def refusal(self, calling: str, address: str) -> str | None:
        """Return why that AE title may not associate from that IP address; None when it may."""

    def is_called(self, called: str) -> bool:
        """Whether this node answers to that AE title."""

    @property
    def past_cache(self) -> bool:
        """Whether large objects are written past the system's cache."""

    def new_file(self, size: int) -> Path:
        """Return the path of the file for a data set of `size` bytes; 0: not known yet, and the file is there."""

    def require_space(self, size: int) -> None:
        """Raise what answers the C-STORE when there is no room for `size` more bytes in such a file."""

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


def caller_of(services: Services, carrier: Carrier) -> Caller:
    """Return who has opened the association; without any right when the settings do not know that AE."""
    caller = services.identify(carrier.calling, carrier.called, carrier.address)
    return caller or Caller(carrier.calling, carrier.called, carrier.address, frozenset())


def peer_of(carrier: Carrier) -> str:
    """Return how the log names the peer of an association."""
    return f"{carrier.calling or '?'}@{carrier.address}"


def answer(services: Services, exchange: Exchange, caller: Caller) -> None:
    """Answer one request: nothing that a service raises may end the node, it becomes a Status."""
    started = time.monotonic()
    last = Status(PROCESSING_FAILURE, "no answer")
    count = 0
    peer = peer_of(exchange.carrier)
    try:
        for each in _answers(services, caller, exchange):
            last = each.status
            count += each.status.is_pending
            exchange.respond(each)
    except AssociationLost as lost:
        _LOG.warning("%s: %s was cut off: %s", peer, exchange.name, lost)
        return
    except Exception as error:  # noqa: BLE001  (see above)
        last = status_of(error)
        if isinstance(error, NotAuthorized) and error.right != Right.SIMILAR:  # that one is told with its question
            _AUDIT.warning("%s %s refused: %s", peer, exchange.name, error)
        if not is_expected(error):
            _LOG.exception("%s: %s failed", peer, exchange.name)
        try:
            exchange.respond(Answer(last))
        except AssociationLost as lost:
            _LOG.warning("%s: %s was not answered %s: %s", peer, exchange.name, last, lost)
            return
    _LOG.info(
        "%s %s %s: %s, %d pending, %.3f s",
        peer,
        exchange.name,
        _name(exchange.sop_class_uid),
        last,
        count,
        time.monotonic() - started,
    )


@lru_cache(_NAMES)
def _name(uid: str) -> str:
    return str(UID(uid).name)


def refuse(exchange: Exchange, status: Status) -> None:
    """Answer a request that lacks a mandatory parameter."""
    try:
        exchange.respond(Answer(status))
    except AssociationLost as lost:
        _LOG.warning("%s: an incomplete request was not answered: %s", peer_of(exchange.carrier), lost)


def _answers(services: Services, caller: Caller, exchange: Exchange) -> Iterator[Answer]:
    operation = exchange.operation
    if operation is Operation.ECHO:
        yield Answer(SUCCESS)
    elif operation is Operation.STORE:
        yield services.store(caller, exchange.store_request())
    elif operation is Operation.FIND:
        yield from services.find(caller, exchange.find_request())
    elif operation is Operation.ACTION:
        yield services.commit(caller, exchange.action_request())
    elif operation is Operation.REPORT:
        yield services.take_report(caller, exchange.event_report())
    else:
        link = exchange.link() if operation is Operation.GET else None
        yield from services.retrieve(caller, exchange.retrieve_request(), link)
