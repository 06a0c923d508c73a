"""What a request asks similar cases of: which of the two doors it comes through, before the archive is consulted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

from index.references import is_reference
from scp.caller import Caller
from scp.contexts import QUERY_RETRIEVE
from scp.messages import FindRequest, RetrieveRequest
from scp.private_elements import take_block

_REFERENCE_KEYS = ("PatientID", "AccessionNumber", "StudyID", "StudyDescription")
_ABOUT_THE_REQUEST = ("QueryRetrieveLevel", "SpecificCharacterSet")


@dataclass(frozen=True)
class Typed:
    """A reference, and the keyword of the key that it was typed into."""

    keyword: str
    text: str


@dataclass(frozen=True)
class Question:
    """What similar cases are asked of.

    Attributes
    ----------
    block
        Values of the private block.
    references
        References in ordinary keys. More than one cannot be answered.
    is_private
        The answers bear the private block: it was in the request, or its SOP class is the node's own.
    about_sent
        When neither says what is asked about, it is what the caller has sent.
    """

    block: dict[str, Any] = field(default_factory=dict)
    references: tuple[Typed, ...] = ()
    is_private: bool = False
    about_sent: bool = False

    @property
    def names_something(self) -> bool:
        """Whether the private block says what is asked about."""
        return any(keyword.startswith("Query") for keyword in self.block)

    def __str__(self) -> str:
        values = (f"{keyword}={value!s:.80}" for keyword, value in self.block.items())
        told = ", ".join([*(reference.text for reference in self.references), *values])
        return told or "what it sent"


def question(
    request: FindRequest | RetrieveRequest, caller: Caller, has_sent: Callable[[], bool]
) -> Question | None:
    """Return what `request` asks similar cases of, None when it asks for none.

    The private block, and the keys that hold references, are taken out of the Identifier: what remains there are
    ordinary keys.

    Parameters
    ----------
    has_sent
        Whether the caller has sent an image to ask about: then a query without any value asks about that.
    """
    block = take_block(request.identifier)
    references: tuple[Typed, ...] = ()
    is_query = caller.asks_similarity and isinstance(request, FindRequest)
    if is_query:
        references = _take_references(request.identifier)
    is_private = block is not None or QUERY_RETRIEVE[request.sop_class_uid].similarity
    if is_private or references:
        return Question(block or {}, references, is_private=is_private, about_sent=caller.asks_similarity)
    if is_query and _is_blank(request.identifier) and has_sent():
        return Question(about_sent=True)
    return None


def _take_references(identifier: Dataset) -> tuple[Typed, ...]:
    """Take the values of all keys that hold a reference out of `identifier`."""
    taken: list[Typed] = []
    for keyword in _REFERENCE_KEYS:
        value = identifier.get(keyword)
        texts = [str(part or "") for part in (value if isinstance(value, MultiValue) else [value])]
        if any(map(is_reference, texts)):
            setattr(identifier, keyword, None)
            taken.extend(Typed(keyword, text) for text in texts if text)
    return tuple(taken)


def _is_blank(identifier: Dataset) -> bool:
    """Whether no key has a value, universal ones (``*``) aside; the patient level is never asked for similar ones."""
    if str(identifier.get("QueryRetrieveLevel", "") or "").strip().upper() == "PATIENT":
        return False
    return not any(
        element.keyword not in _ABOUT_THE_REQUEST and _has_value(element.value) for element in identifier
    )


def _has_value(value: Any) -> bool:
    if isinstance(value, Dataset):
        return any(_has_value(element.value) for element in value)
    if isinstance(value, str | bytes) or value is None:
        text = value.decode("latin-1") if isinstance(value, bytes) else value or ""
        return bool(text.strip(" \0*"))
    if hasattr(value, "__iter__") and not hasattr(value, "original_string"):
        return any(map(_has_value, value))
    return bool(str(value).strip(" \0*"))
