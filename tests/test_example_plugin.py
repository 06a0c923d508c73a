"""The example package of the docs: built, installed, and used by a node that gets a CT from a real peer."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
from conftest import ServedNode
from pydicom.uid import SecondaryCaptureImageStorage

from config.identity import UID_ROOT
from index.archive import Archive

EXAMPLE = Path(__file__).parents[1] / "docs" / "example-plugin"
OTHERS = ["reconstruction", "segmentation", "materials", "measurement", "embedding", "indexing"]
SETTINGS = f"""
[scp]
host = "127.0.0.1"
port = 0
[archive]
data = "DATA"
settle_time_s = 5.0
reserve_mb = 0
[similarity]
enabled = false
[plugins]
disabled = {json.dumps(OTHERS)}
order = ["mip"]
[plugins.settings.mip]
view = "left"
"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder of installed packages with the example in it, put there from its wheel."""
    folder = tmp_path_factory.mktemp("example")
    shutil.copytree(EXAMPLE, folder / "source")  # where a build leaves things, nothing of the checkout changes
    options = ["--disable-pip-version-check", "--no-deps", "--no-build-isolation", "--no-index", "--no-compile"]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", folder / "site", folder / "source"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "site"


@pytest.fixture(scope="module")
def node(site, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(site), prepend=os.pathsep)
        served = ServedNode(tmp_path_factory.mktemp("node"), SETTINGS)
        try:
            served.start()
            yield served
        finally:
            served.end()


def test_what_is_installed_is_the_module_of_the_docs(site):
    assert (site / "tharsis_mip.py").read_bytes() == (EXAMPLE / "tharsis_mip.py").read_bytes()
    assert len((EXAMPLE / "tharsis_mip.py").read_text(encoding="utf-8").splitlines()) < 100


def test_a_ct_that_is_sent_gets_its_projection(node, dcmtk, shared_data, wait_until, validator_errors):
    files = sorted((shared_data / "dcm_qa_ct" / "In" / "GE").glob("*.dcm"))
    dcmtk("storescu", "-aec", "THARSIS", "127.0.0.1", node.port, *files)
    archive = Archive(node.data)

    def made():
        wanted = "SELECT path FROM instance WHERE sop_class_uid = ?"
        return archive.database.execute(wanted, (SecondaryCaptureImageStorage,)).fetchall()

    wait_until(lambda: made() or archive.jobs.recent(states=("failed",)))
    assert not archive.jobs.recent(states=("failed",)), archive.jobs.recent(states=("failed",))
    ((path,),) = made()
    picture, sources = pydicom.dcmread(archive.data / path), [pydicom.dcmread(file) for file in files]
    assert picture.SOPInstanceUID.startswith(UID_ROOT)
    assert picture.StudyInstanceUID == sources[0].StudyInstanceUID
    assert picture.PatientID == sources[0].PatientID
    used = {each.ReferencedSOPInstanceUID for each in picture.SourceImageSequence}
    assert used == {each.SOPInstanceUID for each in sources}
    assert picture.DerivationCodeSequence[0].CodeValue == "113078"
    assert not validator_errors(archive.data / path)
    greatest = np.stack([each.pixel_array * each.RescaleSlope + each.RescaleIntercept for each in sources]).max()
    expected = round(255 * min(1.0, (float(greatest) + 200) / 1700))
    assert abs(int(picture.pixel_array.max()) - expected) <= 1
    assert picture.Columns == sources[0].Rows, "seen from the left, as the settings of its own say"


def test_it_is_found_over_the_network_and_listed(node, dcmtk, tharsis, site, monkeypatch):
    archive = Archive(node.data)
    ((study,),) = archive.database.execute("SELECT study_instance_uid FROM study").fetchall()
    found = dcmtk(
        "findscu", "-S", "-aec", "THARSIS", "127.0.0.1", node.port, "-k", "QueryRetrieveLevel=SERIES",
        "-k", "SeriesDescription=Maximum*", "-k", "SeriesInstanceUID", "-k", f"StudyInstanceUID={study}",
    ).stdout  # fmt: skip
    assert "Maximum intensity, left" in found
    monkeypatch.setenv("PYTHONPATH", str(site), prepend=os.pathsep)
    shown = json.loads(tharsis("plugins", "show", "mip", "--config", node.config, "--json").stdout)
    assert (shown["name"], shown["package"], shown["version"]) == ("mip", "tharsis-mip", "1.0.0")
    assert (shown["kinds"], shown["state"], shown["built_in"]) == (["mip"], "enabled", False)
    assert shown["hooks"] == ["job_functions", "jobs_for_series", "own_settings"]
    assert "from where one looks at the patient" in shown["settings"]["view"]
    assert shown["told"] == {"view": "left"}


def test_its_own_test_passes(site):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])}
    own = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", EXAMPLE, EXAMPLE / "tests"],
        capture_output=True, text=True, check=False, env=environment, cwd=site,
    )  # fmt: skip
    assert own.returncode == 0, own.stdout + own.stderr
