"""FDK of an analytic Shepp-Logan head, full circle: seconds, giga-updates/s, memory, error; peers in the same run.

    python benchmarks/fdk.py --size 256 --views 360 --peers rtk

The volume has SIZE³ voxels, the detector SIZE × SIZE pixels. Compare what stands in one table: machines differ.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from reconstruct import backprojection
from reconstruct.fdk import fdk
from reconstruct.filters import filter_rows, frequency_response, padded_size
from reconstruct.geometry import ConeBeamGeometry, VolumeGrid
from reconstruct.kernels import weigh
from reconstruct.phantoms import line_integrals, shepp_logan, voxelise
from reconstruct.quality import bias, rmse
from reconstruct.redundancy import redundancy
from reconstruct.weights import view_factors

FIELD_MM = 256.0
DETECTOR_MM = 448.0
SOURCE_TO_ISOCENTER_MM = 1000.0
SOURCE_TO_DETECTOR_MM = 1500.0
HEAD_HALF_WIDTH_MM = 125.0
SHORT_SCAN_DEGREES = 200.0

Row = dict[str, Any]


class PeakMemory:
    """Peak resident memory of this process over what it had at the start, MB, while the block runs."""

    def __enter__(self) -> PeakMemory:
        self._start = self.peak = _resident()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.005):
            self.peak = max(self.peak, _resident())

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()
        self.megabytes = (max(self.peak, _resident()) - self._start) / 1e6


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


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
        self.grid = VolumeGrid((size,) * 3, (FIELD_MM / size,) * 3)
        head = shepp_logan(HEAD_HALF_WIDTH_MM, skull_per_mm=1.0)
        self.projections = line_integrals(head, self.geometry)
        self.truth = voxelise(head, self.grid, supersampling=3)
        # Inside the head, three voxels from every edge, where the cone is not steep.
        flat = ndimage.maximum_filter(self.truth, 7) - ndimage.minimum_filter(self.truth, 7) < 1e-6
        self.inside = flat & (self.truth > 0.05) & (np.abs(self.grid.z_mm) < FIELD_MM / 4)[:, None, None]
        self.updates = size**3 * views

    def judged(self, name: str, run: Callable[[], np.ndarray], repeats: int) -> Row:
        """Run, and return the best time, the memory taken and the error."""
        seconds = []
        for _ in range(repeats):
            with PeakMemory() as memory:
                start = time.perf_counter()
                volume = run()
                seconds.append(time.perf_counter() - start)
        return {
            "name": name,
            "seconds": min(seconds),
            "gups": self.updates / min(seconds) / 1e9,
            "peak_mb": memory.megabytes,
            "rmse": rmse(volume, self.truth, self.inside),
            "bias": bias(volume, self.truth, self.inside),
        }


def filter_seconds(problem: Problem) -> float:
    """Weighting and filtering alone, in batches as `fdk` does it."""
    geometry, columns = problem.geometry, problem.geometry.columns
    response = frequency_response(columns, "ram-lak", 1.0)
    measured = redundancy(geometry)
    factors, firsts = view_factors(geometry, measured.arc.shares_rad), geometry.first_pixels()
    start = time.perf_counter()
    for first in range(0, geometry.views, 32):
        v = slice(first, min(first + 32, geometry.views))
        padded = np.empty((v.stop - first, geometry.rows, padded_size(columns)), np.float32)
        weigh(
            problem.projections[v], factors[v], measured.weights(v), 0, geometry.sources[v], firsts[v],
            geometry.column_steps[v], geometry.row_steps[v], padded,
        )
        filter_rows(padded, response, os.cpu_count() or 1)
    return time.perf_counter() - start


def backprojection_seconds(problem: Problem, kind: Callable[..., backprojection.BackProjector]) -> float:
    """Back-projection alone, all views at once."""
    geometry = problem.geometry
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


def rtk_volume(problem: Problem) -> Callable[[], np.ndarray]:
    """Return the same reconstruction by RTK's FDKConeBeamReconstructionFilter.

    RTK's axes (X, Y, Z) are our (y, z, x), its Y being the rotation axis.
    """
    import itk
    from itk import RTK as rtk  # noqa: N811 - the name its documentation uses

    geometry = rtk.ThreeDCircularProjectionGeometry.New()
    for angle in problem.geometry.view_angles_rad:
        geometry.AddProjection(SOURCE_TO_ISOCENTER_MM, SOURCE_TO_DETECTOR_MM, float(np.rad2deg(angle)), 0, 0)
    size, pitch = problem.geometry.rows, problem.pitch
    projections = itk.image_from_array(problem.projections)
    projections.SetSpacing([pitch, pitch, 1.0])
    projections.SetOrigin([-problem.principal_column * pitch, -(size - 1) / 2 * pitch, 0.0])
    image = itk.Image[itk.F, 3]
    weighting = {"full": [], "short": [rtk.ParkerShortScanImageFilter], "offset": [rtk.DisplacedDetectorImageFilter]}

    def run() -> np.ndarray:
        source = rtk.ConstantImageSource[image].New()
        edge = problem.grid.voxel_mm_zyx[0]
        source.SetOrigin([-(size - 1) / 2 * edge] * 3)
        source.SetSpacing([edge] * 3)
        source.SetSize([size] * 3)
        filter_ = rtk.FDKConeBeamReconstructionFilter[image].New()
        filter_.SetInput(0, source.GetOutput())
        weighted = projections
        for kind in weighting[problem.scan]:
            weight = kind[image].New()
            weight.SetInput(weighted)
            weight.SetGeometry(geometry)
            weight.InPlaceOff()
            weight.Update()
            weighted = weight.GetOutput()
        filter_.SetInput(1, weighted)
        filter_.SetGeometry(geometry)
        filter_.Update()
        return itk.array_from_image(filter_.GetOutput()).transpose(1, 2, 0)

    return run


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
        "rows": [
            problem.judged("tharsis", lambda: fdk(problem.projections, problem.geometry, problem.grid), repeats)
        ],
        "filter_s": min(filter_seconds(problem) for _ in range(repeats)),
        "backprojection_gups": {
            name: problem.updates / min(backprojection_seconds(problem, kind) for _ in range(repeats)) / 1e9
            for name, kind in (
                ("rows along axis, vectors", backprojection.RowsAlongAxisInVectors),
                ("rows along axis", backprojection.RowsAlongAxis),
                ("any geometry", backprojection.AnyGeometry),
            )
        },
        "not_run": [],
    }
    for peer in peers:
        if next(importlib.metadata.distributions(name=f"itk-{peer}"), None) is not None:
            row = problem.judged(f"rtk {importlib.metadata.version('itk-rtk')}", rtk_volume(problem), 1)
            row["times_slower"] = row["seconds"] / result["rows"][0]["seconds"]
            result["rows"].append(row)
        else:
            result["not_run"].append(f"{peer}: not installed (pip install itk-{peer})")
    return result


def show(result: Row) -> None:
    print(f"{result['size']}³ voxels, {result['views']} views, {result['scan']} scan, {result['cpus']} cores")
    print(f"first call {result['first_call_s']:.2f} s, filter {result['filter_s']:.3f} s")
    for name, gups in result["backprojection_gups"].items():
        print(f"back-projection, {name}: {gups:.2f} giga-updates/s")
    print(f"{'':12}{'whole s':>9}{'GUPS':>8}{'peak MB':>9}{'RMSE':>10}{'bias':>11}{'× slower':>10}")
    for row in result["rows"]:
        slower = f"{row['times_slower']:.1f}" if "times_slower" in row else ""
        print(
            f"{row['name']:12}{row['seconds']:9.3f}{row['gups']:8.2f}{row['peak_mb']:9.0f}{row['rmse']:10.5f}"
            f"{row['bias']:11.1e}{slower:>10}"
        )
    for line in result["not_run"]:
        print(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", type=int, default=256, help="voxels and pixels along each side")
    parser.add_argument("--views", type=int, default=360)
    parser.add_argument("--scan", choices=["full", "short", "offset"], default="full")
    parser.add_argument("--repeats", type=int, default=3, help="the best counts")
    parser.add_argument("--peers", nargs="*", choices=["rtk"], default=[])
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    result = measure(arguments.size, arguments.views, arguments.scan, arguments.peers, arguments.repeats)
    if arguments.json:
        print(json.dumps(result, indent=1))
    else:
        show(result)


if __name__ == "__main__":
    main()
