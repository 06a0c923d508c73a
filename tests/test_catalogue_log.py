"""The write-ahead log of the catalogue stays short, however many read while others write."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager

import pytest

from index import database
from index.archive import Archive

PAGES = 40
LIMIT = PAGES * database._LOG_PAGE_BYTES


@pytest.fixture
def written(tmp_path, monkeypatch):
    """An archive whose log is short, and a function that writes so many transactions and tells how long it became."""
    monkeypatch.setattr(database, "_LOG_PAGES", PAGES)
    archive = Archive(tmp_path)
    archive.database.execute("CREATE TABLE noise (bytes BLOB)")

    def write(transactions: int) -> int:
        largest = 0
        for _ in range(transactions):
            with archive.transaction() as connection:
                connection.execute("INSERT INTO noise VALUES (randomblob(9000))")
            largest = max(largest, (tmp_path / "catalogue.sqlite-wal").stat().st_size)
        return largest

    return archive, write


@contextmanager
def always_reading(archive, seconds: float):
    """Have somebody read all the time: the next one has begun before one ends."""
    stopped = threading.Event()

    def read() -> None:
        with archive.snapshot() as one, archive.snapshot() as other:
            readers = [one, other]
            begin(readers[0])
            while not stopped.wait(seconds):
                begin(readers[1])
                readers[0].execute("COMMIT")
                readers.reverse()
            readers[0].execute("COMMIT")

    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


def begin(connection) -> None:
    """Read what takes no longer when there is more of it."""
    connection.execute("BEGIN")
    connection.execute("SELECT max(rowid) FROM noise").fetchone()


def is_begun_anew(write, log) -> bool:
    """Write until the log has become shorter, for minutes at most: what is waited between two tries is time as well."""
    until = time.monotonic() + 300.0
    while time.monotonic() < until:
        before = log.stat().st_size
        write(10)
        if log.stat().st_size < before:
            return True
    return False


def test_it_is_begun_anew_though_there_is_always_somebody_who_reads(written, tmp_path):
    archive, write = written
    with always_reading(archive, 0.002):
        assert is_begun_anew(write, tmp_path / "catalogue.sqlite-wal")
    count = archive.database.execute("SELECT count(*) FROM noise").fetchone()[0]
    assert count % 10 == 0
    assert count > 0


def test_it_waits_longer_for_those_who_read_longer(written, tmp_path, monkeypatch):
    """On a busy machine, or with a slow peer, a query takes longer than a commit waits at first."""
    archive, write = written
    log = tmp_path / "catalogue.sqlite-wal"
    monkeypatch.setattr(database, "_READERS_MS", 1)
    waited = set()
    archive.database.conn.set_trace_callback(
        lambda statement: waited.add(int(statement.rpartition(" ")[2])) if "busy_timeout = " in statement else None
    )
    with archive.snapshot() as reader:  # by whom the log is kept, however lucky a commit is
        begin(reader)
        assert any(write(10) and waited - {1, 60000} for _ in range(1000))  # longer, as the log has become longer
        reader.execute("COMMIT")
    assert 1 in waited
    with always_reading(archive, 0.02):
        assert is_begun_anew(write, log)


def test_one_who_reads_for_long_keeps_his_state_and_is_waited_for_now_and_then(written, tmp_path, monkeypatch):
    archive, write = written
    write(5)
    statements = []
    archive.database.conn.set_trace_callback(statements.append)
    now = [database.time.time()]
    monkeypatch.setattr(database.time, "time", lambda: now[0])
    with archive.snapshot() as reader:
        begin(reader)
        assert write(100) > 4 * LIMIT
        assert sum("wal_checkpoint" in each for each in statements) == 1
        assert statements.count("PRAGMA busy_timeout = 60000") == 1
        assert reader.execute("SELECT count(*) FROM noise").fetchone() == (5,)
        reader.execute("COMMIT")
    now[0] += 1.0
    write(2)
    assert (tmp_path / "catalogue.sqlite-wal").stat().st_size <= LIMIT


def test_what_one_process_has_waited_no_other_waits_as_well(written, tmp_path, monkeypatch):
    """Nobody can write meanwhile: many processes that wait in turn would leave no time to."""
    archive, write = written
    write(5)
    now = [database.time.time()]
    monkeypatch.setattr(database.time, "time", lambda: now[0])
    other, statements = Archive(tmp_path), []
    other.database.conn.set_trace_callback(statements.append)
    with archive.snapshot() as reader:
        begin(reader)
        write(PAGES)
        with other.transaction() as connection:
            connection.execute("INSERT INTO noise VALUES ('')")
        assert not any("wal_checkpoint" in each for each in statements)
        now[0] += 10
        with other.transaction() as connection:
            connection.execute("INSERT INTO noise VALUES ('')")
        assert sum("wal_checkpoint" in each for each in statements) == 1
        reader.execute("COMMIT")
    now[0] -= 3600  # a clock that was wrong
    with other.transaction() as connection:
        connection.execute("INSERT INTO noise VALUES ('')")
    assert sum("wal_checkpoint" in each for each in statements) == 2


def test_what_was_committed_is_kept_when_the_log_cannot_be_brought_in(written, monkeypatch):
    archive, write = written
    execute, refused = database.sqlite3.Connection.execute, []

    class Refusing:
        """A connection on a disk that is full when the log is to be brought in."""

        def __init__(self, connection):
            self._connection = connection

        def execute(self, statement, *rest):
            if "wal_checkpoint" in statement:
                refused.append(statement)
                raise database.sqlite3.OperationalError("database or disk is full")
            return execute(self._connection, statement, *rest)

    shorten = database.Connections._shorten_log
    monkeypatch.setattr(
        database.Connections, "_shorten_log", lambda self, connection: shorten(self, Refusing(connection))
    )
    write(100)
    assert len(refused) >= 1
    assert archive.database.execute("SELECT count(*) FROM noise").fetchone() == (100,)
