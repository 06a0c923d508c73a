"""Before and after corrections are shown in one window, that of what the slice should be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from commands import scan_report_page
from plugins.scan_quality.window import window_of
from plugins.scan_quality.words import of_corrections, of_window
from reconstruct.corrections.wanted import Corrections
from reconstruct.projections.p1 import read_p1
from reconstruct.scan_quality import ScanReport, look_at
from reconstruct.simulate import simulate_scan
from reconstruct.simulated_scanner import Scanner


def slice_of_water() -> tuple[np.ndarray, np.ndarray]:
    """A cylinder of 0.02 1/mm with noise in the field of view, and rubbish in the corners; which voxels are in view."""
    y, x = np.indices((100, 100)) - 49.5
    in_view = np.hypot(x, y) <= 50
    values = np.where(np.hypot(x, y) <= 30, 0.02, 0.0) + np.random.default_rng(1).normal(0, 0.0005, (100, 100))
    values[~in_view] = 3.0
    return values.astype(np.float32), in_view


def test_the_window_is_that_of_the_field_of_view() -> None:
    values, in_view = slice_of_water()
    low, high = window_of(values, in_view)
    assert -0.005 < low < 0
    assert 0.02 < high < 0.025


def test_single_voxels_do_not_widen_it() -> None:
    values, in_view = slice_of_water()
    expected = window_of(values, in_view)
    values[40:43, 40:43], values[60, 60] = 5.0, -5.0
    assert window_of(values, in_view) == pytest.approx(expected, abs=0.002)


def test_there_is_a_window_of_anything() -> None:
    values, _ = slice_of_water()
    assert window_of(values, np.zeros(values.shape, bool)) == window_of(values)
    assert window_of(np.full((4, 4), 2.0, np.float32)) == (2.0, 3.0)
    assert window_of(np.full((4, 4), np.nan, np.float32)) == (0.0, 1.0)


def test_words() -> None:
    assert of_window((-0.00522, 0.06312), "1/mm") == "−0.0052 to 0.0631 1/mm"
    assert of_window((-1000.0, 1500.0), "HU") == "−1000 to 1500 HU"
    assert of_corrections({"drift": True, "rings": "combined", "unsteady_pixels": 8.0}) == (
        'drift = true, rings = "combined", unsteady_pixels = 8.0'
    )
    assert of_corrections({}) == "none"


@pytest.fixture(scope="module")
def report() -> ScanReport:
    scan = simulate_scan(
        "calibration", views=60, rows=12, columns=48, thresholds_kev=(20.0,),
        scanner=Scanner(source_drift=0.2, axis_offset_px=1.5),
    )  # fmt: skip
    return look_at(read_p1(scan), 1, Corrections(), lambda _fraction: None)


def test_slices_before_and_after_are_shown_in_the_window_of_the_one_after(report: ScanReport, tmp_path: Path) -> None:
    told = report.pictures
    assert told.in_view.shape == told.slice_[1].shape
    assert 0.75 < told.in_view.mean() < 0.85, "the circle in the square"
    drawn = scan_report_page._slices(told)
    windows = [axis.images[0].get_clim() for axis in drawn.axes[:2]]
    assert windows[0] == windows[1] == pytest.approx(window_of(told.slice_[1], told.in_view))
    page = scan_report_page.write_report(report, tmp_path).read_text(encoding="utf-8")
    assert f"shown from {of_window(windows[0], '1/mm')}" in page
    assert "drift = true" in page
