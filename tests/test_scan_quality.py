"""The picture of a scan's quality: drawn of what was reconstructed, stored where every viewer finds it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

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
from reconstruct.corrections.stripes import constant_errors
from reconstruct.corrections.wanted import Corrections
from reconstruct.projections.p1 import read_p1
from reconstruct.scan_quality import ScanReport, look_at
from reconstruct.simulate import Identification, simulate_scan
from reconstruct.simulated_positions import Positions
from reconstruct.simulated_scanner import Scanner
from reconstruct.spectral_phantoms import PHANTOMS


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


def judged(phantom: str, scanner: Scanner, **changes: Any) -> ScanReport:
    size = {"views": 60, "rows": 48, "columns": 64, "thresholds_kev": (20.0, 45.0)}
    objects = simulate_scan(phantom, scanner=scanner, **size | changes)
    return look_at(read_p1(objects), 1, Corrections(), lambda _fraction: None)


@pytest.mark.parametrize("phantom", PHANTOMS)
def test_a_scan_without_faults_needs_nothing(phantom: str) -> None:
    """Ribs and teeth are no unsteady pixels, and what is thin, or round about the axis, is no ring."""
    report = judged(phantom, Scanner())
    assert report.advice == ["Nothing: the scan needs no further corrections."]
    assert report.corrections == {}


@pytest.mark.parametrize("phantom", ["mouse-thorax", "mouse-head"])
def test_faults_are_told_from_thin_bones(phantom: str) -> None:
    failing = judged(phantom, Scanner(failing_pixels=40, dead_pixels=0))
    clean = judged(phantom, Scanner(dead_pixels=0))
    found, bones = failing.pictures.unsound == 2, clean.pictures.unsound == 2
    assert failing.advice[0].startswith("Pixels misbehave in the views")
    assert failing.corrections["unsteady_pixels"] == 8.0
    assert 12 < found.sum() <= 40, "the others count nothing in this bin and borrow from their neighbours"
    assert not bones.any()
    changed = judged(phantom, Scanner(gain_change=0.02))
    assert [sentence.partition(",")[0] for sentence in changed.advice] == ["Pixels are off by a constant"]
    assert changed.corrections["rings"] == "combined"
    assert float(changed.facts["stripes in the middle rows"].split()[0]) == pytest.approx(0.02, rel=0.2)


@pytest.mark.parametrize("sparse", [1, 10])
def test_gains_that_change_in_some_pixels_make_rings(sparse: int) -> None:
    """By 2 % in every pixel, or by 4 % in one of ten."""
    random = np.random.default_rng(5)
    integrals = 0.02 * random.standard_normal((90, 40, 80)).astype(np.float32)
    changed = 0.02 * random.standard_normal((40, 80)) * (random.random((40, 80)) < 1 / sparse) * min(sparse, 2)
    sound = np.zeros((40, 80), dtype=bool)
    stripes, chance = constant_errors(integrals + changed.astype(np.float32), sound, 0.0)
    assert stripes == pytest.approx(np.std(changed[15:24]), rel=0.15)
    assert constant_errors(integrals, sound, 0.0) == (pytest.approx(0, abs=0.001), pytest.approx(chance, rel=0.1))


def test_views_that_are_brighter_than_their_flat_fields_are_named_first() -> None:
    scan = read_p1(simulate_scan("plaque", views=24, rows=24, columns=48, thresholds_kev=(20.0,)))
    bright = simulate_scan("plaque", views=24, rows=24, columns=48, thresholds_kev=(20.0,), photons_per_pixel=40_000.0)
    flats = scan.counters[0].flats
    other = read_p1(bright)
    mixed = replace(other, counters=(replace(other.counters[0], flats=flats),))
    first = look_at(mixed, 1, Corrections(), lambda _fraction: None).advice[0]
    share, _, rest = first.partition(" %")
    assert 20 < int(share) < 100
    assert rest == (
        " of the pixels of the views are more than 1.5 times as bright as their flat field: flat fields and views do "
        "not belong together."
    )


def test_a_pixel_that_is_dead_is_not_unsteady_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The figure is what the map shows."""
    everywhere = np.ones((12, 48), dtype=bool)
    monkeypatch.setattr("reconstruct.scan_quality.unsteady_pixels", lambda _integrals, **_how: everywhere.copy())
    report = judged("calibration", Scanner(), views=24, rows=12, columns=48)
    assert int(report.facts["unsteady pixels in the views"]) == np.count_nonzero(report.pictures.unsound == 2)
    assert int(report.facts["dead pixels in the flat fields"]) == np.count_nonzero(report.pictures.unsound == 1) > 0


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
