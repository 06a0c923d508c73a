"""C-MOVE and C-GET: every match sent as a C-STORE sub-operation (PS3.4 C.4.2, C.4.3)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as StillRunning
from pathlib import Path

from pydicom.dataset import Dataset
from pydicom.uid import UID

from index.archive import StoredInstance
from scp.contexts import Proposal, storage_proposals
from scp.conversion import converted, target_syntax
from scp.errors import PeerError, ScpError
from scp.link import Link
from scp.messages import Answer, Originator, Priority, SubOperations
from scp.part10 import data_set_offset
from scp.status import (
    CANCELLED,
    PENDING,
    SOP_CLASS_NOT_SUPPORTED,
    SUB_OPERATIONS_FAILED,
    SUB_OPERATIONS_WARNING,
    SUCCESS,
    Status,
    status_of,
)

_PENDING_EVERY_S = 0.5
"""A Pending response goes out at least this often; the first at once."""


def send(
    link: Link, instance: StoredInstance, *, priority: Priority, originator: Originator | None = None
) -> Status:
    """Send one stored instance: its own bytes when the peer takes their transfer syntax, else converted.

    Returns
    -------
    Status
        The peer's, or why it could not be sent.

    Raises
    ------
    AssociationLost
        The association ended.
    """
    accepted = link.accepted(instance.sop_class_uid)
    if not accepted:
        return Status(SOP_CLASS_NOT_SUPPORTED, f"the peer takes no {UID(instance.sop_class_uid).name}")
    try:
        target = target_syntax(instance.transfer_syntax_uid, accepted)
        if target == instance.transfer_syntax_uid:
            data: bytes | tuple[Path, int] = (instance.path, data_set_offset(instance.path))
        else:
            data = converted(instance, target)
    except (ScpError, OSError) as error:
        return status_of(error)
    identity = (instance.sop_class_uid, instance.sop_instance_uid)
    return link.store(identity, target, data, priority=priority, originator=originator)


class Destination:
    """A move destination, with as many associations, one after the other, as the presentation contexts need.

    Parameters
    ----------
    instances
        What will be sent.
    open_link
        Opens an association with these contexts; raises `PeerError`.
    """

    def __init__(
        self, instances: Sequence[StoredInstance], open_link: Callable[[list[Proposal]], Link]
    ) -> None:
        objects = [(instance.sop_class_uid, instance.transfer_syntax_uid) for instance in instances]
        self._associations = storage_proposals(objects, convertible=True)
        self._number = {
            proposal.sop_class_uid: number
            for number, proposals in enumerate(self._associations)
            for proposal in proposals
        }
        self._open_link = open_link
        self._link: Link | None = None
        self._current = -1
        self._unreachable: dict[int, PeerError] = {}

    def in_order(self, instances: Sequence[StoredInstance]) -> list[StoredInstance]:
        """The instances association by association, each part in its own order."""
        return sorted(instances, key=lambda instance: self._number[instance.sop_class_uid])

    def deliver(self, instance: StoredInstance, priority: Priority, originator: Originator) -> Status:
        """Send one instance; whatever goes wrong with the destination is this sub-operation's Status."""
        number = self._number[instance.sop_class_uid]
        try:
            if number in self._unreachable:
                raise self._unreachable[number]
            return send(self._ready(number), instance, priority=priority, originator=originator)
        except PeerError as error:
            return status_of(error)

    def _ready(self, number: int) -> Link:
        if self._link is not None and self._current == number and self._link.is_open:
            return self._link
        self.close()
        try:
            self._link = self._open_link(self._associations[number])
        except PeerError as error:
            self._unreachable[number] = error
            raise
        self._current = number
        return self._link

    def close(self) -> None:
        """Release the association that is open."""
        if self._link is not None:
            self._link.release()
            self._link = None


def sub_operations(
    instances: Sequence[StoredInstance],
    deliver: Callable[[StoredInstance], Status],
    cancelled: Callable[[], bool],
    *,
    aside: bool,
) -> Iterator[Answer]:
    """Deliver `instances` and yield the responses: Pending at once and every half second, then the final one.

    Parameters
    ----------
    deliver
        One sub-operation.
    aside
        Deliver in a thread of its own, so that Pending responses go out during a long one (C-MOVE; in a C-GET they
        would fall between the fragments of the object on the same association).
    """
    if not instances:
        yield Answer(SUCCESS, counts=SubOperations(0))
        return
    counts = SubOperations(len(instances))
    failures: list[tuple[str, Status]] = []
    yield Answer(PENDING, counts=counts)
    told = time.monotonic()
    with ThreadPoolExecutor(max_workers=1) as pool:
        for instance in instances:
            if cancelled():
                yield Answer(CANCELLED, _failed_list(failures), counts)
                return
            if aside:
                future = pool.submit(deliver, instance)
                while (status := _result(future, _PENDING_EVERY_S)) is None:
                    yield Answer(PENDING, counts=counts)
                    told = time.monotonic()
            else:
                status = deliver(instance)
            counts = counts.after(status)
            if not status.is_success and not status.is_warning:
                failures.append((instance.sop_instance_uid, status))
            if counts.remaining and time.monotonic() - told >= _PENDING_EVERY_S:
                yield Answer(PENDING, counts=counts)
                told = time.monotonic()
    yield _final(counts, failures)


def _result(future: Future[Status], wait_s: float) -> Status | None:
    try:
        return future.result(timeout=wait_s)
    except StillRunning:
        return None


def _final(counts: SubOperations, failures: list[tuple[str, Status]]) -> Answer:
    if not failures and not counts.warning:
        return Answer(SUCCESS, counts=counts)
    comment = f"{counts.failed} of {counts.completed + counts.failed + counts.warning} failed"
    if failures:
        first = failures[0][1]
        comment += f": {first.comment or f'status {first.code:04X}'}"
    nothing_arrived = not counts.completed and not counts.warning
    code = SUB_OPERATIONS_FAILED if nothing_arrived else SUB_OPERATIONS_WARNING
    return Answer(Status(code, comment), _failed_list(failures), counts)


def _failed_list(failures: list[tuple[str, Status]]) -> Dataset | None:
    """Identifier with the Failed SOP Instance UID List (0008,0058)."""
    if not failures:
        return None
    identifier = Dataset()
    identifier.FailedSOPInstanceUIDList = [uid for uid, _ in failures]
    return identifier
