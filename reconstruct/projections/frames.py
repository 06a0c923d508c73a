"""Where the pixels of each frame of a scan are, and reading them one by one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.pixels.utils import iter_pixels

from reconstruct.preprocess import saturated_pixels, unroll


class ScanError(Exception):
    """Stored projections that cannot be reconstructed; the message is one sentence that names what is missing."""


_UNREADABLE = (
    AttributeError, ValueError, NotImplementedError, RuntimeError, OSError, EOFError, StopIteration, InvalidDicomError,
)  # fmt: skip
"""What the reading of pixels raises when there are none, or when they are cut off or cannot be decoded."""


@dataclass(frozen=True)
class Frame:
    """Where the pixels of one frame are, and how they become values.

    Attributes
    ----------
    instance
        Part 10 file or data set.
    index
        0-based within the instance.
    slope, intercept
        Rescale: value = slope × stored + intercept.
    duration_ms
        For how long it was exposed; None when not given.
    acquired_s
        When it was taken, s since any fixed moment; None when not given.
    bits_stored
        Bits Stored (0028,0101).
    transposed
        Whether the pixels are stored column by column.
    corrections
        Corrections Applied (0071,xx08): what was done to its pixels already.
    """

    instance: Path | Dataset
    index: int
    slope: float = 1.0
    intercept: float = 0.0
    duration_ms: float | None = None
    bits_stored: int = 16
    transposed: bool = False
    acquired_s: float | None = None
    corrections: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Counter:
    """The frames of one counter of the detector, views in order of acquisition.

    `unattenuated` is I0, what a pixel holds without an object, per view; it serves where there are no flat fields.
    """

    views: tuple[Frame, ...]
    flats: tuple[Frame, ...] = ()
    darks: tuple[Frame, ...] = ()
    unattenuated: tuple[float, ...] = ()


@dataclass(frozen=True, eq=False)
class FrameImages:
    """The same frame of each counter: rescaled values, (counter, row, column), and where the first one is full.

    `rolled` is how many of its pixels had run over, see `preprocess.unroll`.
    """

    values: NDArray[np.float32]
    full: NDArray[np.bool_]
    rolled: int


def read_frames(frames: Sequence[Frame]) -> Iterator[tuple[NDArray[np.float32], NDArray[np.bool_]]]:
    """Yield the rescaled values of each frame, (row, column) float32, and where its pixels are full.

    Raises
    ------
    ScanError
        An instance without pixels, or with pixels that cannot be decoded.
    """
    for _, run in groupby(frames, key=lambda frame: id(frame.instance)):
        group = list(run)
        instance = group[0].instance
        images = iter_pixels(instance, indices=[frame.index for frame in group], raw=True)
        try:
            for frame in group:
                stored = next(images)
                if frame.transposed:
                    stored = stored.T
                full = saturated_pixels(stored, frame.bits_stored)
                values = stored.astype(np.float32)
                values *= np.float32(frame.slope)
                values += np.float32(frame.intercept)
                yield values, full
        except _UNREADABLE as error:
            where = instance.name if isinstance(instance, Path) else instance.get("SOPInstanceUID", "a data set")
            raise ScanError(f"the pixels of {where} cannot be decoded: {error}") from error


def read_together(counters: Sequence[Counter]) -> Iterator[FrameImages]:
    """Yield frame after frame of several counters that have equally many.

    Raises
    ------
    ScanError
        See `read_frames`.
    """
    first = counters[0].views[0]
    full_scale = first.slope * (1 << first.bits_stored)
    for frames in zip(*(read_frames(counter.views) for counter in counters), strict=True):
        stored = np.stack([values for values, _ in frames])
        values = unroll(stored, full_scale)
        yield FrameImages(values, frames[0][1], int(np.count_nonzero(values[0] != stored[0])))
