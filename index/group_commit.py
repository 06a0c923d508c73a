"""One write transaction for all who wait for one: a commit costs the disk a flush, however many rows are in it.

Who comes while another one commits waits; the first of those who wait then does the work of all of them, in its own
thread and on its own connection, and commits once. Each piece of work is whole or undone by itself: what one of them
raises is that one's. Nobody waits for others to come, so a single sender has no delay.

What comes with the bytes of an instance for the journal of arrivals, or flushed beside it, is safe with a block of that
journal; a commit of such only needs no flush of its own (`index.arrivals`).

A block is written while the group before is committed, its transaction begins when that has ended. The bytes of large
objects may still be on their way to the disk: where nobody else commits, the rows are made meanwhile; where somebody
does, they are waited for first, so that a transaction is short (`docs/decisions/0019-beside-the-disk.md`).

Several processes commit in turn: they wait for each other at a lock on a file, one after the other, where SQLite would
have them look again and again.
"""

from __future__ import annotations

import fcntl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from sqlite_utils import Database

from index.arrival_blocks import Arrived
from index.arrivals import ArrivalJournal
from index.arrivals import Written as Block
from index.database import Connections
from index.durable import flush


@dataclass(frozen=True)
class Written:
    """What has to be on disk before rows are committed.

    Attributes
    ----------
    folders
        Those whose names have to be.
    is_new
        Whether the block of the journal is all there is to it: no row of another instance was changed.
    """

    folders: tuple[Path, ...] = ()
    is_new: bool = False


NOTHING = Written()

Work = Callable[[Database], Written]
"""Writes rows, and says what has to be on disk before they are committed."""

Wait = Callable[[], None]
"""Returns when something is on disk; raises `OSError` where it cannot be."""


def _nothing() -> None:
    """Wait for nothing."""


@dataclass(eq=False)
class _Entry:
    work: Work
    arrived: Arrived | None
    wait: Wait
    error: BaseException | None = None
    group: _Group | None = None


class _Group:
    """Those who share a transaction; the lock is held until it is over."""

    def __init__(self, entries: list[_Entry]) -> None:
        self.entries = entries
        self.block: Block | None = None
        self.has_failed = False
        self.is_under_way = threading.Lock()
        self.is_under_way.acquire()
        for entry in entries:
            entry.group = self

    def wait(self) -> None:
        """Return when nothing of it is on its way to the disk; who has failed is told by its own work."""
        for entry in self.entries:
            with suppress(Exception):
                entry.wait()

    def fail(self, error: BaseException) -> None:
        """Have each of them raise `error` in its own thread."""
        self.has_failed = True
        for entry in self.entries:
            entry.error = entry.error or error


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
        self._writing = threading.Lock()
        self._committing = threading.Lock()
        self._waiting: list[_Entry] = []

    def run(self, work: Work, arrived: Arrived | None = None, wait: Wait = _nothing) -> None:
        """Run `work` and return when what it wrote is on disk.

        Parameters
        ----------
        arrived
            What the journal of arrivals is to keep of it.
        wait
            Returns when its bytes are on disk; `work` waits for them as well.

        Raises
        ------
        Exception
            What `work`, the journal or the commit raised; nothing of `work` is stored then.
        """
        entry = _Entry(work, arrived, wait)
        if self._committing.locked():
            wait()
        with self._lock:
            self._waiting.append(entry)
        with self._writing:
            group = self._led_by(entry)
        if group is not None:
            self._finish(group)
        elif entry.group is not None:
            with entry.group.is_under_way:
                pass
        if entry.error is not None:
            raise entry.error

    def _led_by(self, entry: _Entry) -> _Group | None:
        """Return those who wait, their block written, when it is their turn; None where another one leads."""
        if entry.group is not None:
            return None
        if entry.arrived is None:  # there is no block to be written meanwhile: more may come
            self._committing.acquire()
        with self._lock:
            group, self._waiting = _Group(self._waiting), []
        try:
            if arrived := [each.arrived for each in group.entries if each.arrived is not None]:
                group.block = self._journal.write(arrived)
        except BaseException as error:  # noqa: BLE001  (each of them raises it in its own thread)
            group.fail(error)
        if entry.arrived is not None and not self._committing.acquire(blocking=False):
            group.wait()
            self._committing.acquire()  # transactions follow each other as their blocks do
        return group

    def _finish(self, group: _Group) -> None:
        """Do and commit what all of the group want."""
        try:
            if not group.has_failed:
                with self.turn(group.wait):
                    self._commit(group)
        except BaseException as error:  # noqa: BLE001  (each of them raises it in its own thread)
            group.fail(error)
        finally:
            self._committing.release()
            group.is_under_way.release()

    def _commit(self, group: _Group) -> None:
        entries = group.entries
        is_unflushed = all(entry.arrived is not None for entry in entries)
        with (self._connections.unflushed if is_unflushed else self._connections.transaction)() as database:
            written = self._do_all(entries, database)
            for folder in sorted({folder for each in written for folder in each.folders}):
                flush(folder)
            if group.block is not None:
                self._journal.note(database, group.block)
        if is_unflushed and not all(each.is_new for each in written):
            self._connections.flush()

    @contextmanager
    def turn(self, meanwhile: Wait = _nothing) -> Iterator[None]:
        """Be the one process that commits; the lock ends with the process, too.

        Parameters
        ----------
        meanwhile
            Called before this process waits for another one.
        """
        if self._open_turns is None:
            self._open_turns = self._connections.turns.open("a")
        try:
            fcntl.flock(self._open_turns, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            meanwhile()
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
