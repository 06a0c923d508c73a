"""The page about a scan's quality: what the detector saw, what the corrections did to it, and figures that tell why."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture
from numpy.typing import NDArray

from commands.training_page import PAGE, image, page_of, table
from plugins.scan_quality.window import window_of
from plugins.scan_quality.words import of_corrections, of_window
from reconstruct.scan_quality import ScanPictures, ScanReport

mpl.use("Agg")

Image = NDArray[np.float32]
_BEFORE, _AFTER = "#d55e00", "#0072b2"
_DIFFERENCE = "RdBu_r"


def write_report(report: ScanReport, folder: Path) -> Path:
    """Write the page and its pictures (PNG) into `folder`, and return the page."""
    folder.mkdir(parents=True, exist_ok=True)
    told = report.pictures
    pictures = {
        "slices": _slices(told),
        "views": _views(told),
        "sinograms": _sinograms(told),
        "detector": _detector(told),
    }
    for name, picture in pictures.items():
        picture.savefig(folder / f"{name}.png", dpi=100)
    page = folder / PAGE
    page.write_text(_page(report, {name: folder / f"{name}.png" for name in pictures}), encoding="utf-8")
    return page


def _show(
    picture: Picture,
    axes: Axes,
    shown: Image,
    title: str,
    window: tuple[float, float],
    *,
    unit: str = "",
    colours: str = "gray",
    sinogram: bool = False,
) -> None:
    drawn = axes.imshow(
        shown, cmap=colours, vmin=window[0], vmax=window[1], interpolation="nearest",
        aspect="auto" if sinogram else "equal",
    )  # fmt: skip
    axes.set_title(title, fontsize=10)
    if sinogram:
        axes.set_xlabel("detector column", fontsize=8)
        axes.set_ylabel("view", fontsize=8)
        axes.tick_params(labelsize=7)
    else:
        axes.set_xticks([])
        axes.set_yticks([])
    bar = picture.colorbar(drawn, ax=axes, shrink=0.75, extend="both")
    bar.ax.tick_params(labelsize=7)
    bar.set_label(unit, fontsize=8)


def _reach(difference: Image, percentile: float) -> tuple[float, float]:
    reach = float(np.percentile(np.abs(difference), percentile)) or 1e-6
    return -reach, reach


def _slices(told: ScanPictures) -> Picture:
    """Draw the central slice before and after in one window, what that changed, and the histogram of both."""
    before, after = told.slice_
    picture = Picture(figsize=(14.0, 3.6), layout="constrained")
    axes = picture.subplots(1, 4, width_ratios=(1.0, 1.0, 1.0, 0.85))
    window = window_of(after, told.in_view)
    _show(picture, axes[0], before, "without corrections", window, unit="attenuation, 1/mm")
    _show(picture, axes[1], after, "with corrections, same window", window, unit="attenuation, 1/mm")
    difference = after - before
    _show(picture, axes[2], difference, "with − without", _reach(difference, 99.5), unit="1/mm", colours=_DIFFERENCE)
    counted = [each[told.in_view] if told.in_view.any() else each.ravel() for each in told.slice_]
    least, most = (float(value) for value in np.percentile(np.concatenate(counted), (0.05, 99.95)))
    edges = np.linspace(least, most, 120).tolist()
    for values, colour, style, name in zip(
        counted, (_BEFORE, _AFTER), ("--", "-"), ("without corrections", "with corrections"), strict=True
    ):
        axes[3].hist(values, bins=edges, histtype="step", color=colour, linestyle=style, label=name)
    axes[3].set_yscale("log")
    axes[3].set_title("voxels in the field of view", fontsize=10)
    axes[3].set_xlabel("attenuation, 1/mm", fontsize=8)
    axes[3].set_ylabel("voxels", fontsize=8)
    axes[3].tick_params(labelsize=7)
    axes[3].legend(fontsize=8, frameon=False)
    return picture


def _views(told: ScanPictures) -> Picture:
    """Draw one view as it was stored, the flat field, and its line integrals before and after."""
    stored = [(name, shown) for name, shown in (("stored view", told.raw), ("mean flat field", told.flat))
              if shown is not None]  # fmt: skip
    rows, columns = told.view[0].shape
    tall = min(4.0, max(1.6, 0.6 + 2.75 * rows / columns))
    picture = Picture(figsize=(3.5 * (2 + len(stored)), tall), layout="constrained")
    axes = picture.subplots(1, 2 + len(stored))
    for axis, (name, shown) in zip(axes, stored, strict=False):
        _show(picture, axis, shown, name, window_of(shown), unit="stored value")
    window = window_of(told.view[1])
    for axis, shown, name in zip(axes[len(stored) :], told.view, ("without", "with"), strict=True):
        _show(picture, axis, shown, f"{name} corrections", window, unit="line integral")
    return picture


def _sinograms(told: ScanPictures) -> Picture:
    """Draw the sinogram of the middle row before and after, and what was taken away."""
    picture = Picture(figsize=(14.0, 3.8), layout="constrained")
    axes = picture.subplots(1, 3)
    window = window_of(told.sinogram[1])
    for axis, shown, name in zip(axes, told.sinogram, ("without", "with"), strict=False):
        _show(picture, axis, shown, f"{name} corrections", window, unit="line integral", sinogram=True)
    taken = told.sinogram[0] - told.sinogram[1]
    _show(
        picture, axes[2], taken, "what was taken away", _reach(taken, 99.0), unit="line integral", colours=_DIFFERENCE,
        sinogram=True,
    )  # fmt: skip
    return picture


def _detector(told: ScanPictures) -> Picture:
    """Draw the pixels that are replaced and the course of the source."""
    picture = Picture(figsize=(13.0, 3.2), layout="constrained")
    left, right = picture.subplots(1, 2)
    left.imshow(told.unsound > 0, cmap="Greys", vmin=0, vmax=2, interpolation="nearest")
    kinds = ((1, _AFTER, "s", "dead in the flat fields"), (2, _BEFORE, "^", "unsteady in the views"))
    for kind, colour, mark, name in kinds:
        rows, columns = np.nonzero(told.unsound == kind)
        left.plot(columns, rows, mark, color=colour, markersize=3, linestyle="none", label=f"{name}: {len(rows)}")
    left.set_title("pixels that are replaced", fontsize=10)
    left.set_xlabel("detector column", fontsize=8)
    left.set_ylabel("detector row", fontsize=8)
    left.tick_params(labelsize=7)
    left.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, frameon=False)
    right.set_title("output of the source, from the air beside the object", fontsize=10)
    right.set_xlabel("view", fontsize=8)
    right.tick_params(labelsize=7)
    if told.drift is None:
        right.text(0.5, 0.5, "no air is seen beside the object", ha="center", va="center", transform=right.transAxes)
    else:
        output = 100 * np.exp(-told.drift)
        right.plot(output, color=_AFTER)
        right.set_ylabel("% of that in the flat fields", fontsize=8)
        middle = float(np.median(output))
        right.set_ylim(min(output.min(), middle - 1), max(output.max(), middle + 1))
        right.grid(color="#dde3e9")
    return picture


def _page(report: ScanReport, pictures: Mapping[str, Path]) -> str:
    on = of_corrections(report.corrections)
    window = of_window(window_of(report.pictures.slice_[1], report.pictures.in_view), "1/mm")
    advice = "".join(f"<li>{escape(sentence)}</li>" for sentence in report.advice)
    parts = [
        f"<h1>{escape(report.title)}</h1>",
        f"<p class=note>Corrections of the pictures “with”: <code>{escape(on)}</code></p>",
        f"<h2>What to do</h2><ul>{advice}</ul>",
        "<h2>The central slice</h2>",
        f"<p>Both slices are shown from {window}, a window made for the slice with corrections within the field of "
        "view; what lies beyond it is black or white.</p>",
        image(pictures["slices"]),
        "<h2>A view</h2><p>Both line integrals are shown in one window, too.</p>",
        image(pictures["views"]),
        "<h2>The sinogram of the middle row</h2><p>A vertical line is a pixel that is off, and makes a ring.</p>",
        image(pictures["sinograms"]),
        "<h2>Detector and source</h2>",
        image(pictures["detector"]),
        "<h2>Figures</h2>",
        table(["", ""], [[name, escape(value)] for name, value in report.facts.items()]),
    ]
    return page_of(report.title, parts)
