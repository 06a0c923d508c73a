"""What a rebuild takes from the catalogue that it replaces, as far as that one can still be read."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sqlite_utils import Database

from index import catalogue, changes, deletion, elsewhere, jobs
from index.arrivals import ArrivalJournal
from index.catalogue import AT_PATH, at_path
from index.changes import ChangeKind
from index.database import BUSY_TIMEOUT_S, Connections
from index.keys import Level

_DERIVATION = "id, source, recipe, source_digest, outputs, at"
_OUTPUT = "series_instance_uid, derivation, instances"
_COMMITMENT = "requestor, transaction_uid, address, state, instances, failures, requested_at, reported_at"
_DELIVERY = (
    "destination, profile, sop_instance_uid, series_instance_uid, sha256, sop_class_uid, sent_uid, rule, state, told, "
    "since, at, transaction_uid"
)
_ENCODER = "model_id, dimension, active, wanted, at"
_ACTIVATION = "id, model_id, at"
_ORTHANC_SERIES = "orthanc_id, orthanc_study, series_instance_uid, listing, content"
_TOLD = "profile, uid, original"
_ARRIVALS = "lane, number, settled, emptied, boot"
_JOB = "kind, subject, parameters, not_before, attempts, error, created"


class RebuildError(Exception):
    """A rebuild that cannot be carried out; it has changed nothing."""


@dataclass(frozen=True)
class Missing:
    """An instance of the old catalogue of which there is no file any more.

    Attributes
    ----------
    path
        Where its file was, below the data folder.
    """

    sop_instance_uid: str
    path: str


@contextmanager
def locked(path: Path) -> Iterator[OldCatalogue]:
    """Give the old catalogue, locked until the end of the block against everybody who would still write to it.

    Raises `RebuildError` when somebody is writing to it for longer than a writer waits.
    """
    if not path.exists():
        yield OldCatalogue(None)
        return
    database = Database(sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None))
    with closing(database.conn):
        try:
            database.execute("BEGIN IMMEDIATE")
            database.execute("SELECT max(seq) FROM change").fetchone()
            is_usable = True
        except sqlite3.DatabaseError as error:
            if getattr(error, "sqlite_errorname", "").startswith("SQLITE_BUSY"):
                raise RebuildError(
                    f"another process is writing to {path.name} for more than {BUSY_TIMEOUT_S:g} s: nothing was changed"
                ) from error
            is_usable = False
        try:
            yield OldCatalogue(database if is_usable else None)
        finally:
            with suppress(sqlite3.Error):
                database.execute("ROLLBACK")


class OldCatalogue:
    """What there is to be read in the old catalogue; where it is broken, or of another schema, there is nothing.

    Parameters
    ----------
    database
        None: nothing of it can be read.
    """

    def __init__(self, database: Database | None) -> None:
        self._database = database

    def _read(self, sql: str, parameters: tuple[str, ...] = ()) -> list[tuple[Any, ...]] | None:
        """Return the rows; None where the catalogue is broken or has no such columns."""
        if self._database is None:
            return None
        try:
            return list(self._database.execute(sql, parameters).fetchall())
        except sqlite3.DatabaseError:
            return None

    def _rows(self, sql: str, parameters: tuple[str, ...] = ()) -> list[tuple[Any, ...]]:
        return self._read(sql, parameters) or []

    def last_change(self) -> int:
        """Return the last number of its change feed; more than any feed has rows when nobody can tell."""
        rows = self._rows("SELECT coalesce(max(seq), 0) FROM change")
        return int(rows[0][0]) if rows else int(time.time())

    def sha256(self, path: str) -> str | None:
        """Return the digest of what was received as the file at `path`; None: it knows of no such file."""
        rows = self._rows(f"SELECT sha256 FROM instance WHERE {AT_PATH}", at_path(path))
        return str(rows[0][0]) if rows else None

    def source_aet(self, path: str) -> str | None:
        """Return who sent the file at `path`, "" where nobody did; None: it knows of no such file."""
        rows = self._rows(f"SELECT source_aet FROM instance WHERE {AT_PATH}", at_path(path))
        return str(rows[0][0] or "") if rows else None

    def received_at(self, path: str) -> str:
        """Return when the instance of the file at `path` came last, "" where it knows of no such file."""
        rows = self._rows(f"SELECT received_at FROM instance WHERE {AT_PATH}", at_path(path))
        return str(rows[0][0] or "") if rows else ""

    def removals(self) -> frozenset[str]:
        """Return the paths of the files that a deletion has still to remove."""
        gone = set()
        for (path,) in self._rows("SELECT path FROM removal"):
            rows = self._read(f"SELECT 1 FROM instance WHERE {AT_PATH}", at_path(str(path)))
            if rows is None:  # nobody can tell
                return frozenset()
            if not rows:
                gone.add(str(path))
        return frozenset(gone)

    def tell_missing(self, connections: Connections) -> list[Missing]:
        """Append every instance that the new catalogue lacks to its change feed, and return them."""
        with connections.transaction() as database:
            missing = [
                Missing(uid, path)
                for uid, path in self._rows("SELECT sop_instance_uid, path FROM instance ORDER BY id")
                if not catalogue.has_instance(database, uid)
            ]
            for each in missing:
                detail = f"no file {each.path} when the catalogue was made again: its row is gone"
                changes.append(database, ChangeKind.MISSING, Level.IMAGE, each.sop_instance_uid, detail)
        return missing

    def take_over_removals(self, connections: Connections) -> None:
        """Copy the promises to remove files."""
        with connections.transaction() as database:
            deletion.promise_removal(database, self.removals())

    def take_over_arrivals(self, connections: Connections, journal: ArrivalJournal) -> None:
        """Copy which blocks of the journal of arrivals had their rows: what was refused then does not come in now.

        Not after a power cut: what the new catalogue lacks since its file was lost is brought back from all blocks.
        """
        with connections.transaction() as database:
            _insert(database, "arrivals", _ARRIVALS, self._rows(f"SELECT {_ARRIVALS} FROM arrivals"))
            if journal.is_in_doubt(database):
                database.execute("DELETE FROM arrivals")

    def take_over_derivations(self, connections: Connections) -> int:
        """Copy the records of what was made from what, so that nothing of it is made again; return how many."""
        derivations = self._read(f"SELECT {_DERIVATION} FROM derivation")
        outputs = self._read(f"SELECT {_OUTPUT} FROM derivation_output")
        if derivations is None or outputs is None:
            return 0
        with connections.transaction() as database:
            _insert(database, "derivation", _DERIVATION, derivations)
            _insert(database, "derivation_output", _OUTPUT, outputs)
        return len(derivations)

    def take_over_encoders(self, connections: Connections) -> None:
        """Copy which encoders there are and which one answers; their vectors are made again from the images."""
        encoders = self._read(f"SELECT {_ENCODER} FROM encoder")
        if encoders is None:
            return
        with connections.transaction() as database:
            _insert(database, "encoder", _ENCODER, encoders)
            _insert(database, "activation", _ACTIVATION, self._rows(f"SELECT {_ACTIVATION} FROM activation"))

    def take_over_told(self, connections: Connections) -> None:
        """Copy what the UIDs stand for that were told through de-identification profiles."""
        with connections.transaction() as database:
            _insert(database, "told", _TOLD, self._rows(f"SELECT {_TOLD} FROM told"))

    def take_over_commitments(self, connections: Connections) -> int:
        """Copy the requests for storage commitment, and queue those that wait; return how many wait."""
        waiting = self._rows(
            f"SELECT {_JOB} FROM job WHERE kind = ? AND state IN ('queued', 'running') ORDER BY state, id",
            (jobs.STORAGE_COMMITMENT,),
        )
        with connections.transaction() as database:
            for columns in (f"{_COMMITMENT}, profile", _COMMITMENT):  # an older version has no profile
                rows = self._read(f"SELECT {columns} FROM commitment")
                if rows is not None:
                    _insert(database, "commitment", columns, rows)
                    break
            _insert(database, "job", _JOB, waiting)
            (count,) = database.execute(
                "SELECT count(*) FROM job WHERE kind = ?", (jobs.STORAGE_COMMITMENT,)
            ).fetchone()
        return int(count)

    def take_over_deliveries(self, connections: Connections) -> None:
        """Copy what was sent on to whom, so that nothing is sent again, and queue what is still to be sent."""
        kinds = ", ".join(repr(kind) for kind in jobs.ROUTING_KINDS)
        waiting = self._rows(
            f"SELECT {_JOB} FROM job WHERE kind IN ({kinds}) AND state IN ('queued', 'running') ORDER BY state, id"
        )
        with connections.transaction() as database:
            _insert(database, "delivery", _DELIVERY, self._rows(f"SELECT {_DELIVERY} FROM delivery"))
            _insert(database, "job", _JOB, waiting)

    def take_over_orthanc(self, connections: Connections) -> None:
        """Copy what an Orthanc holds as well; a series of which files are missing here is to be compared anew."""
        series = self._rows(f"SELECT {_ORTHANC_SERIES} FROM orthanc_series")
        held = self._rows(
            "SELECT instance.sop_instance_uid, orthanc_instance.orthanc_id, version, orthanc_series "
            "FROM orthanc_instance JOIN instance ON instance.id = orthanc_instance.instance"
        )
        with connections.transaction() as database:
            gaps = {place for uid, _, _, place in held if not catalogue.has_instance(database, uid)}
            for row in series:
                noted = elsewhere.OrthancSeries(*row)
                if noted.orthanc_id in gaps:
                    noted = replace(noted, listing="", content="")
                elsewhere.note_series(database, noted)
            for uid, orthanc_id, version, place in held:
                elsewhere.note_instance(database, elsewhere.Held(uid, orthanc_id, version), place)


def _insert(database: Database, table: str, columns: str, rows: list[tuple[Any, ...]]) -> None:
    places = ", ".join("?" * len(columns.split(", ")))
    for row in rows:
        # A request that was queued again while it ran has two jobs; of those one is enough.
        database.execute(f"INSERT INTO {table} ({columns}) VALUES ({places}) ON CONFLICT DO NOTHING", row)
