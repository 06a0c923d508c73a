"""Commands about routing: which rules there are, what became of what they sent, and which of them fit an object."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import pydicom
import typer
from pydicom.errors import InvalidDicomError
from rich.markup import escape
from rich.table import Table

from commands.archive import open_archive
from commands.console import (
    USAGE,
    ConfigOption,
    DataOption,
    JsonOption,
    fail,
    out,
    print_json,
    print_table,
    settings_from,
)
from commands.state import read_state
from config.application_entities import ApplicationEntity
from config.routes import RouteSettings
from config.settings import Settings
from index import deliveries
from index.archive import Archive
from index.deliveries import Queue, State, Trouble
from index.errors import NotFound
from index.jobs import ROUTE

routes_app = typer.Typer(
    help="Rules for sending on what is stored: which there are, what they sent, which of them fit.",
    invoke_without_command=True,
)


@dataclass(frozen=True)
class _Standing:
    """How it stands with one destination."""

    title: str
    where: str
    queue: Queue
    instances: dict[str, int]
    trouble: Trouble | None


@routes_app.callback()
def show_routes(
    context: typer.Context, config: ConfigOption = None, data: DataOption = None, as_json: JsonOption = False
) -> None:
    """Show the rules ([[routes]]), and for each destination what is queued, sent, confirmed and failed."""
    if context.invoked_subcommand is not None:
        return
    settings, archive = settings_from(config, data=data), open_archive(config, data)
    standings = _standings(archive, settings)
    if as_json:
        print_json({
            "rules": [_rule_facts(rule) for rule in settings.routes],
            "destinations": [_facts(standing) for standing in standings],
        })
        return
    if not settings.routes:
        told = "There are no rules: write [[routes]] into the settings (`tharsis check --defaults` shows how)."
        out.print(escape(told))
    else:
        _print_rules(settings)
    if standings:
        _print_standings(standings)


def _rule_facts(rule: RouteSettings) -> dict[str, Any]:
    return rule.model_dump(mode="json", by_alias=True)


def _print_rules(settings: Settings) -> None:
    table = Table("rule", "what", "to", "when and how")
    for rule in settings.routes:
        cells = (rule.name, _what(rule) or "everything", ", ".join(rule.to), ", ".join(_how(rule)))
        table.add_row(*map(escape, cells))
    print_table(table)


def _what(rule: RouteSettings) -> str:
    parts = []
    if rule.sources:
        parts.append("from " + " or ".join(each or '""' for each in rule.sources))
    if rule.derived is not None:
        parts.append("made by this node" if rule.derived else "came from outside")
    if rule.modality:
        parts.append("Modality = " + " or ".join(rule.modality))
    parts += [f"{key} = {value if isinstance(value, str) else ' or '.join(value)}" for key, value in rule.match.items()]
    return "; ".join(parts)


def _how(rule: RouteSettings) -> list[str]:
    how = [" or ".join(rule.schedule) if rule.schedule else "always"]
    if rule.profile:
        how.append(f"de-identified: {rule.profile}")
    how.append({"never": "not confirmed", "offered": "confirmed where offered", "required": "confirmed"}[rule.commit])
    return how


def _standings(archive: Archive, settings: Settings) -> list[_Standing]:
    queues, counts = deliveries.queues(archive), deliveries.counts(archive)
    table = settings.entity_table()
    named = dict.fromkeys(title for rule in settings.routes for title in rule.to)
    return [
        _Standing(
            title,
            _where(table.get(title)),
            queues.get(title, Queue(0, 0, "", None)),
            counts.get(title, {}),
            deliveries.trouble(archive, title),
        )
        for title in {**named, **dict.fromkeys(queues), **dict.fromkeys(counts)}
    ]


def _where(entity: ApplicationEntity | None) -> str:
    return f"{entity.host}:{entity.port}" if entity is not None and entity.is_destination else "not in the settings"


def _facts(standing: _Standing) -> dict[str, Any]:
    trouble = standing.trouble
    return {
        "title": standing.title,
        "where": standing.where,
        "jobs_queued": standing.queue.queued,
        "jobs_failed": standing.queue.failed,
        **{state.value: standing.instances.get(state, 0) for state in State},
        "last_error": trouble.error if trouble else standing.queue.error,
        "failing_since": _moment(trouble.since) if trouble else None,
        "next_try": _moment(_next_try(standing)),
    }


def _next_try(standing: _Standing) -> float | None:
    if standing.queue.due is None:
        return None
    return max(standing.queue.due, standing.trouble.next_try) if standing.trouble else standing.queue.due


def _moment(seconds: float | None) -> str | None:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds") if seconds is not None else None


def _print_standings(standings: list[_Standing]) -> None:
    table = Table(
        "destination", "series\nqueued", "sent", "confirmed", "failing", "refused", "series\nfailed", "next try"
    )
    troubles = []
    for standing in standings:
        facts = _facts(standing)
        due = _next_try(standing)
        cells = (
            f"{facts['title']}\n{facts['where']}", f"{facts['jobs_queued']:,}",
            f"{facts['sent'] + facts['committed']:,}", f"{facts['committed']:,}", f"{facts['failing']:,}",
            f"{facts['refused']:,}", f"{facts['jobs_failed']:,}",
            f"{datetime.fromtimestamp(due):%m-%d %H:%M:%S}" if due is not None else "-",
        )  # fmt: skip
        table.add_row(*map(escape, cells))
        if facts["last_error"]:
            troubles.append(f"{facts['title']}: {facts['last_error']}")
    print_table(table)
    for trouble in troubles:
        out.print(escape(trouble), highlight=False)


@routes_app.command("test")
def explain(
    what: Annotated[str, typer.Argument(help="Series or SOP Instance UID of something stored, or a DICOM file.")],
    source: Annotated[
        str | None, typer.Option("--from", metavar="AET", help="As if this AE had sent it (a file: else imported).")
    ] = None,
    config: ConfigOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say which rules fit a series, and of the others why not; sends nothing."""
    from plugins.routing.rules import RouteError, Subject, checks, destinations, require_rules

    settings = settings_from(config, data=data)
    try:
        require_rules(settings)
    except RouteError as error:
        fail(str(error), USAGE)
    subject = _subject(what, config, data)
    if source is not None:
        subject = Subject(subject.header, frozenset([source]), is_derived=subject.is_derived)
    told = []
    for rule in settings.routes:
        asked = checks(rule, subject)
        fits = all(check.holds for check in asked)
        told.append({
            "rule": rule.name,
            "fits": fits,
            "to": destinations(rule, subject) if fits else (),
            "left_out": tuple(title for title in rule.to if fits and title not in destinations(rule, subject)),
            "opens": _moment(rule.opening().next_opening(datetime.now(UTC).timestamp())),
            "checks": [asdict(check) for check in asked],
        })
    if as_json:
        print_json(told)
        return
    if not told:
        out.print("There are no rules in the settings: nothing is sent on.")
    for each in told:
        _print_verdict(each, _moment(datetime.now(UTC).timestamp()) or "")


def _print_verdict(told: dict[str, Any], now: str) -> None:
    if not told["fits"]:
        verdict = "[red]does not fit[/]"
    elif not told["to"]:
        verdict = f"[yellow]fits, but {escape(told['left_out'][0])} is where it came from[/]"
    else:
        later = f", from {told['opens'][:16].replace('T', ' ')} UTC on" if told["opens"] > now else ""
        verdict = f"[green]is sent to {escape(', '.join(told['to']))}[/]{later}"
    out.print(f"[bold]{escape(told['rule'])}[/]: {verdict}", highlight=False)
    for check in told["checks"]:
        sign = "[green]✓[/]" if check["holds"] else "[red]✗[/]"
        out.print(f"  {sign} {escape(check['what'])}: {escape(check['found'])}", highlight=False, soft_wrap=True)


def _subject(what: str, config: Path | None, data: Path | None) -> Any:
    from plugins.node import CannotProceed, Series
    from plugins.routing.plugin import subject_of
    from plugins.routing.rules import Subject

    path = Path(what)
    if path.is_file():
        try:
            return Subject(pydicom.dcmread(path, stop_before_pixels=True), frozenset([""]), is_derived=False)
        except InvalidDicomError:
            fail(f"{what} is no DICOM file")
    archive = open_archive(config, data)
    try:
        return subject_of(Series(archive, _series_uid(archive, what)))
    except (NotFound, CannotProceed) as error:
        fail(str(error))


def _series_uid(archive: Archive, uid: str) -> str:
    try:
        return archive.open_instance(uid).series_instance_uid
    except NotFound:
        return uid


@routes_app.command("send")
def send_series(
    series: Annotated[str, typer.Option("--series", metavar="UID", help="Series Instance UID of what is sent.")],
    to: Annotated[str, typer.Option("--to", metavar="AET", help="One of [[application_entities]] with host and port.")],
    config: ConfigOption = None,
    data: DataOption = None,
) -> None:
    """Queue a stored series for a destination, whatever the rules say; the running node sends it."""
    from plugins.node import CannotProceed, Series

    settings, archive = settings_from(config, data=data), open_archive(config, data)
    _require_destination(settings, to)
    if not settings.routes:
        fail("there are no [[routes]] in the settings, and a node without rules runs no router", USAGE)
    try:
        count = len(Series(archive, series).instances)
    except (NotFound, CannotProceed) as error:
        fail(str(error))
    job = archive.jobs.push(ROUTE, series, {"destination": to, "rule": ""})
    done = "sent in its turn" if read_state(archive.data) else "sent when the node runs"
    out.print(f"job {job} queued: {count} instances, of these what {to} does not have is {done}", highlight=False)


def _require_destination(settings: Settings, title: str) -> None:
    entity = settings.entity_table().get(title)
    if entity is None or not entity.is_destination:
        fail(f"[[application_entities]] has no {title} with host and port", USAGE)


@routes_app.command("try")
def try_now(
    to: Annotated[str, typer.Argument(metavar="AET", help="A destination that could not be reached.")],
    config: ConfigOption = None,
    data: DataOption = None,
) -> None:
    """Try a destination again now, instead of when its wait is over."""
    _require_destination(settings_from(config, data=data), to)
    archive = open_archive(config, data)
    was = deliveries.trouble(archive, to)
    deliveries.end_trouble(archive, to)
    due = deliveries.hasten_all(archive, to)
    what = f"{was.failures} attempts had failed" if was else "nothing had failed"
    out.print(f"{to}: {what}; {due} jobs are due now", highlight=False)
