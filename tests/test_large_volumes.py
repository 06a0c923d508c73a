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

import numpy as np
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
