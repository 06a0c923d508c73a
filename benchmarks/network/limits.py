"""What this machine allows, and what the parts of one C-STORE take: how far the node is from loopback and disk.

    python benchmarks/network --limits

On a machine that does other things as well, the CPU time tells more than the time that passed.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import socket
import sqlite3
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.network import corpus
from index.alike import Alike
from index.archive import Archive
from index.direct_io import PAGE, Memory, NewFile
from index.header import WANTED, header_of, read_header
from index.structure import scan
from scp.part10 import data_set_offset
from scp.reception import ReceivedFile, Reception

_TIMES = 60
_FRAGMENT = 1 << 17
_MEMORY = Memory()
_BLOCK = 1 << 20
_LOOPBACK_BYTES = 1 << 30

Row = dict[str, Any]


def measured(folder: Path) -> list[Row]:
    """Return the limits, and the parts of storing an image of each kind, as rows."""
    image = os.urandom(2 * 512 * 512)
    rows: list[Row] = [{"what": "loopback between two processes, MB/s", "wall": _loopback() / 1e6}]
    rows += [
        _row("0.5 MB hashed with SHA-256", lambda _: hashlib.sha256(image).digest()),
        _row("0.5 MB to a new file", lambda n: _write(folder / f"plain{n}", image, flush=False)),
        _row("0.5 MB to a new file, and fdatasync", lambda n: _write(folder / f"flushed{n}", image, flush=True)),
        _row("0.5 MB past the cache, and fsync", lambda n: _write_past_cache(folder / f"direct{n}", image)),
        _journal(folder / "journal"),
        _commit(folder / "rows.sqlite"),
    ]
    for name, side in (("CT 0.5 MB", 512), ("tiny 32×32", 32)):
        rows += _stages(folder / name.partition(" ")[0], name, side)
    return rows


def _stages(folder: Path, name: str, side: int) -> list[Row]:
    """Take an image from the fragments that a socket gave to its answer, as the network edge and the archive do."""
    kind = corpus.make(folder, name, 2 * _TIMES + 1, side=side)
    archive = Archive(folder / "data", settle_time_s=86400)
    reception = Reception(archive.new_file, "BENCHMARK", past_cache=True, require_space=archive.require_reserve)
    beside = replace(reception, waits=False)  # as the node has it
    objects = [_Object(file) for file in kind.files]
    first = objects.pop()
    archive.ingest(first.received(reception).path, expected=first.identity)  # with what is done once
    bare, whole = objects[0::2], objects[1::2]
    begin, memory = first.begin, first.content
    alike, found = Alike(), scan(kind.files[0], 64, WANTED, begin, memory)
    if (header := header_of(found)) is None:
        raise RuntimeError("the header of an image cannot be read")
    alike.keep(memory, found, header, 64)

    def received(number: int) -> None:
        file = bare[number].received(reception)
        file.path = None  # it stays, as if it had another name by now
        file.leave()

    def all_of_it(number: int) -> None:
        file = whole[number].received(beside)
        archive.ingest(file.path, expected=whole[number].identity, received=file.known)
        file.leave()

    parts: dict[str, Callable[[int], object]] = {
        "put together, hashed, written, and flushed if large": received,
        "checked and its header read": lambda _: header_of(scan(kind.files[0], 64, WANTED, begin, memory)),
        "the same of one like another": lambda n: alike.header(whole[n].content, begin, 64),
        "all of it, from the socket's bytes to the commit": all_of_it,
    }
    rows = [_row(f"{name}: {part}", do) for part, do in parts.items()]
    archive.close()
    return rows


class _Object:
    """An object as it comes: fragments of PDUs."""

    def __init__(self, path: Path) -> None:
        header = read_header(path)
        self.identity = header.sop_class_uid, header.sop_instance_uid
        self._syntax = header.transfer_syntax_uid
        self.content = memoryview(path.read_bytes())
        self.begin = data_set_offset(path), header.transfer_syntax_uid
        data = self.content[self.begin[0] :]
        self._fragments = [data[begin : begin + _FRAGMENT] for begin in range(0, len(data), _FRAGMENT)]

    def received(self, reception: Reception) -> ReceivedFile:
        file = ReceivedFile(reception, self.identity, self._syntax)
        for fragment in self._fragments:
            file.write(fragment)
        file.close()
        return file


def _row(what: str, do: Callable[[int], object]) -> Row:
    """Return medians in microseconds: the time that passed, and the CPU time of this process."""
    wall, cpu = [], []
    for number in range(_TIMES):
        started, begun = time.perf_counter(), time.process_time()
        do(number)
        wall.append(1e6 * (time.perf_counter() - started))
        cpu.append(1e6 * (time.process_time() - begun))
    return {"what": what, "wall": median(wall), "cpu": median(cpu)}


def _write(path: Path, data: bytes, *, flush: bool) -> None:
    with path.open("wb") as file:
        file.write(data)
        if flush:
            file.flush()
            os.fdatasync(file.fileno())


def _write_past_cache(path: Path, data: bytes) -> None:
    memory = _MEMORY.take()
    memory[: len(data)] = data
    file = NewFile(path, past_cache=True)
    file.write(memory, len(data))
    file.flush()
    file.close()
    _MEMORY.give_back(memory)


def _journal(path: Path) -> Row:
    """A page written into a file that is there, as a block of the journal of arrivals is."""
    path.write_bytes(bytes(PAGE * _TIMES))
    memory = _MEMORY.take()
    descriptor = os.open(path, os.O_WRONLY | os.O_DSYNC | getattr(os, "O_DIRECT", 0))
    os.fsync(descriptor)
    row = _row("a page of a journal, flushed", lambda n: os.pwrite(descriptor, memory[:PAGE], n * PAGE))
    os.close(descriptor)
    return row


def _commit(path: Path) -> Row:
    database = sqlite3.connect(path, isolation_level=None)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = FULL")
    database.execute("CREATE TABLE told (id INTEGER PRIMARY KEY, text TEXT)")
    row = _row(
        "one row and commit, SQLite, WAL, synchronous FULL",
        lambda _: database.execute("INSERT INTO told (text) VALUES (?)", ("x" * 500,)),
    )
    database.close()
    return row


def _loopback() -> float:
    """Return the bytes a second that one process can send to another over loopback."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        sender = multiprocessing.get_context("fork").Process(target=_send, args=(server.getsockname()[1],), daemon=True)
        sender.start()
        connection, _ = server.accept()
        buffer, got = memoryview(bytearray(_BLOCK)), 0
        started = time.perf_counter()
        with connection:
            while count := connection.recv_into(buffer):
                got += count
        seconds = time.perf_counter() - started
        sender.join()
    return got / seconds


def _send(port: int) -> None:
    block = bytes(_BLOCK)
    with socket.create_connection(("127.0.0.1", port)) as connection:
        for _ in range(_LOOPBACK_BYTES // _BLOCK):
            connection.sendall(block)


def text(rows: list[Row]) -> str:
    """Return the rows as lines."""
    lines = [f"{'median, µs':60}{'passed':>12}{'CPU':>12}"]
    lines += [
        f"{row['what']:60}{row['wall']:>12,.0f}" + (f"{row['cpu']:>12,.0f}" if "cpu" in row else "") for row in rows
    ]
    return "\n".join(lines)
