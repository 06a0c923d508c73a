"""Report and key picture of a running node: found and retrieved with DCMTK, and told on the command line."""

from __future__ import annotations

import json
import re

import highdicom
import numpy as np
import pydicom
import pytest
from PIL import Image
from segmented import CT, SEG, SPACING, STUDY, seg_of, slices, truth

from index.archive import Archive

pytestmark = pytest.mark.slow


@pytest.fixture
def node(serve, dcmtk, tmp_path, wait_until):
    """A node that another program has sent a CT and its SEG, and that has done its work."""
    values, masks = truth()
    images = slices(values)
    files = []
    for place, dataset in enumerate([*images, seg_of(images, masks)]):
        files.append(tmp_path / f"{place}.dcm")
        dataset.save_as(files[-1], enforce_file_format=True)
    node = serve(settle_time_s=0.3, more="[report]\nforeign = true\n")
    dcmtk("dcmsend", "-aec", "THARSIS", "127.0.0.1", node.port, *files)
    archive = Archive(node.data)
    wait_until(lambda: not archive.jobs.pending(), timeout=900)
    assert not archive.jobs.recent(states=("failed",))
    return node


def test_both_are_found_and_retrieved_with_the_study(node, dcmtk, tmp_path, validator_errors):
    found = dcmtk(
        "findscu", "-S", "-aec", "THARSIS", "127.0.0.1", node.port, "-k", "QueryRetrieveLevel=SERIES",
        "-k", f"StudyInstanceUID={STUDY}", "-k", "Modality", "-k", "SeriesDescription",
    ).stdout  # fmt: skip
    assert set(re.findall(r"\(0008,0060\) CS \[(\w+)", found)) == {"CT", "SEG", "SR", "OT"}
    folder = tmp_path / "retrieved"
    folder.mkdir()
    dcmtk(
        "getscu", "-S", "-aec", "THARSIS", "-od", folder, "127.0.0.1", node.port,
        "-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={STUDY}",
    )  # fmt: skip
    received = {str(pydicom.dcmread(path, stop_before_pixels=True).Modality): path for path in folder.iterdir()}
    assert set(received) == {"CT", "SEG", "SR", "OT"}
    for modality in ("SR", "OT"):
        assert validator_errors(received[modality]) == []
    groups = highdicom.sr.srread(received["SR"]).content.get_volumetric_roi_measurement_groups()
    assert len(groups) == len(truth()[1])
    assert pydicom.dcmread(received["OT"]).pixel_array.shape[1:] == (1440, 3)


def test_the_command_line_tells_the_same(node, tharsis, tmp_path):
    picture = tmp_path / "out" / "segments.png"
    told = tharsis("report", SEG, "--data", node.data, "--json", "--picture", picture)
    assert told.returncode == 0, told.stderr
    values, masks = truth()
    (seg,) = json.loads(told.stdout)
    assert seg["source_series"] == CT
    for segment, mask in zip(seg["segments"], masks, strict=True):
        assert segment["volume_mm3"] == pytest.approx(mask.sum() * np.prod(SPACING))
        assert segment["measured"][0]["mean"] == pytest.approx(values[mask].mean(dtype=np.float64))
    assert Image.open(picture).width == 1440
    table = tharsis("report", SEG, "--data", node.data)
    assert "Κνήμη" in table.stdout
    wrong = tharsis("report", CT, "--data", node.data)
    assert wrong.returncode == 2
    assert wrong.stderr.strip() == f"tharsis: series {CT} holds no segmentation; its study has {SEG}"
    assert tharsis("report", "1.2.3", "--data", node.data).returncode == 1
