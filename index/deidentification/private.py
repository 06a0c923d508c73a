"""Which private elements are safe: what the standard lists, and what the object declares so (PS3.15 E.3.10).

What an object declares in Private Data Element Characteristics (0008,0300) beats the table, in both directions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydicom.charset import default_encoding
from pydicom.datadict import private_dictionary_VR
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag, Tag

from index.deidentification import table
from index.deidentification.profile import Action
from index.deidentification.reader import Reader

ANSWERS = "THARSIS SIMILARITY 1.0"
"""Creator of the block in which the similarity query answers: ranks, scores and UIDs."""

_DECLARATIONS = Tag(0x0008, 0x0300)


@dataclass(frozen=True)
class Declaration:
    """What an object says of one private block.

    Attributes
    ----------
    status
        ``SAFE``, ``UNSAFE`` or ``MIXED``.
    safe
        Last bytes of the elements of a mixed block that identify nobody.
    actions
        What is to be done with others, by their last byte: ``D``, ``Z``, ``X`` or ``U``.
    """

    status: str
    safe: frozenset[int] = frozenset()
    actions: Mapping[int, str] = field(default_factory=dict)

    def action(self, element: int) -> Action:
        """Return what is done with the element whose number ends with this byte."""
        if self.status == "SAFE" or (self.status == "MIXED" and element in self.safe):
            return Action.KEEP
        told = self.actions.get(element, "X") if self.status == "MIXED" else "X"
        return Action(told) if told in ("D", "Z", "U") else Action.REMOVE


@dataclass
class Declarations:
    """All that an object declares, by group and creator; and of which blocks something was kept."""

    by_block: Mapping[tuple[int, str], Declaration]
    used: set[tuple[int, str]] = field(default_factory=set)

    @classmethod
    def of(cls, dataset: Dataset) -> Declarations:
        """Read (0008,0300) of an object; items that cannot be read declare nothing."""
        found: dict[tuple[int, str], Declaration] = {}
        reader = Reader(dataset, [default_encoding])
        element = dict(reader.elements()).get(_DECLARATIONS)
        for item in (reader.value(_DECLARATIONS, element) if element is not None else None) or []:
            try:
                group, creator = int(item.PrivateGroupReference), str(item.PrivateCreatorReference).strip()
                found[group, creator] = _declaration(item)
            except (AttributeError, TypeError, ValueError):
                continue
        return cls(found)

    def kept(self) -> DataElement | None:
        """Return (0008,0300) for the declared blocks of which something stays; None when there is none.

        They are safe by then: what was not is gone. It has to be asked for when all else was walked.
        """
        left = []
        for group, creator in self.by_block:
            if (group, creator) in self.used:
                made = Dataset()
                made.PrivateGroupReference, made.PrivateCreatorReference = group, creator
                made.BlockIdentifyingInformationStatus = "SAFE"
                left.append(made)
        return DataElement(_DECLARATIONS, "SQ", left) if left else None


class Blocks:
    """The private blocks of one data set or item.

    Parameters
    ----------
    creators
        By group and block number.
    are_kept
        Whether safe ones stay at all.
    is_answer
        Whether it is a C-FIND answer, in which this node's own block of answers stays.
    """

    def __init__(
        self, creators: Mapping[tuple[int, int], str], declarations: Declarations, *, are_kept: bool, is_answer: bool
    ) -> None:
        self._creators = creators
        self._are_kept = are_kept
        self._is_answer = is_answer
        self._declarations = declarations
        self._kept: set[tuple[int, int]] = set()

    def action(self, tag: BaseTag) -> Action:
        """Return what is done with a private element."""
        creator = self._creators.get((tag.group, tag.element >> 8))
        if self._is_answer and creator == ANSWERS:
            return Action.KEEP
        if not self._are_kept or creator is None:
            return Action.REMOVE
        told = self._declarations.by_block.get((tag.group, creator))
        if told is not None:
            return told.action(tag.element & 0xFF)
        is_listed = (creator, tag.group, tag.element & 0xFF) in table.safe_private()
        return Action.KEEP if is_listed else Action.REMOVE

    def vr(self, tag: BaseTag) -> str:
        """Return the VR that the table or the private dictionaries know; "" when none does."""
        creator = self._creators.get((tag.group, tag.element >> 8), "")
        listed = table.safe_private().get((creator, tag.group, tag.element & 0xFF), "")
        if listed:
            return listed.partition("/")[0]
        try:
            return private_dictionary_VR(tag, creator)
        except KeyError:
            return ""

    def keep(self, tag: BaseTag) -> None:
        """Note that an element stays, and with it its block."""
        block = (tag.group, tag.element >> 8)
        self._kept.add(block)
        self._declarations.used.add((tag.group, self._creators[block]))

    def kept_creators(self) -> Iterator[tuple[BaseTag, str]]:
        """Yield tag and value of the private creators of which an element stays."""
        for group, block in sorted(self._kept):
            yield Tag(group, block), self._creators[group, block]


def _declaration(item: Dataset) -> Declaration:
    actions: dict[int, str] = {}
    for each in item.get("DeidentificationActionSequence") or []:
        action = str(each.get("DeidentificationAction", "X"))
        actions.update({number & 0xFF: action for number in _numbers(each.get("IdentifyingPrivateElements"))})
    safe = frozenset(number & 0xFF for number in _numbers(item.get("NonidentifyingPrivateElements")))
    return Declaration(str(item.BlockIdentifyingInformationStatus).strip(), safe, actions)


def _numbers(value: Any) -> list[int]:
    if value is None or value == "":
        return []
    return [int(part) for part in value] if hasattr(value, "__iter__") else [int(value)]
