"""The key picture as pixels, drawn with matplotlib. Imported when a picture is drawn, not before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from numpy.typing import NDArray

from plugins.canvas import BACKGROUND, DPI, FONT, QUIET, TEXT, Writer
from plugins.measurement.planes import Plane

_MARGIN_PX, _HEADER_PX, _ROW_PX, _FOOTER_PX = 18, 62, 26, 20
_AROUND_PX = 24
"""Around each plane, for its name, the letters and the scale bar."""
_LEAST_PX = 170
"""Width kept for a plane, however narrow it is."""
_HIGHEST = 0.8
"""Most height of a plane, as a fraction of the width of the picture."""
_FILL = 0.2
_LINES = (5, 24)
"""Most entries of a legend in one column, and in two; beyond there are three."""
_TABLE_PX, _VOLUME_AT, _CHARACTER_PX = 640, 0.62, 7.3


@dataclass(frozen=True)
class Entry:
    """A line of the legend.

    Attributes
    ----------
    colour
        ``#rrggbb``.
    volume, spread
        What was measured, as text.
    """

    number: int
    colour: str
    label: str
    volume: str
    spread: str


def draw(
    planes: Sequence[Plane],
    legend: Sequence[Entry],
    *,
    window: tuple[float, float],
    title: str,
    subtitle: str,
    width: int,
) -> NDArray[np.uint8]:
    """Draw planes of one scale side by side, the segments over them and a legend below.

    Parameters
    ----------
    planes
        As they are to be shown.
    legend
        Every segment, also those that no plane cuts.
    window
        Lowest and highest value shown.
    width
        Of the picture, pixels.

    Returns
    -------
    array
        (row, column, 3) uint8, RGB.
    """
    free = width - 2 * _MARGIN_PX - 2 * _AROUND_PX * len(planes)
    tallest = max(plane.size_mm[0] for plane in planes)
    per_mm = min(free / sum(plane.size_mm[1] for plane in planes), _HIGHEST * width / tallest)
    lines = -(-len(legend) // _columns(legend))
    height = round(_HEADER_PX + per_mm * tallest + 2 * _AROUND_PX + _ROW_PX * (lines + 1) + 2 * _FOOTER_PX)
    with mpl.rc_context(FONT):
        figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor=BACKGROUND)
        canvas = FigureCanvasAgg(figure)
        write = Writer(figure, width, height)
        write(_MARGIN_PX, 22, title, size=13, weight="bold")
        write(_MARGIN_PX, 44, subtitle, colour=QUIET)
        _planes(write, planes, {entry.number: entry.colour for entry in legend}, window, per_mm)
        _legend(write, legend, lines)
        canvas.draw()
        return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _planes(
    write: Writer, planes: Sequence[Plane], colours: dict[int, str], window: tuple[float, float], per_mm: float
) -> None:
    sizes = [(plane.size_mm[0] * per_mm, plane.size_mm[1] * per_mm) for plane in planes]
    slots = [max(wide + 2 * _AROUND_PX, _LEAST_PX) for _, wide in sizes]
    gap = max(0.0, write.width - 2 * _MARGIN_PX - sum(slots)) / max(1, len(planes) - 1)
    tallest = max(tall for tall, _ in sizes)
    bar_mm = _bar_mm(max(plane.size_mm[1] for plane in planes))
    start = float(_MARGIN_PX)
    for plane, (tall, wide), slot in zip(planes, sizes, slots, strict=True):
        left, top = start + (slot - wide) / 2, _HEADER_PX + _AROUND_PX + (tallest - tall) / 2
        _plane(write.figure.add_axes(write.box(left, top, wide, tall)), plane, colours, window)
        _around(write, plane, (left, top, wide, tall))
        _scale_bar(write, bar_mm, bar_mm * per_mm, left + wide, top + tall)
        start += slot + gap


def _plane(axis: Axes, plane: Plane, colours: dict[int, str], window: tuple[float, float]) -> None:
    tall, wide = plane.size_mm
    axis.imshow(
        plane.image, cmap="gray", vmin=window[0], vmax=window[1], extent=(0, wide, tall, 0), interpolation="bilinear",
        aspect="auto",
    )  # fmt: skip
    largest_first = sorted(plane.masks.items(), key=lambda item: -int(item[1].sum()))
    for number, mask in largest_first:
        _segment(axis, plane, mask, colours[number])
    axis.set_xlim(0, wide)
    axis.set_ylim(tall, 0)
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_color("#3c4043")
    _cross(axis, plane)


def _segment(axis: Axes, plane: Plane, mask: NDArray[np.bool_], colour: str) -> None:
    tall, wide = plane.size_mm
    rows, columns = plane.spacing_mm
    overlay = np.zeros((*mask.shape, 4))
    overlay[..., :3] = to_rgb(colour)
    overlay[..., 3] = _FILL * mask
    axis.imshow(overlay, extent=(0, wide, tall, 0), interpolation="nearest", aspect="auto")
    framed = np.pad(mask, 1).astype(float)
    x = (np.arange(framed.shape[1]) - 0.5) * columns
    y = (np.arange(framed.shape[0]) - 0.5) * rows
    axis.contour(x, y, framed, levels=[0.5], colors=[colour], linewidths=1.3)


def _cross(axis: Axes, plane: Plane) -> None:
    tall, wide = plane.size_mm
    row, column = ((place + 0.5) * step for place, step in zip(plane.cross, plane.spacing_mm, strict=True))
    axis.plot((0, wide), (row, row), color=TEXT, linewidth=0.6, alpha=0.35)
    axis.plot((column, column), (0, tall), color=TEXT, linewidth=0.6, alpha=0.35)


def _around(write: Writer, plane: Plane, place: tuple[float, float, float, float]) -> None:
    """Write the plane's name and the letters of its sides around it."""
    (left, top, wide, tall), away = place, _AROUND_PX / 2
    middle, centre = top + tall / 2, left + wide / 2
    at_left, at_right, at_top, at_bottom = plane.sides
    for x, y, letter in (
        (left - away, middle, at_left), (left + wide + away, middle, at_right),
        (centre, top - away, at_top), (centre, top + tall + away, at_bottom),
    ):  # fmt: skip
        write(x, y, letter, size=11, align="center", weight="bold")
    write(left, top - away, plane.name, colour=QUIET)


def _bar_mm(widest: float) -> float:
    """Return the longest of 1, 2 and 5 times a power of ten that is at most a quarter of the widest plane."""
    power = 10.0 ** np.floor(np.log10(widest / 4))
    return float(max(step * power for step in (1, 2, 5) if step * power <= widest / 4))


def _scale_bar(write: Writer, length_mm: float, length: float, right: float, top: float) -> None:
    write.fill(right - length, top + 5, length, 3, TEXT)
    write(right - length / 2, top + 17, f"{length_mm:g} mm", size=8.5, align="center")


def _legend(write: Writer, legend: Sequence[Entry], lines: int) -> None:
    """Write the legend as a table, column below column; the numbers stand under their headings."""
    wide = (write.width - 2 * _MARGIN_PX) / _columns(legend)
    table = min(_TABLE_PX, wide - 2 * _MARGIN_PX)
    first = write.height - _FOOTER_PX - (lines - 0.5) * _ROW_PX
    for place, entry in enumerate(legend):
        column, line = divmod(place, lines)
        left, y = _MARGIN_PX + column * wide, first + line * _ROW_PX
        volume, spread = left + _VOLUME_AT * table, left + table
        if line == 0:
            write(volume, y - _ROW_PX, "volume", colour=QUIET, align="right")
            write(spread, y - _ROW_PX, "mean ± SD", colour=QUIET, align="right")
        write.fill(left, y - 7, 14, 14, entry.colour)
        write(left + 24, y, _shortened(entry.label, int((_VOLUME_AT * table - 100) / _CHARACTER_PX)))
        write(volume, y, entry.volume, align="right")
        write(spread, y, entry.spread, align="right")


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _columns(legend: Sequence[Entry]) -> int:
    return 1 + sum(len(legend) > most for most in _LINES)
