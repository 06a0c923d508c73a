"""``tharsis retrieve``: have a node send what it holds, into a folder (C-GET) or to another node (C-MOVE)."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer
from pydicom.dataset import Dataset

from commands.console import FAILED, UNREACHABLE, USAGE, JsonOption, ProgressBar, fail, out, print_json, progress_bar
from commands.network import (
    DEFAULT_PEER,
    DEFAULT_TITLE,
    PeerOption,
    TitleOption,
    TlsCaOption,
    TlsCertificateOption,
    TlsKeyOption,
    TlsOption,
    find_model,
    identifier_from,
    peer_from,
    tls_from,
)
from config.sections import ae_title
from index.keys import UNIQUE_KEYS, Level
from scp import client
from scp.client import Requestor
from scp.contexts import (
    PATIENT_ROOT_GET,
    PATIENT_ROOT_MOVE,
    STUDY_ROOT_FIND,
    STUDY_ROOT_GET,
    STUDY_ROOT_MOVE,
    TRANSFER_SYNTAXES,
    UNCOMPRESSED,
)
from scp.errors import PeerError
from scp.messages import Answer, SubOperations
from scp.requestor import Peer
from scp.status import SUCCESS

_UIDS_IN_A_REQUEST = 500
"""SOP Instance UIDs in one Identifier: an element of explicit VR has room for a thousand (PS3.5 7.1.2)."""
_SHOWN_PROBLEMS = 20
_BELOW = {Level.PATIENT: Level.STUDY, Level.STUDY: Level.SERIES, Level.SERIES: Level.IMAGE}
_SYNTAXES = (*UNCOMPRESSED, *(uid for uid in TRANSFER_SYNTAXES if uid not in UNCOMPRESSED))
_LEVELS = (Level.PATIENT, Level.STUDY, Level.SERIES, Level.IMAGE)


def retrieve(
    keys: Annotated[
        list[str],
        typer.Argument(metavar="KEY=VALUE...", help="What to retrieve: DICOM keywords to match, as in `find`."),
    ],
    to: Annotated[
        Path | None, typer.Option("--to", metavar="FOLDER", help="Receive the objects here, with C-GET.")
    ] = None,
    move_to: Annotated[
        str, typer.Option("--move-to", metavar="AET", help="Have them sent to this AE, which the peer has to know.")
    ] = "",
    level: Annotated[Level, typer.Option(case_sensitive=False, help="What to look for.")] = Level.STUDY,
    peer: PeerOption = DEFAULT_PEER,
    aet: TitleOption = DEFAULT_TITLE,
    tls: TlsOption = False,
    tls_ca: TlsCaOption = None,
    tls_cert: TlsCertificateOption = None,
    tls_key: TlsKeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Retrieve from a node what it holds, into a folder (C-GET) or to another node (C-MOVE).

    That is everything below what `find` lists for the same keys. With --to a file <SOP Instance UID>.dcm is written for
    each object, as the node has it stored where it can be sent so (a file of that name is replaced). With --move-to the
    node sends to an AE of its settings, for example this archive.

    An object that was not sent is named with the reason; the others come, and the exit code is then 1. So it is when
    nothing matches. With --json, "retrieved" is the number of objects that came or were sent.

    Examples:  tharsis retrieve StudyInstanceUID=1.2.3 --to study/

    tharsis retrieve --level SERIES StudyInstanceUID=1.2.3 Modality=CT --to ct/

    tharsis retrieve PatientID=A4711 --peer PACS@192.0.2.1:104 --aet THARSIS --move-to THARSIS
    """
    if bool(to) == bool(move_to):
        fail("give one of --to FOLDER (C-GET) and --move-to AET (C-MOVE)", USAGE)
    if not any(_names_a_value(key) for key in keys):
        fail("say what to retrieve, for example StudyInstanceUID=1.2.3; PatientID=* is everything", USAGE)
    if move_to:
        try:
            ae_title(move_to)
        except ValueError as error:
            fail(f"--move-to: {error}", USAGE)
    target = peer_from(peer, tls_from(wanted=tls, ca=tls_ca, certificate=tls_cert, key=tls_key))
    asked = _Asked(target, Requestor(aet), level, identifier_from(keys, level))
    started = time.monotonic()
    outcome = _Outcome()
    try:
        parts = _parts(asked.matches(), level, asked.identifier)
        with progress_bar(f"Retrieving from {target.title}", quiet=as_json or not parts) as bar:
            for number, part in enumerate(parts):
                answers = asked.move(part, move_to) if to is None else asked.get(part, to)
                outcome.take(part.uid, _shown(answers, bar, number, len(parts)))
    except client.RequestFailed as error:
        if not outcome.retrieved and not outcome.problems:
            fail(str(error))
        outcome.problems.append({"reason": str(error)})
    except PeerError as error:
        if not outcome.retrieved and not outcome.problems:
            fail(str(error), UNREACHABLE)
        outcome.problems.append({"reason": str(error)})
        outcome.is_lost = True
    except OSError as error:
        fail(f"cannot write into {to}: {error.strerror or error}")
    _tell(outcome, target, to, move_to, time.monotonic() - started, as_json=as_json)
    if outcome.problems or not outcome.retrieved:
        raise typer.Exit(UNREACHABLE if outcome.is_lost else FAILED)


def _names_a_value(key: str) -> bool:
    keyword, _, value = key.partition("=")
    return bool(value) and keyword != "SpecificCharacterSet"


@dataclass(frozen=True)
class _Part:
    """What one request asks for: its Identifier, and the Storage SOP classes of it as far as they are known."""

    identifier: Dataset
    sop_classes: frozenset[str] = frozenset()

    @property
    def uid(self) -> str:
        """What tells it from others, for people."""
        keyword = UNIQUE_KEYS[Level(self.identifier.QueryRetrieveLevel)]
        value = self.identifier[keyword].value
        return str(value) if isinstance(value, str) else str(self.identifier.SeriesInstanceUID)


def _parts(matches: Sequence[Dataset], level: Level, asked: Dataset) -> list[_Part]:
    """Return a request for each match, and one for up to `_UIDS_IN_A_REQUEST` images of a series."""
    if level is not Level.IMAGE:
        return [
            _Part(_unique_keys(match, level, asked), frozenset(_texts(match, "SOPClassesInStudy"))) for match in matches
        ]
    of_series: dict[tuple[str, str], list[Dataset]] = {}
    for match in matches:
        keys = _unique_keys(match, level, asked)
        of_series.setdefault((str(keys.StudyInstanceUID), str(keys.SeriesInstanceUID)), []).append(match)
    parts = []
    for images in of_series.values():
        rest = iter(images)
        while some := list(islice(rest, _UIDS_IN_A_REQUEST)):
            identifier = _unique_keys(some[0], level, asked)
            uids = [str(image.SOPInstanceUID) for image in some]
            identifier.SOPInstanceUID = uids if len(uids) > 1 else uids[0]
            parts.append(_Part(identifier, frozenset(uid for image in some for uid in _texts(image, "SOPClassUID"))))
    return parts


def _unique_keys(match: Dataset, level: Level, asked: Dataset) -> Dataset:
    """Return the Identifier that retrieves `match`: the unique keys of its level and above (PS3.4 C.4.2.2.1).

    In the Study Root model there is no PATIENT level. What the peer does not repeat is what was asked for.
    """
    identifier = Dataset()
    identifier.QueryRetrieveLevel = level.value
    first = Level.PATIENT if level is Level.PATIENT else Level.STUDY
    for above in _LEVELS[_LEVELS.index(first) : _LEVELS.index(level) + 1]:
        keyword = UNIQUE_KEYS[above]
        value = match.get(keyword) or asked.get(keyword)
        if not value or not isinstance(value, str):
            fail(f"the peer's answer has no {keyword}: it cannot be retrieved")
        setattr(identifier, keyword, value)
    if level is Level.PATIENT and "SpecificCharacterSet" in match:
        identifier.SpecificCharacterSet = match.SpecificCharacterSet
    return identifier


def _texts(dataset: Dataset, keyword: str) -> list[str]:
    value = dataset.get(keyword)
    if not value:
        return []
    return [value] if isinstance(value, str) else [str(part) for part in value]


@dataclass(frozen=True)
class _Asked:
    """Whom one asks, as whom, and for what."""

    peer: Peer
    requestor: Requestor
    level: Level
    identifier: Dataset

    def matches(self) -> list[Dataset]:
        """What the peer has for the keys; of studies, of which SOP classes, where it knows that."""
        if self.level is Level.STUDY:
            self.identifier.SOPClassesInStudy = None
        return list(client.find(self.peer, self.identifier, find_model(self.level), self.requestor))

    def move(self, part: _Part, destination: str) -> Iterator[Answer]:
        """Have the part sent to `destination`."""
        model = PATIENT_ROOT_MOVE if self.level is Level.PATIENT else STUDY_ROOT_MOVE
        return client.move(self.peer, part.identifier, destination, model, self.requestor)

    def get(self, part: _Part, folder: Path) -> Iterator[Answer]:
        """Receive the part into `folder`; each SOP class is proposed in every transfer syntax, the common ones first.

        An SCP sends an object as it is where there is a context for that (PS3.4 C.4.3.3).
        """
        classes = part.sop_classes or frozenset(self._sop_classes(part.identifier, self.level))
        wanted = [(uid, syntax) for syntax in _SYNTAXES for uid in sorted(classes)]
        model = PATIENT_ROOT_GET if self.level is Level.PATIENT else STUDY_ROOT_GET
        return client.get(self.peer, part.identifier, folder, model, self.requestor, objects=wanted or None)

    def _sop_classes(self, above: Dataset, level: Level) -> Iterable[str]:
        """Ask level by level of which SOP classes the images below are; of images it is not asked again."""
        if level is Level.IMAGE:
            return ()
        below = _BELOW[level]
        identifier = Dataset()
        identifier.QueryRetrieveLevel = below.value
        for element in above:
            if element.keyword != "QueryRetrieveLevel":
                identifier[element.tag] = element
        identifier.setdefault(UNIQUE_KEYS[below], "")
        if below is Level.IMAGE:
            identifier.SOPClassUID = ""
        found = client.find(self.peer, identifier, STUDY_ROOT_FIND, self.requestor)
        if below is Level.IMAGE:
            return {uid for match in found for uid in _texts(match, "SOPClassUID")}
        return {uid for match in list(found) for uid in self._sop_classes(_unique_keys(match, below, above), below)}


@dataclass
class _Outcome:
    """What came of all requests."""

    retrieved: int = 0
    warned: int = 0
    problems: list[dict[str, str]] = field(default_factory=list)
    is_lost: bool = False

    def take(self, what: str, answers: Iterator[Answer]) -> None:
        """Count what the last response tells, also when the peer is lost behind it, and note what was not sent."""
        last = Answer(SUCCESS)
        counts = SubOperations(0)
        try:
            for last in answers:
                counts = last.counts or counts
        finally:
            self.retrieved += counts.completed + counts.warning
            self.warned += counts.warning
        missing = _texts(last.identifier, "FailedSOPInstanceUIDList") if isinstance(last.identifier, Dataset) else []
        reason = f"not sent: {last.status}"
        if missing:
            self.problems += [{"uid": uid, "reason": reason} for uid in missing]
        elif counts.failed:
            self.problems.append({"uid": what, "reason": f"{counts.failed} objects {reason}"})
        elif not last.status.is_success and not last.status.is_warning:
            self.problems.append({"uid": what, "reason": reason})


def _shown(answers: Iterator[Answer], bar: ProgressBar, number: int, total: int) -> Iterator[Answer]:
    """Pass the answers on, and move the bar with what they count."""
    for answer in answers:
        if answer.counts is not None:
            done = answer.counts.completed + answer.counts.failed + answer.counts.warning
            bar.fraction((number + done / max(done + answer.counts.remaining, 1)) / total)
        yield answer
    bar.fraction((number + 1) / total)


def _tell(
    outcome: _Outcome, peer: Peer, to: Path | None, move_to: str, seconds: float, *, as_json: bool
) -> None:
    if as_json:
        told: dict[str, Any] = {
            "retrieved": outcome.retrieved,
            "warned": outcome.warned,
            "seconds": round(seconds, 3),
            "problems": outcome.problems,
        }
        print_json(told)
        return
    for problem in outcome.problems[:_SHOWN_PROBLEMS]:
        out.print(": ".join(problem.values()), markup=False, highlight=False, soft_wrap=True)
    if len(outcome.problems) > _SHOWN_PROBLEMS:
        out.print(f"and {len(outcome.problems) - _SHOWN_PROBLEMS} more (--json names all)", highlight=False)
    if not outcome.retrieved and not outcome.problems:
        out.print(f"{peer.title} has nothing that matches", highlight=False)
        return
    where = f"into {to}" if to is not None else f"to {move_to}"
    objects = "1 object" if outcome.retrieved == 1 else f"{outcome.retrieved} objects"
    warnings = f", {outcome.warned} with a warning" if outcome.warned else ""
    out.print(f"{objects} from {peer.title} {where} in {seconds:.1f} s{warnings}", markup=False, highlight=False)
