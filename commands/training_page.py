"""What the reports of trainings share: one HTML page that needs nothing else, and the picture of how it went."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure as Picture

from index.encoders.learned.loop import Epoch

mpl.use("Agg")

PAGE = "report.html"
PLAIN_TEXT = {"text.parse_math": False}
"""Setting of matplotlib under which labels may hold any sign."""

_LOSS, _FIGURE = "#0072b2", "#d55e00"
_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;color:#1c2733;background:#fff;max-width:62rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.6rem;margin-bottom:.2rem}h2{font-size:1.2rem;margin-top:2.2rem}p{max-width:46rem}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}td,th{padding:.3rem .9rem;text-align:right;
border-bottom:1px solid #dde3e9}td:first-child,th:first-child{text-align:left}img{max-width:100%;height:auto}
.note{color:#5a6772}code{background:#f1f4f7;padding:.1rem .3rem;overflow-wrap:anywhere}
"""


def page_of(title: str, parts: Sequence[str]) -> str:
    """Return an HTML page of `parts`."""
    head = f"<meta charset=utf-8><title>{escape(title)}</title><style>{_STYLE}</style>"
    return f"<!doctype html><html lang=en><head>{head}</head><body>{''.join(parts)}</body></html>\n"


def curves(history: Sequence[Epoch]) -> Picture:
    """Draw loss and figure of each epoch, stage beside stage; the dot is the epoch that was kept."""
    stages = list(dict.fromkeys(epoch.stage for epoch in history))
    picture = Picture(figsize=(5.2 * len(stages), 3.6), layout="constrained")
    for axes, stage in zip(picture.subplots(1, len(stages), squeeze=False)[0], stages, strict=True):
        own = [epoch for epoch in history if epoch.stage == stage]
        numbers = [epoch.epoch for epoch in own]
        axes.plot(numbers, [epoch.loss for epoch in own], color=_LOSS)
        axes.set_title(f"{stage}: {len(own)} of {own[0].epochs} epochs")
        axes.set_xlabel("epoch")
        axes.set_ylabel("loss, training", color=_LOSS)
        other = axes.twinx()
        other.plot(numbers, [epoch.figure for epoch in own], "--", color=_FIGURE)
        other.set_ylabel(f"{own[0].figure_name}, validation (dashed)", color=_FIGURE)
        kept = max((epoch for epoch in own if epoch.kept), key=lambda epoch: epoch.epoch)
        other.plot(kept.epoch, kept.figure, "o", color=_FIGURE)
    return picture


def shortened(text: str, most: int) -> str:
    """Return at most so many characters, the last of them an ellipsis where there are more."""
    return text if len(text) <= most else f"{text[: most - 1].rstrip()}…"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return an HTML table; the first cell of a row is text, the others are HTML. A head of empty cells is left out."""
    lines = ["".join(f"<th>{escape(cell)}</th>" for cell in head)] if any(head) else []
    lines += ["".join(f"<td>{cell if n else escape(cell)}</td>" for n, cell in enumerate(row)) for row in rows]
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def image(file: Path) -> str:
    """Return a picture (PNG) as part of the page."""
    content = base64.b64encode(file.read_bytes()).decode("ascii")
    return f'<img alt="{escape(file.stem)}" src="data:image/png;base64,{content}">'


def facts_of(facts: Mapping[str, Any]) -> str:
    """Return what the weights depend on as a table."""
    rows = [[name.replace("_", " "), escape(str(value))] for name, value in sorted(facts.items())]
    return "<h2>What the weights depend on</h2>" + table(["", ""], rows)
