"""Whether `memory_mb` holds, measured by the operating system in processes of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.memory import measured, write_scan
from reconstruct.backprojection import back_projector
from reconstruct.blocks import Mapped, blocks_of
from reconstruct.corrections.memory import preparing_bytes, sinograms_at_once
from reconstruct.corrections.wanted import Corrections
from reconstruct.geometry import ConeBeamGeometry, VolumeGrid
from reconstruct.projections.p1 import read_p1
from reconstruct.simulate import simulate_scan
from reconstruct.slabs import Plan
from reconstruct.working_memory import file_array, is_mapped, pieces, release

LARGE = 2048


def large_plan(views: int) -> Plan:
    """A volume of 2048³ from a detector of 2048²."""
    geometry = ConeBeamGeometry.circular(
        source_to_isocenter_mm=1000.0,
        source_to_detector_mm=1500.0,
        view_angles_rad=np.arange(views) * 2 * np.pi / views,
        rows=LARGE,
        columns=LARGE,
        row_pitch_mm=384 / LARGE,
        column_pitch_mm=384 / LARGE,
    )
    return Plan(geometry, VolumeGrid((LARGE,) * 3, (200 / LARGE,) * 3))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["full", "stepped", "corrected"])
def test_no_more_is_taken_than_the_setting_says(kind: str, tmp_path: Path) -> None:
    """A volume of 28 MiB within 20 MiB, from Part 10 files to Part 10 files, and the system refuses more."""
    for edge, name in ((192, "scan"), (48, "small")):
        (tmp_path / name).mkdir()
        write_scan(kind, edge, 24, tmp_path / name)
    found = measured(
        tmp_path / "scan", tmp_path / "small", 20, threads=2, corrected=kind == "corrected", limit=True
    )
    assert found["slices"] == 192
    assert found["taken_mb"] < 20


_SLABS = """
import sys
from pathlib import Path
import numpy as np
from benchmarks.memory import status
from reconstruct.phantoms import asymmetric, line_integrals
from reconstruct.working_memory import return_freed_memory
from tests.test_memory import LARGE, large_plan
import json
folder, memory_mb, views = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
return_freed_memory()
plan = large_plan(views)
slab, outermost = plan.slab(LARGE // 2, LARGE // 2 + 16), plan.slab(0, 16)
body = asymmetric(100.0)
shape = (views, LARGE, LARGE)
integrals = np.memmap(folder / "integrals", np.float32, "w+", shape=shape)
for view in range(views):
    seen = plan.geometry.select(slice(view, view + 1)).band(slab.first_row, slab.end_row)
    integrals[view, slab.rows] = line_integrals(body, seen)[0]
volume = np.memmap(folder / "volume", np.float32, "w+", shape=plan.grid.shape_zyx)
measured = plan.measured()
for small in (plan.slab(0, 1), plan.slab(LARGE // 2, LARGE // 2 + 1)):  # what is compiled is no matter of this
    plan.reconstruct(integrals, small, measured=measured, memory_mb=memory_mb, threads=2, out=volume[small.slices])
Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS")
for each in (outermost, slab):
    plan.reconstruct(integrals, each, measured=measured, memory_mb=memory_mb, threads=2, out=volume[each.slices])
taken = (status("VmHWM") - before) / 2**20
middle = volume[(slab.start + slab.stop) // 2, 960:1088, 960:1088]
print(json.dumps({"taken_mb": taken, "middle": float(middle.mean())}))
"""


@pytest.mark.slow
def test_slabs_of_a_volume_of_2048_cubed_fit_into_256_mib(tmp_path: Path) -> None:
    """32 GiB of volume: a file with holes, of which two thin slabs are written; of the views their rows are there."""
    done = subprocess.run(
        [sys.executable, "-c", _SLABS, str(tmp_path), "256", "24"],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["taken_mb"] < 256
    assert found["middle"] == pytest.approx(0.02, rel=0.1)
    assert (tmp_path / "volume").stat().st_size == 4 * LARGE**3


@pytest.mark.parametrize("memory_mb", [256, 1024, 16384])
def test_a_plan_for_2048_cubed_writes_every_voxel_once(memory_mb: int) -> None:
    plan = large_plan(360)
    slabs = plan.slabs(memory_mb)
    assert slabs[-1].stop == LARGE
    slab = slabs[0]
    geometry, grid = plan.geometry.band(slab.first_row, slab.end_row), plan.grid.slab(slab.start, slab.stop)
    projector = back_projector(geometry, grid)
    blocks = blocks_of(geometry, geometry, grid, projector, memory_mb, Mapped(True, True))
    held = projector.view_bytes * blocks.views
    assert held < memory_mb << 20
    if memory_mb > 256:
        assert blocks.writes_once(geometry.views, grid)


def test_pieces_of_a_map_are_released_and_keep_what_was_written(tmp_path: Path) -> None:
    array = file_array((64, 256, 256), tmp_path)
    assert is_mapped(array)
    assert is_mapped(np.asarray(array)[3:5, 7])
    assert not is_mapped(np.zeros(3))
    for number, part in enumerate(pieces(array)):
        part[...] = number
    release(array[3, 4])
    assert array[0].max() == 0
    assert array[-1].min() == 15


def test_pages_that_changes_are_lost_with_are_not_released(tmp_path: Path) -> None:
    np.zeros(4096, np.float32).tofile(tmp_path / "file")
    array = np.memmap(tmp_path / "file", np.float32, "c")
    array[:] = 5
    assert not is_mapped(array)
    release(array)
    assert array.min() == 5


def test_fewer_sinograms_are_held_where_memory_is_short() -> None:
    scan = read_p1(simulate_scan("calibration", views=600, rows=8, columns=200, thresholds_kev=(20.0,), seed=1))
    wanted = Corrections(rings="combined")
    enough = preparing_bytes(scan, wanted, 8)
    assert preparing_bytes(scan, wanted, 1) < enough
    assert sinograms_at_once(scan, wanted, enough) == 8
    assert sinograms_at_once(scan, wanted, enough - 1) < 8
    assert sinograms_at_once(scan, wanted, 0) == 1
