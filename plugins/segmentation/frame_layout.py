"""Where the frames of a SEG belong: on slices of the source grid when they lie on them, else on planes of their own.

By geometry when both say where they are in one Frame of Reference, by their place in the total pixel matrix on slides,
by the images that the frames say they were derived from otherwise.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from plugins.node import CannotProceed
from plugins.segmentation.planes import Planes, planes_of, step_mm_of
from plugins.segmentation.source_grid import ON_SLICE, SourceGrid
from plugins.segmentation.stored_segments import StoredFrame, StoredSegments
from plugins.segmentation.tiles import tiling_of

_SAME_PLANE_MM = 1e-4


@dataclass(frozen=True, eq=False)
class Layout:
    """Frames on slices.

    Attributes
    ----------
    frames
        Those that have a slice.
    slices
        Of each of `frames`.
    count
        How many slices there are.
    planes
        Where the slices are when they are the SEG's own; None when they are those of the source grid.
    step_mm
        Distance of the planes, when they are the SEG's own.
    notes
        Sentences on what was left out.
    """

    frames: tuple[StoredFrame, ...]
    slices: tuple[int, ...]
    count: int
    planes: Planes | None = None
    step_mm: float = 0.0
    notes: tuple[str, ...] = ()


def layout_of(stored: StoredSegments, grid: SourceGrid) -> Layout:
    """Find the slice of every frame.

    Raises
    ------
    CannotProceed
        The frames have nothing to do with the images, or two of a segment would come to lie on one slice.
    """
    if grid.tiling is not None:
        layout = _by_tile(stored, grid)
    else:
        same = grid.frame_of_reference_uid != "" and (
            stored.dataset.get("FrameOfReferenceUID") == grid.frame_of_reference_uid
        )
        planes = planes_of([(stored.dataset, frame.index) for frame in stored.frames]) if same else None
        if planes is None or grid.planes is None:
            layout = _by_reference(stored, grid)
        else:
            layout = _by_plane(stored, planes, grid)
    if not layout.frames:
        raise CannotProceed("no frame of the segmentation lies on a slice of the images")
    _refuse_twice(layout)
    return layout


def _by_plane(stored: StoredSegments, planes: Planes, grid: SourceGrid) -> Layout:
    frames, planes = _of_one_time(stored.frames, planes, grid)
    found = _slices_of(planes, stored.shape_yx, grid)
    if found is not None:
        on = [(frame, int(number)) for frame, number in zip(frames, found, strict=True) if number >= 0]
        notes = _left_out(len(frames) - len(on), len(frames))
        return Layout(tuple(f for f, _ in on), tuple(n for _, n in on), len(grid.frames), notes=notes)
    distances = planes.distances_mm
    order = np.argsort(distances, kind="stable")
    new = np.diff(distances[order], prepend=-np.inf) > _SAME_PLANE_MM
    numbers = np.empty(len(order), np.int64)
    numbers[order] = np.cumsum(new) - 1
    own = planes.at([int(index) for index in order[new]])
    if np.abs(planes.positions_mm - own.positions_mm[numbers]).max() > _SAME_PLANE_MM:
        raise CannotProceed("frames of the segmentation lie in one plane, but at different places in it")
    step = _step_mm(own, stored, frames[0], grid)
    return Layout(tuple(frames), tuple(int(number) for number in numbers), len(own.positions_mm), own, step)


def _step_mm(own: Planes, stored: StoredSegments, frame: StoredFrame, grid: SourceGrid) -> float:
    """Return how far apart the planes of the SEG are: those without a segment may be left out, so as it says itself.

    What it says counts where all its planes lie at multiples of it.
    """
    told = step_mm_of((stored.dataset, frame.index))
    steps = np.diff(own.distances_mm)
    if not len(steps):
        return told or grid.step_mm or 0.0
    if told is not None and np.abs(steps - np.round(steps / told) * told).max() <= ON_SLICE * told:
        return told
    return float(steps.min())


def _slices_of(planes: Planes, shape_yx: tuple[int, int], grid: SourceGrid) -> NDArray[np.int64] | None:
    """Return the slice of each plane, −1 for planes beyond all slices; None when they do not lie on slices."""
    source = grid.planes
    if source is None or shape_yx != grid.shape_zyx[1:] or not planes.parallel_to(source):
        return None
    growth = np.abs(np.divide(planes.spacing_mm_yx, source.spacing_mm_yx) - 1) * shape_yx
    if growth.max() > ON_SLICE:
        return None
    step = grid.step_mm or min(source.spacing_mm_yx)
    along = planes.positions_mm @ source.normal_xyz
    nearest = np.abs(along[:, None] - source.distances_mm).argmin(axis=1)
    off = planes.positions_mm - source.positions_mm[nearest]
    distance = np.abs(off @ source.normal_xyz) / step
    beyond = distance > 0.5
    aligned = (distance <= ON_SLICE) & (np.abs(source.in_plane(off)).max(axis=1) <= ON_SLICE)
    return np.where(beyond, -1, nearest) if (aligned | beyond).all() else None


def _of_one_time(
    frames: Sequence[StoredFrame], planes: Planes, grid: SourceGrid
) -> tuple[list[StoredFrame], Planes]:
    """Leave out the frames of other images at the same places, say other time points, when the frames tell of them."""
    where = [(frame.segment, *np.round(place, 3)) for frame, place in zip(frames, planes.positions_mm, strict=True)]
    if max(Counter(where).values()) == 1:
        return list(frames), planes
    ours = [index for index, frame in enumerate(frames) if any(source in grid.numbers for source in frame.sources)]
    return ([frames[index] for index in ours], planes.at(ours)) if ours else (list(frames), planes)


def _by_reference(stored: StoredSegments, grid: SourceGrid) -> Layout:
    if stored.shape_yx != grid.shape_zyx[1:]:
        raise CannotProceed(
            f"the segmentation shares no Frame of Reference with the images, and its frames are of another size: "
            f"{_size(stored.shape_yx)} on {_size(grid.shape_zyx[1:])}"
        )
    kept: list[tuple[StoredFrame, int]] = []
    for frame in stored.frames:
        found = {number for source in frame.sources for number in _numbers(source, grid)}
        if len(found) > 1:
            raise CannotProceed(
                f"frame {frame.index + 1} of the segmentation was derived from {len(found)} slices, and does not say "
                "where it lies"
            )
        kept += [(frame, number) for number in found]
    if not kept:
        raise CannotProceed(
            "the segmentation neither shares the Frame of Reference of the images nor refers to any of them"
        )
    notes = _left_out(len(stored.frames) - len(kept), len(stored.frames))
    return Layout(tuple(f for f, _ in kept), tuple(n for _, n in kept), len(grid.frames), notes=notes)


def _numbers(source: tuple[str, int], grid: SourceGrid) -> list[int]:
    if source in grid.numbers:
        return [grid.numbers[source]]
    uid, frame = source
    return [] if frame else [number for number, (other, _) in enumerate(grid.frames) if other == uid]


def _by_tile(stored: StoredSegments, grid: SourceGrid) -> Layout:
    tiling, source = tiling_of(stored.dataset), grid.tiling
    sizes = None if source is None else (source.matrix_yx, grid.shape_zyx[1:])
    if tiling is None or source is None or (tiling.matrix_yx, stored.shape_yx) != sizes:
        raise CannotProceed("the segmentation does not tile the slide as its image does: there is no stack of slices")
    numbers = {tile: number for number, tile in enumerate(source.tiles)}
    missing = [tile for tile in tiling.tiles if tile not in numbers]
    if missing:
        raise CannotProceed(f"the segmentation has a frame at row and column {missing[0]}, where the image has none")
    frames = tuple(
        StoredFrame(frame.index, channel or frame.segment, frame.sources)
        for frame, channel in zip(stored.frames, tiling.channels, strict=True)
    )
    return Layout(frames, tuple(numbers[tile] for tile in tiling.tiles), len(grid.frames))


def _refuse_twice(layout: Layout) -> None:
    (segment, _), times = Counter(
        (frame.segment, number) for frame, number in zip(layout.frames, layout.slices, strict=True)
    ).most_common(1)[0]
    if times > 1:
        what = "the label map" if segment is None else f"segment {segment}"
        raise CannotProceed(f"expected one frame of {what} on a slice, got {times}")


def _left_out(count: int, frames: int) -> tuple[str, ...]:
    return (f"{count} of {frames} frames of the segmentation lie on no slice of the images",) if count else ()


def _size(shape_yx: Sequence[int]) -> str:
    return "×".join(str(length) for length in shape_yx)
