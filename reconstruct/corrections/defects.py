"""Words for what of a detector fails: columns, rows, blocks and single pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy  # loads its parts when they are used
from numpy.typing import NDArray

Mask = NDArray[np.bool_]

_LONG, _LONG_PIXELS = 0.4, 8
"""Share of a row or column, and pixels at least, that are masked where it fails: half of it may be on another chip."""

_BLOCK = 4
"""Pixels that touch each other and are no line: fewer are single ones."""


@dataclass(frozen=True)
class Defects:
    """What a mask of pixels consists of.

    Attributes
    ----------
    columns, rows
        Those of which two fifths or more are masked.
    blocks
        Other groups of four pixels or more that touch each other.
    pixels
        All others.
    """

    columns: int
    rows: int
    blocks: int
    pixels: int

    @classmethod
    def of(cls, mask: Mask) -> Defects:
        """Return what a mask, (row, column), consists of."""
        columns, rows = (_long(mask, axis) for axis in (0, 1))
        rest = mask & ~columns[None, :] & ~rows[:, None]
        labels, count = scipy.ndimage.label(rest, np.ones((3, 3), dtype=bool))
        sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:]
        blocks = sizes >= _BLOCK
        return cls(int(columns.sum()), int(rows.sum()), int(blocks.sum()), int(sizes[~blocks].sum()))

    @property
    def together(self) -> bool:
        """Whether there is more than single pixels."""
        return self.columns + self.rows + self.blocks > 0

    def __str__(self) -> str:
        """Return what there is, "1 column, 2 blocks"; "none" where nothing is masked."""
        counts = (
            (self.columns, "column"),
            (self.rows, "row"),
            (self.blocks, "block"),
            (self.pixels, "single pixel" if self.together else "pixel"),
        )
        return ", ".join(f"{n} {name}" + ("s" if n > 1 else "") for n, name in counts if n) or "none"


def _long(mask: Mask, axis: int) -> Mask:
    """Return which lines along an axis are masked over a good part of their length."""
    long: Mask = np.count_nonzero(mask, axis=axis) >= max(_LONG_PIXELS, _LONG * mask.shape[axis])
    return long
