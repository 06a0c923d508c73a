"""The journal of arrivals: what makes an instance safe before its file and its rows have reached the disk.

Two segments are written in turn, in blocks: what one group commit brings. The row of the table ``arrivals`` says, in
the same transaction as the rows of the instances, which block was the last; so what a power cut leaves of the catalogue
says which blocks it still knows. How it is used, and why: `docs/decisions/0016-arrivals-journal.md`.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
import threading
import zlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from sqlite_utils import Database

from index.durable import flush, flush_file_system

FOLDER = "arrivals"
_SEGMENT_BYTES = 32 << 20
_STEP_BYTES = 1 << 20
"""How much a segment has at first. It doubles: to write behind its end would wait for the file system's own journal."""

_PAGE = 4096
"""Blocks begin and end at multiples of it: what O_DIRECT asks for (open(2))."""

_MAGIC = b"THARSIS1"
_HEAD = struct.Struct("<8sQQII")  # magic, number, bytes behind it, instances, CRC-32 of the facts
_ENTRY = struct.Struct("<II")  # bytes of the facts, bytes of the instance


@dataclass(frozen=True)
class Arrived:
    """What the journal keeps of one instance.

    Attributes
    ----------
    path
        Of its file, below the data folder.
    incoming
        Name in the incoming folder under which its bytes are flushed; "" for one whose bytes are in the journal.
    size, sha256
        Of the file, bytes and hex.
    source_aet
        AE title that sent it.
    content
        The file; empty for one that is flushed as `incoming`.
    """

    path: str
    incoming: str
    size: int
    sha256: str
    source_aet: str
    content: bytes = b""

    @property
    def facts(self) -> bytes:
        """All but the content, as JSON."""
        return json.dumps([self.path, self.incoming, self.size, self.sha256, self.source_aet]).encode()


@dataclass(frozen=True)
class Block:
    """What one group commit brought.

    Attributes
    ----------
    number
        Blocks are numbered from 1 on, without gaps.
    """

    number: int
    instances: tuple[Arrived, ...]


@dataclass(frozen=True)
class Standing:
    """The row of ``arrivals``.

    Attributes
    ----------
    number
        The last block whose rows are in the catalogue; 0 for none.
    segment, at
        Where the next one begins.
    other
        The last block of the other segment.
    settled
        The last block of which everything has reached the disk.
    boot
        Which start of the system wrote last; "" for none.
    """

    number: int = 0
    segment: int = 0
    at: int = 0
    other: int = 0
    settled: int = 0
    boot: str = ""


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
    """The segments of one archive. Whoever appends holds the write transaction, so there is one at a time.

    Parameters
    ----------
    root
        The data folder.
    connections
        Give write transactions of the catalogue.
    """

    def __init__(self, root: Path, connections: _Transactions) -> None:
        self._root = root
        self._folder = root / FOLDER
        self._connections = connections
        self._boot = boot()
        self._segments: dict[int, _Segment] = {}
        self._memory = mmap.mmap(-1, _PAGE)
        self._settling: threading.Thread | None = None

    def append(self, database: Database, instances: Sequence[Arrived]) -> None:
        """Write a block, inside the transaction with the rows of `instances`; it is on disk when this returns.

        Raises
        ------
        OSError
            It cannot be written: the disk is full, above all.
        """
        now = standing(database)
        number = now.number + 1
        block = self._encoded(number, instances)
        segment, other, settled = now.segment, now.other, now.settled
        at = now.at if self._segment(segment).size >= now.at else 0  # emptied by one who could not commit that
        is_next = bool(at) and at + len(block) > _SEGMENT_BYTES
        if is_next:
            segment, at, other = 1 - segment, 0, now.number
            if now.other > settled:  # the thread that sees to it is late, or died with its process
                flush_file_system(self._root)
                settled = now.number
        self._segment(segment).write(block, at)
        _set(database, Standing(number, segment, at + len(block), other, settled, self._boot))
        if is_next:
            self._settle_soon(other)

    def _encoded(self, number: int, instances: Sequence[Arrived]) -> memoryview:
        """Return a block as it is written, in memory that begins at a page and that the next one uses again."""
        facts = [each.facts for each in instances]
        heads = [_ENTRY.pack(len(fact), len(each.content)) + fact for fact, each in zip(facts, instances, strict=True)]
        length = sum(len(head) + len(each.content) for head, each in zip(heads, instances, strict=True))
        whole = -(-(_HEAD.size + length) // _PAGE) * _PAGE
        if len(self._memory) < whole:
            self._memory = mmap.mmap(-1, whole)
        block = self._memory
        block.seek(0)
        checksum = zlib.crc32(b"".join(heads), number & 0xFFFFFFFF)
        block.write(_HEAD.pack(_MAGIC, number, length, len(instances), checksum))
        for head, each in zip(heads, instances, strict=True):
            block.write(head)
            block.write(each.content)
        block.write(bytes(whole - block.tell()))
        return memoryview(block)[:whole]

    def _segment(self, number: int) -> _Segment:
        if number not in self._segments:
            self._segments[number] = _Segment(self._folder / str(number))
        return self._segments[number]

    def _settle_soon(self, number: int) -> None:
        """Bring to disk what the blocks up to `number` stand for, while others go on."""

        def settle() -> None:
            with self._connections.transaction():
                pass  # the transaction in which the last of them was written has ended
            flush_file_system(self._root)
            with self._connections.transaction() as database:
                database.execute("UPDATE arrivals SET settled = max(settled, ?)", (number,))

        self._settling = threading.Thread(target=settle, name="settle-arrivals", daemon=True)
        self._settling.start()

    def settle(self, database: Database) -> None:
        """Bring to disk what the journal stands for, so that `empty` has little left to wait for."""
        now = standing(database)
        if now.at or now.other:
            flush_file_system(self._root)

    def empty(self, database: Database) -> None:
        """Leave nothing in the journal, inside a write transaction: all that it stands for is on disk before."""
        now = standing(database)
        if now.at or now.other:
            flush_file_system(self._root)
            self._clear()
            _set(database, Standing(now.number, settled=now.number, boot=self._boot))

    def _clear(self) -> None:
        for path in self._paths():
            with path.open("r+b") as file:
                file.truncate(0)
                os.fsync(file.fileno())

    def _paths(self) -> list[Path]:
        return [path for path in (self._folder / "0", self._folder / "1") if path.exists()]

    def is_in_doubt(self, database: Database) -> bool:
        """Whether the system was started anew since the last block was written: the disk may lack what came then."""
        return bool(self._paths()) and (not self._boot or standing(database).boot != self._boot)

    def doubtful(self, database: Database) -> list[Block]:
        """Return the blocks behind the settled one, in their order."""
        settled = standing(database).settled
        blocks = {block.number: block for path in self._paths() for block in _blocks(path)}
        return [blocks[number] for number in sorted(blocks) if number > settled]

    def resolved(self, database: Database, since: Standing, number: int) -> bool:
        """Take note, inside a write transaction, that everything is as the blocks up to `number` say.

        Returns
        -------
        bool
            False when somebody has appended `since`: nothing is noted.
        """
        if standing(database) != since:
            return False
        flush_file_system(self._root)
        self._clear()
        last = max(number, since.number)
        _set(database, Standing(last, settled=last, boot=self._boot))
        return True


def standing(database: Database) -> Standing:
    """Return the row of ``arrivals``."""
    row = database.execute("SELECT number, segment, at, other, settled, boot FROM arrivals").fetchone()
    return Standing() if row is None else Standing(*row)


def _set(database: Database, now: Standing) -> None:
    database.execute(
        "INSERT OR REPLACE INTO arrivals (id, number, segment, at, other, settled, boot) VALUES (1, ?, ?, ?, ?, ?, ?)",
        (now.number, now.segment, now.at, now.other, now.settled, now.boot),
    )


class _Segment:
    """One file of the journal, open for writing that has reached the disk when it returns."""

    def __init__(self, path: Path) -> None:
        if not path.parent.exists():
            path.parent.mkdir(mode=0o700)
            flush(path.parent.parent)
        is_new = not path.exists()
        self._plain = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        if is_new:
            flush(path.parent)
        self._direct = _open_directly(path)

    @property
    def size(self) -> int:
        """Bytes that it has."""
        return os.fstat(self._plain).st_size

    def write(self, block: memoryview, at: int) -> None:
        """Write `block` at the byte `at`."""
        self._grow(at + len(block))
        done = 0
        while done < len(block):
            done += os.pwrite(self._direct, block[done:], at + done)

    def _grow(self, size: int) -> None:
        """Have bytes on the disk up to `size` at least: what overwrites them waits for nothing else."""
        present = self.size
        if present >= size:
            return
        wanted = max(size, 2 * present)
        while present < wanted:
            present += os.pwrite(self._plain, bytes(_STEP_BYTES), present)
        os.fsync(self._plain)


def _open_directly(path: Path) -> int:
    """Open for writes past the system's cache, which is flushed anyway; on file systems without that, through it."""
    flags = os.O_WRONLY | os.O_DSYNC
    try:
        return os.open(path, flags | getattr(os, "O_DIRECT", 0))
    except OSError:
        return os.open(path, flags)


def _blocks(path: Path) -> Iterator[Block]:
    """Yield the blocks of a segment from its begin on, as far as each follows the one before."""
    last = 0
    with path.open("rb") as file:
        while (block := _read(file)) is not None:
            if last and block.number != last + 1:
                return
            last = block.number
            yield block
            file.seek(-file.tell() % _PAGE, os.SEEK_CUR)


def _read(file: Any) -> Block | None:
    """Read one block; None when there is none, or it is not whole."""
    head = file.read(_HEAD.size)
    if len(head) < _HEAD.size:
        return None
    magic, number, length, count, checksum = _HEAD.unpack(head)
    if magic != _MAGIC or length > os.fstat(file.fileno()).st_size:
        return None
    body = memoryview(file.read(length))
    if len(body) < length:
        return None
    instances, heads, at = [], b"", 0
    for _ in range(count):
        if at + _ENTRY.size > length:
            return None
        facts, content = _ENTRY.unpack_from(body, at)
        begin = at + _ENTRY.size + facts
        heads += body[at:begin]
        at = begin + content
        if at > length:
            return None
        instances.append((bytes(body[begin - facts : begin]), bytes(body[begin:at])))
    if zlib.crc32(heads, number & 0xFFFFFFFF) != checksum:
        return None
    return Block(number, tuple(_arrived(facts, content) for facts, content in instances))


def _arrived(facts: bytes, content: bytes) -> Arrived:
    path, incoming, size, sha256, source_aet = json.loads(facts)
    return Arrived(path, incoming, size, sha256, source_aet, content)
