"""Rows of what is embedded only because somebody asks about it, and of what came of it.

A region, a frame or slice without a stored vector, an image that was sent to ask. The network process runs no model: it
puts a row here and a job into the queue (`index.on_demand`); the encoder process does the job and puts the vectors, or
why there are none, into the row. Rows about stored instances serve the next query too, for a day.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from sqlite_utils import Database

from index import jobs
from index.archive import Archive
from index.errors import ArchiveError, InvalidIdentifier, NotEmbedded, NotFound, UnknownModel, UnknownQuery
from index.neighbours import Region
from index.unit_vectors import Vectors, from_bytes, to_bytes, unit

KEPT_S = 86400.0
"""How long vectors about stored instances serve the next query, seconds."""

MOST_KEPT = 10_000
"""Rows about stored instances; the oldest go first."""

MOST_WAITING = 1000
"""Jobs that wait to be embedded: whoever asks for one more is refused, not queued."""

_REFUSALS: dict[str, type[ArchiveError]] = {
    kind.__name__: kind for kind in (InvalidIdentifier, NotEmbedded, UnknownModel)
}


@dataclass(frozen=True)
class Part:
    """What of a stored instance is asked about.

    Attributes
    ----------
    frame
        From 1; 0: all of its frames, or as many as are embedded of a series.
    region
        None: the whole frame.
    """

    sop_instance_uid: str
    frame: int = 0
    region: Region | None = None


@dataclass(frozen=True)
class Wanted:
    """What a job is to embed.

    Attributes
    ----------
    sop_instance_uid
        A stored instance; empty for a file.
    file
        Name, in the incoming folder, of an image that was sent.
    """

    model_id: str
    sop_instance_uid: str
    file: str
    frame: int
    region: Region | None


def find(database: Database, model_id: str, part: Part) -> Vectors | None:
    """Return the vectors of `part`, axes (n, d), None when they were not made yet."""
    row = database.execute(
        "SELECT asked.vectors, encoder.dimension FROM asked JOIN encoder USING (model_id) "
        "JOIN instance ON instance.id = asked.instance "
        "WHERE model_id = ? AND sop_instance_uid = ? AND frame = ? AND region = ? AND vectors IS NOT NULL",
        (model_id, part.sop_instance_uid, part.frame, _written(part.region)),
    ).fetchone()
    return None if row is None else vectors_from(*row)


def vectors_from(stored: bytes, dimension: int) -> Vectors:
    """Return the vectors, axes (n, d), that a row holds."""
    return from_bytes(stored).reshape(-1, dimension)


def ask_part(archive: Archive, model_id: str, part: Part, *, at: float) -> int:
    """Have `part` embedded; return its row. One that was refused is tried again.

    Raises
    ------
    NotEmbedded
        Too many wait already.
    UnknownQuery
        The instance is not (any longer) in the archive.
    """
    with archive.transaction() as database:
        row = database.execute(
            "INSERT INTO asked (model_id, instance, frame, region, at) "
            "SELECT ?, id, ?, ?, ? FROM instance WHERE sop_instance_uid = ? "
            "ON CONFLICT (model_id, instance, frame, region) WHERE instance IS NOT NULL "
            "DO UPDATE SET at = excluded.at, refused_as = '', refusal = '' RETURNING id",
            (model_id, part.frame, _written(part.region), at, part.sop_instance_uid),
        ).fetchone()
        if row is None:
            raise UnknownQuery(f"no such instance here: {part.sop_instance_uid[:64]}", element="QuerySOPInstanceUID")
        push(database, row[0])
    return int(row[0])


def push(database: Database, number: int) -> None:
    """Queue the job of row `number`, unless it is being done; raises `NotEmbedded` when too many wait already."""
    waiting = database.execute(
        "SELECT count(*) FROM job WHERE kind = ? AND state = 'queued'", (jobs.EMBED_ASKED,)
    ).fetchone()[0]
    if waiting >= MOST_WAITING:
        raise NotEmbedded(f"{waiting} questions wait to be embedded: ask again later")
    if not jobs.is_running(database, jobs.EMBED_ASKED, str(number), {}):
        jobs.push(database, jobs.EMBED_ASKED, str(number))


def wanted(archive: Archive, number: int) -> Wanted:
    """Return what row `number` asks for; raises `NotFound` when nobody asks for it any more."""
    row = archive.database.execute(
        "SELECT model_id, coalesce(sop_instance_uid, ''), file, frame, region FROM asked "
        "LEFT JOIN instance ON instance.id = asked.instance WHERE asked.id = ?",
        (number,),
    ).fetchone()
    if row is None:
        raise NotFound(f"nobody asks for row {number} any more")
    model_id, uid, file, frame, region = row
    return Wanted(model_id, uid, file, frame, tuple(json.loads(region)) if region else None)


def answer(archive: Archive, number: int, vectors: Vectors) -> None:
    """Put `vectors`, axes (n, d), into row `number`."""
    with archive.transaction() as database:
        database.execute("UPDATE asked SET vectors = ? WHERE id = ?", (to_bytes(unit(vectors)), number))


def refuse(archive: Archive, number: int, error: ArchiveError) -> None:
    """Put into row `number` why there are no vectors; `error` is what the asker gets (a kind that `outcome` knows)."""
    kind = next(name for name, known in _REFUSALS.items() if isinstance(error, known))
    with archive.transaction() as database:
        database.execute("UPDATE asked SET refused_as = ?, refusal = ? WHERE id = ?", (kind, str(error), number))


def outcome(database: Database, number: int) -> bool:
    """Whether row `number` has its vectors; False: not yet.

    Raises
    ------
    InvalidIdentifier
        The instance has no such frame or region (Status A900).
    NotEmbedded
        It has no pixels, they cannot be decoded, or the job failed (C002).
    UnknownModel
        The encoder cannot be loaded here (C003).
    UnknownQuery
        The row is gone: the instance was deleted meanwhile (C001).
    """
    row = database.execute(
        "SELECT vectors IS NOT NULL, refused_as, refusal, "
        "(SELECT state || ' ' || error FROM job WHERE kind = ? AND subject = ? ORDER BY id DESC LIMIT 1) "
        "FROM asked WHERE id = ?",
        (jobs.EMBED_ASKED, str(number), number),
    ).fetchone()
    if row is None:
        raise UnknownQuery("what was asked about has been deleted")
    is_there, refused_as, refusal, job = row
    if is_there:
        return True
    if refused_as:
        raise _REFUSALS[refused_as](refusal, element="QueryRegion" if refused_as == "InvalidIdentifier" else "")
    state, _, error = str(job or "").partition(" ")
    if state in ("failed", "cancelled"):
        raise NotEmbedded(f"could not be embedded: {error}")
    return False


def forget(archive: Archive, *, at: float, questions_kept_s: float) -> int:
    """Delete what has served its time at the moment `at`, and the records of the jobs; return how many rows.

    Parameters
    ----------
    questions_kept_s
        How long images that were sent are kept, seconds.
    """
    stale = (
        "(instance IS NULL AND at < ?) OR (instance IS NOT NULL AND at < ?) OR id IN "
        "(SELECT id FROM asked WHERE instance IS NOT NULL ORDER BY at DESC, id DESC LIMIT -1 OFFSET ?)"
    )
    limits = (at - questions_kept_s, at - KEPT_S, MOST_KEPT)
    ended = "kind = ? AND state IN ('done', 'failed', 'cancelled') AND finished < ?"
    of_jobs = (jobs.EMBED_ASKED, at - questions_kept_s)
    look = f"SELECT EXISTS (SELECT 1 FROM asked WHERE {stale}) OR EXISTS (SELECT 1 FROM job WHERE {ended})"
    if not archive.database.execute(look, (*limits, *of_jobs)).fetchone()[0]:
        return 0  # without keeping any writer waiting
    with archive.transaction() as database:
        deleted = database.execute(f"DELETE FROM asked WHERE {stale}", limits).rowcount
        database.execute(f"DELETE FROM job WHERE {ended}", of_jobs)
    return int(deleted)


def _written(region: Region | None) -> str:
    return "" if region is None else json.dumps(list(region))


__all__ = [
    "Part",
    "Wanted",
    "answer",
    "ask_part",
    "find",
    "forget",
    "outcome",
    "push",
    "refuse",
    "vectors_from",
    "wanted",
]
