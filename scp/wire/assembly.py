"""Fragments of any shape put together to DIMSE messages; objects to store go to files (PS3.8 Annex E)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pynetdicom.dimse_messages import C_STORE_RQ, DIMSEMessage
from pynetdicom.pdu_primitives import P_DATA
from pynetdicom.presentation import PresentationContext

from scp import transport  # noqa: F401  (which makes pynetdicom tolerate odd UIDs)
from scp.inbox import Inbox, InboxError
from scp.reception import ReceivedFile, Reception
from scp.wire.commands import StoreRequest, StoreResponse, store_request, store_response
from scp.wire.pdu import COMMAND, LAST

_NO_DATA_SET = 0x0101


@dataclass(frozen=True)
class Message:
    """A whole message.

    Attributes
    ----------
    primitive
        pynetdicom's, a `StoreRequest` or a `StoreResponse`.
    received
        The file that its data set was written to, closed; None where there is none.
    """

    context_id: int
    primitive: Any
    received: ReceivedFile | None = None


class Assembly:
    """Puts together the messages of one association.

    Parameters
    ----------
    contexts
        Context ID → accepted presentation context.
    reception
        Where objects go.
    inbox
        Bounds what is kept in memory.
    """

    def __init__(
        self, contexts: Mapping[int, PresentationContext], reception: Callable[[], Reception], inbox: Inbox
    ) -> None:
        self._contexts = contexts
        self._reception = reception
        self._inbox = inbox
        self._command = bytearray()
        self._data = bytearray()
        self._message: DIMSEMessage | StoreRequest | StoreResponse | None = None
        self._file: ReceivedFile | None = None
        self.is_under_way = False

    def add(self, context_id: int, header: int, fragment: memoryview, waiting: int) -> Message | None:
        """Add a fragment; return the message that it completes, None for none.

        Parameters
        ----------
        header
            Its message control header.
        waiting
            Messages of the association that wait to be served.

        Raises
        ------
        InboxError
            It does not belong here, or is more than fits.
        Exception
            Whatever a malformed command set makes pynetdicom stumble over.
        """
        self._inbox.fragment(context_id, header)
        self.is_under_way = True
        if header & COMMAND:
            self._command += fragment
            has_data = self._decode(context_id) if header & LAST else False
            if header & LAST and not has_data:
                return self._complete(context_id, waiting)
            self._inbox.received(len(self._command), 0, expects_data=has_data, waiting=waiting)
            return None
        if self._file is not None:
            self._file.write(fragment)
        else:
            self._data += fragment
            self._inbox.received(len(self._command), len(self._data), expects_data=True, waiting=waiting)
        return self._complete(context_id, waiting) if header & LAST else None

    def _decode(self, context_id: int) -> bool:
        """Find out which message begins with the command set, which is complete; return whether a data set follows."""
        request = store_request(self._command)
        if request is not None:
            self._message = request
            self._receive(context_id, (request.AffectedSOPClassUID, request.AffectedSOPInstanceUID))
            return True
        response = store_response(self._command)
        if response is not None:
            self._message = response
            return False
        message = DIMSEMessage()
        is_complete = message.decode_msg(_p_data(context_id, COMMAND | LAST, self._command))
        self._message = message
        if isinstance(message, C_STORE_RQ) and not is_complete:
            told = message.command_set
            self._receive(context_id, (told.get("AffectedSOPClassUID"), told.get("AffectedSOPInstanceUID")))
        return not is_complete

    def _receive(self, context_id: int, identity: tuple[object, object]) -> None:
        context = self._contexts.get(context_id)
        if context is None:
            raise InboxError(f"context {context_id} was not accepted")
        self._file = ReceivedFile(self._reception(), identity, context.transfer_syntax[0])

    def _complete(self, context_id: int, waiting: int) -> Message:
        message, file = self._message, self._file
        if isinstance(message, (StoreRequest, StoreResponse)):
            whole = Message(context_id, message, file)
        elif message is None:
            raise InboxError("a message without a command set")
        else:
            if file is None and message.command_set.CommandDataSetType != _NO_DATA_SET:
                message.decode_msg(_p_data(context_id, LAST, self._data))
            whole = Message(context_id, message.message_to_primitive(), file)
        if file is not None:
            file.close()
        self._inbox.completed(waiting + 1)
        self._file = None  # it is the message's now
        self._forget()
        return whole

    def _forget(self) -> None:
        self._command.clear()
        self._data.clear()
        self._message = None
        self.is_under_way = False

    def discard(self) -> None:
        """Delete what was received of a message that will not be completed."""
        file, self._file = self._file, None
        self._forget()
        self._inbox.clear()
        if file is not None:
            file.discard()


def _p_data(context_id: int, header: int, content: bytearray) -> P_DATA:
    primitive = P_DATA()
    primitive.presentation_data_value_list.append((context_id, bytes([header]) + bytes(content)))
    return primitive
