"""What reconstructions of the sizes that we plan for take, from rates measured on this machine.

    python -m benchmarks.scaling --size 256

Measures filtering, back-projection and writing, and what one process does alone (frames read and made into line
integrals, voxels into DICOM objects), and works out hours, bytes and memory for scans of 12 GB to 150 TB by number of
workers. With --cluster the same volume is reconstructed by one process and by clusters of one and two workers
on this machine, each with one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from benchmarks.fdk import Problem, backprojection_seconds, filter_seconds
from benchmarks.memory import write_scan
from index.durable import flush
from reconstruct.backprojection import RowsAlongAxis, RowsAlongAxisInVectors
from reconstruct.checkpoint import Checkpoint
from reconstruct.cluster import SharedFiles, connected, reconstruct_slabs
from reconstruct.geometry import ConeBeamGeometry, VolumeGrid
from reconstruct.kernels_vectors import LANES
from reconstruct.phantoms import line_integrals, shepp_logan
from reconstruct.pipeline import Parameters, reconstruct_scan
from reconstruct.projections.registry import read_scan
from reconstruct.slabs import Plan

WORKERS = (1, 4, 16, 64, 256, 1024)


@dataclass(frozen=True)
class Scan:
    """A scan of `bins` energy bins with a square detector of `edge` pixels; the volume has edge³ voxels."""

    name: str
    edge: int
    views: int
    bins: int

    @property
    def raw_bytes(self) -> int:
        """Of the counts, 16 bits each."""
        return 2 * self.bins * self.views * self.edge**2

    @property
    def updates(self) -> int:
        """Voxel updates of the whole scan."""
        return self.bins * self.views * self.edge**3

    @property
    def pixels(self) -> int:
        """Of all views and bins."""
        return self.bins * self.views * self.edge**2

    @property
    def volume_bytes(self) -> int:
        """Of one bin."""
        return 4 * self.edge**3


SCANS = (
    Scan("kidney stone", 1024, 720, 8),
    Scan("carotid artery", 1600, 1460, 8),
    Scan("thorax, coarse", 6600, 3600, 8),
    Scan("thorax, fine", 8300, 4500, 8),
    Scan("whole body", 25500, 14400, 8),
)


def geometry(edge: int, views: int) -> ConeBeamGeometry:
    pitch = 448.0 / edge
    return ConeBeamGeometry.circular(
        source_to_isocenter_mm=1000.0,
        source_to_detector_mm=1500.0,
        view_angles_rad=np.arange(views) * 2 * np.pi / views,
        rows=edge,
        columns=edge,
        row_pitch_mm=pitch,
        column_pitch_mm=pitch,
    )


def rates(edge: int, views: int, repeats: int) -> dict[str, float]:
    """Updates of a voxel and pixels filtered, per second; bytes written per second."""
    problem = Problem(edge, views)
    kind = RowsAlongAxisInVectors if LANES else RowsAlongAxis
    backprojection_seconds(problem, kind)
    filtering = min(filter_seconds(problem) for _ in range(repeats))
    adding = min(backprojection_seconds(problem, kind) for _ in range(repeats))
    return {"updates_per_s": problem.updates / adding, "pixels_per_s": views * edge**2 / filtering,
            **alone(edge, views), **_disk()}  # fmt: skip


def alone(edge: int, views: int) -> dict[str, float]:
    """Pixels of counts made into line integrals, and voxels into objects on the disk, per second."""
    with tempfile.TemporaryDirectory() as name:
        source, target = Path(name) / "scan", Path(name) / "ct"
        source.mkdir()
        target.mkdir()
        write_scan("full", edge, views, source)
        scan = read_scan(sorted(source.iterdir()))
        integrals = np.zeros(scan.shape, dtype=np.float32)  # touched before the clock starts
        seconds = {}
        for _ in range(2):  # the first time compiles
            start = time.perf_counter()
            scan.line_integrals(1, out=integrals)
            seconds["prepared"] = time.perf_counter() - start
        for series in reconstruct_scan(scan, Parameters(), lambda _fraction: None):
            start = time.perf_counter()
            for number, instance in enumerate(series.instances):
                path = target / f"{number}.dcm"
                instance.save_as(path, enforce_file_format=True)
                flush(path)
            seconds["written"] = time.perf_counter() - start
    return {
        "prepared_pixels_per_s": integrals.size / seconds["prepared"],
        "object_voxels_per_s": edge**3 / seconds["written"],
    }


def _disk(megabytes: int = 512) -> dict[str, float]:
    block = np.random.default_rng(0).integers(0, 255, 1 << 20, dtype=np.uint8).tobytes()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "block"
        start = time.perf_counter()
        with path.open("wb") as file:
            for _ in range(megabytes):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        written = time.perf_counter() - start
    return {"write_bytes_per_s": megabytes * (1 << 20) / written}


@cache
def _slabs(scan: Scan, worker_gb: float) -> tuple[int, float]:
    """Return the slices of a slab, and how often all slabs together read the projections."""
    grid = VolumeGrid((scan.edge,) * 3, (256.0 / scan.edge,) * 3)
    slices = Plan(geometry(scan.edge, scan.views), grid).slices_of_slabs(int(worker_gb * 1e9) >> 20)
    # Some views and slabs stand for all: the band grows smoothly from the middle to the ends.
    few, starts = Plan(geometry(scan.edge, 36), grid), range(0, scan.edge, slices)
    slabs = [few.slab(start, min(start + slices, scan.edge)) for start in starts[:: max(1, len(starts) // 16)]]
    bands = float(np.mean([slab.end_row - slab.first_row for slab in slabs])) * len(starts) / scan.edge
    return slices, bands


def planned(scan: Scan, measured: dict[str, float], workers: int, worker_gb: float) -> dict[str, float]:
    """What `scan` takes on that many machines like this one, with memory of `worker_gb` each."""
    slices, bands = _slabs(scan, worker_gb)
    seconds = scan.updates / measured["updates_per_s"] + bands * scan.pixels / measured["pixels_per_s"]
    return {
        "workers": workers,
        "hours": seconds / 3600 / workers,
        "hours_alone": (
            scan.pixels / measured["prepared_pixels_per_s"]
            + scan.bins * scan.edge**3 / measured["object_voxels_per_s"]
        ) / 3600,
        "slices": slices,
        "bands": bands,
        "read_tb": 4 * bands * scan.pixels / 1e12,
        "written_tb": scan.bins * scan.volume_bytes / 1e12,
        "slab_gb": 4 * slices * scan.edge**2 / 1e9,
        "shared_gb_per_s": 4 * bands * scan.pixels / 1e9 / (seconds / workers),
    }


def cluster_seconds(edge: int, views: int) -> dict[str, float]:
    """Seconds for the same volume: in this process on one thread, and on clusters of workers of one thread each.

    Raises
    ------
    RuntimeError
        The volumes are not the same, bit by bit.
    """
    from distributed import LocalCluster  # an extra

    memory_mb = 256
    plan = Plan(geometry(edge, views), VolumeGrid((edge,) * 3, (256.0 / edge,) * 3))
    slabs, told = plan.slabs(memory_mb), {}
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Checkpoint(Path(folder), {})
        integrals = checkpoint.array(1, "integrals", (views, edge, edge))
        integrals[:] = line_integrals(shepp_logan(125.0, skull_per_mm=1.0), plan.geometry)
        expected = checkpoint.array(1, "volume", plan.grid.shape_zyx)
        for name in ("compiled", "one process"):
            start = time.perf_counter()
            for slab in slabs:
                plan.reconstruct(integrals, slab, memory_mb=memory_mb, threads=1, out=expected[slab.slices])
                checkpoint.part_done(1, "volume", slab.start, slab.stop)
            told[name] = time.perf_counter() - start
        for workers in (1, 2):
            files = SharedFiles(checkpoint.path(1, "integrals"), checkpoint.path(1, f"by {workers}"))
            volume = checkpoint.array(1, f"by {workers}", plan.grid.shape_zyx)
            with (
                LocalCluster(
                    n_workers=workers,
                    threads_per_worker=1,
                    dashboard_address=None,
                    host="127.0.0.1",
                ) as cluster,
                connected(cluster.scheduler_address) as client,
            ):
                for name in ("compiled", f"cluster of {workers}"):  # the first time each worker loads its kernels
                    start = time.perf_counter()
                    reconstruct_slabs(
                        client, plan, slabs, files, memory_mb=memory_mb, done=lambda _slab: None, look=lambda: None
                    )
                    told[name] = time.perf_counter() - start
            if not np.array_equal(volume, expected):
                raise RuntimeError(f"a cluster of {workers} gave another volume")
    del told["compiled"]
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", type=int, default=256, help="voxels and pixels along each side of what is measured")
    parser.add_argument("--views", type=int, default=360)
    parser.add_argument("--worker-gb", type=float, default=64.0, help="memory of a worker")
    parser.add_argument("--repeats", type=int, default=3, help="the best counts")
    parser.add_argument("--cluster", action="store_true", help="measure one process against one and two workers")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.cluster:
        seconds = cluster_seconds(arguments.size, arguments.views)
        if arguments.json:
            print(json.dumps({"size": arguments.size, "views": arguments.views, "seconds": seconds}, indent=1))
            return
        for name, value in seconds.items():
            ratio = seconds["one process"] / value
            print(f"{name:14}{value:8.2f} s   {ratio:5.2f} × one process, the same voxels")
        return
    measured = rates(arguments.size, arguments.views, arguments.repeats)
    result = {"measured": measured, "scans": {}}
    for scan in SCANS:
        result["scans"][scan.name] = [planned(scan, measured, workers, arguments.worker_gb) for workers in WORKERS]
    if arguments.json:
        print(json.dumps(result, indent=1))
        return
    print(
        f"{measured['updates_per_s'] / 1e9:.1f} giga-updates/s, {measured['pixels_per_s'] / 1e6:.0f} megapixels/s, "
        f"{measured['write_bytes_per_s'] / 1e6:.0f} MB/s written and flushed; by one process alone "
        f"{measured['prepared_pixels_per_s'] / 1e6:.0f} megapixels/s prepared and "
        f"{measured['object_voxels_per_s'] / 1e6:.0f} megavoxels/s made into objects. Hours: that, and by workers"
    )
    titles = "scan              raw TB  edge  views slices slab GB  read TB  GB/s*    alone"
    print(titles + "".join(f"{workers:>9}" for workers in WORKERS))
    for scan in SCANS:
        rows = result["scans"][scan.name]
        one = rows[0]
        numbers = f"{scan.edge:6}{scan.views:7}{one['slices']:7}{one['slab_gb']:8.3g}{one['read_tb']:9.3g}"
        hours = "".join(f"{value:9.3g}" for value in (one["hours_alone"], *(row["hours"] for row in rows)))
        print(f"{scan.name:16}{scan.raw_bytes / 1e12:8.3g}{numbers}{one['shared_gb_per_s']:7.2g}{hours}")
    print("* read by each worker while it computes")


if __name__ == "__main__":
    main()
