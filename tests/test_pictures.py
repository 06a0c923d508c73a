"""Sheets of pictures show what lies in the files, in its shape."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.text import Text
from pydicom.dataset import Dataset

from commands import pictures
from commands.pictures import Picture, sheet
from commands.similar_sheet import _about, _Image, _series_to_show


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


def overlaps(figure: Figure) -> list[tuple[str, str]]:
    """Texts of a figure that lie over each other, and those that are cut at its edges."""
    figure.canvas.draw()
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts]
    found = [
        (one, other)
        for number, (one, box) in enumerate(boxes)
        for other, beside in boxes[:number]
        if min(box.x1, beside.x1) - max(box.x0, beside.x0) > 1 and min(box.y1, beside.y1) - max(box.y0, beside.y0) > 1
    ]
    found += [
        (text, "the edge")
        for text, box in boxes
        if min(box.x0, box.y0) < -1 or box.x1 > figure.bbox.x1 + 1 or box.y1 > figure.bbox.y1 + 1
    ]
    return found


def test_texts_neither_overlap_nor_are_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Figure] = []

    class Kept(Figure):
        def __init__(self, *args: object, **options: object) -> None:
            super().__init__(*args, **options)
            made.append(self)

    monkeypatch.setattr(pictures, "Figure", Kept)
    image = np.zeros((20, 20))
    labels = np.ones((20, 20), np.uint8)
    long = "A description that goes on and on, of $5, and further than anybody would read"
    picture = Picture(long, image, f"{long}\n{long}", labels=labels, pixel_mm=0.2)
    legend = [f"Segment {number}, with a long label as well (−196 to 180 HU)" for number in range(7)]
    for columns in (1, 2, 4):
        row = [picture] * columns
        sheet([row, row], tmp_path / "sheet.png", title=long, row_names=[long, "plaque\nz = 1.2 mm"], legend=legend)
        assert overlaps(made[-1]) == []


def match(modality: str, series: int, instance: int, description: str = "") -> Dataset:
    answer = Dataset()
    answer.Modality, answer.SeriesNumber, answer.InstanceNumber = modality, series, instance
    answer.SeriesInstanceUID, answer.SeriesDescription = f"1.2.{series}", description
    answer.PatientName, answer.StudyDescription = "Phantom^Plaque", "Micro-CT"
    return answer


def test_of_a_scan_its_slices_are_shown_and_not_its_projections() -> None:
    scan = [match("XA", 1, 1), match("OT", 90, 1), match("CT", 101, 2), match("CT", 101, 1), match("CT", 102, 1)]
    assert [(each.SeriesNumber, each.InstanceNumber) for each in _series_to_show(scan)] == [(101, 1), (101, 2)]
    assert [each.SeriesNumber for each in _series_to_show(scan[:1])] == [1], "an angiography has nothing else"


def test_what_is_said_of_an_image_names_its_series() -> None:
    assert _about(_Image(match("CT", 101, 7, "FDK 18-30 keV"))) == "Phantom^Plaque\nMicro-CT\nFDK 18-30 keV, image 7"
