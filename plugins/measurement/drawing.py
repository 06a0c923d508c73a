"""The key picture as pixels, drawn with matplotlib. Imported when a picture is drawn, not before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import matplotlib as mpl
import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from plugins.measurement.planes import Plane

_BACKGROUND, _TEXT, _QUIET = "#000000", "#f1f3f4", "#9aa0a6"
_DPI = 100
_MARGIN, _GAP = 0.012, 0.012
_HEADER_PX, _ROW_PX, _FOOTER_PX = 58, 26, 34
_FILL = 0.2
_OUTLINE = [patheffects.withStroke(linewidth=2.5, foreground="black")]
_FONT = {"font.family": "DejaVu Sans", "text.parse_math": False}
_LINES_OF_ONE_COLUMN = 5
_TABLE_PX, _VOLUME_AT = 640, 0.66


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
    per_mm = width * (1 - 2 * _MARGIN - _GAP * (len(planes) - 1)) / sum(plane.size_mm[1] for plane in planes)
    tallest = max(plane.size_mm[0] for plane in planes)
    per_mm = min(per_mm, 0.8 * width / tallest)
    lines = -(-len(legend) // _columns(legend))
    below = _ROW_PX * (lines + 1) + _FOOTER_PX
    height = round(_HEADER_PX + per_mm * tallest + below)
    with mpl.rc_context(_FONT):
        figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI, facecolor=_BACKGROUND)
        canvas = FigureCanvasAgg(figure)
        _header(figure, title, subtitle, height)
        _planes(figure, planes, {entry.number: entry.colour for entry in legend}, window, per_mm)
        _legend(figure, legend, width, height, lines)
        canvas.draw()
        return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _header(figure: Figure, title: str, subtitle: str, height: int) -> None:
    figure.text(_MARGIN, 1 - 14 / height, title, color=_TEXT, fontsize=13, weight="bold", va="top")
    figure.text(_MARGIN, 1 - 37 / height, subtitle, color=_QUIET, fontsize=9.5, va="top")


def _planes(
    figure: Figure, planes: Sequence[Plane], colours: dict[int, str], window: tuple[float, float], per_mm: float
) -> None:
    width, height = (figure.get_size_inches() * _DPI).tolist()
    free = 1 - 2 * _MARGIN - sum(plane.size_mm[1] for plane in planes) * per_mm / width
    gap = free / (len(planes) - 1) if len(planes) > 1 else 0.0
    left, tallest = _MARGIN, max(plane.size_mm[0] for plane in planes)
    bar = _bar_mm(min(plane.size_mm[1] for plane in planes))
    for plane in planes:
        tall, wide = (size * per_mm for size in plane.size_mm)
        top = _HEADER_PX + (tallest * per_mm - tall) / 2
        axis = figure.add_axes((left, 1 - (top + tall) / height, wide / width, tall / height))
        _plane(axis, plane, colours, window, bar)
        left += wide / width + gap


def _plane(axis: Axes, plane: Plane, colours: dict[int, str], window: tuple[float, float], bar_mm: float) -> None:
    tall, wide = plane.size_mm
    axis.imshow(
        plane.image, cmap="gray", vmin=window[0], vmax=window[1], extent=(0, wide, tall, 0), interpolation="bilinear",
        aspect="auto",
    )  # fmt: skip
    for number, mask in plane.masks.items():
        _segment(axis, plane, mask, colours[number])
    axis.set_xlim(0, wide)
    axis.set_ylim(tall, 0)
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_color("#3c4043")
    _cross(axis, plane)
    _sides(axis, plane)
    _scale_bar(axis, bar_mm, plane)


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
    axis.plot((0, wide), (row, row), color=_TEXT, linewidth=0.6, alpha=0.35)
    axis.plot((column, column), (0, tall), color=_TEXT, linewidth=0.6, alpha=0.35)


def _sides(axis: Axes, plane: Plane) -> None:
    left, right, top, bottom = plane.sides
    places = ((0.02, 0.5, left, "left", "center"), (0.98, 0.5, right, "right", "center"),
              (0.5, 0.985, top, "center", "top"), (0.5, 0.015, bottom, "center", "bottom"))  # fmt: skip
    for x, y, letter, horizontal, vertical in places:
        axis.text(
            x, y, letter, transform=axis.transAxes, color=_TEXT, fontsize=11, weight="bold", ha=horizontal, va=vertical,
            path_effects=_OUTLINE,
        )  # fmt: skip
    axis.text(
        0.02, 0.985, plane.name, transform=axis.transAxes, color=_TEXT, fontsize=9.5, va="top", path_effects=_OUTLINE
    )


def _bar_mm(narrowest: float) -> float:
    """Return the longest of 1, 2 and 5 times a power of ten that is at most a quarter of the narrowest plane."""
    power = 10.0 ** np.floor(np.log10(narrowest / 4))
    return float(max(step * power for step in (1, 2, 5) if step * power <= narrowest / 4))


def _scale_bar(axis: Axes, length: float, plane: Plane) -> None:
    tall, wide = plane.size_mm
    right, low = 0.97 * wide, tall - 0.03 * wide
    axis.plot(
        (right - length, right), (low, low), color=_TEXT, linewidth=2.2, solid_capstyle="butt", path_effects=_OUTLINE
    )
    axis.annotate(
        f"{length:g} mm", (right - length / 2, low), (0, 3), textcoords="offset points", color=_TEXT, fontsize=8.5,
        ha="center", va="bottom", path_effects=_OUTLINE,
    )  # fmt: skip


def _legend(figure: Figure, legend: Sequence[Entry], width: int, height: int, lines: int) -> None:
    """Write the legend as a table, column below column; the numbers stand under their headings."""
    wide = (1 - 2 * _MARGIN) * width / _columns(legend)

    def write(x: float, y: float, text: str, colour: str, align: Literal["left", "right"]) -> None:
        figure.text(x / width, y / height, text, color=colour, fontsize=9.5, va="center", ha=align)

    for place, entry in enumerate(legend):
        column, line = divmod(place, lines)
        left = _MARGIN * width + column * wide
        volume, spread = left + _VOLUME_AT * _TABLE_PX, left + _TABLE_PX
        y = _FOOTER_PX / 2 + (lines - line - 0.5) * _ROW_PX
        if line == 0:
            write(volume, y + _ROW_PX, "volume", _QUIET, "right")
            write(spread, y + _ROW_PX, "mean ± standard deviation", _QUIET, "right")
        corner, size = (left / width, (y - 7) / height), (14 / width, 14 / height)
        figure.add_artist(Rectangle(corner, *size, facecolor=entry.colour, edgecolor="none"))
        write(left + 24, y, entry.label, _TEXT, "left")
        write(volume, y, entry.volume, _TEXT, "right")
        write(spread, y, entry.spread, _TEXT, "right")


def _columns(legend: Sequence[Entry]) -> int:
    return 1 if len(legend) <= _LINES_OF_ONE_COLUMN else 2
