"""A running node is sent one scan in each encoding by DCMTK: each becomes a CT series, and all show the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.uid import generate_uid
from scan_encodings import WRITERS

from index.archive import Archive
from plugins.node import Series

pytestmark = pytest.mark.slow

SETTINGS = """
[reconstruct]
voxel_mm = 1.2
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
NAMES = ("P1", "P2", "P3-curved", "P4", "P5", "P6")


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
    wait_until(lambda: not archive.jobs.pending(), timeout=240)
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
