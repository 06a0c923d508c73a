"""What is known of each frame of an enhanced multi-frame object, gathered from its three levels (PS3.3 C.7.6.16)."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterator, Mapping
from itertools import chain, islice
from typing import Any

from pydicom.dataset import Dataset

from reconstruct.projections import elements

Attributes = Mapping[str, Any]
"""Values by keyword; private ones by the keyword of `elements`."""

MULTI_ENERGY = "MultienergyCTAcquisitionSequence"
"""The one sequence at the top that is kept among the attributes, as its item: what it says of energies nests deeper."""

_GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")


def frame_attributes(dataset: Dataset) -> list[Attributes]:
    """Return the attributes of every frame: its own item first, then the shared item, then the top of the data set.

    Attributes inside the single-item macro sequences are found by their own keyword. A data set without per-frame
    items has as many equal frames as Number of Frames says.
    """
    return _attributes(dataset, None)


def first_attributes(dataset: Dataset) -> Attributes:
    """Return the attributes of the first frame, without reading the others, which may be many."""
    return _attributes(dataset, 1)[0]


def _attributes(dataset: Dataset, count: int | None) -> list[Attributes]:
    """Return the attributes of the first `count` frames, of all for None."""
    top = {
        element.keyword: element.value
        for element in dataset
        if element.VR != "SQ" and element.keyword and element.keyword != "PixelData" and not element.is_empty
    } | elements.read(dataset)
    if dataset.get(MULTI_ENERGY):
        top[MULTI_ENERGY] = dataset[MULTI_ENERGY].value[0]
    shared_items = dataset.get("SharedFunctionalGroupsSequence") or [Dataset()]
    shared = _flat(shared_items[0])
    frames = dataset.get("PerFrameFunctionalGroupsSequence") or []
    if not frames:
        return [ChainMap(shared, top)] * int(dataset.get("NumberOfFrames") or 1)
    return [ChainMap(_flat(item), shared, top) for item in islice(frames, count)]


def has_macro(dataset: Dataset, keyword: str) -> bool:
    """Whether a functional group macro, named by its sequence, stands in the shared or in any per-frame item."""
    return any(keyword in item for group in _GROUPS for item in dataset.get(group) or [])


def private_values(dataset: Dataset, keyword: str) -> Iterator[Any]:
    """Yield the values of a private element at the top, in the shared and in the per-frame items, wherever it stands.

    One that is looked for does not cost the reading of all frames: stop at the first.
    """
    items = (item for group in _GROUPS for item in dataset.get(group) or [])
    for item in chain([dataset], items):
        value = elements.read(item).get(keyword)
        if value is not None:
            yield value


def _flat(item: Dataset) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for element in item:
        if element.VR == "SQ":
            for macro in element.value[:1]:
                values |= {e.keyword: e.value for e in macro if e.VR != "SQ" and e.keyword and not e.is_empty}
                values |= elements.read(macro)
        elif element.keyword and not element.is_empty:
            values[element.keyword] = element.value
    return values | elements.read(item)
