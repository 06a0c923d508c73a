"""One canonical form for the images of every modality, so that an encoder sees anatomy and not encoding.

A canonical frame is a float32 square, 0 (black, air, padding) to 1: the greys of the image as it is meant to be seen
(`index.encoders.windowing`), turned into the standard view of its plane (`index.encoders.orientation`), in its physical
aspect, centred in the square. How the same anatomy was encoded, in which direction it was scanned and with which pixels
no longer matters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset

from index.decoding import PIXEL_KEYWORDS, Properties, frames, stored_pixels
from index.encoders.encoder import Images
from index.encoders.functional_groups import functional_group
from index.encoders.orientation import turn_of
from index.encoders.slices import spread
from index.encoders.square import to_square
from index.encoders.windowing import Frame, Stored, grey
from index.errors import InvalidIdentifier

VERSION = 2
"""Version of the preprocessing: part of every ModelID, raised whenever a canonical frame would change."""

SIDE = 128
"""Rows and columns of a canonical frame."""


class NoPixels(ValueError):
    """The instance has no image, or none that can be decoded here; the message is a sentence."""


@dataclass(frozen=True)
class Region:
    """A rectangle of stored pixels, before any turn; `x` (column) and `y` (row) of its first pixel count from 0."""

    x: int
    y: int
    width: int
    height: int

    def of(self, frame: Frame) -> Frame:
        """Return that part of `frame`, axes (row, column); raises `InvalidIdentifier` when it is not inside."""
        rows, columns = frame.shape
        fits = 0 <= self.x < self.x + self.width <= columns and 0 <= self.y < self.y + self.height <= rows
        if not fits:
            raise InvalidIdentifier(
                f"a region of {self.width} × {self.height} pixels at ({self.x}, {self.y}) "
                f"is not inside the image of {columns} × {rows}",
                element="QueryRegion",
            )
        return frame[self.y : self.y + self.height, self.x : self.x + self.width]


@dataclass(frozen=True, eq=False)
class CanonicalFrames:
    """Frames of one instance.

    Attributes
    ----------
    numbers
        Frame numbers, from 1; 0 for the frame of a single-frame instance.
    images
        Axes (frame, row, column), 0 to 1.
    ranges
        Of each frame, how much of the modality's unit 0 to 1 stands for: within a series, that of a frame of noise is
        small.
    """

    numbers: tuple[int, ...]
    images: Images
    ranges: tuple[float, ...]


def canonical_frames(
    dataset: Dataset,
    *,
    file: BinaryIO | None = None,
    numbers: Sequence[int] | None = None,
    most: int = 24,
    region: Region | None = None,
    side: int = SIDE,
) -> CanonicalFrames:
    """Bring frames of `dataset` into the canonical form.

    Parameters
    ----------
    dataset
        With its File Meta Information (the decoder needs the transfer syntax). Not changed.
    file
        What `dataset` was read from, when its long values were left there; frames are then read one by one.
    numbers
        Frame numbers, from 1. None: at most `most`, evenly spread over the instance.
    region
        Only this part, windowed like the whole frame and then turned like it.
    side
        Rows and columns of the result.

    Raises
    ------
    NoPixels
        No image in it, or none that can be decoded here.
    InvalidIdentifier
        A frame or a region that the instance does not have.
    """
    if not any(keyword in dataset for keyword in PIXEL_KEYWORDS):
        raise NoPixels(f"{dataset.get('SOPClassUID', 'the instance')} has no pixel data")
    try:
        count = int(dataset.get("NumberOfFrames", 1) or 1)
        indices = _indices(count, numbers, most)
        syntax = str(dataset.file_meta.TransferSyntaxUID)
        decoded = zip(indices, frames(dataset, stored_pixels(dataset, file), syntax, indices=indices), strict=True)
        made = [_canonical(dataset, index, *frame, region, side) for index, frame in decoded]
    except InvalidIdentifier:
        raise
    except Exception as error:  # headers and pixels of strangers make the decoders raise anything
        why = " ".join(str(error).split())
        raise NoPixels(f"the image cannot be decoded: {why}"[:200]) from error
    numbered = tuple(index + 1 if count > 1 else 0 for index in indices)
    return CanonicalFrames(numbered, np.stack([image for image, _ in made]), tuple(extent for _, extent in made))


def _indices(count: int, numbers: Sequence[int] | None, most: int) -> list[int]:
    if numbers is None:
        return spread(count, most)
    indices = sorted({number - 1 for number in numbers})
    if not indices or indices[0] < 0 or indices[-1] >= count:
        raise InvalidIdentifier(f"frames {list(numbers)} asked of an instance of {count}", element="QueryFrameNumber")
    return indices


def _canonical(
    dataset: Dataset, index: int, stored: Stored, properties: Properties, region: Region | None, side: int
) -> tuple[npt.NDArray[np.float32], float]:
    photometric = str(properties.get("photometric_interpretation", "MONOCHROME2"))
    seen = grey(dataset, index, stored, photometric)
    values = seen.values if region is None else region.of(seen.values)
    turn = turn_of(dataset, index)
    aspect = pixel_aspect(dataset, index)
    return to_square(turn.of(values), side, pixel_aspect=1.0 / aspect if turn.transpose else aspect), seen.range


def pixel_aspect(dataset: Dataset, index: int) -> float:
    """Return height over width of a pixel of frame `index`, from 0; 1.0 when the instance does not say.

    Spacing in the patient comes first, then that on the detector, then the bare ratio (PS3.3 10.7.1.3, C.7.6.3.1.7).
    """
    measures = functional_group(dataset, index, "PixelMeasuresSequence") or dataset
    for source, keyword in (
        (measures, "PixelSpacing"),
        (dataset, "PixelSpacing"),
        (dataset, "ImagerPixelSpacing"),
        (dataset, "PixelAspectRatio"),
    ):
        pair = source.get(keyword)
        if pair is not None and len(pair) == 2 and min(map(float, pair)) > 0:
            return float(pair[0]) / float(pair[1])
    return 1.0
