"""One write transaction for all who wait for one: a commit costs the disk a flush, however many rows are in it.

Who comes while another one commits waits; the first of those who wait then does the work of all of them, in its own
thread and on its own connection, and commits once. Each piece of work is whole or undone by itself: what one of them
raises is that one's. Nobody waits for others to come, so a single sender has no delay.

Several processes commit in turn: they wait for each other at a lock on a file, one after the other, where SQLite would
have them look again and again.
"""

from __future__ import annotations

import fcntl
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

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
    turns
        A file, made when it is not there, that whoever commits holds a lock on.
    """

    def __init__(self, transaction: Callable[[], AbstractContextManager[Database]], turns: Path) -> None:
        self._transaction = transaction
        self._turns = turns
        self._open_turns: IO[str] | None = None
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
            with self._first(), self._transaction() as database:
                folders = {folder for entry in entries if (folder := self._do(entry, database)) is not None}
                for folder in sorted(folders):
                    flush(folder)
        except BaseException as error:  # noqa: BLE001  (each of them raises it in its own thread)
            for entry in entries:
                entry.error = entry.error or error
        finally:
            for entry in entries:
                entry.is_done = True

    @contextmanager
    def _first(self) -> Iterator[None]:
        """Be the one process that commits; the lock ends with the process, too."""
        if self._open_turns is None:
            self._open_turns = self._turns.open("a")
        fcntl.flock(self._open_turns, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._open_turns, fcntl.LOCK_UN)

    def _do(self, entry: _Entry, database: Database) -> Path | None:
        try:
            with self._transaction():
                return entry.work(database)
        except BaseException as error:
            entry.error = error
            if not database.conn.in_transaction:  # a full disk may have made SQLite undo all of it
                raise
            return None
