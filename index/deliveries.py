"""What was sent on to whom: a row for each (destination, profile, instance); nothing is sent twice, or forgotten.

A delivery is *failing* until the destination has taken the instance, or *refused* when trying again will not help; then
it is *sent*, and *committed* once the destination has reported that it keeps it. It holds for one content: an instance
that is replaced is to be sent anew.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from sqlite_utils import Database

from index import jobs
from index.archive import Archive
from index.commitments import Reference
from index.senders import first_sender

_FIRST_WAIT_S = 60.0
_LONGEST_WAIT_S = 3600.0


class State(StrEnum):
    """How far a delivery has come."""

    FAILING = "failing"
    REFUSED = "refused"
    SENT = "sent"
    COMMITTED = "committed"


@dataclass(frozen=True)
class Way:
    """Where something goes, and through which de-identification profile ("": none)."""

    destination: str
    profile: str = ""


@dataclass(frozen=True)
class Delivery:
    """An instance on its way.

    Attributes
    ----------
    sent_as
        SOP Class and SOP Instance UID under which the destination has it: others where it was de-identified.
    sha256
        Of the stored file that was sent, or made into what was sent.
    rule
        Name of the rule that wants it there; "" when a person asked.
    """

    way: Way
    sop_instance_uid: str
    series_instance_uid: str
    sha256: str
    sent_as: Reference
    rule: str = ""


@dataclass(frozen=True)
class Pending:
    """An instance that a destination does not have.

    Attributes
    ----------
    source_aet
        Who sent it to this node first; "" for what was imported or made here.
    since
        When this content was first tried, or reported as not kept, seconds since the epoch; None: never, or it was
        refused then and is to be tried anew.
    """

    sop_instance_uid: str
    source_aet: str
    since: float | None


def pending(archive: Archive, series_instance_uid: str, way: Way, *, tried_since: float) -> list[Pending]:
    """Return the instances of a series that are to be sent, in the order of Instance Number.

    Parameters
    ----------
    tried_since
        What was refused since this moment is not tried again; seconds since the epoch.
    """
    rows = archive.database.execute(
        "SELECT instance.sop_instance_uid, instance.source_aet, "
        "CASE delivery.state WHEN 'failing' THEN delivery.since END FROM instance "
        "JOIN series ON series.id = instance.series "
        "LEFT JOIN delivery ON delivery.sop_instance_uid = instance.sop_instance_uid AND delivery.destination = ? "
        "AND delivery.profile = ? AND delivery.sha256 = instance.sha256 "
        "WHERE series.series_instance_uid = ? AND (delivery.state IS NULL OR delivery.state = 'failing' "
        "OR (delivery.state = 'refused' AND delivery.at < ?)) "
        "ORDER BY CAST(instance.instance_number AS INTEGER), instance.id",
        (way.destination, way.profile, series_instance_uid, tried_since),
    )
    return [Pending(uid, first_sender(senders), since) for uid, senders, since in rows.fetchall()]


def record(archive: Archive, delivery: Delivery, state: State, told: str = "") -> None:
    """Note what became of an instance; `told` is what the peer said, or why it was not sent."""
    now = time.time()
    with archive.transaction() as database:
        database.execute(
            "INSERT INTO delivery (destination, profile, sop_instance_uid, series_instance_uid, sha256, sop_class_uid, "
            "sent_uid, rule, state, told, since, at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) "
            "ON CONFLICT (destination, profile, sop_instance_uid) DO UPDATE SET "
            "since = CASE WHEN sha256 = excluded.sha256 AND state = 'failing' THEN since ELSE excluded.since END, "
            "series_instance_uid = excluded.series_instance_uid, sha256 = excluded.sha256, "
            "sop_class_uid = excluded.sop_class_uid, sent_uid = excluded.sent_uid, rule = excluded.rule, "
            "state = excluded.state, told = excluded.told, at = excluded.at, transaction_uid = ''",
            (
                delivery.way.destination,
                delivery.way.profile,
                delivery.sop_instance_uid,
                delivery.series_instance_uid,
                delivery.sha256,
                delivery.sent_as.sop_class_uid,
                delivery.sent_as.sop_instance_uid,
                delivery.rule,
                state,
                told,
                now,
                now,
            ),
        )


def refused(archive: Archive, series_instance_uid: str, way: Way, *, since: float) -> list[tuple[str, str]]:
    """Return (SOP Instance UID, why) of what of a series was refused since that moment."""
    rows = archive.database.execute(
        "SELECT sop_instance_uid, told FROM delivery WHERE series_instance_uid = ? AND destination = ? AND profile = ? "
        "AND state = 'refused' AND at >= ? ORDER BY at",
        (series_instance_uid, way.destination, way.profile, since),
    )
    return [(str(uid), str(told)) for uid, told in rows.fetchall()]


@dataclass(frozen=True)
class Unconfirmed:
    """What a destination has taken, and has not yet said that it keeps; `sent_at` in seconds since the epoch."""

    sop_instance_uid: str
    sent_as: Reference
    sent_at: float


def unconfirmed(archive: Archive, series_instance_uid: str, way: Way) -> list[Unconfirmed]:
    """Return what of a series is sent and not committed."""
    rows = archive.database.execute(
        "SELECT sop_instance_uid, sop_class_uid, sent_uid, at FROM delivery "
        "WHERE series_instance_uid = ? AND destination = ? AND profile = ? AND state = 'sent' ORDER BY at",
        (series_instance_uid, way.destination, way.profile),
    )
    return [Unconfirmed(uid, Reference(kind, sent), at) for uid, kind, sent, at in rows.fetchall()]


def note_request(archive: Archive, transaction_uid: str, way: Way, waiting: Iterable[Unconfirmed]) -> None:
    """Note a request for storage commitment, before it is made: its report may come at once, to another process."""
    uids = json.dumps([each.sop_instance_uid for each in waiting])
    with archive.transaction() as database:
        database.execute(
            "UPDATE delivery SET transaction_uid = ? WHERE destination = ? AND profile = ? AND state = 'sent' "
            "AND sop_instance_uid IN (SELECT value FROM json_each(?))",
            (transaction_uid, way.destination, way.profile, uids),
        )


def take_report(
    archive: Archive, transaction_uid: str, committed: Collection[Reference], failures: Mapping[Reference, int]
) -> bool:
    """Note what a destination reports; what it does not keep is queued to be sent again, in the same transaction.

    Parameters
    ----------
    failures
        With the Failure Reason (0008,1197) of each.

    Returns
    -------
    bool
        False: nobody waits for a report with that Transaction UID (any more).
    """
    now = time.time()
    with archive.transaction() as database:
        rows = database.execute(
            "SELECT rowid, destination, sop_class_uid, sent_uid, series_instance_uid, rule, since FROM delivery "
            "WHERE transaction_uid = ? AND state = 'sent'",
            (transaction_uid,),
        ).fetchall()
        again: dict[tuple[str, str, str], float] = {}
        for row, destination, kind, uid, series, rule, since in rows:
            reference = Reference(kind, uid)
            if reference in failures:
                told = f"the destination does not keep it: reason {failures[reference]:04X}"
                database.execute(
                    "UPDATE delivery SET state = 'failing', told = ?, since = ?, at = ? WHERE rowid = ?",
                    (told, now, now, row),
                )
                # Twice as long each time, so that one who never keeps it is not sent it all day.
                wait = min(max(2 * (now - since), _FIRST_WAIT_S), _LONGEST_WAIT_S)
                again[series, destination, rule] = now + wait
            elif reference in committed:
                database.execute("UPDATE delivery SET state = 'committed', at = ? WHERE rowid = ?", (now, row))
        for (series, destination, rule), due in again.items():
            parameters = {"destination": destination, "rule": rule}
            jobs.push(database, jobs.ROUTE, series, parameters, not_before=due)
        for series, destination in {(row[4], row[1]) for row in rows}:
            _hasten(database, series, destination)
    return bool(rows)


def _hasten(database: Database, series_instance_uid: str, destination: str) -> None:
    """Let the job that waits for the report see it."""
    database.execute(
        "UPDATE job SET not_before = min(not_before, ?) WHERE state = 'queued' AND kind = ? AND subject = ? "
        "AND json_extract(parameters, '$.destination') = ?",
        (time.time(), jobs.CONFIRM_ROUTE, series_instance_uid, destination),
    )


@dataclass(frozen=True)
class Trouble:
    """A destination that cannot be reached.

    Attributes
    ----------
    failures
        Attempts in a row that failed.
    since, next_try
        Seconds since the epoch.
    """

    failures: int
    since: float
    next_try: float
    error: str


def trouble(archive: Archive, destination: str) -> Trouble | None:
    """Return what is wrong with a destination; None: nothing is known."""
    row = archive.database.execute(
        "SELECT failures, since, next_try, error FROM destination_trouble WHERE destination = ?", (destination,)
    ).fetchone()
    return None if row is None else Trouble(*row)


def note_trouble(archive: Archive, destination: str, error: str, *, retry_delay_s: float, now: float) -> Trouble:
    """Note one more failure; the next try is twice as far away each time, at most an hour.

    Parameters
    ----------
    retry_delay_s
        Wait behind the first failure, seconds.
    now
        Seconds since the epoch.
    """
    before = trouble(archive, destination)
    failures = before.failures + 1 if before else 1
    wait = min(retry_delay_s * 2 ** min(failures - 1, 20), _LONGEST_WAIT_S)
    after = Trouble(failures, before.since if before else now, now + wait, error)
    with archive.transaction() as database:
        database.execute(
            "INSERT OR REPLACE INTO destination_trouble (destination, failures, since, next_try, error) "
            "VALUES (?, ?, ?, ?, ?)",
            (destination, after.failures, after.since, after.next_try, error),
        )
    return after


def end_trouble(archive: Archive, destination: str) -> None:
    """Forget what was wrong with a destination: it can be reached, or is to be tried now."""
    if trouble(archive, destination) is not None:
        with archive.transaction() as database:
            database.execute("DELETE FROM destination_trouble WHERE destination = ?", (destination,))


def counts(archive: Archive) -> dict[str, dict[str, int]]:
    """Return, for each destination, how many instances are in which state."""
    told: dict[str, dict[str, int]] = {}
    rows = archive.database.execute("SELECT destination, state, count(*) FROM delivery GROUP BY destination, state")
    for destination, state, number in rows.fetchall():
        told.setdefault(destination, {})[state] = number
    return told


def queued_for(archive: Archive) -> frozenset[str]:
    """Return the destinations that jobs in the queue name."""
    kinds = ", ".join(repr(kind) for kind in jobs.ROUTING_KINDS)
    rows = archive.database.execute(
        "SELECT DISTINCT json_extract(parameters, '$.destination') FROM job "
        f"WHERE state IN ('queued', 'running') AND kind IN ({kinds})"
    )
    return frozenset(str(title) for (title,) in rows.fetchall())


def forget(archive: Archive, older_than_s: float) -> int:
    """Delete what is known of instances that are no longer stored, and was noted longer ago than that; seconds."""
    with archive.transaction() as database:
        deleted = database.execute(
            "DELETE FROM delivery WHERE at < ? AND NOT EXISTS "
            "(SELECT 1 FROM instance WHERE instance.sop_instance_uid = delivery.sop_instance_uid)",
            (time.time() - older_than_s,),
        )
        return int(deleted.rowcount)


def hasten_all(archive: Archive, destination: str) -> int:
    """Make the jobs for a destination due now; return how many there are."""
    kinds = ", ".join(repr(kind) for kind in jobs.ROUTING_KINDS)
    with archive.transaction() as database:
        updated = database.execute(
            f"UPDATE job SET not_before = min(not_before, ?) WHERE state = 'queued' AND kind IN ({kinds}) "
            "AND json_extract(parameters, '$.destination') = ?",
            (time.time(), destination),
        )
        return int(updated.rowcount)


@dataclass(frozen=True)
class Queue:
    """What is to be done for a destination.

    Attributes
    ----------
    queued, failed
        Jobs that wait or are being done, and jobs that have failed.
    error
        Why the newest of those was not done; "" for no reason yet.
    due
        When the next one is due, seconds since the epoch; None: there is none.
    """

    queued: int
    failed: int
    error: str
    due: float | None


def queues(archive: Archive) -> dict[str, Queue]:
    """Return what is to be done for each destination."""
    kinds = ", ".join(repr(kind) for kind in jobs.ROUTING_KINDS)
    rows = archive.database.execute(
        "SELECT json_extract(parameters, '$.destination') AS title, sum(state IN ('queued', 'running')), "
        "sum(state = 'failed'), min(CASE WHEN state IN ('queued', 'running') THEN not_before END), "
        f"(SELECT error FROM job WHERE kind IN ({kinds}) AND state IN ('queued', 'running', 'failed') AND error <> '' "
        "AND json_extract(parameters, '$.destination') = json_extract(outer_job.parameters, '$.destination') "
        f"ORDER BY id DESC LIMIT 1) FROM job AS outer_job WHERE kind IN ({kinds}) GROUP BY title"
    )
    return {
        str(title): Queue(int(queued), int(failed), str(error or ""), due)
        for title, queued, failed, due, error in rows.fetchall()
    }
