"""Deletion: which rows go with a patient, study, series or instance, and what becomes of the work on it.

Every function works inside the caller's transaction or only reads. The files are removed after the commit; until then
their paths are rows of the table ``removal``, so that a crash in between forgets none of them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass

from sqlite_utils import Database

from index import catalogue
from index.errors import NotFound
from index.keys import UNIQUE_KEYS, Level, snake_case

_FROM = (
    "FROM instance JOIN series ON series.id = instance.series JOIN study ON study.id = series.study "
    "JOIN patient ON patient.id = study.patient"
)


_MOST_NAMED = 5


@dataclass(frozen=True)
class Extent:
    """What a deletion would take.

    Attributes
    ----------
    patients, studies, series
        How many go altogether; one that keeps other instances does not.
    size
        Of their files, bytes.
    of
        Patient's Name, Patient ID, Study Date and Study Description of the studies that are touched, some of them.
    derived
        Series that were made from what goes and are not part of it, in any number of steps.
    """

    patients: int
    studies: int
    series: int
    instances: int
    size: int
    of: tuple[tuple[str, str, str, str], ...]
    derived: tuple[str, ...]


@dataclass(frozen=True)
class Removed:
    """What a deletion took out of the catalogue.

    Attributes
    ----------
    paths
        Of the files that nothing points to any more.
    instances
        How many instances those were.
    shortened
        Series Instance UIDs of series that lost some of their instances, and not all.
    """

    paths: tuple[str, ...]
    instances: int
    shortened: tuple[str, ...]


def extent(database: Database, level: Level, uid: str) -> Extent:
    """Return what deleting `uid` would take; raises `NotFound`."""
    where = f"{_FROM} WHERE {_column(level, uid)} = ?"
    instances, size = database.execute(f"SELECT count(*), coalesce(sum(instance.size), 0) {where}", (uid,)).fetchone()
    if not instances:
        raise NotFound(f"no {level.value.lower()} {uid}", element=UNIQUE_KEYS[level])
    patients, studies, series = (
        database.execute(
            f"SELECT count(*) FROM (SELECT 1 {where} GROUP BY {table}.id "
            f"HAVING count(*) = {table}.number_of_{table}_related_instances)",
            (uid,),
        ).fetchone()[0]
        for table in ("patient", "study", "series")
    )
    of = database.execute(
        "SELECT DISTINCT patient.patient_name, patient.patient_id, study.study_date, study.study_description "
        f"{where} LIMIT {_MOST_NAMED}",
        (uid,),
    ).fetchall()
    derived = () if level is Level.IMAGE else derived_from(database, level, uid)
    return Extent(patients, studies, series, instances, size, tuple(of), derived)


def derived_from(database: Database, level: Level, uid: str) -> tuple[str, ...]:
    """Return the Series Instance UIDs of what was made from `uid`'s series, and from that, outside of `uid` itself."""
    rows = database.execute(
        f"WITH RECURSIVE own(uid) AS (SELECT DISTINCT series.series_instance_uid {_FROM} "
        f"WHERE {_column(level, uid)} = ?), made(uid) AS (SELECT uid FROM own UNION "
        "SELECT derivation_output.series_instance_uid FROM made JOIN derivation ON derivation.source = made.uid "
        "JOIN derivation_output ON derivation_output.derivation = derivation.id) "
        "SELECT uid FROM made WHERE uid NOT IN (SELECT uid FROM own) "
        "AND EXISTS (SELECT 1 FROM series WHERE series_instance_uid = uid) ORDER BY uid",
        (uid,),
    )
    return tuple(row[0] for row in rows)


def remove_rows(database: Database, level: Level, uid: str) -> Removed:
    """Delete the rows of everything that bears the unique key `uid`; raises `NotFound`."""
    paths: list[str] = []
    shortened: list[str] = []
    touched: list[str] = []
    if level is Level.IMAGE:
        row = catalogue.find_instance(database, uid)
        if row is not None:
            touched = [row["series_instance_uid"]]
            paths = [catalogue.remove_instance(database, uid)]
            shortened = [series for series in touched if catalogue.has_series(database, series)]
    else:
        rows = database.execute(
            "SELECT series.id, series.series_instance_uid FROM series JOIN study ON study.id = series.study "
            f"JOIN patient ON patient.id = study.patient WHERE {_column(level, uid)} = ?",
            (uid,),
        ).fetchall()
        touched = [row[1] for row in rows]
        for number, _ in rows:
            paths += catalogue.remove_series(database, number)
    if not paths:
        raise NotFound(f"no {level.value.lower()} {uid}", element=UNIQUE_KEYS[level])
    gone = [series for series in dict.fromkeys(touched) if not catalogue.has_series(database, series)]
    _forget_derivations(database, gone)
    _cancel_jobs(database, gone)
    promise_removal(database, paths)
    return Removed(tuple(paths), len(paths), tuple(shortened))


def promise_removal(database: Database, paths: Iterable[str]) -> None:
    """Note that nothing points to these files any more: whoever finds them may remove them."""
    database.execute(
        "INSERT OR IGNORE INTO removal (path) SELECT value FROM json_each(?)", (json.dumps(list(paths)),)
    )


def promised(database: Database, limit: int, after: str = "") -> list[str]:
    """Return paths that are still to be removed, in order, at most `limit` of those behind `after`."""
    rows = database.execute("SELECT path FROM removal WHERE path > ? ORDER BY path LIMIT ?", (after, limit))
    return [row[0] for row in rows]


def is_promised(database: Database, path: str) -> bool:
    """Whether the file is to be removed."""
    return database.execute("SELECT 1 FROM removal WHERE path = ?", (path,)).fetchone() is not None


def revoke_promises(database: Database) -> None:
    """Take back what was noted of a file that a row points to."""
    paths = [row[0] for row in database.execute("SELECT path FROM removal").fetchall()]
    keep_promise(database, [path for path in paths if catalogue.is_known(database, path)])


def keep_promise(database: Database, paths: Iterable[str]) -> None:
    """Note that these files have been removed."""
    database.execute(
        "DELETE FROM removal WHERE path IN (SELECT value FROM json_each(?))", (json.dumps(list(paths)),)
    )


def _column(level: Level, uid: str) -> str:
    if not uid:
        raise NotFound(f"no {level.value.lower()} without {UNIQUE_KEYS[level]}", element=UNIQUE_KEYS[level])
    return f"{level.table}.{snake_case(UNIQUE_KEYS[level])}"


def _forget_derivations(database: Database, gone: list[str]) -> None:
    """Delete the derivations from series that are gone, and those of which nothing is left that they had made."""
    series = json.dumps(gone)
    database.execute("DELETE FROM derivation WHERE source IN (SELECT value FROM json_each(?))", (series,))
    database.execute(
        "DELETE FROM derivation WHERE id IN (SELECT derivation FROM derivation_output "
        "WHERE series_instance_uid IN (SELECT value FROM json_each(?))) AND NOT EXISTS "
        "(SELECT 1 FROM derivation_output JOIN series USING (series_instance_uid) "
        "WHERE derivation_output.derivation = derivation.id)",
        (series,),
    )


def _cancel_jobs(database: Database, gone: list[str]) -> None:
    """Cancel the work on series that are gone; a running job keeps its claim until its worker has noticed."""
    database.execute(
        "UPDATE job SET state = 'cancelled', error = 'the series was deleted', finished = ?, "
        "claim_expires = CASE WHEN state = 'running' THEN claim_expires END "
        "WHERE state IN ('queued', 'running') AND subject IN (SELECT value FROM json_each(?))",
        (time.time(), json.dumps(gone)),
    )
