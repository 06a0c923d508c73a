"""``tharsis check``: tells whether everything is in place to run a node here."""

from __future__ import annotations

import importlib
import importlib.util
import platform
import shutil
import socket
import sqlite3
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata, resources
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from commands.console import FAILED, ConfigOption, DataOption, JsonOption, out, print_json, settings_from
from commands.state import read_state
from config.identity import version
from config.plugins import ChoiceError, chosen, read_choice
from config.settings import Settings
from plugins.found import found, unknown_names

TOP_LEVEL_NAMES = ("config", "index", "reconstruct", "plugins", "scp", "commands", "tharsis")
_LIBRARIES = ("pydicom", "pynetdicom", "highdicom", "numpy", "numba", "faiss-cpu", "scikit-image", "sqlite-utils")


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    what: str
    good: bool
    detail: str


def check(
    config: ConfigOption = None,
    data: DataOption = None,
    defaults: Annotated[bool, typer.Option("--defaults", help="Print the settings manual and stop.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Check settings, port, data folder, names and versions; exit code 1 when something would keep a node from running.

    `tharsis check --defaults > my.toml` writes the settings with all their explanations, to start your own from.
    """
    if defaults:
        typer.echo(resources.files("config").joinpath("default.toml").read_text(encoding="utf-8"), nl=False)
        return
    settings = settings_from(config, data=data)
    findings = [*_names(), *_ports(settings), *_tls(settings), *_data(settings), *_plugins(settings), *_versions()]
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        table = Table("", "check", "found")
        for finding in findings:
            mark = "[green]ok[/]" if finding.good else "[bold red]no[/]"
            table.add_row(mark, escape(finding.what), escape(finding.detail))
        out.print(table)
    if not all(finding.good for finding in findings):
        raise typer.Exit(FAILED)


def _names() -> Iterator[Finding]:
    """The packages have plain names: another package of one of these names would be imported in their place."""
    home = Path(__file__).resolve().parent.parent
    distributions = metadata.packages_distributions()
    for name in TOP_LEVEL_NAMES:
        spec = importlib.util.find_spec(name)
        origin = Path(spec.origin).resolve() if spec and spec.origin else None
        others = set(distributions.get(name, [])) - {"tharsis"}
        good = origin is not None and origin.is_relative_to(home) and not others
        shadow = f"also in {', '.join(sorted(others))}" if others else f"shadowed by {origin}"
        yield Finding(f"package {name}", good, str(origin) if good else shadow)


def _ports(settings: Settings) -> Iterator[Finding]:
    node = read_state(settings.archive.data) or {}
    if settings.tls.plain:
        yield _port(settings.scp.host, settings.scp.port, node, "port")
    if settings.tls.enabled:
        yield _port(settings.scp.host, settings.tls.port, node, "tls_port")


def _port(host: str, port: int, node: dict[str, object], role: str) -> Finding:
    what = f"port {port}" if role == "port" else f"TLS port {port}"
    if node.get(role) == port:
        return Finding(what, good=True, detail=f"this node is listening (process {node['pid']})")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return Finding(what, good=False, detail=f"cannot listen on {host}:{port}: {error.strerror}")
    return Finding(what, good=True, detail=f"free on {host}")


def _tls(settings: Settings) -> Iterator[Finding]:
    from scp.tls import TlsError, server_context

    if not settings.tls.enabled:
        return
    try:
        server_context(settings.tls)
    except TlsError as error:
        yield Finding("TLS certificate", good=False, detail=str(error))
    else:
        yield Finding("TLS certificate", good=True, detail=f"{settings.tls.certificate} and its key belong together")


def _data(settings: Settings) -> Iterator[Finding]:
    folder = settings.archive.data.resolve()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free >> 20
    enough = free > settings.archive.reserve_mb
    yield Finding(f"data folder {folder}", enough, f"{free:,} MiB free, {settings.archive.reserve_mb} kept in reserve")


def _plugins(settings: Settings) -> Iterator[Finding]:
    """Whether the plug-ins that the settings name are there; `tharsis plugins list` loads them, too."""
    installed = found()
    try:
        wanted = chosen(settings.plugins, read_choice(settings.archive.data))
    except ChoiceError as error:
        yield Finding("plug-ins", good=False, detail=str(error))
        return
    slips = unknown_names(wanted, installed)
    running = [each.name for each in installed if each.name not in wanted.disabled and not each.problem]
    yield Finding("plug-ins", not slips, "; ".join(slips) or ", ".join(running))


def _versions() -> Iterator[Finding]:
    yield Finding("Tharsis", good=True, detail=version())
    yield Finding("Python", good=True, detail=platform.python_version())
    yield Finding("SQLite", good=sqlite3.sqlite_version_info >= (3, 38), detail=sqlite3.sqlite_version)
    for name in _LIBRARIES:
        try:
            yield Finding(name, good=True, detail=metadata.version(name))
        except metadata.PackageNotFoundError:
            yield Finding(name, good=False, detail="not installed")
