"""Whose scan an imported one is: a study keeps its patient, and no element gets what it cannot hold."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
import tifffile
from typer.testing import CliRunner

from index.archive import Archive
from tharsis import app

STUDY = "1.2.3.4.5"


def write(path: Path, value: int, *, images: bool = True) -> Path:
    """Write a scan of that pixel value."""
    if images:
        tifffile.imwrite(path.with_suffix(".tif"), np.full((6, 4, 5), value, np.uint16), photometric="minisblack")
    path.write_text(json.dumps({
        "projections": path.with_suffix(".tif").name, "angles_deg": {"first": 0, "step": 60}, "pitch_mm": 0.5,
        "source_to_isocentre_mm": 200, "source_to_detector_mm": 320, "unattenuated": 50000,
    }))  # fmt: skip
    return path


@pytest.fixture
def bring_in(tmp_path: Path) -> Callable[..., str]:
    """Import a scan into the archive of the test, and return what was said."""

    def run(file: Path, *options: str, code: int = 0) -> str:
        told = CliRunner().invoke(app, ["import-scan", str(file), "--data", str(tmp_path / "data"), *options])
        assert told.exit_code == code, told.output
        return " ".join(told.output.split())

    return run


def headers(tmp_path: Path) -> list[pydicom.Dataset]:
    files = (tmp_path / "data" / "files").rglob("*.dcm")
    return [pydicom.dcmread(path, stop_before_pixels=True) for path in files]


@pytest.fixture
def study(tmp_path: Path, bring_in: Callable[..., str]) -> None:
    options = ("--patient-id", "MOUSE-1", "--patient-name", "One^Mouse", "--accession-number", "A1")
    bring_in(write(tmp_path / "a.json", 1000), "--study-uid", STUDY, *options, "--study-description", "Bones")


@pytest.mark.usefixtures("study")
@pytest.mark.parametrize("options", [(), ("--patient-id", "MOUSE-1"), ("--patient-name", "one^mouse")])
def test_a_scan_that_is_added_to_a_study_is_of_its_patient(tmp_path, bring_in, options):
    second = write(tmp_path / "b.json", 2000)
    assert "views stored" in bring_in(second, "--study-uid", STUDY, *options)
    found = headers(tmp_path)
    assert len({header.SeriesInstanceUID for header in found}) == 2
    for header in found:
        told = (header.PatientID, header.StudyInstanceUID, header.AccessionNumber, header.StudyDescription)
        assert told == ("MOUSE-1", STUDY, "A1", "Bones")
        assert str(header.PatientName).lower() == "one^mouse"
    assert "is stored already" in bring_in(second, "--study-uid", STUDY, *options)


@pytest.mark.usefixtures("study")
@pytest.mark.parametrize("option", [("--patient-id", "MOUSE-2"), ("--patient-name", "Two^Mouse")])
def test_a_scan_of_another_patient_is_refused(tmp_path, bring_in, option):
    said = bring_in(write(tmp_path / "b.json", 2000), "--study-uid", STUDY, *option, code=1)
    assert f"study {STUDY} is of the patient" in said
    assert f"{option[0]} is '{option[1]}'" in said
    assert {header.PatientID for header in headers(tmp_path)} == {"MOUSE-1"}


def test_a_study_without_a_patient_id_keeps_having_none(tmp_path, bring_in):
    bring_in(write(tmp_path / "a.json", 1000), "--out", str(tmp_path / "out"), "--study-uid", STUDY)
    archive = Archive(tmp_path / "data")
    for path in (tmp_path / "out").iterdir():
        dataset = pydicom.dcmread(path)
        dataset.PatientID = ""
        dataset.save_as(path)
        archive.ingest(path.read_bytes())
    archive.close()
    bring_in(write(tmp_path / "b.json", 2000), "--study-uid", STUDY)
    assert [(header.PatientID, str(header.PatientName)) for header in headers(tmp_path)] == [("", "a")] * 2
    assert "is of the patient ''" in bring_in(tmp_path / "b.json", "--study-uid", STUDY, "--patient-id", "B", code=1)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--study-uid", "not.a.uid"), "--study-uid is 'not.a.uid', expected a UID"),
        (("--study-uid", "1." + "2" * 63), "expected a UID"),
        (("--patient-id", "A\\B"), "expected no backslash"),
        (("--patient-id", "A\nB"), "no control characters"),
        (("--patient-id", "x" * 65), "65 characters long, expected at most 64"),
        (("--patient-name", "A^B^C^D^E^F"), "5 components"),
        (("--patient-name", "A=B=C=D"), "3 groups"),
        (("--patient-name", "x" * 65 + "=A"), "--patient-name is"),
        (("--study-description", "x" * 65), "--study-description is"),
        (("--accession-number", "x" * 17), "expected at most 16"),
        (("--body-part", "chest"), "capital letters"),
    ],
)
def test_what_no_element_can_hold_is_refused_before_images_are_looked_for(tmp_path, bring_in, options, sentence):
    said = bring_in(write(tmp_path / "a.json", 1000, images=False), *options, code=1)
    assert sentence in said
    assert not (tmp_path / "data").exists()


def test_a_name_of_a_file_that_is_too_long_for_a_patient_id_is_refused(tmp_path, bring_in):
    file = write(tmp_path / f"{'x' * 90}.json", 1000)
    assert "--patient-id is" in bring_in(file, code=1)
    assert "--patient-name is" in bring_in(file, "--patient-id", "X", code=1)
    assert "views stored" in bring_in(file, "--patient-id", "X", "--patient-name", "Y")
    assert {header.PatientID for header in headers(tmp_path)} == {"X"}
