"""``tharsis train-segmenter``: its options. torch takes seconds to load, so what does the work is imported late."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from commands.archive import open_archive
from commands.console import ConfigOption, DataOption


class HoldOut(StrEnum):
    """What is held out whole."""

    PATIENTS = "patients"
    SLICES = "slices"


SegmentsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--segment",
        metavar="NAME",
        help="Learn only segments of this name, such as Liver or 'Kidney, Left'; may be given several times. "
        "Default: all that are annotated. `--list` shows the names.",
    ),
]
ListOption = Annotated[bool, typer.Option("--list", help="Show what is annotated in the archive, and stop.")]
HoldOutOption = Annotated[
    HoldOut,
    typer.Option(
        "--hold-out", help="Hold out whole patients or, with too few of them, blocks of slices of each volume."
    ),
]
HeldOutOption = Annotated[
    float, typer.Option("--held-out", min=0.0, max=0.9, help="Share that is held out, to judge the segmenter by.")
]
SpacingOption = Annotated[
    float | None,
    typer.Option(
        "--spacing-mm", min=0.001, help="Pixels that the network sees. Default: about 160 across an image, never finer."
    ),
]
SeedOption = Annotated[int, typer.Option(min=0, help="Of the split, the first weights and the order of the slices.")]
SizeOption = Annotated[str, typer.Option(help="small (for a CPU) or large (the paper's widths, for a GPU).")]
EpochsOption = Annotated[int | None, typer.Option(min=1, help="Passes over the slices. Default: by their number.")]
ThreadsOption = Annotated[int, typer.Option(min=0, help="Threads (0: as many as there are cores).")]
ResumeOption = Annotated[bool, typer.Option("--resume", help="Go on with a training that was interrupted.")]
ReportOption = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="Where the report goes. Default: models/<name> of the data folder."),
]


def train_segmenter(
    segment: SegmentsOption = None,
    list_only: ListOption = False,
    hold_out: HoldOutOption = HoldOut.PATIENTS,
    held_out: HeldOutOption = 0.25,
    spacing_mm: SpacingOption = None,
    seed: SeedOption = 0,
    size: SizeOption = "small",
    epochs: EpochsOption = None,
    threads: ThreadsOption = 0,
    resume: ResumeOption = False,
    report: ReportOption = None,
    config: ConfigOption = None,
    data: DataOption = None,
) -> None:
    """Train the segmenter `learned` on the annotated CT of the archive, and judge it on what was held out.

    SEG and RTSTRUCT of others are what it learns from; what this node segmented itself does not count. Writes the
    weights, what they depend on and a report page with Dice coefficients, curves and pictures, and says which settings
    make the node use it. The node may be running meanwhile.
    """
    from commands.segmenter_run import Wishes, list_annotated, run_training

    archive = open_archive(config, data)
    if list_only:
        list_annotated(archive)
        return
    names = None if not segment else tuple(segment)
    wishes = Wishes(names, hold_out, held_out, spacing_mm, seed, size, epochs, threads, resume, report)
    run_training(archive, wishes)
