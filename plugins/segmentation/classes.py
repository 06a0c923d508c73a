"""Classes of segments: what a label map of many volumes, annotated by many, tells apart."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.sr._snomed_dict import mapping
from pydicom.sr.coding import Code

from plugins.segmentation.reading import name_of
from plugins.segmentation.segmenter import Segment
from plugins.segmentation.structure_sets import UNSPECIFIC

LEFT, RIGHT = Code("7771000", "SCT", "Left"), Code("24028007", "SCT", "Right")
_OTHER_SIDE = {LEFT: RIGHT, RIGHT: LEFT}

_SIDE = re.compile(r"(?<![a-z0-9])(left|right|lt|rt|l|r)(?![a-z0-9])", re.IGNORECASE)
"""A side in a name, as in *Left kidney*, *Femur_L*, *lung rt*."""
_OTHER_WORD = {"left": "right", "right": "left", "lt": "rt", "rt": "lt", "l": "r", "r": "l"}


@dataclass(frozen=True)
class SegmentClass:
    """Segments of one type and side; those of a type that says nothing are told apart by their label.

    Attributes
    ----------
    name
        For people, such as *Kidney, Left*.
    """

    name: str
    category: Code
    type: Code
    modifiers: tuple[Code, ...] = ()

    @classmethod
    def of(cls, segment: Segment) -> SegmentClass:
        """Return the class of `segment`; codes of SNOMED RT become those of SNOMED CT (PS3.16 8.1.1)."""
        modifiers = tuple(_in_sct(code) for code in segment.modifiers)
        plain = replace(segment, category=_in_sct(segment.category), type=_in_sct(segment.type), modifiers=modifiers)
        return cls(name_of(plain), plain.category, plain.type, plain.modifiers)

    @property
    def full_name(self) -> str:
        """The name with the code of the type, for classes that have one name and are coded otherwise."""
        return f"{self.name} ({self.type.value}, {self.type.scheme_designator})"

    def is_called(self, names: Collection[str]) -> bool:
        """Whether one of `names`, in lower case, is its own."""
        return self.name.casefold() in names or self.full_name.casefold() in names

    @property
    def key(self) -> tuple[object, ...]:
        """What is the same for all segments of the class, whatever they call their codes."""
        if self.type in UNSPECIFIC:  # the modifiers are in the name
            return ("label", self.name)
        return tuple((code.scheme_designator, code.value) for code in (self.type, *self.modifiers))

    @property
    def has_side(self) -> bool:
        """Whether it lies on one side, by its modifiers or by what it is called."""
        return any(code in _OTHER_SIDE for code in self.modifiers) or _SIDE.search(self.name) is not None

    def is_opposite(self, other: SegmentClass) -> bool:
        """Whether `other` is the same on the other side: by modifiers, or by name where it has a side only there."""
        if self.type not in UNSPECIFIC and any(code in _OTHER_SIDE for code in self.modifiers):
            modifiers = tuple(_OTHER_SIDE.get(code, code) for code in self.modifiers)
            return self.type == other.type and modifiers == other.modifiers
        return self.has_side and _mirrored_name(self.name) == other.name.casefold()

    def to_plain(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {
            "name": self.name,
            "category": _plain(self.category),
            "type": _plain(self.type),
            "modifiers": [_plain(code) for code in self.modifiers],
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> SegmentClass:
        """Return what `to_plain` returned."""
        category, type_ = Code(*plain["category"]), Code(*plain["type"])
        return cls(str(plain["name"]), category, type_, tuple(Code(*code) for code in plain["modifiers"]))


def told_apart(classes: Iterable[SegmentClass]) -> tuple[SegmentClass, ...]:
    """Return classes of different keys by their names, which no two share: the second one has its code in it."""
    found: dict[str, SegmentClass] = {}
    for each in sorted(classes, key=_by_name):
        name = each.full_name if each.name in found else each.name
        found[name] = replace(each, name=name)
    return tuple(found.values())


def _by_name(one: SegmentClass) -> tuple[object, ...]:
    """Those whose name is all that is known of them, and which have to keep it, come first, then SNOMED CT."""
    return one.name.casefold(), one.name, one.type not in UNSPECIFIC, one.type.scheme_designator != "SCT", one.full_name


def _plain(code: Code) -> list[str]:
    return [code.value, code.scheme_designator, code.meaning]


def _in_sct(code: Code) -> Code:
    value = mapping["SRT"].get(code.value) if code.scheme_designator in ("SRT", "SNM3", "99SDM") else None
    return code if value is None else Code(value, "SCT", code.meaning)


def _mirrored_name(name: str) -> str:
    return _SIDE.sub(lambda match: _OTHER_WORD[match[0].lower()], name).casefold()


def mirrored(classes: Sequence[SegmentClass]) -> npt.NDArray[np.int64]:
    """Return class number → that of the class on the other side, axis (256,); numbers count from 1, 0 is background.

    What has no side, or no counterpart among the classes, stays.
    """
    table = np.arange(256, dtype=np.int64)
    for number, each in enumerate(classes, start=1):
        found = [other for other, one in enumerate(classes, start=1) if other != number and each.is_opposite(one)]
        table[number] = found[0] if found else number
    return table


def can_be_mirrored(classes: Sequence[SegmentClass]) -> bool:
    """Whether a mirror image shows classes that are known: whether each class with a side has its counterpart."""
    table = mirrored(classes)
    return all(not each.has_side or table[number] != number for number, each in enumerate(classes, start=1))
