"""What `tharsis similar` asks about, and what the elements of an answer say."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset

from scp.private_elements import CREATOR, ELEMENTS, GROUP


class NoBlock(ValueError):
    """An answer that says nothing of similarity; its text is one sentence."""


@dataclass(frozen=True)
class Asked:
    """What is asked about, as it goes into the private block, into an ordinary key, or to the node as an image.

    Attributes
    ----------
    block
        Elements that name it.
    reference
        Accession number, patient ID or UID that the node looks up; empty for none.
    files
        Images to send.
    """

    block: dict[str, Any]
    reference: str = ""
    files: tuple[Path, ...] = ()

    @property
    def needs_second_title(self) -> bool:
        """Whether only the node's similarity AE understands it."""
        return bool(self.reference or self.files)


def value_of(answer: Dataset, keyword: str) -> Any:
    """Return the value of an element of the private block in `answer`, None when the block is without it.

    Raises
    ------
    NoBlock
        The answer is an ordinary one.
    """
    try:
        block = answer.private_block(GROUP, CREATOR)
    except KeyError as error:
        raise NoBlock(f"answers without the block {CREATOR!r}: this is no similarity AE of such a node") from error
    number = ELEMENTS[keyword].number
    return block[number].value if number in block else None
