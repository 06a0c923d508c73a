"""A real scan without any header: the arc of a linear accelerator, by the commands that a user has."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydicom import dcmread

from benchmarks.megavoltage_arc import FILTER, Head, description

SETTINGS = f"""
[reconstruct]
limited_arc = true
filter = "{FILTER}"
voxel_mm = 2.5
"""


@pytest.fixture
def head(tharsis, shared_data: Path, tmp_path: Path) -> Head:
    """What `import-scan` and `reconstruct` make of eleven raw images and a JSON file."""
    images = shared_data / "Tomosynthesis-Toolkit" / "Demo Data" / "Raw Images" / "EPID Images"
    (tmp_path / "arc.json").write_text(json.dumps(description(images)), encoding="utf-8")
    (tmp_path / "arc.toml").write_text(SETTINGS, encoding="utf-8")
    made = tharsis("import-scan", tmp_path / "arc.json", "--out", tmp_path / "dicom")
    assert made.returncode == 0, made.stderr
    made = tharsis("reconstruct", tmp_path / "dicom", "--out", tmp_path / "ct", "--config", tmp_path / "arc.toml")
    assert made.returncode == 0, made.stderr
    return Head.of(dcmread(path) for path in (tmp_path / "ct" / "bin1").iterdir())


@pytest.mark.slow
def test_the_face_is_in_front_and_the_occiput_behind(head: Head) -> None:
    """60 mm before the axis are eye sockets beside a nose; 60 mm behind it a wide skull that its floor closes below.

    In front both places of the skull are beside the face, or on its rim; at the axis its floor is higher.
    """
    assert head.sockets(-60) > 4e-3
    assert abs(head.sockets(60)) < head.sockets(-60) / 4
    assert min(head.walls(60)) > 3e-3
    assert max(head.walls(-60)) < -10e-3
    assert min(head.floor(60)) > 0.6e-3
    assert max(head.floor(0)) < 0
