"""What an association on the node's own transport is for services and links, whichever side has opened it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pynetdicom.dimse_primitives import C_STORE, DIMSEPrimitive
from pynetdicom.presentation import PresentationContext

from scp.message_queue import MessageQueue
from scp.messages import StoreCommand
from scp.pacing import wait_for_reader
from scp.wire import commands
from scp.wire.channel import Channel
from scp.wire.commands import StoreResponse
from scp.wire.errors import Interrupted, Refused
from scp.wire.stream import Stream


class Carrying:
    """Most of a `scp.carrier.Carrier`, over a channel.

    Parameters
    ----------
    stream, channel
        Its connection and its messages.
    dimse_timeout, network_timeout
        How long to wait for a response, and how long a peer may send or take nothing, seconds.

    Attributes
    ----------
    dimse_timeout, network_timeout
        The same.
    """

    def __init__(self, stream: Stream, channel: Channel, *, dimse_timeout: float, network_timeout: float) -> None:
        self._stream, self._channel = stream, channel
        self.dimse_timeout, self.network_timeout = dimse_timeout, network_timeout
        self._turn = threading.Lock()
        self._others = 0
        self._is_established = False

    @property
    def assoc(self) -> Carrying:
        """It: there is nothing of pynetdicom's behind it."""
        return self

    @property
    def contexts(self) -> Sequence[PresentationContext]:
        """Its presentation contexts, the accepted ones."""
        return list(self._channel.contexts.values())

    @property
    def is_established(self) -> bool:
        """Whether it stands."""
        return self._is_established and self._channel.end is None

    @property
    def is_open(self) -> bool:
        """Whether it stands and both sides may send."""
        return self.is_established and not self._channel.is_releasing

    @property
    def messages(self) -> MessageQueue:
        """What its peer has answered to reports."""
        return self._channel.messages

    @property
    def descriptor(self) -> int:
        """File descriptor of the connection, negative when it is closed."""
        return self._stream.descriptor

    @property
    def is_alive(self) -> bool:
        """Whether anything can still be sent."""
        return self.is_established

    def give_up(self) -> None:
        """End it: the thread that serves it sends the A-ABORT when the request is done with."""
        self._channel.end = self._channel.end or Refused("the peer takes nothing")

    def send(self, message: DIMSEPrimitive, context_id: int) -> None:
        """Send a message; raises `AssociationLost`."""
        told = (getattr(message, word, None) for word in ("Identifier", "EventInformation"))
        content = next((data.getvalue() for data in told if data is not None), b"")
        self._channel.send(commands.encoded(message, has_data_set=bool(content)), context_id, content)

    def store(
        self,
        command: StoreCommand,
        data: bytes | memoryview | tuple[Path, int],
        meanwhile: Callable[[], object] | None = None,
    ) -> C_STORE | StoreResponse:
        """Send a C-STORE-RQ and return its response; raises `AssociationLost`."""
        channel = self._channel
        encoded = commands.store(command)
        channel.expect_response(command.message_id)
        if isinstance(data, tuple):
            channel.send_file(encoded, command.context_id, *data)
        else:
            channel.send(encoded, command.context_id, data)
        if meanwhile is not None:
            meanwhile()
        return channel.response(self.dimse_timeout)

    def is_cancelled(self, message_id: int) -> bool:
        """Whether the peer sent a C-CANCEL for the request `message_id`."""
        return self._channel.is_cancelled(message_id)

    def wait_for_reader(self, is_cancelled: Callable[[], bool]) -> bool:
        """Wait until the peer has room for another answer; return whether it cancelled the request meanwhile."""
        return wait_for_reader(self, is_cancelled)

    def decoded(self) -> None:
        """Let others send large requests."""
        self._channel.inbox.decoded()

    @contextmanager
    def between_requests(self, timeout_s: float) -> Iterator[bool]:
        """Keep the peer's requests from being served in this block; False: one is under way beyond `timeout_s`."""
        self._others += 1
        try:
            has_turn = self._turn.acquire(timeout=timeout_s)
        finally:
            self._others -= 1
        try:
            yield has_turn and self.is_open and not self._channel.waiting and not self._channel.is_under_way
        finally:
            if has_turn:
                self._turn.release()

    def abort(self) -> None:
        """End it at once, from any thread."""
        self._channel.end = self._channel.end or Interrupted("aborted by this node")
        self._stream.hang_up()
