"""Sending on what is stored: to one peer of the settings, over associations that are opened as they are needed.

This is the `Sender` that the router is given; the two do not know each other (PS3.4 B for storage, J for commitment).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from pydicom.uid import UID

from config.application_entities import ApplicationEntity
from config.settings import Settings
from index.archive import Archive, StoredInstance
from index.commitments import Reference, Report
from index.errors import OutOfSpace
from index.sending import Fate, Lost, NotOffered, Sent, Unreachable
from scp import commitment_client
from scp.client import RequestFailed
from scp.contexts import Proposal, storage_proposals
from scp.errors import AssociationLost, ConversionError, NothingAccepted, PeerError, UnknownDestination
from scp.link import Link
from scp.messages import Priority
from scp.outbound import Outbound
from scp.retrieve import transmit
from scp.status import MISTYPED_ARGUMENT, PROCESSING_FAILURE, Status

_RESOURCE_LIMITATION = 0x0213
_NOT_NOW = frozenset({PROCESSING_FAILURE, 0x0124, 0x0210, 0x0211, MISTYPED_ARGUMENT})
"""Failures that say nothing of the object (PS3.7 C.5): they may not come another time, or with other settings there."""

_NOT_OFFERED = frozenset({0x0112, 0x0118, 0x0122, 0x0123, 0x0124, 0x0211})
"""Answers to a request for commitment that repeating it will not change (PS3.7 10.1.4.1.10)."""


class Forwarder:
    """Sends to the peers of the settings.

    Parameters
    ----------
    archive
        Whose objects they are, and which has room for those that have to be converted.
    settings
        Of the node.

    Raises
    ------
    TlsError
        What peers are to be reached with over TLS cannot be used.
    """

    def __init__(self, archive: Archive, settings: Settings) -> None:
        self._archive = archive
        self._entities = settings.entity_table()
        self._outbound = Outbound(settings)

    @contextmanager
    def line(
        self, title: str, kinds: Iterable[tuple[str, str]], *, priority: str, max_instances: int
    ) -> Iterator[ForwardingLine]:
        """Give a line to the peer `title`; no association is open before the first object is sent.

        Parameters
        ----------
        kinds
            (SOP Class UID, Transfer Syntax UID) of what will be sent.
        priority
            Of the C-STORE requests: ``low``, ``medium`` or ``high``.
        max_instances
            Objects that go over one association; 0: any number.
        """
        entity = self._entity(title)

        def open_link(proposals: list[Proposal]) -> Link:
            return self._outbound.open_sending(entity, proposals)

        def send(link: Link, instance: StoredInstance) -> Status:
            return transmit(
                link, instance, new_file=self._archive.scratch_file, priority=Priority[priority.upper()]
            )

        line = ForwardingLine(storage_proposals(kinds, convertible=True), open_link, send, max_instances)
        try:
            yield line
        finally:
            line.close()

    def ask(
        self, title: str, transaction_uid: str, references: Sequence[Reference], *, wait_s: float
    ) -> Report | None:
        """Ask the peer for storage commitment (PS3.4 J.3).

        Returns
        -------
        Report or None
            None: its report has not come on the same association within `wait_s` seconds; it will come to this node.

        Raises
        ------
        Unreachable, Lost, NotOffered
        """
        peer = self._outbound.peer(self._entity(title))
        try:
            return commitment_client.ask(peer, transaction_uid, references, self._outbound.requestor, wait_s=wait_s)
        except NothingAccepted as error:
            raise NotOffered(f"{peer} offers no storage commitment") from error
        except RequestFailed as error:
            if error.status.code in _NOT_OFFERED:
                raise NotOffered(str(error)) from error
            raise Lost(str(error)) from error
        except AssociationLost as error:
            raise Lost(str(error)) from error
        except PeerError as error:
            raise Unreachable(str(error)) from error

    def _entity(self, title: str) -> ApplicationEntity:
        entity = self._entities.get(title)
        if entity is None or not entity.is_destination:
            raise UnknownDestination(f"[[application_entities]] has no {title} with host and port")
        return entity


class ForwardingLine:
    """A way to send objects to one peer.

    Parameters
    ----------
    proposals
        Presentation contexts, a list for each association that is needed.
    open_link
        Opens an association with these contexts; raises `PeerError`.
    send
        Sends one object over an association.
    max_instances
        Objects that go over one association; 0: any number.
    """

    def __init__(
        self,
        proposals: list[list[Proposal]],
        open_link: Callable[[list[Proposal]], Link],
        send: Callable[[Link, StoredInstance], Status],
        max_instances: int,
    ) -> None:
        self._proposals = proposals
        self._number = {each.sop_class_uid: number for number, part in enumerate(proposals) for each in part}
        self._open_link = open_link
        self._send = send
        self._most = max_instances
        self._link: Link | None = None
        self._current = -1
        self._sent = 0
        self._nothing_accepted: dict[int, str] = {}

    def send(self, instance: StoredInstance) -> Sent:
        """Send one object.

        Raises
        ------
        Unreachable
            No association can be had.
        Lost
            It ended before the answer came.
        """
        kind = UID(instance.sop_class_uid).name
        number = self._number[instance.sop_class_uid]
        if number in self._nothing_accepted:
            return Sent(Fate.REFUSED, self._nothing_accepted[number])
        try:
            link = self._ready(number)
        except NothingAccepted as error:
            self._nothing_accepted[number] = str(error)
            return Sent(Fate.REFUSED, str(error))
        except PeerError as error:
            raise Unreachable(str(error)) from error
        if not link.accepted(instance.sop_class_uid):
            return Sent(Fate.REFUSED, f"it takes no {kind}")
        try:
            status = self._send(link, instance)
        except AssociationLost as error:
            self.close()
            raise Lost(str(error)) from error
        except ConversionError as error:
            return Sent(Fate.REFUSED, str(error))
        except FileNotFoundError:
            return Sent(Fate.LATER, "its file is missing here")
        except OutOfSpace as error:
            return Sent(Fate.LATER, str(error))
        self._sent += 1
        return _judged(status)

    def close(self) -> None:
        """End the association that is open, if one is."""
        link, self._link = self._link, None
        if link is not None:
            link.release()

    def _ready(self, number: int) -> Link:
        if self._link is not None and (not self._link.is_open or self._current != number or self._is_used_up):
            self.close()
        if self._link is None:
            self._link, self._current, self._sent = self._open_link(self._proposals[number]), number, 0
        return self._link

    @property
    def _is_used_up(self) -> bool:
        return bool(self._most) and self._sent >= self._most


def _judged(status: Status) -> Sent:
    """What a Status of C-STORE means for the object (PS3.4 B.2.3, PS3.7 C)."""
    if status.is_success or status.is_warning:
        return Sent(Fate.STORED, "" if status.is_success else f"stored, with the warning {status}")
    if status.code & 0xFF00 == 0xA700 or status.code == _RESOURCE_LIMITATION:
        return Sent(Fate.FULL, f"answered {status}")
    return Sent(Fate.LATER if status.code in _NOT_NOW else Fate.REFUSED, f"answered {status}")
