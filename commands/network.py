"""Commands that talk DICOM to a node, this one or any other: send, commit, find."""

from __future__ import annotations

import re
import time
from pathlib import Path
from ssl import SSLContext
from typing import Annotated, Any

import typer
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from rich.markup import escape
from rich.table import Column, Table

from commands import commitment
from commands.archive import find_files
from commands.commitment import DEFAULT_WAIT_S, ListenOption, Told, WaitOption
from commands.console import FAILED, UNREACHABLE, USAGE, JsonOption, fail, out, print_json, print_table, progress_bar
from config.sections import ae_title
from index.charset import CODED, charset_in, encoded, split
from index.keys import UNIQUE_KEYS, Level
from scp import client
from scp.client import Requestor, SentFile
from scp.contexts import PATIENT_ROOT_FIND, STUDY_ROOT_FIND
from scp.errors import PeerError
from scp.requestor import Peer
from scp.tls import TlsError, client_context

_PEER = re.compile(r"(?P<title>[^@]{1,16})@(?P<host>[^:]+):(?P<port>\d{1,5})")

PeerOption = Annotated[
    str, typer.Option("--peer", metavar="AET@HOST:PORT", help="Whom to call.", envvar="THARSIS_PEER")
]
def _checked_title(title: str) -> str:
    try:
        return ae_title(title)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


TitleOption = Annotated[
    str, typer.Option("--aet", callback=_checked_title, help="Our own AE title, as the peer knows it.")
]
TlsOption = Annotated[bool, typer.Option("--tls", help="Call with TLS; the other --tls options include this one.")]
TlsCaOption = Annotated[
    Path | None,
    typer.Option("--tls-ca", metavar="FILE", help="PEM: authorities to check the peer against, not the system's."),
]
TlsCertificateOption = Annotated[
    Path | None, typer.Option("--tls-cert", metavar="FILE", help="PEM: our certificate, for a peer that asks for one.")
]
TlsKeyOption = Annotated[Path | None, typer.Option("--tls-key", metavar="FILE", help="PEM: its private key.")]
DEFAULT_PEER = "THARSIS@127.0.0.1:11112"
DEFAULT_TITLE = "THARSIS_CLI"

_UNICODE = "ISO_IR 192"
_ABOUT_THE_REQUEST = frozenset({"SpecificCharacterSet", "QueryRetrieveLevel"})

_SHOWN = {
    Level.PATIENT: ("PatientID", "PatientName", "PatientBirthDate", "NumberOfPatientRelatedStudies"),
    Level.STUDY: ("StudyDate", "PatientID", "PatientName", "ModalitiesInStudy", "StudyDescription",
                  "NumberOfStudyRelatedInstances", "StudyInstanceUID"),
    Level.SERIES: ("Modality", "SeriesNumber", "SeriesDescription", "NumberOfSeriesRelatedInstances",
                   "SeriesInstanceUID"),
    Level.IMAGE: ("InstanceNumber", "SOPClassUID", "SOPInstanceUID"),
}
_SHORT = {
    "NumberOfPatientRelatedStudies": "Studies",
    "NumberOfStudyRelatedInstances": "Instances",
    "NumberOfSeriesRelatedInstances": "Instances",
    "ModalitiesInStudy": "Modalities",
}
"""Names of columns for people, where the keyword is wider than its values; JSON has keywords."""


def peer_from(text: str, tls: SSLContext | None = None) -> Peer:
    """Return the peer that ``AET@HOST:PORT`` names, to be called with `tls`; a mistake ends the command."""
    match = _PEER.fullmatch(text)
    if match is None or int(match["port"]) > 65535:
        fail(f"expected AET@HOST:PORT, for example {DEFAULT_PEER}, got {text!r}", USAGE)
    return Peer(match["host"], int(match["port"]), match["title"], tls)


def tls_from(*, wanted: bool, ca: Path | None, certificate: Path | None, key: Path | None) -> SSLContext | None:
    """Return the TLS context that the options ask for, None for none; a mistake ends the command."""
    if not (wanted or ca or certificate or key):
        return None
    if bool(certificate) != bool(key):
        fail("--tls-cert and --tls-key go together", USAGE)
    try:
        return client_context(ca=str(ca or ""), certificate=str(certificate or ""), key=str(key or ""))
    except TlsError as error:
        fail(str(error), USAGE)


def send(
    paths: Annotated[list[Path], typer.Argument(help="Files, and folders to look through.", exists=True)],
    peer: PeerOption = DEFAULT_PEER,
    aet: TitleOption = DEFAULT_TITLE,
    tls: TlsOption = False,
    tls_ca: TlsCaOption = None,
    tls_cert: TlsCertificateOption = None,
    tls_key: TlsKeyOption = None,
    commit: Annotated[
        bool, typer.Option("--commit", help="Then ask the peer to answer for what it has stored (storage commitment).")
    ] = False,
    listen: ListenOption = None,
    wait: WaitOption = DEFAULT_WAIT_S,
    as_json: JsonOption = False,
) -> None:
    """Send DICOM files with C-STORE, as they are.

    A file that the peer refuses, or answers with a warning, is named with its Status; the others go on, and the exit
    code is then 1. So it is when the peer does not answer for a file with --commit. Files in a folder that are no DICOM
    objects, and a DICOMDIR there, are counted and left alone; when there is nothing else, the exit code is 1.

    A file answered with a warning is stored: it counts as such, and --commit asks about it. With --json, "sent" is the
    number of files stored, "warned" has those of them that were stored with a warning, "refused" those that were not.
    """
    if listen is not None and not commit:
        fail("--listen goes with --commit", USAGE)
    target = peer_from(peer, tls_from(wanted=tls, ca=tls_ca, certificate=tls_cert, key=tls_key))
    files = find_files(paths)
    started = time.monotonic()
    results: list[SentFile] = []
    lost: PeerError | None = None
    try:
        with progress_bar(f"Sending to {target.title}", len(files), quiet=as_json) as bar:
            for result in client.send(target, files, Requestor(aet)):
                results.append(result)
                bar.advance()
    except PeerError as error:
        lost = error
    seconds = time.monotonic() - started
    if lost is not None and not results:
        fail(str(lost), UNREACHABLE)
    answered = {result.path for result in results}
    results += [SentFile(file, None, f"not confirmed: {lost}") for file in files if lost and file not in answered]
    found = len(results)
    results = [result for result in results if result.is_object or result.path in paths]
    left_alone = found - len(results)
    stored = [result for result in results if result.is_stored]
    warned = [result for result in stored if result.error]
    refused = [result for result in results if not result.is_stored]
    if not as_json:
        for item in results:
            if item.error:
                how = "stored, with the warning " if item.is_stored else ""
                out.print(f"{item.path}: {how}{item.error}", markup=False, soft_wrap=True)
        what = "is no DICOM object" if left_alone == 1 else "are no DICOM objects"
        warnings = f", {len(warned)} with a warning" if warned else ""
        rest = f"; {left_alone} {what} to send" if left_alone else ""
        out.print(
            f"{len(stored)} of {len(results)} files stored by {target.title} in {seconds:.1f} s{warnings}{rest}",
            highlight=False,
        )
    told: list[Told] = []
    if commit and lost is None:
        told = commitment.ask(target, [result.path for result in stored], aet, wait_s=wait, listen=listen)
    if as_json:
        answer = {
            "sent": len(stored),
            "left_alone": left_alone,
            "seconds": round(seconds, 3),
            "warned": _with_reasons(warned),
            "refused": _with_reasons(refused),
        }
        print_json({**answer, "commitment": commitment.as_objects(told)} if commit else answer)
    elif told:
        commitment.show(target, told)
    if warned or refused or any(item.reason for item in told) or (left_alone and not results):
        raise typer.Exit(UNREACHABLE if lost else FAILED)


def _with_reasons(files: list[SentFile]) -> list[dict[str, str]]:
    return [{"file": str(item.path), "reason": item.error} for item in files]


def commit(
    paths: Annotated[list[Path], typer.Argument(help="Files that were sent, and folders of them.", exists=True)],
    peer: PeerOption = DEFAULT_PEER,
    aet: TitleOption = DEFAULT_TITLE,
    tls: TlsOption = False,
    tls_ca: TlsCaOption = None,
    tls_cert: TlsCertificateOption = None,
    tls_key: TlsKeyOption = None,
    listen: ListenOption = None,
    wait: WaitOption = DEFAULT_WAIT_S,
    as_json: JsonOption = False,
) -> None:
    """Ask a node whether it keeps files safe that it was sent (storage commitment).

    Exit code 1 when it does not answer for all of them. Files in a folder that are no DICOM objects, and a DICOMDIR
    there, are counted and passed over; when there is nothing else, the exit code is 1.

    Example:  tharsis commit study/ --peer PACS@192.0.2.1:104 --listen 11113
    """
    target = peer_from(peer, tls_from(wanted=tls, ca=tls_ca, certificate=tls_cert, key=tls_key))
    answers = commitment.ask(target, find_files(paths), aet, wait_s=wait, listen=listen)
    told = [item for item in answers if item.is_object or item.path in paths]
    passed_over = len(answers) - len(told)
    if as_json:
        print_json(commitment.as_objects(told))
    else:
        commitment.show(target, told)
    commitment.show_passed_over(passed_over, as_json=as_json)
    if any(item.reason for item in told) or (passed_over and not told):
        raise typer.Exit(FAILED)


def find(
    keys: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY[=VALUE]...", help="DICOM keywords to match, or only to return."),
    ] = None,
    level: Annotated[Level, typer.Option(case_sensitive=False, help="What to list.")] = Level.STUDY,
    peer: PeerOption = DEFAULT_PEER,
    aet: TitleOption = DEFAULT_TITLE,
    tls: TlsOption = False,
    tls_ca: TlsCaOption = None,
    tls_cert: TlsCertificateOption = None,
    tls_key: TlsKeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask a node what it holds (C-FIND, Study Root; Patient Root for patients).

    Letters are sent in Unicode (ISO_IR 192), or in the set that SpecificCharacterSet=VALUE tells.

    Examples:  tharsis find "PatientName=doe*"

    tharsis find --level SERIES StudyInstanceUID=1.2.3 Modality=CT
    """
    target = peer_from(peer, tls_from(wanted=tls, ca=tls_ca, certificate=tls_cert, key=tls_key))
    identifier = identifier_from(keys or [], level)
    try:
        matches = list(client.find(target, identifier, find_model(level), Requestor(aet)))
    except client.RequestFailed as error:
        fail(str(error))
    except PeerError as error:
        fail(str(error), UNREACHABLE)
    print_answers(matches, columns_of(identifier, keys or []), as_json=as_json)


def find_model(level: Level) -> str:
    """Return the SOP class that finds what there is at `level`: Study Root has no patients."""
    return PATIENT_ROOT_FIND if level is Level.PATIENT else STUDY_ROOT_FIND


def identifier_from(keys: list[str], level: Level) -> Dataset:
    """Return the Identifier that asks for `keys`, and for what one wants to see at `level` anyway.

    Its text is in ISO_IR 192, or encoded in the Specific Character Set that `keys` give; a mistake ends the command.
    """
    identifier = Dataset()
    identifier.QueryRetrieveLevel = level.value
    identifier.SpecificCharacterSet = _UNICODE
    for keyword in (*_SHOWN[level], UNIQUE_KEYS[level]):
        setattr(identifier, keyword, None)
    for key in keys:
        keyword, _, value = key.partition("=")
        if tag_for_keyword(keyword) is None:
            fail(f"{keyword!r} is no DICOM keyword", USAGE)
        if keyword == "SpecificCharacterSet" and not value:
            continue  # every answer has it, and what is asked for needs one
        setattr(identifier, keyword, value.split("\\") if "\\" in value else value or None)
    _require_letters(identifier)
    return identifier if identifier.SpecificCharacterSet == _UNICODE else encoded(identifier)


def _require_letters(identifier: Dataset) -> None:
    """End the command where a value cannot be written: of letters that a set lacks ``?`` is made, a wild card."""
    charset = charset_in(identifier)
    for element in identifier:
        text = _text(identifier, element.keyword)
        if element.VR not in CODED and not text.isascii():
            fail(f"{element.keyword} has letters of ASCII only, got {text!r}", USAGE)
        if element.VR in CODED and any(charset.encode(part, element.VR) is None for part in split(text, element.VR)):
            told = f"SpecificCharacterSet={_text(identifier, 'SpecificCharacterSet')}"
            fail(f"{told} has not all letters of {element.keyword}={text}; without it, {_UNICODE} is used", USAGE)


def columns_of(identifier: Dataset, keys: list[str]) -> list[str]:
    """Return the keywords in `identifier`, without those that are about the request unless `keys` name them."""
    named = {key.partition("=")[0] for key in keys}
    return [
        element.keyword
        for element in identifier
        if element.keyword and not element.tag.is_private and element.keyword not in _ABOUT_THE_REQUEST - named
    ]


def print_answers(
    answers: list[Dataset], keywords: list[str], *, as_json: bool, first: list[dict[str, Any]] | None = None
) -> None:
    """Print response Identifiers as a table, or as a list of objects by keyword, with the columns `first` in front."""
    rows = [{keyword: _text(answer, keyword) for keyword in keywords} for answer in answers]
    if first:
        rows = [{**front, **row} for front, row in zip(first, rows, strict=True)]
    if as_json:
        print_json(rows)
        return
    table = Table(*map(_column, rows[0] if rows else keywords))
    for row in rows:
        table.add_row(*map(escape, row.values()))
    print_table(table)
    out.print(f"{len(rows)} found", highlight=False)


def _column(name: str) -> Column:
    return Column(_SHORT.get(name, name), overflow="fold", no_wrap=name.endswith("UID"))


def _text(answer: Dataset, keyword: str) -> str:
    value = answer.get(keyword)
    if value is None:
        return ""
    return "\\".join(map(str, value)) if not isinstance(value, str) and hasattr(value, "append") else str(value)
