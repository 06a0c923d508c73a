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
from reconstruct.scan_quality import ScanPictures, ScanReport

mpl.use("Agg")

Image = NDArray[np.float32]
_BEFORE, _AFTER = "#d1495b", "#33658a"


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


def _window(*images: Image) -> tuple[float, float]:
    low, high = np.percentile(np.concatenate([each[np.isfinite(each)].ravel() for each in images]), (0.5, 99.5))
    return float(low), float(high) if high > low else float(low) + 1.0


def _show(picture: Picture, axes: Axes, shown: Image, title: str, window: tuple[float, float], label: str = "") -> None:
    drawn = axes.imshow(
        shown, cmap="gray", vmin=window[0], vmax=window[1], interpolation="nearest", aspect="auto" if label else "equal"
    )
    axes.set_title(title, fontsize=10)
    axes.set_xticks([])
    axes.set_yticks([])
    if label:
        axes.set_xlabel("column", fontsize=8)
        axes.set_ylabel(label, fontsize=8)
    picture.colorbar(drawn, ax=axes, shrink=0.75).ax.tick_params(labelsize=7)


def _slices(told: ScanPictures) -> Picture:
    """Draw the central slice before and after, what that changed, and the histogram of both."""
    before, after = told.slice_
    picture = Picture(figsize=(13.0, 3.6), layout="constrained")
    axes = picture.subplots(1, 4)
    window = _window(before, after)
    _show(picture, axes[0], before, "without corrections, 1/mm", window)
    _show(picture, axes[1], after, "with corrections, 1/mm", window)
    difference = after - before
    reach = float(np.percentile(np.abs(difference), 99.5)) or 1e-6
    _show(picture, axes[2], difference, "difference, 1/mm", (-reach, reach))
    edges = np.linspace(*window, 120)
    for shown, colour, name in ((before, _BEFORE, "without"), (after, _AFTER, "with corrections")):
        axes[3].hist(shown.ravel(), bins=edges.tolist(), histtype="step", color=colour, label=name)
    axes[3].set_yscale("log")
    axes[3].set_title("voxels by attenuation, 1/mm", fontsize=10)
    axes[3].tick_params(labelsize=7)
    axes[3].legend(fontsize=8, frameon=False)
    return picture


def _views(told: ScanPictures) -> Picture:
    """Draw one view as it was stored, the flat field, and its line integrals before and after."""
    stored = [(name, shown) for name, shown in (("stored view", told.raw), ("mean flat field", told.flat))
              if shown is not None]  # fmt: skip
    picture = Picture(figsize=(13.0, 3.2), layout="constrained")
    axes = picture.subplots(1, 2 + len(stored))
    for axis, (name, shown) in zip(axes, stored, strict=False):
        _show(picture, axis, shown, name, _window(shown))
    window = _window(*told.view)
    for axis, shown, name in zip(axes[len(stored) :], told.view, ("without", "with"), strict=True):
        _show(picture, axis, shown, f"line integrals, {name} corrections", window)
    return picture


def _sinograms(told: ScanPictures) -> Picture:
    """Draw the sinogram of the middle row before and after, and what was taken away."""
    picture = Picture(figsize=(13.0, 3.8), layout="constrained")
    axes = picture.subplots(1, 3)
    window = _window(*told.sinogram)
    for axis, shown, name in zip(axes, told.sinogram, ("without", "with"), strict=False):
        _show(picture, axis, shown, f"sinogram, {name} corrections", window, "view")
    taken = told.sinogram[0] - told.sinogram[1]
    reach = float(np.percentile(np.abs(taken), 99)) or 1e-6
    _show(picture, axes[2], taken, "what was taken away", (-reach, reach), "view")
    return picture


def _detector(told: ScanPictures) -> Picture:
    """Draw the pixels that are replaced and the course of the source."""
    picture = Picture(figsize=(13.0, 3.2), layout="constrained")
    left, right = picture.subplots(1, 2)
    left.imshow(told.unsound > 0, cmap="Greys", vmin=0, vmax=2, interpolation="nearest")
    for kind, colour, name in ((1, _AFTER, "dead in the flat fields"), (2, _BEFORE, "unsteady in the views")):
        rows, columns = np.nonzero(told.unsound == kind)
        left.plot(columns, rows, "s", color=colour, markersize=3, linestyle="none", label=f"{name}: {len(rows)}")
    left.set_title("pixels that are replaced", fontsize=10)
    left.tick_params(labelsize=7)
    left.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=2, frameon=False)
    right.set_title("output of the source, from the air beside the object", fontsize=10)
    right.set_xlabel("view", fontsize=8)
    right.tick_params(labelsize=7)
    if told.drift is None:
        right.text(0.5, 0.5, "no air is seen beside the object", ha="center", va="center", transform=right.transAxes)
    else:
        output = 100 * np.exp(-told.drift)
        right.plot(output, color=_AFTER)
        right.set_ylabel("%", fontsize=8)
        middle = float(np.median(output))
        right.set_ylim(min(output.min(), middle - 1), max(output.max(), middle + 1))
        right.grid(color="#dde3e9")
    return picture


def _page(report: ScanReport, pictures: Mapping[str, Path]) -> str:
    on = ", ".join(f"{name} = {value}" for name, value in report.corrections.items()) or "none"
    advice = "".join(f"<li>{escape(sentence)}</li>" for sentence in report.advice)
    parts = [
        f"<h1>{escape(report.title)}</h1>",
        f"<p class=note>Corrections of the pictures “with”: <code>{escape(on)}</code></p>",
        f"<h2>What to do</h2><ul>{advice}</ul>",
        "<h2>The central slice</h2>",
        image(pictures["slices"]),
        "<h2>A view</h2>",
        image(pictures["views"]),
        "<h2>The middle row</h2><p>A vertical line is a pixel that is off, and makes a ring.</p>",
        image(pictures["sinograms"]),
        "<h2>Detector and source</h2>",
        image(pictures["detector"]),
        "<h2>Figures</h2>",
        table(["", ""], [[name, escape(value)] for name, value in report.facts.items()]),
    ]
    return page_of(report.title, parts)
