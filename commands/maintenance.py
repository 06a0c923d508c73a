"""Commands that keep the archive: fsck, rebuild, delete, retention."""

from __future__ import annotations

import logging
import time
from collections import Counter
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Column, Table

from commands.console import (
    FAILED,
    USAGE,
    ConfigOption,
    DataOption,
    JsonOption,
    fail,
    out,
    print_json,
    print_table,
    progress_bar,
)
from commands.console import settings_from as _settings_from
from commands.state import StartError, only_user, read_state
from config.settings import Settings
from index import deletion, fsck, retention
from index.archive import Archive
from index.errors import NotFound, NotRemoved
from index.keys import Level
from index.old_catalogue import RebuildError
from index.rebuild import Rebuilt, count_files
from index.rebuild import rebuild as rebuild_catalogue
from index.tally import stored_bytes

_MOST_SHOWN = 20
"""Findings of one kind in the table, studies in a list."""

_MOST_IN_JSON = 1000
_IDLE_WITH_NODE_S = 86_400.0
_IDLE_ALONE_S = 60.0
"""A half-received file is forgotten when it was not written to for so long: by a node, by an import."""


class Deletable(StrEnum):
    """What `delete` takes."""

    PATIENT = "PATIENT"
    STUDY = "STUDY"
    SERIES = "SERIES"
    INSTANCE = "INSTANCE"


def _settings(config: Path | None, data: Path | None) -> Settings:
    settings = _settings_from(config, data=data)
    if not settings.archive.data.is_dir():
        fail(f"there is no data folder {settings.archive.data}")
    return settings


def _open(settings: Settings) -> Archive:
    if not (settings.archive.data / "catalogue.sqlite").exists() and not (settings.archive.data / "files").exists():
        fail(f"{settings.archive.data} is no data folder of a node (it has no catalogue.sqlite)")
    return Archive.from_settings(settings.archive, quota_gb=settings.retention.quota_gb)


def check_archive(
    repair: Annotated[bool, typer.Option("--repair", help="Put right what can be; nothing is lost by it.")] = False,
    forget: Annotated[
        bool, typer.Option("--forget", help="With --repair: delete the rows of instances whose content is lost.")
    ] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Existence and size of the files only.")] = False,
    config: ConfigOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare files and catalogue both ways; exit code 1 when something is wrong and not put right.

    Finds instances whose file is missing, altered (SHA-256) or unreadable, files that no instance has, wrong counts
    and what SQLite finds. Changes nothing without --repair. A node may be running meanwhile.

    Repairing takes orphaned files back in, moves what is of no use to quarantine/, and counts again. An instance whose
    content is lost stays listed until it is sent again, or until --forget.
    """
    if forget and not repair:
        fail("--forget needs --repair", USAGE)
    settings = _settings(config, data)
    archive = _open(settings)
    idle_s = _IDLE_WITH_NODE_S if read_state(settings.archive.data) else _IDLE_ALONE_S
    options = fsck.Options(repair=repair, forget=forget, quick=quick, idle_s=idle_s)
    found: Counter[fsck.Problem] = Counter()
    solved: Counter[fsck.Problem] = Counter()
    shown: list[fsck.Finding] = []
    started = time.monotonic()
    logging.getLogger().addHandler(logging.NullHandler())  # what is found is told here, not in a log as well
    with progress_bar("Checking", quiet=as_json) as bar:

        def on_progress(step: str, done: int, total: int) -> None:
            bar.describe(step)
            bar.fraction(done / total if total else 0.0)

        for finding in fsck.check(archive, options, on_progress):
            found[finding.problem] += 1
            solved[finding.problem] += finding.is_solved
            if found[finding.problem] <= (_MOST_IN_JSON if as_json else _MOST_SHOWN):
                shown.append(finding)
        bar.fraction(1.0)
    left = found.total() - solved.total()
    seconds = time.monotonic() - started
    if as_json:
        print_json({
            "found": found, "solved": solved, "left": left, "seconds": round(seconds, 3),
            "findings": [asdict(finding) for finding in shown],
        })
    else:
        _print_findings(archive, found, solved, shown, seconds)
        if left:
            out.print(_advice(found - solved, repair=repair), highlight=False)
    if left:
        raise typer.Exit(FAILED)


def _advice(left: Counter[fsck.Problem], *, repair: bool) -> str:
    if not repair:
        return "Nothing was changed; `tharsis fsck --repair` puts right what can be."
    if left[fsck.Problem.MISSING] or left[fsck.Problem.ALTERED]:
        return "Lost content comes back when it is sent again; --forget deletes the rows of what nobody can send."
    return "What is left needs a look by a person."


def _print_findings(
    archive: Archive,
    found: Counter[fsck.Problem],
    solved: Counter[fsck.Problem],
    shown: list[fsck.Finding],
    seconds: float,
) -> None:
    (instances,) = archive.database.execute("SELECT count(*) FROM instance").fetchone()
    told = f"{instances:,} instances, {stored_bytes(archive.database) / 1e6:,.1f} MB, checked in {seconds:.1f} s"
    if not found:
        out.print(f"{told}: nothing is wrong.", highlight=False)
        return
    table = Table(Column("problem", no_wrap=True), "what", "found")
    for finding in shown:
        detail = escape(finding.detail) + (f"\n[green]{escape(finding.action)}[/]" if finding.action else "")
        table.add_row(finding.problem.value, escape(finding.what), detail)
    print_table(table)
    for problem, count in found.items():
        more = f", the first {_MOST_SHOWN} are shown" if count > _MOST_SHOWN else ""
        out.print(f"{problem.value}: {count:,} found, {solved[problem]:,} put right{more}", highlight=False)
    out.print(told, highlight=False)


def rebuild(config: ConfigOption = None, data: DataOption = None, as_json: JsonOption = False) -> None:
    """Make the catalogue again from the stored files, when catalogue.sqlite is lost or broken.

    The old catalogue stays beside the new one as catalogue.sqlite.DATE.bak. Only while no node runs on the folder.
    Lost with the catalogue: the change feed, the jobs (also those not done yet) and the vectors, which are made again.
    What this node derived is derived again under the same UIDs, and requests for storage commitment are forgotten,
    unless the old catalogue can still tell of them. Exit code 1 when files were put aside or instances are missing.
    """
    settings = _settings(config, data)
    folder = settings.archive.data
    try:
        with only_user(folder):
            total = count_files(folder)
            started = time.monotonic()
            with progress_bar("Reading files", total, quiet=as_json) as bar:
                made = rebuild_catalogue(folder, settle_time_s=settings.archive.settle_time_s, on_file=bar.advance)
    except (StartError, RebuildError) as error:
        fail(str(error))
    seconds = time.monotonic() - started
    if as_json:
        print_json({**asdict(made), "seconds": round(seconds, 3)})
    else:
        _print_rebuilt(made, seconds)
    if made.aside or made.missing:
        raise typer.Exit(FAILED)


def _print_rebuilt(made: Rebuilt, seconds: float) -> None:
    table = Table(title="The new catalogue", show_header=False)
    for name in ("patients", "studies", "series", "instances"):
        table.add_row(name, f"{getattr(made, name):,}")
    table.add_row("stored", f"{made.size / 1e6:,.1f} MB")
    table.add_row("old catalogue", escape(made.backup) or "there was none")
    table.add_row("derivations", f"{made.derivations:,} taken over from the old catalogue" if made.derivations
                  else "none known: what was derived is made again, under the same UIDs")
    if made.commitments:
        table.add_row("storage commitment", f"{made.commitments:,} requests wait, taken over from the old catalogue")
    if made.altered:
        table.add_row("altered", f"{made.altered:,} files are not what the old catalogue had recorded")
    out.print(table)
    for put_aside in made.aside[:_MOST_SHOWN]:
        out.print(f"{put_aside.path}: {put_aside.why}", markup=False, highlight=False, soft_wrap=True)
    if len(made.aside) > _MOST_SHOWN:
        out.print(f"and {len(made.aside) - _MOST_SHOWN:,} files more in quarantine/", highlight=False)
    for gone in made.missing[:_MOST_SHOWN]:
        told = f"{gone.sop_instance_uid}: missing, there is no file {gone.path} any more"
        out.print(told, markup=False, highlight=False, soft_wrap=True)
    if len(made.missing) > _MOST_SHOWN:
        out.print(f"and {len(made.missing) - _MOST_SHOWN:,} instances more are missing", highlight=False)
    out.print(
        f"Made in {seconds:.1f} s. The change feed begins anew, all other jobs are forgotten; every series is queued "
        "to be looked at again when the node runs.", highlight=False,
    )


def delete(
    what: Annotated[Deletable, typer.Argument(case_sensitive=False, help="What kind of thing to delete.")],
    uid: Annotated[str, typer.Argument(help="Patient ID, or Study, Series or SOP Instance UID.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    derived: Annotated[
        bool, typer.Option("--derived", help="Also the series elsewhere that were made from what goes.")
    ] = False,
    config: ConfigOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Delete a patient, study, series or instance for good, with its vectors and the jobs on it; a node may be running.

    Shows what will go and asks, unless --yes is given.
    """
    level = Level.IMAGE if what is Deletable.INSTANCE else Level(what.value)
    archive = _open(_settings(config, data))
    try:
        extent = deletion.extent(archive.database, level, uid)
    except NotFound as error:
        fail(str(error))
    if not yes:
        if as_json:
            fail("--json does not ask: add --yes")
        _print_extent(extent, level, uid, with_derived=derived)
        typer.confirm("Delete it for good?", abort=True)
    also = extent.derived if derived else ()
    left: list[str] = []
    deleted = _delete(archive, level, uid, "by the user", left)
    deleted += sum(_delete(archive, Level.SERIES, series, f"made from {uid}", left) for series in also)
    if as_json:
        print_json({"deleted": deleted, **asdict(extent), "with_derived": derived})
    else:
        things = "instance" if deleted == 1 else "instances"
        freed = "" if left else f", {extent.size / 1e6:,.1f} MB freed"
        out.print(f"{deleted:,} {things} deleted{freed}.", highlight=False)
    if left:
        fail("; ".join(left))


def _delete(archive: Archive, level: Level, uid: str, reason: str, left: list[str]) -> int:
    """Delete and return how many instances that were: none when somebody else has done so.

    When the disk refuses to remove some of the files, the sentence that says so is added to those in `left`.
    """
    try:
        return archive.delete(level, uid, reason=reason)
    except NotFound:
        return 0
    except NotRemoved as error:
        left.append(str(error))
        return error.done


def _print_extent(extent: deletion.Extent, level: Level, uid: str, *, with_derived: bool) -> None:
    kind = Deletable.INSTANCE if level is Level.IMAGE else Deletable(level.value)
    out.print(f"{kind.value.lower()} {uid}", markup=False, highlight=False)
    table = Table(show_header=False)
    for name, patient_id, date, description in extent.of:
        table.add_row("of", escape(", ".join(each or "-" for each in (name, patient_id, date, description))))
    for name in ("patients", "studies", "series", "instances"):
        table.add_row(f"{name} that go", f"{getattr(extent, name):,}")
    table.add_row("stored", f"{extent.size / 1e6:,.1f} MB")
    if extent.derived:
        what = "go as well" if with_derived else "stay (--derived deletes them too)"
        table.add_row(f"{len(extent.derived)} derived series", what)
    out.print(table)


def show_retention(config: ConfigOption = None, data: DataOption = None, as_json: JsonOption = False) -> None:
    """Show how much is stored and which studies the settings ([retention]) let go now; deletes nothing itself.

    While `dry_run` is set the node deletes nothing either.
    """
    settings = _settings(config, data)
    archive = _open(settings)
    limits = settings.retention
    stored = stored_bytes(archive.database)
    studies = size = 0
    shown: list[dict[str, Any]] = []
    for study in retention.due(archive, limits):
        studies, size = studies + 1, size + study.size
        if len(shown) < (_MOST_IN_JSON if as_json else _MOST_SHOWN):
            shown.append(asdict(study))
    if as_json:
        print_json({
            "stored_bytes": stored, "settings": limits.model_dump(), "due_studies": studies, "due_bytes": size,
            "due": shown,
        })
        return
    quota = f" of {limits.quota_gb:g} GB" if limits.quota_gb else ", no quota"
    out.print(f"{stored / 1e9:,.3f} GB stored{quota}.", highlight=False)
    if not studies:
        out.print("No study is to go.", highlight=False)
        return
    table = Table("received", "patient", Column("study", no_wrap=True), "instances", "MB", "why")
    for row in shown:
        why = "quota" if "quota" in row["reason"] else "age"
        cells = (row["received_at"][:10], row["patient_id"], row["study_instance_uid"], f"{row['instances']:,}",
                 f"{row['size'] / 1e6:,.1f}", why)
        table.add_row(*map(escape, cells))
    print_table(table)
    when = "dry_run is set: nothing is deleted" if limits.dry_run else "a running node deletes them"
    out.print(f"{studies:,} studies, {size / 1e6:,.1f} MB are to go; {when}.", highlight=False)
