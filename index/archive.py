"""The archive: the one door in and out of what is stored.

C-STORE, imports, derived objects and every later door go through `Archive.ingest`: one atomic file write, then one
transaction that makes the instance findable, appends to the change feed and puts the work due into the job queue.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from pydicom.filereader import _read_file_meta_info as _read_meta
from pydicom.filereader import read_preamble
from sqlite_utils import Database

from config.settings import ArchiveSettings
from index import catalogue, changes, jobs
from index.changes import ChangeKind
from index.database import Connections
from index.errors import InstanceConflict, InvalidInstance, NotFound
from index.files import FileStore, flush_and_digest, is_valid_uid
from index.header import Header, read_header
from index.keys import UNIQUE_KEYS, Level, snake_case


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
        incoming = self._files.receive(source)
        try:
            header = read_header(incoming)
            _require_expected(header, expected)
            sha256 = flush_and_digest(incoming)
            return self._commit(incoming, header, sha256, source_aet, overwrite or self._overwrite, announce=announce)
        finally:
            incoming.unlink(missing_ok=True)

    def _commit(
        self, incoming: Path, header: Header, sha256: str, source_aet: str, overwrite: str, *, announce: bool
    ) -> Ingested:
        uid = header.sop_instance_uid
        replaced = ""
        size = incoming.stat().st_size
        with self.transaction() as database:
            stored = catalogue.find_instance(database, uid)
            if stored is not None:
                if self._is_same(stored, incoming, sha256):
                    return _ingested(header, Outcome.DUPLICATE)
                if not _may_replace(stored, overwrite, source_aet):
                    changes.append(database, ChangeKind.CONFLICT, Level.IMAGE, uid, f"from {source_aet or 'import'}")
                else:
                    replaced = catalogue.remove_instance(database, uid)
            if stored is None or replaced:
                self._insert(database, incoming, header, sha256, size, source_aet, replaced)
                if announce:
                    due = time.time() + self._settle_time_s
                    jobs.push(database, jobs.SERIES_STABLE, header.series_instance_uid, not_before=due)
        if stored is not None and not replaced:
            raise InstanceConflict(
                "same SOP Instance UID, other content: the stored one was kept", element="SOPInstanceUID"
            )
        if replaced:
            self._files.remove(replaced)
        return _ingested(header, Outcome.REPLACED if replaced else Outcome.STORED)

    def _insert(
        self,
        database: Database,
        incoming: Path,
        header: Header,
        sha256: str,
        size: int,
        source_aet: str,
        replaced: str,
    ) -> None:
        uids = (header.study_instance_uid, header.series_instance_uid, header.sop_instance_uid)
        relative = self._files.relative_path(*uids)
        if replaced == relative:
            relative = self._files.relative_path(*uids, variant=sha256[:12])
        mismatch = catalogue.add_instance(
            database, header, path=relative, size=size, sha256=sha256, source_aet=source_aet
        )
        kind = ChangeKind.REPLACED if replaced else ChangeKind.STORED
        changes.append(database, kind, Level.IMAGE, header.sop_instance_uid, source_aet)
        if mismatch is not None:
            told = header.values["PatientID"]
            detail = f"study of patient {mismatch!r}, instance of {told!r}"
            changes.append(database, ChangeKind.PATIENT_MISMATCH, Level.IMAGE, header.sop_instance_uid, detail)
        for uid in uids:
            if not is_valid_uid(uid):
                changes.append(
                    database, ChangeKind.UID_NONCONFORMING, Level.IMAGE, header.sop_instance_uid, uid[:80]
                )
        # Last, inside the transaction: the file has its name before the rows that promise it are committed.
        self._files.place(incoming, relative)

    def _is_same(self, stored: dict[str, Any], incoming: Path, sha256: str) -> bool:
        if stored["sha256"] == sha256:
            return True
        return _data_set_bytes(self._files.path(stored["path"])) == _data_set_bytes(incoming)

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
        """Delete a patient (by Patient ID), study, series or instance: rows first, then files.

        Returns
        -------
        int
            How many instances that were.

        Raises
        ------
        NotFound
            There is none.
        """
        column = f"{level.table}.{snake_case(UNIQUE_KEYS[level])}"
        with self.transaction() as database:
            rows = database.execute(
                "SELECT instance.sop_instance_uid FROM instance JOIN series ON series.id = instance.series "
                "JOIN study ON study.id = series.study JOIN patient ON patient.id = study.patient "
                f"WHERE {column} = ?",
                (uid,),
            ).fetchall()
            if not rows:
                raise NotFound(f"no {level.value.lower()} {uid}")
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


def _may_replace(stored: dict[str, Any], overwrite: str, source_aet: str) -> bool:
    return overwrite == "always" or (overwrite == "same_source" and stored["source_aet"] == source_aet)


def _data_set_bytes(path: Path) -> tuple[str, bytes]:
    """Transfer syntax and the encoded data set, without the File Meta Information that each receiver writes anew."""
    with path.open("rb") as file:
        read_preamble(file, force=False)
        meta = _read_meta(file)
        return str(meta.TransferSyntaxUID), file.read()
