"""Presentation contexts as pynetdicom wants them (PS3.8 7.1.1, Annex D of PS3.7)."""

from __future__ import annotations

from collections.abc import Sequence

from pydicom.uid import UID
from pynetdicom.association import Association
from pynetdicom.presentation import PresentationContext

from scp.contexts import STORAGE_COMMITMENT, UNCOMPRESSED, Operation, acceptable, is_private, operation_of


def supported_contexts(assoc: Association, *, private: bool = False) -> list[PresentationContext]:
    """The contexts that this node accepts of those proposed: made for each association, since few are ever asked.

    With `private`, SOP classes that no dictionary knows are taken for Storage.
    """
    roles = assoc.requestor.role_selection
    proposed: dict[str, list[str]] = {}
    request = assoc.requestor.primitive
    for context in request.presentation_context_definition_list if request is not None else []:
        syntaxes = proposed.setdefault(str(context.abstract_syntax), [])
        syntaxes.extend(str(syntax) for syntax in context.transfer_syntax if syntax not in syntaxes)
    supported = []
    for uid, syntaxes in proposed.items():
        role = roles.get(UID(uid))
        is_storage = operation_of(uid) is Operation.STORE or (private and is_private(uid))
        if not is_storage and is_private(uid):
            continue
        accepted = acceptable(uid, syntaxes, to_send=is_storage and role is not None and bool(role.scp_role))
        if is_storage or operation_of(uid) is not None:
            # Known, but in none of these transfer syntaxes: the answer is result 4, and not 3 (PS3.8 table 9-18).
            # Who reports on storage commitment opens an association as its SCP (PS3.4 J.3.3.2).
            both = is_storage or uid == STORAGE_COMMITMENT
            supported.append(presentation_context(uid, accepted or UNCOMPRESSED, both_roles=both))
    return supported


def presentation_context(uid: str, syntaxes: Sequence[str], *, both_roles: bool = False) -> PresentationContext:
    """Make a presentation context; with `both_roles` the requestor may ask to be its SCP (PS3.7 D.3.3.4)."""
    context = PresentationContext()
    context.abstract_syntax = UID(uid)
    context.transfer_syntax = list(syntaxes)
    if both_roles:
        context.scu_role = True
        context.scp_role = True
    return context
