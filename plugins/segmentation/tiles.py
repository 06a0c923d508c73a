"""Where the frames of a slide are in its total pixel matrix (PS3.3 C.8.12.14, C.7.6.17)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pydicom.dataset import Dataset

from index.encoders.functional_groups import of_frame
from plugins.node import CannotProceed

Tile = tuple[int, int]
"""Row and column of the first pixel, from 1."""


@dataclass(frozen=True)
class Tiling:
    """A total pixel matrix and its frames.

    Attributes
    ----------
    matrix_yx
        Total rows and columns.
    tiles
        Of each frame.
    channels
        Of each frame of a TILED_FULL segmentation the segment number; None for others.
    """

    matrix_yx: tuple[int, int]
    tiles: tuple[Tile, ...]
    channels: tuple[int | None, ...]


def tiling_of(dataset: Dataset) -> Tiling | None:
    """Return how the frames of an object tile a slide; None for what is no slide.

    Raises
    ------
    CannotProceed
        A slide that does not say where its frames are, or that has them at several depths.
    """
    if not dataset.get("TotalPixelMatrixRows") or not dataset.get("TotalPixelMatrixColumns"):
        return None
    matrix = int(dataset.TotalPixelMatrixRows), int(dataset.TotalPixelMatrixColumns)
    if int(dataset.get("TotalPixelMatrixFocalPlanes") or 1) > 1:
        raise CannotProceed(f"expected a slide of one focal plane, got {dataset.TotalPixelMatrixFocalPlanes}")
    if dataset.get("DimensionOrganizationType") == "TILED_FULL":
        from highdicom.spatial import iter_tiled_full_frame_data  # takes its time, and few SEGs are of slides

        try:
            told = [(row, column, channel) for channel, _, column, row, *_ in iter_tiled_full_frame_data(dataset)]
        except (AttributeError, ValueError, IndexError, TypeError) as error:
            raise CannotProceed(f"the slide does not say where its frames are: {error}"[:200]) from error
        return Tiling(matrix, tuple((row, column) for row, column, _ in told), tuple(c for *_, c in told))
    frames = range(int(dataset.get("NumberOfFrames") or 1))
    tiles = tuple(_sparse_tile(dataset, index) for index in frames)
    return Tiling(matrix, tiles, (None,) * len(tiles))


def tiling_of_images(headers: Sequence[Dataset]) -> Tiling | None:
    """Return the tiling of one slide image; None for images that are none; raises like `tiling_of`."""
    tilings = [tiling_of(header) for header in headers]
    if all(tiling is None for tiling in tilings):
        return None
    if len(tilings) > 1 or tilings[0] is None:
        raise CannotProceed(f"expected one image of a slide, got {len(tilings)}: they are no stack of slices")
    if len(set(tilings[0].tiles)) < len(tilings[0].tiles):
        raise CannotProceed("expected one frame at each place of the slide, got several (optical paths)")
    return tilings[0]


def _sparse_tile(dataset: Dataset, index: int) -> Tile:
    row = of_frame(dataset, index, "PlanePositionSlideSequence", "RowPositionInTotalImagePixelMatrix")
    column = of_frame(dataset, index, "PlanePositionSlideSequence", "ColumnPositionInTotalImagePixelMatrix")
    if row is None or column is None:
        raise CannotProceed(f"the slide does not say where its frame {index + 1} is")
    return int(row), int(column)
