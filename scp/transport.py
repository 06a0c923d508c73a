"""pynetdicom as a transport for the services of this node, and what is used of it beyond its public interface.

Stock pynetdicom carries associations and DIMSE messages; these seams fit the services of this node to it:

- `uid_to_service_class`, looked up in ``pynetdicom.association``: requests to a `NodeEntity` go to its own dispatcher;
- `DIMSEServiceProvider`, replaced on each of our associations: a received data set goes straight to a file;
- the queue between DIMSE and the upper layer: bounded, so that memory grows with neither objects nor answers;
- `DULServiceProvider` and `AssociationSocket`, replaced on each association that a peer opens, the socket also on those
  that this node opens: they sleep until there is something to do, and give every PDU a time by which it has to come;
- ``_dataset_path`` of a C-STORE primitive: a file's data set is sent as it stands, at any offset.

What begins with an underscore there, by the module that uses or overrides it:

- `scp.transport`: ``_config`` (its log, and the UIDs that it takes), ``_COMMAND_SET_KEYWORDS`` (elements of responses),
  ``_accepted_cx``, ``_is_paused``, ``_kill`` and ``_reactor_checkpoint`` of an association, ``_idle_timer`` of its
  upper layer, ``_data_set_file`` of a message, ``_dataset_file`` and ``_dataset_path`` of a C-STORE primitive;
- `scp.inbound`: ``_globals`` (the mode of an acceptor), ``_shutdown_socket`` of a socket;
- `scp.upper_layer`: ``_decode_pdu``, ``_idle_timer``, ``_is_transport_event``, ``_kill_thread``,
  ``_process_recv_primitive``, ``_read_pdu_data``, ``_recv_pdu``, ``_run_loop_delay`` and ``_send`` of an upper layer;
- `scp.peer_socket`: ``_is_connected``, ``_ready`` and ``_shutdown_socket`` of a socket;
- `scp.requestor`: ``_create_socket`` of an application entity.

`tests/test_transport.py` reads this list: it fails when a module uses what is not on it, and when an upgrade of
pynetdicom moves anything that is. The node's own transport (`scp.wire`) needs none of it but the tolerance of odd UIDs
that is set here.
"""

# ruff: noqa: SLF001  (pynetdicom's private parts are this module's subject)

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, cast

import pynetdicom.association as pynetdicom_association
from pydicom.datadict import tag_for_keyword
from pynetdicom import AE, _config, evt
from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_messages import _COMMAND_SET_KEYWORDS, C_STORE_RQ, DIMSEMessage
from pynetdicom.dimse_primitives import C_CANCEL, C_ECHO, C_STORE, N_ACTION, N_EVENT_REPORT, DIMSEPrimitive
from pynetdicom.pdu_primitives import P_DATA
from pynetdicom.presentation import PresentationContext
from pynetdicom.service_class import ServiceClass
from pynetdicom.sop_class import uid_to_service_class

from scp.cancels import Cancelled, Requests, is_last_response
from scp.checkpoint import Checkpoint
from scp.contexts import STORAGE_COMMITMENT
from scp.errors import AssociationLost
from scp.inbox import Inbox, InboxError, ends_event_report, require_message
from scp.messages import StoreCommand
from scp.peer_socket import PeerSocket
from scp.reception import ReceivedFile, Reception
from scp.status import MISTYPED_ARGUMENT, Status
from scp.upper_layer import INVALID_PARAMETER, BoundedQueue, UpperLayer

_LOG = logging.getLogger(__name__)

_LARGEST_PDV = 1 << 17
"""Bytes of a PDV for a peer that sets no limit to its PDUs, or a higher one: nobody has to hold more at a time."""

# pynetdicom's own event handlers format every PDU and Identifier for its log; the services log requests themselves.
_config.LOG_HANDLER_LEVEL = "none"
_config.LOG_REQUEST_IDENTIFIERS = False
_config.LOG_RESPONSE_IDENTIFIERS = False


def _tolerated(_uid: object) -> tuple[bool, str]:
    return True, ""


# PS3.7 gives a DIMSE-N response no Offending Element; whoever has to find out what is wrong is glad of it all the same.
_COMMAND_SET_KEYWORDS["N-ACTION-RSP"] += ("OffendingElement",)
N_ACTION.OffendingElement = None  # type: ignore[attr-defined]

# Nor does it give a C-ECHO response anything but a Status, which alone does not tell why an echo was refused.
_COMMAND_SET_KEYWORDS["C-ECHO-RSP"] += ("OffendingElement", "ErrorComment")
C_ECHO.ErrorComment = C_ECHO.OffendingElement = None  # type: ignore[attr-defined]

# Older modalities send UIDs with letters or of more than 64 characters; refusing one would cost the association.
_config.VALIDATORS["UI"] = _tolerated


Refusal = Callable[[Association, int, Any, Status], None]
"""Sends a Status as the response to a request that came on the presentation context with that ID."""


class NodeEntity(AE):
    """An application entity whose requests go to `dispatch` instead of pynetdicom's service classes.

    Attributes
    ----------
    dispatch
        Called with (association, request primitive, presentation context); answers the request itself.
    """

    dispatch: Callable[[Association, DIMSEPrimitive, PresentationContext], None]


class _NodeServiceClass(ServiceClass):
    def SCP(self, req: Any, context: PresentationContext) -> None:  # noqa: N802  (pynetdicom's name)
        entity = self.ae
        if isinstance(entity, NodeEntity):
            try:
                entity.dispatch(self.assoc, req, context)
            finally:
                self.assoc.dul._idle_timer.restart()  # the peer has waited for this node, not the other way round


def _service_class(uid: str) -> Callable[[Association], ServiceClass]:
    stock = uid_to_service_class(uid)

    def make(assoc: Association) -> ServiceClass:
        return _NodeServiceClass(assoc) if isinstance(assoc.ae, NodeEntity) else stock(assoc)

    return make


def install() -> None:
    """Put the dispatcher into pynetdicom; other entities of the process keep its own service classes.

    Raises
    ------
    ImportError
        This version of pynetdicom has no such seam.
    """
    if not hasattr(pynetdicom_association, "uid_to_service_class"):
        raise ImportError("this pynetdicom looks up service classes in another way: pynetdicom 3.0 is expected")
    pynetdicom_association.uid_to_service_class = _service_class


install()


class _FileReceivingProvider(DIMSEServiceProvider):
    """DIMSE provider that writes the data set of a C-STORE-RQ to a file as its fragments come."""

    def __init__(
        self, assoc: Association, reception: Callable[[], Reception] | None, refuse: Refusal | None
    ) -> None:
        requests = Requests()
        self._cancelled = Cancelled(requests)
        super().__init__(assoc)
        self._reception = reception
        self._refuse = refuse
        self._receiving: ReceivedFile | None = None
        self._is_reported_to = False
        self._deadline: float | None = None
        self._inbox = Inbox(self._hang_up if refuse is not None else None)
        self.msg_queue: Requests = requests

    @property
    def maximum_pdu_size(self) -> int:
        """Largest PDU to send: the peer's limit, or our own when it sets none (its 0) or a higher one."""
        return min(super().maximum_pdu_size or _LARGEST_PDV, _LARGEST_PDV)

    @property
    def dimse_timeout(self) -> float | None:
        """How long to wait for a message, seconds; None: for ever."""
        if self._deadline is not None:
            return max(0.0, self._deadline - time.monotonic())
        return super().dimse_timeout

    @property
    def cancel_req(self) -> dict[int, C_CANCEL]:
        """C-CANCEL requests by the Message ID that they cancel, of requests that wait or are being served."""
        return self._cancelled

    @cancel_req.setter
    def cancel_req(self, _empty: dict[int, C_CANCEL]) -> None:
        """Keep them where pynetdicom forgets them: a C-CANCEL may come before its request is begun (PS3.7 9.3.2.3)."""

    def send_msg(self, primitive: Any, context_id: int) -> None:
        """Send a message. With the last response to a request, nobody waits for that to be cancelled any more."""
        if is_last_response(primitive):
            self._cancelled.forget(primitive.MessageIDBeingRespondedTo)
        super().send_msg(primitive, context_id)

    def get_msg(self, block: bool = False) -> Any:  # noqa: FBT001
        """Return the next message; a request without a mandatory parameter is refused, which pynetdicom ignores."""
        context_id, message = super().get_msg(block=block)
        self._inbox.taken(is_message=message is not None)
        if self._refuse is None or message is None:
            return context_id, message
        is_response = message.MessageIDBeingRespondedTo is not None and received_file(message) is None
        if not isinstance(message, C_CANCEL) and (is_response or message.is_valid_request):
            return context_id, message
        try:
            if not isinstance(message, C_CANCEL) and message.MessageID is not None:
                missing = next(word for word in message.REQUEST_KEYWORDS if getattr(message, word) is None)
                refusal = Status(MISTYPED_ARGUMENT, f"{missing} is missing or empty", _tag_of(missing))
                self._refuse(self.assoc, int(context_id or 0), message, refusal)
        finally:
            discard_received(message)
        return None, None

    def store_response(self, message_id: int) -> C_STORE | None:
        """Return the response to the C-STORE-RQ `message_id`, None when something else comes, or nothing in time.

        A response to another request, which a peer sends besides, must not stand for this one. One that does not tell
        is taken for it.
        """
        limit_s = self.dimse_timeout
        self._deadline = time.monotonic() + limit_s if limit_s is not None else None
        try:
            while self.dimse_timeout != 0.0:
                _, message = self.get_msg(block=True)
                if not isinstance(message, C_STORE):
                    return None
                if message.MessageIDBeingRespondedTo in (None, message_id):
                    return message if message.Status is not None else None
                _LOG.debug("a C-STORE-RSP to message %s is ignored", message.MessageIDBeingRespondedTo)
        finally:
            self._deadline = None
        return None

    def receive_primitive(self, primitive: P_DATA) -> None:
        """Process a P-DATA primitive one PDV at a time, so that command and data set part in between."""
        for item in primitive.presentation_data_value_list:
            if self._inbox.is_closed:  # nobody would clean up behind what still comes
                return
            single = P_DATA()
            single.presentation_data_value_list.append(item)
            try:
                self._inbox.fragment(item[0], item[1][0])
                if self._refuse is not None:
                    begun = self.message.encoded_command_set.getvalue() if self.message is not None else b""
                    if ends_event_report(begun, item[1]):
                        self._admit_report()
                super().receive_primitive(single)
                if self.message is not None:
                    require_message(item[1][0], self.message.command_set.get("CommandDataSetType"))
                self._divert()
            except InboxError as refused:
                self._give_up(str(refused))
                return
            except Exception as error:  # noqa: BLE001  (garbage from the peer: it loses the association, nobody else)
                self._give_up(f"unreadable DIMSE message: {type(error).__name__}: {error}"[:200])
                return

    def _admit_report(self) -> None:
        """Let one report in at a time, since pynetdicom starts a thread for each; raises `InboxError`."""
        if all(context.abstract_syntax != STORAGE_COMMITMENT for context in self.assoc.accepted_contexts):
            raise InboxError("N-EVENT-REPORT is for the requestor of an association to receive")
        if self._is_reported_to:
            raise InboxError("another N-EVENT-REPORT before the last one was answered")
        self._is_reported_to = True

    def report_served(self) -> None:
        """Let the next report in."""
        self._is_reported_to = False

    def _hang_up(self) -> None:
        _LOG.warning("closing the connection of %s: a large request takes too long", self.assoc.requestor.address)
        if isinstance(self.dul.socket, PeerSocket):
            self.dul.socket.hang_up()

    def _give_up(self, why: str) -> None:
        _LOG.warning("aborting the association of %s: %s", self.assoc.requestor.address, why)
        self.discard()
        self.message = None
        if isinstance(self.dul, UpperLayer):
            self.dul.abort_reason = INVALID_PARAMETER
        self.dul.event_queue.put("Evt19")

    def _divert(self) -> None:
        message = self.message
        waiting = self.msg_queue.qsize() if self._refuse is not None else 0
        if message is None:
            self._receiving = None
            self._inbox.completed(waiting)
            return
        is_complete = type(message) is not DIMSEMessage  # its command: that tells the class
        self._inbox.received(
            message.encoded_command_set.tell(),
            message.data_set.tell() if message.data_set is not None else 0,
            expects_data=is_complete,
            waiting=waiting,
        )
        if isinstance(message, C_STORE_RQ) and self._receiving is None and self._reception is not None:
            command = message.command_set
            syntax = self.assoc._accepted_cx[int(message.context_id or 0)].transfer_syntax[0]
            identity = (command.get("AffectedSOPClassUID"), command.get("AffectedSOPInstanceUID"))
            self._receiving = ReceivedFile(self._reception(), identity, syntax)
            message._data_set_file = self._receiving  # type: ignore[assignment]

    def discard(self) -> None:
        """Delete what was received of a data set that will not be completed."""
        receiving, self._receiving = self._receiving, None
        if receiving is not None:
            receiving.discard()
        self._inbox.clear()

    def discard_waiting(self) -> None:
        """Take requests that nobody will answer off the queue, and delete their data sets."""
        with self.msg_queue.mutex:
            kept = [item for item in self.msg_queue.queue if item[1] is None or not discard_received(item[1])]
            self.msg_queue.queue.clear()
            self.msg_queue.queue.extend(kept)


def prepare(
    assoc: Association,
    reception: Callable[[], Reception] | None,
    refuse: Refusal | None = None,
) -> None:
    """Fit an association whose TCP connection was just opened (bind to ``evt.EVT_CONN_OPEN``).

    Parameters
    ----------
    reception
        Where data sets go that the peer stores; None keeps them in memory, as stock pynetdicom does.
    refuse
        Answers a request that lacks a mandatory parameter.
    """
    assoc.dimse = _FileReceivingProvider(assoc, reception, refuse)
    if isinstance(assoc.dul, UpperLayer):
        checkpoint = Checkpoint(partial(_has_news, assoc))
        assoc.dul.tell_association = checkpoint.notify
        assoc._reactor_checkpoint = checkpoint  # type: ignore[assignment]
    else:
        assoc.dul.to_provider_queue = BoundedQueue(assoc.dul)
        assoc._reactor_checkpoint = Checkpoint()  # type: ignore[assignment]


def _has_news(assoc: Association) -> bool:
    """Whether the association's own loop has something to do."""
    waiting = assoc.dimse.msg_queue.qsize() or assoc.dul.to_user_queue.qsize()
    return bool(waiting) or assoc._kill or not assoc.dul.is_alive()


def connection_closed(event: evt.Event) -> None:
    """Clean up behind a closed connection (bind to ``evt.EVT_CONN_CLOSE``).

    Data sets that were cut off, or whose requests still wait to be answered, are deleted. A connection that closes
    before it asked for an association would count as one until the ACSE timeout: that wait is ended.
    """
    assoc = event.assoc
    discard_all(assoc)
    if assoc.is_acceptor and assoc.requestor.primitive is None:
        assoc.dul.to_user_queue.put(cast(Any, None))


def discard_all(assoc: Association) -> None:
    """Delete data sets that were cut off, or whose requests nobody will answer any more."""
    if isinstance(assoc.dimse, _FileReceivingProvider):
        assoc.dimse.discard()
        assoc.dimse.discard_waiting()


def interrupt(assoc: Association) -> None:
    """Let a request that waits for room in memory wait no more: its association is aborted."""
    if isinstance(assoc.dimse, _FileReceivingProvider):
        assoc.dimse._inbox.clear()


def decoded(assoc: Association) -> None:
    """Let others send large requests: the one that is served is decoded, however long it is served."""
    if isinstance(assoc.dimse, _FileReceivingProvider):
        assoc.dimse._inbox.decoded()


def served(assoc: Association, request: DIMSEPrimitive) -> None:
    """Clean up behind a request that has been answered."""
    if isinstance(assoc.dimse, _FileReceivingProvider) and isinstance(request, N_EVENT_REPORT):
        assoc.dimse.report_served()


def _tag_of(keyword: str) -> tuple[int, ...]:
    tag = tag_for_keyword(keyword)
    return () if tag is None else (int(tag),)


def received_file(request: DIMSEPrimitive) -> ReceivedFile | None:
    """The file that the data set of a C-STORE-RQ was written to, closed; None when it was kept in memory."""
    received: object = request._dataset_file
    if isinstance(received, ReceivedFile):
        received.close()
        return received
    return None


def discard_received(request: DIMSEPrimitive) -> bool:
    """Delete the file that the data set of a C-STORE-RQ was written to, unless somebody took it; False for none."""
    if (received := received_file(request)) is not None:
        received.discard()
    return received is not None


def send_store(
    assoc: Association,
    command: StoreCommand,
    data: bytes | memoryview | tuple[Path, int],
    meanwhile: Callable[[], object] | None = None,
) -> C_STORE:
    """Send a C-STORE-RQ and wait for its response.

    Parameters
    ----------
    data
        The encoded data set, or the file that holds it and its offset there: its bytes are sent as they stand.
    meanwhile
        Called before its response is waited for.

    Raises
    ------
    AssociationLost
        No response came: the association was aborted or the DIMSE timeout passed.
    """
    request = C_STORE()
    request.MessageID = command.message_id
    request.Priority = command.priority
    request.AffectedSOPClassUID = command.sop_class_uid
    request.AffectedSOPInstanceUID = command.sop_instance_uid
    if command.originator is not None:
        request.MoveOriginatorApplicationEntityTitle = command.originator.title
        request.MoveOriginatorMessageID = command.originator.message_id
    if isinstance(data, tuple):
        request._dataset_path = data
    else:
        request.DataSet = BytesIO(data)
    hold(assoc)
    try:
        assoc.dimse.send_msg(request, command.context_id)
        if meanwhile is not None:
            meanwhile()
        response = cast(_FileReceivingProvider, assoc.dimse).store_response(command.message_id)
    finally:
        assoc._reactor_checkpoint.set()
    if response is None:
        if assoc.is_established:
            assoc.abort(block=False)
        raise AssociationLost("no response to C-STORE: aborted, or silent beyond the DIMSE timeout")
    return response


@contextmanager
def held(assoc: Association, timeout_s: float) -> Iterator[bool]:
    """Keep the association's own loop from serving the peer in this block; False: it is busy beyond `timeout_s`.

    What a service sends meanwhile would get between the fragments of what is sent here.
    """
    checkpoint: object = assoc._reactor_checkpoint
    is_held = isinstance(checkpoint, Checkpoint) and checkpoint.stop_the_loop(assoc.is_alive, timeout_s)
    try:
        yield is_held
    finally:
        if is_held:
            assoc._reactor_checkpoint.set()


def hold(assoc: Association) -> None:
    """Keep the association's own loop from taking responses off the queue, until its checkpoint is set again.

    pynetdicom's ``send_*`` methods set it when they are done; call this before them. Within that loop, where a C-GET
    sends its sub-operations, there is nothing to stop.
    """
    checkpoint: object = assoc._reactor_checkpoint
    if isinstance(checkpoint, Checkpoint) and threading.current_thread() is not assoc:
        checkpoint.stop_the_loop(assoc.is_alive)
        # pynetdicom's methods wait for its flag, too, which a report that is served in a thread of its own clears.
        assoc._is_paused = True
