"""C-MOVE and C-GET with DCMTK's tools."""

from __future__ import annotations

import pydicom
from pydicom.uid import ImplicitVRLittleEndian
from retrieved import STUDY, data_set


def test_getscu(start_node, dcmtk, make_file, tmp_path):
    node, path = start_node(), make_file(1)
    node.archive.ingest(path)
    out = tmp_path / "out"
    out.mkdir()
    keys = ["-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={STUDY}"]
    dcmtk("getscu", "-S", "-B", "-aec", "THARSIS", "-od", out, *keys, "127.0.0.1", node.port)
    [got] = out.iterdir()
    assert pydicom.dcmread(got).PixelData == pydicom.dcmread(path).PixelData


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
    got = sorted(data_set(path) for path in folder.iterdir())
    assert got == sorted(data_set(path) for path in files)
