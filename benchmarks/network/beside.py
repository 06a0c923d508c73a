"""What a C-STORE gives up while the node's worker reconstructs: the same senders without and with a reconstruction.

    python benchmarks/network --beside

The worker is nicer than the network processes (``[jobs] nice``) and has as many threads as there are processors. Each
rate beside it counts only when the reconstruction was running from its begin to its end; the pairs follow each other.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.conformance.node import Peer, Setup
from benchmarks.network import corpus, measure
from benchmarks.network.client import NotMeasured
from benchmarks.network.peers import MeasuredTharsis
from index.archive import Archive
from reconstruct.projections.scan import ReconstructionRequest
from reconstruct.simulate import simulate_scan
from scp import client
from scp.client import Requestor
from scp.requestor import Peer as Address

_FIELD_OF_VIEW_MM = 36.0
_PATIENCE_S = 120.0
_LOOK_S = 0.02

Row = dict[str, Any]


def measured(folder: Path, instances: int, *, size: int = 256, views: int = 360) -> list[Row]:
    """Return a row for each number of senders, without and with a reconstruction of `size`³ voxels beside it."""
    node = MeasuredTharsis(Setup(_made(folder / "tharsis"), (Peer("BENCHMARK", 0),)))
    node.start()
    archive = Archive(node.data)
    try:
        series = _store_scan(node, archive, _made(folder / "scan"), size, views)
        kind = corpus.make(folder / "ct", "CT 0.5 MB", instances, side=512, instances_a_study=20)
        kind.renew(1)
        measure.figures(measure.store(node, kind, tool="dcmsend", associations=1))  # the first ones warm everything up
        rows, run = [], 1
        for associations in (1, 4):
            for is_beside in (False, True):
                run += 1
                kind.renew(run)
                if is_beside:
                    archive.jobs.push("reconstruct", series)
                    _wait(lambda: _states(archive) == {"running"}, "the reconstruction was not begun")
                row = measure.figures(measure.store(node, kind, tool="dcmsend", associations=associations))
                if is_beside and _states(archive) != {"running"}:
                    raise NotMeasured("the reconstruction ended before the senders: ask for fewer instances")
                _wait(lambda: "running" not in _states(archive), "the reconstruction did not end")
                what = row["what"] + (", a reconstruction beside it" if is_beside else "")
                rows.append({"node": "tharsis", **row, "what": what})
        return rows
    finally:
        archive.close()
        node.stop()


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def _store_scan(node: MeasuredTharsis, archive: Archive, folder: Path, size: int, views: int) -> str:
    """Simulate a scan, store it in the node, and return its Series Instance UID."""
    request = ReconstructionRequest(voxel_mm_xyz=(_FIELD_OF_VIEW_MM / size,) * 3, matrix_xyz=(size,) * 3)
    files = []
    for dataset in simulate_scan("mouse-thorax", views=views, rows=size, columns=size, request=request):
        files.append(folder / f"{dataset.SOPInstanceUID}.dcm")
        dataset.save_as(files[-1], enforce_file_format=True)
    if not all(sent.is_stored for sent in client.send(Address("127.0.0.1", node.port, node.title), files, Requestor())):
        raise NotMeasured("the scan was not stored")
    return str(archive.open_instance(dataset.SOPInstanceUID).series_instance_uid)


def _states(archive: Archive) -> set[str]:
    """The states of the reconstructions that are not done."""
    rows = archive.database.execute("SELECT DISTINCT state FROM job WHERE kind = 'reconstruct' AND state != 'done'")
    return {str(state) for (state,) in rows.fetchall()}


def _wait(condition: Callable[[], bool], failure: str) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            raise NotMeasured(failure)
        time.sleep(_LOOK_S)
