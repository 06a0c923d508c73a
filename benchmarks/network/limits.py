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
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.network import corpus
from index.archive import Archive
from index.files import flush_and_digest
from index.header import read_header
from index.structure import require_structure

_TIMES = 60
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
        _commit(folder / "rows.sqlite"),
    ]
    for name, side in (("CT 0.5 MB", 512), ("tiny 32×32", 32)):
        rows += _stages(folder / name.partition(" ")[0], name, side)
    return rows


def _stages(folder: Path, name: str, side: int) -> list[Row]:
    kind = corpus.make(folder, name, _TIMES, side=side)
    archive = Archive(folder / "data", settle_time_s=86400)
    received = []
    for file in kind.files:  # what the network edge hands over lies in the folder of what comes in
        received.append(archive.scratch_file(0))
        received[-1].write_bytes(file.read_bytes())
    parts: dict[str, Callable[[int], object]] = {
        "structure checked": lambda n: require_structure(received[n], 64),
        "header read": lambda n: read_header(received[n], named_by_meta=True),
        "flushed and hashed": lambda n: flush_and_digest(received[n]),
    }
    rows = [_row(f"{name}: {part}", do) for part, do in parts.items()]
    rows.append(_row(f"{name}: all that the archive does, flushed before", lambda n: archive.ingest(received[n])))
    archive.close()
    return rows


def _row(what: str, do: Callable[[int], object]) -> Row:
    """Return medians in microseconds: the time that passed, and the CPU time of this thread."""
    wall, cpu = [], []
    for number in range(_TIMES):
        started, begun = time.perf_counter(), time.thread_time()
        do(number)
        wall.append(1e6 * (time.perf_counter() - started))
        cpu.append(1e6 * (time.thread_time() - begun))
    return {"what": what, "wall": median(wall), "cpu": median(cpu)}


def _write(path: Path, data: bytes, *, flush: bool) -> None:
    with path.open("wb") as file:
        file.write(data)
        if flush:
            file.flush()
            os.fdatasync(file.fileno())


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
