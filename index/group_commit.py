"""One write transaction for all who wait for one: a commit costs the disk a flush, however many rows are in it.

Who comes while another one commits waits; the first of those who wait then does the work of all of them, in its own
thread and on its own connection, and commits once. Each piece of work is whole or undone by itself: what one of them
raises is that one's. Nobody waits for others to come, so a single sender has no delay.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from sqlite_utils import Database

from index.durable import flush

Work = Callable[[Database], Path | None]
"""Writes rows, and returns the folder whose names have to be on disk before they are committed."""


@dataclass(eq=False)
class _Entry:
    work: Work
    error: BaseException | None = None
    is_done: bool = False


class GroupCommit:
    """Runs pieces of work in transactions that they share. Safe to share between threads.

    Parameters
    ----------
    transaction
        Begins a write transaction or, within one, a part of it that can be undone.
    """

    def __init__(self, transaction: Callable[[], AbstractContextManager[Database]]) -> None:
        self._transaction = transaction
        self._lock = threading.Lock()
        self._turn = threading.Lock()
        self._waiting: list[_Entry] = []

    def run(self, work: Work) -> None:
        """Run `work` and return when what it wrote is on disk.

        Raises
        ------
        Exception
            What `work` or the commit raised; nothing of `work` is stored then.
        """
        entry = _Entry(work)
        with self._lock:
            self._waiting.append(entry)
        with self._turn:
            if not entry.is_done:
                self._lead()
        if entry.error is not None:
            raise entry.error

    def _lead(self) -> None:
        """Do and commit what everybody waits for, this thread included."""
        with self._lock:
            entries, self._waiting = self._waiting, []
        try:
            with self._transaction() as database:
                folders = {folder for entry in entries if (folder := self._do(entry, database)) is not None}
                for folder in sorted(folders):
                    flush(folder)
        except BaseException as error:  # noqa: BLE001  (each of them raises it in its own thread)
            for entry in entries:
                entry.error = entry.error or error
        finally:
            for entry in entries:
                entry.is_done = True

    def _do(self, entry: _Entry, database: Database) -> Path | None:
        try:
            with self._transaction():
                return entry.work(database)
        except BaseException as error:
            entry.error = error
            if not database.conn.in_transaction:  # a full disk may have made SQLite undo all of it
                raise
            return None
