"""Sheets of pictures show what lies in the files, in its shape."""

from pathlib import Path

import numpy as np
from matplotlib.image import imread

from commands.pictures import Picture, sheet


def drawn(file: Path, pixel_aspect: float) -> tuple[int, int]:
    """Height and width of a bright 20 × 20 image on the sheet, in pixels of the sheet."""
    sheet([[Picture("", np.ones((20, 20)), window=(0.0, 1.0), pixel_aspect=pixel_aspect)]], file, title="")
    bright = imread(file)[:, :, :3].min(axis=2) > 0.95
    rows, columns = np.flatnonzero(bright.sum(axis=1) > 50), np.flatnonzero(bright.sum(axis=0) > 50)
    return int(np.ptp(rows)) + 1, int(np.ptp(columns)) + 1


def test_pixels_that_are_not_square_are_drawn_in_their_shape(tmp_path: Path) -> None:
    for aspect in (0.5, 1.0, 3.0):
        height, width = drawn(tmp_path / "sheet.png", aspect)
        assert abs(height / width - aspect) < 0.05 * aspect
