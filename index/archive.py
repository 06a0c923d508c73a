"""The archive: the one door in and out of what is stored.

C-STORE, imports, derived objects and every later door go through `Archive.ingest`: one atomic file write, then one
transaction that makes the instance findable, appends to the change feed and puts the work due into the job queue.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from sqlite_utils import Database

from config.settings import ArchiveSettings
from index import catalogue, changes, jobs
from index.changes import ChangeKind
from index.database import Connections
from index.errors import InstanceConflict, InvalidInstance, NotFound
from index.files import FileStore, flush_and_digest, is_valid_uid
from index.header import Header, read_header
from index.keys import UNIQUE_KEYS, Level, snake_case
from index.part10 import is_same_data_set


class Outcome(StrEnum):
    """What `Archive.ingest` did."""

    STORED = "stored"
    DUPLICATE = "duplicate"
    REPLACED = "replaced"


@dataclass(frozen=True)
class Ingested:
    """The instance that was brought in, and what became of it."""

    sop_instance_uid: str
    series_instance_uid: str
    study_instance_uid: str
    outcome: Outcome


@dataclass(frozen=True)
class StoredInstance:
    """An instance of the archive and its Part 10 file.

    Attributes
    ----------
    size
        Of the file, bytes.
    sha256
        Of the file, hex.
    """

    sop_instance_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    series_instance_uid: str
    study_instance_uid: str
    path: Path
    size: int
    sha256: str


@dataclass(frozen=True)
class _Arrival:
    """A received file that has been read and flushed, but not yet stored."""

    incoming: Path
    header: Header
    sha256: str
    size: int
    source_aet: str


class Archive:
    """Files, catalogue, change feed and job queue below one data folder. Safe to share between threads.

    Parameters
    ----------
    data
        The data folder; made when absent.
    settle_time_s
        A series is stable when nothing came for it in this time, seconds.
    overwrite
        What to do with the same SOP Instance UID and other content: ``never``, ``same_source`` or ``always``.
    reserve_mb
        MiB that stay free on the file system.
    """

    def __init__(
        self, data: Path, *, settle_time_s: float = 10.0, overwrite: str = "never", reserve_mb: int = 0
    ) -> None:
        self.data = data.resolve()
        self._files = FileStore(self.data, reserve_mb)
        self._connections = Connections(self.data / "catalogue.sqlite")
        self._settle_time_s = settle_time_s
        self._overwrite = overwrite
        self.jobs = jobs.JobQueue(self._connections)

    @classmethod
    def from_settings(cls, settings: ArchiveSettings) -> Archive:
        """Open the archive that the settings describe."""
        return cls(
            settings.data,
            settle_time_s=settings.settle_time_s,
            overwrite=settings.overwrite,
            reserve_mb=settings.reserve_mb,
        )

    @property
    def database(self) -> Database:
        """The connection of the calling thread, for reading."""
        return self._connections.get()

    @contextmanager
    def snapshot(self) -> Iterator[Database]:
        """Give a connection of its own, for rows that are read at leisure; see `Connections.snapshot`."""
        with self._connections.snapshot() as database:
            yield database

    @contextmanager
    def transaction(self) -> Iterator[Database]:
        """Run a block as one write transaction."""
        with self._connections.transaction() as database:
            yield database

    @property
    def incoming(self) -> Path:
        """Folder for half-received files, on the file system of the archive."""
        return self._files.incoming

    def require_space(self, size: int = 0) -> None:
        """Raise `OutOfSpace` when `size` more bytes would eat into the reserve."""
        self._files.require_space(size)

    def clear_incoming(self) -> int:
        """Delete what an earlier run left half-received (call once, before anything is received)."""
        return self._files.clear_incoming()

    def remove_orphans(self) -> int:
        """Delete stored files that the catalogue does not know; return how many those were.

        A crash leaves such files between the two halves of an ingest or of a deletion. Nobody finds them, so this only
        gives back their space. Nothing that others ingest meanwhile is at risk: files get their names under the lock.
        """
        removed = 0
        for paths in self._files.all_paths():
            with self.transaction() as database:
                for path in paths:
                    if not _is_known(database, path):
                        self._files.remove(path)
                        removed += 1
        return removed

    def close(self) -> None:
        """Close this thread's connection."""
        self._connections.close()

    def ingest(
        self,
        source: Path | bytes,
        *,
        source_aet: str = "",
        overwrite: str | None = None,
        expected: tuple[str, str] | None = None,
        announce: bool = True,
    ) -> Ingested:
        """Store one instance. When this returns, its bytes and its rows are on disk.

        Parameters
        ----------
        source
            A whole Part 10 file: bytes, a path in `incoming` (moved) or any other path (copied).
        source_aet
            AE title that sent it; empty for an import.
        overwrite
            Instead of the archive's own policy; derived objects use ``always``.
        expected
            (SOP Class UID, SOP Instance UID) that the C-STORE command named.
        announce
            Let the series become stable after the settle time. False for one who makes a whole series and queues
            `series_stable` when it is whole.

        Raises
        ------
        InvalidInstance
            Unreadable, without its UIDs, or not what the command named.
        InstanceConflict
            Same SOP Instance UID with other content, and the policy keeps the old one.
        OutOfSpace
            The reserve would be touched.
        """
        self._refuse_outer_transaction()
        incoming = self._files.receive(source)
        try:
            header = read_header(incoming)
            _require_expected(header, expected)
            sha256 = flush_and_digest(incoming)
            arrival = _Arrival(incoming, header, sha256, incoming.stat().st_size, source_aet)
            return self._commit(arrival, overwrite or self._overwrite, announce=announce)
        finally:
            incoming.unlink(missing_ok=True)

    def _commit(self, arrival: _Arrival, overwrite: str, *, announce: bool) -> Ingested:
        header = arrival.header
        relative = self._files.new_path(*header.uids)
        replaced = ""
        try:
            with self.transaction() as database:
                stored = catalogue.find_instance(database, header.sop_instance_uid)
                if stored is not None:
                    if self._is_same(stored, arrival):
                        return _ingested(header, Outcome.DUPLICATE)
                    if not self._may_replace(stored, overwrite, arrival.source_aet):
                        origin = f"from {arrival.source_aet or 'import'}"
                        changes.append(database, ChangeKind.CONFLICT, Level.IMAGE, header.sop_instance_uid, origin)
                    else:
                        replaced = catalogue.remove_instance(database, header.sop_instance_uid)
                if stored is None or replaced:
                    self._insert(database, arrival, relative, ChangeKind.REPLACED if replaced else ChangeKind.STORED)
                    if announce:
                        self._announce(database, header, stored)
        except BaseException:
            self._remove_unless_known(relative)
            raise
        if stored is not None and not replaced:
            raise InstanceConflict(
                "same SOP Instance UID, other content: the stored one was kept", element="SOPInstanceUID"
            )
        if replaced:
            self._files.remove(replaced)
        return _ingested(header, Outcome.REPLACED if replaced else Outcome.STORED)

    def _insert(self, database: Database, arrival: _Arrival, relative: str, kind: ChangeKind) -> None:
        header, uid = arrival.header, arrival.header.sop_instance_uid
        mismatch = catalogue.add_instance(
            database,
            header,
            path=relative,
            size=arrival.size,
            sha256=arrival.sha256,
            source_aet=arrival.source_aet,
        )
        changes.append(database, kind, Level.IMAGE, uid, arrival.source_aet)
        if mismatch is not None:
            detail = f"study of patient {mismatch!r}, instance of {header.values['PatientID']!r}"
            changes.append(database, ChangeKind.PATIENT_MISMATCH, Level.IMAGE, uid, detail)
        for wrong in (each for each in header.uids if not is_valid_uid(each)):
            changes.append(database, ChangeKind.UID_NONCONFORMING, Level.IMAGE, uid, wrong[:80])
        # Last, inside the transaction: the file has its name before the rows that promise it are committed.
        self._files.place(arrival.incoming, relative)

    def _announce(self, database: Database, header: Header, replaced: dict[str, Any] | None) -> None:
        due = time.time() + self._settle_time_s
        jobs.push(database, jobs.SERIES_STABLE, header.series_instance_uid, not_before=due)
        left = replaced["series_instance_uid"] if replaced else header.series_instance_uid
        if left != header.series_instance_uid and catalogue.has_series(database, left):
            jobs.push(database, jobs.SERIES_STABLE, left, not_before=due)  # without its instance it has changed as well

    def _is_same(self, stored: dict[str, Any], arrival: _Arrival) -> bool:
        path = self._files.path(stored["path"])
        if not path.exists():
            return False
        if stored["sha256"] == arrival.sha256:
            return True
        return stored["transfer_syntax_uid"] == arrival.header.transfer_syntax_uid and is_same_data_set(
            path, arrival.incoming
        )

    def _may_replace(self, stored: dict[str, Any], overwrite: str, source_aet: str) -> bool:
        if not self._files.path(stored["path"]).exists():  # lost: whoever sends it again repairs the archive
            return True
        return overwrite == "always" or (overwrite == "same_source" and stored["source_aet"] == source_aet)

    def _remove_unless_known(self, relative: str) -> None:
        """Clean up after a transaction that failed, unless it was committed after all."""
        if not self._files.path(relative).exists():
            return
        # When even this fails, the file stays behind, unknown to the catalogue: the first error is the one to report.
        with suppress(sqlite3.Error, OSError), self.transaction() as database:
            if not _is_known(database, relative):
                self._files.remove(relative)

    def _refuse_outer_transaction(self) -> None:
        if self._connections.in_transaction:
            raise RuntimeError("files cannot be rolled back: ingest and delete make a transaction of their own")

    def open_instance(self, sop_instance_uid: str) -> StoredInstance:
        """Return the stored instance; raises `NotFound`."""
        row = catalogue.find_instance(self.database, sop_instance_uid)
        if row is None:
            raise NotFound(f"no instance {sop_instance_uid}", element="SOPInstanceUID")
        return self.stored(row)

    def stored(self, row: dict[str, Any]) -> StoredInstance:
        """Return the instance that a row of the catalogue describes."""
        return StoredInstance(
            sop_instance_uid=row["sop_instance_uid"],
            sop_class_uid=row["sop_class_uid"],
            transfer_syntax_uid=row["transfer_syntax_uid"],
            series_instance_uid=row["series_instance_uid"],
            study_instance_uid=row["study_instance_uid"],
            path=self._files.path(row["path"]),
            size=row["size"],
            sha256=row["sha256"],
        )

    def delete(self, level: Level, uid: str) -> int:
        """Delete a patient, study, series or instance: rows first, then files.

        Everything that bears the unique key `uid` goes: the patients of every issuer of that Patient ID, the series of
        every study that uses that Series Instance UID.

        Returns
        -------
        int
            How many instances that were.

        Raises
        ------
        NotFound
            There is none, or `uid` is empty.
        """
        self._refuse_outer_transaction()
        if not uid:
            raise NotFound(f"no {level.value.lower()} without {UNIQUE_KEYS[level]}", element=UNIQUE_KEYS[level])
        column = f"{level.table}.{snake_case(UNIQUE_KEYS[level])}"
        with self.transaction() as database:
            rows = database.execute(
                "SELECT instance.sop_instance_uid FROM instance JOIN series ON series.id = instance.series "
                "JOIN study ON study.id = series.study JOIN patient ON patient.id = study.patient "
                f"WHERE {column} = ?",
                (uid,),
            ).fetchall()
            if not rows:
                raise NotFound(f"no {level.value.lower()} {uid}", element=UNIQUE_KEYS[level])
            paths = [catalogue.remove_instance(database, row[0]) for row in rows]
            changes.append(database, ChangeKind.DELETED, level, uid, f"{len(rows)} instances")
        for path in paths:
            self._files.remove(path)
        return len(rows)


def _ingested(header: Header, outcome: Outcome) -> Ingested:
    return Ingested(header.sop_instance_uid, header.series_instance_uid, header.study_instance_uid, outcome)


def _require_expected(header: Header, expected: tuple[str, str] | None) -> None:
    if expected is None:
        return
    for keyword, told, found in (
        ("SOPClassUID", expected[0], header.sop_class_uid),
        ("SOPInstanceUID", expected[1], header.sop_instance_uid),
    ):
        if told.strip(" \0") != found:
            raise InvalidInstance(f"{keyword}: the command and the data set differ", element=keyword)


def _is_known(database: Database, relative: str) -> bool:
    return database.execute("SELECT 1 FROM instance WHERE path = ?", (relative,)).fetchone() is not None
