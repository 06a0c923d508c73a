"""C-FIND: one row an entity, straight from the cursor (PS3.4 C.4.1)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from config.application_entities import Right
from index.views import Whole
from scp.caller import Caller
from scp.contexts import QUERY_RETRIEVE
from scp.messages import Answer, FindRequest
from scp.status import CANCELLED, PENDING, PENDING_WARNING, SUCCESS


def find(seen: Whole, caller: Caller, request: FindRequest) -> Iterator[Answer]:
    """Yield a Pending answer for each match, then the final one.

    FF01 says that a requested key is not supported, FF00 that all are.

    Parameters
    ----------
    seen
        What is stored, as the caller sees it.

    Raises
    ------
    NotAuthorized
        The caller may not query (0124).
    InvalidIdentifier
        The information model does not allow this Identifier (A900).
    """
    caller.require(Right.FIND)
    query = seen.parse(
        request.identifier,
        QUERY_RETRIEVE[request.sop_class_uid].model,
        options=replace(request.options, lenient=caller.lenient),
    )
    pending = PENDING if query.all_supported else PENDING_WARNING
    for identifier in seen.answers(query, edge(caller), request.transfer_syntax_uid):
        if request.cancelled():
            yield Answer(CANCELLED)
            return
        yield Answer(pending, identifier)
    yield Answer(SUCCESS)


def edge(caller: Caller) -> dict[str, str]:
    """Return what only the edge knows: the AE to retrieve from, which is the one that was asked; that it is online."""
    return {"RetrieveAETitle": caller.called, "InstanceAvailability": "ONLINE"}
