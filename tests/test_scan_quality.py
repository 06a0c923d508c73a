"""The picture of a scan's quality: drawn of what was reconstructed, stored where every viewer finds it."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from segmented import paths_of, work

from config.settings import Settings, load_settings
from index.archive import Archive
from plugins.embedding import is_picture
from plugins.node import Series
from plugins.pictures import is_drawn
from plugins.scan_quality.drawing import draw
from reconstruct.corrections.wanted import Corrections
from reconstruct.projections.p1 import read_p1
from reconstruct.scan_quality import ScanReport, look_at
from reconstruct.simulate import Identification, simulate_scan
from reconstruct.simulated_positions import Positions
from reconstruct.simulated_scanner import Scanner


def settings(folder: Path, **told: object) -> Settings:
    off = {"enabled": False}
    return load_settings(
        environment={},
        overrides={
            "archive": {"data": folder / "archive"}, "jobs": {"max_attempts": 1}, "segmentation": off,
            "similarity": off, "report": off, "reconstruct": {"voxel_mm": 1.5}, **told,
        },
    )  # fmt: skip


@pytest.fixture(scope="module")
def faulty() -> list[Dataset]:
    """A drifting source, twelve dead pixels, and the axis beside where the scan says; two tiles, two positions."""
    return simulate_scan(
        "calibration", views=60, rows=24, columns=72, thresholds_kev=(20.0, 45.0),
        scanner=Scanner(source_drift=0.2, axis_offset_px=1.5), identification=Identification("Secret^Name", "SECRET-1"),
        positions=Positions(camera_positions=2, axial_mm=(-5.0, 5.0)),
    )  # fmt: skip


@pytest.fixture(scope="module")
def report(faulty: list[Dataset]) -> ScanReport:
    return look_at(read_p1(faulty), 1, Corrections(), lambda _fraction: None)


def store(archive: Archive, objects: list[Dataset]) -> None:
    for dataset in objects:
        buffer = BytesIO()
        dataset.save_as(buffer, enforce_file_format=True)
        archive.ingest(buffer.getvalue())


def test_the_report_tells_of_drift_axis_tiles_and_positions(report: ScanReport) -> None:
    assert float(report.facts["drift of the source"].rstrip(" %")) == pytest.approx(22, abs=2)
    assert report.facts["tiles"] == "2 of 24 × 40 pixels"
    assert report.facts["axial positions"] == "-5.00, 5.00 mm"
    assert int(report.facts["dead pixels in the flat fields"]) == 24, "twelve in each of the camera's two places"
    assert float(report.facts["principal column"].split()[0]) == pytest.approx(37.0, abs=0.2)
    assert {"drift", "principal_point"} <= set(report.corrections)


def test_the_picture_shows_what_the_corrections_change(report: ScanReport) -> None:
    pixels = draw(report, title="Quality", width=1000)
    assert pixels.shape[1:] == (1000, 3)
    assert pixels.dtype == np.uint8
    before, after = report.pictures.view
    assert before.shape == after.shape == (24, 72)
    assert np.abs(before - after).max() > 0.1
    red_or_blue = np.ptp(pixels.astype(int), axis=2) > 60
    third = red_or_blue[:, 670:].mean()
    assert third > 5 * red_or_blue[:600, :640].mean(), "only differences are in colour"


@pytest.mark.slow
def test_a_node_stores_the_picture_in_the_study_of_the_scan(
    archive: Archive,
    tmp_path: Path,
    faulty: list[Dataset],
    validator_errors: Callable[[Path], list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn: list[str] = []
    monkeypatch.setattr("plugins.scan_quality.drawing.draw", lambda told, **how: (drawn.append(how["title"]),
                                                                                draw(told, **how))[1])  # fmt: skip
    store(archive, faulty)
    assert not work(archive, settings(tmp_path))
    (path,) = paths_of(archive, "OT")
    picture = dcmread(path)
    assert not validator_errors(path)
    assert picture.StudyInstanceUID == faulty[0].StudyInstanceUID
    assert picture.PatientID == "SECRET-1"
    assert {item.ReferencedSOPInstanceUID for item in picture.SourceImageSequence} == {
        str(ds.SOPInstanceUID) for ds in faulty
    }
    assert picture.pixel_array.shape == (picture.Rows, 1440, 3)
    assert drawn == ["Quality of the scan: energy bin 1 of 2 (20-45 keV)"], "nothing that names the patient"
    assert is_drawn(picture)
    series = Series(archive, str(picture.SeriesInstanceUID))
    assert not is_picture(series), "it is no case to be found"
    assert not list((archive.data / "work").iterdir())
    # The same again draws nothing; other corrections draw another picture.
    (source,) = {str(ds.SeriesInstanceUID) for ds in faulty}
    archive.jobs.push("scan_quality", source)
    assert not work(archive, settings(tmp_path))
    assert len(drawn) == 1
    archive.jobs.push("scan_quality", source)
    assert not work(archive, settings(tmp_path, corrections={"drift": True}))
    assert len(paths_of(archive, "OT")) == 2


def test_it_can_be_switched_off(archive: Archive, tmp_path: Path) -> None:
    store(archive, simulate_scan("plaque", views=20, rows=8, columns=24, thresholds_kev=(25.0,)))
    assert not work(archive, settings(tmp_path, scan_quality={"enabled": False}))
    assert not paths_of(archive, "OT")
    assert len(paths_of(archive, "CT")) > 1
