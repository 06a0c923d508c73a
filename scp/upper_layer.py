"""Between DIMSE and TCP: how many PDUs may wait to be sent, what is read between them, and how (PS3.8 9)."""

from __future__ import annotations

import logging
import queue
import time
from collections.abc import Callable
from typing import Any

from pynetdicom.association import Association
from pynetdicom.dul import DULServiceProvider
from pynetdicom.fsm import InvalidEventError
from pynetdicom.pdu import A_ABORT_RQ
from pynetdicom.pdu_primitives import P_DATA

from scp.association_request import LONGEST
from scp.bell import Bell
from scp.errors import AssociationLost
from scp.peer_socket import PeerSocket

_LOG = logging.getLogger(__name__)

_WAITING_PDUS = 4
"""P-DATA that may wait for the upper layer: few, so that a C-CANCEL is read before many more answers are made."""

_TOLERATED_EXCESS = 1024
"""Bytes that a PDU may have beyond the maximum length announced: some peers count the header in, or out."""

_LONGEST_OTHER = 1 << 15
"""Bytes of a PDU that is no P-DATA: an A-ASSOCIATE-AC with 128 presentation contexts has a sixth of it."""

_DATA_TRANSFER = ("Sta6", "Sta8")
"""States in which P-DATA may be sent (PS3.8 9.2)."""

_ASSOCIATE_RQ, _P_DATA = 0x01, 0x04
_PDU_TYPES = range(0x01, 0x08)

_REST_S = 5.0
"""Longest sleep of a layer that nothing wakes, seconds."""

_DROPPED = 1 << 16
_LOOK_S = 0.05
_CLOSE_S = 1.0
"""How long a peer may take to close the connection after the last PDU, before this node does, seconds."""

_BY_PROVIDER = 0x02

# Reasons of an A-ABORT by the service provider (PS3.8 table 9-26).
NOT_SPECIFIED, UNRECOGNIZED_PDU, UNEXPECTED_PDU, INVALID_PARAMETER = 0x00, 0x01, 0x02, 0x06


class BoundedQueue(queue.Queue[Any]):
    """What waits to be sent. P-DATA waits its turn, and is refused when the association is gone.

    Parameters
    ----------
    dul
        The upper layer that sends it.
    bell
        Rung for each item, where that layer sleeps until there is something to do.
    """

    def __init__(self, dul: DULServiceProvider, bell: Bell | None = None) -> None:
        super().__init__(maxsize=_WAITING_PDUS)
        self._dul = dul
        self._bell = bell

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:  # noqa: FBT001
        """Add what is to be sent; P-DATA waits for room, and raises `AssociationLost` when the association is gone."""
        if isinstance(item, P_DATA):
            self._put_data(item, block, timeout)
        else:
            with self.mutex:  # an abort or a release does not wait behind a full queue
                self._put(item)
                self.unfinished_tasks += 1
                self.not_empty.notify()
        if self._bell is not None:
            self._bell.ring()

    def _put_data(self, item: P_DATA, block: bool, timeout: float | None) -> None:  # noqa: FBT001
        while True:
            if self._dul.state_machine.current_state not in _DATA_TRANSFER or not self._dul.is_alive():
                raise AssociationLost("the association ended before everything was sent")
            try:
                super().put(item, block, timeout if timeout is not None else 0.2)
            except queue.Full:
                continue
            return


class UpperLayer(DULServiceProvider):
    """The upper layer of an association that a peer opened.

    pynetdicom's own looks a thousand times a second whether there is something to do, which some hundred idle
    associations cannot afford. This one sleeps until the peer or this node has something for it. It also gives a PDU
    a length and a time by which it has to be there, and says in an A-ABORT what was wrong (PS3.8 9.3.8).

    Attributes
    ----------
    abort_reason
        Reason of the next A-ABORT by the service provider.
    largest_pdu
        Maximum length of a P-DATA-TF that was announced to the peer, bytes.
    tell_association
        Wakes the association's own loop: there may be a message, a release or an abort for it.
    is_reading
        A PDU is on its way from the connection to who is to have it.
    """

    def __init__(self, assoc: Association) -> None:
        super().__init__(assoc)
        self.daemon = True
        self.abort_reason = NOT_SPECIFIED
        self.largest_pdu = 0
        self.tell_association: Callable[[], None] = _nobody
        self._bell = Bell()
        self._run_loop_delay = 0
        self.to_provider_queue = BoundedQueue(self, self._bell)
        self._closes_at: float | None = None
        self._refused = 0
        self._is_done_reading = False
        self.is_reading = False

    def run_reactor(self) -> None:
        """Run until the connection is closed."""
        try:
            super().run_reactor()
        except InvalidEventError as error:  # the peer and this node have ended it in the same moment
            _LOG.debug("%s: %s", self._peer, error)
        finally:
            self._bell.close()
            self.tell_association()

    def kill_dul(self) -> None:
        """End the loop."""
        super().kill_dul()
        self._bell.ring()

    def stop_dul(self) -> bool:
        """End the loop when there is no connection any more; False when there is one."""
        if self.state_machine.current_state != "Sta1":
            return False
        self.kill_dul()
        self.join()
        return True

    def _is_transport_event(self) -> bool:
        """Sleep until the peer sends something, and read it; or until this node has something to send."""
        self.is_reading = False
        self.tell_association()
        connection = self.socket
        if not isinstance(connection, PeerSocket) or not connection.is_open:
            self._bell.wait(None, 0.0 if self._kill_thread else _LOOK_S)
            return False
        if self.state_machine.current_state == "Sta13":
            return self._await_close(connection)
        if not self.event_queue.empty() or not self.to_provider_queue.empty():
            return False
        if not connection.ready:
            self._bell.wait(connection, self._rest())
            if not connection.ready:
                return False
        self.is_reading = True
        self._idle_timer.restart()  # from the first byte of a PDU on, not only when it is complete
        self._read_pdu_data()
        return True

    def _process_recv_primitive(self) -> bool:
        """Take up what this node wants to send; what comes too late, behind the last PDU, is dropped."""
        if self.state_machine.current_state == "Sta13":
            with self.to_provider_queue.mutex:
                self.to_provider_queue.queue.clear()
            return False
        return super()._process_recv_primitive()

    def _rest(self) -> float:
        waits_for_request = self.state_machine.current_state == "Sta2"
        return max(0.0, min(_REST_S, self.artim_timer.remaining)) if waits_for_request else _REST_S

    def _await_close(self, connection: PeerSocket) -> bool:
        """Wait until the peer closes the connection, for it may not have read the last PDU (state Sta13).

        What it sends meanwhile is the state machine's, which ignores it (AA-6) or answers it with an A-ABORT (AA-7):
        once, and then nothing more is read as PDUs. When time is up, this node closes (AA-2).
        """
        if not self.event_queue.empty():
            return False
        if self._closes_at is None:
            self._closes_at = time.monotonic() + _CLOSE_S
        left = self._closes_at - time.monotonic()
        if left <= 0:
            self.event_queue.put("Evt18")
        elif self._is_done_reading:
            connection.end_sending()
            if connection.discard_input(left):
                connection.close()
        elif connection.ready:
            event = self._receive_pdu(left)
            self._is_done_reading = event in ("Evt6", "Evt19")
            self.event_queue.put(event)
        else:
            self._bell.wait(connection, left)
        return True

    def _read_pdu_data(self) -> None:
        """Read one PDU, and queue it and its event for the state machine."""
        self.event_queue.put(self._receive_pdu(self.assoc.network_timeout or _REST_S))

    def _receive_pdu(self, patience: float) -> str:
        connection = self.socket
        assert isinstance(connection, PeerSocket)  # noqa: S101  (pynetdicom types it as its own)
        deadline = time.monotonic() + patience
        try:
            self._pass_over(connection, deadline)
            received = connection.receive(6, deadline - time.monotonic())
            if len(received) < 6:
                return "Evt17"
            length = int.from_bytes(received[2:6], "big")
            if (flaw := self._flaw(received[0], length)) is not None:
                self._refused = length
                _LOG.warning("aborting the association of %s: %s", self._peer, flaw)
                return "Evt19"
            received += connection.receive(length, deadline - time.monotonic())
        except TimeoutError:
            if self._closes_at is not None:
                return "Evt18"
            self._is_done_reading = True  # what comes next is the rest of it
            _LOG.warning("aborting the association of %s: a PDU took longer than %g s", self._peer, patience)
            self.abort_reason = NOT_SPECIFIED
            return "Evt19"
        except OSError as error:
            _LOG.info("%s: connection lost: %s", self._peer, error)
            return "Evt17"
        if len(received) < 6 + length:
            _LOG.warning("%s closed the connection within a PDU", self._peer)
            return "Evt17"
        return self._event_of(received)

    def _pass_over(self, connection: PeerSocket, deadline: float) -> None:
        """Drop the content of a PDU that was refused for its type or length."""
        while self._refused:
            dropped = connection.receive(min(self._refused, _DROPPED), deadline - time.monotonic())
            self._refused -= len(dropped) or self._refused

    def _flaw(self, kind: int, length: int) -> str | None:
        if kind not in _PDU_TYPES:
            self.abort_reason = UNRECOGNIZED_PDU
            return f"unknown PDU type {kind:02X}"
        most = {_P_DATA: self.largest_pdu + _TOLERATED_EXCESS, _ASSOCIATE_RQ: LONGEST}.get(kind, _LONGEST_OTHER)
        if length > most:
            self.abort_reason = INVALID_PARAMETER
            return f"a PDU of {length} bytes, at most {most} are read"
        return None

    def _event_of(self, received: bytearray) -> str:
        try:
            pdu, event = self._decode_pdu(received)
        except Exception as error:  # noqa: BLE001  (whatever a malformed PDU makes pynetdicom stumble over)
            _LOG.warning("aborting the association of %s: a PDU cannot be decoded: %s", self._peer, error)
            self.abort_reason = INVALID_PARAMETER
            return "Evt19"
        self.abort_reason = UNEXPECTED_PDU  # if the state machine has no place for it now
        self._recv_pdu.put(pdu)
        return event

    @property
    def _peer(self) -> str:
        return str(self.assoc.requestor.address)

    def _send(self, pdu: Any) -> None:
        if isinstance(pdu, A_ABORT_RQ) and pdu.source == _BY_PROVIDER:
            pdu.reason_diagnostic = self.abort_reason
        super()._send(pdu)
        self._idle_timer.restart()  # a long answer is traffic, too


def _nobody() -> None:
    """Wake nobody: the association has no loop yet."""


def is_cancelled(assoc: Association, message_id: int) -> bool:
    """Whether the peer sent a C-CANCEL for `message_id`.

    The upper layer either sends or reads in each of its turns: when the peer has sent something, it gets the time to
    read it before more is handed to it.
    """
    wrapped, layer = assoc.dul.socket, assoc.dul
    deadline = time.monotonic() + 0.5
    while (
        isinstance(wrapped, PeerSocket)
        and message_id not in assoc.dimse.cancel_req
        and assoc.dul.is_alive()
        and (wrapped.has_input or (isinstance(layer, UpperLayer) and layer.is_reading))  # in this order
        and time.monotonic() < deadline
    ):
        time.sleep(0.0005)
    return message_id in assoc.dimse.cancel_req
