"""``rebuild``: the catalogue made again from the files alone, beside the old one, and put in its place at the end.

Until the last step nothing that exists is touched: a rebuild that is interrupted has changed nothing. No node may run
on the folder meanwhile; the caller sees to that. Other commands wait: the old catalogue is locked until it is replaced.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from pydicom.filereader import read_file_meta_info
from sqlite_utils import Database

from index import catalogue, changes, jobs, old_catalogue
from index.arrivals import ArrivalJournal
from index.changes import ChangeKind
from index.database import CATALOGUE_FILE, Connections, first_in_line
from index.durable import flush
from index.errors import InvalidInstance
from index.files import FileStore, flush_and_digest
from index.header import Header, read_header
from index.integrity import Damage
from index.keys import Level
from index.old_catalogue import Missing, OldCatalogue, RebuildError

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
    commitments
        How many requests for storage commitment wait, as they did in the old catalogue.
    altered
        How many files are not what the old catalogue had recorded of them.
    missing
        Instances of the old catalogue of which there is no file; the change feed tells them as well.
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
    commitments: int = 0
    altered: int = 0
    missing: list[Missing] = field(default_factory=list)
    aside: list[PutAside] = field(default_factory=list)


def rebuild(data: Path, *, settle_time_s: float, on_file: Callable[[], None]) -> Rebuilt:
    """Make the catalogue of the data folder `data` again and return what it holds.

    Of two files of one SOP Instance UID the one that the old catalogue points to stays, when it is whole; where it
    knows of neither, the one that was written last. Every series becomes stable after the settle time, so that its
    vectors are made again.

    Parameters
    ----------
    on_file
        Called after each file.

    Raises
    ------
    RebuildError
        A file cannot be read just now, or somebody is writing to the old catalogue; nothing was changed.
    """
    files = FileStore(data.resolve(), reserve_mb=0)
    result = Rebuilt()
    new = files.root / _NEW
    _remove_database(new)
    with old_catalogue.locked(files.root / CATALOGUE_FILE) as old:
        connections = Connections(new)
        database = connections.get()
        database.execute("PRAGMA synchronous = OFF")  # made durable as a whole, at the end
        _start_feed(database, old)
        losers = _fill(connections, files, old, on_file)
        old.take_over_removals(connections)
        old.take_over_arrivals(connections, ArrivalJournal(files.root, connections))
        result.missing = old.tell_missing(connections)
        result.derivations = old.take_over_derivations(connections)
        old.take_over_encoders(connections)
        old.take_over_told(connections)
        result.commitments = old.take_over_commitments(connections)
        old.take_over_deliveries(connections)
        old.take_over_orthanc(connections)
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


def _fill(
    connections: Connections, files: FileStore, old: OldCatalogue, on_file: Callable[[], None]
) -> list[tuple[str, str]]:
    """Insert every file's instance; return the files that have no place in the catalogue, each with the reason."""
    losers: list[tuple[str, str]] = []
    removals = old.removals()
    for batch in _batches(_in_order_of_time(files, removals), _BATCH):
        with connections.transaction() as database:
            for written, path in batch:
                try:
                    losers += _insert(database, files, old, path, written)
                except OSError as error:
                    raise _unreadable(path, error) from error
                on_file()
    return losers


def _unreadable(path: str, error: OSError) -> RebuildError:
    """Why to stop: a catalogue without the instance of a file that can be read tomorrow would hide it."""
    return RebuildError(
        f"{path} cannot be read ({error.strerror or error}): nothing was changed; "
        "if that stays so, take it out of files/"
    )


def _insert(
    database: Database, files: FileStore, old: OldCatalogue, path: str, written: float
) -> Iterator[tuple[str, str]]:
    """Insert one file's instance; yield the files that lose their place by it, or this one."""
    try:
        header = read_header(files.path(path))
        digest = flush_and_digest(files.path(path))
        source = old.source_aet(path)
        if source is None:
            source = str(read_file_meta_info(files.path(path)).get("SourceApplicationEntityTitle") or "")
    except InvalidInstance as error:
        yield path, str(error)
        return
    recorded = old.sha256(path)
    stored = catalogue.find_instance(database, header.sop_instance_uid)
    if stored is not None:
        is_same = stored["sha256"] == (recorded or digest)  # then the one that is whole is the better one
        rival = str(stored["path"])
        that = (is_same and not stored["damage"], old.sha256(rival) is not None, _written(files, rival), rival)
        this = (is_same and recorded in (None, digest), recorded is not None, written, path)
        loser = path if that > this else rival
        yield loser, f"a second file of instance {header.sop_instance_uid}"
        if loser == path:
            return
        catalogue.remove_instance(database, header.sop_instance_uid)
    _note_other_patient(database, header)
    catalogue.add_instance(
        database,
        header,
        path=path,
        size=files.path(path).stat().st_size,
        sha256=recorded or digest,
        source_aet=source.strip(),
        received_at=old.received_at(path) or datetime.fromtimestamp(written, UTC).isoformat(timespec="milliseconds"),
    )
    if recorded not in (None, digest):
        uid = header.sop_instance_uid
        database.execute("UPDATE instance SET damage = ? WHERE sop_instance_uid = ?", (Damage.ALTERED.value, uid))


def _note_other_patient(database: Database, header: Header) -> None:
    other = catalogue.other_patient(database, header)
    if other is not None:
        detail = f"study of patient {other.patient_id!r}, instance of {header.values['PatientID']!r}"
        changes.append(database, ChangeKind.PATIENT_MISMATCH, Level.IMAGE, header.sop_instance_uid, detail)


def _in_order_of_time(files: FileStore, removals: frozenset[str]) -> Iterator[tuple[float, str]]:
    """Yield (time of the last change, path), the files of one series in the order in which they came.

    Those of `removals` are deleted already, and may be going right now.
    """
    for paths in files.all_paths():
        yield from sorted((_written(files, path), path) for path in paths if path not in removals)


def _written(files: FileStore, path: str) -> float:
    try:
        return files.path(path).stat().st_mtime
    except OSError as error:
        raise _unreadable(path, error) from error


def _batches(files: Iterator[tuple[float, str]], size: int) -> Iterator[list[tuple[float, str]]]:
    batch: list[tuple[float, str]] = []
    for file in files:
        batch.append(file)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _start_feed(database: Database, old: OldCatalogue) -> None:
    """Let the new change feed go on behind the old one: a reader that remembers its last number misses nothing."""
    database.execute("INSERT INTO change (seq, kind, level, uid, at) VALUES (?, ?, ?, '', ?)", (
        old.last_change() + 1, ChangeKind.REBUILT.value, Level.PATIENT.value, changes.now(),
    ))


def _finish(connections: Connections, result: Rebuilt, settle_time_s: float) -> None:
    """Queue `series_stable` for every series, tell what is altered, and count what there is."""
    due = time.time() + settle_time_s
    with connections.transaction() as database:
        for (uid,) in database.execute("SELECT sop_instance_uid FROM instance WHERE damage <> ''").fetchall():
            changes.append(database, ChangeKind.ALTERED, Level.IMAGE, uid, "found when the catalogue was made again")
            result.altered += 1
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
    flush(new)


def _swap(root: Path, new: Path) -> str:
    """Put the new catalogue in the place of the old one, which keeps its content under another name; return that."""
    current = root / CATALOGUE_FILE
    backup = ""
    with first_in_line(current):  # who opened the old one between two of these steps would leave a log of it behind
        if current.exists():
            stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
            backup = f"{CATALOGUE_FILE}.{stamp}.bak"
            _set_aside(current, root / backup)
        _move_log(root, f"{backup}-wal" if backup else "")
        new.replace(current)
        for suffix in (".lock", ".turns"):
            new.with_suffix(suffix).unlink(missing_ok=True)
        flush(root)
    return backup


def _set_aside(current: Path, backup: Path) -> None:
    """Give the old catalogue its second name; on a file system without hard links, its only one.

    Not a copy: closing the file after reading it would set free the locks of SQLite in this process
    (https://sqlite.org/howtocorrupt.html, 2.2).
    """
    try:
        backup.hardlink_to(current)
    except FileExistsError:
        raise
    except OSError:
        current.rename(backup)


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
