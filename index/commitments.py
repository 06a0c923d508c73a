"""Requests for storage commitment: kept until they are reported, and answered from the disk, not from memory.

A request is *requested*, then *checked* (what was found is kept, and reported however often it takes), then
*reported*. Its job in the queue is what gets it done; both are written in one transaction.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import IntEnum, StrEnum

from index import jobs
from index.archive import Archive
from index.integrity import COLUMNS, Damage, StoredFile, Verdict, examine, is_current, record
from index.senders import HAS_SENT

_BATCH = 200
"""Verdicts that are noted in one transaction: each is flushed to the disk."""


@dataclass(frozen=True)
class Reference:
    """An instance that somebody wants to be sure of: Referenced SOP Class UID and Referenced SOP Instance UID."""

    sop_class_uid: str
    sop_instance_uid: str


@dataclass(frozen=True)
class Report:
    """What a peer that this node asked answers for.

    Attributes
    ----------
    failures
        What it does not answer for, with the Failure Reason (0008,1197).
    """

    committed: tuple[Reference, ...]
    failures: dict[Reference, int]


class FailureReason(IntEnum):
    """Failure Reason (0008,1197), as far as this node gives one (PS3.3 C.14.1.1)."""

    PROCESSING_FAILURE = 0x0110
    NO_SUCH_INSTANCE = 0x0112
    CLASS_INSTANCE_CONFLICT = 0x0119
    CLASS_NOT_SUPPORTED = 0x0122

    @property
    def words(self) -> str:
        """For logs and the Conformance Statement."""
        return self.name.replace("_", " ").lower()


class State(StrEnum):
    """How far a request has come."""

    REQUESTED = "requested"
    CHECKED = "checked"
    REPORTED = "reported"


@dataclass(frozen=True)
class Commitment:
    """A request for storage commitment, and what was found.

    Attributes
    ----------
    requestor, address
        AE title that asked, and where it called from.
    failures
        Of `references`, those that the node cannot answer for; empty before it is checked.
    profile
        Name of the de-identification profile through which they went before they were stored; empty: none.
    requested_at
        Seconds since the epoch; asking again sets it anew.
    """

    requestor: str
    transaction_uid: str
    address: str
    state: State
    references: tuple[Reference, ...]
    failures: dict[Reference, FailureReason]
    requested_at: float
    profile: str = ""

    @property
    def committed(self) -> list[Reference]:
        """The references that the node answers for."""
        return [reference for reference in self.references if reference not in self.failures]


def ask(
    archive: Archive,
    requestor: str,
    transaction_uid: str,
    references: Iterable[Reference],
    *,
    address: str,
    profile: str = "",
    replaced: Callable[[str], str] = str,
    preferred: str = "",
) -> bool:
    """Keep a request and queue its job. When this returns, both are on disk.

    The same request again is no second one: while it waits to be reported it becomes due at once, when it has been
    reported (or given up) it is checked and reported anew.

    Parameters
    ----------
    profile
        Of the inbox that the references were sent to; empty: they were stored as they are.
    replaced
        Gives the SOP Instance UID under which the inbox has stored a referenced one.
    preferred
        Name of the process that has the association on which this is asked for.

    Returns
    -------
    bool
        False, and nothing has changed: this AE has used that Transaction UID for other references.
    """
    wanted = list(dict.fromkeys(references))
    now = time.time()
    with archive.transaction() as database:
        row = database.execute(
            "SELECT instances, profile FROM commitment WHERE requestor = ? AND transaction_uid = ?",
            (requestor, transaction_uid),
        ).fetchone()
        if row is not None:
            same = (set(wanted), set(_replaced(wanted, replaced)))
            if row[1] != profile or set(_references(row[0])) not in same:
                return False
        if jobs.is_running(database, jobs.STORAGE_COMMITMENT, transaction_uid, _parameters(requestor)):
            return True  # its report is on its way
        database.execute(
            "INSERT INTO commitment (requestor, transaction_uid, address, state, instances, requested_at, profile) "
            "VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (requestor, transaction_uid) DO UPDATE SET "
            "address = excluded.address, state = excluded.state, failures = '[]', reported_at = NULL, "
            "instances = excluded.instances, requested_at = excluded.requested_at",
            (
                requestor,
                transaction_uid,
                address,
                State.REQUESTED,
                _as_text(wanted),
                now,
                profile,
            ),
        )
        jobs.push(
            database,
            jobs.STORAGE_COMMITMENT,
            transaction_uid,
            _parameters(requestor),
            not_before=now,
            preferred=preferred,
        )
    return True


def get(archive: Archive, requestor: str, transaction_uid: str) -> Commitment | None:
    """Return the request, None when there is none (any more)."""
    row = archive.database.execute(
        "SELECT address, state, instances, failures, requested_at, profile FROM commitment "
        "WHERE requestor = ? AND transaction_uid = ?",
        (requestor, transaction_uid),
    ).fetchone()
    if row is None:
        return None
    address, state, instances, failures, requested_at, profile = row
    found = {Reference(*uids): FailureReason(reason) for *uids, reason in json.loads(failures)}
    return Commitment(
        requestor, transaction_uid, address, State(state), tuple(_references(instances)), found, requested_at, profile
    )


def check(
    archive: Archive,
    references: Iterable[Reference],
    *,
    is_supported: Callable[[str], bool],
    on_progress: Callable[[int], None],
    replaced: Callable[[str], str] = str,
    only_from: str = "",
) -> dict[Reference, FailureReason]:
    """Read every referenced instance back from the disk and return what the node cannot answer for.

    What is found of a file is noted in the catalogue, damage in the change feed and the log.

    Parameters
    ----------
    is_supported
        Whether objects of a SOP class are stored here at all.
    on_progress
        Called with the number of references that are done, also within a large file; may raise to stop.
    replaced
        Gives the SOP Instance UID under which a referenced one is stored.
    only_from
        AE title that may hear of nothing but what it has sent itself; empty: of everything.
    """
    failures: dict[Reference, FailureReason] = {}
    verdicts: list[tuple[StoredFile, Verdict]] = []
    for done, reference in enumerate(references):
        on_progress(done)
        found = _look_up(archive, replaced(reference.sop_instance_uid), only_from)
        if found is None:
            known = is_supported(reference.sop_class_uid)
            failures[reference] = FailureReason.NO_SUCH_INSTANCE if known else FailureReason.CLASS_NOT_SUPPORTED
            continue
        sop_class_uid, file = found
        if sop_class_uid != reference.sop_class_uid:
            failures[reference] = FailureReason.CLASS_INSTANCE_CONFLICT
            continue
        file, verdict = _read_back(archive, file, lambda _, done=done: on_progress(done))  # type: ignore[misc]
        verdicts.append((file, verdict))
        if verdict.damage is not None:
            failures[reference] = FailureReason.PROCESSING_FAILURE
        if len(verdicts) == _BATCH:
            _note(archive, verdicts)
    _note(archive, verdicts)
    return failures


def record_check(archive: Archive, commitment: Commitment, failures: dict[Reference, FailureReason]) -> None:
    """Keep what was found."""
    told = [(each.sop_class_uid, each.sop_instance_uid, int(reason)) for each, reason in failures.items()]
    _update(archive, commitment, "state = ?, failures = ?", (State.CHECKED, json.dumps(told)))


def record_report(archive: Archive, commitment: Commitment, *, replaced: Callable[[str], str] = str) -> None:
    """Note that the requestor has the report, and forget the UIDs that were told for what is stored under others."""
    instances = _as_text(_replaced(commitment.references, replaced))
    values = (State.REPORTED, time.time(), instances)
    _update(archive, commitment, "state = ?, reported_at = ?, instances = ?, failures = '[]'", values)


def hasten(archive: Archive, requestor: str, *, preferred: str = "") -> int:
    """Make the reports that wait for `requestor` due now, for the process `preferred`; return how many there are."""
    return archive.jobs.hasten(jobs.STORAGE_COMMITMENT, _parameters(requestor), preferred=preferred)


def failed_elsewhere(archive: Archive, *, process: str) -> dict[str, set[int]]:
    """Return the jobs of reports that another process tries in vain to bring, by the AE title that waits for them."""
    found: dict[str, set[int]] = {}
    for job in archive.jobs.failed_elsewhere(jobs.STORAGE_COMMITMENT, process=process):
        found.setdefault(str(job.parameters.get("requestor", "")), set()).add(job.id)
    return found


def forget(archive: Archive, older_than_s: float) -> int:
    """Delete the requests that were made longer ago than `older_than_s` seconds and have no job in the queue."""
    with archive.transaction() as database:
        deleted = database.execute(
            "DELETE FROM commitment WHERE requested_at < ? AND NOT EXISTS (SELECT 1 FROM job WHERE kind = ? "
            "AND subject = commitment.transaction_uid AND state IN ('queued', 'running'))",
            (time.time() - older_than_s, jobs.STORAGE_COMMITMENT),
        )
        return int(deleted.rowcount)


def _parameters(requestor: str) -> dict[str, str]:
    return {"requestor": requestor}


def _replaced(references: Iterable[Reference], replaced: Callable[[str], str]) -> list[Reference]:
    return [Reference(each.sop_class_uid, replaced(each.sop_instance_uid)) for each in references]


def _as_text(references: Iterable[Reference]) -> str:
    return json.dumps([(each.sop_class_uid, each.sop_instance_uid) for each in references])


def _references(instances: str) -> list[Reference]:
    return [Reference(*uids) for uids in json.loads(instances)]


def _look_up(archive: Archive, sop_instance_uid: str, only_from: str = "") -> tuple[str, StoredFile] | None:
    row = archive.database.execute(
        f"SELECT sop_class_uid, {COLUMNS} FROM instance WHERE sop_instance_uid = ? AND (? = '' OR {HAS_SENT})",
        (sop_instance_uid, only_from, only_from),
    ).fetchone()
    return None if row is None else (str(row[0]), StoredFile(*row[1:]))


def _read_back(archive: Archive, file: StoredFile, on_block: Callable[[int], None]) -> tuple[StoredFile, Verdict]:
    """Examine the file of an instance; when another version took its place meanwhile, that one."""
    while True:
        verdict = examine(archive.data, file, on_block=on_block)
        if verdict.damage is None or is_current(archive.database, file):
            return file, verdict
        found = _look_up(archive, file.sop_instance_uid)
        if found is None:
            return file, Verdict(Damage.MISSING, "deleted meanwhile")
        file = found[1]


def _note(archive: Archive, verdicts: list[tuple[StoredFile, Verdict]]) -> None:
    if verdicts:
        with archive.transaction() as database:
            for file, verdict in verdicts:
                record(database, file, verdict)
        verdicts.clear()


def _update(archive: Archive, commitment: Commitment, assignment: str, values: tuple[object, ...]) -> None:
    with archive.transaction() as database:
        database.execute(
            f"UPDATE commitment SET {assignment} WHERE requestor = ? AND transaction_uid = ?",
            (*values, commitment.requestor, commitment.transaction_uid),
        )
