"""Which slices of a series are embedded: chosen by what they show, not by their number alone.

Slices are put in order along the normal of their plane. An even pre-selection of them is looked at, which bounds the
work on a long series; those that show next to nothing (the air beyond the head, a frame of noise) are left out, and the
rest is spread evenly over the cumulated content, so that a part of the body gets slices by what there is of it to see.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset

from index.encoders.encoder import Images
from index.encoders.functional_groups import of_frame
from index.encoders.orientation import plane_of

HEADER = (
    "NumberOfFrames",
    "Rows",
    "Columns",
    "BitsAllocated",
    "ImageOrientationPatient",
    "ImagePositionPatient",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
)
"""Attributes that tell the frames of an instance, what each takes of the file, and where they lie."""

_FRAGMENT = 10
"""Bytes of the smallest fragment of compressed pixels: tag, length, and two of content."""

_DEFLATED = 1032
"""How much longer what was deflated can be (zlib's limit)."""

LOOKED_AT = 4
"""Slices looked at for each one that is embedded."""

_CELLS = 32
"""Content is measured on a grid of so many cells along a side: noise averages out in a cell."""

_FOREGROUND = 0.1
"""Grey from which a cell shows something; air, background and lung tissue alone are darker."""

_EMPTY = 0.05
"""A slice with less than this share of the largest content of its series is empty."""

_SAME_PLANE = 0.999
"""Cosine of the normals of slices of one stack."""


@dataclass(frozen=True)
class Place:
    """A frame of a series.

    Attributes
    ----------
    instance
        Index of its instance in the series.
    number
        Frame number, from 1.
    normal
        Of its plane, in patient coordinates; None when it does not say.
    position_mm
        Along that normal.
    """

    instance: int
    number: int
    normal: tuple[float, float, float] | None = None
    position_mm: float = 0.0


def spread(count: int, most: int) -> list[int]:
    """Return at most `most` indices of 0 … `count` − 1, evenly spread and clear of both ends."""
    if count <= most:
        return list(range(count))
    return [int((index + 0.5) * count / most) for index in range(most)]


def no_number(header: Dataset) -> str:
    """Say in one sentence that Number of Frames is no number."""
    value = header.get_item("NumberOfFrames").value  # as it was read: pydicom converts none that is no number
    text = value.decode("ascii", "replace") if isinstance(value, bytes) else str(value)
    return f"Number of Frames (0028,0008) is {text.strip()[:64]!r}, no number"


def most_frames(header: Dataset, size: int) -> int:
    """Return how many frames a file of `size` bytes can hold at most, by its `HEADER` and meta information."""
    syntax = header.file_meta.TransferSyntaxUID
    if syntax.is_encapsulated:
        return max(1, size // _FRAGMENT)
    bits = int(header.get("Rows") or 1) * int(header.get("Columns") or 1) * int(header.get("BitsAllocated") or 1)
    return max(1, 8 * size * (_DEFLATED if syntax.is_deflated else 1) // max(1, bits))


def places_of(header: Dataset, instance: int) -> list[Place]:
    """Return the frames of one instance, by its `HEADER`.

    Raises
    ------
    ValueError
        Number of Frames is no number.
    """
    count = int(header.get("NumberOfFrames") or 1)
    return [_place(header, instance, number) for number in range(1, count + 1)]


def _place(header: Dataset, instance: int, number: int) -> Place:
    plane = plane_of(header, number - 1)
    try:
        corner = np.asarray(
            of_frame(header, number - 1, "PlanePositionSequence", "ImagePositionPatient"), dtype=np.float64
        )
    except (TypeError, ValueError):
        corner = np.empty(0)
    if plane is None or corner.shape != (3,) or not np.isfinite(corner).all():
        return Place(instance, number)
    x, y, z = (float(value) for value in np.cross(*plane))
    return Place(instance, number, (x, y, z), float(corner @ (x, y, z)))


def in_order(places: Sequence[Place]) -> list[Place]:
    """Return `places` along the normal of their plane, stack after stack (a localizer may have three).

    As they are, that is by Instance Number, when one of them does not say where it lies; so do those at one position.
    """
    stacks: list[npt.NDArray[np.float64]] = []
    keys: list[tuple[int, float]] = []
    for place in places:
        if place.normal is None:
            return list(places)
        normal = np.asarray(place.normal)
        stack = next((index for index, other in enumerate(stacks) if normal @ other > _SAME_PLANE), len(stacks))
        if stack == len(stacks):
            stacks.append(normal)
        keys.append((stack, round(place.position_mm, 3)))
    return [places[index] for index in sorted(range(len(places)), key=keys.__getitem__)]


def contents(images: Images, ranges: Sequence[float]) -> npt.NDArray[np.float64]:
    """Return how much each canonical image of a series shows, axis (n,): 0 to 1.

    The area that is not background, times the square (as energies go) of the share that the image has of the widest
    range of values in the series: a frame of nothing but noise fills its greys, but with a small range.

    Parameters
    ----------
    images
        Axes (n, row, column).
    ranges
        As in `CanonicalFrames`.
    """
    if not len(images):
        return np.empty(0)
    edge = images.shape[1] // _CELLS
    cells = images.reshape(len(images), _CELLS, edge, _CELLS, edge).mean(axis=(2, 4))
    areas = (cells > _FOREGROUND).mean(axis=(1, 2))
    widest = max(ranges)
    return np.asarray(areas * np.square(np.asarray(ranges) / widest) if widest > 0 else np.zeros(len(images)))


def chosen(content: npt.NDArray[np.float64], most: int) -> list[int]:
    """Return at most `most` indices of slices in their order, spread evenly over the cumulated `content`, axis (n,).

    Empty slices are left out, unless all are.
    """
    shown = np.flatnonzero(content > _EMPTY * content.max(initial=0.0))
    if not len(shown):
        return spread(len(content), most)
    if len(shown) <= most:
        return [int(index) for index in shown]
    cumulated = np.cumsum(content[shown])
    wanted = (np.arange(most) + 0.5) / most * cumulated[-1]
    picked = np.searchsorted(cumulated, wanted)
    # A slice with more than its share of the content is wanted twice, and gives the second turn to the next one.
    turns = np.arange(most)
    picked = np.maximum.accumulate(picked - turns) + turns
    picked = np.minimum(picked, len(shown) - most + turns)
    return [int(index) for index in shown[picked]]
