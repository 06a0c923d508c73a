"""What this node needs of pynetdicom beyond its public interface, all in this module.

Stock pynetdicom carries associations and DIMSE messages; four seams make it a transport for the services of this node:

- `uid_to_service_class`, looked up in ``pynetdicom.association``: requests to a `NodeEntity` go to its own dispatcher;
- `DIMSEServiceProvider`, replaced on each of our associations: a received data set goes straight to a file;
- the queue between DIMSE and the upper layer: bounded, so that memory grows with neither objects nor answers;
- ``_dataset_path`` of a C-STORE primitive: a file's data set is sent as it stands, at any offset.

`tests/test_transport.py` fails when an upgrade of pynetdicom moves one of them.
"""

# ruff: noqa: SLF001  (pynetdicom's private parts are this module's subject)

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, cast

import pynetdicom.association as pynetdicom_association
from pynetdicom import AE, _config, evt
from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_messages import C_STORE_RQ
from pynetdicom.dimse_primitives import C_STORE, DIMSEPrimitive
from pynetdicom.pdu_primitives import P_DATA
from pynetdicom.presentation import PresentationContext
from pynetdicom.service_class import ServiceClass
from pynetdicom.sop_class import uid_to_service_class

from scp.checkpoint import Checkpoint
from scp.errors import AssociationLost
from scp.messages import StoreCommand
from scp.reception import ReceivedFile, Reception, encoded_meta
from scp.status import MISTYPED_ARGUMENT, Status
from scp.upper_layer import BoundedQueue, receive

_LOG = logging.getLogger(__name__)

_LARGEST_PDV = 1 << 17
"""Bytes of a PDV for a peer that sets no limit to its PDUs."""

_LARGEST_IN_MEMORY = 1 << 26
"""Bytes of a command set or an Identifier beyond which the sender loses its association."""

# pynetdicom's own event handlers format every PDU and Identifier for its log; the services log requests themselves.
_config.LOG_HANDLER_LEVEL = "none"
_config.LOG_REQUEST_IDENTIFIERS = False
_config.LOG_RESPONSE_IDENTIFIERS = False


def _tolerated(_uid: object) -> tuple[bool, str]:
    return True, ""


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
            entity.dispatch(self.assoc, req, context)


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
        super().__init__(assoc)
        self._reception = reception
        self._refuse = refuse
        self._receiving: ReceivedFile | None = None

    @property
    def maximum_pdu_size(self) -> int:
        """Largest PDU to send: the peer's limit, or our own when it sets none (its 0)."""
        return super().maximum_pdu_size or _LARGEST_PDV

    def get_msg(self, block: bool = False) -> Any:  # noqa: FBT001
        """Return the next message; a request without a mandatory parameter is refused, which pynetdicom ignores."""
        context_id, message = super().get_msg(block=block)
        if (
            self._refuse is None
            or message is None
            or message.MessageIDBeingRespondedTo is not None
            or message.is_valid_request
        ):
            return context_id, message
        try:
            if message.MessageID is not None:
                missing = next(word for word in message.REQUEST_KEYWORDS if getattr(message, word) is None)
                refusal = Status(MISTYPED_ARGUMENT, f"{missing} is missing or empty")
                self._refuse(self.assoc, int(context_id or 0), message, refusal)
        finally:
            discard_received(message)
        return None, None

    def receive_primitive(self, primitive: P_DATA) -> None:
        """Process a P-DATA primitive one PDV at a time, so that command and data set part in between."""
        for item in primitive.presentation_data_value_list:
            single = P_DATA()
            single.presentation_data_value_list.append(item)
            try:
                super().receive_primitive(single)
                self._divert()
            except Exception:  # noqa: BLE001  (garbage from the peer: it loses the association, nobody else does)
                _LOG.warning("aborting the association: unreadable DIMSE message", exc_info=True)
                self.discard()
                self.message = None
                self.dul.event_queue.put("Evt19")
                return

    def _divert(self) -> None:
        message = self.message
        if message is None:
            self._receiving = None
            return
        if message.encoded_command_set.tell() > _LARGEST_IN_MEMORY or (
            message.data_set is not None and message.data_set.tell() > _LARGEST_IN_MEMORY
        ):
            raise ValueError(f"a message of more than {_LARGEST_IN_MEMORY} bytes besides the stored object")
        if isinstance(message, C_STORE_RQ) and self._receiving is None and self._reception is not None:
            reception = self._reception()
            command = message.command_set
            syntax = self.assoc._accepted_cx[int(message.context_id or 0)].transfer_syntax[0]
            identity = (command.AffectedSOPClassUID, command.AffectedSOPInstanceUID)
            self._receiving = ReceivedFile(reception, encoded_meta(identity, syntax, reception.source_aet))
            message._data_set_file = self._receiving  # type: ignore[assignment]

    def discard(self) -> None:
        """Delete what was received of a data set that will not be completed."""
        receiving, self._receiving = self._receiving, None
        if receiving is not None:
            receiving.discard()

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
    *,
    network_timeout_s: float,
) -> None:
    """Fit an association whose TCP connection was just opened (bind to ``evt.EVT_CONN_OPEN``).

    Parameters
    ----------
    reception
        Where data sets go that the peer stores; None keeps them in memory, as stock pynetdicom does.
    refuse
        Answers a request that lacks a mandatory parameter.
    network_timeout_s
        A peer that neither reads nor sends for so long in the middle of a PDU is dropped, seconds.
    """
    assoc.dimse = _FileReceivingProvider(assoc, reception, refuse)
    assoc.dul.to_provider_queue = BoundedQueue(assoc.dul)
    assoc._reactor_checkpoint = Checkpoint()  # type: ignore[assignment]
    wrapped = assoc.dul.socket
    if wrapped is not None and wrapped.socket is not None:
        wrapped.socket.settimeout(network_timeout_s)
        wrapped.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        wrapped.recv = partial(receive, wrapped.socket)  # type: ignore[method-assign]


def connection_closed(event: evt.Event) -> None:
    """Clean up behind a closed connection (bind to ``evt.EVT_CONN_CLOSE``).

    Data sets that were cut off, or whose requests still wait to be answered, are deleted. A connection that closes
    before it asked for an association would count as one until the ACSE timeout: that wait is ended.
    """
    assoc = event.assoc
    if isinstance(assoc.dimse, _FileReceivingProvider):
        assoc.dimse.discard()
        assoc.dimse.discard_waiting()
    if assoc.is_acceptor and assoc.requestor.primitive is None:
        assoc.dul.to_user_queue.put(cast(Any, None))


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


def send_store(assoc: Association, command: StoreCommand, data: bytes | tuple[Path, int]) -> C_STORE:
    """Send a C-STORE-RQ and wait for its response.

    Parameters
    ----------
    data
        The encoded data set, or the file that holds it and its offset there: its bytes are sent as they stand.

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
    if isinstance(data, bytes):
        request.DataSet = BytesIO(data)
    else:
        request._dataset_path = data
    hold(assoc)
    try:
        assoc.dimse.send_msg(request, command.context_id)
        _, response = assoc.dimse.get_msg(block=True)
    finally:
        assoc._reactor_checkpoint.set()
    if not isinstance(response, C_STORE) or response.Status is None:
        if assoc.is_established:
            assoc.abort(block=False)
        raise AssociationLost("no response to C-STORE: aborted, or silent beyond the DIMSE timeout")
    return response


def hold(assoc: Association) -> None:
    """Keep the association's own loop from taking responses off the queue, until its checkpoint is set again.

    pynetdicom's ``send_*`` methods set it when they are done; call this before them. Within that loop, where a C-GET
    sends its sub-operations, there is nothing to stop.
    """
    checkpoint: object = assoc._reactor_checkpoint
    if isinstance(checkpoint, Checkpoint) and threading.current_thread() is not assoc:
        checkpoint.stop_the_loop(assoc.is_alive)
