"""``tharsis plugins``: which plug-ins there are, which run, in which order, and what is wrong with the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Column, Table

from commands.console import FAILED, USAGE, ConfigOption, DataOption, JsonOption, fail, out, print_json, settings_from
from commands.plugin_facts import Facts, look_at
from commands.state import read_state
from config.plugins import (
    ALWAYS,
    CHOICE_FILE,
    Choice,
    ChoiceError,
    PluginSettings,
    chosen,
    read_choice,
    write_choice,
)
from config.settings import Settings
from index import plugin_troubles
from index.archive import Archive
from plugins.found import Found, found, in_order, nearest, unknown_names, versions

plugins_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="""List the plug-ins of the node, switch them on and off, say who is asked first.

    A plug-in says what is to be done with a series that came in, and does it: reconstruct, segment, measure, embed.
    The node's own work is done by built-in plug-ins; installed packages bring further ones (docs/plugins.md).

    * `tharsis plugins list` shows all, and what is wrong with those that cannot be used;

    * `tharsis plugins disable NAME` and `enable NAME` switch one off and on again;

    * `tharsis plugins order NAME ...` says who is asked first;

    * `[plugins.settings.NAME]` in the settings is what a plug-in is told; `tharsis plugins show NAME` lists its keys.

    Changes are kept in `plugins.toml` of the data folder, and go before `[plugins]` of the settings. A node that runs
    takes them over by itself.
    """,
)

NamesArgument = Annotated[list[str], typer.Argument(metavar="NAME...", help="As `tharsis plugins list` shows them.")]


@dataclass(frozen=True)
class Listed:
    """A plug-in of the list, in the order of asking.

    Attributes
    ----------
    enabled
        Whether it is to run.
    decided_by
        Who says so: ``default``, ``settings`` or ``plugins.toml``.
    problem
        Why it does not run although it is to; empty when it does.
    """

    name: str
    package: str
    version: str
    module: str
    built_in: bool
    enabled: bool
    decided_by: str
    hooks: tuple[str, ...]
    kinds: tuple[str, ...]
    settings: dict[str, str]
    problem: str

    @property
    def state(self) -> str:
        """In a word."""
        return "disabled" if not self.enabled else "left out" if self.problem else "enabled"


@plugins_app.command("list")
def list_plugins(config: ConfigOption = None, data: DataOption = None, as_json: JsonOption = False) -> None:
    """List the plug-ins in the order in which they are asked: whether each runs, its hooks and kinds of job.

    Each is loaded for that in a process that harms nobody. Exit code 1 when one that is to run cannot be used, or the
    settings name one that is not installed; the reason stands below the list.
    """
    settings = settings_from(config, data=data)
    plugins = _listed(settings)
    slips = unknown_names(_wanted(settings), found())
    if as_json:
        print_json([asdict(each) | {"state": each.state} for each in plugins])
    else:
        out.print(_table(plugins))
        for each in plugins:
            if each.problem:
                _say(f"{each.name} ({each.package} {each.version}): {each.problem}")
        for sentence in slips:
            _say(sentence)
    if slips or any(each.problem and each.enabled for each in plugins):
        raise typer.Exit(FAILED)


def _table(plugins: Sequence[Listed]) -> Table:
    folding = [Column(name, overflow="fold") for name in ("from", "hooks", "kinds of job")]
    table = Table("name", folding[0], "state", *folding[1:])
    marks = {"enabled": "[green]enabled[/]", "disabled": "disabled", "left out": "[bold red]left out[/]"}
    for each in plugins:
        origin = "built in" if each.built_in else f"{each.package} {each.version}"
        decided = "" if each.decided_by == "default" else f" ({each.decided_by})"
        names = (escape(", ".join(each.hooks)), escape(", ".join(each.kinds)))
        table.add_row(escape(each.name), escape(origin), marks[each.state] + decided, *names)
    return table


@plugins_app.command("show")
def show(
    name: Annotated[str, typer.Argument(help="As `tharsis plugins list` shows it.")],
    config: ConfigOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show one plug-in: where it comes from, what it does, and the settings of its own with their meaning."""
    settings = settings_from(config, data=data)
    _refuse_unknown([name])
    listed = next(each for each in _listed(settings, only=name) if each.name == name)
    told = settings.plugins.settings.get(name, {})
    if as_json:
        print_json(asdict(listed) | {"state": listed.state, "told": told})
        return
    table = Table(title=escape(name), show_header=False)
    table.add_row("state", escape(f"{listed.state} ({listed.decided_by})"))
    table.add_row("from", escape(f"{listed.package} {listed.version}, {listed.module}"))
    table.add_row("hooks", ", ".join(listed.hooks))
    table.add_row("kinds of job", escape(", ".join(listed.kinds)) or "none")
    for key, meaning in listed.settings.items():
        now = f" (told: {told[key]!r})" if key in told else ""
        table.add_row(escape(f"[plugins.settings.{name}] {key}"), escape(f"{meaning}{now}"))
    if listed.problem:
        table.add_row("problem", escape(listed.problem))
    out.print(table)


@plugins_app.command("disable")
def disable(names: NamesArgument, config: ConfigOption = None, data: DataOption = None) -> None:
    """Do not run these plug-ins any more: they are not even imported.

    Jobs of theirs that are queued fail and say so; `tharsis jobs queue KIND` asks for them again later.
    """
    settings = settings_from(config, data=data)
    _refuse_unknown(names)
    for name in names:
        if name in ALWAYS:
            fail(f"{name} cannot be disabled: {ALWAYS[name]}", USAGE)
    _write(settings, _choice(settings).disable(names))
    _tell(settings, f"{_and(names)} disabled")


@plugins_app.command("enable")
def enable(names: NamesArgument, config: ConfigOption = None, data: DataOption = None) -> None:
    """Run these plug-ins, whatever the settings say; one that was left out because it hung is tried again."""
    settings = settings_from(config, data=data)
    _refuse_unknown(names)
    if _has_catalogue(settings):
        archive = Archive.from_settings(settings.archive)
        with archive.transaction() as database:
            for name in names:
                plugin_troubles.forget(database, name)
    _write(settings, _choice(settings).enable(names))
    _tell(settings, f"{_and(names)} enabled")


@plugins_app.command("order")
def order(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME...", help="None: go back to the order of the settings.")
    ] = None,
    config: ConfigOption = None,
    data: DataOption = None,
) -> None:
    """Ask these plug-ins first, in this order; the others follow, built-in ones before those of packages.

    Who is asked first has its jobs of a series done first, and counts where two offer the same kind of job or a
    segmenter of the same name.
    """
    settings = settings_from(config, data=data)
    wanted = tuple(dict.fromkeys(names or ()))
    _refuse_unknown(wanted)
    _write(settings, replace(_choice(settings), order=wanted))
    first = in_order([each for each in found() if not each.problem], _wanted(settings).order)
    _tell(settings, f"asked in this order: {', '.join(each.name for each in first)}")


def _listed(settings: Settings, only: str | None = None) -> list[Listed]:
    """Return the plug-ins in the order of asking; of those left out before, without loading them again."""
    there, wanted = found(), _wanted(settings)
    made_trouble = _left_out(settings, there)
    usable = [each.name for each in there if not each.problem and each.name not in made_trouble]
    facts = look_at([name for name in usable if only in (None, name)], settings)
    listed: list[Listed] = []
    kinds: dict[str, str] = {}
    for each in in_order(there, wanted.order):
        shown = facts.get(each.name, Facts(each.name)) if not each.problem else Facts(each.name)
        is_enabled = each.name not in wanted.disabled
        taken = [f"jobs of kind {kind!r} are done by plug-in {kinds[kind]}" for kind in shown.kinds if kind in kinds]
        problem = each.problem or made_trouble.get(each.name, "") or shown.problem or "; ".join(taken)
        if is_enabled and not problem:
            kinds |= dict.fromkeys(shown.kinds, each.name)
        listed.append(
            Listed(
                each.name, each.package, each.version, each.module, each.built_in, is_enabled,
                _decided_by(each.name, settings), shown.hooks, shown.kinds, dict(shown.settings), problem,
            )
        )  # fmt: skip
    return listed


def _left_out(settings: Settings, there: Sequence[Found]) -> dict[str, str]:
    if not _has_catalogue(settings):
        return {}
    archive = Archive.from_settings(settings.archive)
    return {
        name: f"it {sentence}; `tharsis plugins enable {name}` tries it again"
        for name, sentence in plugin_troubles.left_out(archive.database, versions(there)).items()
    }


def _has_catalogue(settings: Settings) -> bool:
    return (settings.archive.data / "catalogue.sqlite").exists()


def _wanted(settings: Settings) -> PluginSettings:
    return chosen(settings.plugins, _choice(settings))


def _choice(settings: Settings) -> Choice:
    try:
        return read_choice(settings.archive.data)
    except ChoiceError as error:
        fail(str(error), USAGE)


def _decided_by(name: str, settings: Settings) -> str:
    choice = _choice(settings)
    if name in choice.disabled or name in choice.enabled:
        return CHOICE_FILE
    return "settings" if name in settings.plugins.disabled else "default"


def _refuse_unknown(names: Sequence[str]) -> None:
    known = sorted({each.name for each in found()})
    for name in names:
        if name not in known:
            fail(f"no plug-in {name!r} is installed; the nearest is {nearest(name, known)!r}", USAGE)


def _write(settings: Settings, choice: Choice) -> Path:
    return write_choice(settings.archive.data, choice)


def _and(names: Sequence[str]) -> str:
    return f"{', '.join(names)} {'is' if len(names) == 1 else 'are'}"


def _tell(settings: Settings, what: str) -> None:
    runs = read_state(settings.archive.data) is not None
    by_itself = "the running node takes it over as soon as its workers have done what they are at"
    when = by_itself if runs else "from the next start"
    _say(f"{what}: {when} ({settings.archive.data / CHOICE_FILE})")


def _say(sentence: str) -> None:
    out.print(sentence, highlight=False, markup=False, soft_wrap=True)
