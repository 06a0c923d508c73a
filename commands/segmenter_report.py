"""The report of a trained segmenter: figures, curves and pictures of held-out slices, on one page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure as Picture
from matplotlib.patches import Patch

from commands.segmenter_judgement import Judgement
from commands.training_page import PAGE, PLAIN_TEXT, curves, facts_of, image, page_of, shortened, table
from index.encoders.learned.loop import Epoch
from index.evaluation import Figure
from plugins.scan_quality.words import of_window
from plugins.segmentation.colours import colour
from plugins.segmentation.learned.examples import Examples
from plugins.segmentation.learned.losses import UNKNOWN

mpl.use("Agg")

_SHOWN_SLICES, _SHOWN_CLASSES = 5, 24
_WINDOW_HU = (-160.0, 240.0)
_OPACITY = 0.55
_SHORT_NAME = 22
"""Most characters of a name, six of which fit beside each other."""

_GREY = (0.62, 0.62, 0.62)


@dataclass(frozen=True, eq=False)
class Report:
    """What the page tells.

    Attributes
    ----------
    model
        Name of the segmenter.
    facts
        What is written beside the weights.
    history
        Every epoch.
    held_out
        What it is judged on.
    """

    model: str
    facts: Mapping[str, Any]
    history: Sequence[Epoch]
    held_out: Examples
    judgement: Judgement


def write_report(report: Report, folder: Path) -> Path:
    """Write the page and its pictures (PNG) into `folder`, and return the page."""
    folder.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(PLAIN_TEXT):
        pictures = {"curves": curves(report.history)}
        if report.judgement.dice:
            pictures |= {"dice": _dice(report.judgement), "slices": _slices(report)}
        for name, picture in pictures.items():
            picture.savefig(folder / f"{name}.png", dpi=110)
    page = folder / PAGE
    page.write_text(_page(report, {name: folder / f"{name}.png" for name in pictures}), encoding="utf-8")
    return page


def _dice(judgement: Judgement) -> Picture:
    """Draw the Dice coefficient of each class, the learned segmenter above the best segment of `classical`."""
    names = sorted(judgement.dice, key=lambda name: judgement.dice[name][0])
    places = np.arange(len(names))
    picture = Picture(figsize=(7.5, 1.4 + 0.26 * len(names)), layout="constrained")
    axes = picture.subplots()
    axes.barh(places + 0.2, [judgement.dice[name][0] for name in names], 0.4, color="#33658a", label="learned")
    axes.barh(
        places - 0.2, [judgement.dice[name][1] for name in names], 0.4, color="#c9a66b", label="classical, best segment"
    )
    shown = [shortened(name, 38) + (" ●" if name in judgement.large else "") for name in names]
    axes.set_yticks(places, shown, fontsize=8)
    axes.set_xlim(0.0, 1.0)
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.set_xlabel("Dice coefficient, held out (● large)")
    axes.grid(axis="x", color="#dde3e9")
    axes.set_axisbelow(True)
    picture.legend(loc="outside upper center", ncols=2, fontsize=8, frameon=False)
    return picture


def _slices(report: Report) -> Picture:
    """Draw some held-out slices: the image, what is annotated, what was learned, and what `classical` says."""
    shown = _shown(report.held_out)
    picture = Picture(figsize=(12.0, 2.45 * len(shown) + 1.1), layout="constrained")
    axes = picture.subplots(len(shown), 4, squeeze=False)
    told = report.judgement
    for line, (volume, at) in zip(axes, shown, strict=True):
        example = report.held_out.volumes[volume]
        grey = _grey(example.values[at])
        maps = (None, _colours(report.held_out), _colours(report.held_out), _classical_colours(told))
        labels = (None, example.truth[at], told.predicted[volume][at], told.classical[volume][at])
        for axis, name, own, palette in zip(
            line, (f"CT, {of_window(_WINDOW_HU, 'HU')}", "annotated", "learned", "classical"), labels, maps, strict=True
        ):
            axis.imshow(grey if own is None or palette is None else _over(grey, own, palette))
            axis.set_title(name if volume == shown[0][0] and at == shown[0][1] else "", fontsize=10)
            axis.set_axis_off()
    palette = _colours(report.held_out)
    numbers = {each.name: number for number, each in enumerate(report.held_out.classes, start=1)}
    named = sorted(told.dice, key=lambda name: name not in told.large)[:_SHOWN_CLASSES]
    patches = [Patch(color=palette[numbers[name]], label=shortened(name, 30)) for name in named]
    columns = 4 if any(len(name) > _SHORT_NAME for name in named) else 6
    picture.legend(handles=patches, loc="outside lower center", ncols=columns, fontsize=7, frameon=False)
    return picture


def _shown(held_out: Examples) -> list[tuple[int, int]]:
    """Return (volume, slice) of slices with many classes, spread over the held-out part."""
    slices = held_out.slices()
    parts = np.array_split(np.arange(len(slices)), min(_SHOWN_SLICES, len(slices)))
    best = []
    for part in parts:
        counts = [len(np.unique(held_out.volumes[slices[row][0]].truth[slices[row][1]])) for row in part]
        best.append(slices[part[int(np.argmax(counts))]])
    return best


def _grey(values: npt.NDArray[np.float16]) -> npt.NDArray[np.float64]:
    low, high = _WINDOW_HU
    scaled = np.clip((values.astype(np.float64) - low) / (high - low), 0.0, 1.0)
    return np.repeat(scaled[:, :, None], 3, axis=2)


def _over(
    grey: npt.NDArray[np.float64], labels: npt.NDArray[np.uint8], palette: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    is_shown = ((labels > 0) & (labels != UNKNOWN))[:, :, None]
    return np.where(is_shown, (1.0 - _OPACITY) * grey + _OPACITY * palette[labels], grey)


def _colours(held_out: Examples) -> npt.NDArray[np.float64]:
    palette = np.zeros((256, 3))
    for number, each in enumerate(held_out.classes, start=1):
        palette[number] = np.array(colour(each.type, number)) / 255.0
    return palette


def _classical_colours(judgement: Judgement) -> npt.NDArray[np.float64]:
    palette = np.zeros((256, 3))
    for number in range(1, 1 + len(judgement.classical_names)):
        red, green, blue = (0.30 + 0.65 * ((number * step) % 1.0) for step in (0.381966, 0.618034, 0.236068))
        palette[number] = red, green, blue
    return palette


def _page(report: Report, pictures: Mapping[str, Path]) -> str:
    parts = [
        f"<h1>Training of {escape(report.model)}</h1>",
        f"<p class=note>{escape(_summary(report.facts))}</p>",
        _means(report.judgement),
        "<h2>How the training went</h2>",
        "<p>Loss on the training slices, and the mean Dice coefficient on the slices that early stopping watched "
        f"({escape(str(report.facts['watched']))}); the dot is the epoch that was kept.</p>",
        image(pictures["curves"]),
    ]
    if "slices" in pictures:
        parts += [
            "<h2>Held-out slices</h2>",
            "<p>What is annotated and what was learned have the same colours; the colours of the segmenter "
            "<code>classical</code> are its own.</p>",
            image(pictures["slices"]),
            "<h2>Class by class</h2>",
            image(pictures["dice"]),
            _classes(report.judgement),
        ]
    parts.append(facts_of(report.facts))
    return page_of(report.model, parts)


def _summary(facts: Mapping[str, Any]) -> str:
    return (
        f"Size {facts['size']}, seed {facts['seed']}. Trained on {facts['training_slices']} annotated slices of "
        f"{facts['training_patients']} patients, judged on {facts['held_out_slices']} slices of "
        f"{facts['held_out_patients']} patients, held out by {facts['held_out_by']}, which influenced nothing."
    )


def _means(judgement: Judgement) -> str:
    if not judgement.means:
        return "<p>Nothing was held out, or nothing is annotated there: there is nothing to measure.</p>"
    rows = []
    for name, (own, other) in judgement.means.items():
        count = len(judgement.large) if name == "large" else len(judgement.dice)
        rows.append([f"{name} classes ({count})", _cell(own), _cell(other)])
    note = (
        "Mean Dice coefficient over the classes, with 95 % bootstrap intervals over the held-out volumes or blocks of "
        "slices. The segmenter <code>classical</code> names no organs: for each class the segment counts that fits it "
        "best, which favours it. A class is large with 1 % of the annotated voxels of the training part."
    )
    return "<h2>How good it is</h2>" + table(["mean Dice", "learned", "classical"], rows) + f"<p class=note>{note}</p>"


def _cell(figure: Figure) -> str:
    interval = f"{figure.low:.3f}–{figure.high:.3f}" if figure.low < figure.high else "no interval"
    return f"{figure.value:.3f}<br><small>{interval}</small>"


def _classes(judgement: Judgement) -> str:
    rows = [
        [name, f"{own:.3f}", f"{other:.3f}", escape(judgement.matches[name])]
        for name, (own, other) in sorted(judgement.dice.items(), key=lambda item: -item[1][0])
    ]
    return table(["class", "learned", "classical", "its best segment"], rows)
