"""What an object says of one of its frames: in its functional groups when it is an enhanced one, else in itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydicom.dataset import Dataset


def functional_group(dataset: Dataset, index: int, keyword: str) -> Dataset | None:
    """Return the functional group `keyword` of frame `index`, from 0, of an enhanced object, or None.

    The frame's own comes before the one that all frames share (PS3.3 C.7.6.16.1).
    """
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or []
    shared = dataset.get("SharedFunctionalGroupsSequence") or []
    for groups in (*per_frame[index : index + 1], *shared[:1]):
        items: Sequence[Dataset] = groups.get(keyword) or []
        if items:
            return items[0]
    return None


def of_frame(dataset: Dataset, index: int, group: str, keyword: str) -> Any:
    """Return the value of `keyword` in the functional group `group` of frame `index`, else in the object itself.

    None where neither has it.
    """
    source = functional_group(dataset, index, group)
    value = None if source is None else source.get(keyword)
    return dataset.get(keyword) if value is None else value
