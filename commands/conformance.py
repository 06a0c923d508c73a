"""``tharsis conformance``: the DICOM Conformance Statement, from the tables that the node works with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from commands.console import ConfigOption, settings_from


def conformance(
    config: ConfigOption = None,
    write: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write it to this file instead of showing it.")
    ] = None,
) -> None:
    """Print the DICOM Conformance Statement (PS3.2) of a node with these settings, as Markdown.

    SOP classes, transfer syntaxes, keys, Status codes, limits and AE titles come from the tables and settings that the
    node itself works with. `docs/conformance-statement.md` is the statement of a node with the default settings.
    """
    from scp.conformance import statement

    text = statement(settings_from(config))
    if write is None:
        typer.echo(text, nl=False)
    else:
        write.write_text(text, encoding="utf-8")
