"""C-MOVE and C-GET: every match sent as a C-STORE sub-operation (PS3.4 C.4.2, C.4.3)."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from pydicom.dataset import Dataset
from pydicom.uid import UID

from index.archive import StoredInstance
from index.errors import ArchiveError
from index.part10 import NewFile
from scp.conversion import converted, target_syntax
from scp.errors import PeerError, ScpError
from scp.link import Link
from scp.messages import Answer, Originator, Priority, SubOperations
from scp.outcomes import Outcome
from scp.part10 import encoded_data_set
from scp.status import (
    CANCELLED,
    PENDING,
    PROCESSING_FAILURE,
    SOP_CLASS_NOT_SUPPORTED,
    SUB_OPERATIONS_FAILED,
    SUB_OPERATIONS_WARNING,
    SUCCESS,
    Status,
    status_of,
)

_LOG = logging.getLogger(__name__)

Prepare = Callable[[StoredInstance], AbstractContextManager[StoredInstance]]
"""Gives what is sent in the place of a stored instance."""

_PENDING_EVERY_S = 0.5
"""A Pending response goes out at least this often; the first at once."""


@dataclass(frozen=True)
class Ready:
    """An object that can be sent.

    Attributes
    ----------
    identity
        (SOP Class UID, SOP Instance UID).
    transfer_syntax_uid
        In which it is sent.
    data
        The encoded data set, or the file that holds it and its offset there.
    """

    identity: tuple[str, str]
    transfer_syntax_uid: str
    data: bytes | memoryview | tuple[Path, int]


@contextmanager
def ready(
    link: Link, instance: StoredInstance, *, new_file: NewFile, prepare: Prepare = nullcontext
) -> Iterator[Ready]:
    """Give `instance` as the peer takes it, for as long as it is needed: its own bytes if it can, else converted.

    Raises
    ------
    ConversionError
        The peer takes neither its transfer syntax nor one that it can be brought into.
    OutOfSpace
        There is no room to convert it.
    FileNotFoundError
        Its file is missing.
    """
    with prepare(instance) as sent:
        target = target_syntax(sent.transfer_syntax_uid, link.accepted(sent.sop_class_uid))
        with (
            nullcontext(encoded_data_set(sent.path, sent.size))
            if target == sent.transfer_syntax_uid
            else converted(sent, target, new_file)
        ) as data:
            yield Ready((sent.sop_class_uid, sent.sop_instance_uid), target, data)


def takes_time(link: Link, instance: StoredInstance, *, is_changed: bool = False) -> bool:
    """Whether `instance` is decoded before it is sent over `link`, or else changed (`is_changed`: de-identified)."""
    accepted = link.accepted(instance.sop_class_uid)
    if not accepted or instance.damage:
        return False
    return is_changed or instance.transfer_syntax_uid not in accepted


def send(
    link: Link,
    instance: StoredInstance,
    *,
    new_file: NewFile,
    priority: Priority,
    originator: Originator | None = None,
    prepare: Prepare = nullcontext,
    early: AbstractContextManager[Ready] | None = None,
    meanwhile: Callable[[], object] | None = None,
) -> Status:
    """Send one stored instance: its own bytes when the peer takes their transfer syntax, else converted.

    Parameters
    ----------
    new_file
        Where a converted object goes that is too large for the memory.
    prepare
        What is sent in its place: itself, unless it has to be de-identified.
    early
        What `ready` gives for it, begun before.
    meanwhile
        Called when it is on its way, and before its response is waited for.

    Returns
    -------
    Status
        The peer's, or why it could not be sent.

    Raises
    ------
    AssociationLost
        The association ended.
    """
    if not link.accepted(instance.sop_class_uid):
        return Status(SOP_CLASS_NOT_SUPPORTED, f"the peer takes no {UID(instance.sop_class_uid).name}")
    if instance.damage:
        return Status(PROCESSING_FAILURE, f"the stored file is {instance.damage}: it is not sent")
    try:
        with early or ready(link, instance, new_file=new_file, prepare=prepare) as found:
            return _store(link, found, priority, originator, meanwhile)
    except PeerError:
        raise
    except FileNotFoundError as error:
        _LOG.error("instance %s cannot be sent: its file %s is missing", instance.sop_instance_uid, error.filename)
        return Status(PROCESSING_FAILURE, "the stored file is missing: it is not sent")
    except (ArchiveError, ScpError, OSError) as error:
        return status_of(error)


def _store(
    link: Link,
    found: Ready,
    priority: Priority,
    originator: Originator | None,
    meanwhile: Callable[[], object] | None = None,
) -> Status:
    return link.store(
        found.identity,
        found.transfer_syntax_uid,
        found.data,
        priority=priority,
        originator=originator,
        meanwhile=meanwhile,
    )


def transmit(
    link: Link,
    instance: StoredInstance,
    *,
    new_file: NewFile,
    priority: Priority,
    originator: Originator | None = None,
) -> Status:
    """Send one instance of a SOP class that the peer takes, and return the peer's Status.

    Raises
    ------
    ConversionError, OutOfSpace, FileNotFoundError
        As `ready`.
    AssociationLost
        The association ended.
    """
    with ready(link, instance, new_file=new_file) as found:
        return _store(link, found, priority, originator)


def sub_operations(
    count: int,
    outcomes: Iterable[Outcome | None],
    cancelled: Callable[[], bool],
    stop: Callable[[], Iterable[Outcome]] = tuple,
    *,
    tell: Callable[[str], str] = str,
) -> Iterator[Answer]:
    """Yield the responses to a retrieve: Pending at once and every half second, then the final one.

    Parameters
    ----------
    count
        Of sub-operations.
    outcomes
        Each as it ends, and None now and then while none does.
    cancelled
        Whether the requestor sent a C-CANCEL.
    stop
        Ends the sub-operations that are under way; returns those that ended meanwhile.
    tell
        The SOP Instance UID by which the requestor knows an instance of that one.
    """
    if not count:
        yield Answer(SUCCESS, counts=SubOperations(0))
        return
    tally = _Tally(count, tell)
    yield Answer(PENDING, counts=tally.counts)
    told = time.monotonic()
    for outcome in outcomes:
        tally.add(outcome)
        if tally.counts.remaining and cancelled():
            for late in stop():
                tally.add(late)
            if tally.counts.remaining:
                yield Answer(CANCELLED, tally.failed_list(), tally.counts)
                return
        if tally.counts.remaining and time.monotonic() - told >= _PENDING_EVERY_S:
            yield Answer(PENDING, counts=tally.counts)
            told = time.monotonic()
    yield tally.final()


class _Tally:
    """What became of the sub-operations so far."""

    def __init__(self, count: int, tell: Callable[[str], str]) -> None:
        self._tell = tell
        self.counts = SubOperations(count)
        self._total = count
        self._failed: list[str] = []
        self._reason = ""

    def add(self, outcome: Outcome | None) -> None:
        if outcome is None:
            return
        instance, status = outcome
        self.counts = self.counts.after(status)
        if not status.is_success and not status.is_warning:
            self._failed.append(self._tell(instance.sop_instance_uid))
            self._reason = self._reason or status.comment or f"status {status.code:04X}"

    def final(self) -> Answer:
        counts = self.counts
        if not counts.failed and not counts.warning:
            return Answer(SUCCESS, counts=counts)
        comment = f"{counts.failed} of {self._total} failed"
        if self._reason:
            comment += f": {self._reason}"
        nothing_arrived = not counts.completed and not counts.warning
        code = SUB_OPERATIONS_FAILED if nothing_arrived else SUB_OPERATIONS_WARNING
        return Answer(Status(code, comment), self.failed_list(), counts)

    def failed_list(self) -> Dataset | None:
        """Identifier with the Failed SOP Instance UID List (0008,0058).

        More than fits into the 16-bit length of UI is sent as UN in Explicit VR (PS3.5 6.2.2): the list stays whole.
        """
        if not self._failed:
            return None
        identifier = Dataset()
        identifier.FailedSOPInstanceUIDList = self._failed
        return identifier
