"""Which requests of a peer a C-CANCEL can still cancel, on pynetdicom's transport (PS3.7 9.3.2.3).

A C-CANCEL may come before its request is begun, and after the last response to it. The first cancels; the second
cancels nothing, and least of all the next request, which may bear the same Message ID (PS3.7 9.1).
"""

from __future__ import annotations

from typing import Any

from pynetdicom.dimse_primitives import C_CANCEL, N_EVENT_REPORT

from scp.message_queue import MessageQueue
from scp.status import Status


class Requests(MessageQueue):
    """What the peer has sent, and the Message IDs of those of its requests that are not answered, under one lock."""

    def __init__(self) -> None:
        super().__init__()
        self.unanswered: list[int] = []

    def _put(self, item: Any) -> None:
        super()._put(item)
        number = getattr(item[1], "MessageID", None)
        if number is not None:
            self.unanswered.append(int(number))


class Cancelled(dict[int, C_CANCEL]):
    """C-CANCEL requests by the Message ID that they cancel: only of requests that are not answered.

    Parameters
    ----------
    requests
        Where the requests of the same association wait.
    """

    def __init__(self, requests: Requests) -> None:
        super().__init__()
        self._requests = requests

    def __setitem__(self, number: int, request: C_CANCEL) -> None:
        with self._requests.mutex:
            if number in self._requests.unanswered:
                super().__setitem__(number, request)

    def forget(self, number: int) -> None:
        """Take note that the request `number` gets its last response now."""
        with self._requests.mutex:
            if number in self._requests.unanswered:
                self._requests.unanswered.remove(number)
            self.pop(number, None)


def is_last_response(message: Any) -> bool:
    """Whether a message that this node sends ends a request that may be cancelled."""
    if message.MessageIDBeingRespondedTo is None or isinstance(message, N_EVENT_REPORT):
        return False
    status = getattr(message, "Status", None)  # a C-CANCEL of this node has none
    return status is not None and not Status(status).is_pending
