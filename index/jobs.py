"""The durable job queue: work due, as rows.

A job is *queued* until a worker claims it, *running* while the claim is renewed, then *done*, *failed* or *cancelled*.
A claim that its worker does not renew expires, and the job is queued again; a job that fails waits longer each time.
Pushing a job that is already queued moves its date instead of adding a second one: that is how a series becomes
stable (`series_stable`, pushed forward with each instance). Two jobs on one subject never run at the same time.
Only who holds the claim can end the job: a worker that lost it, and comes back late, changes nothing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Mapping
from typing import Any

from sqlite_utils import Database

from index import job_rows
from index.database import Connections
from index.errors import NotFound, WrongState
from index.job_rows import Job as Job

SERIES_STABLE = "series_stable"
STORAGE_COMMITMENT = "storage_commitment"
NETWORK_KINDS = (STORAGE_COMMITMENT,)
"""Kinds of job that need the network: processes that serve it do them, no worker takes one."""

EMBED_ASKED = "embed_asked"
"""Embed what a similarity query asks about: somebody waits for it, so a process of its own does nothing else."""

ROUTE = "route"
CONFIRM_ROUTE = "confirm_route"
ROUTING_KINDS = (ROUTE, CONFIRM_ROUTE)
"""Send a series on, and ask whether the peer keeps it. The router does them. They only read their subject, so that they
run beside other jobs on it, and beside each other for other destinations."""

ORTHANC_PULL, ORTHANC_PUSH, ORTHANC_COMPARE = "orthanc_pull", "orthanc_push", "orthanc_compare"
ORTHANC_KINDS = (ORTHANC_PULL, ORTHANC_PUSH, ORTHANC_COMPARE)
"""Kinds of job that wait for an Orthanc, which may be slow or off: a process of its own does them, one at a time."""

NOT_FOR_WORKERS = (*NETWORK_KINDS, EMBED_ASKED, *ROUTING_KINDS, *ORTHANC_KINDS)
"""Kinds of job that an ordinary worker leaves alone."""

RECURRING = ("look_after_vectors", "retention", "scrub", ORTHANC_COMPARE)
"""Kinds of job that queue themselves again for ever: no work that anybody waits for."""

STATES = ("queued", "running", "done", "failed", "cancelled")
_LONGEST_DELAY_S = 3600.0
_MOST_DOUBLINGS = 20
def push(
    database: Database,
    kind: str,
    subject: str,
    parameters: Mapping[str, Any] | None = None,
    *,
    not_before: float | None = None,
    preferred: str = "",
) -> int:
    """Queue a job inside the caller's transaction and return its number; one that is queued already gets the new date.

    Parameters
    ----------
    not_before
        Seconds since the epoch before which no worker takes it; now when None.
    preferred
        Process that others leave it to for a moment, since it has what the job needs; empty: all are alike.
    """
    now = time.time()
    due, arguments = now if not_before is None else not_before, _encoded(parameters)
    rows = database.execute(
        "INSERT INTO job (kind, subject, parameters, not_before, preferred, created) VALUES (?, ?, ?, ?, ?, ?) "
        "ON CONFLICT (kind, subject, parameters) WHERE state = 'queued' DO UPDATE SET attempts = 0, error = '', "
        "not_before = excluded.not_before, preferred = excluded.preferred RETURNING id",
        (kind, subject, arguments, due, preferred, now),
    )
    return int(rows.fetchone()[0])


def postpone(database: Database, kind: str, subject: str, *, due: float, slack_s: float) -> None:
    """Queue a job for the time `due`, or up to `slack_s` later: one that is queued for then is left as it is.

    What is postponed again and again, with each instance of a series, is written once in that time.

    Parameters
    ----------
    due
        Seconds since the epoch before which no worker takes it.
    """
    row = database.execute(
        "SELECT 1 FROM job WHERE kind = ? AND subject = ? AND parameters = '{}' AND state = 'queued' "
        "AND attempts = 0 AND not_before BETWEEN ? AND ?",
        (kind, subject, due, due + slack_s),
    )
    if row.fetchone() is None:
        push(database, kind, subject, not_before=due + slack_s)


def _encoded(parameters: Mapping[str, Any] | None) -> str:
    return json.dumps(parameters, sort_keys=True) if parameters else "{}"


def was_pushed(database: Database, kind: str, subject: str) -> bool:
    """Whether there is such a job, in whichever state."""
    row = database.execute("SELECT 1 FROM job WHERE kind = ? AND subject = ? LIMIT 1", (kind, subject))
    return row.fetchone() is not None


def is_running(database: Database, kind: str, subject: str, parameters: Mapping[str, Any]) -> bool:
    """Whether a worker has such a job in hands, as the caller's transaction sees it."""
    row = database.execute(
        "SELECT 1 FROM job WHERE kind = ? AND subject = ? AND parameters = ? AND state = 'running'",
        (kind, subject, json.dumps(dict(parameters), sort_keys=True)),
    )
    return row.fetchone() is not None


class JobQueue:
    """The queue of one archive.

    Parameters
    ----------
    connections
        The catalogue's connections.
    """

    def __init__(self, connections: Connections) -> None:
        self._transaction = connections.transaction
        self._database = connections.get

    def push(
        self,
        kind: str,
        subject: str,
        parameters: Mapping[str, Any] | None = None,
        *,
        not_before: float | None = None,
    ) -> int:
        """Queue a job in a transaction of its own; see `push`."""
        with self._transaction() as database:
            return push(database, kind, subject, parameters, not_before=not_before)

    def claim(
        self,
        worker: str,
        *,
        claim_s: float,
        max_attempts: int,
        kinds: Collection[str] | None = None,
        excluding: Collection[str] = (),
        destination: str | None = None,
        process: str | None = None,
    ) -> Job | None:
        """Take the job that has been due longest, or None when nothing is due.

        Expired claims are set free first; a job whose worker died `max_attempts` times fails.

        Parameters
        ----------
        kinds, excluding
            Take jobs of these kinds only (None: of any), and of none of those; other jobs are left as they are.
        destination
            Only jobs with this parameter of that name.
        process
            Who asks: what has been due for a moment only, and is another's by preference, is left to that one. None
            takes everything.
        """
        now = time.time()
        wanted, names = job_rows.kinds_are(kinds, excluding, destination)
        left, theirs = job_rows.leaves_to_others(process, now)
        with self._transaction() as database:
            self._free(database, f"claim_expires < ? AND {wanted}", (now, *names), max_attempts)
            row = database.execute(
                f"SELECT {job_rows.COLUMNS} FROM job AS due "
                f"WHERE state = 'queued' AND not_before <= ? AND {wanted} AND {left} "
                "AND NOT EXISTS (SELECT 1 FROM job WHERE subject = due.subject AND (state = 'running' "
                # Cancelled, and its worker has not stopped yet.
                f"OR (state = 'cancelled' AND claim_expires >= ?)) AND {_KEEPS_WAITING}) "
                "ORDER BY not_before, id LIMIT 1",
                (now, *names, *theirs, now),
            ).fetchone()
            if row is None:
                return None
            database.execute(
                "UPDATE job SET state = 'running', worker = ?, claim_expires = ?, attempts = attempts + 1, "
                "started = ?, finished = NULL, progress = 0, preferred = coalesce(?, preferred) WHERE id = ?",
                (worker, now + claim_s, now, process, row[0]),
            )
        return self.get(row[0])

    def is_due(self, kinds: Collection[str], destination: str | None = None) -> bool:
        """Whether `claim` might find a job of these kinds: a look that keeps no writer waiting."""
        wanted, names = job_rows.kinds_are(kinds, (), destination)
        row = self._database().execute(
            f"SELECT 1 FROM job WHERE {wanted} AND "
            "((state = 'queued' AND not_before <= ?) OR (state = 'running' AND claim_expires < ?)) LIMIT 1",
            (*names, time.time(), time.time()),
        )
        return row.fetchone() is not None

    def hasten(self, kind: str, parameters: Mapping[str, Any], *, preferred: str = "") -> int:
        """Make the queued jobs with these parameters due now, for `preferred` first; return how many there are."""
        with self._transaction() as database:
            updated = database.execute(
                "UPDATE job SET not_before = min(not_before, ?), preferred = ? "
                "WHERE state = 'queued' AND kind = ? AND parameters = ?",
                (time.time(), preferred, kind, json.dumps(dict(parameters), sort_keys=True)),
            )
            return int(updated.rowcount)

    def failed_elsewhere(self, kind: str, *, process: str) -> list[Job]:
        """Return the queued jobs of this kind that were tried in vain, by another process."""
        rows = self._database().execute(
            f"SELECT {job_rows.COLUMNS} FROM job WHERE state = 'queued' AND kind = ? AND error != '' "
            "AND preferred NOT IN ('', ?)",
            (kind, process),
        )
        return [job_rows.job_of(row) for row in rows.fetchall()]

    def free_claims_of(self, worker: str, *, max_attempts: int, during: str = "") -> int:
        """Queue again what a worker that is known to be dead had claimed; return how many jobs.

        Parameters
        ----------
        during
            What it was doing when it died, as a clause ("plug-in x was doing it"); empty when not known.
        """
        with self._transaction() as database:
            return self._free(database, "worker = ?", (worker,), max_attempts, during)

    @staticmethod
    def _free(
        database: Database, where: str, parameters: tuple[Any, ...], max_attempts: int, during: str = ""
    ) -> int:
        rows = database.execute(
            f"SELECT id, kind, subject, parameters, attempts FROM job WHERE state = 'running' AND {where}", parameters
        ).fetchall()
        for number, kind, subject, arguments, attempts in rows:
            if attempts >= max_attempts:
                why = f"its worker died {attempts} times while {during or 'running it'}"
                job_rows.finish(database, number, "failed", why)
            else:
                why = f"its worker died while {during}" if during else ""
                job_rows.requeue(database, number, kind, subject, arguments, not_before=time.time(), error=why)
        return len(rows)

    def renew(self, job: Job, *, claim_s: float, progress: float) -> bool:
        """Keep the claim and record the progress (0 to 1); False when the job is no longer this worker's."""
        with self._transaction() as database:
            updated = database.execute(
                f"UPDATE job SET claim_expires = ?, progress = ? WHERE {job_rows.HELD} AND state = 'running'",
                (time.time() + claim_s, progress, *job_rows.holder(job)),
            )
            return bool(updated.rowcount)

    def done(self, job: Job) -> None:
        """Record success; earlier failures of the same work are no longer anything to look after."""
        with self._transaction() as database:
            if not job_rows.hand_back(database, job):
                return
            job_rows.finish(database, job.id, "done", "")
            database.execute(
                "UPDATE job SET state = 'cancelled', error = error || ' (done since by job ' || ? || ')' "
                "WHERE state = 'failed' AND kind = ? AND subject = ? AND parameters = ?",
                (job.id, job.kind, job.subject, json.dumps(dict(job.parameters), sort_keys=True)),
            )

    def fail(
        self, job: Job, sentence: str, *, max_attempts: int, retry_delay_s: float, permanent: bool = False
    ) -> None:
        """Record a failure: queued again with a growing delay, or failed for good.

        Parameters
        ----------
        permanent
            Trying again cannot help (the input is at fault).
        """
        with self._transaction() as database:
            if not job_rows.hand_back(database, job):
                return
            if permanent or job.attempts >= max_attempts:
                job_rows.finish(database, job.id, "failed", sentence)
                return
            delay = min(retry_delay_s * 2 ** min(job.attempts - 1, _MOST_DOUBLINGS), _LONGEST_DELAY_S)
            arguments = json.dumps(dict(job.parameters), sort_keys=True)
            due = time.time() + delay
            job_rows.requeue(database, job.id, job.kind, job.subject, arguments, not_before=due, error=sentence)

    def release(self, job: Job, *, not_before: float | None = None, error: str = "") -> None:
        """Give an unfinished job back, as if it had not been tried; a cancelled one stays cancelled.

        For a worker that has to stop, that has stopped working on a cancelled job, or that waits for something.

        Parameters
        ----------
        not_before
            Seconds since the epoch before which no worker takes it; now when None.
        error
            What it waits for, one sentence.
        """
        due = time.time() if not_before is None else not_before
        with self._transaction() as database:
            if not job_rows.hand_back(database, job):
                return
            database.execute("UPDATE job SET attempts = attempts - 1 WHERE id = ?", (job.id,))
            arguments = json.dumps(dict(job.parameters), sort_keys=True)
            job_rows.requeue(database, job.id, job.kind, job.subject, arguments, not_before=due, error=error)

    def get(self, number: int) -> Job:
        """Return job `number`; raises `NotFound`."""
        row = self._database().execute(f"SELECT {job_rows.COLUMNS} FROM job WHERE id = ?", (number,)).fetchone()
        if row is None:
            raise NotFound(f"there is no job {number}")
        return job_rows.job_of(row)

    def recent(self, *, states: tuple[str, ...] = (), limit: int = 1000) -> list[Job]:
        """Return the newest jobs first, only those in `states` when given."""
        where = f"WHERE state IN ({', '.join('?' * len(states))})" if states else ""
        rows = self._database().execute(
            f"SELECT {job_rows.COLUMNS} FROM job {where} ORDER BY id DESC LIMIT ?", (*states, limit)
        )
        return [job_rows.job_of(row) for row in rows]

    def pending(self, *, excluding: Collection[str] = ()) -> int:
        """Return how many jobs are queued or running, recurring ones and the kinds `excluding` aside."""
        others, names = job_rows.kinds_are(None, (*RECURRING, *excluding))
        rows = self._database().execute(
            f"SELECT count(*) FROM job WHERE state IN ('queued', 'running') AND {others}", names
        )
        return int(rows.fetchone()[0])

    def counts(self) -> dict[str, int]:
        """Return how many jobs there are in each state, recurring ones aside."""
        rows = self._database().execute(
            f"SELECT state, count(*) FROM job WHERE kind NOT IN ({', '.join('?' * len(RECURRING))}) "
            "GROUP BY state ORDER BY state",
            RECURRING,
        )
        return dict(rows.fetchall())

    def again(self, job: Job, *, not_before: float) -> None:
        """Queue a recurring job once more, and forget its earlier runs that went well."""
        with self._transaction() as database:
            database.execute(
                "DELETE FROM job WHERE kind = ? AND subject = ? AND state = 'done'", (job.kind, job.subject)
            )
            push(database, job.kind, job.subject, job.parameters, not_before=not_before)

    def forget(self, older_than_s: float) -> int:
        """Delete the jobs that ended longer ago than `older_than_s` seconds; return how many."""
        with self._transaction() as database:
            deleted = database.execute(
                "DELETE FROM job WHERE state IN ('done', 'failed', 'cancelled') AND finished < ?",
                (time.time() - older_than_s,),
            )
            return int(deleted.rowcount)

    def retry(self, number: int) -> int:
        """Queue a job that has ended again, now, with a fresh count of attempts; return the new job's number."""
        job = self.get(number)
        if job.state in ("queued", "running"):
            raise WrongState(f"job {number} is {job.state}: only a job that has ended can be retried")
        return self.push(job.kind, job.subject, job.parameters)

    def cancel(self, number: int) -> None:
        """Cancel a queued job, or ask the worker of a running one to stop.

        The claim of a running one stays until its worker gives it back or lets it expire: no other job on the subject
        starts before.
        """
        job = self.get(number)
        if job.state not in ("queued", "running"):
            raise WrongState(f"job {number} is {job.state}: only a queued or running job can be cancelled")
        with self._transaction() as database:
            job_rows.finish(database, number, "cancelled", "cancelled by the user", keep_claim=True)


_READS_ONLY = f"kind IN ({', '.join(repr(kind) for kind in ROUTING_KINDS)})"
_KEEPS_WAITING = f"(NOT ({_READS_ONLY} OR due.{_READS_ONLY}) OR (kind = due.kind AND parameters = due.parameters))"
"""Condition: a `job` that is running does not let the `due` one on the same subject begin."""
