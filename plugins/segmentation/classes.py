"""Classes of segments: what a label map of many volumes, annotated by many, tells apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.sr.coding import Code

from plugins.segmentation.reading import name_of
from plugins.segmentation.segmenter import Segment
from plugins.segmentation.structure_sets import UNSPECIFIC

LEFT, RIGHT = Code("7771000", "SCT", "Left"), Code("24028007", "SCT", "Right")
_OTHER_SIDE = {LEFT: RIGHT, RIGHT: LEFT}


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
        """Return the class of `segment`."""
        return cls(name_of(segment), segment.category, segment.type, segment.modifiers)

    @property
    def key(self) -> tuple[object, ...]:
        """What is the same for all segments of the class, whatever they call their codes."""
        if self.type in UNSPECIFIC:
            return ("label", self.name)
        return tuple((code.scheme_designator, code.value) for code in (self.type, *self.modifiers))

    @property
    def mirrored_key(self) -> tuple[object, ...]:
        """The key of the class on the other side; its own where it has no side."""
        modifiers = tuple(_OTHER_SIDE.get(code, code) for code in self.modifiers)
        return SegmentClass(self.name, self.category, self.type, modifiers).key

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


def _plain(code: Code) -> list[str]:
    return [code.value, code.scheme_designator, code.meaning]


def mirrored(classes: Sequence[SegmentClass]) -> npt.NDArray[np.int64]:
    """Return class number → that of the class on the other side, axis (256,); numbers count from 1, 0 is background.

    What has no side, or no counterpart among the classes, stays.
    """
    numbers = {each.key: number for number, each in enumerate(classes, start=1)}
    table = np.arange(256, dtype=np.int64)
    for number, each in enumerate(classes, start=1):
        table[number] = numbers.get(each.mirrored_key, number)
    return table
