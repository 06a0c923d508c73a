"""Who comes in: a received instance compared with what is stored, and the policies that keep it out."""

from __future__ import annotations

import filecmp
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from typing import Any

from sqlite_utils import Database

from index import catalogue, changes
from index.arrival_blocks import Arrived
from index.changes import ChangeKind
from index.errors import ArchiveError, InstanceConflict, InvalidInstance, PatientMismatch
from index.files import FileStore
from index.header import Header
from index.keys import Level
from index.part10 import is_same_data_set
from index.senders import first_sender


def _is_there() -> None:
    """Wait for nothing."""


@dataclass(frozen=True)
class Arrival:
    """A received file that has been read, but not yet stored.

    Attributes
    ----------
    cut_off
        Where its data set is cut off, a sentence; "" when it is whole.
    is_journaled
        Whether it becomes safe by the journal of arrivals, and its file and name need not be flushed.
    content
        The file, where it is small and in memory; empty where its name in the incoming folder is on disk, and its bytes
        are once `wait` has returned.
    wait
        Returns when its bytes are on disk; raises `OSError` where they cannot be.
    """

    incoming: Path
    header: Header
    sha256: str
    size: int
    source_aet: str
    cut_off: str
    is_journaled: bool = False
    content: bytes = b""
    wait: Callable[[], None] = _is_there

    def arrived(self, path: str) -> Arrived:
        """Return what the journal keeps of it, as it is stored at `path`."""
        incoming = "" if self.content else self.incoming.name
        return Arrived(path, incoming, self.size, self.sha256, self.source_aet, self.content)


@dataclass(frozen=True)
class Policy:
    """What the settings say of instances that contradict what is stored.

    Attributes
    ----------
    overwrite
        Same SOP Instance UID, other content: ``never``, ``same_source`` or ``always`` replace the stored one.
    patient_mismatch
        Same Study Instance UID, other patient: ``accept`` or ``reject``.
    """

    overwrite: str
    patient_mismatch: str


class Stored(Enum):
    """What the archive holds under the SOP Instance UID of an arrival."""

    NOTHING = auto()
    SAME = auto()
    OTHER = auto()
    DAMAGED = auto()


def require_expected(header: Header, expected: tuple[str, str] | None) -> None:
    """Raise `InvalidInstance` unless the object is the (SOP Class UID, SOP Instance UID) that the command named."""
    if expected is None:
        return
    for keyword, told, found in (
        ("SOPClassUID", expected[0], header.sop_class_uid),
        ("SOPInstanceUID", expected[1], header.sop_instance_uid),
    ):
        if told.strip(" \0") != found:
            raise InvalidInstance(f"{keyword}: the command and the data set differ", element=keyword)


def compare(files: FileStore, stored: dict[str, Any] | None, arrival: Arrival) -> Stored:
    """Say what is stored under the arrival's UID.

    What claims to be the same is read: "already stored" is true only of bytes that are on the disk.
    """
    if stored is None:
        return Stored.NOTHING
    arrival.wait()
    path = files.path(stored["path"])
    try:
        if stored["damage"] or path.stat().st_size != int(stored["size"]):
            return Stored.DAMAGED
        if stored["sha256"] == arrival.sha256:
            return Stored.SAME if filecmp.cmp(path, arrival.incoming, shallow=False) else Stored.DAMAGED
        is_same = is_same_object(files, stored, arrival.incoming, arrival.header)
    except FileNotFoundError:
        return Stored.DAMAGED
    return Stored.SAME if is_same else Stored.OTHER


def is_same_object(files: FileStore, stored: dict[str, Any], other: Path, header: Header) -> bool:
    """Whether the stored instance and the file `other`, of `header`, differ at most in what a receiver writes anew.

    The same bytes in another Transfer Syntax are another data set.
    """
    return stored["transfer_syntax_uid"] == header.transfer_syntax_uid and is_same_data_set(
        files.path(stored["path"]), other
    )


def is_same_row(one: dict[str, Any] | None, other: dict[str, Any] | None) -> bool:
    """Whether what `compare` says of the one row holds for the other: no file ever gets the path of another."""
    if one is None or other is None:
        return one is other
    return all(one[name] == other[name] for name in ("id", "path", "sha256", "damage"))


def refusal(
    database: Database, policy: Policy, arrival: Arrival, stored: dict[str, Any] | None, standing: Stored
) -> ArchiveError | None:
    """Return why the policies keep the arrival out, after noting that in the change feed; None: they do not.

    Parameters
    ----------
    stored
        The row of the instance of the same UID, None when there is none.
    standing
        What `compare` says of it. What is lost or damaged, anybody may send again.
    """
    uid, origin = arrival.header.sop_instance_uid, f"from {arrival.source_aet or 'import'}"
    if stored is not None and standing is Stored.OTHER:
        may_replace = policy.overwrite == "always" or (
            policy.overwrite == "same_source" and first_sender(stored["source_aet"]) == arrival.source_aet
        )
        if not may_replace:
            changes.append(database, ChangeKind.CONFLICT, Level.IMAGE, uid, origin)
            return InstanceConflict(
                "same SOP Instance UID, other content: the stored one was kept", element="SOPInstanceUID"
            )
    return _patient_refusal(database, policy, arrival, origin)


def _patient_refusal(database: Database, policy: Policy, arrival: Arrival, origin: str) -> ArchiveError | None:
    other = catalogue.other_patient(database, arrival.header)
    if other is None:
        return None
    told, uid = arrival.header.values, arrival.header.sop_instance_uid
    detail = (
        f"study of patient {_in_words(other.patient_id, other.issuer)}, "
        f"instance of {_in_words(told['PatientID'], told['IssuerOfPatientID'])}"
    )
    if policy.patient_mismatch == "accept" or other.is_absent:
        changes.append(database, ChangeKind.PATIENT_MISMATCH, Level.IMAGE, uid, detail)
        return None
    changes.append(database, ChangeKind.PATIENT_MISMATCH, Level.IMAGE, uid, f"refused {origin}: {detail}")
    return PatientMismatch(f"{other.element}: the study belongs to another patient", element=other.element)


def _in_words(patient_id: str, issuer: str) -> str:
    return f"{patient_id!r} of {issuer!r}" if issuer else repr(patient_id)
