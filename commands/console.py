"""What the commands share: options, the terminal, and how errors end a command.

Exit codes: 0 done; 1 the work failed, or a part of it; 2 wrong usage or settings; 3 a peer cannot be reached.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console, ConsoleOptions
from rich.markup import escape
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from config.settings import Settings, SettingsError, load_settings

FAILED, USAGE, UNREACHABLE = 1, 2, 3

_UNBROKEN = 10_000
"""Columns of a standard output that is no terminal: what is piped or written to a file is never wrapped."""


def _standard_output() -> Console:
    console = Console()
    if not console.is_terminal:
        console.width = _UNBROKEN
    return console


out = _standard_output()
err = Console(stderr=True)

ConfigOption = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="Settings file (TOML). See `tharsis check --defaults`.")
]
DataOption = Annotated[
    Path | None, typer.Option("--data", metavar="FOLDER", help="Data folder, instead of the one in the settings.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]


def fail(sentence: str, code: int = FAILED) -> NoReturn:
    """Print one sentence on standard error and end the command."""
    err.print(f"[bold red]tharsis:[/] {escape(sentence)}", highlight=False, soft_wrap=True)
    raise typer.Exit(code)


def settings_from(
    config: Path | None, *, data: Path | None = None, port: str | None = None, aet: str | None = None
) -> Settings:
    """Load the settings with what the command line overrides; a mistake in them ends the command."""
    scp = {key: value for key, value in (("port", port), ("aet", aet)) if value is not None}
    archive = {"data": data} if data is not None else {}
    try:
        return load_settings(config, overrides={"scp": scp, "archive": archive})
    except SettingsError as error:
        fail(str(error), USAGE)


def print_table(table: Table) -> None:
    """Print `table` without a broken word; where the terminal is too narrow, each row as lines of a name and a value.

    Columns that are not to be wrapped at all, such as UIDs, are made with ``no_wrap=True``.
    """
    asked = Measurement.get(out, _unbroken(), table)
    if asked.minimum <= out.width:
        if asked.maximum > out.width:
            _share_width(table, out.width - asked.minimum)
        out.print(table)
        return
    if table.title:
        out.print(table.title, style="table.title", soft_wrap=True)
    names = [str(column.header).replace("\n", " ") for column in table.columns]
    width = max(map(len, names))
    for row in zip(*(column.cells for column in table.columns), strict=True):
        for name, cell in zip(names, row, strict=True):
            if cell:
                value = cell.replace("\n", "\n" + " " * (width + 1)) if isinstance(cell, str) else cell
                out.print(f"[bold]{escape(name):<{width}}[/]", value, highlight=False, soft_wrap=True)
        out.print()


def _unbroken() -> ConsoleOptions:
    return out.options.update(width=_UNBROKEN)


def _share_width(table: Table, left: int) -> None:
    """Give each column what its longest word takes, and a share of the `left` columns of the terminal as it needs."""
    asked = []
    for column in table.columns:
        cells = [Measurement.get(out, _unbroken(), cell) for cell in (column.header, *column.cells)]
        most = max(cell.maximum for cell in cells)
        asked.append((most if column.no_wrap else max(cell.minimum for cell in cells), most))
    by_need = sorted(range(len(asked)), key=lambda number: asked[number][1] - asked[number][0])
    for done, number in enumerate(by_need):
        least, most = asked[number]
        share = min(most - least, left // (len(by_need) - done))
        table.columns[number].width, left = least + share, left - share


def print_json(value: Any) -> None:
    """Print `value` as JSON on standard output."""
    typer.echo(json.dumps(value, indent=2, default=str, ensure_ascii=False))


@contextmanager
def progress_bar(title: str, total: int | None = None, *, quiet: bool = False) -> Iterator[ProgressBar]:
    """Show a progress bar on standard error while the block runs; an error before it has moved takes it away."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn() if total and total > 1 else TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=err, disable=quiet) as progress:
        bar = ProgressBar(progress, title, total or 1)
        try:
            yield bar
        except BaseException:
            bar.hide_unless_moved()
            raise


class ProgressBar:
    """A running progress bar."""

    def __init__(self, progress: Progress, title: str, total: int) -> None:
        self._progress = progress
        self._total = total
        self._task = progress.add_task(title, total=total)

    def advance(self, count: int = 1) -> None:
        """Move forward by `count` steps."""
        self._progress.advance(self._task, count)

    def fraction(self, done: float) -> None:
        """Move to the fraction `done` (0 to 1)."""
        self._progress.update(self._task, completed=done * self._total)

    def hide_unless_moved(self) -> None:
        """Take the bar away if it stands at the beginning."""
        self._progress.update(self._task, visible=self._progress.tasks[0].completed > 0)

    def describe(self, text: str) -> None:
        """Change the text in front of the bar."""
        self._progress.update(self._task, description=text)
