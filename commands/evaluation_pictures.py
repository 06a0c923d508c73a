"""Pictures of an evaluation: bars with their intervals, and queries beside their neighbours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from commands.judging import RANDOM, Summary, Verdict
from commands.pictures import Picture, sheet
from index.archive import Archive
from index.decoding import open_image
from index.encoders.pixels import canonical_frames
from index.evaluation import ranked
from index.neighbours import Exclude

_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7")
_GREY = "#9aa0a6"
_LEGEND_COLUMNS = 3
_LEVEL = 9
"""Most names of metrics that fit beside each other without being turned."""

_NEIGHBOURS = 6
_ROWS = 8


def draw(archive: Archive, verdict: Verdict, exclude: frozenset[Exclude], file: Path) -> list[Path]:
    """Write the chart to `file` and, beside it, the sheet of the first encoder's neighbours; return both."""
    chart({"": verdict.figures}, file)
    beside = file.with_name(f"{file.stem}-neighbours{file.suffix}")
    neighbour_sheet(archive, verdict, next(iter(verdict.gallery.vectors)), exclude, beside)
    return [file, beside]


def chart(sets: Mapping[str, Mapping[str, Summary]], file: Path, *, grey: str = RANDOM) -> None:
    """Draw the metrics of encoders as bars with their intervals.

    Parameters
    ----------
    sets
        Title of each panel → encoder → its figures.
    grey
        The one that is drawn in grey.
    """
    canvas = Canvas(figsize=(7.0 * len(sets), 3.6), dpi=100, layout="constrained")
    axes = canvas.subplots(1, len(sets), squeeze=False, sharey=True)[0]
    for axis, (title, figures) in zip(axes, sets.items(), strict=True):
        _bars(axis, figures, grey)
        axis.set_title(title, fontsize=10)
    axes[0].set_ylabel("mean over queries, 95 % interval", fontsize=8)
    handles, names = axes[0].get_legend_handles_labels()
    canvas.legend(handles, names, fontsize=8, frameon=False, loc="outside upper center", ncols=_LEGEND_COLUMNS)
    file.parent.mkdir(parents=True, exist_ok=True)
    canvas.savefig(file)


def _bars(axis: Axes, figures: Mapping[str, Summary], grey: str) -> None:
    metrics = list(next(iter(figures.values())))
    width = 0.8 / len(figures)
    colours = iter(_COLOURS * len(figures))
    for number, (encoder, summary) in enumerate(figures.items()):
        values = np.array([summary[metric].value for metric in metrics])
        ends = np.array([[summary[metric].low, summary[metric].high] for metric in metrics]).T
        axis.bar(
            np.arange(len(metrics)) + (number - (len(figures) - 1) / 2) * width,
            values,
            width * 0.92,
            yerr=np.abs(ends - values),
            color=_GREY if encoder == grey else next(colours),
            error_kw={"elinewidth": 1.0, "capsize": 2.0},
            label=encoder,
        )
    axis.set_xticks(np.arange(len(metrics)), metrics, fontsize=8, rotation=0 if len(metrics) <= _LEVEL else 30)
    axis.set_ylim(0.0, 1.05)
    axis.spines[["top", "right"]].set_visible(False)


def neighbour_sheet(
    archive: Archive, verdict: Verdict, encoder: str, exclude: frozenset[Exclude], file: Path, *, rows: int = _ROWS
) -> None:
    """Draw queries of each class beside their nearest neighbours, those of another class marked.

    Of each class comes the query of median average precision and, while there are rows left, the one at the lower
    tenth, first of the class that fares worst: what is typical and what goes wrong, rather than what looks good.
    """
    vectors, items = verdict.gallery.vectors[encoder], verdict.gallery.items
    lines: list[list[Picture]] = []
    names: list[str] = []
    for query, what in _chosen(verdict, encoder, rows):
        order = ranked(vectors, items, query, exclude)[:_NEIGHBOURS]
        label = str(items.labels[query])
        names.append(f"{label}\n{what}")
        row = [_picture(archive, verdict, query, "query", label)]
        for rank, index in enumerate(order.tolist(), start=1):
            other = str(items.labels[index])
            mark = "" if other == label else "✗ "
            title = f"#{rank}  {float(vectors[index] @ vectors[query]):.2f}"
            row.append(_picture(archive, verdict, index, title, mark + other))
        lines.append(row)
    sheet(lines, file, title=f"Queries and their nearest neighbours by {encoder}", row_names=names)


def _chosen(verdict: Verdict, encoder: str, rows: int) -> Sequence[tuple[int, str]]:
    """Return queries, class by class, with the word for each."""
    scores, labels = verdict.scores[encoder], verdict.gallery.items.labels
    precision = scores.values["mAP"]
    own = [np.flatnonzero(labels[scores.queries] == label) for label in np.unique(labels[scores.queries])]
    own.sort(key=lambda places: float(precision[places].mean()))
    found: dict[int, str] = {}
    for what, share in (("median", 0.5), ("lower tenth", 0.1)):
        for places in own:
            ordered = places[np.argsort(precision[places], kind="stable")]
            found.setdefault(int(scores.queries[ordered[int(share * (len(ordered) - 1))]]), what)
    return sorted(list(found.items())[:rows], key=lambda pair: str(labels[pair[0]]))


def _picture(archive: Archive, verdict: Verdict, index: int, title: str, subtitle: str) -> Picture:
    uid, frame = verdict.gallery.frames[index]
    path = archive.open_instance(uid).path
    with open_image(path, archive.scratch_file) as (dataset, source):
        image = canonical_frames(dataset, file=source, numbers=[max(frame, 1)]).images[0]
    return Picture(title, image, subtitle, window=(0.0, 1.0))
