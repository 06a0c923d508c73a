"""Between DIMSE and TCP: how many PDUs may wait to be sent, what is read between them, and how (PS3.8 9)."""

from __future__ import annotations

import errno
import queue
import socket
import time
from typing import Any

from pynetdicom.association import Association
from pynetdicom.dul import DULServiceProvider
from pynetdicom.pdu_primitives import P_DATA

from scp.errors import AssociationLost

_WAITING_PDUS = 4
"""P-DATA that may wait for the upper layer: few, so that a C-CANCEL is read before many more answers are made."""

_LARGEST_RECEIVED_PDU = 1 << 21
"""Bytes of a PDU beyond which the sender is no DICOM peer: more than any maximum length that this node announces."""

_DATA_TRANSFER = ("Sta6", "Sta8")
"""States in which P-DATA may be sent (PS3.8 9.2)."""


class BoundedQueue(queue.Queue[Any]):
    """What waits to be sent. P-DATA waits its turn, and is refused when the association is gone."""

    def __init__(self, dul: DULServiceProvider) -> None:
        super().__init__(maxsize=_WAITING_PDUS)
        self._dul = dul

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:  # noqa: FBT001
        """Add what is to be sent; P-DATA waits for room, and raises `AssociationLost` when the association is gone."""
        if not isinstance(item, P_DATA):
            with self.mutex:  # an abort or a release does not wait behind a full queue
                self._put(item)
                self.unfinished_tasks += 1
                self.not_empty.notify()
            return
        while True:
            if self._dul.state_machine.current_state not in _DATA_TRANSFER or not self._dul.is_alive():
                raise AssociationLost("the association ended before everything was sent")
            try:
                super().put(item, block, timeout if timeout is not None else 0.2)
            except queue.Full:
                continue
            return


def is_cancelled(assoc: Association, message_id: int) -> bool:
    """Whether the peer sent a C-CANCEL for `message_id`.

    The upper layer either sends or reads in each of its turns: when the peer has sent something, it gets the time to
    read it before more is handed to it.
    """
    wrapped = assoc.dul.socket
    deadline = time.monotonic() + 0.5
    while (
        wrapped is not None
        and message_id not in assoc.dimse.cancel_req
        and assoc.dul.is_alive()
        and wrapped.ready
        and time.monotonic() < deadline
    ):
        time.sleep(0.0005)
    return message_id in assoc.dimse.cancel_req


def receive(connection: socket.socket, size: int) -> bytearray:
    """Read `size` bytes, fewer when the peer closes: in large pieces, and acknowledged at once.

    `dcmsend` writes a PDU and waits for its acknowledgement: a delayed one halves its rate.
    """
    if size > _LARGEST_RECEIVED_PDU:
        raise OSError(errno.EMSGSIZE, f"PDU of {size} bytes, at most {_LARGEST_RECEIVED_PDU} are read")
    data = bytearray(size)
    view = memoryview(data)
    filled = 0
    while filled < size:
        count = connection.recv_into(view[filled:])
        if not count:
            break
        filled += count
    if hasattr(socket, "TCP_QUICKACK"):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
    view.release()
    del data[filled:]
    return data
