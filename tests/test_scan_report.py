"""The page that shows what a scan needs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from reconstruct.simulate import simulate_scan
from reconstruct.simulated_scanner import Scanner


def folder_of(tmp_path: Path, scanner: Scanner) -> Path:
    folder = tmp_path / "scan"
    folder.mkdir()
    objects = simulate_scan("calibration", views=60, rows=12, columns=48, thresholds_kev=(20.0,), scanner=scanner)
    for number, dataset in enumerate(objects):
        dataset.save_as(folder / f"{number}.dcm", enforce_file_format=True)
    return folder


@pytest.mark.slow
def test_the_page_advises_what_the_scan_needs(tharsis: Callable, tmp_path: Path) -> None:
    scan = folder_of(tmp_path, Scanner(source_drift=0.2, axis_offset_px=1.5))
    told = tharsis("scan-report", str(scan), "--out", str(tmp_path / "out"))
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    for words in ("drift = true", "principal_point = &quot;estimated&quot;", "data:image/png;base64", "stripes"):
        assert words in page
    assert "drift = true" in told.stdout
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {
        "slices.png", "views.png", "sinograms.png", "detector.png",
    }  # fmt: skip


def test_what_is_no_scan_is_named(tharsis: Callable, tmp_path: Path) -> None:
    told = tharsis("scan-report", str(tmp_path), "--out", str(tmp_path / "out"))
    assert told.returncode == 1
    assert "the scan has no instances" in told.stdout + told.stderr
