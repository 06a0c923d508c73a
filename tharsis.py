"""Tharsis: a DICOM node that reconstructs, segments and finds similar cases in what it stores.

The composition root: it puts the command line together. Each command imports what it needs when it runs, so that
`tharsis --help` is quick and a network process never loads a kernel.
"""

from __future__ import annotations

import sqlite3
import sys
import warnings
from typing import Annotated, NoReturn

import typer

from commands.archive import import_files, jobs_app, status
from commands.check import check
from commands.conformance import conformance
from commands.console import FAILED
from commands.deidentify import deidentify
from commands.demo import demo
from commands.describe import describe
from commands.evaluation import evaluate
from commands.import_scan import import_scan
from commands.maintenance import check_archive, delete, rebuild, show_retention
from commands.models import models_app
from commands.network import commit, find, send
from commands.orthanc import orthanc_app
from commands.plugins import plugins_app
from commands.report import report
from commands.routes import routes_app
from commands.scan_report import scan_report
from commands.scans import reconstruct, simulate
from commands.segmenter_training import train_segmenter
from commands.serve import serve
from commands.similar import similar
from commands.training import train_encoder
from config.identity import version
from index.errors import ArchiveError

app = typer.Typer(
    name="tharsis",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:  # noqa: FBT001 - typer calls it so
    if wanted:
        typer.echo(f"tharsis {version()}")
        raise typer.Exit


@app.callback()
def root(
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """A DICOM node that reconstructs, segments and finds similar cases in what it stores.

    Start here:

    * `tharsis demo` shows the whole loop on this machine, from scan to similar case;

    * `tharsis serve` runs a node (DICOM on port 11112, data in ./tharsis-data);

    * `tharsis check` tells whether everything is in place.

    Exit codes: 0 done, 1 failed (also in part), 2 wrong usage or settings, 3 peer not reached.
    """


app.command("demo", rich_help_panel="The node")(demo)
app.command("serve", rich_help_panel="The node")(serve)
app.command("status", rich_help_panel="The node")(status)
app.add_typer(jobs_app, name="jobs", rich_help_panel="The node")
app.add_typer(routes_app, name="routes", rich_help_panel="The node")
app.add_typer(plugins_app, name="plugins", rich_help_panel="The node")
app.command("check", rich_help_panel="The node")(check)
app.add_typer(orthanc_app, name="orthanc", rich_help_panel="The node")
app.command("conformance", rich_help_panel="The node")(conformance)
app.command("fsck", rich_help_panel="Keeping the archive")(check_archive)
app.command("rebuild", rich_help_panel="Keeping the archive")(rebuild)
app.command("delete", rich_help_panel="Keeping the archive")(delete)
app.command("retention", rich_help_panel="Keeping the archive")(show_retention)
app.command("train", rich_help_panel="Similar cases")(train_encoder)
app.add_typer(models_app, name="models", rich_help_panel="Similar cases")
app.command("evaluate", rich_help_panel="Similar cases")(evaluate)
app.command("train-segmenter", rich_help_panel="Scans and images")(train_segmenter)
app.command("simulate-scan", rich_help_panel="Scans and images")(simulate)
app.command("reconstruct", rich_help_panel="Scans and images")(reconstruct)
app.command("scan-report", rich_help_panel="Scans and images")(scan_report)
app.command("report", rich_help_panel="Scans and images")(report)
app.command("import", rich_help_panel="Scans and images")(import_files)
app.command("deidentify", rich_help_panel="Scans and images")(deidentify)
app.command("import-scan", rich_help_panel="Scans and images")(import_scan)
app.command("describe", rich_help_panel="Scans and images")(describe)
app.command("send", rich_help_panel="Asking a node, this one or any other")(send)
app.command("commit", rich_help_panel="Asking a node, this one or any other")(commit)
app.command("find", rich_help_panel="Asking a node, this one or any other")(find)
app.command("similar", rich_help_panel="Asking a node, this one or any other")(similar)


def main() -> None:
    """Run the command line; what the system refuses (a file, a disk, a broken catalogue) is told in one sentence."""
    warnings.filterwarnings("ignore", category=UserWarning, module="pydicom")
    try:
        app()
    except OSError as error:
        _end(f"{error.strerror or error}: {error.filename}" if error.filename else str(error))
    except sqlite3.Error as error:
        _end(f"the catalogue cannot be used: {error}")
    except ArchiveError as error:
        _end(str(error))


def _end(sentence: str) -> NoReturn:
    sys.stderr.write(f"tharsis: {sentence}\n")
    sys.exit(FAILED)


if __name__ == "__main__":
    main()
