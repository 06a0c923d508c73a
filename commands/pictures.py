"""Pictures to look at: projections, slices with the segments over them, a query beside its neighbours.

Arrays come in with the axes ``(z, y, x)`` or ``(view, row, column)``. The pictures show patients as radiologists do:
axial slices from the feet, the patient's left on the right, z upwards in coronal and sagittal planes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from numpy.typing import NDArray

mpl.use("Agg")

SEGMENT_COLOURS = ("#4cc9f0", "#f9c74f", "#f3722c", "#90be6d", "#b5179e", "#4361ee", "#ff8fab", "#43aa8b")
_BACKGROUND = "#101418"
_TEXT = "#e8eaed"
_FRAME = "#f9c74f"


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
    """

    title: str
    image: NDArray[np.floating]
    subtitle: str = ""
    window: tuple[float, float] | None = None
    labels: NDArray[np.integer] | None = None
    region: tuple[int, int, int, int] | None = None
    pixel_aspect: float = 1.0

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
    height = 2.3 * max(picture.height for row in rows for picture in row)
    height += 0.17 * max(picture.subtitle.count("\n") for row in rows for picture in row)
    figure = Figure(
        figsize=(2.3 * columns + 0.4, (height + 0.5) * len(rows) + 0.5 + 0.25 * ((len(legend) + 1) // 2)),
        dpi=110,
        facecolor=_BACKGROUND,
        layout="constrained",
    )
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for number, row in enumerate(rows):
        for column in range(columns):
            axis = axes[number][column]
            _bare(axis)
            if column < len(row):
                _draw(axis, row[column])
        if number < len(row_names):
            axes[number][0].set_ylabel(row_names[number], color=_TEXT, fontsize=9)
    figure.suptitle(title, color=_TEXT, fontsize=12)
    if legend:
        colours = [SEGMENT_COLOURS[number % len(SEGMENT_COLOURS)] for number in range(len(legend))]
        handles = [Patch(color=colour, label=name, alpha=0.8) for colour, name in zip(colours, legend, strict=True)]
        figure.legend(
            handles=handles, loc="outside lower center", ncols=2, fontsize=8, frameon=False, labelcolor=_TEXT
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, facecolor=_BACKGROUND)


def _bare(axis: Axes) -> None:
    axis.set_xticks([])
    axis.set_yticks([])
    axis.set_facecolor(_BACKGROUND)
    for spine in axis.spines.values():
        spine.set_visible(False)


def _draw(axis: Axes, picture: Picture) -> None:
    low, high = picture.window or _percentiles(picture.image)
    shape = picture.pixel_aspect
    axis.imshow(picture.image, cmap="gray", vmin=low, vmax=high, interpolation="nearest", aspect=shape)
    if picture.labels is not None and picture.labels.any():
        highest = int(picture.labels.max())
        colours = [SEGMENT_COLOURS[i % len(SEGMENT_COLOURS)] for i in range(highest)]
        shown = np.ma.masked_equal(picture.labels, 0)
        axis.imshow(
            shown, cmap=ListedColormap(colours), vmin=0.5, vmax=highest + 0.5, alpha=0.6, interpolation="nearest",
            aspect=shape,
        )  # fmt: skip
    if picture.region is not None:
        x, y, width, height = picture.region
        axis.add_patch(
            Rectangle((x - 0.5, y - 0.5), width, height, edgecolor=_FRAME, facecolor="none", linewidth=1.5)
        )
    axis.set_title(picture.title, color=_TEXT, fontsize=8)
    if picture.subtitle:
        axis.set_xlabel(picture.subtitle, color=_TEXT, fontsize=7)


def _percentiles(image: NDArray[np.floating]) -> tuple[float, float]:
    low, high = np.percentile(image, (1.0, 99.5))
    return (float(low), float(high)) if high > low else (float(low), float(low) + 1.0)


def three_planes(
    volume: NDArray[np.floating],
    labels: NDArray[np.integer] | None = None,
    *,
    window: tuple[float, float] | None = None,
    name: str = "",
) -> list[Picture]:
    """Return the axial, coronal and sagittal planes through the middle of the volume ``(z, y, x)``."""
    z, y, x = (size // 2 for size in volume.shape)
    cuts = (("axial", np.s_[z, :, :]), ("coronal", np.s_[::-1, y, :]), ("sagittal", np.s_[::-1, :, x]))
    return [
        Picture(f"{name} {plane}".strip(), volume[cut], window=window, labels=None if labels is None else labels[cut])
        for plane, cut in cuts
    ]
