"""What comes and goes on an association that stands: PDUs in, messages sorted, answers out (PS3.8 9.2, Sta6 and Sta8).

Whatever ends the association is kept in `Channel.end`, since it may come to light in the middle of a service, which is
not to fall over it: what it sends next raises `AssociationLost`, and then the thread of the association sees why.
"""

from __future__ import annotations

import errno
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

from pynetdicom.dimse_primitives import C_CANCEL, C_STORE, N_EVENT_REPORT
from pynetdicom.presentation import PresentationContext

from index.blocks import Blocks
from scp.contexts import STORAGE_COMMITMENT
from scp.errors import AssociationLost
from scp.inbox import Inbox, InboxError
from scp.message_queue import MessageQueue
from scp.reception import Reception
from scp.wire import commands, pdu
from scp.wire.assembly import Assembly, Message
from scp.wire.commands import StoreResponse
from scp.wire.errors import Ended, Idle, PeerAborted, PeerClosed, Refused, Violation
from scp.wire.stream import Stream

_LOG = logging.getLogger(__name__)

LARGEST_PDU = 1 << 17
"""Bytes of a PDU for a peer that sets no limit to them, or a higher one: nobody has to hold more at a time."""
_MOST_PIECES = 1024
"""Heads of PDUs and what belongs to them that are held at a time: with tiny PDUs a block would be millions."""


class Channel:
    """The messages of one association. One thread uses it at a time; `hang_up` is for any thread.

    Parameters
    ----------
    stream
        Its connection.
    reception
        Where objects go that the peer stores.
    patience_s
        How long a peer may send or take nothing, and how long a PDU may take, seconds.
    too_late
        Called, in a thread of its own, when a large request takes too long.

    Attributes
    ----------
    contexts
        Context ID → accepted presentation context.
    waiting
        Requests in the order in which they came.
    messages
        What the peer has answered to reports.
    end
        Why the association has ended; None while it has not.
    is_releasing
        The peer has asked for release (Sta8).
    """

    def __init__(
        self, stream: Stream, reception: Callable[[], Reception], patience_s: float, too_late: Callable[[], None]
    ) -> None:
        self._stream = stream
        self._patience_s = patience_s
        self.inbox = Inbox(too_late)
        self.contexts: dict[int, PresentationContext] = {}
        self._largest = LARGEST_PDU
        self._assembly = Assembly(self.contexts, reception, self.inbox)
        self.waiting: deque[Message] = deque()
        self.messages = MessageQueue()
        self._cancelled: set[int] = set()
        self._served: int | None = None
        self._response: C_STORE | StoreResponse | None = None
        self._awaited: int | None = None
        self.end: Ended | None = None
        self.is_releasing = False

    @property
    def is_under_way(self) -> bool:
        """Whether a part of a message has come."""
        return self._assembly.is_under_way

    def limit(self, maximum_length: int) -> None:
        """Send no PDUs that are longer than the peer takes; 0: it sets no limit."""
        self._largest = min(maximum_length or LARGEST_PDU, LARGEST_PDU)

    def open(self, accepted: bytes) -> None:
        """Send the A-ASSOCIATE-AC, unless the association ends first."""
        self._take_early()
        if self.end is None:
            try:
                self._stream.send([accepted], self._patience_s)
            except (Ended, TimeoutError) as ended:
                self.end = PeerClosed(str(ended))

    def _take_early(self) -> None:
        """Take what comes before the association was accepted, where only its end may come (Sta3)."""
        if self._has_input(0.0):
            try:
                kind, _ = self._stream.pdu(self._patience_s)
                if kind == pdu.ABORT:
                    raise PeerAborted("it aborted")
                raise Violation(pdu.UNEXPECTED_PDU, f"a PDU of type {kind:02X} before the association was accepted")
            except (Ended, TimeoutError) as ended:
                self._finish(ended)

    def rest(self) -> None:
        """Sleep until the peer sends something. Meanwhile another thread may send."""
        try:
            if not self._stream.sleep(self._patience_s):
                self.end = self.end or Idle(f"no traffic for {self._patience_s:g} s")
        except Ended as ended:
            self._finish(ended)

    def _has_input(self, timeout_s: float) -> bool:
        try:
            return self._stream.wait(timeout_s)
        except Ended as ended:
            self._finish(ended)
            return False

    def _finish(self, why: Ended | TimeoutError) -> None:
        if isinstance(why, TimeoutError):
            late = f"a PDU, or the rest of a message, took longer than {self._patience_s:g} s"
            why = Violation(pdu.NOT_SPECIFIED, late)
        if self.end is None:
            self.end = why

    def take_message(self) -> None:
        """Read to the end of the next message, if one has begun; a release or the end of all counts as one."""
        before = len(self.waiting)
        if not self._has_input(0.0):
            return
        while self.end is None and not self.is_releasing and len(self.waiting) == before:
            self._take()
            if not self._assembly.is_under_way:
                return

    def _take(self) -> None:
        """Read one PDU and do what it asks for."""
        try:
            self._handle(*self._stream.pdu(self._patience_s))
        except (Ended, TimeoutError) as ended:
            self._finish(ended)

    def _handle(self, kind: int, content: memoryview) -> None:
        if kind == pdu.ABORT:
            raise PeerAborted("it aborted")
        if self.is_releasing:
            raise Violation(pdu.UNEXPECTED_PDU, f"a PDU of type {kind:02X} after the request for release")
        if kind == pdu.RELEASE_RQ:
            self.is_releasing = True
            return
        if self._awaited is not None and not self._assembly.is_under_way:
            response = commands.lone_store_response(content)
            if response is not None:  # as nearly always: no message has to be put together
                self._take_response(response)
                return
        for context_id, header, fragment in pdu.data_values(content):
            try:
                message = self._assembly.add(context_id, header, fragment, len(self.waiting))
            except InboxError as refused:
                raise Violation(pdu.INVALID_PARAMETER, str(refused)) from refused
            except Exception as error:
                why = f"unreadable DIMSE message: {type(error).__name__}: {error}"[:200]
                raise Violation(pdu.INVALID_PARAMETER, why) from error
            if message is not None:
                self._sort(message)

    def _sort(self, message: Message) -> None:
        """Put a message where somebody waits for it."""
        primitive = message.primitive
        if isinstance(primitive, C_CANCEL):
            number = primitive.MessageIDBeingRespondedTo
            if number is not None and number in self._due:  # else it comes after the last answer
                self._cancelled.add(int(number))
            return
        if getattr(primitive, "MessageIDBeingRespondedTo", None) is not None and message.received is None:
            if isinstance(primitive, N_EVENT_REPORT):
                self.messages.put((message.context_id, primitive))
            elif isinstance(primitive, (C_STORE, StoreResponse)) and primitive.Status is not None:
                self._take_response(primitive)
            return
        is_report = isinstance(primitive, N_EVENT_REPORT)
        if is_report and all(each.abstract_syntax != STORAGE_COMMITMENT for each in self.contexts.values()):
            raise Violation(pdu.INVALID_PARAMETER, "N-EVENT-REPORT is for the requestor of an association to receive")
        self.waiting.append(message)

    def _take_response(self, response: C_STORE | StoreResponse) -> None:
        """Keep the response that is waited for; one that a peer sends besides must not stand for the next."""
        if response.MessageIDBeingRespondedTo == self._awaited:
            self._response, self._awaited = response, None
        else:
            _LOG.debug("a C-STORE-RSP to message %s is ignored", response.MessageIDBeingRespondedTo)

    def notice(self) -> None:
        """Read what has come: most of all whether the peer has ended the association, or asks for that."""
        while self.end is None and not self.is_releasing and self._has_input(0.0):
            self._take()

    def notice_last(self) -> None:
        """Read what has come behind the request for release, before that is answered: only the end may (Sta8)."""
        if self.end is None and self._has_input(0.0):
            self._take()

    def is_cancelled(self, message_id: int) -> bool:
        """Whether the peer sent a C-CANCEL for the request `message_id`: what has come is read now."""
        while self.end is None and message_id not in self._cancelled and self._has_input(0.0):
            self._take()
        return message_id in self._cancelled

    def next(self) -> Message:
        """Return the request that is served next; it is until `served`."""
        message = self.waiting.popleft()
        self._served = message.primitive.MessageID
        return message

    def served(self) -> None:
        """Forget every C-CANCEL but those of requests that still wait."""
        self._served = None
        self._cancelled &= self._due

    @property
    def _due(self) -> set[int | None]:
        """Message IDs of the requests that are not answered."""
        return {self._served, *(each.primitive.MessageID for each in self.waiting)}

    def send(self, command: bytes, context_id: int, content: bytes | memoryview = b"") -> None:
        """Send a message: its command set and, if there is one, its data set. Raises `AssociationLost`."""
        pieces: list[bytes | memoryview] = [*pdu.fragments(context_id, pdu.COMMAND, command, self._largest)]
        if content:
            pieces.extend(pdu.fragments(context_id, 0, content, self._largest))
        self._send(pieces)

    def _send(self, pieces: Sequence[bytes | memoryview]) -> None:
        if self.end is None:
            try:
                self._stream.send(pieces, self._patience_s)
            except TimeoutError as error:  # there is no room for an A-ABORT
                self.end = PeerClosed(f"{error} for {self._patience_s:g} s")
            except Ended as ended:
                self.end = ended
        if self.end is not None:
            raise AssociationLost(f"the association ended before everything was sent: {self.end}")

    def send_file(self, command: bytes, context_id: int, path: Path, offset: int) -> None:
        """Send a message whose data set lies in a file, from `offset` on.

        Raises
        ------
        AssociationLost
            Not all of it was sent.
        OSError
            The file cannot be opened, or has no data set: nothing was sent.
        """
        pieces: list[bytes | memoryview] = [*pdu.fragments(context_id, pdu.COMMAND, command, self._largest)]
        with Blocks(path, offset) as file:
            if not file.size:
                raise OSError(errno.ENODATA, "the stored file has no data set")
            try:
                self._send_blocks(pieces, context_id, file)
            except AssociationLost:
                raise
            except Exception as error:  # whatever it is: what comes next would be taken for the rest of the object
                why = getattr(error, "strerror", None) or error
                self.end = self.end or Refused(f"{path.name} cannot be read to its end: {why}")
                raise AssociationLost("the stored file cannot be read to its end") from error

    def _send_blocks(self, pieces: list[bytes | memoryview], context_id: int, file: Blocks) -> None:
        """Send `pieces`, and behind them what `file` has as a data set; raises what reading raises."""
        step, left = pdu.fragment_bytes(self._largest), file.size
        with closing(file.read(step)) as blocks:
            for block in blocks:
                for begin in range(0, len(block), step):
                    piece = block[begin : begin + step]
                    left -= len(piece)
                    pieces += (pdu.data_head(context_id, 0 if left else pdu.LAST, len(piece)), piece)
                    if len(pieces) >= _MOST_PIECES:
                        self._send(pieces)
                        pieces = []
                if pieces:
                    self._send(pieces)
                    pieces = []

    def expect_response(self, message_id: int) -> None:
        """Take the response to the C-STORE-RQ `message_id`, which is sent now, and no other."""
        self._response, self._awaited = None, message_id

    def response(self, timeout_s: float) -> C_STORE | StoreResponse:
        """Return the response to the C-STORE that was sent last; raises `AssociationLost`."""
        deadline = time.monotonic() + timeout_s
        while self._response is None:
            left_s = deadline - time.monotonic()  # whatever else the peer sends meanwhile
            if self.is_releasing:  # it may, though this node's request is under way: nothing will be answered
                raise AssociationLost("no response to C-STORE: the peer asks for release")
            if self.end is not None or left_s <= 0.0 or not self._has_input(left_s):
                self.end = self.end or Refused(f"no response to C-STORE within {timeout_s:g} s")
                raise AssociationLost("no response to C-STORE: aborted, or silent beyond the DIMSE timeout")
            self._take()
        return self._response

    def discard(self) -> None:
        """Delete data sets that were cut off, or whose requests nobody will answer any more."""
        self._assembly.discard()
        while self.waiting:
            message = self.waiting.popleft()
            if message.received is not None:
                message.received.discard()
