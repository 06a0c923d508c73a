"""`tharsis evaluate`: its options. What does the work takes seconds to load, and is imported when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from commands.archive import open_archive
from commands.console import ConfigOption, DataOption, JsonOption, settings_from
from index.neighbours import Exclude


def evaluate(
    labels: Annotated[
        str | None,
        typer.Option(
            metavar="KEYWORD|CSV",
            help="What says which series belong together: a DICOM keyword or a table (UID or Patient ID, label). "
            "Default: what the model was trained on.",
        ),
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option(metavar="MODEL_ID", help="Encoder to judge; repeatable. Default: the active.")
    ] = None,
    held_out: Annotated[
        float | None,
        typer.Option(
            min=0.0, max=1.0, metavar="FRACTION",
            help="Judge on this share of the patients, those that `tharsis train` with the same seed leaves out; 0: on "
            "all. Default: as the model was trained, else on all.",
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of the split; default: as the model was trained, else 0.")] = None,
    level: Annotated[str, typer.Option(metavar="IMAGE|SERIES", help="What is asked about and ranked.")] = "IMAGE",
    k: Annotated[str, typer.Option("-k", metavar="K,...", help="Where rankings are cut off.")] = "1,5,10",
    exclude: Annotated[
        list[str] | None,
        typer.Option(
            metavar="WHAT",
            help=f"What does not compete: {', '.join(Exclude)} (default: SAME_PATIENT) or NOTHING. Repeatable.",
        ),
    ] = None,
    queries: Annotated[int, typer.Option(min=1, help="Ask about at most so many, drawn at random.")] = 5000,
    by_class: Annotated[bool, typer.Option("--by-class", help="Show each class as well.")] = False,
    probe: Annotated[
        bool, typer.Option("--probe", help="Fit a linear probe on the patients that are not held out.")
    ] = False,
    picture: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.png", help="Write a chart, and beside it FILE-neighbours.png: queries with their neighbours."
        ),
    ] = None,
    config: ConfigOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Judge encoders: each image (or series) asks for those with its label, among those of other patients.

    Vectors that the archive has are used; what a model has not embedded is embedded for this run alone. Figures are
    means over the queries with 95 % bootstrap intervals over patients; queries whose label nothing else has are left
    out. The texture encoder and chance stand beside the models.
    """
    from commands.evaluation_run import Wishes, run_evaluation

    wishes = Wishes(
        labels, tuple(model or ()), held_out, seed, level, k, tuple(exclude or ()), queries, by_class, probe, picture,
        as_json,
    )  # fmt: skip
    run_evaluation(open_archive(config, data), settings_from(config, data=data), wishes)
