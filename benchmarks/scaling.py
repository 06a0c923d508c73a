"""What reconstructions of the sizes that we plan for take, from rates measured on this machine.

    python -m benchmarks.scaling --size 256

Measures filtering, back-projection and writing, and works out hours, bytes and memory for scans of 12 GB to 150 TB by
number of workers.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.fdk import Problem, backprojection_seconds, filter_seconds
from reconstruct.backprojection import RowsAlongAxis, RowsAlongAxisInVectors
from reconstruct.geometry import ConeBeamGeometry, VolumeGrid
from reconstruct.kernels_vectors import LANES
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
    return {"updates_per_s": problem.updates / adding, "pixels_per_s": views * edge**2 / filtering, **_disk()}


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


def planned(scan: Scan, measured: dict[str, float], workers: int, worker_gb: float) -> dict[str, float]:
    """What `scan` takes on that many machines like this one, with memory of `worker_gb` each."""
    slices = int(min(scan.edge / 8, worker_gb * 1e9 / 2 / (4 * scan.edge**2)) // 16 * 16) or 16
    plan = Plan(geometry(scan.edge, 36), VolumeGrid((scan.edge,) * 3, (256.0 / scan.edge,) * 3))
    starts = range(0, scan.edge, slices)
    # Some slabs stand for all: the band grows smoothly from the middle to the ends.
    slabs = [plan.slab(start, min(start + slices, scan.edge)) for start in starts[:: max(1, len(starts) // 16)]]
    bands = float(np.mean([slab.end_row - slab.first_row for slab in slabs])) * len(starts) / scan.edge
    seconds = scan.updates / measured["updates_per_s"] + bands * scan.pixels / measured["pixels_per_s"]
    return {
        "workers": workers,
        "hours": seconds / 3600 / workers,
        "slices": slices,
        "bands": bands,
        "read_tb": 4 * bands * scan.pixels / 1e12,
        "written_tb": scan.bins * scan.volume_bytes / 1e12,
        "slab_gb": 4 * slices * scan.edge**2 / 1e9,
        "shared_gb_per_s": 4 * bands * scan.pixels / 1e9 / (seconds / workers),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", type=int, default=256, help="voxels and pixels along each side of what is measured")
    parser.add_argument("--views", type=int, default=360)
    parser.add_argument("--worker-gb", type=float, default=64.0, help="memory of a worker")
    parser.add_argument("--repeats", type=int, default=3, help="the best counts")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    measured = rates(arguments.size, arguments.views, arguments.repeats)
    result = {"measured": measured, "scans": {}}
    for scan in SCANS:
        result["scans"][scan.name] = [planned(scan, measured, workers, arguments.worker_gb) for workers in WORKERS]
    if arguments.json:
        print(json.dumps(result, indent=1))
        return
    print(
        f"{measured['updates_per_s'] / 1e9:.1f} giga-updates/s, {measured['pixels_per_s'] / 1e6:.0f} megapixels/s, "
        f"{measured['write_bytes_per_s'] / 1e6:.0f} MB/s written and flushed; hours by number of workers"
    )
    print("scan              raw TB  edge  views slices slab GB  read TB  GB/s*" + "".join(f"{w:>9}" for w in WORKERS))
    for scan in SCANS:
        rows = result["scans"][scan.name]
        one = rows[0]
        numbers = f"{scan.edge:6}{scan.views:7}{one['slices']:7}{one['slab_gb']:8.3g}{one['read_tb']:9.3g}"
        hours = "".join(f"{row['hours']:9.3g}" for row in rows)
        print(f"{scan.name:16}{scan.raw_bytes / 1e12:8.3g}{numbers}{one['shared_gb_per_s']:7.2g}{hours}")
    print("* read by each worker while it computes")


if __name__ == "__main__":
    main()
