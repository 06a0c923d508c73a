"""An open association as a way to store objects at the peer: a C-MOVE destination, a C-GET requestor, any SCP."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pynetdicom.association import Association

from scp.carrier import Carrier
from scp.errors import AssociationLost, PeerRejected
from scp.messages import Originator, Priority, StoreCommand
from scp.status import Status

_LAST_MESSAGE_ID = 0xFFFF


class Link:
    """An established association on which this node is (also) a Storage SCU.

    Parameters
    ----------
    carrier
        The association; this node is its requestor, or its acceptor during a C-GET.
    busy_message_id
        Message ID of the operation in progress, which no C-STORE may bear (PS3.7 9.1.1.1.1).
    """

    def __init__(self, carrier: Carrier, *, busy_message_id: int | None = None) -> None:
        self.carrier = carrier
        self._busy = busy_message_id
        self._last_id = 0
        self._contexts: dict[str, dict[str, int]] = {}
        for context in carrier.contexts:
            if context.as_scu:
                syntaxes = self._contexts.setdefault(str(context.abstract_syntax), {})
                syntaxes.setdefault(str(context.transfer_syntax[0]), int(context.context_id or 0))

    @property
    def assoc(self) -> Association:
        """The association as pynetdicom knows it, for those who send requests with its methods."""
        assoc: Association = self.carrier.assoc
        return assoc

    @property
    def is_open(self) -> bool:
        """Whether the association still stands."""
        return self.carrier.is_established

    def accepted(self, sop_class_uid: str) -> tuple[str, ...]:
        """Transfer syntaxes that the peer takes for this SOP class, in the order of their contexts."""
        return tuple(self._contexts.get(sop_class_uid, ()))

    def next_message_id(self) -> int:
        """Return a Message ID that no operation in progress bears."""
        self._last_id = self._last_id % _LAST_MESSAGE_ID + 1
        if self._last_id == self._busy:
            self._last_id = self._last_id % _LAST_MESSAGE_ID + 1
        return self._last_id

    def store(
        self,
        identity: tuple[str, str],
        transfer_syntax_uid: str,
        data: bytes | memoryview | tuple[Path, int],
        *,
        priority: Priority = Priority.MEDIUM,
        originator: Originator | None = None,
        meanwhile: Callable[[], object] | None = None,
    ) -> Status:
        """Send one object and return the peer's Status.

        Parameters
        ----------
        identity
            (SOP Class UID, SOP Instance UID).
        data
            The data set in `transfer_syntax_uid`, or the file that holds it and its offset there.
        meanwhile
            Called when it has been sent, and before its response is waited for; raises nothing.

        Raises
        ------
        PeerRejected
            The peer accepted no context for this SOP class and transfer syntax.
        AssociationLost
            No answer came.
        """
        sop_class_uid, sop_instance_uid = identity
        context_id = self._contexts.get(sop_class_uid, {}).get(transfer_syntax_uid)
        if context_id is None:
            raise PeerRejected("the peer accepted no presentation context for this object")
        if not self.is_open:
            raise AssociationLost("the association is closed")
        command = StoreCommand(
            context_id, self.next_message_id(), sop_class_uid, sop_instance_uid, priority, originator
        )
        return status_of_response(self.carrier.store(command, data, meanwhile))

    def release(self) -> None:
        """End the association in order; nothing happens when it is gone already."""
        self.carrier.release()

    def abort(self) -> None:
        """End the association at once; who waits for a response on it in another thread gets none.

        The association's own loop may take that from under his nose: repeat this until he has gone.
        """
        self.carrier.abort()


def status_of_response(response: object) -> Status:
    """The Status of a response primitive or of a pynetdicom status data set."""
    comment = str(getattr(response, "ErrorComment", None) or "")
    offending = getattr(response, "OffendingElement", None) or ()
    tags = tuple(int(tag) for tag in (offending if isinstance(offending, (list, tuple)) else [offending]))
    return Status(int(getattr(response, "Status")), comment, tags)  # noqa: B009  (no attribute of `object`)
