"""A running node is sent one scan in each encoding by DCMTK: each becomes a CT series, and all show the same."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid
from scan_encodings import SITE, WRITERS

from config.settings import Settings, load_settings
from config.site_mappings import SiteMapping
from index.archive import Archive
from plugins.node import Series
from plugins.worker import Worker
from reconstruct.projections.encoding import is_without_object

pytestmark = pytest.mark.slow

SETTINGS = """
[reconstruct]
voxel_mm = 0.8
[segmentation]
enabled = false
[similarity]
enabled = false
[report]
enabled = false
[[site_mappings]]
name = "room 3"
creator = "ACME CT"
angle = { element = "(0029,xx10)", creator = "ACME CT", vr = "UL", unit = "deg", scale = -0.01, offset = -90.0 }
source_to_isocentre = { value = 20.0, unit = "cm" }
source_to_detector = { value = 320.0, unit = "mm" }
pitch_row = { value = 1.3, unit = "mm" }
pitch_column = { value = 1.2, unit = "mm" }
principal_row = { value = 18.25, unit = "px" }
principal_column = { value = 20.75, unit = "px" }
unattenuated = { value = 60000.0, unit = "" }
"""
NAMES = ("P2", "P3-curved", "P4", "P5", "P6")


def test_a_node_reconstructs_every_encoding(serve, dcmtk, tmp_path: Path, wait_until) -> None:
    node = serve(settle_time_s=0.3, more=SETTINGS)
    studies = {}
    for name in NAMES:
        studies[name], series = generate_uid(), generate_uid()
        folder = tmp_path / name
        folder.mkdir()
        for number, dataset in enumerate(WRITERS[name]("HFS")):
            dataset.StudyInstanceUID, dataset.SeriesInstanceUID = studies[name], series
            dataset.save_as(folder / f"{number}.dcm", enforce_file_format=True)
        dcmtk("storescu", "-aec", "THARSIS", "+sd", "127.0.0.1", node.port, folder)
    archive = Archive(node.data)
    wait_until(lambda: not archive.jobs.pending(), timeout=900)
    assert [job.error for job in archive.jobs.recent(states=("failed",))] == []
    volumes = {name: _volume(archive, study) for name, study in studies.items()}
    for name, (attenuation, first, spacing) in volumes.items():
        dense = np.argwhere(attenuation > 0.4)
        marker = np.array(first) + dense.mean(axis=0)[::-1] * spacing
        np.testing.assert_allclose(marker, (5.25, 3.75, 3.0), atol=0.5, err_msg=name)


def _volume(archive: Archive, study: str) -> tuple[np.ndarray, tuple[float, ...], float]:
    """Attenuation in 1/cm of the one CT series of a study that this node made, (z, y, x), and where it begins."""
    rows = archive.database.execute(
        "SELECT series.series_instance_uid FROM series JOIN study ON study.id = series.study "
        "WHERE study_instance_uid = ? AND modality = 'CT'",
        (study,),
    ).fetchall()
    (made,) = [series for (uid,) in rows if (series := Series(archive, uid)).made_by is not None]
    slices = [dcmread(path) for path in made.paths]
    mapping = slices[0].RealWorldValueMappingSequence[0]
    volume = np.stack([ds.pixel_array for ds in slices]) * mapping.RealWorldValueSlope + mapping.RealWorldValueIntercept
    return volume, tuple(map(float, slices[0].ImagePositionPatient)), float(slices[0].PixelSpacing[0])


@pytest.mark.parametrize("name", ["P2-series", "P4", "P5"])
def test_a_scan_that_lacks_its_flats_waits_for_them(archive: Archive, tmp_path: Path, name: str) -> None:
    """One sentence names what is missing, the projections stay, and what comes later makes the job run again."""
    datasets = WRITERS[name]("HFS")
    flats = [dataset for dataset in datasets if is_without_object(dataset)]
    for dataset in datasets:
        if dataset not in flats:
            store(archive, dataset)
    settings = quick(tmp_path)
    assert "has neither flat fields" in failure(archive, settings)
    held = archive.database.execute("SELECT count(*) FROM instance").fetchone()
    assert held == (len(datasets) - len(flats),)
    for dataset in flats:
        store(archive, dataset)
    assert failure(archive, settings) == ""
    assert made(archive) == 1


def test_a_corrected_site_mapping_makes_the_scan_be_read_again(archive: Archive, tmp_path: Path) -> None:
    for dataset in WRITERS["P6"]("HFS"):
        store(archive, dataset)
    (series,) = archive.database.execute("SELECT series_instance_uid FROM series").fetchone()
    wrong = SITE.model_copy(update={"unattenuated": None})
    assert failure(archive, quick(tmp_path)) == ""
    assert made(archive) == 0, "nobody knows what it is"
    archive.jobs.push("series_stable", series)
    assert "I0" in failure(archive, quick(tmp_path, wrong))
    archive.jobs.push("reconstruct", series)
    assert failure(archive, quick(tmp_path, SITE)) == ""
    assert made(archive) == 1
    done = archive.database.execute("SELECT count(*) FROM change WHERE kind = 'derived'").fetchone()
    for rule, more in ((SITE, 0), (SITE.model_copy(update={"rows_up": True}), 1)):
        archive.jobs.push("reconstruct", series)
        assert failure(archive, quick(tmp_path, rule)) == ""
        now = archive.database.execute("SELECT count(*) FROM change WHERE kind = 'derived'").fetchone()
        assert now == (done[0] + more,)
    assert made(archive) == 1


def store(archive: Archive, dataset: Dataset) -> None:
    buffer = BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    archive.ingest(buffer.getvalue())


def quick(folder: Path, *rules: SiteMapping) -> Settings:
    overrides = {
        "archive": {"data": folder / "archive"}, "jobs": {"max_attempts": 1}, "segmentation": {"enabled": False},
        "similarity": {"enabled": False}, "report": {"enabled": False}, "reconstruct": {"voxel_mm": 3.0},
        "scan_quality": {"enabled": False},
    }  # fmt: skip
    return load_settings(environment={}, overrides=overrides).model_copy(update={"site_mappings": rules})


def failure(archive: Archive, settings: Settings) -> str:
    """Do what is queued; return the sentence of the last reconstruction when it failed."""
    Worker(archive, settings, "w").run_until_idle()
    jobs = [job for job in archive.jobs.recent() if job.kind == "reconstruct"]
    return jobs[0].error if jobs and jobs[0].state == "failed" else ""


def made(archive: Archive) -> int:
    """How many CT series there are that are no projections."""
    rows = archive.database.execute(
        "SELECT count(DISTINCT series) FROM instance JOIN series ON series.id = instance.series "
        "WHERE modality = 'CT'"
    )
    return int(rows.fetchone()[0])
