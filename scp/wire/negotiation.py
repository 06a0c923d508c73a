"""The answer to an A-ASSOCIATE-RQ, made of pynetdicom's PDUs and negotiation items (PS3.8 7.1.1, PS3.7 Annex D)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from pydicom.uid import UID
from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import (
    A_ASSOCIATE,
    ImplementationClassUIDNotification,
    ImplementationVersionNameNotification,
    MaximumLengthNotification,
    SCP_SCU_RoleSelectionNegotiation,
    SOPClassExtendedNegotiation,
)
from pynetdicom.presentation import PresentationContext, negotiate_as_acceptor, negotiate_as_requestor

from config.identity import IMPLEMENTATION_CLASS_UID, implementation_version_name
from scp import extended_negotiation
from scp.negotiation import APPLICATION_CONTEXT, PERMANENT, Rejected, Requested, supported_contexts

_PROTOCOL_VERSION = 0x0001
"""A bit for each version that the peer knows; no other bit is looked at (PS3.8 9.3.2)."""
_BY_ACSE, _UNSUPPORTED_VERSION = 0x02, 0x02
_ACCEPTED, _BY_USER = 0x00, 0x01
_REMEMBERED = 8
"""Requests whose answers are kept. Most peers always ask in the same words, a C-GET of DCMTK's in 17 kB of them, which
takes 60 ms to decode, judge and answer."""


@dataclass(frozen=True)
class Request:
    """A decoded A-ASSOCIATE-RQ.

    Attributes
    ----------
    requested
        What the node judges.
    proposed
        SOP class → Service Class Application Information.
    roles
        SOP class → (SCU role, SCP role), as proposed.
    """

    requested: Requested
    proposed: Mapping[UID, bytes]
    roles: Mapping[UID, tuple[bool, bool]]
    primitive: A_ASSOCIATE


def read_request(pdu: bytes, address: str) -> Request:
    """Decode an A-ASSOCIATE-RQ.

    Raises
    ------
    Rejected
        Its protocol version is not the one that there is (AE-6 of PS3.8 9.2.3).
    Exception
        Whatever a malformed one makes pynetdicom stumble over.
    """
    request = _decoded(pdu)
    return replace(request, requested=replace(request.requested, address=address))


@lru_cache(maxsize=_REMEMBERED)
def _decoded(pdu: bytes) -> Request:
    decoded = A_ASSOCIATE_RQ()
    decoded.decode(pdu)
    primitive: A_ASSOCIATE = decoded.to_primitive()
    items = primitive.user_information
    lengths = [item.maximum_length_received for item in items if isinstance(item, MaximumLengthNotification)]
    roles: dict[UID, tuple[bool, bool]] = {}
    proposed: dict[UID, bytes] = {}
    for item in items:
        if isinstance(item, SCP_SCU_RoleSelectionNegotiation) and item.sop_class_uid is not None:
            roles[item.sop_class_uid] = (bool(item.scu_role), bool(item.scp_role))
        elif isinstance(item, SOPClassExtendedNegotiation) and item.sop_class_uid is not None:
            proposed[item.sop_class_uid] = bytes(item.service_class_application_information or b"")
    requested = Requested(
        calling=str(primitive.calling_ae_title).strip(),
        called=str(primitive.called_ae_title).strip(),
        address="",
        maximum_length=int(lengths[0] or 0) if lengths else 0,
        contexts=primitive.presentation_context_definition_list,
        scp_roles=frozenset(str(uid) for uid, (_, as_scp) in roles.items() if as_scp),
        application_context=str(primitive.application_context_name or ""),
    )
    if not decoded.protocol_version & _PROTOCOL_VERSION:
        raise Rejected(_BY_ACSE, _UNSUPPORTED_VERSION, f"protocol version {decoded.protocol_version:04X}")
    return Request(requested, proposed, roles, primitive)


@lru_cache(maxsize=_REMEMBERED)
def answered(pdu: bytes, *, private: bool, max_pdu_bytes: int) -> tuple[bytes, Sequence[PresentationContext]]:
    """Return the A-ASSOCIATE-AC for an A-ASSOCIATE-RQ that is admitted, and the contexts that it accepts.

    Parameters
    ----------
    private
        Whether SOP classes that no dictionary knows are taken for Storage.
    max_pdu_bytes
        Of the P-DATA-TFs that this node takes.
    """
    request = _decoded(pdu)
    return accept(request, supported_contexts(request.requested, private=private), max_pdu_bytes)


def accept(
    request: Request, supported: Sequence[PresentationContext], max_pdu_bytes: int
) -> tuple[bytes, list[PresentationContext]]:
    """Return the A-ASSOCIATE-AC and the presentation contexts that it accepts.

    Asynchronous operations and user identity are not answered: one operation at a time, and nobody is refused or let
    in for what he says of himself (PS3.7 D.3.3.3, D.3.3.7).

    Parameters
    ----------
    supported
        Presentation contexts that this node accepts of those proposed.
    max_pdu_bytes
        Of the P-DATA-TFs that this node takes.
    """
    results, roles = negotiate_as_acceptor(
        list(request.requested.contexts), list(supported), {**request.roles} or None
    )
    answer = A_ASSOCIATE()
    answer.application_context_name = UID(APPLICATION_CONTEXT)
    answer.calling_ae_title = request.primitive.calling_ae_title
    answer.called_ae_title = request.primitive.called_ae_title
    answer.result, answer.result_source = _ACCEPTED, _BY_USER
    accepted = [context for context in results if context.result == _ACCEPTED]
    answer.presentation_context_definition_results_list = [
        *accepted, *(context for context in results if context.result != _ACCEPTED)
    ]  # fmt: skip
    answer.user_information = [*_own_items(max_pdu_bytes), *roles, *_extended(request.proposed)]
    return bytes(A_ASSOCIATE_AC(answer).encode()), accepted


def reject(rejected: Rejected) -> bytes:
    """Return the A-ASSOCIATE-RJ (PS3.8 9.3.4)."""
    return bytes([0x03, 0, 0, 0, 0, 4, 0, PERMANENT, rejected.source, rejected.diagnostic])


def request(
    contexts: Sequence[PresentationContext], *, calling: str, called: str, max_pdu_bytes: int
) -> tuple[bytes, list[PresentationContext]]:
    """Return an A-ASSOCIATE-RQ, and the presentation contexts that it proposes with their Context IDs.

    Parameters
    ----------
    max_pdu_bytes
        Of the P-DATA-TFs that this node takes.
    """
    proposed = list(contexts)
    for number, context in enumerate(proposed):
        context.context_id = 2 * number + 1
    asked = A_ASSOCIATE()
    asked.application_context_name = UID(APPLICATION_CONTEXT)
    asked.calling_ae_title, asked.called_ae_title = calling, called
    asked.presentation_context_definition_list = proposed
    asked.user_information = _own_items(max_pdu_bytes)
    return bytes(A_ASSOCIATE_RQ(asked).encode()), proposed


def read_accepted(pdu: bytes, proposed: Sequence[PresentationContext]) -> tuple[list[PresentationContext], int]:
    """Decode an A-ASSOCIATE-AC; return the presentation contexts that it accepts, and how long PDUs may be, bytes.

    Raises
    ------
    Exception
        Whatever a malformed one makes pynetdicom stumble over.
    """
    decoded = A_ASSOCIATE_AC()
    decoded.decode(pdu)
    answer: A_ASSOCIATE = decoded.to_primitive()
    items = answer.user_information
    lengths = [item.maximum_length_received for item in items if isinstance(item, MaximumLengthNotification)]
    results = negotiate_as_requestor(list(proposed), answer.presentation_context_definition_results_list)
    return [context for context in results if context.result == _ACCEPTED], int(lengths[0] or 0) if lengths else 0


def _own_items(max_pdu_bytes: int) -> list[Any]:
    length, implementation = MaximumLengthNotification(), ImplementationClassUIDNotification()
    length.maximum_length_received = max_pdu_bytes
    implementation.implementation_class_uid = UID(IMPLEMENTATION_CLASS_UID)
    version = ImplementationVersionNameNotification()
    version.implementation_version_name = implementation_version_name()
    return [length, implementation, version]


def _extended(proposed: Mapping[UID, bytes]) -> list[Any]:
    items = []
    for uid, information in extended_negotiation.answer(proposed).items():
        item = SOPClassExtendedNegotiation()
        item.sop_class_uid = uid
        item.service_class_application_information = information
        items.append(item)
    return items
