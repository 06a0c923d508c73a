"""Whether `memory_mb` holds: what a reconstruction takes, as the operating system measures it.

    python -m benchmarks.memory --sizes 128 256 384 512 768 --views 48

Each reconstruction, from Part 10 files to Part 10 files, runs in a process of its own. That first reconstructs a small
scan of the same kind, so that everything is loaded and compiled; what it takes beyond is compared with the setting: the
most that was resident (VmHWM), pages of mapped files included. With --limit it runs once more, and the system
refuses what exceeds the setting (RLIMIT_DATA).
"""

from __future__ import annotations

import argparse
import ctypes
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset

from reconstruct.corrections.wanted import Corrections
from reconstruct.geometry import ConeBeamGeometry
from reconstruct.phantoms import asymmetric, line_integrals
from reconstruct.pipeline import Parameters, reconstruct_scan
from reconstruct.projections.acquisition import Acquisition, CounterImages
from reconstruct.projections.p1_writer import p1_instances
from reconstruct.projections.registry import read_scan
from reconstruct.projections.scan import CounterKind, EnergyBin, ReconstructionRequest, ScanError

MIB = 1 << 20
FIELD_MM = 256.0
SHORT_SCAN_DEGREES = 220.0
LEAST_MB = 64
"""What the settings of a node allow at least."""

CORRECTED = Corrections(drift=True, rings="combined", unsteady_pixels=8.0)
SCANS = ("full", "short", "offset", "tilted", "stepped", "corrected")

Row = dict[str, Any]


def write_scan(kind: str, size: int, views: int, folder: Path) -> None:
    """Write a scan of a detector of `size`² pixels, whose volume is to have `size`³ voxels, one energy bin."""
    geometry = _geometry(kind, size, views)
    open_beam = 20_000.0
    # The detector sees 1.5 × the field at the isocentre; a body of 0.8 × it leaves air on both sides.
    integrals = line_integrals(asymmetric(FIELD_MM / 2), geometry)
    counts = np.rint(open_beam * np.exp(-integrals)).astype(np.uint16)
    del integrals
    flats = np.random.default_rng(0).poisson(open_beam, (4, *counts.shape[1:])).astype(np.uint16)
    edge = FIELD_MM / size
    request = ReconstructionRequest(voxel_mm_xyz=(edge,) * 3, matrix_xyz=(size,) * 3)
    told = Acquisition(counter_kind=CounterKind.DIFFERENTIAL, request=request)
    header = Dataset()
    header.PatientName, header.PatientID = "Memory^Measured", "MEMORY"
    counter = CounterImages(EnergyBin(1, water_per_cm=0.2), counts, flats)
    for number, dataset in enumerate(p1_instances([counter], geometry, header, told)):
        dataset.save_as(folder / f"{number}.dcm", enforce_file_format=True)


def _geometry(kind: str, size: int, views: int) -> ConeBeamGeometry:
    if kind == "stepped":
        circle, along = _geometry("full", size, views // 2), np.array([0.0, 0.0, FIELD_MM / 4])
        return ConeBeamGeometry(
            np.concatenate([circle.sources - along, circle.sources + along]),
            np.concatenate([circle.detector_centres - along, circle.detector_centres + along]),
            np.tile(circle.column_steps, (2, 1)),
            np.tile(circle.row_steps, (2, 1)),
            circle.rows,
            circle.columns,
        )
    pitch = 1.7 * FIELD_MM / size
    arc = np.deg2rad(SHORT_SCAN_DEGREES) / (views - 1) if kind == "short" else 2 * np.pi / views
    geometry = ConeBeamGeometry.circular(
        source_to_isocenter_mm=1000.0,
        source_to_detector_mm=1500.0,
        view_angles_rad=np.arange(views) * arc,
        rows=size,
        columns=round(0.6 * size) if kind == "offset" else size,
        row_pitch_mm=pitch,
        column_pitch_mm=pitch,
        principal_point_px=((size - 1) / 2, (size - 1) / 2),
    )
    if kind != "tilted":
        return geometry
    angle, radial = 0.03, geometry.sources / geometry.source_to_isocenter_mm[:, None]
    rows = np.cos(angle) * geometry.row_steps + np.sin(angle) * pitch * radial
    return ConeBeamGeometry(
        geometry.sources, geometry.detector_centres, geometry.column_steps, rows, geometry.rows, geometry.columns
    )


def reconstruct(folder: Path, out: Path, parameters: Parameters) -> Callable[[], int]:
    """Read the headers of a scan; return what reconstructs it into files and tells how many there are."""
    scan = read_scan(sorted(folder.iterdir()))

    def run() -> int:
        written = 0
        for series in reconstruct_scan(scan, parameters, lambda _fraction: None, out):
            for instance in series.instances:
                instance.save_as(out / f"{written}.dcm", enforce_file_format=True)
                written += 1
        return written

    return run


def child(folder: Path, small: Path, memory_mb: int, threads: int, *, corrected: bool, limit: bool) -> Row:
    """Measure one reconstruction in this process."""
    corrections = CORRECTED if corrected else Corrections()
    with tempfile.TemporaryDirectory(dir=folder.parent) as out:
        for budget_mb in (1024, 16):  # in memory, and with files
            reconstruct(small, Path(out), Parameters(memory_mb=budget_mb, threads=threads, corrections=corrections))()
        run = reconstruct(folder, Path(out), Parameters(memory_mb=memory_mb, threads=threads, corrections=corrections))
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins here
        before = status("VmRSS")
        if limit:
            allowed = status("VmData") + memory_mb * MIB
            resource.setrlimit(resource.RLIMIT_DATA, (allowed, allowed))
        started = time.perf_counter()
        slices = run()
        return {
            "baseline_mb": before / MIB,
            "taken_mb": (status("VmHWM") - before) / MIB,
            "slices": slices,
            "seconds": time.perf_counter() - started,
        }


def status(name: str) -> int:
    """Return what the system says of this process, bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(f"{name}:")))


def measured(
    folder: Path, small: Path, memory_mb: int, *, threads: int = 0, corrected: bool = False, limit: bool = False
) -> Row:
    """Reconstruct the scan in `folder` in a process of its own, after the one in `small`; return what that took.

    Raises
    ------
    RuntimeError
        It failed; its last line says why.
    """
    command = [sys.executable, "-m", "benchmarks.memory", "--child", str(folder), str(small)]
    command += ["--settings", str(memory_mb), "--threads", str(threads)]
    command += [*(["--corrected"] if corrected else []), *(["--limit"] if limit else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1])
    row: Row = json.loads(done.stdout.splitlines()[-1])
    return row


def settings_for(size: int) -> list[int]:
    """Return a generous setting, a quarter of the volume, and the least of a node, MiB."""
    volume_mb = 4 * size**3 // MIB
    return sorted({4 * volume_mb + 256, max(LEAST_MB // 2, volume_mb // 4), LEAST_MB}, reverse=True)


def measure(
    sizes: Sequence[int], kinds: Sequence[str], *, views: int, settings: list[int], threads: int, limit: bool
) -> list[Row]:
    rows = []
    with tempfile.TemporaryDirectory() as work:
        for kind in kinds:
            for size in sizes:
                folder, small = Path(work) / f"{kind}-{size}", Path(work) / f"{kind}-small"
                for each, edge in ((folder, size), (small, 48)):
                    if not each.exists():
                        each.mkdir()
                        write_scan(kind, edge, views, each)
                for memory_mb in settings or settings_for(size):
                    row: Row = {"scan": kind, "size": size, "memory_mb": memory_mb}
                    try:
                        row |= measured(folder, small, memory_mb, threads=threads, corrected=kind == "corrected")
                        if limit:
                            measured(
                                folder, small, memory_mb, threads=threads, corrected=kind == "corrected", limit=True
                            )
                            row["passes_limit"] = True
                    except RuntimeError as error:
                        row["failed"] = str(error)
                    rows.append(row)
                    show(row)
                for file in folder.iterdir():
                    file.unlink()
    return rows


def show(row: Row) -> None:
    told = f"{row['scan']:10}{row['size']:5}³{4 * row['size'] ** 3 / MIB:8.0f}{row['memory_mb']:10}"
    if "taken_mb" in row:
        held = "yes" if row["taken_mb"] <= row["memory_mb"] else "NO"
        told += f"{row['taken_mb']:10.1f}{held:>6}{row['baseline_mb']:10.0f}{row['seconds']:9.1f}"
        told += f"{'passes' if row.get('passes_limit') else '':>8}"
    print(told + (f"  {row['failed']}" if "failed" in row else ""), file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 256, 384, 512, 768])
    parser.add_argument("--scans", nargs="+", choices=SCANS, default=["full"])
    parser.add_argument("--settings", type=int, nargs="+", default=[], help="memory_mb; default: three for each size")
    parser.add_argument("--views", type=int, default=48)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--limit", action="store_true", help="let the system refuse what exceeds the setting")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", type=Path, nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--corrected", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        folder, small = arguments.child
        told = (folder, small, arguments.settings[0], arguments.threads)
        try:
            print(json.dumps(child(*told, corrected=arguments.corrected, limit=arguments.limit)))
        except (ScanError, MemoryError) as error:
            sys.exit(f"{type(error).__name__}: {error}")
        return
    print("scan       size  volume memory_mb  taken MB holds  baseline  seconds   limit", file=sys.stderr)
    rows = measure(
        arguments.sizes,
        arguments.scans,
        views=arguments.views,
        settings=arguments.settings,
        threads=arguments.threads,
        limit=arguments.limit,
    )
    if arguments.json:
        print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
