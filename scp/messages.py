"""DIMSE requests and responses as values: what a transport hands to a service, and what it gets back (PS3.7 9.1)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset

from index.instances import Received
from index.query import BASELINE, QueryOptions
from scp.status import Status

_LARGEST_COUNT = 0xFFFF
"""Counts of sub-operations are US."""


class Priority(IntEnum):
    """Priority (0000,0700)."""

    MEDIUM = 0
    HIGH = 1
    LOW = 2


@dataclass(frozen=True)
class Originator:
    """Who asked for the C-MOVE that a C-STORE belongs to."""

    title: str
    message_id: int


@dataclass(frozen=True)
class StoreCommand:
    """Parameters of a C-STORE-RQ (PS3.7 9.1.1.1)."""

    context_id: int
    message_id: int
    sop_class_uid: str
    sop_instance_uid: str
    priority: Priority = Priority.MEDIUM
    originator: Originator | None = None


@dataclass(frozen=True)
class StoreRequest:
    """A C-STORE-RQ whose data set lies in a Part 10 file, as received; `received` is what is known of that file."""

    sop_class_uid: str
    sop_instance_uid: str
    file: Path
    received: Received | None = None

    def wait(self) -> None:
        """Return when the file is whole: for who reads it. Raises `OSError` where it cannot be written."""
        if self.received is not None:
            self.received.wait()


@dataclass(frozen=True)
class FindRequest:
    """A C-FIND-RQ; `options` are what its association has negotiated for the SOP class.

    `transfer_syntax_uid` is that of its presentation context, in which the answers go back.
    """

    sop_class_uid: str
    identifier: Dataset
    cancelled: Callable[[], bool]
    options: QueryOptions = BASELINE
    transfer_syntax_uid: str = ""


@dataclass(frozen=True)
class RetrieveRequest:
    """A C-MOVE-RQ or, without `destination`, a C-GET-RQ; `options` as negotiated."""

    sop_class_uid: str
    identifier: Dataset
    cancelled: Callable[[], bool]
    priority: Priority
    message_id: int
    destination: str = ""
    options: QueryOptions = BASELINE


@dataclass(frozen=True)
class ActionRequest:
    """An N-ACTION-RQ.

    Attributes
    ----------
    sop_class_uid, sop_instance_uid
        The Requested ones.
    information
        Action Information, empty when there is none.
    association
        The association that it came on, for who wants to report on the same one.
    """

    sop_class_uid: str
    sop_instance_uid: str
    action_type: int
    information: Dataset
    association: Any


@dataclass(frozen=True)
class EventReport:
    """An N-EVENT-REPORT-RQ; `information` is its Event Information, empty when there is none."""

    sop_class_uid: str
    sop_instance_uid: str
    event_type: int
    information: Dataset


@dataclass(frozen=True)
class SubOperations:
    """Counts of the C-STORE sub-operations of a retrieve (PS3.4 C.4.2.1.6 to C.4.2.1.9)."""

    remaining: int
    completed: int = 0
    failed: int = 0
    warning: int = 0

    def after(self, status: Status) -> SubOperations:
        """Counts after one more sub-operation ended with `status`."""
        return SubOperations(
            remaining=self.remaining - 1,
            completed=self.completed + status.is_success,
            warning=self.warning + status.is_warning,
            failed=self.failed + (not status.is_success and not status.is_warning),
        )

    @property
    def clamped(self) -> SubOperations:
        """The counts as far as an unsigned short can tell them."""
        counts = (self.remaining, self.completed, self.failed, self.warning)
        return SubOperations(*(min(count, _LARGEST_COUNT) for count in counts))


@dataclass(frozen=True)
class Answer:
    """One response: Status, Identifier and counts of sub-operations, where the service has them.

    An Identifier in bytes is encoded already, in the transfer syntax that the request told.
    """

    status: Status
    identifier: Dataset | bytes | None = None
    counts: SubOperations | None = None
