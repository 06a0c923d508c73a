"""Connections to the catalogue: SQLite in WAL mode, durable at every commit, one connection per thread.

Any number of processes may read while one writes. `synchronous = FULL` makes a commit survive a power cut.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlite_utils import Database

from index.keys import KEYS, Matching, snake_case
from index.matching import name_matches
from index.migrations import migrations

BUSY_TIMEOUT_S = 60.0
"""How long a writer waits for another process to finish its transaction."""


class Connections:
    """The catalogue's database file and this process's connections to it.

    Parameters
    ----------
    path
        The SQLite file; made, or brought to the current schema, when needed.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._local = threading.local()
        with self.transaction_free() as database:
            migrations.apply(database)
        with self.transaction() as database:
            _add_missing_columns(database)

    def get(self) -> Database:
        """Return this thread's connection, opened on first use."""
        database: Database | None = getattr(self._local, "database", None)
        if database is None:
            database = self._local.database = Database(_connect(self._path))
        return database

    def close(self) -> None:
        """Close this thread's connection; it opens again when it is needed."""
        database: Database | None = getattr(self._local, "database", None)
        if database is not None:
            database.conn.close()
            self._local.database = None

    @contextmanager
    def transaction_free(self) -> Iterator[Database]:
        """Give the connection outside any transaction (migrations make their own)."""
        yield self.get()

    @contextmanager
    def transaction(self) -> Iterator[Database]:
        """Run the block as one write transaction: all of it is committed, or nothing.

        A block inside another one of the same thread joins it.
        """
        database = self.get()
        connection = database.conn
        if connection.in_transaction:
            yield database
            return
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield database
        except BaseException:
            connection.execute("ROLLBACK")
            raise
        connection.execute("COMMIT")


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.create_function("name_matches", 2, name_matches, deterministic=True)
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
