"""FDK of an analytic Shepp-Logan head, full circle: seconds, giga-updates/s, memory, error; peers in the same run.

    python benchmarks/fdk.py --size 256 --views 360 --peers rtk,plastimatch

The volume has SIZE³ voxels, the detector SIZE × SIZE pixels. Compare what stands in one table: machines differ. RTK and
Tharsis run in this process, on arrays; plastimatch in its own, on files, which takes some of its time. Seconds are
medians; what takes a minute or more, other than this node, runs once. The exit code is 1 where this node's RMSE is
above RTK's × 1.01. `torso.py` compares errors on a real body.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from scipy import ndimage

from benchmarks import fdk_peers
from benchmarks.rtk_peer import PeerMissing, further_than_rtk
from reconstruct import backprojection
from reconstruct.fdk import fdk
from reconstruct.filtering import Filtering
from reconstruct.geometry import ConeBeamGeometry, VolumeGrid
from reconstruct.kernels_vectors import LANES
from reconstruct.phantoms import line_integrals, shepp_logan, voxelise
from reconstruct.quality import bias, rmse
from reconstruct.redundancy import redundancy

FIELD_MM = 256.0
DETECTOR_MM = 448.0
SOURCE_TO_ISOCENTER_MM = 1000.0
SOURCE_TO_DETECTOR_MM = 1500.0
HEAD_HALF_WIDTH_MM = 125.0
SHORT_SCAN_DEGREES = 200.0
LONG_S = 60.0
"""What takes so long, and is not this node, runs once."""
_LOOK_S = 0.05
"""Between two looks at the memory: more of them would take processor time from what is measured."""

Row = dict[str, Any]


class PeakMemory:
    """Peak resident memory of this process and its children over what they had at the start, MB, in the block."""

    def __enter__(self) -> PeakMemory:
        self._start = self.peak = _resident()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(_LOOK_S):
            self.peak = max(self.peak, _resident())

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()
        self.megabytes = (max(self.peak, _resident()) - self._start) / 1e6


def _resident() -> int:
    """Bytes resident of this process and those that it started."""
    started = (word for task in Path("/proc/self/task").iterdir() for word in _words(task / "children"))
    pages = sum(int(_words(Path("/proc", process, "statm"), "0 0")[1]) for process in ("self", *started))
    return pages * os.sysconf("SC_PAGE_SIZE")


def _words(file: Path, ended: str = "") -> list[str]:
    """What a file of the system says; `ended` of a process or thread that has."""
    try:
        return (file.read_text(encoding="ascii") or ended).split()
    except (FileNotFoundError, ProcessLookupError):
        return ended.split()


class Problem:
    """The scan, the grid, and where the truth is smooth enough to be compared with."""

    def __init__(self, size: int, views: int, scan: str = "full") -> None:
        self.pitch = pitch = DETECTOR_MM / size
        self.principal_column = (size - 1) / 2
        self.scan = scan
        arc = np.deg2rad(SHORT_SCAN_DEGREES) / (views - 1) if scan == "short" else 2 * np.pi / views
        self.geometry = ConeBeamGeometry.circular(
            source_to_isocenter_mm=SOURCE_TO_ISOCENTER_MM,
            source_to_detector_mm=SOURCE_TO_DETECTOR_MM,
            view_angles_rad=np.arange(views) * arc,
            rows=size,
            columns=round(0.6 * size) if scan == "offset" else size,
            row_pitch_mm=pitch,
            column_pitch_mm=pitch,
            principal_point_px=(self.principal_column, (size - 1) / 2),
        )
        self.measured = redundancy(self.geometry)
        self.symmetric = self.geometry.extended(*self.measured.missing_columns)
        self.source_to_isocenter_mm, self.source_to_detector_mm = SOURCE_TO_ISOCENTER_MM, SOURCE_TO_DETECTOR_MM
        self.grid = VolumeGrid((size,) * 3, (FIELD_MM / size,) * 3)
        head = shepp_logan(HEAD_HALF_WIDTH_MM, skull_per_mm=1.0)
        self.projections = line_integrals(head, self.geometry)
        self.truth = voxelise(head, self.grid, supersampling=3)
        # Inside the head, three voxels from every edge, where the cone is not steep.
        flat = ndimage.maximum_filter(self.truth, 7) - ndimage.minimum_filter(self.truth, 7) < 1e-6
        self.inside = flat & (self.truth > 0.05) & (np.abs(self.grid.z_mm) < FIELD_MM / 4)[:, None, None]
        self.updates = size**3 * views

    def judged(self, name: str, run: Callable[[], np.ndarray], repeats: int) -> Row:
        """Run, and return the median time, the memory taken and the error."""
        seconds: list[float] = []
        while runs_again(seconds, repeats, is_peer=not name.startswith("tharsis")):
            with PeakMemory() as memory:
                start = time.perf_counter()
                volume = run()
                seconds.append(time.perf_counter() - start)
        if name.startswith("plastimatch"):
            volume = fdk_peers.fitted(volume, self.truth, self.inside)
        return {
            "name": name,
            "seconds": statistics.median(seconds),
            "best_s": min(seconds),
            "runs": len(seconds),
            "gups": self.updates / statistics.median(seconds) / 1e9,
            "peak_mb": memory.megabytes,
            "rmse": rmse(volume, self.truth, self.inside),
            "bias": bias(volume, self.truth, self.inside),
        }


def runs_again(seconds: list[float], repeats: int, *, is_peer: bool) -> bool:
    """Whether what took so long is not yet measured often enough."""
    return len(seconds) < repeats and not (is_peer and max(seconds, default=0.0) >= LONG_S)


def filter_seconds(problem: Problem) -> float:
    """Weighting and filtering alone, in batches as `fdk` does it, into what the back-projection reads."""
    geometry = problem.geometry
    filtering = Filtering(geometry, problem.symmetric, problem.measured, "ram-lak", 1.0)
    projector = backprojection.back_projector(problem.symmetric, problem.grid)
    buffer = projector.allocate(geometry.views)
    start = time.perf_counter()
    for first in range(0, geometry.views, 32):
        views = slice(first, min(first + 32, geometry.views))
        filtering.store(problem.projections[views], views, projector, buffer[views], os.cpu_count() or 1)
    return time.perf_counter() - start


def backprojections(problem: Problem, repeats: int) -> dict[str, Row]:
    """Measure each kernel alone: median seconds, giga-updates/s, and whether it is the one that `fdk` takes here."""
    kinds = {
        "rows along axis, vectors": backprojection.RowsAlongAxisInVectors,
        "rows along axis": backprojection.RowsAlongAxis,
        "any geometry, vectors": backprojection.AnyGeometryInVectors,
        "any geometry": backprojection.AnyGeometry,
    }
    taken = type(backprojection.back_projector(problem.symmetric, problem.grid))
    measured: dict[str, Row] = {}
    for name, kind in kinds.items():
        if "vectors" in name and not LANES:
            continue
        seconds: list[float] = []
        while runs_again(seconds, repeats, is_peer=kind is not taken):
            seconds.append(backprojection_seconds(problem, kind))
        median = statistics.median(seconds)
        measured[name] = {"seconds": median, "gups": problem.updates / median / 1e9, "taken": kind is taken}
    return measured


def backprojection_seconds(problem: Problem, kind: Callable[..., backprojection.BackProjector]) -> float:
    """Back-projection alone, all views at once, of the columns that `fdk` back-projects."""
    geometry = problem.symmetric
    projector = kind(geometry, problem.grid)
    buffer = projector.allocate(geometry.views)
    buffer[:] = np.random.default_rng(0).standard_normal(buffer.shape[1:], dtype=np.float32)
    slab = np.zeros(problem.grid.shape_zyx, np.float32)
    views = slice(0, geometry.views)
    start = time.perf_counter()
    work = projector.begin(slab)
    projector.add(buffer, views, work, 0)
    projector.finish(work, slice(None), slab)
    return time.perf_counter() - start


def with_any_geometry(problem: Problem) -> np.ndarray:
    """Reconstruct as if rows did not step along the axis."""
    kind = backprojection.AnyGeometryInVectors if LANES else backprojection.AnyGeometry
    with mock.patch("reconstruct.fdk.back_projector", lambda geometry, grid, _device: kind(geometry, grid)):
        return fdk(problem.projections, problem.geometry, problem.grid)


def measure(size: int, views: int, scan: str, peers: list[str], repeats: int) -> Row:
    problem = Problem(size, views, scan)
    first = time.perf_counter()
    fdk(problem.projections, problem.geometry, problem.grid)
    result: Row = {
        "size": size,
        "views": views,
        "scan": scan,
        "cpus": os.cpu_count(),
        "first_call_s": time.perf_counter() - first,
        "vector_lanes": LANES,
        "rows": [
            problem.judged("tharsis", lambda: fdk(problem.projections, problem.geometry, problem.grid), repeats),
            problem.judged("tharsis, any geometry", lambda: with_any_geometry(problem), repeats),
        ],
        "filter_s": statistics.median(filter_seconds(problem) for _ in range(repeats)),
        "backprojections": (kernels := backprojections(problem, repeats)),
        "backprojection_s": next(row["seconds"] for row in kernels.values() if row["taken"]),
        "not_run": [],
    }
    for peer in peers:
        try:
            name, run = fdk_peers.PEERS[peer](problem)
        except PeerMissing as missing:
            result["not_run"].append(str(missing))
            continue
        row = problem.judged(name, run, repeats)
        row["times_slower"] = row["seconds"] / result["rows"][0]["seconds"]
        row["times_slower_than_any_geometry"] = row["seconds"] / result["rows"][1]["seconds"]
        result["rows"].append(row)
    return result


def show(result: Row) -> None:
    print(f"{result['size']}³ voxels, {result['views']} views, {result['scan']} scan, {result['cpus']} cores")
    parts = f"filter {result['filter_s']:.3f} s, back-projection {result['backprojection_s']:.3f} s"
    print(f"first call {result['first_call_s']:.2f} s, {parts}")
    for name, row in result["backprojections"].items():
        print(f"back-projection, {name}: {row['seconds']:.3f} s, {row['gups']:.2f} giga-updates/s")
    heads = f"{'':22}{'whole s':>9}{'runs':>6}{'GUPS':>8}{'peak MB':>9}{'RMSE':>10}{'bias':>11}"
    print(f"{heads}{'× slower':>10}{'than any':>10}")
    for row in result["rows"]:
        slower = "".join(
            f"{row[key]:10.1f}" for key in ("times_slower", "times_slower_than_any_geometry") if key in row
        )
        print(
            f"{row['name']:22}{row['seconds']:9.3f}{row['runs']:6}{row['gups']:8.2f}{row['peak_mb']:9.0f}"
            f"{row['rmse']:10.5f}{row['bias']:11.1e}{slower}"
        )
    for line in result["not_run"]:
        print(line)


def further(result: Row) -> list[str]:
    """Return a sentence for each row of this node whose RMSE is above what RTK's allows."""
    own = [row for row in result["rows"] if row["name"].startswith("tharsis")]
    theirs = [row["rmse"] for row in result["rows"] if row["name"].startswith("rtk")]
    return [line for row in own for rmse in theirs for line in further_than_rtk(row["name"], row["rmse"], rmse)]


def _peers(names: str) -> list[str]:
    wanted = [name for name in names.split(",") if name]
    if unknown := [name for name in wanted if name not in fdk_peers.PEERS]:
        raise argparse.ArgumentTypeError(f"expected peers of {', '.join(fdk_peers.PEERS)}, got {', '.join(unknown)}")
    return wanted


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", type=int, default=256, help="voxels and pixels along each side")
    parser.add_argument("--views", type=int, default=360)
    parser.add_argument("--scan", choices=["full", "short", "offset"], default="full")
    parser.add_argument("--repeats", type=int, default=5, help="the median counts; five at least to be quoted")
    parser.add_argument("--peers", type=_peers, default=[], help=f"of {', '.join(fdk_peers.PEERS)}, by commas")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    result = measure(arguments.size, arguments.views, arguments.scan, arguments.peers, arguments.repeats)
    if arguments.json:
        print(json.dumps(result, indent=1))
    else:
        show(result)
    sys.exit("\n".join(further(result)) or None)


if __name__ == "__main__":
    main()
