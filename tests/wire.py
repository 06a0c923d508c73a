"""A wire that can be listened to between two peers, and what would identify somebody on it."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import UID_dictionary

_NAMING = re.compile(
    r"Patient(Name|ID|Address|BirthName|Comments)|.*(Physician|Operator).*|Institution.*|AccessionNumber|StudyID|"
    r".*Date(Time)?|StationName|DeviceSerialNumber|RequestedProcedureID|.*Trial.*"
)
_SHORTEST = 4
"""Shorter values are found in any bytes."""


class Wire:
    """Forwards connections to a port of 127.0.0.1 and keeps the bytes of both directions."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self.to_target = bytearray()
        self.from_target = bytearray()
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._target))
            self._sockets += [client, server]
            for source, sink, kept in ((client, server, self.to_target), (server, client, self.from_target)):
                thread = threading.Thread(target=_pump, args=(source, sink, kept), daemon=True)
                thread.start()
                self._threads.append(thread)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for each in self._sockets:
            each.close()
        for thread in self._threads:
            thread.join(60)


def _pump(source: socket.socket, sink: socket.socket, kept: bytearray) -> None:
    try:
        while block := source.recv(1 << 16):
            kept += block
            sink.sendall(block)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        return


@pytest.fixture
def wire() -> Iterator:
    """Put wires before ports; they are closed after the test."""
    wires: list[Wire] = []

    def lay(target: int) -> Wire:
        wires.append(Wire(target))
        return wires[-1]

    yield lay
    for each in wires:
        each.close()


def identifiers(*datasets: Dataset) -> set[bytes]:
    """Names, IDs, dates, own UIDs and private text of the data sets, as they are encoded."""
    found: set[str] = set()
    terms: set[str] = set()
    """What private elements repeat of standard ones that name nobody."""

    def look(dataset: Dataset) -> None:
        for element in dataset:
            if element.VR == "SQ":
                for item in element.value:
                    look(item)
                continue
            values = element.value if element.VM > 1 else [element.value]
            is_named = element.VR in ("UI", "PN", "DA", "DT") or _NAMING.fullmatch(element.keyword)
            if not is_named and not element.tag.is_private:
                terms.update(map(str, values))
            else:
                found.update(str(value).strip() for value in values if isinstance(value, str) or element.VR != "UN")

    for dataset in datasets:
        look(dataset)
        for part in str(dataset.get("PatientName", "")).split("^"):
            found.add(part)
    return {value.encode("utf-8") for value in found if _tells(value) and not any(value in term for term in terms)}


def _tells(value: str) -> bool:
    return sum(map(str.isalnum, value)) >= _SHORTEST and value not in UID_dictionary and not _is_small_number(value)


def _is_small_number(value: str) -> bool:
    return bool(re.fullmatch(r"[-+]?[0-9]{0,5}(\.[0-9]*)?", value))


def leaked(where: bytes | Path, told: set[bytes]) -> set[bytes]:
    """Those of the identifiers that are somewhere in the bytes, or in a file below the folder.

    What begins with a digit counts where digits begin: new UIDs have 39 of them, and any six stand there by chance now
    and then, or the last one before other columns of an index.
    """
    content = where if not isinstance(where, Path) else b"".join(each.read_bytes() for each in _files(where))
    return {each for each in told if re.search(_not_within_a_number(each), content)}


def _not_within_a_number(told: bytes) -> bytes:
    return (rb"(?<![0-9])" if told[:1].isdigit() else b"") + re.escape(told)


def _files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]

