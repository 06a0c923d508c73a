"""Who asks: AE titles and address of an association, and what that AE may do."""

from __future__ import annotations

from dataclasses import dataclass

from config.application_entities import Right
from scp.errors import NotAuthorized


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
    """

    title: str
    called: str
    address: str
    rights: frozenset[Right]
    asks_similarity: bool = False
    lenient: bool = False
    private_sop_classes: bool = False

    def require(self, right: Right) -> None:
        """Raise `NotAuthorized` (Status 0124) when this AE lacks `right`."""
        if right not in self.rights:
            raise NotAuthorized(f"AE {self.title} lacks the right '{right.value}' on this node", right=right)

    def __str__(self) -> str:
        return f"{self.title}@{self.address}"
