"""Annotations that lack elements or hold nonsense in them are read or refused with a sentence, and nothing else."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag
from stacks import images, multi_frame, random_labels, segmentation, structure_set

from plugins.node import CannotProceed
from plugins.segmentation.reading import read_segmentation
from plugins.segmentation.seg_object import seg_object
from plugins.segmentation.source_grid import source_grid

SHAPE = (3, 12, 10)
SLICES = images(SHAPE)
TRIANGLE = np.array([(2.0, 2.0), (2.0, 8.0), (9.0, 8.0)])
NONSENSE = {"SQ": [Dataset()], "US": 65535, "UL": 1 << 31, "IS": -7, "DS": "9e9", "UI": "1.2", "CS": "X", "OW": b"zz"}

pytestmark = pytest.mark.filterwarnings("ignore")


def seg() -> Dataset:
    return seg_object(segmentation(random_labels(SHAPE, 3, seed=1)), SLICES, recipe="{}")


def contours() -> Dataset:
    return structure_set(SLICES, [("A", [(0, TRIANGLE), (1, TRIANGLE)]), ("B", [(1, TRIANGLE)])])


def elements(dataset: Dataset) -> Iterator[tuple[Dataset, BaseTag]]:
    for element in dataset:
        yield dataset, element.tag
        if element.VR == "SQ":
            for item in element.value:
                yield from elements(item)


def spoilt(original: Dataset, chance: random.Random) -> Dataset:
    """A copy in which one element, anywhere, is missing, empty or nonsense."""
    dataset = copy.deepcopy(original)
    inside, tag = chance.choice([place for place in elements(dataset) if place[1] != 0x00080018])
    element: Any = inside[tag]
    with suppress(ValueError, TypeError):  # pydicom takes no such value: it stays as it was
        match chance.choice(("missing", "empty", "nonsense")):
            case "missing":
                del inside[tag]
            case "empty":
                element.value = [] if element.VR == "SQ" else None
            case _:
                element.value = NONSENSE.get(element.VR, "x")
    return dataset


@pytest.mark.slow
@pytest.mark.parametrize("make", [seg, contours])
def test_spoilt_annotations_are_read_or_refused(make: Any) -> None:
    original, grid, chance = make(), source_grid(SLICES), random.Random(1)
    refused = 0
    for _ in range(150):
        try:
            read_segmentation(spoilt(original, chance), grid)
        except CannotProceed:
            refused += 1
    assert 0 < refused < 150


def test_spoilt_images_make_a_grid_or_are_refused() -> None:
    chance = random.Random(2)
    for original in (SLICES[0], multi_frame(SLICES, (1, 0, 2))):
        for _ in range(100):
            with suppress(CannotProceed):
                source_grid([spoilt(original, chance), *SLICES[1:]])
