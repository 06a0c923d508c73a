"""Receivers that other people wrote, started on free ports: DCMTK's storescp, and Orthanc."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def start_storescp(tmp_path) -> Iterator[Callable[..., tuple[Path, int]]]:
    """Start storescp with more options; it writes what it receives bit by bit. Returns its folder and its port."""
    assert shutil.which("storescp"), "DCMTK's storescp is not installed (apt-get install dcmtk)"
    processes = []

    def start(*options: str) -> tuple[Path, int]:
        folder = tmp_path / f"storescp{len(processes)}"
        folder.mkdir()
        process, (port,) = on_free_ports(
            lambda ports: ["storescp", "-B", "+xa", *options, "-aet", "STORESCP", "-od", str(folder), str(ports[0])], 1
        )
        processes.append(process)
        return folder, port

    yield start
    for process in processes:
        process.terminate()
        process.wait()


@pytest.fixture
def storescp(start_storescp) -> tuple[Path, int]:
    """A storescp: its folder and its port."""
    return start_storescp()


class Orthanc:
    """A running Orthanc: its DICOM port, and its answers over HTTP."""

    def __init__(self, port: int, http_port: int) -> None:
        self.port = port
        self._http_port = http_port

    def get(self, path: str) -> Any:
        return self._answer(urllib.request.Request(self._url(path)))

    def find(self, level: str, **query: str) -> list[dict[str, Any]]:
        """Everything of a level that fits, with its main tags."""
        asked = json.dumps({"Level": level, "Query": query, "Expand": True}).encode()
        return self._answer(urllib.request.Request(self._url("/tools/find"), data=asked))

    def _url(self, path: str) -> str:
        return f"http://127.0.0.1:{self._http_port}{path}"

    @staticmethod
    def _answer(request: urllib.request.Request) -> Any:
        with urllib.request.urlopen(request, timeout=300) as response:
            return json.load(response)


@pytest.fixture
def start_orthanc(tmp_path) -> Iterator[Callable[..., Orthanc]]:
    """Start Orthanc; keywords are further settings of its own."""
    program = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin")
    assert program, "Orthanc is not installed (apt-get install orthanc)"
    processes = []

    def start(**settings: Any) -> Orthanc:
        folder = tmp_path / f"orthanc{len(processes)}"
        folder.mkdir()

        def command(ports: Sequence[int]) -> list[str]:
            told = {
                "Name": "peer", "StorageDirectory": str(folder), "IndexDirectory": str(folder), "Locale": "C",
                "DicomAet": "ORTHANC", "DicomPort": ports[0], "HttpPort": ports[1], "AuthenticationEnabled": False,
                "RemoteAccessAllowed": False, **settings,
            }  # fmt: skip
            file = folder / "orthanc.json"
            file.write_text(json.dumps(told))
            return [program, str(file)]

        process, ports = on_free_ports(command, 2)
        processes.append(process)
        return Orthanc(*ports)

    yield start
    for process in processes:
        process.terminate()
        process.wait()


@pytest.fixture
def start_dcmqrscp(tmp_path) -> Iterator[Callable[[dict[str, tuple[str, int]]], int]]:
    """Start DCMTK's dcmqrscp, an archive under the title DCMQR that sends to the AEs it is told; return its port."""
    assert shutil.which("dcmqrscp"), "DCMTK's dcmqrscp is not installed (apt-get install dcmtk)"
    processes = []

    def start(destinations: dict[str, tuple[str, int]]) -> int:
        folder = tmp_path / f"dcmqrscp{len(processes)}"
        (folder / "database").mkdir(parents=True)
        hosts = [f"host{n} = ({title}, {host}, {port})" for n, (title, (host, port)) in enumerate(destinations.items())]

        def command(ports: Sequence[int]) -> list[str]:
            lines = [
                f"NetworkTCPPort = {ports[0]}", "MaxPDUSize = 16384", "MaxAssociations = 16",
                "HostTable BEGIN", *hosts, "HostTable END", "VendorTable BEGIN", "VendorTable END",
                "AETable BEGIN", f"DCMQR {folder / 'database'} RW (200, 1024mb) ANY", "AETable END",
            ]  # fmt: skip
            (folder / "dcmqrscp.cfg").write_text("\n".join(lines) + "\n")
            return ["dcmqrscp", "-c", str(folder / "dcmqrscp.cfg")]

        process, (port,) = on_free_ports(command, 1)
        processes.append(process)
        return port

    yield start
    for process in processes:
        process.terminate()
        process.wait()


def on_free_ports(command: Callable[[Sequence[int]], list[str]], count: int) -> tuple[subprocess.Popen, Sequence[int]]:
    """Start a command with free ports of 127.0.0.1, and wait until it listens on all of them."""
    for _ in range(10):
        probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
        ports = [probe.getsockname()[1] for probe in probes]
        for probe in probes:
            probe.close()
        process = subprocess.Popen(command(ports), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        if all(_comes_to_listen(process, port) for port in ports):
            return process, ports
        process.terminate()
        process.wait()
    pytest.fail("the peer got none of ten ports")


def _comes_to_listen(process: subprocess.Popen, port: int) -> bool:
    """Wait until `process` itself listens on `port`; False when it ends instead, for somebody else has the port."""
    for _ in range(6000):
        if _listens(process.pid, port):
            return True
        try:
            process.wait(0.05)
        except subprocess.TimeoutExpired:
            continue
        return False
    process.kill()
    pytest.fail("the peer neither listens nor ends")


def _listens(pid: int, port: int) -> bool:
    """Whether one of the sockets of the process listens on the TCP port."""
    try:
        own = {str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir()}
    except OSError:  # it has just ended, or just closed a file
        return False
    lines = [line.split() for table in ("tcp", "tcp6") for line in Path(f"/proc/net/{table}").read_text().splitlines()]
    return any(
        line[3] == "0A" and int(line[1].rpartition(":")[2], 16) == port and f"socket:[{line[9]}]" in own
        for line in lines
        if line[0] != "sl"
    )
