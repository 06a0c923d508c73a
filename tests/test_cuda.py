"""The back-projection on a CUDA device: in numba's simulator everywhere, on a device where there is one."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from reconstruct import kernels_cuda
from reconstruct.backprojection import back_projector
from reconstruct.geometry import ConeBeamGeometry, VolumeGrid

PROGRAM = """
    import numpy as np
    from reconstruct.backprojection import back_projector
    from reconstruct.backprojection_cuda import OnCuda
    from reconstruct.fdk import fdk
    from reconstruct.geometry import ConeBeamGeometry, VolumeGrid
    from reconstruct.kernels import PAD_LOW

    def scan(**changes):
        whole = dict(source_to_isocenter_mm=400.0, source_to_detector_mm=600.0,
                     view_angles_rad=np.arange(5) * 2 * np.pi / 5, rows=7, columns=9, row_pitch_mm=9.0,
                     column_pitch_mm=9.0)
        return ConeBeamGeometry.circular(**(whole | changes))

    def turned(base):
        rows = base.row_steps + 0.1 * base.column_steps
        return ConeBeamGeometry(base.sources, base.detector_centres, base.column_steps, rows, base.rows, base.columns)

    random = np.random.default_rng(0)
    for geometry, grid in [
        (scan(), VolumeGrid((6, 7, 9), (6.0, 6.0, 6.0))),
        (turned(scan()), VolumeGrid((5, 9, 7), (6.0, 6.0, 6.0), (3.0, -4.0, 2.0))),
        (scan(principal_point_px=(6.5, 3.0)), VolumeGrid((4, 9, 9), (9.0, 9.0, 9.0))),
        (scan(), VolumeGrid((3, 9, 9), (20.0, 100.0, 100.0))),
    ]:
        projector = back_projector(geometry, grid, "auto")
        assert isinstance(projector, OnCuda), type(projector)
        projections = random.standard_normal((5, 7, geometry.columns)).astype(np.float32)
        here = fdk(projections, geometry, grid, device="cpu")
        there = fdk(projections, geometry, grid, device="cuda")
        np.testing.assert_allclose(there, here, atol=1e-4 * np.abs(here).max())
        parts = fdk(projections, geometry, grid, device="cuda", memory_mb=1)
        np.testing.assert_allclose(parts, here, atol=1e-4 * np.abs(here).max())
    print("the same")
"""

GEOMETRY = ConeBeamGeometry.circular(
    source_to_isocenter_mm=400.0,
    source_to_detector_mm=600.0,
    view_angles_rad=np.arange(5) * 2 * np.pi / 5,
    rows=7,
    columns=9,
    row_pitch_mm=9.0,
    column_pitch_mm=9.0,
)


@pytest.mark.slow
@pytest.mark.parametrize(
    "simulated",
    [
        "1",
        pytest.param(
            "0", marks=pytest.mark.skipif(not kernels_cuda.has_device(), reason="no CUDA device: only the simulator")
        ),
    ],
    ids=["simulator", "device"],
)
def test_a_device_computes_what_the_processor_does(simulated: str) -> None:
    root = Path(__file__).parent.parent
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROGRAM)],
        env={**os.environ, "NUMBA_ENABLE_CUDASIM": simulated, "PYTHONPATH": str(root)},
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.stdout == "the same\n", ended.stderr


@pytest.mark.skipif(kernels_cuda.has_device(), reason="a CUDA device is there")
def test_without_a_device_the_processor_does_it_unless_a_device_is_demanded() -> None:
    grid = VolumeGrid((6, 7, 9), (6.0, 6.0, 6.0))
    assert type(back_projector(GEOMETRY, grid, "auto")) is type(back_projector(GEOMETRY, grid, "cpu"))
    with pytest.raises(ValueError, match="expected a CUDA device with its driver, found none"):
        back_projector(GEOMETRY, grid, "cuda")
