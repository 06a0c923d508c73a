"""The progress bar of a training: epochs, loss and figure."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from commands.console import err
from index.encoders.learned import loop


@contextmanager
def training_bar(epochs: int) -> Iterator[loop.Progress]:
    """Show how a training of at most `epochs` goes, on standard error."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[figures]}"),
    )
    with Progress(*columns, console=err) as progress:
        task = progress.add_task("Training", total=epochs, figures="")

        def show(epoch: loop.Epoch) -> None:
            figures = f"loss {epoch.loss:.3f}, {epoch.figure_name} {epoch.figure:.3f}"
            progress.update(task, advance=1, description=f"Training: {epoch.stage}", figures=figures)

        yield show
