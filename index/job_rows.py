"""Rows of the durable job queue: what the statements of `index.jobs` are made of."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlite_utils import Database

COLUMNS = (
    "id, kind, subject, parameters, state, not_before, attempts, worker, error, progress, created, started, finished"
)

_FOR_OTHERS_S = 2.0
"""How long a job that is due is left to the process that should take it, seconds."""


@dataclass(frozen=True)
class Job:
    """A row of the queue; times are seconds since the epoch."""

    id: int
    kind: str
    subject: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    state: str = "queued"
    not_before: float = 0.0
    attempts: int = 0
    worker: str = ""
    error: str = ""
    progress: float = 0.0
    created: float = 0.0
    started: float | None = None
    finished: float | None = None


def job_of(row: tuple[Any, ...]) -> Job:
    """Return the job of a row with the columns `COLUMNS`."""
    values = dict(zip(COLUMNS.split(", "), row, strict=True))
    return Job(**{**values, "parameters": json.loads(values["parameters"])})


def kinds_are(
    kinds: Collection[str] | None, excluding: Collection[str], destination: str | None = None
) -> tuple[str, tuple[str, ...]]:
    """Condition on the kind of a job and its destination, and the parameters of the condition."""
    condition = "TRUE" if kinds is None else f"kind IN ({', '.join('?' * len(kinds))})"
    if excluding:
        condition += f" AND kind NOT IN ({', '.join('?' * len(excluding))})"
    told: tuple[str, ...] = ()
    if destination is not None:
        condition, told = f"{condition} AND json_extract(parameters, '$.destination') = ?", (destination,)
    return condition, (*(kinds or ()), *excluding, *told)


def leaves_to_others(process: str | None, now: float) -> tuple[str, tuple[Any, ...]]:
    """Condition on who should take a job, and the parameters of the condition."""
    if process is None:
        return "TRUE", ()
    return "(preferred IN ('', ?) OR not_before < ?)", (process, now - _FOR_OTHERS_S)


HELD = "id = ? AND worker = ? AND started IS ?"
"""Condition for the claim of one attempt: a worker that claims the same job twice holds two different claims."""


def holder(job: Job) -> tuple[int, str, float | None]:
    """Return the parameters of `HELD`."""
    return job.id, job.worker, job.started


def hand_back(database: Database, job: Job) -> bool:
    """End the claim; whether the job was still running under it, and what becomes of it is the holder's to say."""
    database.execute(
        f"UPDATE job SET claim_expires = NULL WHERE {HELD} AND state IN ('running', 'cancelled')", holder(job)
    )
    row = database.execute(f"SELECT 1 FROM job WHERE {HELD} AND state = 'running'", holder(job)).fetchone()
    return row is not None


def finish(database: Database, number: int, state: str, sentence: str, *, keep_claim: bool = False) -> None:
    """Say what became of a job that was queued or running, with its claim or without."""
    claim = "claim_expires" if keep_claim else "NULL"
    database.execute(
        f"UPDATE job SET state = ?, error = ?, finished = ?, claim_expires = {claim}, "
        "progress = CASE WHEN ? = 'done' THEN 1 ELSE progress END WHERE id = ? AND state IN ('queued', 'running')",
        (state, _as_text(sentence), time.time(), state, number),
    )


def requeue(
    database: Database,
    number: int,
    kind: str,
    subject: str,
    arguments: str,
    *,
    not_before: float,
    error: str = "",
) -> None:
    """Queue a running job again; when the same job was queued anew meanwhile, that one stands for both."""
    twin = database.execute(
        "SELECT 1 FROM job WHERE state = 'queued' AND kind = ? AND subject = ? AND parameters = ?",
        (kind, subject, arguments),
    ).fetchone()
    if twin is not None:
        finish(database, number, "cancelled", error or "queued again by newer input")
        return
    database.execute(
        "UPDATE job SET state = 'queued', not_before = ?, worker = '', claim_expires = NULL, error = ? "
        "WHERE id = ? AND state = 'running'",
        (not_before, _as_text(error), number),
    )


def _as_text(sentence: str) -> str:
    """Return what can be stored: half a character, as in the name of a file that is not UTF-8, cannot."""
    return sentence.encode(errors="backslashreplace").decode()
