"""The main job, end to end: scans over C-STORE become CT and SEG, and similar cases come back through both doors."""

from __future__ import annotations

import json
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
from scipy.ndimage import binary_erosion

from index.archive import Archive
from plugins.node import Series
from plugins.segmentation.seg_object import read_labels
from plugins.segmentation.volume_reader import read_volume
from reconstruct.projections.scan import ReconstructionRequest
from reconstruct.simulate import Identification, simulate_scan

pytestmark = pytest.mark.slow

ASKER = '[[application_entities]]\ntitle = "ASKER"\nrights = ["store", "find", "move", "similar"]\n'


def write_scan(folder: Path, phantom: str, seed: int, patient: str) -> list[Path]:
    who = Identification(patient_id=patient, patient_name=f"Phantom^{patient}")
    objects = simulate_scan(phantom, views=60, rows=44, columns=56, seed=seed, identification=who)
    folder.mkdir(parents=True)
    files = []
    for dataset in objects:
        files.append(folder / f"{dataset.SOPInstanceUID}.dcm")
        dataset.save_as(files[-1], enforce_file_format=True)
    return files


@pytest.fixture
def worked(serve, dcmtk, tmp_path, wait_until):
    """A node that was sent four scans, one phantom twice with other noise, and has done its work."""
    node = serve(settle_time_s=0.3, more=ASKER)
    studies = {}
    for phantom, seed, patient in (
        ("mouse-thigh", 1, "FIRST"), ("plaque", 2, "PLAQUE"), ("mouse-head", 3, "HEAD"), ("mouse-thigh", 4, "AGAIN"),
    ):  # fmt: skip
        files = write_scan(tmp_path / patient, phantom, seed, patient)
        studies[patient] = str(pydicom.dcmread(files[0], stop_before_pixels=True).StudyInstanceUID)
        dcmtk("dcmsend", "-aec", "THARSIS", "--no-halt", "127.0.0.1", node.port, *files)
    archive = Archive(node.data)
    wait_until(lambda: not archive.jobs.pending(), timeout=900)
    assert not archive.jobs.recent(states=("failed",))
    return node, archive, studies


def series_of(archive: Archive, study: str, modality: str) -> list[Series]:
    rows = archive.database.execute(
        "SELECT series.series_instance_uid FROM series JOIN study ON study.id = series.study "
        "WHERE study_instance_uid = ? AND modality = ? ORDER BY CAST(series_number AS INTEGER)",
        (study, modality),
    ).fetchall()
    return [Series(archive, uid) for (uid,) in rows]


def test_from_scan_to_similar_case(worked, dcmtk, tmp_path, wait_until, validator_errors):
    node, archive, studies = worked
    derived_objects_are_whole(archive, studies["FIRST"])
    validator_finds_no_error(archive, studies["FIRST"], validator_errors)
    neighbours = both_doors_agree(node, dcmtk, studies["FIRST"])
    assert neighbours[0] == studies["AGAIN"], "the same phantom with other noise is not the nearest"
    assert studies["FIRST"] not in neighbours
    similar_case_can_be_moved(node, dcmtk, tmp_path, archive, neighbours[0])
    nothing_is_made_twice(archive, wait_until)


def derived_objects_are_whole(archive: Archive, study: str) -> None:
    ct, (seg,) = series_of(archive, study, "CT"), series_of(archive, study, "SEG")
    assert [str(series.header.SeriesDescription) for series in ct] == [
        "FDK 18-30 keV", "FDK 30-45 keV", "FDK 45-60 keV", "FDK 60-118 keV",
    ]  # fmt: skip
    frames = {str(series.header.FrameOfReferenceUID) for series in [*ct, seg]}
    assert len(frames) == 1, "bins and segmentation share one Frame of Reference"
    slices, volume = read_volume(ct[0].paths)
    assert volume.is_hu
    dataset = pydicom.dcmread(seg.paths[0])
    labels = read_labels(dataset, volume.values.shape)
    segments = {str(item.SegmentLabel): item.SegmentNumber for item in dataset.SegmentSequence}
    bone = next(number for label, number in segments.items() if label.startswith("Bone"))
    assert volume.values[labels == bone].mean() > 1000
    assert volume.values[labels == 0].mean() < -700
    items = dataset.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    referenced = {str(item.ReferencedSOPInstanceUID) for item in items}
    assert referenced <= {str(slice_.SOPInstanceUID) for slice_ in slices}
    assert "ArtificialIntelligence" not in str(dataset)
    kinds = {item.SegmentAlgorithmType for item in dataset.SegmentSequence}
    assert kinds == {"AUTOMATIC"}
    assert highdicom.seg.segread(seg.paths[0]).number_of_segments == len(segments)


def validator_finds_no_error(archive: Archive, study: str, validator_errors) -> None:
    checked = [*series_of(archive, study, "CT"), *series_of(archive, study, "SEG")]
    assert len(checked) == 5
    for series in checked:
        assert validator_errors(series.paths[len(series.paths) // 2]) == []


def both_doors_agree(node, dcmtk, study: str) -> list[str]:
    # DCMTK without a dictionary takes the value of an unknown tag as hexadecimal bytes.
    as_bytes = "\\".join(f"{byte:02x}" for byte in study.encode())
    private = dcmtk(
        "findscu", "-S", "-aet", "ASKER", "-aec", "THARSIS", "127.0.0.1", node.port, "-k", "QueryRetrieveLevel=STUDY",
        "-k", "StudyInstanceUID", "-k", "(0073,0010)=THARSIS SIMILARITY 1.0", "-k", f"(0073,1003)={as_bytes}",
        "-k", "(0073,1006)=3",
    )  # fmt: skip
    viewer = dcmtk(
        "findscu", "-S", "-aet", "ASKER", "-aec", "THARSIS_SIM", "127.0.0.1", node.port,
        "-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyID=~{study}:k=3", "-k", "StudyDescription",
        "-k", "StudyInstanceUID",
    )  # fmt: skip
    first, second = (answers(result.stdout, "0020,000d") for result in (private, viewer))
    assert len(first) == 3, private.stdout
    assert first == second, "the doors disagree"
    assert [text.split()[0] for text in answers(viewer.stdout, "0008,1030")] == ["#01", "#02", "#03"]
    return first


def answers(text: str, tag: str) -> list[str]:
    """Values of a tag in the responses that findscu printed."""
    lines = [line for line in text.splitlines() if f"({tag})" in line and "[" in line]
    return [line.split("[", 1)[1].split("]", 1)[0].strip(" \0") for line in lines]


def similar_case_can_be_moved(node, dcmtk, tmp_path, archive: Archive, study: str) -> None:
    """C-GET instead of C-MOVE needs no receiver in the settings; test_retrieve_dcmtk.py covers C-MOVE to storescp."""
    folder = tmp_path / "retrieved"
    folder.mkdir()
    (series,) = series_of(archive, study, "SEG")
    dcmtk(
        "getscu", "-S", "-aet", "ASKER", "-aec", "THARSIS_SIM", "-od", folder, "127.0.0.1", node.port,
        "-k", "QueryRetrieveLevel=SERIES", "-k", f"StudyInstanceUID={study}", "-k", f"SeriesInstanceUID={series.uid}",
    )  # fmt: skip
    (received,) = folder.iterdir()
    assert pydicom.dcmread(received).SOPInstanceUID == pydicom.dcmread(series.paths[0]).SOPInstanceUID


def nothing_is_made_twice(archive: Archive, wait_until) -> None:
    def counts():
        return archive.database.execute("SELECT count(*) FROM instance").fetchone()[0]

    before = counts()
    sources = archive.database.execute("SELECT DISTINCT source FROM derivation").fetchall()
    for (source,) in sources:
        archive.jobs.push("series_stable", source)
    wait_until(lambda: not archive.jobs.pending())
    assert counts() == before
    twice = archive.database.execute("SELECT sop_instance_uid FROM instance GROUP BY 1 HAVING count(*) > 1").fetchall()
    assert not twice


def test_torso_counts_become_three_ct_series_with_the_values_of_the_truth(
    serve, dcmtk, wait_until, torso_objects, shared_data, tmp_path
):
    """Water and bone of a real CT, after another projector, photon counting, C-STORE and everything behind it."""
    folder = shared_data / "projections" / "torso_full"
    truth = np.load(folder / "truth.npz")
    hounsfield = truth["hu"].transpose(2, 1, 0)
    water_per_mm = json.loads((folder / "geometry.json").read_text(encoding="utf-8"))["mu_water_per_mm"][2]
    highest_bin = 1000 * (truth["mu_per_mm_bin3"].transpose(2, 1, 0) / 1e5 / water_per_mm - 1)
    slices, rows, columns = hounsfield.shape
    request = ReconstructionRequest(voxel_mm_xyz=(3.0, 3.0, 3.0), matrix_xyz=(columns, rows, slices))
    files = []
    for number, dataset in enumerate(torso_objects(request=request)):
        files.append(tmp_path / f"{number}.dcm")
        dataset.save_as(files[-1], enforce_file_format=True)
    node = serve(settle_time_s=0.3)
    dcmtk("dcmsend", "-aec", "THARSIS", "127.0.0.1", node.port, *files)
    archive = Archive(node.data)
    wait_until(lambda: not archive.jobs.pending(), timeout=900)
    assert not archive.jobs.recent(states=("failed",))
    (study,) = archive.database.execute("SELECT study_instance_uid FROM study").fetchone()
    ct = series_of(archive, study, "CT")
    assert len(ct) == 3
    seen = np.zeros(hounsfield.shape, bool)
    seen[8:32] = True  # slices that every view sees whole
    water = binary_erosion((hounsfield > 0) & (hounsfield < 80)) & seen
    bone = binary_erosion(hounsfield > 300) & seen
    for number, series in enumerate(ct, start=1):
        _, volume = read_volume(series.paths)
        assert volume.is_hu
        assert volume.values.shape == hounsfield.shape
        # 3 % of water is 30 HU
        assert volume.values[water].mean() == pytest.approx(hounsfield[water].mean(), abs=30), number
        assert volume.values[bone].mean() > 400, number
        if number == 3:  # the one bin whose attenuation the truth gives; the lower ones starve behind the shoulders
            attenuation, expected = (1 + values[bone].mean() / 1000 for values in (volume.values, highest_bin))
            assert attenuation == pytest.approx(expected, rel=0.08)
