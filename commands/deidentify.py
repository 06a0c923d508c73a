"""``tharsis deidentify``: files, folders and stored studies without what identifies somebody (PS3.15 Annex E)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from pydicom import dcmread
from pydicom.datadict import dictionary_has_tag, keyword_for_tag
from pydicom.dataelem import DataElement, RawDataElement
from rich.markup import escape
from rich.table import Table

from commands.archive import open_archive
from commands.console import FAILED, USAGE, ConfigOption, DataOption, fail, out, progress_bar, settings_from
from index.deidentification import files as part10
from index.deidentification.deidentifier import Deidentifier
from index.deidentification.walk import Change
from index.errors import ArchiveError, CannotDeidentify
from index.files import is_part10, name_of

_NAMES = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
_WIDEST_VALUE = 40
_MEANINGS = {
    "X": "removed", "Z": "emptied", "D": "dummy", "K": "kept", "C": "cleaned", "U": "replaced",
}  # fmt: skip


def deidentify(
    what: Annotated[
        list[Path] | None, typer.Argument(metavar="[FILE|FOLDER]...", help="Part 10 files, and folders of them.")
    ] = None,
    study: Annotated[
        list[str] | None, typer.Option("--study", metavar="UID", help="A study of the archive; may be repeated.")
    ] = None,
    to: Annotated[Path | None, typer.Option("--to", metavar="FOLDER", help="Where the new files go.")] = None,
    profile: Annotated[str, typer.Option(metavar="NAME", help="One of [[deidentification]] in the settings.")] = "",
    explain: Annotated[
        bool, typer.Option("--explain", "--dry-run", help="Show what becomes of each element; write nothing.")
    ] = False,
    config: ConfigOption = None,
    data: DataOption = None,
) -> None:
    """De-identify files, folders or stored studies; what is refused is named, and the others go on.

    New files are named by their new UIDs: FOLDER/STUDY/SERIES/INSTANCE.dcm. None is overwritten. UIDs and
    pseudonyms follow from the key in the data folder: what belongs together still does, also after the next run.

    Examples, with [[deidentification]] name = "research" in my.toml:

    tharsis deidentify scan/ --to clean/ --profile research --config my.toml

    tharsis deidentify image.dcm --profile research --explain --config my.toml
    """
    settings = settings_from(config, data=data)
    if not profile:
        names = ", ".join(entry.name for entry in settings.deidentification)
        fail(f"say with --profile which of [[deidentification]]: {names or 'the settings have none'}", USAGE)
    try:
        deidentifier = Deidentifier.from_settings(settings, settings.archive.data, profile)
    except ArchiveError as error:
        fail(str(error), USAGE)
    sources = [*_of_paths(what or []), *(_of_studies(study, config, data) if study else [])]
    if not sources:
        fail("there is no Part 10 file in what was named" if what or study else "name files, folders or --study", USAGE)
    if explain:
        _explain(deidentifier, sources)
        return
    if to is None:
        fail("say with --to FOLDER where the new files go", USAGE)
    _run(deidentifier, sources, to)


def _of_paths(paths: list[Path]) -> Iterator[Path]:
    for path in paths:
        if not path.exists():
            fail(f"{path} does not exist", USAGE)
        if path.is_dir():
            yield from (file for file in sorted(path.rglob("*")) if file.is_file() and is_part10(file))
        else:
            yield path


def _of_studies(studies: list[str], config: Path | None, data: Path | None) -> Iterator[Path]:
    archive = open_archive(config, data)
    try:
        for uid in studies:
            rows = archive.database.execute(
                "SELECT instance.path FROM instance"
                " JOIN series ON instance.series = series.id JOIN study ON series.study = study.id"
                " WHERE study.study_instance_uid = ? ORDER BY instance.id",
                (uid,),
            ).fetchall()
            if not rows:
                fail(f"the archive in {archive.data} has no study {uid}")
            yield from (archive.data / row[0] for row in rows)
    finally:
        archive.close()


def _run(deidentifier: Deidentifier, sources: list[Path], folder: Path) -> None:
    refused: list[tuple[Path, str]] = []
    written = 0
    folder.mkdir(parents=True, exist_ok=True)
    with progress_bar(f"De-identifying ({deidentifier.profile.name})", len(sources)) as bar:
        for source in sources:
            try:
                _write(deidentifier, source, folder)
                written += 1
            except CannotDeidentify as error:
                refused.append((source, str(error)))
            bar.advance()
    for source, why in refused:
        out.print(f"[bold red]refused[/] {escape(str(source))}: {escape(why)}", highlight=False, soft_wrap=True)
    out.print(f"{written} files in {escape(str(folder))}, {len(refused)} refused", highlight=False)
    if refused:
        raise typer.Exit(FAILED)


def _write(deidentifier: Deidentifier, source: Path, folder: Path) -> None:
    """Write one file under its new UIDs; raises `CannotDeidentify` also where there is such a file already."""
    draft = folder / f".{os.getpid()}.part"
    try:
        deidentifier.deidentify_file(source, draft)
        made = dcmread(draft, specific_tags=list(_NAMES), stop_before_pixels=True)
        study, series, instance = (
            name_of(str(made[keyword].value)) if made.get(keyword) else "without" for keyword in _NAMES
        )
        target = folder / study / series / f"{instance}.dcm"
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            target.hardlink_to(draft)
        except FileExistsError as error:
            raise CannotDeidentify(f"{target} is there already, and is not overwritten") from error
    finally:
        draft.unlink(missing_ok=True)


def _explain(deidentifier: Deidentifier, sources: list[Path]) -> None:
    if len(sources) > 1:
        fail(f"--explain shows one file, and {len(sources)} were named", USAGE)
    changes: list[Change] = []
    try:
        source = part10.read(sources[0])
        deidentifier.deidentify(source, observe=changes.append)
    except CannotDeidentify as error:
        fail(str(error))
    title = escape(f"{sources[0].name} under {deidentifier.profile.name}")
    table = Table("element", "name", "old", "action", "new", title=title)
    for change in _in_order(changes):
        tag = change.path[-1]
        action = "removed" if change.new is None else _MEANINGS[change.action]
        if change.action == "Z" and change.new is not None and change.new.value:
            action = "pseudonym"
        label = "  " * (len(change.path) - 1) + f"({tag >> 16:04X},{tag & 0xFFFF:04X})"
        new = "" if change.new is None else _shown(change.new)
        table.add_row(label, escape(keyword_for_tag(tag) if dictionary_has_tag(tag) else ""),
                      escape(_shown(change.old)), f"{change.action} {action}", escape(new))  # fmt: skip
    out.print(table)


def _in_order(changes: list[Change]) -> list[Change]:
    """Return changes as a dump shows them: a sequence, of which the walk tells last, stands before its items."""
    ordered: list[Change] = []
    for change in changes:
        place = len(ordered)
        while place and len(ordered[place - 1].path) > len(change.path):
            place -= 1
        ordered.insert(place, change)
    return ordered


def _shown(element: DataElement | RawDataElement) -> str:
    """Return a value in a few characters; of long and of binary ones how long they are."""
    value = element.value
    if element.VR == "SQ" and not isinstance(value, bytes):
        return f"{len(value or [])} items"
    if value is None:
        return "" if isinstance(element, DataElement) or not element.length else "(not read)"
    if isinstance(value, bytes):
        text = value.decode("utf-8", "replace").strip(" \0")
        value = text if text.isprintable() and element.VR not in ("OB", "OW", "UN") else f"{len(value)} bytes"
    text = str(value)
    return text if len(text) <= _WIDEST_VALUE else f"{text[: _WIDEST_VALUE - 1]}…"
