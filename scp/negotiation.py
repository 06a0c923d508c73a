"""Presentation contexts as pynetdicom wants them (PS3.8 7.1.1, Annex D of PS3.7)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

from pydicom.uid import UID
from pynetdicom.presentation import PresentationContext

from scp.contexts import STORAGE_COMMITMENT, UNCOMPRESSED, Operation, acceptable, is_private, operation_of

_REMEMBERED = 1024
"""Presentation contexts that are kept for associations to come: pynetdicom takes 0.1 ms to make one."""

SHORTEST_PDU = 8
"""Bytes of a P-DATA-TF that hold two bytes of a message (PS3.8 9.3.5)."""


@dataclass(frozen=True)
class Requested:
    """An association request, as far as the node judges it.

    Attributes
    ----------
    calling, called
        AE titles.
    address
        IP address of the requestor.
    maximum_length
        Of the P-DATA-TFs that it takes, bytes; 0: no limit.
    contexts
        The presentation contexts.
    scp_roles
        SOP classes for which it proposes to be (also) the SCP.
    application_context
        UID of its Application Context Name.
    """

    calling: str
    called: str
    address: str
    maximum_length: int
    contexts: Sequence[PresentationContext]
    scp_roles: frozenset[str]
    application_context: str


class Rejected(Exception):
    """The association is rejected for good; the message says why.

    Attributes
    ----------
    source, diagnostic
        Of the A-ASSOCIATE-RJ (PS3.8 table 9-21).
    """

    def __init__(self, source: int, diagnostic: int, sentence: str) -> None:
        super().__init__(sentence)
        self.source = source
        self.diagnostic = diagnostic


PERMANENT = 0x01
"""Result of an A-ASSOCIATE-RJ."""

BY_USER, BY_ACSE = 0x01, 0x02
NO_REASON, UNKNOWN_APPLICATION_CONTEXT, CALLING_UNKNOWN, CALLED_UNKNOWN = 0x01, 0x02, 0x03, 0x07

APPLICATION_CONTEXT = "1.2.840.10008.3.1.1.1"
"""The one that there is (PS3.7 A.2.1)."""


class Judge(Protocol):
    """Knows who may open an association."""

    def refusal(self, calling: str, address: str) -> str | None:
        """Return why that AE title may not associate from that IP address; None when it may."""

    def is_called(self, called: str) -> bool:
        """Whether this node answers to that AE title."""


def require_admitted(judge: Judge, requested: Requested) -> None:
    """Raise `Rejected` unless that requestor may associate with the title that it calls."""
    if requested.application_context != APPLICATION_CONTEXT:
        why = f"application context {requested.application_context!r} is not DICOM's"
        raise Rejected(BY_USER, UNKNOWN_APPLICATION_CONTEXT, why)
    if not judge.is_called(requested.called):
        raise Rejected(BY_USER, CALLED_UNKNOWN, f"called AE title {requested.called!r} is not ours")
    refusal = judge.refusal(requested.calling, requested.address)
    if refusal is not None:
        raise Rejected(BY_USER, CALLING_UNKNOWN, refusal)
    longest = requested.maximum_length
    if longest and longest < SHORTEST_PDU:
        why = f"nothing fits into PDUs of {longest} bytes, at least {SHORTEST_PDU} are needed"
        raise Rejected(BY_ACSE, NO_REASON, why)


def supported_contexts(requested: Requested, *, private: bool = False) -> list[PresentationContext]:
    """The contexts that this node accepts of those proposed: made for each association, since few are ever asked.

    With `private`, SOP classes that no dictionary knows are taken for Storage.
    """
    proposed = _syntaxes_by_class(requested.contexts)
    supported = []
    for uid, syntaxes in proposed.items():
        is_storage = operation_of(uid) is Operation.STORE or (private and is_private(uid))
        if not is_storage and is_private(uid):
            continue
        if is_storage or operation_of(uid) is not None:
            to_send = is_storage and uid in requested.scp_roles
            # Who reports on storage commitment opens an association as its SCP (PS3.4 J.3.3.2).
            both = is_storage or uid == STORAGE_COMMITMENT
            supported.append(_supported(uid, tuple(syntaxes), to_send, both))
    return supported


@lru_cache(maxsize=_REMEMBERED)
def _supported(uid: str, syntaxes: Sequence[str], to_send: bool, both_roles: bool) -> PresentationContext:  # noqa: FBT001
    """Return a context that this node accepts; several associations have the same one, and none changes it."""
    # Known, but in none of these transfer syntaxes: the answer is result 4, and not 3 (PS3.8 table 9-18).
    accepted = acceptable(uid, syntaxes, to_send=to_send) or UNCOMPRESSED
    return presentation_context(uid, accepted, both_roles=both_roles)


def _syntaxes_by_class(contexts: Iterable[PresentationContext]) -> dict[str, list[str]]:
    proposed: dict[str, list[str]] = {}
    for context in contexts:
        syntaxes = proposed.setdefault(str(context.abstract_syntax), [])
        syntaxes.extend(str(syntax) for syntax in context.transfer_syntax if syntax not in syntaxes)
    return proposed


def presentation_context(uid: str, syntaxes: Sequence[str], *, both_roles: bool = False) -> PresentationContext:
    """Make a presentation context; with `both_roles` the requestor may ask to be its SCP (PS3.7 D.3.3.4)."""
    context = PresentationContext()
    context.abstract_syntax = UID(uid)
    context.transfer_syntax = list(syntaxes)
    if both_roles:
        context.scu_role = True
        context.scp_role = True
    return context
