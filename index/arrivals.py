"""The journal of arrivals: what makes an instance safe before its file and its rows have reached the disk.

Each process that stores has a *lane* of its own: two segments that it writes in turn, in blocks, each of what one group
commit is about to bring. A block is on the disk before the transaction with the rows begins; the lane's row of the
table ``arrivals`` says in that same transaction which block it was. So what a power cut leaves of the catalogue says
which blocks it still knows. How it is used, and why: `docs/decisions/0016-arrivals-journal.md`.
"""

from __future__ import annotations

import fcntl
import logging
import secrets
import sqlite3
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import IO, Protocol

from sqlite_utils import Database

from index.arrival_blocks import Arrived, Block, Encoder, blocks
from index.arrival_segments import Segment, clear, lane_of, remove, segments_in, segments_of
from index.durable import FileSystem, flush, write_whole
from index.errors import ArchiveError, DiskFailed

_LOG = logging.getLogger(__name__)

FOLDER = "arrivals"
_FAILED, _RECOVERED = "failed", "recovered"
"""Files that say that the system could not write something to the disk that the journal stands for, and when it was
written anew last."""

_UNTIL = "nothing more is stored until the node is started again, which brings it back from the journal"
_KEY = "key"
_KEY_BYTES = 32
_SEGMENT_BYTES = 32 << 20


@dataclass(frozen=True)
class Standing:
    """The row of a lane in ``arrivals``.

    Attributes
    ----------
    number
        The last block whose rows are in the catalogue; 0 for none.
    settled
        The last block of which everything has reached the disk.
    emptied
        How often the journal has been emptied.
    boot
        Which start of the system wrote last; "" for none.
    """

    number: int = 0
    settled: int = 0
    emptied: int = 0
    boot: str = ""


@dataclass(frozen=True)
class Written:
    """A block that is on the disk, and whose rows are still to be committed.

    Attributes
    ----------
    segments
        Of the lane when it was written: of others now, the journal does not have it any more.
    """

    number: int
    segments: tuple[Segment, Segment]
    instances: tuple[Arrived, ...]


class _Transactions(Protocol):
    def transaction(self) -> AbstractContextManager[Database]: ...


def boot() -> str:
    """Return what tells this start of the system from all others; "" where it does not say (other than Linux).

    Within one, nothing that was written is lost when a process dies.
    """
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


class ArrivalJournal:
    """The journal of one archive, and the lane of this process in it.

    Blocks are written, and then noted in a transaction, in the same order: whoever calls `write` sees to that.

    Parameters
    ----------
    root
        The data folder.
    connections
        Give write transactions of the catalogue.
    """

    def __init__(self, root: Path, connections: _Transactions) -> None:
        self._root = root
        self._file_system = FileSystem(root)
        self._folder = root / FOLDER
        self._connections = connections
        self._boot = boot()
        self._lane: _Lane | None = None
        self._lock = threading.Lock()
        self._settling: threading.Thread | None = None
        self._failure = ""
        self._is_marked = False
        self._recovery = self._last_recovery()

    def begin(self) -> None:
        """Take a lane, in a thread of its own: that waits until all that was written before has reached the disk.

        Otherwise who stores first waits for it. Where no lane can be had, it is who stores first that is told.
        """

        def take() -> None:
            with suppress(ArchiveError, OSError, sqlite3.Error), self._lock:  # what the disk has refused is logged
                self._lane = self._lane or self._taken_lane(is_first=True)

        threading.Thread(target=take, name="begin-arrivals", daemon=True).start()

    def write(self, instances: Sequence[Arrived]) -> Written:
        """Write a block, outside of any transaction; it is on disk when this returns.

        Raises
        ------
        OSError
            It cannot be written: the disk is full, above all.
        DiskFailed
            The disk has not taken what was stored before.
        """
        if self._failure:
            self._require_sound()
        with self._lock:
            lane = self._lane = self._lane or self._taken_lane()
            lane.number += 1
            self._put(lane, lane.number, instances)
            return Written(lane.number, lane.segments, tuple(instances))

    def note(self, database: Database, written: Written) -> None:
        """Take note of a block inside the transaction with the rows of its instances; raises `OSError`."""
        lane = self._lane
        if lane is None:
            raise RuntimeError("no block was written")
        if any(segment.is_gone for segment in written.segments):
            with self._lock:
                if any(segment.is_gone for segment in lane.segments):  # others may have been made and emptied since
                    lane.segments = self._new_segments(lane.id)
                    lane.begin_anew(standing(database, lane.id))
                self._put(lane, written.number, written.instances)
        with self._lock:
            lane.ended = written.number - 1
            settled, left = lane.settled, lane.is_left
            if 0 < left <= lane.ended:
                lane.is_left = 0
                self._settle_soon(lane, left)
        changed = database.execute(
            "UPDATE arrivals SET number = ?, settled = ?, boot = ? WHERE lane = ?",
            (written.number, settled, self._boot, lane.id),
        )
        if not changed.rowcount:
            _set(database, lane.id, Standing(written.number, settled, boot=self._boot))

    def _put(self, lane: _Lane, number: int, instances: Sequence[Arrived]) -> None:
        """Write a block where the next one of the lane goes."""
        block = lane.encoder.encoded(lane.key, number, instances)
        if lane.at and lane.at + len(block) > _SEGMENT_BYTES and lane.other <= lane.ended:
            if lane.other > lane.settled:  # the thread that sees to it is late
                self._flush()
                lane.settled = lane.other
            lane.other = lane.is_left = lane.last
            lane.segment, lane.at, lane.last = 1 - lane.segment, 0, 0
        lane.segments[lane.segment].write(block, lane.at)
        lane.at += len(block)
        lane.last = max(lane.last, number)

    def _settle_soon(self, lane: _Lane, number: int) -> None:
        """Bring to disk what the blocks up to `number` stand for, while others go on."""

        def settle() -> None:
            with suppress(OSError, DiskFailed):  # it is logged, and nothing is settled any more
                self._flush()
                with self._lock:
                    lane.settled = max(lane.settled, number)

        self._settling = threading.Thread(target=settle, name="settle-arrivals", daemon=True)
        with suppress(RuntimeError):  # there is no thread to be had: who needs the segment sees to it
            self._settling.start()

    def _flush(self, *, is_first: bool = False) -> None:
        """Bring all of the file system to the disk, unless that has failed: the system tells of it once (syncfs(2)).

        Parameters
        ----------
        is_first
            Nothing was received here so far: where the journal is empty, what failed is nothing that it stands for.

        Raises
        ------
        OSError
            It cannot be. From now on the journal stays as it is: it may have the only copy of what was lost.
        DiskFailed
            So it was before, here or in another process.
        """
        self._require_sound()
        try:
            self._flush_anyway()
        except OSError as error:
            if is_first and not self._has_any():
                _LOG.warning("something else on the disk could not be written (%s)", error.strerror or error)
                return
            self._fail(error)
            raise

    def _flush_anyway(self) -> None:
        try:
            self._file_system.flush()
        except OSError:
            before, self._recovery = self._recovery, self._last_recovery()
            if before == self._recovery:
                raise
            self._file_system.flush()  # that was of the time before all was written anew

    def _last_recovery(self) -> int:
        with suppress(OSError):
            return (self._folder / _RECOVERED).stat().st_mtime_ns
        return 0

    def _fail(self, error: OSError) -> None:
        self._failure = error.strerror or str(error)
        _LOG.error("the disk has not taken all that was stored (%s): %s", self._failure, _UNTIL)
        with suppress(OSError):
            (self._folder / _FAILED).touch(mode=0o600)
            flush(self._folder)
            self._is_marked = True

    def _require_sound(self) -> None:
        """Raise `DiskFailed` while the disk has not got what it has not taken."""
        is_failed = self.is_failed
        if self._failure and self._is_marked and not is_failed:  # somebody has written it anew
            self._failure, self._is_marked = "", False
        if self._failure or is_failed:
            why = self._failure or "as another process has found"
            raise DiskFailed(f"the disk has not taken all that was stored before ({why}): {_UNTIL}")

    def ask_the_disk(self) -> None:
        """Hear of what the disk has not taken before now, so that what is said later is of what is written now."""
        try:
            self._flush_anyway()
        except OSError as error:
            self._fail(error)

    def _taken_lane(self, *, is_first: bool = False) -> _Lane:
        """Take a lane that no living process has, and leave nothing open of what a dead one did there."""
        if not self._folder.exists():
            self._folder.mkdir(mode=0o700, exist_ok=True)
            flush(self._root)
        for number in count(1):
            held = (self._folder / f"{number}.lock").open("a")
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                held.close()
                continue
            break
        try:
            return self._settled_lane(number, held, is_first=is_first)
        except BaseException:
            held.close()  # it is anybody's again
            raise

    def _settled_lane(self, number: int, held: IO[str], *, is_first: bool) -> _Lane:
        self._flush(is_first=is_first)
        with self._connections.transaction() as database:
            key = self._key()
            if not key:
                key = secrets.token_bytes(_KEY_BYTES)
                write_whole(self._folder / _KEY, key)
            before = standing(database, number)
            now = replace(before, settled=before.number, boot=self._boot)
            _set(database, number, now)
        # A block that was written, but not noted, bears a number that is given again: it may not be taken for that one.
        # In a transaction, for a deletion empties the journal in one; in another one, so that no lane with segments
        # ever bears the mark of another start of the system.
        with self._connections.transaction():
            clear(path for path in segments_of(self._folder, number) if path.exists())
            return _Lane(number, held, key, self._new_segments(number), now)

    def _new_segments(self, lane: int) -> tuple[Segment, Segment]:
        first, second = segments_of(self._folder, lane)
        return Segment(first), Segment(second)

    def _key(self) -> bytes:
        with suppress(FileNotFoundError):
            return (self._folder / _KEY).read_bytes()
        return b""

    def settle(self) -> None:
        """Bring to disk what the journal stands for, so that `empty` has little left to wait for."""
        if self._has_any():
            self._flush()

    def empty(self, database: Database) -> None:
        """Leave nothing in the journal, inside a write transaction: all that it stands for is on disk before.

        A block that another thread or process has written, but not noted, is written once more when it is.
        """
        if self._has_any():
            self._flush()
            remove(segments_in(self._folder))
            database.execute("UPDATE arrivals SET settled = number, emptied = emptied + 1")

    def _has_any(self) -> bool:
        for path in segments_in(self._folder):
            with suppress(FileNotFoundError):  # somebody empties it
                if path.stat().st_size:
                    return True
        return False

    def is_in_doubt(self, database: Database) -> bool:
        """Whether the disk may lack what the journal has.

        That is so when the system was started anew since the last block of a lane was written, and when the disk has
        not taken something; but not while somebody stores, who knows better.
        """
        if self.is_failed and not self._is_any_held():
            return True
        paths = segments_in(self._folder)
        if not paths:
            return False
        lanes = standings(database)
        return not self._boot or any(lanes.get(lane_of(path), Standing()).boot != self._boot for path in paths)

    @property
    def is_failed(self) -> bool:
        """Whether the disk has not taken something, since when only what the journal has of it is to be trusted."""
        return (self._folder / _FAILED).exists()

    def _is_any_held(self) -> bool:
        """Whether a living process has a lane."""
        for path in self._folder.glob("*.lock"):
            with path.open("a") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # two that ask are no owner
                except BlockingIOError:
                    return True
        return False

    def doubtful(self, database: Database) -> list[Block]:
        """Return the blocks behind the settled ones, those of each lane in their order."""
        lanes, key = standings(database), self._key()
        found: dict[tuple[int, int], Block] = {}
        for path in segments_in(self._folder):
            lane = lane_of(path)
            settled = lanes.get(lane, Standing()).settled
            found |= {(lane, block.number): block for block in blocks(path, lane, key) if block.number > settled}
        return [found[each] for each in sorted(found)]

    def resolved(self, database: Database, since: dict[int, Standing], last: dict[int, int]) -> bool:
        """Take note, inside a write transaction, that everything is as the blocks say, those up to `last` of each lane.

        Returns
        -------
        bool
            False when somebody has noted a block `since`: nothing is done.
        """
        lanes = standings(database)
        if lanes != since:
            return False
        try:
            self._flush_anyway()
        except OSError as error:
            self._fail(error)
            raise
        remove(segments_in(self._folder))
        if self.is_failed:
            (self._folder / _RECOVERED).write_bytes(b"")
            (self._folder / _FAILED).unlink()
            flush(self._folder)
        self._failure, self._is_marked = "", False
        for lane in {*lanes, *last}:
            before = lanes.get(lane, Standing())
            number = max(before.number, last.get(lane, 0))
            _set(database, lane, Standing(number, number, before.emptied + 1, self._boot))
        return True


@dataclass
class _Lane:
    """The lane of this process; whoever changes it holds the journal's lock.

    Attributes
    ----------
    held
        Locked, and so nobody else's, as long as it is open.
    number
        Of the last block that was written.
    ended
        The last block whose transaction has ended.
    segment, at
        Where the next one goes.
    last, other
        The last blocks of that segment, and of the other one.
    is_left
        The last block of the segment that was left last, until that is being settled; else 0.
    """

    id: int
    held: IO[str]
    key: bytes
    segments: tuple[Segment, Segment]
    before: Standing

    def __post_init__(self) -> None:
        self.encoder = Encoder()
        self.number = self.ended = self.before.number
        self.begin_anew(self.before)

    def begin_anew(self, now: Standing) -> None:
        """Begin with empty segments."""
        self.settled = now.settled
        self.segment = self.at = self.last = self.other = self.is_left = 0


def standings(database: Database) -> dict[int, Standing]:
    """Return the rows of ``arrivals`` by their lanes."""
    rows = database.execute("SELECT lane, number, settled, emptied, boot FROM arrivals").fetchall()
    return {lane: Standing(*row) for lane, *row in rows}


def standing(database: Database, lane: int) -> Standing:
    """Return the row of a lane."""
    asked = "SELECT number, settled, emptied, boot FROM arrivals WHERE lane = ?"
    row = database.execute(asked, (lane,)).fetchone()
    return Standing() if row is None else Standing(*row)


def _set(database: Database, lane: int, now: Standing) -> None:
    database.execute(
        "INSERT OR REPLACE INTO arrivals (lane, number, settled, emptied, boot) VALUES (?, ?, ?, ?, ?)",
        (lane, now.number, now.settled, now.emptied, now.boot),
    )
