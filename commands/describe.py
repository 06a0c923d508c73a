"""The command that shows what varies over a series of images, and begins a site mapping from it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from commands.console import USAGE, ConfigOption, fail, out, print_table, settings_from
from index.files import is_part10
from scp.part10 import with_preamble

_LONGEST = 24
"""Characters of a value in a terminal, where UIDs and times would leave no room for the table."""


def describe(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="The DICOM files of one scan, or folders of them.")
    ],
    rule: Annotated[
        Path | None,
        typer.Option("--rule", metavar="FILE", help="Write the beginning of a [[site_mappings]] rule there."),
    ] = None,
    name: Annotated[str, typer.Option(help="Name of the rule.")] = "my scanner",
    config: ConfigOption = None,
) -> None:
    """Show which elements vary over the files of a scan, for writing a site mapping.

    Where the files are of no encoding that is known, the beginning of a rule follows.

    Of each element: its private creator, its first values and how many there are. Elements that rise or fall
    from file to file, as an angle does, come first. Units and senses are not guessed: who knows the scanner says them.
    docs/scans.md leads through it.

    Example:  tharsis describe scan/ --rule room3.toml
    """
    from reconstruct.projections.description import skeleton, varying_elements
    from reconstruct.projections.frames import ScanError
    from reconstruct.projections.p6 import encodings_from
    from reconstruct.projections.registry import read_header

    for given in files:
        if not given.exists():
            fail(f"{given}: no such file or folder", USAGE)
    paths = [path for given in files for path in (sorted(given.rglob("*")) if given.is_dir() else [given])]
    paths = [path for path in paths if path.is_file()]
    found = [path for path in paths if path in files or is_part10(path)]
    if not found and any(with_preamble(path) for path in paths):
        fail("these files have no preamble: bring them in with `tharsis import`, and describe those of the data folder")
    if not found:
        fail("none of the files is a DICOM file")
    paths = found
    try:
        headers = [read_header(path) for path in paths]
        varying = varying_elements(paths)
    except ScanError as error:
        fail(str(error))
    known = encodings_from(settings_from(config).site_mappings).of(headers[0])
    told = "no encoding of projections that is known" if known is None else f"encoding {known.name}"
    out.print(f"{len(paths)} files; the first is of {told}", highlight=False)
    table = Table("element", "private creator", "VR", "first values", "different", "rises or falls")
    for each in varying:
        label = f"{each.element} {each.name}" if each.name and each.name != each.element else each.element
        values = ", ".join(map(_shown, each.values))
        if each.readings:
            values += "  (" + ", ".join(f"{vr}: {value}" for vr, value in each.readings) + ")"
        table.add_row(
            escape(label),
            escape(each.creator),
            each.vr,
            escape(values),
            str(each.different),
            "yes" if each.rises else "",
        )
    print_table(table)
    text = skeleton(headers, varying, name)
    if rule is None:
        if known is None:
            out.print(escape(text), highlight=False, soft_wrap=True)
        return
    if rule.exists():
        fail(f"{rule} exists already")
    rule.write_text(text, encoding="utf-8")
    out.print(f"the beginning of a rule is in {rule}: complete it, and add it to the settings", highlight=False)


def _shown(value: str) -> str:
    """Return a value as it is, but in a terminal without the middle of a long one: its end is what differs."""
    if not out.is_terminal or len(value) <= _LONGEST:
        return value
    half = (_LONGEST - 1) // 2
    return f"{value[:half]}…{value[-half:]}"
