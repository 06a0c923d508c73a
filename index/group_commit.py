"""One write transaction for all who wait for one: a commit costs the disk a flush, however many rows are in it.

Who comes while another one commits waits; the first of those who wait then does the work of all of them, in its own
thread and on its own connection, and commits once. Each piece of work is whole or undone by itself: what one of them
raises is that one's. Nobody waits for others to come, so a single sender has no delay.

What comes with the bytes of an instance for the journal of arrivals, or flushed beside it, is safe with a block of that
journal; a commit of such only needs no flush of its own (`index.arrivals`).

Several processes commit in turn: they wait for each other at a lock on a file, one after the other, where SQLite would
have them look again and again.
"""

from __future__ import annotations

import fcntl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from sqlite_utils import Database

from index.arrivals import ArrivalJournal, Arrived
from index.database import Connections
from index.durable import flush


@dataclass(frozen=True)
class Written:
    """What has to be on disk before rows are committed.

    Attributes
    ----------
    folders
        Those whose names have to be.
    arrived
        What goes to the journal of arrivals instead.
    is_new
        Whether that is all there is to it: no row of another instance was changed.
    """

    folders: tuple[Path, ...] = ()
    arrived: Arrived | None = None
    is_new: bool = False


NOTHING = Written()

Work = Callable[[Database], Written]
"""Writes rows, and says what has to be on disk before they are committed."""


@dataclass(eq=False)
class _Entry:
    work: Work
    is_journaled: bool
    error: BaseException | None = None
    is_done: bool = False


class GroupCommit:
    """Runs pieces of work in transactions that they share. Safe to share between threads.

    Parameters
    ----------
    connections
        Of the catalogue.
    journal
        Of arrivals.
    """

    def __init__(self, connections: Connections, journal: ArrivalJournal) -> None:
        self._connections = connections
        self._journal = journal
        self._open_turns: IO[str] | None = None
        self._lock = threading.Lock()
        self._turn = threading.Lock()
        self._waiting: list[_Entry] = []

    def run(self, work: Work, *, is_journaled: bool = False) -> None:
        """Run `work` and return when what it wrote is on disk.

        Parameters
        ----------
        is_journaled
            What it writes is most often for the journal of arrivals.

        Raises
        ------
        Exception
            What `work` or the commit raised; nothing of `work` is stored then.
        """
        entry = _Entry(work, is_journaled)
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
            with self.turn():
                self._commit(entries)
        except BaseException as error:  # noqa: BLE001  (each of them raises it in its own thread)
            for entry in entries:
                entry.error = entry.error or error
        finally:
            for entry in entries:
                entry.is_done = True

    def _commit(self, entries: list[_Entry]) -> None:
        is_unflushed = all(entry.is_journaled for entry in entries)
        with (self._connections.unflushed if is_unflushed else self._connections.transaction)() as database:
            written = self._do_all(entries, database)
            for folder in sorted({folder for each in written for folder in each.folders}):
                flush(folder)
            if arrived := [each.arrived for each in written if each.arrived is not None]:
                self._journal.append(database, arrived)
        if is_unflushed and not all(each.is_new for each in written):
            self._connections.flush()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Be the one process that commits; the lock ends with the process, too."""
        if self._open_turns is None:
            self._open_turns = self._connections.turns.open("a")
        fcntl.flock(self._open_turns, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._open_turns, fcntl.LOCK_UN)

    def _do_all(self, entries: list[_Entry], database: Database) -> list[Written]:
        if len(entries) == 1:  # what it raises undoes the transaction, which nobody else is in
            return [entries[0].work(database)]
        return [self._do(entry, database) for entry in entries]

    def _do(self, entry: _Entry, database: Database) -> Written:
        try:
            with self._connections.transaction():
                return entry.work(database)
        except BaseException as error:
            entry.error = error
            if not database.conn.in_transaction:  # a full disk may have made SQLite undo all of it
                raise
            return NOTHING
