"""All that the node makes of a scan, moved to receivers that other people wrote, and read by a validator there."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pydicom
import pytest
from pydicom.uid import (
    CTImageStorage,
    EnhancedSRStorage,
    EnhancedXAImageStorage,
    ParametricMapStorage,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
)

from index.archive import Archive
from plugins.segmentation.stored_segments import LABEL_MAP_STORAGE
from reconstruct.projections.scan import ReconstructionRequest
from reconstruct.simulate import simulate_scan
from scp.part10 import data_set_offset

pytestmark = pytest.mark.slow

SETTINGS = """
[segmentation]
object = "binary"
[materials]
enabled = true
use = ["water", "iodine"]
objects = ["map", "ct"]
residual = true
"""
RECEIVER = '[[application_entities]]\ntitle = "{}"\nhost = "127.0.0.1"\nport = {}\nrights = []\n'

SERIES = {
    "XA": {EnhancedXAImageStorage: 1},
    "CT": {CTImageStorage: 4},  # two energy bins, two materials
    "OT": {ParametricMapStorage: 3, SecondaryCaptureImageStorage: 2},
    "SEG": {SegmentationStorage: 1, LABEL_MAP_STORAGE: 1},
    "SR": {EnhancedSRStorage: 2},
}
"""How many series of each SOP class, by modality."""


@pytest.fixture
def peers(start_storescp, start_orthanc):
    """Receivers by AE title; all but the first take SOP classes that they have never heard of."""
    return {
        "KNOWN_ONLY": start_storescp(),
        "STORESCP": start_storescp("-pm"),
        "ORTHANC": start_orthanc(UnknownSopClassAccepted=True),
    }


@pytest.fixture
def node(serve, dcmtk, tmp_path, wait_until, peers):
    """A node that was sent a small spectral scan and has made of it what it can, SEG of both kinds."""
    ports = [peers["KNOWN_ONLY"][1], peers["STORESCP"][1], peers["ORTHANC"].port]
    receivers = "".join(map(RECEIVER.format, peers, ports))
    node = serve(settle_time_s=0.3, more=SETTINGS + receivers)
    files = []
    request = ReconstructionRequest(voxel_mm_xyz=(1.0, 1.0, 1.0), matrix_xyz=(34, 34, 6))
    scan = simulate_scan("contrast-agents", views=40, rows=14, columns=48, thresholds_kev=(25.0, 50.0), request=request)
    for dataset in scan:
        files.append(tmp_path / f"{dataset.SOPInstanceUID}.dcm")
        dataset.save_as(files[-1], enforce_file_format=True)
    dcmtk("dcmsend", "-aec", "THARSIS", "127.0.0.1", node.port, *files)
    archive = Archive(node.data)
    wait_until(lambda: not archive.jobs.pending(), timeout=900)
    node.end()
    node.config.write_text(node.config.read_text().replace('"binary"', '"labelmap"'))
    node.start()
    source = archive.database.execute("SELECT source FROM derivation WHERE recipe LIKE '%\"segment\"%'").fetchone()
    archive.jobs.push("series_stable", *source)
    wait_until(lambda: not archive.jobs.pending(), timeout=900)
    assert not archive.jobs.recent(states=("failed",))
    return node


def stored(archive: Archive) -> dict[str, Path]:
    uids = archive.database.execute("SELECT sop_instance_uid FROM instance").fetchall()
    return {uid: archive.open_instance(uid).path for (uid,) in uids}


def data_set(path: Path) -> bytes:
    return path.read_bytes()[data_set_offset(path):]


def move(dcmtk, node, destination: str, study: str) -> tuple[str, list[str]]:
    """Move a study; return the final status and the instances that the node says have failed."""
    told = dcmtk(
        "movescu", "-d", "-S", "-aec", "THARSIS", "-aem", destination, "127.0.0.1", node.port,
        "-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={study}", check=False,
    ).stdout.rpartition("Received Final Move Response")[2]  # fmt: skip
    failed = re.findall(r"\(0008,0058\) UI \[(.*?)\]", told)
    return re.findall(r"DIMSE Status +: (0x\w+)", told)[0], [uid for text in failed for uid in text.split("\\")]


def test_a_study_travels_with_all_that_was_made_of_it(node, peers, dcmtk, validator_errors):
    archive = Archive(node.data)
    ((study,),) = archive.database.execute("SELECT study_instance_uid FROM study").fetchall()
    files = stored(archive)
    assert move(dcmtk, node, "STORESCP", study) == ("0x0000", [])
    all_arrive_and_are_valid(peers["STORESCP"][0], files, validator_errors, dcmtk)
    (label_map,) = (uid for uid, path in files.items() if sop_class(path) == LABEL_MAP_STORAGE)
    assert move(dcmtk, node, "KNOWN_ONLY", study) == ("0xb000", [label_map])
    assert received_by(peers["KNOWN_ONLY"][0]).keys() == files.keys() - {label_map}
    assert move(dcmtk, node, "ORTHANC", study) == ("0x0000", [])
    orthanc_indexes_them(peers["ORTHANC"], study, files)


def received_by(folder: Path) -> dict[str, Path]:
    return {str(pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID): path for path in folder.iterdir()}


def all_arrive_and_are_valid(folder: Path, files: dict[str, Path], validator_errors, dcmtk) -> None:
    received = received_by(folder)
    assert received.keys() == files.keys()
    for uid, path in received.items():
        assert data_set(path) == data_set(files[uid])
        assert validator_errors(path) == [], sop_class(path)
        if sop_class(path) == CTImageStorage:
            assert dcmtk("dcmdump", "-q", "+P", "NominalMinEnergy", path).stdout.split()[2] == "[25.0]"


def sop_class(path: Path) -> str:
    return pydicom.dcmread(path, stop_before_pixels=True).SOPClassUID


def orthanc_indexes_them(orthanc, study: str, files: dict[str, Path]) -> None:
    instances = orthanc.find("Instance", StudyInstanceUID=study)
    assert {each["MainDicomTags"]["SOPInstanceUID"] for each in instances} == files.keys()
    found: dict[str, Counter] = {}
    frames_of_reference = set()  # of what the node made; pictures and reports have none
    for series in orthanc.find("Series", StudyInstanceUID=study):
        tags = orthanc.get(f"/instances/{series['Instances'][0]}/simplified-tags")
        assert tags["Modality"] == series["MainDicomTags"]["Modality"]
        found.setdefault(tags["Modality"], Counter())[tags["SOPClassUID"]] += 1
        if tags["Modality"] != "XA":
            frames_of_reference.add(tags.get("FrameOfReferenceUID"))
        if tags["Modality"] == "CT":
            energies_are_read(tags)
    assert found == SERIES
    assert len(frames_of_reference - {None}) == 1


def energies_are_read(tags: dict) -> None:
    (acquisition,) = tags["MultienergyCTAcquisitionSequence"]
    energies = [
        (float(detector["NominalMinEnergy"]), float(detector["NominalMaxEnergy"]))
        for detector in acquisition["MultienergyCTXRayDetectorSequence"]
    ]
    assert energies == [(25, 50), (50, 118)]
    assert tags["ImageType"].endswith(("ENERGY_BIN", "MAT_SPECIFIC"))
