"""What the router needs of the network: something that brings objects to a peer. `scp` has it, `commands` hands it over."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import Enum, auto
from typing import Protocol

from index.archive import StoredInstance
from index.commitments import Reference


class Unreachable(Exception):
    """No association can be had with the destination; one sentence that names it."""


class Lost(Exception):
    """The association ended, or the peer fell silent, before it answered; the next object opens a new one."""


class NotOffered(Exception):
    """The destination does not take part in storage commitment, or not in this request; one sentence."""


class Outcome(Enum):
    """What a destination made of an object."""

    STORED = auto()
    """Success, or a warning: it has the object."""

    REFUSED = auto()
    """It will not take this object, however often it is sent."""

    LATER = auto()
    """It could not process this one now."""

    FULL = auto()
    """It is out of resources: neither this nor another one now."""


@dataclass(frozen=True)
class Answer:
    """A peer's answer; `told` is its Status in words, "" for plain success."""

    outcome: Outcome
    told: str = ""


@dataclass(frozen=True)
class Report:
    """What a destination says of its storage commitment, with the Failure Reason (0008,1197) of each failure."""

    committed: tuple[Reference, ...]
    failures: dict[Reference, int]


class Line(Protocol):
    """A way to send objects to one destination, over associations that it opens as it needs them."""

    def send(self, instance: StoredInstance) -> Answer:
        """Send one object; raises `Unreachable` and `Lost`."""


class Sender(Protocol):
    """Brings objects to peers."""

    def line(
        self, title: str, kinds: Iterable[tuple[str, str]], *, priority: str, max_instances: int
    ) -> AbstractContextManager[Line]:
        """Return a line to the destination `title`; no association is open before the first object is sent.

        Parameters
        ----------
        kinds
            (SOP Class UID, Transfer Syntax UID) of what will be sent.
        priority
            Of the C-STORE requests: ``low``, ``medium`` or ``high``.
        max_instances
            Objects that go over one association; 0: any number.
        """

    def ask(
        self, title: str, transaction_uid: str, references: Sequence[Reference], *, wait_s: float
    ) -> Report | None:
        """Ask the destination for storage commitment (PS3.4 J.3).

        Returns
        -------
        Report or None
            None: its report has not come on the same association within `wait_s` seconds; it will come to this node.

        Raises
        ------
        Unreachable, Lost, NotOffered
        """
