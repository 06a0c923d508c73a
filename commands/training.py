"""``tharsis train``: its options. torch takes seconds to load, so what does the work is imported when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from commands.archive import open_archive
from commands.console import ConfigOption, DataOption, settings_from

LabelsOption = Annotated[
    str | None,
    typer.Option(
        metavar="SOURCE",
        help="Where the labels come from: a DICOM keyword (BodyPartExamined, SeriesDescription, "
        "AdmittingDiagnosesCodeSequence, …) or a CSV file (a UID or Patient ID, then the label). "
        "Without it the encoder learns by itself what looks alike.",
    ),
]
HeldOutOption = Annotated[
    float,
    typer.Option("--held-out", min=0.0, max=0.9, help="Share of the patients kept out, to judge the encoder by."),
]
SeedOption = Annotated[int, typer.Option(min=0, help="Of the split, the first weights and the order of the images.")]
SizeOption = Annotated[str, typer.Option(help="small (for a CPU) or paper (the papers' widths, for a GPU).")]
EpochsOption = Annotated[
    int | None, typer.Option(min=1, help="Passes over the images in the second stage. Default: by their number.")
]
BatchOption = Annotated[int, typer.Option(min=2, help="Images in a step.")]
ThreadsOption = Annotated[int, typer.Option(min=0, help="Threads (0: as many as there are cores).")]
ResumeOption = Annotated[bool, typer.Option("--resume", help="Go on with a training that was interrupted.")]
ActivateOption = Annotated[
    bool, typer.Option("--activate", help="Re-embed the archive with it in the background, then answer with it.")
]
ReportOption = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="Where the report goes. Default: models/<ModelID> of the data folder."),
]


def train_encoder(
    labels: LabelsOption = None,
    held_out: HeldOutOption = 0.25,
    seed: SeedOption = 0,
    size: SizeOption = "small",
    epochs: EpochsOption = None,
    batch: BatchOption = 32,
    threads: ThreadsOption = 0,
    resume: ResumeOption = False,
    activate: ActivateOption = False,
    report: ReportOption = None,
    config: ConfigOption = None,
    data: DataOption = None,
) -> None:
    """Train the learned encoder on the images of the archive, and judge it on patients that were held out.

    Writes the weights, what they depend on and a report page with curves, figures and pictures. The node may be running
    meanwhile. An interrupted training goes on with `--resume`.
    """
    from commands.training_run import Wishes, run_training

    wishes = Wishes(labels, held_out, seed, size, epochs, batch, threads, resume, activate, report)
    run_training(open_archive(config, data), settings_from(config, data=data), wishes)
