"""AE titles: what may be one, and the further ones of this node, each with a de-identification profile.

A title is unique among all that the node answers to: ``[scp] aet``, its similarity title, each ``[[ae_titles]]`` and
the similarity title of each view.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

from pydantic import Field, model_validator

from config.sections import AETitle, Section, ae_title

SIMILARITY_SUFFIX = "_SIM"
"""What the second AE title adds to the first (similarity over an ordinary Query/Retrieve model)."""


def short_ae_title(value: str) -> str:
    """Return `value` without padding when its similarity title can be an AE title, too; else raises `ValueError`."""
    title = ae_title(value)
    longest = 16 - len(SIMILARITY_SUFFIX)
    if len(title) > longest:
        raise ValueError(f"at most {longest} characters, so that {SIMILARITY_SUFFIX} fits behind, got {value!r}")
    return title


class Deidentify(StrEnum):
    """When a title de-identifies."""

    INGEST = "ingest"
    """What is stored there, before it is stored."""
    VIEW = "view"
    """What is asked and retrieved there; what is stored stays as it is."""


class AeTitleSettings(Section):
    """One ``[[ae_titles]]``: a further AE title of this node."""

    title: AETitle
    deidentify: Deidentify
    profile: Annotated[str, Field(min_length=1)]

    @model_validator(mode="after")
    def _has_room_for_its_similarity_title(self) -> AeTitleSettings:
        if self.deidentify is Deidentify.VIEW:
            short_ae_title(self.title)
        return self


@dataclass(frozen=True)
class OwnTitle:
    """A title that the node answers to.

    Attributes
    ----------
    deidentify, profile
        None and "" for the node's own two, behind which no profile stands.
    asks_similarity
        A query under it can ask for similar cases by reference.
    """

    title: str
    deidentify: Deidentify | None = None
    profile: str = ""
    asks_similarity: bool = False


def own_titles(aet: str, further: Sequence[AeTitleSettings]) -> dict[str, OwnTitle]:
    """Return every title that a node named `aet` answers to, its own first; raises `ValueError` for one in two ways."""
    titles = [OwnTitle(aet), OwnTitle(aet + SIMILARITY_SUFFIX, asks_similarity=True)]
    for each in further:
        titles.append(OwnTitle(each.title, each.deidentify, each.profile))
        if each.deidentify is Deidentify.VIEW:
            second = each.title + SIMILARITY_SUFFIX
            titles.append(OwnTitle(second, each.deidentify, each.profile, asks_similarity=True))
    found: dict[str, OwnTitle] = {}
    for title in titles:
        if title.title in found:
            raise ValueError(f"this node would answer to the AE title {title.title!r} in two ways")
        found[title.title] = title
    return found


def require_profiles(titles: Iterable[tuple[str, str]], known: Collection[str]) -> None:
    """Raise `ValueError` unless the profile of each (title, profile) is a known one."""
    for title, profile in titles:
        if profile not in known:
            there = ", ".join(sorted(known)) or "none"
            raise ValueError(f"{title}: there is no profile {profile!r} in [[deidentification]], which has: {there}")
