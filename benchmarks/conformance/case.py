"""What a case is, what it may conclude, and how responses are read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pydicom.dataset import Dataset

from benchmarks.conformance.receivers import Received
from benchmarks.conformance.wire import Message

if TYPE_CHECKING:
    from benchmarks.conformance.probe import Bench


class Failed(Exception):
    """The node did not do what the row says; the sentence is what it did."""


class NotTried(Exception):
    """The row could not be asked; the sentence is the reason."""


def check(holds: object, did: str) -> None:
    """Fail with what the node did unless `holds`."""
    if not holds:
        raise Failed(did)


@dataclass(frozen=True)
class Case:
    """A promise of a row.

    Attributes
    ----------
    section, row
        Where it stands in the specification.
    promise
        What is promised, in a few words.
    clause
        Where the standard says so, or "-".
    expected
        What the answer has to be.
    variant
        The configuration of the node.
    """

    section: str
    row: str
    promise: str
    clause: str
    expected: str
    variant: str
    run: Callable[[Any], str]

    @property
    def id(self) -> str:
        """Name by which one case is chosen."""
        return f"{self.section}/{self.row}/{self.promise}"


CASES: list[Case] = []
"""Every case in the order of the specification."""


def case(
    section: str, row: str, promise: str, *, clause: str, expected: str, variant: str = "default"
) -> Callable[[Callable[[Bench], str]], Callable[[Bench], str]]:
    """Register a function as a case. It returns what the node did, or raises `Failed` with it."""

    def register(function: Callable[[Bench], str]) -> Callable[[Bench], str]:
        CASES.append(Case(section, row, promise, clause, expected, variant, function))
        return function

    return register


@dataclass
class Answers:
    """The responses to a C-FIND, C-MOVE or C-GET."""

    messages: list[Message]
    rows: list[Dataset] = field(default_factory=list)
    received: list[Received] = field(default_factory=list)
    began: float = 0.0
    identifier: Dataset | None = None

    @property
    def final(self) -> Message:
        """The last response."""
        return self.messages[-1]

    @property
    def status(self) -> int:
        """Its Status."""
        return self.final.status

    @property
    def pending(self) -> list[Message]:
        """The responses before it."""
        return self.messages[:-1]

    @property
    def code(self) -> str:
        """Its Status in hexadecimal."""
        return code(self.final)

    def counts(self) -> str:
        """Completed/failed/warning of the last response, and what remains where it says so."""
        return counts(self.final)


def code(message: Message) -> str:
    """Status in hexadecimal, with Error Comment."""
    comment = str(message.command.get("ErrorComment", "") or "")
    return f"{message.status:04X}" + (f" “{comment}”" if comment else "")


def counts(message: Message) -> str:
    """Completed/failed/warning sub-operations."""
    names = ("Completed", "Failed", "Warning")
    return "/".join(str(message.command.get(f"NumberOf{name}Suboperations", "–")) for name in names)


def counted(message: Message) -> tuple[Any, ...]:
    """Completed, failed, warning; None for one that is missing."""
    return tuple(message.command.get(f"NumberOf{name}Suboperations") for name in ("Completed", "Failed", "Warning"))


def failed_list(answers: Answers) -> list[str]:
    """Failed SOP Instance UID List (0008,0058) of the final response."""
    value = answers.identifier.get("FailedSOPInstanceUIDList") if answers.identifier else None
    return [] if value is None else [str(value)] if isinstance(value, str) else [str(one) for one in value]


def told(answers: Answers) -> str:
    return f"{answers.code}, counts {answers.counts()}, list of {len(failed_list(answers))}"


def ended(answers: Answers, status: int, wanted: tuple[int, int, int], failed: list[str] | None = None) -> str:
    did = told(answers)
    check(answers.status == status, did)
    check(counted(answers.final) == wanted, did)
    if failed is not None:
        check(sorted(failed_list(answers)) == sorted(failed), did)
    return did


def explained(answer: Message, tag: int | None) -> str:
    """Check Error Comment and Offending Element of a response."""
    comment = str(answer.command.get("ErrorComment", "") or "")
    check(comment, f"{answer.status:04X} without Error Comment")
    check(len(comment) <= 64, f"Error Comment of {len(comment)} characters")
    if tag is not None:
        value = answer.command.get("OffendingElement")
        tags = [] if value is None else [int(value)] if not isinstance(value, (list, tuple)) and not hasattr(
            value, "__iter__") else [int(one) for one in value]
        named = ", ".join(f"({one >> 16:04X},{one & 0xFFFF:04X})" for one in tags) or "none"
        check(tag in tags, f"{code(answer)}; Offending Element: {named}")
    return code(answer)
