"""The node as SCU: what the command line asks of any peer, ours or another.

Every function opens its own association, and closes it when its generator is closed.

Raises
------
PeerUnreachable, PeerRejected, AssociationLost
    From every function here: one sentence that names the peer.
"""

from __future__ import annotations

import tempfile
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any
from uuid import uuid4

from pydicom.dataset import Dataset
from pydicom.uid import UID, ImplicitVRLittleEndian, MediaStorageDirectoryStorage
from pynetdicom import StoragePresentationContexts, evt

from index.files import name_of
from scp import transport
from scp.contexts import MOST_CONTEXTS, QUERY_SYNTAXES, VERIFICATION, Proposal, storage_proposals
from scp.errors import AssociationLost, NothingAccepted, PeerError
from scp.link import Link, status_of_response
from scp.messages import Answer, SubOperations
from scp.part10 import EncodedObject, NotDicomError, read_object
from scp.reception import Reception
from scp.requestor import Peer, Timeouts, connect
from scp.status import SUCCESS, Status, status_of

_LOST_IN_A_ROW = 3
"""Associations that ended under an object, without one stored between them, before a peer is given up."""


class RequestFailed(PeerError):
    """The peer answered with a Status that is a failure."""

    def __init__(self, what: str, status: Status) -> None:
        super().__init__(f"{what} failed with status {status}")
        self.status = status


@dataclass(frozen=True)
class SentFile:
    """What became of one file.

    Attributes
    ----------
    status
        The peer's answer; None when the file was not sent.
    error
        Why it was not sent, or what the peer said; empty when all is well.
    is_object
        False where the file holds no object that could be sent: it is not DICOM, or a DICOMDIR.
    """

    path: Path
    status: Status | None
    error: str = ""
    is_object: bool = True

    @property
    def is_stored(self) -> bool:
        """Whether the peer answered Success or a warning."""
        return self.status is not None and (self.status.is_success or self.status.is_warning)


@dataclass(frozen=True)
class Requestor:
    """Who we are to a peer: our AE title and our patience."""

    title: str = "THARSIS"
    timeouts: Timeouts = field(default_factory=Timeouts)


def echo(peer: Peer, requestor: Requestor) -> float:
    """Send a C-ECHO; return the seconds from the request to its answer."""
    with _open(peer, [Proposal(VERIFICATION, (str(ImplicitVRLittleEndian),))], requestor) as link:
        started = time.monotonic()
        transport.hold(link.assoc)
        status = link.assoc.send_c_echo()
        _require_answer(status, peer)
        if status.Status != 0:
            raise RequestFailed(f"C-ECHO to {peer}", status_of_response(status))
        return time.monotonic() - started


def send(peer: Peer, files: Iterable[Path], requestor: Requestor) -> Iterator[SentFile]:
    """Send files with C-STORE, their data sets as they stand, and yield what became of each.

    Files whose presentation contexts do not fit into one association go over several, one after the other; so they may
    come out in another order than they went in.

    Where a file ends the association (some peers abort at an object that they cannot read), it is yielded without a
    status, and the rest goes over a new one. When the peer is lost, or `_LOST_IN_A_ROW` files have ended one each,
    whatever was answered has been yielded before `PeerError` is raised. A file that did not come out, or without a
    status, is not known to be stored: the peer may have it only if it was under way. Sending all of these again is
    safe, for a node answers Success to an object that it has.
    """
    objects: list[EncodedObject] = []
    for path in files:
        try:
            found = read_object(path)
        except NotDicomError as error:
            yield SentFile(path, None, str(error), is_object=False)
        except OSError as error:
            yield SentFile(path, None, str(error))
        else:
            if found.sop_class_uid == MediaStorageDirectoryStorage:
                yield SentFile(path, None, "a DICOMDIR, which is not sent", is_object=False)
            else:
                objects.append(found)
    kinds = [(item.sop_class_uid, item.transfer_syntax_uid) for item in objects]
    for proposals in storage_proposals(kinds, convertible=False):
        classes = {proposal.sop_class_uid for proposal in proposals}
        part = [item for item in objects if item.sop_class_uid in classes]
        yield from _send_part(peer, proposals, part, requestor)


def _send_part(
    peer: Peer, proposals: Sequence[Proposal], objects: Sequence[EncodedObject], requestor: Requestor
) -> Iterator[SentFile]:
    left = deque(objects)
    lost = 0
    while left:
        with _open(peer, proposals, requestor) as link:
            while left:
                if not link.is_open:
                    lost += 1
                    if lost == _LOST_IN_A_ROW:
                        raise AssociationLost(f"{peer} ended the association again and again")
                    break
                item = left.popleft()
                if item.transfer_syntax_uid not in link.accepted(item.sop_class_uid):
                    kind = f"{UID(item.sop_class_uid).name} in {UID(item.transfer_syntax_uid).name}"
                    yield SentFile(item.path, None, f"{peer.title} takes no {kind}")
                    continue
                identity = (item.sop_class_uid, item.sop_instance_uid)
                try:
                    status = link.store(identity, item.transfer_syntax_uid, (item.path, item.offset))
                except AssociationLost as error:
                    lost += 1
                    if lost == _LOST_IN_A_ROW:
                        raise
                    yield SentFile(item.path, None, f"not confirmed: {error}")
                    break
                lost = 0
                yield SentFile(item.path, status, "" if status.is_success else str(status))


def find(
    peer: Peer, identifier: Dataset, sop_class_uid: str, requestor: Requestor, *, relational: bool = False
) -> Iterator[Dataset]:
    """Send a C-FIND and yield the Identifier of each match; a final failure raises `RequestFailed`.

    Parameters
    ----------
    relational
        The Identifier lacks unique keys of higher levels.
    """
    with _open(peer, [Proposal(sop_class_uid, QUERY_SYNTAXES, relational=relational)], requestor) as link:
        transport.hold(link.assoc)
        for status, match in link.assoc.send_c_find(identifier, sop_class_uid):
            _require_answer(status, peer)
            answer = status_of_response(status)
            if answer.is_pending and match is not None:
                yield match
            elif answer.is_failure:
                raise RequestFailed(f"C-FIND at {peer}", answer)


def move(
    peer: Peer, identifier: Dataset, destination: str, sop_class_uid: str, requestor: Requestor
) -> Iterator[Answer]:
    """Send a C-MOVE to the AE title `destination` and yield every response; the last one is final."""
    with _open(peer, [Proposal(sop_class_uid, QUERY_SYNTAXES)], requestor) as link:
        transport.hold(link.assoc)
        yield from _answers(link.assoc.send_c_move(identifier, destination, sop_class_uid), peer)


def get(
    peer: Peer,
    identifier: Dataset,
    folder: Path,
    sop_class_uid: str,
    requestor: Requestor,
    *,
    objects: Iterable[tuple[str, str]] | None = None,
) -> Iterator[Answer]:
    """Send a C-GET, write what comes to ``<SOP Instance UID>.dcm`` in `folder`, and yield every response.

    Parameters
    ----------
    objects
        (SOP Class UID, Transfer Syntax UID) of what is expected, so that it comes as it is stored; when None the
        common storage classes are asked for, in Explicit or Implicit VR Little Endian.
    """
    proposals = [Proposal(sop_class_uid, QUERY_SYNTAXES), *_wanted(objects)]
    folder.mkdir(parents=True, exist_ok=True)

    def keep(event: evt.Event) -> int:
        received = transport.received_file(event.request)
        if received is None or received.path is None or received.error is not None:
            error = received.error if received is not None else None
            return (status_of(error) if error is not None else Status(0xC000)).code
        uid = str(getattr(event.request, "AffectedSOPInstanceUID", ""))
        received.path.replace(folder / f"{name_of(uid)}.dcm")
        return SUCCESS.code

    with tempfile.TemporaryDirectory(prefix=".", dir=folder, ignore_cleanup_errors=True) as incoming:

        def new_file(_size: int) -> Path:
            return Path(incoming) / uuid4().hex

        def reception() -> Reception:
            return Reception(new_file, peer.title)

        with _open(peer, proposals, requestor, reception=reception, on_store=keep) as link:
            if not link.accepted(sop_class_uid):
                raise NothingAccepted(f"{peer} offers no C-GET")
            transport.hold(link.assoc)
            yield from _answers(link.assoc.send_c_get(identifier, sop_class_uid), peer)


def _wanted(objects: Iterable[tuple[str, str]] | None) -> list[Proposal]:
    if objects is not None:
        kinds = dict.fromkeys(objects)
        return [Proposal(uid, (syntax,), peer_sends=True) for uid, syntax in islice(kinds, MOST_CONTEXTS - 1)]
    common = StoragePresentationContexts[: MOST_CONTEXTS - 1]
    return [Proposal(str(context.abstract_syntax), QUERY_SYNTAXES, peer_sends=True) for context in common]


@contextmanager
def _open(peer: Peer, proposals: Sequence[Proposal], requestor: Requestor, **receiving: Any) -> Iterator[Link]:
    link = connect(peer, proposals, calling=requestor.title, timeouts=requestor.timeouts, **receiving)
    try:
        yield link
    except GeneratorExit:  # the caller wants no more: what is still under way is not waited for
        link.abort()
        raise
    finally:
        link.release()


def _answers(responses: Iterator[tuple[Dataset, Dataset | None]], peer: Peer) -> Iterator[Answer]:
    for status, identifier in responses:
        _require_answer(status, peer)
        counts = SubOperations(
            remaining=int(status.get("NumberOfRemainingSuboperations") or 0),
            completed=int(status.get("NumberOfCompletedSuboperations") or 0),
            failed=int(status.get("NumberOfFailedSuboperations") or 0),
            warning=int(status.get("NumberOfWarningSuboperations") or 0),
        )
        yield Answer(status_of_response(status), identifier, counts)


def _require_answer(status: Dataset, peer: Peer) -> None:
    if "Status" not in status:
        raise AssociationLost(f"{peer} aborted the association, or fell silent, before it answered")
