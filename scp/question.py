"""What a request asks similar cases of: which of the two doors it comes through, before the archive is consulted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

from index.references import is_reference
from scp.caller import Caller
from scp.contexts import QUERY_RETRIEVE
from scp.messages import FindRequest, RetrieveRequest
from scp.private_elements import take_block

_REFERENCE_KEYS = ("PatientID", "AccessionNumber", "StudyID", "StudyDescription")


@dataclass(frozen=True)
class Question:
    """What similar cases are asked of.

    Attributes
    ----------
    block
        Values of the private block; empty for a reference.
    references
        Texts with their marks; none for the block. More than one cannot be answered.
    """

    block: dict[str, Any]
    references: tuple[str, ...] = ()


def question(request: FindRequest | RetrieveRequest, caller: Caller) -> Question | None:
    """Return what `request` asks similar cases of, None when it asks for none.

    The private block, and the keys that hold references, are taken out of the Identifier: what remains there are
    ordinary keys.
    """
    block = take_block(request.identifier)
    references: tuple[str, ...] = ()
    if caller.asks_similarity and isinstance(request, FindRequest):
        references = _take_references(request.identifier)
    if block is not None or references or QUERY_RETRIEVE[request.sop_class_uid].similarity:
        return Question(block or {}, references)
    return None


def _take_references(identifier: Dataset) -> tuple[str, ...]:
    """Take the values of all keys that hold a reference out of `identifier`."""
    taken: list[str] = []
    for keyword in _REFERENCE_KEYS:
        value = identifier.get(keyword)
        texts = [str(part or "") for part in (value if isinstance(value, MultiValue) else [value])]
        if any(map(is_reference, texts)):
            setattr(identifier, keyword, None)
            taken.extend(filter(None, texts))
    return tuple(taken)
