"""Pictures to look at: projections, slices with the segments over them, a query beside its neighbours.

What is shown of a patient comes in as radiologists see it: axial slices from the feet, the patient's left on the right,
z upwards in coronal and sagittal planes (`commands.planes`).
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Patch, Rectangle
from matplotlib.textpath import text_to_path
from numpy.typing import NDArray

mpl.use("Agg")

SEGMENT_COLOURS = ("#56b4e9", "#f0e442", "#d55e00", "#cc79a7", "#0072b2", "#009e73", "#e69f00", "#999999")
"""Told apart by colour-blind people, too (Okabe and Ito 2008)."""

_BACKGROUND = "#101418"
_TEXT = "#e8eaed"
_FRAME = "#f0e442"
_WIDE = 2.3
"""Width of a picture, inches."""
_FILL = 0.45
"""Opacity of segments: the image stays visible below."""
_TIGHT = 0.96
"""Share of the room that text may take: hinting makes some letters wider."""
_BAR_SHARE = 0.3
"""Most that a scale bar takes of the width of its picture."""


@dataclass(frozen=True, eq=False)
class Picture:
    """One image of a sheet.

    Attributes
    ----------
    title, subtitle
        Above and below it.
    image
        (row, column).
    window
        Lowest and highest value shown; None: the 1st and the 99.5th percentile.
    labels
        Segment numbers over the image, (row, column); 0 is shown as the image alone.
    region
        x, y, width and height in pixels of a part to be framed.
    pixel_aspect
        Height over width of a pixel.
    pixel_mm
        Width of a pixel, for a bar that tells the scale; 0 where it is not known.
    """

    title: str
    image: NDArray[np.floating]
    subtitle: str = ""
    window: tuple[float, float] | None = None
    labels: NDArray[np.integer] | None = None
    region: tuple[int, int, int, int] | None = None
    pixel_aspect: float = 1.0
    pixel_mm: float = 0.0

    @property
    def height(self) -> float:
        """As drawn, for a width of 1."""
        rows, columns = self.image.shape
        return float(self.pixel_aspect * rows / columns)


def sheet(
    rows: Sequence[Sequence[Picture]],
    file: Path,
    *,
    title: str,
    row_names: Sequence[str] = (),
    legend: Sequence[str] = (),
) -> None:
    """Write a sheet of pictures as PNG.

    What is longer than there is room for ends in an ellipsis, but the title, which goes on in a second line.

    Parameters
    ----------
    rows
        The pictures, row by row; rows may differ in length.
    row_names
        Written at the left of each row.
    legend
        Names of the segments 1, 2, … in the order of their numbers.
    """
    columns = max(len(row) for row in rows)
    lines = max(len(picture.subtitle.splitlines()) for row in rows for picture in row)
    heights = [_WIDE * max(picture.height for picture in row) for row in rows]
    wide = _WIDE * columns + 0.4
    head = _wrapped(title, wide, 12)
    legend_columns = min(2, columns)
    legend_lines = -(-len(legend) // legend_columns)
    tall = sum(heights) + (0.28 + 0.16 * lines) * len(rows) + 0.2 + 0.2 * len(head) + 0.2 * legend_lines
    with mpl.rc_context({"text.parse_math": False}):  # what others have written may hold any sign
        figure = Figure(figsize=(wide, tall), dpi=110, facecolor=_BACKGROUND, layout="constrained")
        axes = figure.subplots(len(rows), columns, squeeze=False, height_ratios=heights)
        for number, row in enumerate(rows):
            for column in range(columns):
                axis = axes[number][column]
                _bare(axis)
                if column < len(row):
                    _draw(axis, row[column])
            if number < len(row_names):
                name = _shortened(row_names[number], heights[number] + 0.2, 9)
                axes[number][0].set_ylabel(name, color=_TEXT, fontsize=9)
        figure.suptitle("\n".join(head), color=_TEXT, fontsize=12)
        if legend:
            room = wide / legend_columns - 0.6
            handles = [
                Patch(color=SEGMENT_COLOURS[number % len(SEGMENT_COLOURS)], label=_shortened(name, room, 8))
                for number, name in enumerate(legend)
            ]
            figure.legend(
                handles=handles, loc="outside lower center", ncols=legend_columns, fontsize=8, frameon=False,
                labelcolor=_TEXT,
            )  # fmt: skip
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, facecolor=_BACKGROUND)


def _shortened(text: str, inches: float, size: float) -> str:
    """Return the text, each of its lines with an ellipsis where it is wider than that."""
    return "\n".join(_shortened_line(line, inches, size) for line in text.split("\n"))


def _shortened_line(line: str, inches: float, size: float) -> str:
    if _fits(line, inches, size):
        return line
    most = bisect(range(len(line)), False, key=lambda count: not _fits(f"{line[:count]}…", inches, size))
    return f"{line[: max(0, most - 1)].rstrip()}…"


def _wrapped(text: str, inches: float, size: float) -> list[str]:
    """Return the text in lines of at most that width, as long as no word is wider."""
    lines: list[str] = []
    for word in text.split():
        if lines and _fits(f"{lines[-1]} {word}", inches, size):
            lines[-1] += f" {word}"
        else:
            lines.append(_shortened_line(word, inches, size))
    return lines


def _fits(text: str, inches: float, size: float) -> bool:
    points, *_ = text_to_path.get_text_width_height_descent(text, FontProperties(size=size), ismath=False)
    return bool(points <= 72 * _TIGHT * inches)


def _bare(axis: Axes) -> None:
    axis.set_xticks([])
    axis.set_yticks([])
    axis.set_facecolor(_BACKGROUND)
    axis.set_anchor("N")
    for spine in axis.spines.values():
        spine.set_visible(False)


def _draw(axis: Axes, picture: Picture) -> None:
    low, high = picture.window or _percentiles(picture.image)
    shape = picture.pixel_aspect
    axis.imshow(picture.image, cmap="gray", vmin=low, vmax=high, interpolation="nearest", aspect=shape)
    if picture.labels is not None and picture.labels.any():
        _overlay(axis, picture.labels, shape)
    if picture.region is not None:
        x, y, width, height = picture.region
        axis.add_patch(
            Rectangle((x - 0.5, y - 0.5), width, height, edgecolor=_FRAME, facecolor="none", linewidth=1.5)
        )
    if picture.pixel_mm:
        _scale_bar(axis, picture)
    axis.set_title(_shortened(picture.title, _WIDE, 8), color=_TEXT, fontsize=8)
    if picture.subtitle:
        axis.set_xlabel(_shortened(picture.subtitle, _WIDE, 7), color=_TEXT, fontsize=7)


def _overlay(axis: Axes, labels: NDArray[np.integer], shape: float) -> None:
    """Fill segments, and draw the line around each."""
    highest = int(labels.max())
    colours = [SEGMENT_COLOURS[number % len(SEGMENT_COLOURS)] for number in range(highest)]
    axis.imshow(
        np.ma.masked_equal(labels, 0), cmap=ListedColormap(colours), vmin=0.5, vmax=highest + 0.5, alpha=_FILL,
        interpolation="nearest", aspect=shape,
    )  # fmt: skip
    rows, columns = labels.shape
    for number in np.unique(labels[labels > 0]).tolist():
        framed = np.pad((labels == number).astype(float), 1)
        axis.contour(
            np.arange(columns + 2) - 1, np.arange(rows + 2) - 1, framed, levels=[0.5], colors=[colours[number - 1]],
            linewidths=0.7,
        )  # fmt: skip
    axis.set_xlim(-0.5, columns - 0.5)
    axis.set_ylim(rows - 0.5, -0.5)


def _scale_bar(axis: Axes, picture: Picture) -> None:
    rows, columns = picture.image.shape
    length = _longest_step(_BAR_SHARE * columns * picture.pixel_mm)
    right, low = 0.96 * columns, 0.95 * rows
    axis.plot((right - length / picture.pixel_mm, right), (low, low), color=_TEXT, linewidth=1.5)
    axis.text(
        right, low - 0.02 * columns / picture.pixel_aspect, f"{length:g} mm", color=_TEXT, fontsize=6, ha="right",
        va="bottom",
    )  # fmt: skip


def _longest_step(most: float) -> float:
    """Return the largest of 1, 2 and 5 times a power of ten that is at most `most`, above 0."""
    power = 10.0 ** np.floor(np.log10(most))
    return float(max(step * power for step in (1, 2, 5) if step * power <= most))


def _percentiles(image: NDArray[np.floating]) -> tuple[float, float]:
    low, high = np.percentile(image, (1.0, 99.5))
    return (float(low), float(high)) if high > low else (float(low), float(low) + 1.0)
