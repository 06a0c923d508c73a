"""A scan that is imported again is recognised: by its pixels, by how they were taken, and by whose they are."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import tifffile
from pydicom.dataset import Dataset
from typer.testing import CliRunner

from commands import import_scan
from index.archive import Archive
from reconstruct.imports import writing
from reconstruct.imports.identity import uids_of
from reconstruct.imports.raw_scan import Images, RawScan, Setup
from reconstruct.imports.writing import instances_of
from reconstruct.projections.frames import ScanError
from tharsis import app

VIEWS = np.random.default_rng(5).integers(100, 50_000, (6, 4, 5)).astype(np.uint16)
FLATS = np.full((3, 4, 5), 50_000, np.uint16)
INSTANCES = 5
"""Of two frames each, but for the last flat field."""


@pytest.fixture(autouse=True)
def two_frames_an_instance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "_MOST_PIXELS_BYTES", 2 * VIEWS[0].nbytes)


@pytest.fixture(autouse=True)
def days_go_by(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each import happens on another day."""

    class Calendar(datetime):
        today_is = datetime(2030, 1, 1, tzinfo=UTC)

        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            cls.today_is += timedelta(days=1)
            return cls.today_is

    monkeypatch.setattr(import_scan, "datetime", Calendar)


def write(folder: Path, views: np.ndarray = VIEWS, compression: str | None = None, **changes: Any) -> Path:
    (folder / "views").mkdir(parents=True)
    for number, view in enumerate(views):
        tifffile.imwrite(folder / "views" / f"{number:04d}.tif", view, compression=compression)
    tifffile.imwrite(folder / "flats.tif", FLATS, photometric="minisblack")
    told = {
        "projections": "views/*.tif", "flats": "flats.tif", "angles_deg": {"first": 0, "step": 60},
        "source_to_isocentre_mm": 200, "source_to_detector_mm": 320, "pitch_mm": 0.5,
    } | changes  # fmt: skip
    (folder / "bone.json").write_text(json.dumps(told))
    return folder / "bone.json"


@pytest.fixture
def bring_in(tmp_path: Path) -> Callable[..., str]:
    """Import a scan into the archive of the test, and return what was said."""

    def run(file: Path, *options: str, code: int = 0) -> str:
        told = CliRunner().invoke(app, ["import-scan", str(file), "--data", str(tmp_path / "data"), *options])
        assert told.exit_code == code, told.output
        return " ".join(told.output.split())

    return run


def stored(tmp_path: Path) -> list[tuple[str, str, str]]:
    """Study, series and SOP Instance UIDs of all that is stored."""
    archive = Archive(tmp_path / "data")
    rows = archive.database.execute(
        "SELECT study_instance_uid, series_instance_uid, sop_instance_uid FROM instance "
        "JOIN series ON series.id = instance.series JOIN study ON study.id = series.study ORDER BY 1, 2, 3"
    ).fetchall()
    archive.close()
    return [tuple(row) for row in rows]


def files_of(tmp_path: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in (tmp_path / "data" / "files").rglob("*.dcm")}


def jobs_of(tmp_path: Path) -> list[str]:
    return [job.kind for job in Archive(tmp_path / "data").jobs.recent()]


def test_the_same_scan_is_imported_by_one_process_at_a_time(tmp_path, bring_in, monkeypatch):
    """One that fails removes what it has stored, which the other would count on."""
    file = write(tmp_path / "scan")
    said, store = [], import_scan._store

    def while_another_tries(*arguments):
        monkeypatch.setattr(import_scan, "_store", store)
        said.append(bring_in(file, code=1))
        return store(*arguments)

    monkeypatch.setattr(import_scan, "_store", while_another_tries)
    assert f"6 views stored in {INSTANCES} instances" in bring_in(file)
    assert "another process is importing this scan" in said[0]
    assert "stored already" in bring_in(file)


def test_a_second_import_stores_nothing_and_says_so_in_one_sentence(tmp_path, bring_in):
    file = write(tmp_path / "scan")
    assert f"6 views stored in {INSTANCES} instances" in bring_in(file)
    before, content = stored(tmp_path), files_of(tmp_path)
    assert len(before) == INSTANCES
    said = bring_in(file)
    study, series, _ = before[0]
    assert f"this scan is stored already, in study {study} as series {series}, and was not stored again" in said
    assert "views stored" not in said
    assert (stored(tmp_path), files_of(tmp_path)) == (before, content)
    assert jobs_of(tmp_path) == ["series_stable"]


@pytest.mark.parametrize(
    ("options", "changes", "same_study"),
    [
        (["--patient-id", "B-17"], {}, False),
        (["--patient-name", "Bone^Seventeen"], {}, False),
        (["--accession-number", "A1"], {}, False),
        (["--study-description", "Bones"], {}, False),
        (["--study-uid", "1.2.3"], {}, False),
        (["--body-part", "CHEST"], {}, True),
        (["--water", "0.2"], {}, True),
        (["--pitch", "0.25"], {}, True),
        (["--pixels", "COUNTS"], {}, True),
        ([], {"source_to_isocentre_mm": 201}, True),
        ([], {"angles_deg": [0, 60, 120, 180, 240, 301]}, True),
        ([], {"turns": "sample"}, True),
        ([], {"kvp": 80}, True),
        ([], {"view_times_s": [0, 1, 2, 3, 4, 5], "flat_times_s": [6, 7, 8]}, True),
        ([], {"description": "the second try"}, True),
        ([], {"flats": None, "unattenuated": 5e4}, False),
    ],
    ids=str,
)
def test_other_ids_make_another_study_and_other_options_another_series(
    tmp_path, bring_in, options, changes, same_study
):
    bring_in(write(tmp_path / "one"))
    ((study, series),) = {row[:2] for row in stored(tmp_path)}
    assert "views stored" in bring_in(write(tmp_path / "two", **changes), *options)
    (other,) = {row[:2] for row in stored(tmp_path)} - {(study, series)}
    assert other[1] != series
    assert (other[0] == study) is same_study
    (date,) = {pydicom.dcmread(path).StudyDate for path in files_of(tmp_path) if study in str(path)}
    assert date, "all of a study have its date"
    assert "is stored already" in bring_in(tmp_path / "two" / "bone.json", *options)


def test_one_pixel_makes_another_study(tmp_path, bring_in):
    bring_in(write(tmp_path / "one"))
    other = VIEWS.copy()
    other[-1, -1, -1] += 1
    bring_in(write(tmp_path / "two", other))
    assert len({study for study, _, _ in stored(tmp_path)}) == 2


@pytest.mark.parametrize(
    ("options", "changes"),
    [
        ([], {"compression": "zlib"}),
        ([], {"turns": "source", "rows_up": False}),
        (["--pitch", "0.5,0.5"], {"pitch_mm": 3}),
        (["--patient-id", "bone"], {}),
    ],
    ids=str,
)
def test_the_same_told_in_other_words_is_the_same(tmp_path, bring_in, options, changes):
    bring_in(write(tmp_path / "one"))
    assert "is stored already" in bring_in(write(tmp_path / "elsewhere" / "two", **changes), *options)


KILLED = """
import os, sys
from index.archive import Archive
from index import jobs
from reconstruct.imports import writing
from tharsis import app
writing._MOST_PIXELS_BYTES, left, ingest = int(sys.argv.pop(1)), int(sys.argv.pop(1)), Archive.ingest
def one(self, *arguments, **options):
    global left
    if not left:
        os._exit(137)
    left -= 1
    return ingest(self, *arguments, **options)
Archive.ingest = one
jobs.push = lambda *arguments: os._exit(137)
app()
"""


@pytest.mark.parametrize("there", [0, 1, 3, INSTANCES])
def test_an_import_that_was_killed_is_completed_by_the_next(tmp_path, bring_in, there):
    """Killed after some instances, or after the last one and before the series was announced."""
    file = write(tmp_path / "scan")
    arguments = [2 * VIEWS[0].nbytes, there, "import-scan", file, "--data", tmp_path / "data"]
    killed = subprocess.run([sys.executable, "-c", KILLED, *map(str, arguments)], check=False, env={**os.environ})
    assert killed.returncode == 137
    assert (len(stored(tmp_path)), jobs_of(tmp_path)) == (there, [])
    before = files_of(tmp_path)
    said = bring_in(file)
    new = INSTANCES - there
    if there == INSTANCES:
        assert "is stored already" in said
    elif there:
        assert f"{there} instances of this scan were there, and {new} that were missing are stored" in said
    else:
        assert f"stored in {INSTANCES} instances" in said
    files = files_of(tmp_path)
    assert len(files) == INSTANCES
    assert before.items() <= files.items()
    assert jobs_of(tmp_path) == ["series_stable"]
    datasets = sorted(map(pydicom.dcmread, files), key=lambda dataset: dataset.InstanceNumber)
    for keyword in ("StudyDate", "StudyTime", "SeriesDate", "AcquisitionDateTime", "SynchronizationFrameOfReferenceUID",
                    "FrameOfReferenceUID", "StudyInstanceUID"):  # fmt: skip
        assert len({str(dataset[keyword].value) for dataset in datasets}) == 1, keyword
    pixels = np.concatenate([dataset.pixel_array.reshape(-1, 4, 5) for dataset in datasets])
    np.testing.assert_array_equal(pixels, np.concatenate([VIEWS, FLATS]))
    assert "is stored already" in bring_in(file)
    assert jobs_of(tmp_path) == ["series_stable"]


def test_a_failure_keeps_what_an_earlier_import_had_left(tmp_path, bring_in, monkeypatch):
    file = write(tmp_path / "scan")
    bring_in(file)
    whole = stored(tmp_path)
    archive = Archive(tmp_path / "data")
    archive.delete(import_scan.Level.IMAGE, whole[0][2])
    ingest = Archive.ingest

    def fails(*arguments: Any, **options: Any) -> Any:
        raise ScanError("the stick was pulled out")

    monkeypatch.setattr(Archive, "ingest", fails)
    assert "the stick was pulled out" in bring_in(file, code=1)
    assert stored(tmp_path) == whole[1:]
    monkeypatch.setattr(Archive, "ingest", ingest)
    assert "1 that were missing are stored" in bring_in(file)
    assert stored(tmp_path) == whole


def test_a_damaged_file_is_replaced(tmp_path, bring_in):
    file = write(tmp_path / "scan")
    bring_in(file)
    content = files_of(tmp_path)
    damaged = min(content)
    damaged.write_bytes(content[damaged][:700])
    assert "4 instances of this scan were there" in bring_in(file)
    assert sorted(files_of(tmp_path).values()) == sorted(content.values())


def test_files_that_are_written_again_are_the_same(tmp_path, bring_in):
    file, made = write(tmp_path / "scan"), tmp_path / "dicom"
    bring_in(file, "--out", str(made))
    before = {path: path.read_bytes() for path in made.iterdir()}
    assert len(before) == INSTANCES
    next(iter(before)).write_bytes(b"cut off")
    bring_in(file, "--out", str(made))
    assert {path: len(path.read_bytes()) for path in made.iterdir()} == {p: len(c) for p, c in before.items()}
    shutil.rmtree(made)
    bring_in(file, "--out", str(made))
    first = {path: path.read_bytes() for path in made.iterdir()}
    bring_in(file, "--out", str(made))
    assert {path: path.read_bytes() for path in made.iterdir()} == first
    assert first.keys() == before.keys()


@pytest.mark.parametrize(("dtype", "times"), [(np.uint16, 2), (np.float32, 3)])
def test_images_are_read_to_recognise_the_scan_and_to_write_it(dtype, times):
    """Once each; those that need a rescale once more, for its range."""
    read: list[int] = []

    def image(index: int) -> np.ndarray:
        read.append(index)
        return VIEWS[index].astype(dtype)

    raw = RawScan(Images(image, len(VIEWS), str), setup_of())
    read.clear()
    uids = uids_of(raw, Dataset())
    assert read == list(range(len(VIEWS)))
    made = list(instances_of(raw, Dataset(), uids=uids))
    assert sorted(read) == sorted(list(range(len(VIEWS))) * times)
    there = {str(instance.SOPInstanceUID) for instance in made}
    read.clear()
    assert list(instances_of(raw, Dataset(), uids=uids, leave_out=there)) == []
    assert read == []


def setup_of(**more: Any) -> Setup:
    return Setup(
        source_to_isocentre_mm=200.0, source_to_detector_mm=320.0, pitch_mm=(0.5, 0.5),
        angles_deg=60.0 * np.arange(len(VIEWS)), unattenuated=5e4, **more,
    )  # fmt: skip


def test_an_image_that_is_not_finite_is_refused_wherever_it_stands():
    views = VIEWS.astype(np.float32)
    views[4, 2, 2] = np.nan
    raw = RawScan(Images(lambda index: views[index], len(views), str), setup_of())
    with pytest.raises(ScanError, match="not finite"):
        list(instances_of(raw, Dataset()))
