"""A real CT, projected and counted by another projector: stored as P1, read back, reconstructed, compared."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import binary_erosion

from reconstruct.fdk import fdk
from reconstruct.geometry import VolumeGrid
from reconstruct.projections.registry import read_scan
from reconstruct.projections.scan import Scan

WELL_SEEN = slice(8, 32)
"""Slices that every view sees whole."""


@pytest.fixture(scope="module")
def folder(shared_data: Path) -> Path:
    return shared_data / "projections" / "torso_full"


@pytest.fixture(scope="module", params=[False, True], ids=["vectors", "matrices"])
def scan(torso_objects, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Scan:
    out = tmp_path_factory.mktemp("torso")
    for number, dataset in enumerate(torso_objects(with_matrices=request.param)):
        dataset.save_as(out / f"{number}.dcm", enforce_file_format=True)
    return read_scan(sorted(out.iterdir()))


@pytest.mark.slow
@pytest.mark.parametrize("bin_number", [1, 2, 3])
def test_every_bin_shows_the_torso(scan: Scan, folder: Path, bin_number: int) -> None:
    """Water within 3 % in each bin; in the bin whose truth is known, bone within 8 % and a torso the right way round.

    Up to four photons in ten thousand pass the shoulders in the lowest bin: much of it is noise, its means are not.
    """
    assert len(scan.notes) == 1, scan.notes
    truth = np.load(folder / "truth.npz")
    hounsfield = truth["hu"].transpose(2, 1, 0)
    known = truth["mu_per_mm_bin3"].transpose(2, 1, 0) / 1e5
    slices, rows, columns = hounsfield.shape
    integrals = scan.line_integrals(bin_number)
    volume = fdk(integrals, scan.geometry, VolumeGrid((slices, rows, columns), (3.0, 3.0, 3.0)))[WELL_SEEN]
    water = binary_erosion((hounsfield > 0) & (hounsfield < 80))[WELL_SEEN]
    bone = binary_erosion(hounsfield > 300)[WELL_SEEN]
    air = binary_erosion(hounsfield < -900, iterations=2)[WELL_SEEN]
    water_per_cm = scan.bins[bin_number - 1].water_per_cm
    assert water_per_cm is not None
    expected = water_per_cm / 10 * (1 + hounsfield[WELL_SEEN][water].mean() / 1000)
    assert volume[water].mean() == pytest.approx(expected, rel=0.03)
    assert abs(volume[air].mean()) < 0.02 * expected
    assert volume[bone].mean() > 1.4 * volume[water].mean()
    if bin_number == 3:
        assert volume[bone].mean() == pytest.approx(known[WELL_SEEN][bone].mean(), rel=0.08)
        patient = hounsfield[WELL_SEEN] > -500
        error = np.sqrt(np.mean((volume - known[WELL_SEEN])[patient] ** 2))
        for axes in [(0,), (1,), (2,), (1, 2)]:
            flipped = np.flip(volume, axes)
            assert np.sqrt(np.mean((flipped - known[WELL_SEEN])[patient] ** 2)) > 1.3 * error, axes
