"""Commands on the data folder itself, whether a node is running on it or not: status, jobs, import."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
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
from commands.images import (
    ImagesOption,
    ModalityOption,
    PatientPatternOption,
    PatientTableOption,
    content,
    image_converter,
    is_image_file,
)
from commands.state import read_state
from index import integrity, plugin_troubles, tally
from index.archive import Archive
from index.bases import files as bases
from index.errors import ArchiveError, InstanceConflict, InvalidInstance, NotFound, WrongState
from index.files import is_part10
from index.jobs import STATES
from plugins.found import found, versions
from scp.part10 import is_directory, with_preamble

jobs_app = typer.Typer(help="The job queue: what is being worked on, what failed and why.", no_args_is_help=True)


def open_archive(config: Path | None, data: Path | None, *, must_exist: bool = True) -> Archive:
    """Return the archive that the options and the settings name; a folder that is none ends the command."""
    settings = _settings_from(config, data=data)
    folder = settings.archive.data
    if must_exist and not (folder / "catalogue.sqlite").exists() and not (folder / "files").exists():
        fail(f"{settings.archive.data} is no data folder of a node (it has no catalogue.sqlite)")
    return Archive.from_settings(settings.archive, quota_gb=settings.retention.quota_gb)


def status(config: ConfigOption = None, data: DataOption = None, as_json: JsonOption = False) -> None:
    """Show what the node holds and what it is doing."""
    archive = open_archive(config, data)
    facts = _facts(archive, _settings_from(config, data=data).similarity.target_recall)
    if as_json:
        print_json(facts)
        return
    node = facts["node"]
    running = _where(node) if node else "not running"
    table = Table(title=escape(f"Archive in {archive.data}"), show_header=False)
    table.add_row("node", running)
    for name in ("patients", "studies", "series", "instances"):
        table.add_row(name, f"{facts[name]:,}")
    table.add_row("stored", f"{facts['bytes'] / 1e6:,.1f} MB")
    table.add_row("damaged", f"[bold red]{facts['damaged']:,}[/]" if facts["damaged"] else "none known")
    table.add_row("read back", _verified_in_words(facts))
    if facts["studies_deleted_by_retention"]:
        table.add_row("retention", f"{facts['studies_deleted_by_retention']:,} studies deleted so far")
    table.add_row("jobs", ", ".join(f"{count} {state}" for state, count in facts["jobs"].items()) or "none")
    for name, why in facts["plugins_left_out"].items():
        table.add_row("plug-in", f"[bold red]{escape(name)} is left out[/]: it {escape(why)}")
    for model in facts["encoders"]:
        table.add_row("embeddings", f"{model['embeddings']:,} of {model['model_id']}")
    for base in facts["vector_indexes"]:
        table.add_row("index", _index_in_words(base))
    out.print(table)


def _index_in_words(base: dict[str, Any]) -> str:
    told = f"{base['kind']} of {base['vectors']:,} {base['grain']} vectors of {base['model_id']}"
    if base["recall"] is None:
        return f"{told}, exact"
    return f"{told}, recall {base['recall']:.3f} (at least {base['recall_bound']:.3f}, target {base['target']:g})"


def _verified_in_words(facts: dict[str, Any]) -> str:
    if not facts["instances"]:
        return "nothing to read"
    since = facts["all_verified_since"]
    return f"each file, the longest ago {since[:16].replace('T', ' ')} UTC" if since else "not every file yet"


def _moment(seconds: float | None) -> str | None:
    """Return the moment in ISO 8601, UTC; None for one that has not come."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds") if seconds else None


def _where(node: dict[str, Any]) -> str:
    ports = [str(node["port"])] if node["port"] else []
    ports += [f"{node['tls_port']} (TLS)"] if node.get("tls_port") else []
    return f"{node['aet']} on {node['host']}, port {' and '.join(ports)} (process {node['pid']})"


def _facts(archive: Archive, target_recall: float) -> dict[str, Any]:
    database = archive.database
    counts = {
        name: database.execute(f"SELECT count(*) FROM {table}").fetchone()[0]  # noqa: S608 - names from this line
        for name, table in (
            ("patients", "patient"), ("studies", "study"), ("series", "series"), ("instances", "instance")
        )
    }
    encoders = database.execute(
        "SELECT encoder.model_id, count(embedding.id) FROM encoder "
        "LEFT JOIN embedding ON embedding.model_id = encoder.model_id GROUP BY encoder.model_id"
    )
    return {
        "data": str(archive.data),
        "node": read_state(archive.data),
        **counts,
        "bytes": tally.stored_bytes(database),
        "damaged": integrity.damaged(database),
        "all_verified_since": _moment(integrity.all_verified_since(database)),
        "studies_deleted_by_retention": tally.value(database, tally.STUDIES_DELETED_BY_RETENTION),
        "jobs": archive.jobs.counts(),
        "plugins_left_out": plugin_troubles.left_out(database, versions(found())),
        "encoders": [{"model_id": model, "embeddings": number} for model, number in encoders],
        "vector_indexes": [_index_facts(made, target_recall) for made in bases.every(database)],
    }


def _index_facts(made: bases.Made, target: float) -> dict[str, Any]:
    step = made.curve.step(made.curve.levels[0].neighbours, target) if made.curve else None
    return {
        "model_id": made.model_id,
        "grain": made.grain.value,
        "kind": made.kind.value,
        "vectors": made.vectors,
        "made_at": made.at,
        "target": target if step else None,
        "recall": step.recall if step else None,
        "recall_bound": step.bound if step else None,
    }


@jobs_app.command("list")
def list_jobs(
    state: Annotated[
        list[str] | None, typer.Option(help="Only jobs in this state: queued, running, done, failed, cancelled.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many, the newest first.")] = 50,
    config: ConfigOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """List jobs, the newest first."""
    unknown = sorted(set(state or ()) - set(STATES))
    if unknown:
        fail(f"no job is ever {unknown[0]!r}; the states are {', '.join(STATES)}", USAGE)
    jobs = open_archive(config, data).jobs.recent(states=tuple(state or ()), limit=limit)
    if as_json:
        print_json([vars(job) for job in jobs])
        return
    table = Table("job", "kind", Column("subject", no_wrap=True), "state", "progress", "attempts", "error")
    for job in jobs:
        to = job.parameters.get("destination", "")
        subject = f"{job.subject} to {to}" if to else job.subject
        row = (str(job.id), job.kind, subject, job.state, f"{job.progress:.0%}", str(job.attempts), job.error)
        table.add_row(*(escape(cell) for cell in row))
    print_table(table)


@jobs_app.command("retry")
def retry(number: int, config: ConfigOption = None, data: DataOption = None) -> None:
    """Run a job that has ended once more."""
    _told(open_archive(config, data).jobs.retry, number, "is queued again")


@jobs_app.command("cancel")
def cancel(number: int, config: ConfigOption = None, data: DataOption = None) -> None:
    """Cancel a job that is queued or running."""
    _told(open_archive(config, data).jobs.cancel, number, "is cancelled")


@jobs_app.command("queue")
def queue(
    kind: Annotated[str, typer.Argument(help="For example decompose, segment, measure, picture, embed.")],
    config: ConfigOption = None,
    data: DataOption = None,
) -> None:
    """Queue jobs of one kind for all that is stored and would get them if it came in now.

    For what was there before the settings asked for it, for example `decompose` after `[materials] enabled = true`. The
    settings are those of `--config`. Nothing is made twice: doing it again replaces what was made.
    """
    from plugins.missing import work_of_kind
    from plugins.node import CannotProceed

    archive, settings = open_archive(config, data), _settings_from(config, data=data)
    try:
        with progress_bar("Asking the plug-ins") as bar:
            wanted = work_of_kind(archive, settings, kind, bar.fraction)
    except CannotProceed as error:
        fail(str(error), USAGE)
    for work in wanted.work:
        archive.jobs.push(work.kind, work.subject, work.parameters)
    for sentence in wanted.refused:
        out.print(sentence, highlight=False, markup=False)
    does = "done in their turn" if read_state(archive.data) else "done when the node runs"
    queued = f"{len(wanted.work)} job{'' if len(wanted.work) == 1 else 's'} queued"
    out.print(f"{queued}: {does} (see `tharsis jobs list`)", highlight=False)
    if wanted.refused:
        raise typer.Exit(FAILED)


def _told(action: Callable[[int], int | None], number: int, done: str) -> None:
    try:
        new = action(number)
    except (NotFound, WrongState) as error:
        fail(str(error))
    out.print(f"job {number} {done}" + (f" as job {new}" if new else ""), highlight=False)


def import_files(
    paths: Annotated[list[Path], typer.Argument(help="Files, and folders to look through.", exists=True)],
    config: ConfigOption = None,
    data: DataOption = None,
    images: ImagesOption = False,
    modality: ModalityOption = None,
    patient_pattern: PatientPatternOption = None,
    patient_table: PatientTableOption = None,
    as_json: JsonOption = False,
) -> None:
    """Bring DICOM files into the archive, without the network; the node may be running meanwhile.

    Files without a preamble are taken, too. Files that are not DICOM are counted and left alone, unless they are images
    and `--images` is given: each then becomes a study of its own. So is a DICOMDIR in a folder. A file that is refused
    is named with the reason; the others go on, and the exit code is then 1, as it is when nothing could be imported.
    """
    convert = image_converter(modality, patient_pattern, patient_table, images=images)
    files = find_files(paths)
    archive = open_archive(config, data, must_exist=False)
    outcomes: Counter[str] = Counter()
    refused: list[dict[str, str]] = []
    started = time.monotonic()
    with progress_bar("Importing", len(files), quiet=as_json) as bar:
        for file in files:
            bar.advance()
            try:
                source = file if is_part10(file) else with_preamble(file) or content(file, convert)
                outcome = "not DICOM" if source is None else archive.ingest(source).outcome.value
            except (ArchiveError, OSError) as error:
                outcome = "conflict" if isinstance(error, InstanceConflict) else "refused"
                if file not in paths and isinstance(error, InvalidInstance) and is_directory(file):
                    outcome = "DICOMDIR"
                else:
                    refused.append({"file": str(file), "reason": _reason(file, error)})
            outcomes[outcome] += 1
    seconds = time.monotonic() - started
    if as_json:
        print_json({"outcomes": outcomes, "refused": refused, "seconds": round(seconds, 3)})
    else:
        for item in refused:
            out.print(f"{item['file']}: {item['reason']}", markup=False, soft_wrap=True)
        out.print(f"{sum(outcomes.values())} files in {seconds:.1f} s: " + _list(outcomes), highlight=False)
    if refused or not outcomes.keys() - {"not DICOM", "DICOMDIR"}:
        raise typer.Exit(FAILED)


def _reason(file: Path, error: ArchiveError | OSError) -> str:
    if isinstance(error, InstanceConflict) and is_image_file(file):
        return "this image is stored already, under another name or description: that one was kept"
    return str(error.strerror) if isinstance(error, OSError) else str(error)


def _list(outcomes: Counter[str]) -> str:
    return ", ".join(f"{count} {what}" for what, count in outcomes.most_common())


def find_files(paths: list[Path]) -> list[Path]:
    """Return the files among `paths` and below the folders among them, sorted within each; none ends the command."""
    found: list[Path] = []
    for path in paths:
        found += sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    if not found:
        fail(f"there is no file in {' or '.join(map(str, paths))}")
    return found
