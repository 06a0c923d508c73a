"""Volumes larger than memory: they are reconstructed within a small budget, or refused before anything is computed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from config.settings import load_settings
from index.archive import Archive
from plugins.worker import Worker
from reconstruct.checkpoint import Checkpoint
from reconstruct.corrections.wanted import Corrections
from reconstruct.pipeline import Parameters, reconstruct_scan
from reconstruct.projections import elements
from reconstruct.projections.p1 import read_p1
from reconstruct.projections.scan import Scan, ScanError
from reconstruct.scan_quality import look_at
from reconstruct.simulate import simulate_scan
from reconstruct.working_memory import NoRoom, file_array

GIB = 1 << 30

_RECONSTRUCT = """
import ctypes, json, os, sys
from dataclasses import replace
from itertools import islice
from pathlib import Path
import numpy as np
from benchmarks.memory import FIELD_MM, reconstruct, status
from reconstruct.checkpoint import Checkpoint
from reconstruct.pipeline import VOLUME, Parameters, reconstruct_scan
from reconstruct.projections.registry import read_scan
from reconstruct.projections.scan import ReconstructionRequest

folder, small, out = map(Path, sys.argv[1:4])
edge, memory_mb = int(sys.argv[4]), int(sys.argv[5])
parameters = Parameters(memory_mb=memory_mb, threads=2)
for budget_mb in (1024, 16):  # what is compiled is no matter of this
    reconstruct(small, out, replace(parameters, memory_mb=budget_mb))()

# The disk of a test has no room for it: the volume is a file with holes, of which one slab is written.
os.posix_fallocate = lambda file, _start, size: os.ftruncate(file, size)
request = ReconstructionRequest(voxel_mm_xyz=(FIELD_MM / edge,) * 3, matrix_xyz=(edge,) * 3)
scan = replace(read_scan(sorted(folder.iterdir())), request=request)
middle = edge // 2
checkpoint = Checkpoint(out, {"work": "large"})
checkpoint.array(1, VOLUME, scan.grid().shape_zyx)
for start, stop in ((0, middle), (middle + 16, edge)):
    checkpoint.part_done(1, VOLUME, start, stop)

ctypes.CDLL(None).malloc_trim(0)
Path("/proc/self/clear_refs").write_text("5")
before, told = status("VmRSS"), []
[series] = islice(reconstruct_scan(scan, parameters, told.append, checkpoint=checkpoint), 1)
slices = [(part.Rows, part.Columns, float(part.ImagePositionPatient[2])) for part in islice(series.instances, 20)]
taken = (status("VmHWM") - before) / 2**20
volume = np.memmap(checkpoint.path(1, VOLUME), np.float32, "r", shape=(edge,) * 3)
body = slice(middle - 64, middle + 64)
print(json.dumps({
    "taken_mb": taken, "slices": series.slices, "first": slices[0], "read": len(slices),
    "middle": float(volume[middle + 8, body, body].mean()), "skipped": float(np.abs(volume[middle - 8]).max()),
    "done": sorted(checkpoint.parts_done(1, VOLUME)), "size": checkpoint.path(1, VOLUME).stat().st_size,
}))
"""


@pytest.mark.slow
def test_a_scan_becomes_2048_cubed_within_256_mib(tmp_path: Path) -> None:
    """From Part 10 files through grid, plan, slabs and checkpoint, which says that most slabs are done, to slices."""
    from benchmarks.memory import FIELD_MM, write_scan

    for size, name in ((1024, "scan"), (48, "small")):
        (tmp_path / name).mkdir()
        write_scan("full", size, 24, tmp_path / name)
    (tmp_path / "out").mkdir()
    folders = [str(tmp_path / name) for name in ("scan", "small", "out")]
    done = subprocess.run(
        [sys.executable, "-c", _RECONSTRUCT, *folders, "2048", "256"],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["taken_mb"] < 256
    assert (found["slices"], found["read"], found["size"]) == (2048, 20, 4 * 2048**3)
    assert found["first"][:2] == [2048, 2048]
    assert found["first"][2] == pytest.approx(-FIELD_MM / 2 * (1 - 1 / 2048), abs=1e-3)
    assert found["middle"] == pytest.approx(0.02, rel=0.1)
    assert found["skipped"] == 0
    assert found["done"] == [[0, 1024], [1024, 1280], [1040, 2048]]


def asking(matrix: list[int]) -> list[Any]:
    objects = simulate_scan("calibration", views=24, rows=16, columns=20, thresholds_kev=(18,), seed=1)
    for dataset in objects:
        elements.put(dataset, RequestedMatrix=matrix)
    return objects


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk of which 100 GiB are free."""
    real = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda path: real(path)._replace(free=100 * GIB))


def refuse_to_read(*_arguments: object, **_keywords: object) -> None:
    raise AssertionError("a view is read")


@pytest.mark.usefixtures("full_disk")
def test_what_the_disk_has_no_room_for_is_told_before_anything_is_computed(
    archive: Archive, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """60,000 slices of 1000²: no file is begun, no view is read, and the job can be run again."""
    for dataset in asking([1000, 1000, 60_000]):
        dataset.save_as(tmp_path / "instance.dcm", enforce_file_format=True)
        archive.ingest((tmp_path / "instance.dcm").read_bytes(), announce=False)
    archive.jobs.push("reconstruct", str(dataset.SeriesInstanceUID))
    monkeypatch.setattr(Scan, "line_integrals", refuse_to_read)
    settings = load_settings(environment={}, overrides={"archive": {"data": archive.data}})
    Worker(archive, settings, "w").run_until_idle()
    [job] = archive.jobs.recent(states=("failed",))
    work = archive.data / "work"
    assert job.error.startswith("expected 223.5 GiB of room on the disk for files in ")
    assert job.error.endswith(", found 100.0 GiB")
    assert not [path for path in work.rglob("*") if path.is_file()]


def test_slices_that_nobody_can_mean_take_neither_memory_nor_time(tmp_path: Path) -> None:
    scan = read_p1(asking([65_535] * 3))
    tracemalloc.start()
    try:
        with pytest.raises(ScanError, match="expected memory to write a slice, 65537 MiB, got 2048 MiB"):
            next(reconstruct_scan(scan, Parameters(), lambda _fraction: None, tmp_path))
        with pytest.raises(ScanError, match="expected memory for a slice of 65535 × 65535 voxels, 16384 MiB, got 2048"):
            look_at(scan, 1, Corrections(), lambda _fraction: None, folder=tmp_path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 32 << 20
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("full_disk")
def test_room_is_taken_for_all_arrays_of_a_bin_or_for_none(tmp_path: Path) -> None:
    checkpoint, large = Checkpoint(tmp_path, {}), (25, 1 << 30)
    with pytest.raises(NoRoom, match=r"^expected 100\.1 GiB of room on the disk"):
        checkpoint.take_room(1, {"integrals": (1, 32 << 20), "volume": large})
    assert list(checkpoint.folder.iterdir()) == []
    checkpoint.take_room(1, {"integrals": (4, 5)})
    assert checkpoint.path(1, "integrals").stat().st_size == 80
    with pytest.raises(NoRoom, match=r"found 100\.0 GiB$"):
        file_array((26, 1 << 30), tmp_path)


def test_a_disk_that_fills_meanwhile_leaves_no_part_of_a_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fill(*_arguments: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "posix_fallocate", fill)
    checkpoint = Checkpoint(tmp_path, {})
    with pytest.raises(NoRoom, match=r"^expected 0\.0 MiB of room on the disk for a file: No space left on device$"):
        checkpoint.array(1, "volume", (4, 5))
    assert list(checkpoint.folder.iterdir()) == []
