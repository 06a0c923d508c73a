"""Tharsis: a DICOM node that reconstructs, segments and finds similar cases in what it stores.

The composition root: it puts the command line together. A command is imported when it runs, and imports in turn what it
needs when it needs it, so that `tharsis --help` is quick and a network process never loads a kernel.
"""

from __future__ import annotations

import sqlite3
import sys
import warnings
from typing import Annotated, NoReturn

import typer

from commands.on_demand import Listed, app_of
from config.identity import version
from index.errors import ArchiveError

PANELS = {
    "The node": [
        Listed("demo", "commands.demo:demo",
               "Show the whole loop on this machine: scan, store, reconstruct, segment, embed, ask, retrieve, look."),
        Listed("serve", "commands.serve:serve", "Run the node until Ctrl-C or SIGTERM."),
        Listed("status", "commands.archive:status", "Show what the node holds and what it is doing."),
        Listed("check", "commands.check:check",
               "Check settings, port, data folder, names and versions; exit code 1 when something would "
               "keep a node from running."),
        Listed("conformance", "commands.conformance:conformance",
               "Print the DICOM Conformance Statement (PS3.2) of a node with these settings, as Markdown."),
        Listed("jobs", "commands.archive:jobs_app", "The job queue: what is being worked on, what failed and why."),
        Listed("routes", "commands.routes:routes_app",
               "Rules for sending on what is stored: which there are, what they sent, which of them fit."),
        Listed("plugins", "commands.plugins:plugins_app",
               "List the plug-ins of the node, switch them on and off, say who is asked first."),
        Listed("orthanc", "commands.orthanc:orthanc_app", "Work for an Orthanc (docs/orthanc.md)."),
    ],
    "Keeping the archive": [
        Listed("fsck", "commands.maintenance:check_archive",
               "Compare files and catalogue both ways; exit code 1 when something is wrong and not put right."),
        Listed("rebuild", "commands.maintenance:rebuild",
               "Make the catalogue again from the stored files, when catalogue.sqlite is lost or broken."),
        Listed("delete", "commands.maintenance:delete",
               "Delete a patient, study, series or instance for good, with its vectors and the jobs on "
               "it; a node may be running."),
        Listed("retention", "commands.maintenance:show_retention",
               "Show how much is stored and which studies the settings ([retention]) let go now; deletes "
               "nothing itself."),
    ],
    "Similar cases": [
        Listed("train", "commands.training:train_encoder",
               "Train the learned encoder on the images of the archive, and judge it on patients that were held out."),
        Listed("evaluate", "commands.evaluation:evaluate",
               "Judge encoders: each image (or series) asks for those with its label, among those of other patients."),
        Listed("models", "commands.models:models_app",
               "List the encoders that make images searchable, activate one, go back, delete one."),
    ],
    "Scans and images": [
        Listed("train-segmenter", "commands.segmenter_training:train_segmenter",
               "Train the segmenter `learned` on the annotated CT of the archive, and judge it on what was held out."),
        Listed("simulate-scan", "commands.scans:simulate",
               "Simulate a spectral cone-beam scan, as a MARS-like photon-counting micro-CT makes it, in DICOM."),
        Listed("reconstruct", "commands.scans:reconstruct",
               "Reconstruct a scan into one CT series for each energy bin."),
        Listed("scan-report", "commands.scan_report:scan_report",
               "Show what is wrong with a scan, and what the corrections do about it, on one page."),
        Listed("report", "commands.report:report", "Measure the segments of a stored segmentation, and draw them."),
        Listed("import", "commands.archive:import_files",
               "Bring DICOM files into the archive, without the network; the node may be running meanwhile."),
        Listed("deidentify", "commands.deidentify:deidentify",
               "De-identify files, folders or stored studies; what is refused is named, and the others go on."),
        Listed("import-scan", "commands.import_scan:import_scan",
               "Bring in a scan that is no DICOM: it is stored as projections (P1) and reconstructed like any other."),
        Listed("describe", "commands.describe:describe",
               "Show which elements vary over the files of a scan, for writing a site mapping."),
    ],
    "Asking a node, this one or any other": [
        Listed("send", "commands.network:send", "Send DICOM files with C-STORE, as they are."),
        Listed("commit", "commands.network:commit",
               "Ask a node whether it keeps files safe that it was sent (storage commitment)."),
        Listed("find", "commands.network:find",
               "Ask a node what it holds (C-FIND, Study Root; Patient Root for patients)."),
        Listed("retrieve", "commands.retrieve:retrieve",
               "Retrieve from a node what it holds, into a folder (C-GET) or to another node (C-MOVE)."),
        Listed("similar", "commands.similar:similar",
               "Ask a Tharsis node for similar cases: like a study, series, image, region, vector or file."),
    ],
}

app = app_of(
    PANELS,
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
    from commands.console import FAILED

    sys.stderr.write(f"tharsis: {sentence}\n")
    sys.exit(FAILED)


if __name__ == "__main__":
    main()
