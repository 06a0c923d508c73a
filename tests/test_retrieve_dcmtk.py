"""C-MOVE and C-GET with DCMTK's tools."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path

import pydicom
import pytest
from pydicom.uid import ImplicitVRLittleEndian

from scp.part10 import data_set_offset

STUDY = "1.2.826.0.1.3680043.9.7133.1"


def _data_set(path: Path) -> bytes:
    return path.read_bytes()[data_set_offset(path):]


def test_getscu(start_node, dcmtk, make_file, tmp_path):
    node, path = start_node(), make_file(1)
    node.archive.ingest(path)
    out = tmp_path / "out"
    out.mkdir()
    keys = ["-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={STUDY}"]
    dcmtk("getscu", "-S", "-B", "-aec", "THARSIS", "-od", out, *keys, "127.0.0.1", node.port)
    [got] = out.iterdir()
    assert pydicom.dcmread(got).PixelData == pydicom.dcmread(path).PixelData


@pytest.fixture
def storescp(dcmtk, tmp_path):
    """DCMTK's storescp on a free port, writing what it receives bit by bit."""
    dcmtk("storescp", "--version")
    folder = tmp_path / "storescp"
    folder.mkdir()
    for _ in range(10):
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        process = subprocess.Popen(["storescp", "-B", "+xa", "-aet", "STORESCP", "-od", str(folder), str(port)])
        try:
            if _comes_to_listen(process, port):
                yield folder, port
                return
        finally:
            process.terminate()
            process.wait()
    pytest.fail("storescp got none of ten ports")


def _comes_to_listen(process, port):
    """Wait until `process` itself listens on `port`; False when it ends instead, for somebody else has the port."""
    for _ in range(600):
        if _listens(process.pid, port):
            return True
        try:
            process.wait(0.05)
        except subprocess.TimeoutExpired:
            continue
        return False
    pytest.fail("storescp neither listens nor ends")


def _listens(pid, port):
    """Whether one of the sockets of the process listens on the TCP port."""
    try:
        own = {str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir()}
    except FileNotFoundError:  # it has just ended, or just closed a file
        return False
    lines = [line.split() for table in ("tcp", "tcp6") for line in Path(f"/proc/net/{table}").read_text().splitlines()]
    return any(
        line[3] == "0A" and int(line[1].rpartition(":")[2], 16) == port and f"socket:[{line[9]}]" in own
        for line in lines
        if line[0] != "sl"
    )


def test_movescu_to_storescp(start_node, dcmtk, make_file, storescp):
    folder, port = storescp
    node = start_node(entities=[{"title": "STORESCP", "host": "127.0.0.1", "port": port, "rights": []}])
    files = [make_file(1), make_file(2, transfer_syntax=ImplicitVRLittleEndian)]
    for path in files:
        node.archive.ingest(path)
    keys = ["-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={STUDY}"]
    output = dcmtk(
        "movescu", "-v", "-S", "-aec", "THARSIS", "-aem", "STORESCP", *keys, "127.0.0.1", node.port
    ).stdout
    assert "Final Move Response (Success)" in output
    got = sorted(_data_set(path) for path in folder.iterdir())
    assert got == sorted(_data_set(path) for path in files)
