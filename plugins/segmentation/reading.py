"""Stored annotations back to label maps on the grid of the images that they are about (docs/annotations.md)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import RTStructureSetStorage

from plugins.node import CannotProceed
from plugins.segmentation import structure_sets
from plugins.segmentation.frame_layout import Layout, layout_of
from plugins.segmentation.nearest import neighbours, taken
from plugins.segmentation.packing import MOST_SEGMENTS, LabelMap, Slab, packed
from plugins.segmentation.segmenter import Algorithm, Segment, Segmentation
from plugins.segmentation.source_grid import SourceGrid
from plugins.segmentation.stored_segments import FRACTIONAL, LABELMAP, SEGMENTATIONS, StoredSegments, stored_segments

ANNOTATIONS = SEGMENTATIONS | {RTStructureSetStorage}
"""SOP Classes that `read_segmentation` reads."""

NOT_TOLD = Algorithm("not told", "", None, {})
"""The algorithm of a segmentation none of whose segments says what made it."""

_MOST_VOXELS = 1 << 31
"""Of a label map, which is held in memory."""


@contextmanager
def _malformed_in_a_sentence() -> Iterator[None]:
    """Headers of strangers lack what they must have, and have numbers that are none."""
    try:
        yield
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        why = " ".join(str(error).split())
        raise CannotProceed(f"the annotation is malformed: {why}"[:300]) from error


@dataclass(frozen=True, eq=False)
class Reading:
    """What an annotation says of a grid.

    Attributes
    ----------
    segmentations
        On the grid. Several where segments overlap: each segment is in the first one in which it had room.
    resampled
        Whether it was brought onto the grid by nearest neighbour, rather than voxel by voxel.
    notes
        Sentences for the user on what was resampled or left out.
    """

    segmentations: tuple[Segmentation, ...]
    resampled: bool = False
    notes: tuple[str, ...] = ()


def read_segmentation(dataset: Dataset, grid: SourceGrid, *, threshold: float = 0.5) -> Reading:
    """Read a SEG of any kind, or an RTSTRUCT, on the grid of its source images.

    Parameters
    ----------
    dataset
        The whole object, with File Meta Information.
    grid
        The slices that are asked about; they may be more or fewer than the object knows.
    threshold
        Probability or occupancy from which on a voxel of a FRACTIONAL SEG belongs to its segment.

    Raises
    ------
    CannotProceed
        The object cannot be read, or has nothing to do with these images.
    """
    _refuse_too_large(grid)
    with _malformed_in_a_sentence():
        if dataset.get("SOPClassUID") == RTStructureSetStorage:
            maps, notes = structure_sets.label_maps(dataset, grid)
            return Reading(_segmentations(maps), notes=notes)
        return _read(stored_segments(dataset), grid, threshold)


def _read(stored: StoredSegments, grid: SourceGrid, threshold: float) -> Reading:
    layout = layout_of(stored, grid)
    shape = (layout.count, *stored.shape_yx)
    if stored.kind == LABELMAP:
        maps = _split(stored, layout, shape)
    else:
        maps = packed(shape, _masks(stored, layout, threshold))
    stacks, exact = _on_grid([one.labels for one in maps], layout, grid)
    maps = [LabelMap(labels, one.segments) for labels, one in zip(stacks, maps, strict=True)]
    return Reading(_segmentations(maps), not exact, layout.notes + _resampled(exact))


def fractions(dataset: Dataset, grid: SourceGrid) -> Iterator[tuple[Segment, NDArray[np.float32]]]:
    """Yield the segments of a FRACTIONAL SEG with their probabilities or occupancies ``(z, y, x)``, 0 to 1.

    Raises
    ------
    CannotProceed
        As `read_segmentation`, and for a SEG that is not FRACTIONAL.
    """
    _refuse_too_large(grid)
    with _malformed_in_a_sentence():
        stored = stored_segments(dataset)
        if stored.kind != FRACTIONAL:
            raise CannotProceed(f"expected a FRACTIONAL segmentation, got {stored.kind}")
        layout = layout_of(stored, grid)
    for number, segment in stored.segments.items():
        frames, slices = _of(number, layout)
        stack = np.zeros((layout.count, *stored.shape_yx), np.float32)
        for at, values in zip(slices, stored.fractions(frames), strict=True):
            stack[at] = values
        (placed,), _ = _on_grid([stack], layout, grid)
        yield segment, placed


def name_of(segment: Segment) -> str:
    """Return what to call a class of segments: the meaning of its type with what modifies it, such as *Kidney, Left*.

    Where the type says nothing it is the label with these.
    """
    kind = segment.label if segment.type in structure_sets.UNSPECIFIC else segment.type.meaning
    return ", ".join([kind, *(code.meaning for code in segment.modifiers)])


def _of(number: int, layout: Layout) -> tuple[list[Any], list[int]]:
    both = [pair for pair in zip(layout.frames, layout.slices, strict=True) if pair[0].segment == number]
    return [frame for frame, _ in both], [at for _, at in both]


def _masks(stored: StoredSegments, layout: Layout, threshold: float) -> Iterator[tuple[Segment, list[Slab]]]:
    for number, segment in stored.segments.items():
        frames, slices = _of(number, layout)
        yield segment, list(zip(slices, stored.masks(frames, threshold), strict=True))


def _split(stored: StoredSegments, layout: Layout, shape: tuple[int, int, int]) -> list[LabelMap]:
    """Return a LABELMAP as maps of at most 255 segments."""
    numbers = list(stored.segments)
    parts = [numbers[start : start + MOST_SEGMENTS] for start in range(0, len(numbers), MOST_SEGMENTS)]
    maps = [LabelMap(np.zeros(shape, np.uint8), [stored.segments[number] for number in part]) for part in parts]
    size = max(1 << 16, *(number + 1 for number in (*numbers, *stored.background)))
    tables = np.zeros((len(parts), size), np.uint8)
    known = np.zeros(size, np.bool_)
    known[[*numbers, *stored.background]] = True
    for table, part in zip(tables, parts, strict=True):
        table[part] = np.arange(1, len(part) + 1)
    for at, values in zip(layout.slices, stored.stored_values(layout.frames), strict=True):
        if not known[values].all():
            unknown = int(values[~known[values]].min())
            raise CannotProceed(f"the label map holds the value {unknown}, which is no segment of it")
        for one, table in zip(maps, tables, strict=True):
            one.labels[at] = table[values]
    return maps


def _on_grid(stacks: list[NDArray[Any]], layout: Layout, grid: SourceGrid) -> tuple[list[NDArray[Any]], bool]:
    if layout.planes is None:
        return stacks, True
    placed = [np.zeros(grid.shape_zyx, stack.dtype) for stack in stacks]
    exact, met = True, False
    shape_yx = stacks[0].shape[1:]
    for at, found in enumerate(neighbours(layout.planes, (shape_yx[0], shape_yx[1]), layout.step_mm, grid)):
        exact &= found.exact
        met |= bool((found.at >= 0).any())
        for target, stack in zip(placed, stacks, strict=True):
            target[at] = taken(stack, found.at)
    if not met:
        raise CannotProceed("no frame of the segmentation lies on a slice of the images")
    return placed, exact


def _segmentations(maps: list[LabelMap]) -> tuple[Segmentation, ...]:
    return tuple(
        Segmentation(
            one.labels,
            tuple(one.segments),
            next((segment.algorithm for segment in one.segments if segment.algorithm is not None), NOT_TOLD),
        )
        for one in maps
    )


def _resampled(exact: bool) -> tuple[str, ...]:  # noqa: FBT001
    told = "the segmentation has a grid of its own and was brought onto the images by nearest neighbour"
    return () if exact else (told,)


def _refuse_too_large(grid: SourceGrid) -> None:
    voxels = int(np.prod(grid.shape_zyx, dtype=np.int64))
    if voxels > _MOST_VOXELS:
        raise CannotProceed(f"a label map of {voxels} voxels, at most {_MOST_VOXELS} are read")
