"""The demo's account of what happened."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from commands.console import out


@dataclass
class Report:
    """What happened, for the table and the pictures."""

    scans: list[dict[str, Any]] = field(default_factory=list)
    images: dict[str, Any] = field(default_factory=dict)
    neighbours: list[dict[str, Any]] = field(default_factory=list)
    same_through_both_doors: bool = False
    moved: int = 0
    moved_s: float = 0.0


def show(report: Report, pictures: list[Path], seconds: float) -> None:
    """Print the tables and where the pictures are."""
    out.print(_scans(report))
    images = report.images
    out.print(f"CT and MR images: {images['stored']} of {images['sent']} stored in {images['seconds']:.1f} s")
    out.print(_neighbours(report))
    same = "the same neighbours in the same order" if report.same_through_both_doors else "different neighbours"
    out.print(f"Both doors of the similarity query gave {same}.")
    out.print(f"C-MOVE sent {report.moved} objects to the receiver in {report.moved_s:.0f} s.", highlight=False)
    out.print(f"\nDone in {seconds:.0f} s. Pictures to look at:", highlight=False)
    for picture in pictures:
        out.print(f"  {picture}", highlight=False, soft_wrap=True, markup=False)


def _scans(report: Report) -> Table:
    caption = (
        "objects sent: views and flat fields of each threshold\n"
        "ready after: from the last C-STORE to the stored SEG"
    )
    table = Table(title="From scan to segmentation", caption=caption)
    table.add_column("phantom", no_wrap=True)
    for column in ("objects sent", "sent in", "CT series × slices", "SEG", "ready after"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in report.scans:
        series, images = row["ct"]
        table.add_row(
            row["phantom"],
            f"{row['instances']} × {row['megabytes'] / row['instances']:.1f} MB",
            f"{row['sent_s']:.1f} s",
            f"{series} × {images // series}",
            str(row["seg"]),
            f"{row['to_seg_s']:.0f} s",
        )
    return table


def _neighbours(report: Report) -> Table:
    table = Table(title="Cases similar to the first scan, as a viewer sees them")
    table.add_column("rank", justify="right")
    table.add_column("score", justify="right")
    table.add_column("Patient's Name", no_wrap=True)
    table.add_column("Study Description (second AE title)")
    for row in report.neighbours:
        table.add_row(str(row["rank"]), f"{row['score']:.4f}", row["patient"], row["decorated"])
    return table
