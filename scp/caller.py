"""Who asks: AE titles and address of an association, and what that AE may do."""

from __future__ import annotations

from dataclasses import dataclass

from config.ae_titles import Deidentify
from config.application_entities import Right
from scp.errors import NotAuthorized, NotOffered


@dataclass(frozen=True)
class Caller:
    """The requestor of an association.

    Attributes
    ----------
    title
        Calling AE title.
    called
        The title of this node that it called; the first one where any is accepted.
    address
        Where the connection comes from.
    rights
        What the settings allow this AE.
    asks_similarity
        It called the second AE title, under which a query can ask for similar cases.
    lenient
        The settings want its requests understood where the standard would refuse them.
    private_sop_classes
        It may store objects of SOP classes that no dictionary knows.
    profile
        Name of the de-identification profile through which it sees what is stored; empty: as it is stored.
    deidentify
        What the title that it called de-identifies; None: nothing.
    inbox
        Name of the profile through which what it stores under that title goes; empty: none.
    """

    title: str
    called: str
    address: str
    rights: frozenset[Right]
    asks_similarity: bool = False
    lenient: bool = False
    private_sop_classes: bool = False
    profile: str = ""
    deidentify: Deidentify | None = None
    inbox: str = ""

    def require_archive(self) -> None:
        """Raise `NotOffered` (Status 0122) when it called a title that only takes objects in."""
        if self.deidentify is Deidentify.INGEST:
            raise NotOffered(f"{self.called} takes objects in and answers nothing else: ask another AE title")

    def require(self, right: Right) -> None:
        """Raise `NotAuthorized` (Status 0124) when this AE lacks `right`."""
        if right not in self.rights:
            raise NotAuthorized(f"AE {self.title} lacks the right '{right.value}' on this node", right=right)

    def __str__(self) -> str:
        return f"{self.title}@{self.address}"
