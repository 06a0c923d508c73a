"""An association that a peer opens, in one thread: negotiation, requests, release or abort (PS3.8 9.2, as acceptor).

States of the table in PS3.8 9.2.3: the lobby has left Sta2 behind; Sta3 is passed within `_negotiate`; `_serve` is
Sta6, and Sta8 once the peer has asked for release; `Stream.finish` is Sta13.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from pydicom.datadict import tag_for_keyword
from pydicom.uid import UID
from pynetdicom.presentation import PresentationContext

from config.settings import ScpSettings
from scp import tls
from scp.caller import Caller
from scp.dispatch import Services, answer, caller_of, peer_of, refuse
from scp.errors import AssociationLost
from scp.exchange import Exchange
from scp.lobby import Arrival
from scp.negotiation import BY_ACSE, NO_REASON, Rejected, require_admitted
from scp.pacing import unsent, wait_for_reader
from scp.reception import Reception
from scp.status import MISTYPED_ARGUMENT, Status
from scp.wire import commands, negotiation, pdu
from scp.wire.assembly import Message
from scp.wire.carrying import Carrying
from scp.wire.channel import Channel
from scp.wire.errors import Idle, Interrupted, PeerAborted, Refused, Violation
from scp.wire.exchange import StoreExchange
from scp.wire.stream import Alarm, Stream

_LOG = logging.getLogger(__name__)
_AUDIT = logging.getLogger("tharsis.audit")

_SHIFT_S = 0.002
_MOST_UNREAD = 1 << 16
"""Bytes of answers that a peer may leave in this node's kernel before its next request is served."""


class WireAssociation(Carrying):
    """A `Carrier`, and the thread that serves it.

    Parameters
    ----------
    arrival
        The connection, and the request that came on it.
    services
        Who answers.
    settings
        ``[scp]``.
    alarm
        Ends every wait when the node stops.
    left
        Called with it as soon as the peer has ended it, or it was rejected: its place is free.
    ended
        Called with it when its connection is closed and its thread has done its work.

    Attributes
    ----------
    peer_subject
        Subject of the peer's TLS certificate; empty without one.
    """

    def __init__(
        self,
        arrival: Arrival,
        services: Services,
        settings: ScpSettings,
        alarm: Alarm,
        left: Callable[[WireAssociation], None],
        ended: Callable[[WireAssociation], None],
    ) -> None:
        self._arrival = arrival
        self._services = services
        self._settings = settings
        self._left, self._ended = left, ended
        self.peer_subject = tls.subject(arrival.connection)
        stream = Stream(arrival.connection, settings.max_pdu_bytes, alarm)
        channel = Channel(stream, self._reception, settings.network_timeout_s, self._hurry)
        super().__init__(
            stream, channel, dimse_timeout=settings.dimse_timeout_s, network_timeout=settings.network_timeout_s
        )
        self._request: negotiation.Request | None = None
        self._caller: Caller | None = None
        self._thread = threading.Thread(
            target=self._run, name=f"association-{arrival.address[0]}:{arrival.address[1]}", daemon=True
        )

    # For the listener

    def start(self) -> None:
        """Begin; raises `RuntimeError` when there is no thread."""
        self._thread.start()

    def join(self, timeout_s: float | None = None) -> None:
        """Wait until it has ended."""
        self._thread.join(timeout_s)

    def interrupt(self) -> None:
        """Have it end though its next request waits for room in memory, from any thread: the node stops."""
        self._channel.end = self._channel.end or Interrupted("the node stops")
        self._channel.inbox.clear()

    @property
    def carrier(self) -> WireAssociation:
        """It, as services see it."""
        return self

    # What services see

    @property
    def calling(self) -> str:
        """AE title of its requestor; empty before that is known."""
        return self._request.requested.calling if self._request is not None else ""

    @property
    def called(self) -> str:
        """AE title that its requestor called."""
        return self._request.requested.called if self._request is not None else ""

    @property
    def address(self) -> str:
        """IP address of its requestor."""
        return self._arrival.address[0]

    @property
    def proposed(self) -> Mapping[UID, bytes]:
        """SOP class → Service Class Application Information that its requestor proposed."""
        return self._request.proposed if self._request is not None else {}

    def release(self) -> None:
        """Do nothing: its requestor releases it."""

    # The thread

    def _run(self) -> None:
        last = b""
        try:
            last = self._lead()
        except Exception:  # noqa: BLE001  (one association's trouble is nobody else's)
            _LOG.exception("the association of %s ended", self.address)
            last = pdu.abort_by_provider(pdu.NOT_SPECIFIED)
        finally:
            self._is_established = False
            self._channel.discard()
            self._left(self)
            self._stream.finish(last)
            self._ended(self)

    def _lead(self) -> bytes:
        """Lead the association from its request to its end; return the last PDU."""
        try:
            accepted = self._judged()
        except Refused as refused:
            _AUDIT.warning("refused a connection of %s: %s", self.address, refused)
            return pdu.abort_by_user()  # AA-1: there is no association
        except Rejected as rejected:
            _AUDIT.warning("rejected an association of %s with %s: %s", peer_of(self), self.called, rejected)
            return negotiation.reject(rejected)
        self._channel.open(accepted)
        if self._channel.end is None:
            self._is_established = True
            certificate = f", certificate {self.peer_subject}" if self.peer_subject else ""
            _LOG.info("%s opened an association with %s%s", peer_of(self), self.called, certificate)
            self._serve()
        return self._farewell()

    def _judged(self) -> bytes:
        """Return the A-ASSOCIATE-AC; raises `Rejected`, and `Refused` for a request that cannot be decoded."""
        try:
            self._request = request = negotiation.read_request(self._arrival.request, self.address)
        except Rejected:
            raise
        except Exception as error:
            raise Refused(f"its association request cannot be decoded: {error}"[:200]) from error
        try:
            require_admitted(self._services, request.requested)
            self._caller = caller_of(self._services, self)
            accepted, contexts = negotiation.answered(
                self._arrival.request,
                private=self._caller.private_sop_classes,
                max_pdu_bytes=self._settings.max_pdu_bytes,
            )
        except Rejected:
            raise
        except Exception as error:
            _LOG.exception("%s: the association request could not be judged", peer_of(self))
            raise Rejected(BY_ACSE, NO_REASON, "it could not be judged") from error
        self._channel.contexts.update({int(context.context_id or 0): context for context in contexts})
        self._channel.limit(request.requested.maximum_length)
        return accepted

    def _serve(self) -> None:
        """Serve requests until the association ends, or the peer has asked for release."""
        channel = self._channel
        while channel.end is None and (channel.waiting or not channel.is_releasing):
            if not channel.waiting:
                channel.rest()
            with self._turn:
                if not channel.waiting:
                    channel.take_message()
                if channel.waiting and channel.end is None:
                    self._serve_one(channel.next())
            if self._others:
                time.sleep(_SHIFT_S)  # a lock alone would hardly ever let the others have their turn
        channel.notice_last()

    def _serve_one(self, message: Message) -> None:
        channel = self._channel
        channel.inbox.taken(is_message=True)
        try:
            context = channel.contexts.get(message.context_id)
            if context is None:
                channel.end = Refused(f"presentation context {message.context_id} was not accepted")
            elif self._takes_answers():
                self._answer(message, context)
        finally:
            channel.inbox.taken(is_message=False)
            if message.received is not None:
                message.received.leave()
            channel.served()

    def _takes_answers(self) -> bool:
        """Wait until the peer has read most of what it was answered; False when it does not, and has lost its place."""
        if unsent(self.descriptor) > _MOST_UNREAD:
            try:
                wait_for_reader(self, bool)
            except AssociationLost as lost:
                _LOG.warning("%s: %s", peer_of(self), lost)
                return False
        return True

    def _answer(self, message: Message, context: PresentationContext) -> None:
        request = message.primitive
        exchange: Exchange
        if isinstance(request, commands.StoreRequest):
            exchange = StoreExchange(self, request, context, message.received, self._channel.send)
        else:
            exchange = Exchange(self, request, context, message.received)
            if not request.is_valid_request:
                self._refuse_incomplete(exchange, request)
                return
        answer(self._services, exchange, self._caller or caller_of(self._services, self))

    @staticmethod
    def _refuse_incomplete(exchange: Exchange, request: Any) -> None:
        if request.MessageID is not None:
            missing = next(word for word in request.REQUEST_KEYWORDS if getattr(request, word) is None)
            tag = tag_for_keyword(missing)
            offending = () if tag is None else (int(tag),)
            refuse(exchange, Status(MISTYPED_ARGUMENT, f"{missing} is missing or empty", offending))

    def _farewell(self) -> bytes:
        """Return the last PDU, and tell how the association ended."""
        end, peer = self._channel.end, peer_of(self)
        if end is None:
            _LOG.info("%s: association released", peer)
            return pdu.RELEASED
        if isinstance(end, Violation):
            _LOG.warning("aborting the association of %s: %s", peer, end)
            return pdu.abort_by_provider(end.reason)
        if isinstance(end, (Interrupted, Idle, Refused)):
            _LOG.warning("aborting the association of %s: %s", peer, end)
            return pdu.abort_by_user()
        how = "aborted" if isinstance(end, PeerAborted) else f"lost: {end}"
        if self._channel.is_under_way:
            _LOG.warning("%s: association %s; what has come of an unfinished message is dropped", peer, how)
        else:
            _LOG.info("%s: association %s", peer, how)
        return b""

    def _reception(self) -> Reception:
        services = self._services
        return Reception(
            services.new_file,
            self.calling,
            past_cache=services.past_cache,
            waits=False,
            require_space=services.require_space,
        )

    def _hurry(self) -> None:
        self._channel.end = self._channel.end or Refused("a large request takes too long")
        self._stream.stop_reading()
