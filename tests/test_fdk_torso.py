"""FDK of a real torso that RTK projected: as close to the truth as RTK's own, of whole, short and one-sided scans."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from benchmarks.rtk_peer import ALLOWED
from benchmarks.torso import SCANS, Torso
from reconstruct import quality
from reconstruct.fdk import fdk
from reconstruct.geometry import ConeBeamGeometry

CHECKOUT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def torso(shared_data: Path) -> Torso:
    return Torso(shared_data)


@pytest.fixture(scope="module")
def integrals(shared_data: Path) -> np.ndarray:
    """Line integrals without noise, stored × 4000."""
    stored = np.load(shared_data / "projections" / "torso_full" / "line_integrals_bin3.npz")
    return stored["p"].astype(np.float32) / 4000


def by_matrices(torso: Torso, views: np.lib.npyio.NpzFile) -> ConeBeamGeometry:
    told = torso.scan
    return ConeBeamGeometry.from_matrices(
        views["projection_matrix"], rows=told["detector_rows"], columns=told["detector_columns"]
    )


def by_numbers(torso: Torso, views: np.lib.npyio.NpzFile, columns: int | None = None) -> ConeBeamGeometry:
    """The first columns of the detector, or all."""
    told = torso.scan
    return ConeBeamGeometry.circular(
        source_to_isocenter_mm=told["source_to_isocenter_mm"],
        source_to_detector_mm=told["source_to_detector_mm"],
        view_angles_rad=np.deg2rad(views["angles_deg"] - 90.0),
        rows=told["detector_rows"],
        columns=columns or told["detector_columns"],
        row_pitch_mm=told["row_pitch_mm"],
        column_pitch_mm=told["column_pitch_mm"],
        principal_point_px=((told["detector_columns"] - 1) / 2, (told["detector_rows"] - 1) / 2),
    )


@pytest.mark.parametrize("described", [by_matrices, by_numbers])
def test_torso_is_as_close_to_the_truth_as_rtk_is(
    torso: Torso, integrals: np.ndarray, shared_data: Path, described: Callable[..., ConeBeamGeometry]
) -> None:
    folder = shared_data / "projections" / "torso_full"
    rtk = np.load(folder / "rtk_fdk_bin3.npz")["mu_per_mm"].astype(np.float32).T
    truth, body = torso.attenuation, torso.body
    assert body.sum() > 50_000

    volume = fdk(integrals, described(torso, np.load(folder / "views.npz")), torso.grid)
    peer = quality.rmse(rtk, truth, body)
    assert peer < 6.8e-4
    assert quality.rmse(volume, truth, body) < ALLOWED * peer
    assert abs(quality.bias(volume, truth, body)) < 2e-5
    assert quality.rmse(volume, rtk, body) < 0.02 * peer  # RTK's is stored in 16 bits
    assert quality.correlation(volume, rtk) > 0.9999
    for axis in range(3):
        assert quality.rmse(np.flip(volume, axis), truth, body) > 3 * peer


@pytest.mark.parametrize(("scan", "rtk_rmse"), [("short", 6.8275e-4), ("offset", 6.7697e-4)])
def test_a_part_of_the_torso_s_scan_is_as_close_as_with_rtk_s_weights(
    torso: Torso, integrals: np.ndarray, shared_data: Path, scan: str, rtk_rmse: float
) -> None:
    """RTK 2.7 has this RMSE of the same line integrals, behind its Parker and displaced-detector filters."""
    part = SCANS[scan]
    columns = round(part.columns_share * integrals.shape[2])
    views = np.load(shared_data / "projections" / "torso_full" / "views.npz")
    geometry = by_numbers(torso, views, columns).select(slice(part.views))
    volume = fdk(integrals[: part.views, :, :columns], geometry, torso.grid)
    assert quality.rmse(volume, torso.attenuation, torso.body) < ALLOWED * rtk_rmse
    assert abs(quality.bias(volume, torso.attenuation, torso.body)) < 2e-5


@pytest.mark.slow(30)
def test_scans_that_rtk_writes_are_read_and_give_its_volumes(shared_data: Path) -> None:
    try:
        importlib.metadata.version("itk-rtk")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("RTK is not installed (pip install itk-rtk)")
    ran = subprocess.run(
        [sys.executable, "benchmarks/torso.py", str(shared_data), "--json"],
        cwd=CHECKOUT, capture_output=True, text=True, timeout=1800, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    rows = {row["scan"]: row for row in json.loads(ran.stdout)["rows"]}
    assert set(rows) == set(SCANS)
    assert rows["full"]["between"] < 1e-7
    assert rows["short"]["between"] < 1e-7
    assert rows["offset"]["between"] < 1e-5  # RTK's weights end half a pixel before ours
