"""What a peer answers for, as the command line tells it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from pydicom.uid import MediaStorageDirectoryStorage
from rich.markup import escape
from rich.table import Column, Table

from commands.console import FAILED, UNREACHABLE, err, fail, out, print_table
from index.commitments import Reference, Report
from index.files import is_part10
from scp.client import RequestFailed, Requestor
from scp.commitment_client import commit
from scp.errors import PeerError
from scp.part10 import NotDicomError, read_object
from scp.requestor import Peer

ListenOption = Annotated[
    int | None,
    typer.Option(
        "--listen", min=1, max=65535, metavar="PORT",
        help="Wait for the report on this port, where the peer knows us, and not on the association of the request.",
    ),
]
WaitOption = Annotated[float, typer.Option("--wait", min=0.1, help="How long to wait for the report, seconds.")]
DEFAULT_WAIT_S = 60.0

_REASONS = {
    0x0110: "processing failure: missing, altered or unreadable",
    0x0112: "no such instance",
    0x0119: "stored with another SOP class",
    0x0122: "SOP class not supported",
    0x0131: "Transaction UID in use",
    0x0213: "resource limitation",
}
"""Failure Reason (0008,1197) in words (PS3.3 C.14.1.1)."""


@dataclass(frozen=True)
class Told:
    """What the peer says of one file; `reason` is empty when it answers for it.

    Attributes
    ----------
    is_object
        False where the file holds nothing to ask about: it is not DICOM, or a DICOMDIR.
    """

    path: Path
    sop_instance_uid: str
    reason: str
    is_object: bool = True


def ask(peer: Peer, files: Sequence[Path], aet: str, *, wait_s: float, listen: int | None) -> list[Told]:
    """Ask for storage commitment of `files` and return what the peer says of each; a failure ends the command."""
    references: dict[Path, Reference] = {}
    told: list[Told] = []
    for path in files:
        try:
            item = read_object(path)
        except NotDicomError as error:
            told.append(Told(path, "", str(error), is_object=is_part10(path)))
        except OSError as error:
            told.append(Told(path, "", str(error)))
        else:
            if item.sop_class_uid == MediaStorageDirectoryStorage:
                told.append(Told(path, "", "a DICOMDIR, which is not sent", is_object=False))
                continue
            references[path] = Reference(item.sop_class_uid, item.sop_instance_uid)
    if not references:
        return told
    try:
        report = commit(peer, list(references.values()), Requestor(aet), wait_s=wait_s, listen_port=listen)
    except RequestFailed as error:
        fail(str(error))
    except PeerError as error:
        fail(str(error), UNREACHABLE)
    except OSError as error:
        fail(f"cannot listen on port {listen}: {error.strerror or error}", FAILED)
    return told + [
        Told(path, reference.sop_instance_uid, _reason(reference, report)) for path, reference in references.items()
    ]


def _reason(reference: Reference, report: Report) -> str:
    if reference in report.failures:
        code = report.failures[reference]
        return f"{code:04X} ({_REASONS.get(code, 'a reason that PS3.3 C.14.1.1 does not name')})"
    return "" if reference in report.committed else "not mentioned in the report"


def as_objects(told: Sequence[Told]) -> list[dict[str, Any]]:
    """Return what was told, for JSON."""
    return [
        {"file": str(item.path), "sop_instance_uid": item.sop_instance_uid, "safe": not item.reason,
         "reason": item.reason}
        for item in told
    ]


def show(peer: Peer, told: Sequence[Told]) -> None:
    """Print what was told."""
    table = Table(Column("file", overflow="fold"), Column("SOP Instance UID", no_wrap=True), "committed")
    for item in told:
        table.add_row(escape(str(item.path)), item.sop_instance_uid, escape(item.reason) or "yes")
    if told:
        print_table(table)
    safe, asked = ({item.sop_instance_uid or item.path for item in told if not item.reason},
                   {item.sop_instance_uid or item.path for item in told})  # fmt: skip
    out.print(f"{peer.title} answers for {len(safe)} of {len(asked)} instances", highlight=False)
    if len(asked) < len(told):
        out.print(
            "Some of these files share a SOP Instance UID: the answer is about the one that was stored.",
            highlight=False,
        )


def show_passed_over(count: int, *, as_json: bool) -> None:
    """Print how many files hold nothing to ask about, beside what is JSON."""
    if count:
        which = "file that is no DICOM object was" if count == 1 else "files that are no DICOM objects were"
        (err if as_json else out).print(f"{count} {which} passed over", highlight=False)
