"""The look of the pictures that are stored: what is written where on a dark canvas, in pixels from the upper left."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

BACKGROUND, TEXT, QUIET = "#000000", "#f1f3f4", "#9aa0a6"
DPI = 100
FONT = {"font.family": "DejaVu Sans", "text.parse_math": False}


@dataclass(frozen=True, eq=False)
class Writer:
    """Writes on the figure; places in pixels from the left and from the top."""

    figure: Figure
    width: int
    height: int

    def __call__(
        self,
        x: float,
        y: float,
        text: str,
        *,
        colour: str = TEXT,
        size: float = 9.5,
        align: Literal["left", "center", "right"] = "left",
        weight: Literal["normal", "bold"] = "normal",
    ) -> None:
        """Write a line of text, its middle at `y`."""
        place = (x / self.width, 1 - y / self.height)
        self.figure.text(*place, text, color=colour, fontsize=size, ha=align, va="center_baseline", weight=weight)

    def box(self, left: float, top: float, wide: float, tall: float) -> tuple[float, float, float, float]:
        """Return a box as fractions of the figure from its lower left corner: left, bottom, width, height."""
        return left / self.width, 1 - (top + tall) / self.height, wide / self.width, tall / self.height

    def fill(self, left: float, top: float, wide: float, tall: float, colour: str) -> None:
        """Fill a box."""
        x, y, w, h = self.box(left, top, wide, tall)
        self.figure.add_artist(Rectangle((x, y), w, h, facecolor=colour, edgecolor="none"))
