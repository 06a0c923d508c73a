"""SOP Class Extended Negotiation of Query/Retrieve: what is offered, and what is answered (PS3.4 C.5, PS3.7 D.3.3.5).

The Service Class Application Information is one byte for each behaviour, 1 for wanted or supported. A requestor sends
as many bytes as its edition of the standard has; the answer has as many.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydicom.uid import UID

from index.query import BASELINE, QueryOptions
from scp.contexts import QUERY_RETRIEVE, Operation

FIND = ("relational", "combined_date_time", "fuzzy", "timezone")
"""Sub-fields of a C-FIND SOP class in their order (PS3.4 table C.5-1); the next ones, enhanced multi-frame image
conversion among them, are not supported."""

RETRIEVE = ("relational",)
"""Sub-fields of a C-MOVE or C-GET SOP class (PS3.4 tables C.5-2 and C.5-3)."""


def answer(proposed: Mapping[UID, bytes]) -> dict[UID, bytes]:
    """Return the application information to answer with, for each SOP class that has extended behaviour here."""
    return {uid: _supported(uid, told) for uid, told in proposed.items() if uid in QUERY_RETRIEVE and told}


def query_options(sop_class_uid: str, proposed: Mapping[UID, bytes]) -> QueryOptions:
    """Return what `answer` granted to a peer that proposed this for the SOP class."""
    told = next((told for uid, told in proposed.items() if uid == sop_class_uid), b"")
    if sop_class_uid not in QUERY_RETRIEVE or not told:
        return BASELINE
    granted = _supported(sop_class_uid, told)
    return QueryOptions(**{name: bool(byte) for name, byte in zip(_fields(sop_class_uid), granted, strict=False)})


def _fields(sop_class_uid: str) -> tuple[str, ...]:
    return FIND if QUERY_RETRIEVE[sop_class_uid].operation is Operation.FIND else RETRIEVE


def _supported(sop_class_uid: str, told: bytes) -> bytes:
    known = len(_fields(sop_class_uid))
    return bytes(int(byte == 1 and place < known) for place, byte in enumerate(told))
