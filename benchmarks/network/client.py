"""A client that is not what is measured: blocking sockets, PDUs built beforehand, a process for each association.

It checks what it has to, the Status of each response, and nothing else.
"""

from __future__ import annotations

import contextlib
import mmap
import multiprocessing
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset

from benchmarks.conformance.wire import Association, Context, encode_command, encode_data, pdata
from index.header import read_header
from scp.part10 import data_set_offset

_LARGEST_PDU = 131072
_STATUS = (0x0000, 0x0900)
_MOST_BUFFERS = 512
_MAPPED_BYTES = 1 << 17
_PREPARED_S = 1800
"""How long a client may take to read what it sends: 100,000 files, beside others that do so."""
VERIFICATION = "1.2.840.10008.1.1"
STUDY_ROOT_FIND = "1.2.840.10008.5.1.4.1.2.2.1"
IMPLICIT = "1.2.840.10008.1.2"


class NotMeasured(Exception):
    """Something was not done that is to be measured; the message says what went wrong."""


@dataclass
class Timed:
    """What came of a run.

    Attributes
    ----------
    seconds
        From the first association request to the last release.
    latencies
        Of each request, seconds.
    first
        Until the first response of each request, seconds.
    answers
        Pending responses.
    """

    seconds: float
    latencies: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    answers: int = 0


def store(port: int, called: str, files: Sequence[Path], associations: int, calling: str = "BENCHMARK") -> Timed:
    """Send files over so many associations; raises `NotMeasured` when one is not answered 0000."""
    size = -(-len(files) // associations)
    parts = [files[first : first + size] for first in range(0, len(files), size)]
    return _side_by_side([(send, (port, called, calling, part)) for part in parts])


def find(
    port: int, called: str, identifiers: Sequence[Dataset], associations: int, calling: str = "BENCHMARK"
) -> Timed:
    """Ask one query after the other over each of so many associations, each its share."""
    parts = [identifiers[first::associations] for first in range(associations)]
    return _side_by_side([(ask, (port, called, calling, part)) for part in parts if part])


def _side_by_side(tasks: Sequence[tuple[Callable[..., Timed], tuple[Any, ...]]]) -> Timed:
    """Run each in a process of its own, begun together."""
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(len(tasks) + 1)
    lanes = []
    for task, arguments in tasks:
        ours, theirs = context.Pipe()
        process = context.Process(target=_in_process, args=(theirs, barrier, task, arguments), daemon=True)
        process.start()
        theirs.close()
        lanes.append((process, ours))
    with contextlib.suppress(threading.BrokenBarrierError):  # one cannot begin, and tells why
        barrier.wait(_PREPARED_S)
    started = time.perf_counter()
    whole = Timed(0.0)
    failed: list[str] = []
    for process, pipe in lanes:
        try:
            found = pipe.recv()
        except EOFError:
            found = "a client died"
        process.join()
        if isinstance(found, str):
            failed.append(found)
            continue
        whole.latencies += found.latencies
        whole.first += found.first
        whole.answers += found.answers
    whole.seconds = time.perf_counter() - started
    if failed:
        raise NotMeasured(next((why for why in failed if "BrokenBarrier" not in why), failed[0]))
    return whole


def _in_process(pipe: Any, barrier: Any, task: Callable[..., Timed], arguments: tuple[Any, ...]) -> None:
    try:
        pipe.send(task(*arguments, ready=barrier.wait))
    except BaseException as error:  # noqa: BLE001  (the parent tells it)
        barrier.abort()
        pipe.send(str(error) if isinstance(error, RuntimeError) else f"{type(error).__name__}: {error}")


def associate(port: int, called: str, calling: str = "BENCHMARK") -> None:
    """Open an association for Verification, and release it; raises when it is not accepted."""
    Association(port, called, calling, [Context(VERIFICATION, (IMPLICIT,))], timeout=120).release()


def send(
    port: int, called: str, calling: str, files: Sequence[Path], *, ready: Callable[[], Any] = lambda: None
) -> Timed:
    """Send files over one association, in this process; raises `RuntimeError` when one is not answered 0000.

    Parameters
    ----------
    ready
        Called when everything is prepared, before the association is opened.
    """
    objects = []
    for path in files:
        header = read_header(path, named_by_meta=True)
        data = memoryview(_content(path))[data_set_offset(path) :]
        objects.append((header.sop_class_uid, header.transfer_syntax_uid, header.sop_instance_uid, data))
    contexts = list(dict.fromkeys((sop_class, syntax) for sop_class, syntax, _, _ in objects))
    ready()
    proposed = [Context(sop_class, (syntax,)) for sop_class, syntax in contexts]
    association = Association(port, called, calling, proposed, max_pdu=16384, timeout=120)
    largest = min(_LARGEST_PDU, association.peer_max_pdu) - 6
    reader, timed = Reader(association.socket), Timed(0.0)
    with contextlib.closing(association.socket):
        for number, (sop_class, syntax, uid, data) in enumerate(objects):
            context = association.context_for(sop_class, syntax)
            command = pdata(context, 3, _store_command(sop_class, uid, number % 65535 + 1))
            buffers = [command, *_fragments(context, data, largest)]
            started = time.perf_counter()
            _send(association.socket, buffers)
            status = next(iter(reader.statuses()))
            timed.latencies.append(time.perf_counter() - started)
            if status != 0:
                raise RuntimeError(f"{called} answered C-STORE {number + 1} with {status:04X}")
        association.release()
    return timed


def _content(path: Path) -> bytes | mmap.mmap:
    """Return what is in a file: read, or mapped where it is large, of which the system lets a process have 65,530."""
    with path.open("rb") as file:
        if path.stat().st_size < _MAPPED_BYTES:
            return file.read()
        return mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)


def _store_command(sop_class: str, uid: str, message_id: int) -> bytes:
    command = Dataset()
    command.AffectedSOPClassUID, command.AffectedSOPInstanceUID = sop_class, uid
    command.CommandField, command.MessageID, command.Priority, command.CommandDataSetType = 1, message_id, 0, 1
    return encode_command(command)


def _fragments(context: int, data: memoryview, largest: int) -> Iterator[bytes | memoryview]:
    for first in range(0, len(data), largest):
        piece = data[first : first + largest]
        last = 2 if first + largest >= len(data) else 0
        yield struct.pack(">BBLLBB", 4, 0, len(piece) + 6, len(piece) + 2, context, last)
        yield piece


def _send(connection: socket.socket, buffers: list[bytes | memoryview]) -> None:
    waiting = [memoryview(buffer) for buffer in buffers]
    while waiting:
        sent = connection.sendmsg(waiting[:_MOST_BUFFERS])
        done = 0
        while done < len(waiting) and sent >= len(waiting[done]):
            sent -= len(waiting[done])
            done += 1
        del waiting[:done]
        if sent:
            waiting[0] = waiting[0][sent:]


def ask(
    port: int, called: str, calling: str, identifiers: Sequence[Dataset], *, ready: Callable[[], Any] = lambda: None
) -> Timed:
    """Ask one query after the other over one association, in this process; as `send`."""
    requests = []
    for number, identifier in enumerate(identifiers):
        command = Dataset()
        command.AffectedSOPClassUID, command.CommandField = STUDY_ROOT_FIND, 0x20
        command.MessageID, command.Priority, command.CommandDataSetType = number % 65535 + 1, 0, 1
        requests.append(pdata(1, 3, encode_command(command)) + pdata(1, 2, encode_data(identifier)))
    ready()
    association = Association(port, called, calling, [Context(STUDY_ROOT_FIND, (IMPLICIT,))], timeout=120)
    reader, timed = Reader(association.socket), Timed(0.0)
    with contextlib.closing(association.socket):
        for request in requests:
            started = time.perf_counter()
            association.socket.sendall(request)
            answers = 0
            for status in reader.statuses():
                if not answers:
                    timed.first.append(time.perf_counter() - started)
                if status not in (0xFF00, 0xFF01):
                    break
                answers += 1
            timed.latencies.append(time.perf_counter() - started)
            timed.answers += answers
            if status != 0:
                raise RuntimeError(f"{called} answered C-FIND with {status:04X}")
        association.release()
    return timed


def _status(buffer: bytearray, begin: int, end: int) -> int | None:
    """Return the Status in a command set; None for one that has none."""
    while begin < end:
        group, element, length = struct.unpack_from("<HHL", buffer, begin)
        if (group, element) == _STATUS:
            return int(struct.unpack_from("<H", buffer, begin + 8)[0])
        begin += 8 + length
    return None


class Reader:
    """Reads P-DATA and tells the Status of each response; data sets are read and forgotten."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._buffer = bytearray(1 << 20)
        self._from = self._to = 0

    def statuses(self) -> Iterator[int]:
        """Yield the Status of each response as it comes, for ever."""
        while True:
            kind, start, end = self._pdu()
            if kind != 4:
                raise ConnectionError(f"PDU of type {kind}")
            while start < end:
                length, _, control = struct.unpack_from(">LBB", self._buffer, start)
                if control & 1:  # a command in one piece: none is longer
                    status = _status(self._buffer, start + 6, start + 4 + length)
                    if status is not None:
                        yield status
                start += 4 + length

    def _pdu(self) -> tuple[int, int, int]:
        self._need(6)
        kind, _, length = struct.unpack_from(">BBL", self._buffer, self._from)
        self._need(6 + length)
        start = self._from + 6
        self._from = start + length
        return kind, start, start + length

    def _need(self, count: int) -> None:
        if len(self._buffer) - self._from < count:
            left = self._buffer[self._from : self._to]
            self._buffer[: len(left)] = left
            self._from, self._to = 0, len(left)
        while self._to - self._from < count:
            got = self._connection.recv_into(memoryview(self._buffer)[self._to :])
            if not got:
                raise ConnectionError("the node closed the connection")
            self._to += got
