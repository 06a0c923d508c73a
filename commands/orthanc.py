"""``tharsis orthanc``: what one needs to turn an Orthanc into a Tharsis, and to see whether it is one."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer
from rich.markup import escape
from rich.table import Table

from commands.check import Finding
from commands.console import FAILED, ConfigOption, DataOption, JsonOption, fail, out, print_json, settings_from
from config.settings import Settings
from index import jobs
from index.archive import Archive
from plugins.orthanc.client import OrthancAway, OrthancClient, OrthancLacks, OrthancRefused
from scp import client
from scp.client import Requestor
from scp.errors import PeerError
from scp.requestor import Peer

orthanc_app = typer.Typer(no_args_is_help=True, help="Work for an Orthanc (docs/orthanc.md).")

_OURS = """\
# For the node: add this to the file of `tharsis serve --config`.
[orthanc]
enabled = true
url = "{url}"
user = {user}                # of RegisteredUsers in Orthanc's settings; "" when Orthanc wants none
password = ""               # of that user, or password_file
aet = "{title}"
key = "{key}"

[[application_entities]]
title = "{title}"
host = "{host}"
port = {port}
rights = ["store", "find", "move", "similar"]

# To have CT segmented as well that this node has not reconstructed:
# [segmentation]
# images = "ct"
"""


def script_path() -> Path:
    """Where the script for Orthanc's Python plug-in lies."""
    return Path(str(resources.files("plugins.orthanc").joinpath("tharsis_orthanc.py"))).resolve()


@orthanc_app.command("script")
def script() -> None:
    """Print the path of the script that Orthanc loads ("PythonScript" in its settings)."""
    typer.echo(script_path())


@orthanc_app.command("setup")
def setup(
    url: Annotated[str, typer.Option(help="Of Orthanc's REST API.")] = "http://127.0.0.1:8042",
    user: Annotated[str, typer.Option(help="Who this node logs in as at Orthanc.")] = "",
    title: Annotated[str, typer.Option(help="Orthanc's AE title (DicomAet).")] = "ORTHANC",
    dicom_port: Annotated[int, typer.Option(min=1, max=65535, help="Orthanc's DICOM port.")] = 4242,
    config: ConfigOption = None,
) -> None:
    """Print what goes into Orthanc's settings and into this node's, with a new key that both share.

    Example:  tharsis orthanc setup --user tharsis
    """
    settings = settings_from(config)
    key = secrets.token_urlsafe(32)
    host = urlsplit(url).hostname or "127.0.0.1"
    theirs = {
        "Tharsis": {
            "Node": f"http://{settings.orthanc.door_host}:{settings.orthanc.door_port}",
            "Key": key,
            "Aet": settings.scp.aet,
            "Host": "127.0.0.1",
            "Port": settings.scp.port,
        }
    }
    typer.echo("For Orthanc: a file tharsis.json in the folder of its settings (Debian: /etc/orthanc):\n")
    typer.echo(json.dumps(theirs, indent=2))
    typer.echo("\nFor Orthanc: python.json in the same folder:\n")
    typer.echo(json.dumps({"PythonScript": str(script_path()), "PythonVerbose": False}, indent=2))
    typer.echo()
    typer.echo(_OURS.format(url=url, user=json.dumps(user), title=title, key=key, host=host, port=dicom_port))


@orthanc_app.command("check")
def check(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Check that Orthanc answers, lets this node in, has the script, and can be asked to move.

    Exit code 1 when something is missing. Run it while the node serves.
    """
    settings = settings_from(config)
    if not settings.orthanc.enabled:
        fail("[orthanc] enabled is false in these settings")
    findings = [*_rest(settings), _dicom(settings)]
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


@orthanc_app.command("compare")
def compare(
    deletions: Annotated[
        bool, typer.Option("--deletions", help="Delete here what Orthanc does not hold any more, however much it is.")
    ] = False,
    config: ConfigOption = None,
    data: DataOption = None,
) -> None:
    """Have the list of all series compared with Orthanc's now: whatever was missed is fetched, or given back.

    The node does so by itself when it or Orthanc starts, and every compare_hours. Where more than a tenth of all series
    is gone from Orthanc, it deletes nothing before you say so with --deletions.
    """
    from plugins.orthanc.comparing import DELETIONS, ONCE, SUBJECT

    settings = settings_from(config, data=data)
    if not settings.orthanc.enabled:
        fail("[orthanc] enabled is false in these settings")
    archive = Archive.from_settings(settings.archive)
    archive.jobs.push(jobs.ORTHANC_COMPARE, SUBJECT, {**ONCE, DELETIONS: True} if deletions else ONCE)
    archive.close()
    typer.echo("queued; `tharsis jobs list` shows what it finds")


def _rest(settings: Settings) -> Iterator[Finding]:
    own = settings.orthanc
    try:
        with OrthancClient(own) as orthanc:
            system = orthanc.get("/system")
            yield Finding(f"Orthanc at {own.url}", good=True, detail=f"version {system.get('Version')}")
            good = system.get("DicomAet") == own.aet
            yield Finding("its AE title", good, f"{system.get('DicomAet')}, aet of [orthanc] is {own.aet}")
            titles = {each.get("AET") for each in orthanc.get("/modalities?expand").values()}
            for title in (settings.scp.aet, settings.scp.similarity_aet):
                known = title in titles
                yield Finding(f"{title} is known there", known, "yes" if known else "not one of its DicomModalities")
            told = orthanc.get("/tharsis/status")
            yield Finding("the script in Orthanc reaches the node", good=True, detail=f"{told.get('node')}")
    except OrthancLacks:
        yield Finding("the script in Orthanc", good=False, detail="not loaded: see PythonScript in Orthanc's settings")
    except (OrthancAway, OrthancRefused) as error:
        yield Finding(f"Orthanc at {own.url}", good=False, detail=str(error))


def _dicom(settings: Settings) -> Finding:
    entity = settings.entity_table().get(settings.orthanc.aet)
    what = f"C-ECHO to {settings.orthanc.aet}"
    if entity is None:
        return Finding(what, good=False, detail="[[application_entities]] does not name it")
    try:
        client.echo(Peer(entity.host, entity.port, entity.title), Requestor(settings.scp.aet))
    except PeerError as error:
        return Finding(what, good=False, detail=str(error))
    return Finding(what, good=True, detail=f"{entity.host}:{entity.port}")
