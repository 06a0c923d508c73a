"""``rebuild``: the catalogue made again from the files alone, beside the old one, and put in its place at the end.

Until the last step nothing that exists is touched: a rebuild that is interrupted has changed nothing. No node may run
on the folder meanwhile; the caller sees to that.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from pydicom.filereader import read_file_meta_info
from sqlite_utils import Database

from index import catalogue, changes, jobs
from index.changes import ChangeKind
from index.database import CATALOGUE_FILE, Connections
from index.errors import InvalidInstance
from index.files import FileStore, flush_and_digest
from index.header import Header, read_header
from index.integrity import Damage
from index.keys import Level

_NEW = "catalogue.sqlite.new"
_BATCH = 500
"""Instances per transaction of the new catalogue, which nobody else reads yet."""


@dataclass(frozen=True)
class PutAside:
    """A file that the new catalogue does not point to.

    Attributes
    ----------
    path
        Where it was, below the data folder.
    why
        One sentence, with where it is now.
    """

    path: str
    why: str


@dataclass
class Rebuilt:
    """What a rebuild has made.

    Attributes
    ----------
    backup
        Name of the old catalogue now; empty when there was none.
    derivations
        How many records of what was made from what could be taken over from the old catalogue.
    altered
        How many files are not what the old catalogue had recorded of them.
    aside
        Files that are in quarantine now.
    """

    instances: int = 0
    series: int = 0
    studies: int = 0
    patients: int = 0
    size: int = 0
    backup: str = ""
    derivations: int = 0
    altered: int = 0
    aside: list[PutAside] = field(default_factory=list)


def rebuild(data: Path, *, settle_time_s: float, on_file: Callable[[], None]) -> Rebuilt:
    """Make the catalogue of the data folder `data` again and return what it holds.

    Of two files of one SOP Instance UID the one that was written last stays. Every series becomes stable after the
    settle time, so that its vectors are made again.

    Parameters
    ----------
    on_file
        Called after each file.
    """
    files = FileStore(data.resolve(), reserve_mb=0)
    result = Rebuilt()
    new = files.root / _NEW
    _remove_database(new)
    with _old_catalogue(files.root / CATALOGUE_FILE) as old:
        connections = Connections(new)
        database = connections.get()
        database.execute("PRAGMA synchronous = OFF")  # made durable as a whole, at the end
        _start_feed(database, old)
        losers = _fill(connections, files, _Memory(old), on_file, result)
        result.derivations = _take_over_derivations(connections, old)
        _finish(connections, result, settle_time_s)
        connections.close()
    del database
    _make_durable(new)
    result.backup = _swap(files.root, new)
    for path, why in losers:
        result.aside.append(PutAside(path, f"{why}; now {files.quarantine(path)}"))
    return result


def count_files(data: Path) -> int:
    """Return how many files there are to read."""
    return sum(len(paths) for paths in FileStore(data.resolve(), reserve_mb=0).all_paths())


class _Memory:
    """What the old catalogue still tells of a file: the digest of its content when it was received."""

    def __init__(self, old: Database | None) -> None:
        self._old = old

    def sha256(self, path: str, otherwise: str) -> str:
        """Return the digest that was recorded of the file, else `otherwise`."""
        if self._old is None:
            return otherwise
        try:
            row = self._old.execute("SELECT sha256 FROM instance WHERE path = ?", (path,)).fetchone()
        except sqlite3.DatabaseError:  # broken at this place
            return otherwise
        return otherwise if row is None else str(row[0])


def _fill(
    connections: Connections, files: FileStore, memory: _Memory, on_file: Callable[[], None], result: Rebuilt
) -> list[tuple[str, str]]:
    """Insert every file's instance; return the files that have no place in the catalogue, each with the reason."""
    losers: list[tuple[str, str]] = []
    for batch in _batches(_in_order_of_time(files), _BATCH):
        with connections.transaction() as database:
            for written, path in batch:
                losers += _insert(database, files, memory, path, written, result)
                on_file()
    return losers


def _insert(
    database: Database, files: FileStore, memory: _Memory, path: str, written: float, result: Rebuilt
) -> Iterator[tuple[str, str]]:
    """Insert one file's instance; yield the files that lose their place by it, or this one."""
    try:
        header = read_header(files.path(path))
        digest = flush_and_digest(files.path(path))
        source = read_file_meta_info(files.path(path)).get("SourceApplicationEntityTitle", "")
    except InvalidInstance as error:
        yield path, str(error)
        return
    except OSError as error:
        yield path, f"unreadable: {error.strerror or error}"
        return
    stored = catalogue.find_instance(database, header.sop_instance_uid)
    if stored is not None:
        if (files.path(stored["path"]).stat().st_mtime, stored["path"]) > (written, path):
            yield path, f"an older file of instance {header.sop_instance_uid}"
            return
        yield stored["path"], f"an older file of instance {header.sop_instance_uid}"
        catalogue.remove_instance(database, header.sop_instance_uid)
    _note_other_patient(database, header)
    recorded = memory.sha256(path, digest)
    catalogue.add_instance(
        database,
        header,
        path=path,
        size=files.path(path).stat().st_size,
        sha256=recorded,
        source_aet=str(source or "").strip(),
        received_at=datetime.fromtimestamp(written, UTC).isoformat(timespec="milliseconds"),
    )
    if recorded != digest:
        result.altered += 1
        uid = header.sop_instance_uid
        database.execute("UPDATE instance SET damage = ? WHERE sop_instance_uid = ?", (Damage.ALTERED.value, uid))
        changes.append(database, ChangeKind.ALTERED, Level.IMAGE, uid, "found when the catalogue was made again")


def _note_other_patient(database: Database, header: Header) -> None:
    other = catalogue.other_patient(database, header)
    if other is not None:
        detail = f"study of patient {other.patient_id!r}, instance of {header.values['PatientID']!r}"
        changes.append(database, ChangeKind.PATIENT_MISMATCH, Level.IMAGE, header.sop_instance_uid, detail)


def _in_order_of_time(files: FileStore) -> Iterator[tuple[float, str]]:
    """Yield (time of the last change, path), the files of one series in the order in which they came."""
    for paths in files.all_paths():
        yield from sorted((files.path(path).stat().st_mtime, path) for path in paths)


def _batches(files: Iterator[tuple[float, str]], size: int) -> Iterator[list[tuple[float, str]]]:
    batch: list[tuple[float, str]] = []
    for file in files:
        batch.append(file)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


@contextmanager
def _old_catalogue(path: Path) -> Iterator[Database | None]:
    """Give the old catalogue, locked against everybody who would still write to it, or None when it is of no use."""
    if not path.exists():
        yield None
        return
    database = Database(sqlite3.connect(path, timeout=5.0, isolation_level=None))
    with closing(database.conn):
        try:
            database.execute("BEGIN IMMEDIATE")
            database.execute("SELECT max(seq) FROM change").fetchone()
            is_usable = True
        except sqlite3.DatabaseError as error:
            if getattr(error, "sqlite_errorname", "").startswith("SQLITE_BUSY"):
                raise
            is_usable = False
        yield database if is_usable else None
        with suppress(sqlite3.Error):
            database.execute("ROLLBACK")
        with suppress(sqlite3.Error):
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _start_feed(database: Database, old: Database | None) -> None:
    """Let the new change feed go on behind the old one: a reader that remembers its last number misses nothing."""
    last = int(time.time())  # more than any feed has rows
    if old is not None:
        with suppress(sqlite3.DatabaseError):
            (last,) = old.execute("SELECT coalesce(max(seq), 0) FROM change").fetchone()
    database.execute("INSERT INTO change (seq, kind, level, uid, at) VALUES (?, ?, ?, '', ?)", (
        last + 1, ChangeKind.REBUILT.value, Level.PATIENT.value, changes.now(),
    ))


def _take_over_derivations(connections: Connections, old: Database | None) -> int:
    """Copy the records of what was made from what, so that nothing of it is made again; return how many."""
    if old is None:
        return 0
    try:
        derivations = old.execute("SELECT id, source, recipe, source_digest, outputs, at FROM derivation").fetchall()
        outputs = old.execute("SELECT series_instance_uid, derivation, instances FROM derivation_output").fetchall()
    except sqlite3.DatabaseError:
        return 0
    with connections.transaction() as database:
        for row in derivations:
            database.execute(
                "INSERT INTO derivation (id, source, recipe, source_digest, outputs, at) VALUES (?, ?, ?, ?, ?, ?)", row
            )
        for row in outputs:
            database.execute(
                "INSERT INTO derivation_output (series_instance_uid, derivation, instances) VALUES (?, ?, ?)", row
            )
    return len(derivations)


def _finish(connections: Connections, result: Rebuilt, settle_time_s: float) -> None:
    """Queue `series_stable` for every series, and count what there is."""
    due = time.time() + settle_time_s
    with connections.transaction() as database:
        for (uid,) in database.execute("SELECT DISTINCT series_instance_uid FROM series").fetchall():
            jobs.push(database, jobs.SERIES_STABLE, uid, not_before=due)
        for table, name in (
            ("instance", "instances"), ("series", "series"), ("study", "studies"), ("patient", "patients")
        ):
            setattr(result, name, database.execute(f"SELECT count(*) FROM {table}").fetchone()[0])
        result.size = database.execute("SELECT value FROM tally WHERE name = 'stored_bytes'").fetchone()[0]


def _make_durable(new: Path) -> None:
    """Leave one file, whole and flushed, without a log beside it."""
    with closing(sqlite3.connect(new, isolation_level=None)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.execute("PRAGMA journal_mode = DELETE")
    with new.open("rb+") as file:
        os.fsync(file.fileno())


def _swap(root: Path, new: Path) -> str:
    """Put the new catalogue in the place of the old one, which keeps its content under another name; return that."""
    current = root / CATALOGUE_FILE
    backup = ""
    if current.exists():
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
        backup = f"{CATALOGUE_FILE}.{stamp}.bak"
        (root / backup).hardlink_to(current)
    _move_log(root, f"{backup}-wal" if backup else "")
    new.replace(current)
    new.with_suffix(".lock").unlink(missing_ok=True)
    descriptor = os.open(root, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return backup


def _move_log(root: Path, name: str) -> None:
    """Keep the old log beside the backup: SQLite must not take it for that of the new catalogue."""
    log = root / f"{CATALOGUE_FILE}-wal"
    if log.exists():
        log.replace(root / (name or f"{CATALOGUE_FILE}-wal.{int(time.time())}.bak"))
    (root / f"{CATALOGUE_FILE}-shm").unlink(missing_ok=True)


def _remove_database(path: Path) -> None:
    """Remove what an interrupted rebuild has left."""
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
