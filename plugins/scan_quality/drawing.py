"""The quality of a scan as one picture: a projection, a sinogram and a slice before and after, and the figures.

Imported when a picture is drawn, not before: matplotlib takes its time.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from plugins.canvas import BACKGROUND, DPI, FONT, QUIET, TEXT, Writer
from plugins.scan_quality.window import window_of
from plugins.scan_quality.words import of_corrections, of_window
from reconstruct.scan_quality import ScanPictures, ScanReport

Image = NDArray[np.float32]

_MARGIN_PX, _GAP_PX, _HEADER_PX, _NAME_PX, _LINE_PX = 20, 24, 74, 24, 19
_DEAD, _UNSTEADY, _CURVE_COLOUR = "#56b4e9", "#f0e442", "#56b4e9"
_FRAME = "#3c4043"
_TEXT_SIZE, _CHARACTER_PX = 9.5, 7.4
_MARK = 2.2
"""Side of a pixel that is replaced, points: it is seen where many pixels of the detector share one of the picture."""
_TICK_PX = 8
"""Half of a number at the axis of the curve."""
_TALLEST_MAP = 0.45
"""Height of the map of pixels, as a fraction of its width."""
_CURVE = 0.13
"""Height of the course of the source, as a fraction of the width."""


@dataclass(frozen=True, eq=False)
class _Row:
    """Before, after and their difference; `tallest` is the most height, as a fraction of the width of the picture.

    `inside` tells which pixels the window is of.
    """

    name: str
    before: Image
    after: Image
    tallest: float
    stretched: bool = False
    unit: str = ""
    inside: NDArray[np.bool_] | None = None

    def size(self, cell: float, width: int) -> tuple[float, float]:
        """Return width and height of each of the three images, pixels."""
        rows, columns = self.before.shape
        if self.stretched:
            return cell, self.tallest * width
        scale = min(cell / columns, self.tallest * width / rows)
        return scale * columns, scale * rows


def draw(report: ScanReport, *, title: str, width: int) -> NDArray[np.uint8]:
    """Return the picture, (row, column, 3) uint8 RGB.

    Parameters
    ----------
    report
        What is told; its own title is left out, for a description of a series may name the patient.
    title
        What is written instead.
    width
        Of the picture, pixels.
    """
    told = report.pictures
    rows = (
        _Row("Projection, line integrals", *told.view, 0.2),
        _Row("Sinogram (vertical lines: rings)", *told.sinogram, 0.12, stretched=True),
        _Row("Central slice", *told.slice_, 0.3, unit="1/mm", inside=told.in_view),
    )
    cell = (width - 2 * _MARGIN_PX - 2 * _GAP_PX) / 3
    lines = list(_lines(report, 2 * cell + _GAP_PX))
    on = _wrapped(f"“After” is with these corrections: {of_corrections(report.corrections)}",
                  int((width - 2 * _MARGIN_PX) / _CHARACTER_PX))  # fmt: skip
    header = _HEADER_PX + _LINE_PX * (len(on) - 1)
    beside = _CURVE * width + _map_height(told, cell) + 2 * _NAME_PX + 3 * _LINE_PX
    images = sum(row.size(cell, width)[1] + _NAME_PX + 10 for row in rows)
    height = round(header + images + max(beside, _LINE_PX * len(lines) + _NAME_PX) + _MARGIN_PX)
    with mpl.rc_context(FONT):
        figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor=BACKGROUND)
        canvas = FigureCanvasAgg(figure)
        write = Writer(figure, width, height)
        write(_MARGIN_PX, 22, title, size=13, weight="bold")
        for number, line in enumerate(on):
            write(_MARGIN_PX, 46 + _LINE_PX * number, line, colour=QUIET)
        top = float(header)
        for row in rows:
            top += _row(write, row, cell, top) + 10
        _text(write, lines, _MARGIN_PX, top)
        _detector(write, told, _MARGIN_PX + 2 * (cell + _GAP_PX), top, cell)
        canvas.draw()
        return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _row(write: Writer, row: _Row, cell: float, top: float) -> float:
    """Draw three images side by side; return the height that they take."""
    wide, tall = row.size(cell, write.width)
    difference = row.after - row.before
    reach = float(np.percentile(np.abs(difference), 99.5))
    window = window_of(row.after, row.inside)
    unit = f" {row.unit}".rstrip()
    shown = (
        (f"{row.name}, before", row.before, window, "gray"),
        (f"after; both {of_window(window, row.unit)}", row.after, window, "gray"),
        (f"after − before, ±{reach:.2g}{unit}" if reach else "no difference", difference, (-reach, reach), "RdBu_r"),
    )
    for place, (name, image, (low, high), colours) in enumerate(shown):
        left = _MARGIN_PX + place * (cell + _GAP_PX)
        size = _TEXT_SIZE * min(1.0, cell / (_CHARACTER_PX * len(name)))
        write(left, top + _NAME_PX / 2, name, colour=QUIET, size=size)
        axis = _axes(write, left + (cell - wide) / 2, top + _NAME_PX, wide, tall)
        if low < high:
            axis.imshow(image, cmap=colours, vmin=low, vmax=high, interpolation="antialiased", aspect="auto")
    return tall + _NAME_PX


def _axes(write: Writer, left: float, top: float, wide: float, tall: float) -> Axes:
    axis = write.figure.add_axes(write.box(left, top, wide, tall), facecolor=BACKGROUND)
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_color(_FRAME)
    return axis


def _lines(report: ScanReport, wide: float) -> Iterator[tuple[str, str]]:
    """Yield the lines of the text, each with its colour: what to do, then the figures."""
    characters = int(wide / _CHARACTER_PX)
    yield "What to do", TEXT
    for sentence in report.advice:
        yield from ((line, _UNSTEADY) for line in _wrapped(f"• {sentence}", characters))
    yield "", TEXT
    yield "Figures", TEXT
    for name, value in report.facts.items():
        yield from ((line, QUIET) for line in _wrapped(f"{name}: {value}", characters))


def _wrapped(text: str, characters: int) -> list[str]:
    return textwrap.wrap(text, characters, subsequent_indent="   ")


def _text(write: Writer, lines: Sequence[tuple[str, str]], left: float, top: float) -> None:
    for number, (line, colour) in enumerate(lines):
        heading = colour == TEXT
        write(left, top + _LINE_PX * (number + 0.7), line, colour=colour, weight="bold" if heading else "normal")


def _map_height(told: ScanPictures, cell: float) -> float:
    rows, columns = told.unsound.shape
    return cell * min(float(rows / columns), _TALLEST_MAP)


def _detector(write: Writer, told: ScanPictures, left: float, top: float, cell: float) -> None:
    """Draw the course of the source, and below it the pixels that are replaced."""
    write(left, top + _NAME_PX / 2, "Output of the source by view, %", colour=QUIET)
    tall = _CURVE * write.width - _TICK_PX
    top += _TICK_PX
    axis = _axes(write, left + 34, top + _NAME_PX, cell - 34, tall)
    if told.drift is None:
        axis.text(0.5, 0.5, "no air is seen beside the object", color=QUIET, fontsize=9, ha="center",
                  transform=axis.transAxes)  # fmt: skip
    else:
        output = 100 * np.exp(-told.drift)
        middle = float(np.median(output))
        axis.plot(output, color=_CURVE_COLOUR, linewidth=1.2)
        axis.set_ylim(min(float(output.min()), middle - 1), max(float(output.max()), middle + 1))
        low, high = axis.get_ylim()
        axis.set_yticks([low, middle, high], [f"{value:.0f}" for value in (low, middle, high)], color=QUIET, fontsize=8)
        axis.tick_params(length=0)
    top += _NAME_PX + tall
    write(left, top + _NAME_PX / 2, "Pixels that are replaced", colour=QUIET)
    height = _map_height(told, cell)
    wide = min(cell, height * told.unsound.shape[1] / told.unsound.shape[0])
    axis = _axes(write, left, top + _NAME_PX, wide, height)
    rows, columns = told.unsound.shape
    for kind, colour in ((1, _DEAD), (2, _UNSTEADY)):
        y, x = np.nonzero(told.unsound == kind)
        axis.plot(x, y, "s", color=colour, markersize=_MARK, markeredgewidth=0)
    axis.set_xlim(-0.5, columns - 0.5)
    axis.set_ylim(rows - 0.5, -0.5)
    dead, unsteady = (int(np.count_nonzero(told.unsound == kind)) for kind in (1, 2))
    top += _NAME_PX + height + _LINE_PX * 0.7
    write(left, top, f"dead in the flat fields: {dead}", colour=_DEAD)
    write(left, top + _LINE_PX, f"unsteady in the views: {unsteady}", colour=_UNSTEADY)
