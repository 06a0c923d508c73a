"""What the peer of an association has sent: its requests, for the association's own loop, and its answers to reports.

A report (N-EVENT-REPORT) goes out between two requests of the peer, and its response may come after the next of them
(PS3.7 10.1.1). So whoever waits for it does not keep the loop from serving the peer: the response finds him here.
"""

from __future__ import annotations

import queue
import threading
from typing import Any

from pynetdicom.dimse_primitives import N_EVENT_REPORT

_LAST_MESSAGE_ID = 0xFFFF
_MOST_ANSWERS = 8


class MessageQueue(queue.Queue[Any]):
    """The queue of (presentation context ID, message) between DIMSE and an association's loop.

    Attributes
    ----------
    reporting
        Held by who sends a report, until he has its response: one at a time.
    is_silent
        The peer has left a report without response.
    """

    def __init__(self) -> None:
        super().__init__()
        self.reporting = threading.Lock()
        self.is_silent = False
        self._answers: queue.Queue[N_EVENT_REPORT] = queue.Queue()
        self._message_id = 0

    def next_report(self) -> int:
        """Return the Message ID of a new report; a response to an earlier one will be nobody's any more."""
        self._message_id = self._message_id % _LAST_MESSAGE_ID + 1
        return self._message_id

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:  # noqa: FBT001
        """Add a message; the response to a report goes to `answer` instead."""
        message = item[1]
        if isinstance(message, N_EVENT_REPORT) and message.MessageIDBeingRespondedTo is not None:
            if self.reporting.locked() and self._answers.qsize() < _MOST_ANSWERS:  # else nobody has asked for it
                self._answers.put(message)
        else:
            super().put(item, block, timeout)

    def answer(self, timeout_s: float) -> N_EVENT_REPORT | None:
        """Return the response to the report that was begun last, None when it does not come within `timeout_s`."""
        try:
            message = self._answers.get(timeout=timeout_s)
            while message.MessageIDBeingRespondedTo != self._message_id:
                message = self._answers.get_nowait()
        except queue.Empty:
            return None
        return message
