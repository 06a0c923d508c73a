"""The C-STORE of an ordinary sender: no object of pynetdicom's between its command and the answer (PS3.7 9.3.1)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pynetdicom.presentation import PresentationContext

from scp.carrier import Carrier
from scp.contexts import Operation
from scp.exchange import Exchange
from scp.messages import Answer
from scp.reception import ReceivedFile
from scp.wire import commands


class StoreExchange(Exchange):
    """A C-STORE-RQ that `commands.store_request` has read.

    Parameters
    ----------
    send
        Sends a command set on a presentation context.
    """

    def __init__(
        self,
        carrier: Carrier,
        request: commands.StoreRequest,
        context: PresentationContext,
        received: ReceivedFile | None,
        send: Callable[[bytes, int], Any],
    ) -> None:
        super().__init__(carrier, request, context, received)
        self._command = request
        self._send = send

    @property
    def name(self) -> str:
        """``C-STORE``."""
        return str(Operation.STORE)

    def respond(self, answer: Answer) -> None:
        """Send the response."""
        status = answer.status
        command = commands.stored(self._command, status.code, status.comment, status.offending)
        self._send(command, self._context_id)
