"""Connections to the catalogue: SQLite in WAL mode, one connection per thread.

Any number of processes may read while one writes. `synchronous = FULL` makes a commit survive a power cut; those of
arrivals that a journal has are left to the next such commit (`Connections.unflushed`, `index.arrivals`).
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sqlite_utils import Database

from index.durable import flush
from index.errors import CatalogueBusy, CatalogueLost, OutOfSpace
from index.keys import KEYS, Matching, item_keywords, snake_case
from index.matching import FUNCTIONS
from index.migrations import migrations

CATALOGUE_FILE = "catalogue.sqlite"
BUSY_TIMEOUT_S = 60.0
"""How long a writer waits for another process to finish its transaction."""


_LOG_PAGES = 4000
"""Pages of the write-ahead log, of 4096 bytes, after which they go to the catalogue: what is written again and again
meanwhile goes there once. SQLite itself would do it after 1000, in one of seventy commits."""

_LOG_PAGE_BYTES = 4120
"""What a page takes in the log (https://sqlite.org/walformat.html)."""

_READERS_MS, _MOST_READERS_MS = 50, 800
"""How long a commit waits for those who still read from a log that is to begin anew, milliseconds: four times as long
where the log is twice as long as it should be, nine times where it is three times as long, until the most."""

_AGAIN = 10
"""It is tried again after so many times what was waited, by whichever process: a tenth of the time is waited."""

_MOST_READERS = 4
"""Connections that are kept for the next query."""

_Reader = tuple[Database, tuple[int, int] | None]
"""A connection, and the device and number of the file that it is connected to."""


class Connections:
    """The catalogue's database file and this process's connections to it.

    Parameters
    ----------
    path
        The SQLite file; made, or brought to the current schema, when needed.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._log_path = f"{path}-wal"
        self._local = threading.local()
        self._readers: deque[_Reader] = deque()
        with first_in_line(path), self.transaction() as database:
            migrations.apply(database)
            _add_missing_columns(database)

    def get(self) -> Database:
        """Return this thread's connection, opened on first use, closed when the thread ends."""
        database: Database | None = getattr(self._local, "database", None)
        if database is None:
            connection, self._local.identity = _connect_to_file(self._path)
            self._local.flushes = True
            database = self._local.database = Database(connection)
            weakref.finalize(database, connection.close)  # on its own it would stay open until a garbage collection
        return database

    def close(self) -> None:
        """Close this thread's connection; it opens again when it is needed."""
        self._local.database = None

    @property
    def turns(self) -> Path:
        """A file beside the catalogue, for those who take turns in writing.

        Its time says until when nobody waits for those who read from a log that is to begin anew.
        """
        return self._path.with_suffix(".turns")

    @property
    def in_transaction(self) -> bool:
        """Whether this thread is inside a `transaction`."""
        return bool(self.get().conn.in_transaction)

    @contextmanager
    def snapshot(self) -> Iterator[Database]:
        """Give a connection of its own, for rows that are read at leisure.

        A half-read cursor on the thread's own connection would hold an old state of the database, and that connection
        could not write any more once somebody else has.
        """
        database = Database(_connect(self._path))
        try:
            yield database
        finally:
            database.conn.close()

    @contextmanager
    def reading(self) -> Iterator[Database]:
        """Give a connection as `snapshot` does, one that others have used before where there is one.

        Opening one costs more than most queries. Close each cursor before the end of the block: one that is half-read
        would show its old state to who comes next. After an exception the connection is not used again.
        """
        database, identity = self._reader()
        try:
            yield database
        except BaseException:
            database.conn.close()
            raise
        if len(self._readers) < _MOST_READERS:
            self._readers.append((database, identity))
        else:
            database.conn.close()

    def _reader(self) -> _Reader:
        while self._readers:
            with suppress(IndexError):  # another thread was faster
                database, identity = self._readers.pop()
                if identity == _identity(self._path):
                    return database, identity
                database.conn.close()
        connection, identity = _connect_to_file(self._path)
        return Database(connection), identity

    @contextmanager
    def unflushed(self) -> Iterator[Database]:
        """Run the block as a `transaction` that is committed without a flush.

        A power cut may undo it, and then every such one that came later, up to the next that was flushed.
        """
        self._local.wants_flush = False
        try:
            with self.transaction() as database:
                yield database
        finally:
            self._local.wants_flush = True

    def flush(self) -> None:
        """Bring to disk what was committed without a flush."""
        flush(Path(self._log_path))

    @contextmanager
    def transaction(self) -> Iterator[Database]:
        """Run the block as one write transaction: all of it is committed, or nothing.

        Raises `OutOfSpace` when the disk has no room for it, `CatalogueBusy` when others do not let it begin,
        `CatalogueLost` when a rebuild has put another catalogue in the place of the one that this thread opened.

        A block inside another one of the same thread belongs to that one: it is undone when it raises, and committed
        when the outer one is.
        """
        database = self.get()
        connection = database.conn
        begin, commit, undo = _OUTER if not connection.in_transaction else _INNER
        if begin == _OUTER[0]:
            self._set_flush(connection)
        try:
            connection.execute(begin)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY:
                raise CatalogueBusy(f"the catalogue was locked for {BUSY_TIMEOUT_S:g} s: nothing stored") from error
            raise
        try:
            if begin == _OUTER[0]:
                self._require_same_file()
            yield database
            connection.execute(commit)
            if begin == _OUTER[0]:
                self._shorten_log(connection)
        except BaseException as error:
            if connection.in_transaction:  # a full disk may have made SQLite roll back on its own
                for statement in undo:
                    connection.execute(statement)
            if _is_full(error):
                raise OutOfSpace("the disk is full: the catalogue cannot grow, nothing stored") from error
            raise

    def write_log(self) -> None:
        """Bring the log into the catalogue's file, and cut it off; raises `CatalogueBusy` when others use it."""
        if self.get().conn.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
            raise CatalogueBusy(f"{self._path.name}: others use its log")

    def _shorten_log(self, connection: sqlite3.Connection) -> None:
        """Bring a log that has become long into the catalogue, and have the next transaction begin it anew.

        SQLite on its own begins it anew when nobody happens to read, which with many peers may be never: it would grow
        for ever, and be brought into the catalogue with every commit.
        """
        limit = _LOG_PAGES * _LOG_PAGE_BYTES
        try:
            size = os.stat(self._log_path).st_size  # noqa: PTH116  (it is asked for with every commit)
        except OSError:  # somebody has put another catalogue there
            return
        if size <= limit or self._is_log_kept():
            return
        patience_ms, is_kept = min(_READERS_MS * (size // limit) ** 2, _MOST_READERS_MS), True
        with suppress(sqlite3.Error):  # what was committed is in the log, and safe there
            connection.execute(f"PRAGMA busy_timeout = {patience_ms}")
            is_kept = bool(connection.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()[0])
        connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_S * 1000:.0f}")
        if is_kept:
            self._keep_log(_AGAIN * patience_ms / 1000)

    def _is_log_kept(self) -> bool:
        """Whether some process has found readers that went on, and it is too early to wait for them again."""
        try:
            until = self.turns.stat().st_mtime
        except OSError:  # nobody has
            return False
        return 0 < until - time.time() <= _AGAIN * _MOST_READERS_MS / 1000

    def _keep_log(self, seconds: float) -> None:
        """Have no process wait for readers in that time: others cannot write meanwhile, and there may be many."""
        until = time.time() + seconds
        with suppress(OSError):  # then it is tried again sooner
            self.turns.touch()
            os.utime(self.turns, (until, until))

    def _set_flush(self, connection: sqlite3.Connection) -> None:
        """Have the next commit flushed or not; most are like the one before."""
        local = self._local
        wanted = getattr(local, "wants_flush", True)
        if local.flushes != wanted:
            connection.execute(f"PRAGMA synchronous = {'FULL' if wanted else 'NORMAL'}")
            local.flushes = wanted

    def _require_same_file(self) -> None:
        """Refuse to write to a catalogue that has lost its name: nobody would ever read that."""
        if _identity(self._path) != self._local.identity:
            raise CatalogueLost(
                f"{self._path.name} is no longer the one that this process opened (it was made again, or removed): "
                "nothing stored; start the command again"
            )


_OUTER = ("BEGIN IMMEDIATE", "COMMIT", ("ROLLBACK",))
_INNER = ("SAVEPOINT block", "RELEASE block", ("ROLLBACK TO block", "RELEASE block"))


def _is_full(error: BaseException) -> bool:
    """Whether SQLite found no room, in the catalogue or its log (SQLITE_FULL, https://sqlite.org/rescode.html#full)."""
    code = getattr(error, "sqlite_errorcode", None)
    return isinstance(error, sqlite3.Error) and code is not None and code & 0xFF == sqlite3.SQLITE_FULL


@contextmanager
def first_in_line(path: Path) -> Iterator[None]:
    """Let one process at a time create, migrate or replace the database: switching to WAL does not wait for others."""
    with path.with_suffix(".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _identity(path: Path) -> tuple[int, int] | None:
    """Device and number of the file that has that name now; None when there is none."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def _connect_to_file(path: Path) -> tuple[sqlite3.Connection, tuple[int, int] | None]:
    """Return a connection, and which file it is connected to: the name may get another one at any moment."""
    while True:
        before = _identity(path)
        connection = _connect(path)
        after = _identity(path)
        if before in (None, after):  # None: connecting has made it
            return connection, after
        connection.close()


def _connect(path: Path) -> sqlite3.Connection:
    # Made for its owner only, since it has the names of patients; what SQLite puts beside it gets the same rights.
    # Only when it is new: to close another descriptor of it would give up this process's locks (POSIX).
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA wal_autocheckpoint = 0")  # see `Connections._shorten_log`
    connection.execute(f"PRAGMA journal_size_limit = {_LOG_PAGES * _LOG_PAGE_BYTES}")
    connection.execute("PRAGMA foreign_keys = ON")
    for name, (parameters, function) in FUNCTIONS.items():
        connection.create_function(name, parameters, function, deterministic=True)
    return connection


def _add_missing_columns(database: Database) -> None:
    """Give an older catalogue the columns of keys that `index.keys` has gained since."""
    for key in KEYS.values():
        table = database[key.level.table]
        present = {column.name for column in table.columns}
        names = [snake_case(key.keyword)]
        if key.matching is Matching.PERSON_NAME:
            names.append(names[0] + "_folded")
        for name in names:
            if name not in present:
                database.execute(f"ALTER TABLE {key.level.table} ADD COLUMN {name} TEXT NOT NULL DEFAULT ''")
    present = {column.name for column in database["item"].columns}
    for name in map(snake_case, item_keywords()):
        if name not in present:
            database.execute(f"ALTER TABLE item ADD COLUMN {name} TEXT")
