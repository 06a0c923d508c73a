"""The report of a training: pictures, and one page that shows them beside the figures and needs nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure as Picture
from matplotlib.patches import Rectangle

from commands.training_judgement import Judgement
from commands.training_page import PAGE, PLAIN_TEXT, curves, facts_of, image, page_of, shortened, table
from index.encoders.learned.corpus import UNKNOWN, Corpus
from index.encoders.learned.loop import Epoch
from index.evaluation import Figure

_METRICS = ("P@1", "P@5", "P@10", "mAP", "NDCG@10")
_RIGHT, _WRONG, _OPEN = "#0072b2", "#d55e00", "#8a94a0"


@dataclass(frozen=True, eq=False)
class Report:
    """What the page tells.

    Attributes
    ----------
    model_id
        Of the encoder that was trained.
    facts
        What is written beside the weights.
    history
        Every epoch.
    held_out
        The images that it is judged on.
    judgement
        The figures.
    neighbours
        Some of the held-out images (by their row), each with its nearest.
    """

    model_id: str
    facts: Mapping[str, Any]
    history: Sequence[Epoch]
    held_out: Corpus
    judgement: Judgement
    neighbours: Sequence[tuple[int, Sequence[int]]]


def write_report(report: Report, folder: Path) -> Path:
    """Write the page and its pictures (PNG) into `folder`, and return the page."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures: dict[str, Callable[[Report], Picture]] = {"curves": lambda report: curves(report.history)}
    if report.judgement.confusion is not None:
        pictures["confusion"] = _confusion
    if report.neighbours:
        pictures["neighbours"] = _neighbours
    with mpl.rc_context(PLAIN_TEXT):
        for name, draw in pictures.items():
            draw(report).savefig(folder / f"{name}.png", dpi=110)
    page = folder / PAGE
    page.write_text(_page(report, {name: folder / f"{name}.png" for name in pictures}), encoding="utf-8")
    return page


def _confusion(report: Report) -> Picture:
    table = report.judgement.confusion
    if table is None:
        raise ValueError("there is no confusion matrix without classes")
    names = report.held_out.classes
    side = 2.2 + 0.6 * len(names)
    picture = Picture(figsize=(side + 1.2, side), layout="constrained")
    axes = picture.subplots()
    shares = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0)
    for row, column in np.ndindex(*table.shape):
        colour = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, str(table[row, column]), ha="center", va="center", color=colour)
    axes.set_xticks(range(len(names)), [shortened(name, 24) for name in names], rotation=45, ha="right")
    axes.set_yticks(range(len(names)), [shortened(name, 24) for name in names])
    axes.set_xlabel("taken for")
    axes.set_ylabel("label")
    return picture


def _neighbours(report: Report) -> Picture:
    """Queries in the first column, their neighbours behind them, framed by whether they have the query's label."""
    corpus = report.held_out
    names = (*corpus.classes, "no label")
    columns = 1 + max(len(found) for _, found in report.neighbours)
    picture = Picture(figsize=(1.35 * columns, 1.6 * len(report.neighbours)), layout="constrained")
    axes = picture.subplots(len(report.neighbours), columns, squeeze=False)
    for line, (query, found) in zip(axes, report.neighbours, strict=True):
        for place, axis in enumerate(line):
            axis.set_axis_off()
            if place > len(found):
                continue
            row = query if place == 0 else found[place - 1]
            axis.imshow(corpus.images[row].astype(np.float32), cmap="gray", vmin=0.0, vmax=1.0)
            axis.set_title(shortened(("query: " if place == 0 else "") + names[corpus.labels[row]], 20), fontsize=7)
            if place > 0:
                axis.add_patch(_frame(axis, _colour(corpus, query, row)))
    return picture


def _colour(corpus: Corpus, query: int, row: int) -> str:
    if UNKNOWN in (corpus.labels[query], corpus.labels[row]):
        return _OPEN
    return _RIGHT if corpus.labels[query] == corpus.labels[row] else _WRONG


def _frame(axis: Any, colour: str) -> Rectangle:
    return Rectangle((0, 0), 1, 1, transform=axis.transAxes, fill=False, edgecolor=colour, linewidth=4, clip_on=False,
                     linestyle="--" if colour == _WRONG else "-")  # fmt: skip


def _page(report: Report, pictures: Mapping[str, Path]) -> str:
    parts = [
        f"<h1>Training of {escape(report.model_id)}</h1>",
        f"<p class=note>{escape(_summary(report))}</p>",
        _figures(report),
        "<h2>How the training went</h2>",
        "<p>Loss on the training images, and the figure on the validation images that early stopping watched; the dot "
        "is the epoch that was kept.</p>",
        image(pictures["curves"]),
    ]
    if "confusion" in pictures:
        parts += [
            "<h2>What the classifier takes for what</h2>",
            "<p>Held-out images: each row is a label, each column what the classifier says.</p>",
            image(pictures["confusion"]),
        ]
    if "neighbours" in pictures:
        parts += [
            "<h2>Nearest neighbours</h2>",
            "<p>Held-out images and what the encoder finds most similar among the other held-out patients: "
            f"<span style='color:{_RIGHT}'>blue</span> has the query's label, <span style='color:{_WRONG}'>orange, "
            "dashed</span> another one, grey is not known.</p>",
            image(pictures["neighbours"]),
        ]
    parts.append(facts_of(report.facts))
    return page_of(report.model_id, parts)


def _summary(report: Report) -> str:
    facts = report.facts
    left_out = facts["series_left_out"]
    return (
        f"Size {facts['size']}, seed {facts['seed']}. Trained on {facts['training']} images of "
        f"{facts['training_patients']} patients, stopped by {facts['validation']} of {facts['validation_patients']}, "
        f"judged on {facts['held_out']} of {facts['held_out_patients']} others, which influenced nothing."
        + (f" {left_out} series take no part, since nothing of them can be read or decoded." if left_out else "")
    )


def _figures(report: Report) -> str:
    figures = report.judgement.figures
    if not figures or not all(figures.values()):
        return "<p>The held-out images have labels of fewer than two classes: there is nothing to measure.</p>"
    rows = [[encoder, *(_cell(own[name]) for name in _METRICS)] for encoder, own in figures.items()]
    found = "<h2>How good it is</h2>" + table(["held-out images", *_METRICS], rows)
    found += (
        "<p class=note>Mean over all held-out images as queries, the query's own patient left out, with the 95 % "
        "bootstrap interval over patients.</p>"
    )
    rows = [[name, *map(_cell, pair)] for name, pair in report.judgement.classes.items()]
    return found + table(["mAP of the class", "learned", "texture"], rows)


def _cell(figure: Figure) -> str:
    return f"{figure.value:.3f}<br><small>{figure.low:.3f}–{figure.high:.3f}</small>"
