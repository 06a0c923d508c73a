"""Rows, columns and blocks of a detector that fail together after the flat fields were taken.

Neighbours in a failing line fail alike, so what tells is not that a pixel differs from them, but how it behaves from
view to view: Vo, Atwood & Drakopoulos (Opt. Express 26 (2018) 28396, algorithm 6) find unresponsive and fluctuating
pixels of a sinogram by its roughness. Here it is compared with both sides beyond a gap, and of many pixels at once. No
object is rougher than it moves and its noise explain, or more opaque and quieter at the same time: fewer photons mean
more noise. And what a full circle of views shows in one place surrounds the axis, and is seen on its other side, too:
the mean over a circle is symmetric about the axis, whatever the object; a defect is not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import scipy  # loads its parts when they are used
from numpy.typing import NDArray

from reconstruct.corrections.sides import beyond_both_sides, has_both_sides

Image = NDArray[np.float32]
Mask = NDArray[np.bool_]

_LINE_GAP, _BLOCK_GAP = 4, 8
"""Lines, and pixels of a block, that may fail side by side, and one more."""

_SEGMENT, _SEGMENTS = 16, 2
"""Pixels of a part of a line that is judged by itself, about, and how many of them in a row make a failing one."""

_SHORTEST = 8
"""Pixels of a line: fewer do not tell."""

_ALIKE = 0.7
"""Share of the pixels of a line that depart as it does."""

_LEAST_ROUGHNESS = 1e-3
"""Change from view to view, as a line integral, below which a pixel may well see nothing but air."""

_ROUGHER, _QUIETER, _TENDENCY = np.log(2.5), np.log(1.3), np.log(1.5)
"""Logarithms of: what roughness of a failing part departs by, of one that is too opaque, and of most of its pixels."""

_OFF = 0.1
"""Line integral by which a failing part is off at least; the rest is left to the ring removal."""

_CORE = np.ones((3, 3), dtype=bool)
"""What a block holds at least."""

_MIRROR, _WIDE_MIRROR, _LEAST_MIRROR = 0.03, 0.1, 3
"""Shares of the columns, and columns at least, by which an image on the other side of the axis may be off.

The wide one where nothing but the image tells that it is an object: the axis may lie elsewhere than told.
"""


@dataclass(frozen=True)
class Axis:
    """Where the axis of rotation is seen in views that go all the way round.

    Attributes
    ----------
    column
        0-based.
    """

    column: float

    def reach(self, columns: int, share: float = _MIRROR) -> int:
        """Return by how many columns an image may be off."""
        return max(_LEAST_MIRROR, round(share * columns))

    def mirrors(self, strength: NDArray[np.floating], share: float = _MIRROR, beyond: float = 0.0) -> Mask:
        """Return which columns depart half as much on the other side, where `beyond` stands beyond the detector."""
        columns = len(strength)
        largest = scipy.ndimage.maximum_filter1d(strength, 2 * self.reach(columns, share) + 1, mode="nearest")
        image = np.rint(2 * self.column - np.arange(columns)).astype(int)
        seen = np.where((image >= 0) & (image < columns), largest[np.clip(image, 0, columns - 1)], beyond)
        mirrored: Mask = seen >= strength / 2
        return mirrored


@dataclass(frozen=True, eq=False)
class Behaviour:
    """How the pixels of a detector behave over the views.

    Attributes
    ----------
    roughness
        Usual departure from the views before and behind, as a line integral, (row, column).
    level
        Mean line integral, (row, column).
    """

    roughness: Image
    level: Image

    def departures(self, axis: int, gap: int) -> tuple[Image, Image]:
        """Return the departures of the logarithm of roughness, and of level, from both sides along an axis."""
        rough = np.log(self.roughness + np.float32(_LEAST_ROUGHNESS))
        return beyond_both_sides(rough, axis, gap), beyond_both_sides(self.level, axis, gap)


def failing_lines(behaviour: Behaviour, axis: Axis, *, deviations: float = 8.0) -> Mask:
    """Return the columns and rows, or long parts of them, that fail, up to five side by side, (row, column).

    Rows that are off by a constant are not among them: layers of an object stay in their rows.

    Parameters
    ----------
    behaviour
        Of the pixels over the views.
    axis
        Where it is seen.
    deviations
        Robust standard deviations by which roughness departs more than that of most lines, besides a factor of 2.5.
    """
    found = np.zeros(behaviour.level.shape, dtype=bool)
    for across in (1, 0):
        rough, opaque = behaviour.departures(across, _LINE_GAP)
        if across == 0:
            rough, opaque = rough.T, opaque.T
        if len(rough) < _SHORTEST:
            continue
        failing = _long(_failing_segments(rough, opaque, axis if across == 1 else None, deviations))
        for part, lines in zip(_parts(len(rough)), failing, strict=True):
            if across == 1:
                found[part] |= lines
            else:
                found[:, part] |= lines[:, None]
    return found


def _parts(length: int) -> Iterator[slice]:
    ends = np.linspace(0, length, max(1, length // _SEGMENT) + 1).round().astype(int)
    return (slice(int(start), int(stop)) for start, stop in pairwise(ends))


def _failing_segments(rough: Image, opaque: Image, axis: Axis | None, deviations: float) -> Mask:
    """Return which parts of the lines fail, (part, line), from departures, (pixel of the line, line).

    Parameters
    ----------
    axis
        None: of lines across it, where an object has no image.
    """
    failing = []
    for part in _parts(len(rough)):
        rougher, more = rough[part], opaque[part]
        score, lift = np.median(rougher, axis=0), np.median(more, axis=0)
        least = max(_ROUGHER, deviations * 1.4826 * float(np.median(np.abs(score))))
        fails = np.zeros(score.shape, dtype=bool)
        for strength, limit, tending in (
            # Half of what a line integral is larger by is noise: the root of one over the photons.
            (score - np.maximum(lift, 0) / 2, least, rougher > _TENDENCY),
            (-score, least, rougher < -_TENDENCY),
            (np.where(score < -_QUIETER, lift, 0), _OFF, (more > _OFF / 2) & (rougher < 0)),
        ):
            kind = (strength > limit) & (tending.mean(axis=0) >= _ALIKE)
            fails |= kind if axis is None else kind & ~axis.mirrors(strength)
        if axis is not None:
            # At the edge of the detector the one side may be where the object is, and the line where it ends.
            between = has_both_sides(len(lift), _LINE_GAP)
            for side in (1, -1):
                kind = between & (side * lift > _OFF) & ((side * more > _OFF / 2).mean(axis=0) >= _ALIKE)
                fails |= kind & ~axis.mirrors(side * lift, _WIDE_MIRROR, np.inf)
        failing.append(fails)
    return np.stack(failing)


def _long(failing: Mask) -> Mask:
    """Return the parts of lines, (part, line), that fail one after the other; a line of one part is long enough.

    A part between two that fail, where an edge of the object hides it, fails, too.
    """
    if len(failing) < _SEGMENTS:
        return failing
    bridged = failing | scipy.ndimage.binary_closing(failing, np.ones((_SEGMENTS + 1, 1), dtype=bool))
    long: Mask = scipy.ndimage.binary_opening(bridged, np.ones((_SEGMENTS, 1), dtype=bool))
    return long


def failing_blocks(behaviour: Behaviour, axis: Axis) -> Mask:
    """Return the blocks of pixels that fail, from 3 × 3 to nine pixels wide, (row, column).

    They depart from both sides in the row and in the column, eleven pixels away and more.

    Parameters
    ----------
    behaviour, axis
        As `failing_lines` takes them.
    """
    (rough, opaque), (rough_in_column, opaque_in_column) = (behaviour.departures(each, _BLOCK_GAP) for each in (1, 0))
    louder, quieter = np.minimum(rough, rough_in_column), -np.maximum(rough, rough_in_column)
    lift, fall = np.minimum(opaque, opaque_in_column), -np.maximum(opaque, opaque_in_column)
    kinds = [
        (louder - np.maximum(lift, 0) / 2 > _ROUGHER, _MIRROR),
        (quieter > _ROUGHER, _MIRROR),
        ((lift > _OFF) & (quieter > _QUIETER), _MIRROR),
    ]
    kinds += [(lift > _OFF, _WIDE_MIRROR), (fall > _OFF, _WIDE_MIRROR)]
    found = np.zeros(lift.shape, dtype=bool)
    rows, columns = (has_both_sides(length, _BLOCK_GAP) for length in lift.shape)
    for departing, share in kinds:
        kind = departing & rows[:, None] & columns
        core = scipy.ndimage.binary_opening(kind, _CORE)
        if core.any():
            found |= _without_image(scipy.ndimage.binary_propagation(core, mask=kind), axis, share)
    return found


def _without_image(blocks: Mask, axis: Axis, share: float) -> Mask:
    """Return the blocks, holes in them filled, that have no image on the other side of the axis."""
    labels, count = scipy.ndimage.label(blocks, _CORE)
    kept = np.zeros(blocks.shape, dtype=bool)
    columns = blocks.shape[1]
    reach = axis.reach(columns, share)
    for number, place in enumerate(scipy.ndimage.find_objects(labels, count), 1):
        rows, across = place
        own = labels[place] == number
        first = round(2 * axis.column) - (across.stop - 1) - reach
        last = round(2 * axis.column) - across.start + reach
        if share == _WIDE_MIRROR and (first < 0 or last >= columns):
            continue  # An image would lie beyond the detector, at least in part.
        image = blocks[rows, max(0, first) : max(0, last + 1)]
        if 2 * np.count_nonzero(image) < np.count_nonzero(own):
            kept[place] |= scipy.ndimage.binary_fill_holes(own)
    return kept
