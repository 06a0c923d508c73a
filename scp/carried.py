"""An association of pynetdicom's as the rest of this package sees it: a `Carrier`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from pydicom.uid import UID
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_STORE, DIMSEPrimitive
from pynetdicom.presentation import PresentationContext

from scp import transport
from scp.message_queue import MessageQueue
from scp.messages import StoreCommand
from scp.pacing import wait_for_reader
from scp.upper_layer import is_cancelled

_DATA_TRANSFER = "Sta6"
"""State in which both sides may send (PS3.8 9.2)."""


class Carried:
    """See `scp.carrier.Carrier`.

    Parameters
    ----------
    assoc
        The association, opened by either side.
    """

    def __init__(self, assoc: Association) -> None:
        self.assoc = assoc

    @property
    def calling(self) -> str:
        """AE title of its requestor."""
        primitive = self.assoc.requestor.primitive
        return str(primitive.calling_ae_title).strip() if primitive is not None else ""

    @property
    def called(self) -> str:
        """AE title that its requestor called."""
        primitive = self.assoc.requestor.primitive
        return str(primitive.called_ae_title).strip() if primitive is not None else ""

    @property
    def address(self) -> str:
        """IP address of its requestor."""
        return self.assoc.requestor.address

    @property
    def contexts(self) -> Sequence[PresentationContext]:
        """Its presentation contexts, the accepted ones."""
        return self.assoc.accepted_contexts

    @property
    def proposed(self) -> Mapping[UID, bytes]:
        """SOP class → Service Class Application Information that its requestor proposed."""
        return self.assoc.requestor.sop_class_extended

    @property
    def is_established(self) -> bool:
        """Whether it stands."""
        return bool(self.assoc.is_established and self.assoc.dul.is_alive())

    @property
    def is_open(self) -> bool:
        """Whether it stands and both sides may send."""
        return self.is_established and self.assoc.dul.state_machine.current_state == _DATA_TRANSFER

    @property
    def dimse_timeout(self) -> float | None:
        """How long to wait for a response, seconds."""
        return self.assoc.dimse_timeout

    @property
    def messages(self) -> MessageQueue | None:
        """What its peer has answered to reports; None where reports cannot be sent on it."""
        messages: object = self.assoc.dimse.msg_queue
        return messages if isinstance(messages, MessageQueue) else None

    def send(self, message: DIMSEPrimitive, context_id: int) -> None:
        """Send a message."""
        self.assoc.dimse.send_msg(message, context_id)  # type: ignore[arg-type]

    def store(
        self,
        command: StoreCommand,
        data: bytes | memoryview | tuple[Path, int],
        meanwhile: Callable[[], object] | None = None,
    ) -> C_STORE:
        """Send a C-STORE-RQ and return its response."""
        return transport.send_store(self.assoc, command, data, meanwhile)

    def is_cancelled(self, message_id: int) -> bool:
        """Whether the peer sent a C-CANCEL for the request `message_id`."""
        return is_cancelled(self.assoc, message_id)

    def wait_for_reader(self, is_cancelled: Callable[[], bool]) -> bool:
        """Wait until the peer has room for another answer; return whether it cancelled the request meanwhile."""
        return wait_for_reader(self, is_cancelled)

    @property
    def network_timeout(self) -> float | None:
        """How long a peer may take nothing, seconds."""
        return self.assoc.network_timeout

    @property
    def descriptor(self) -> int:
        """File descriptor of the connection, negative when it is closed."""
        connection = self.assoc.dul.socket.socket if self.assoc.dul.socket is not None else None
        return connection.fileno() if connection is not None else -1

    @property
    def is_alive(self) -> bool:
        """Whether anything can still be sent."""
        return self.assoc.dul.is_alive()

    def give_up(self) -> None:
        """Abort it without waiting."""
        self.assoc.abort(block=False)

    def decoded(self) -> None:
        """Let others send large requests."""
        transport.decoded(self.assoc)

    @contextmanager
    def between_requests(self, timeout_s: float) -> Iterator[bool]:
        """Keep the peer's requests from being served in this block; False: one is under way beyond `timeout_s`."""
        with transport.held(self.assoc, timeout_s) as is_held:
            waiting = self.assoc.dimse.msg_queue
            yield is_held and self.assoc.dimse.message is None and waiting.empty()

    def release(self) -> None:
        """End it in order."""
        if self.is_established:
            transport.hold(self.assoc)
            self.assoc.release()

    def abort(self) -> None:
        """End it at once; who waits for a response on it in another thread gets none."""
        if self.is_established:
            self.assoc.abort(block=False)
        self.assoc.dimse.msg_queue.put((None, None))
