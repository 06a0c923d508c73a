"""Real series of CT and MR: what shows the same region of the body is found before what does not.

The encoder is the one that needs no training. Its axes were fitted, without any label, on images among which these are
(`index.encoders.fit`); its measure on images that it has never seen is in test_texture.py.
"""

from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.misc import is_dicom

from index import embeddings
from index.archive import Archive
from index.encoders.texture import TextureEncoder
from index.keys import Level
from index.similarity import Aggregation, Similarity, SimilarityRequest
from plugins.node import Series
from plugins.slices import choose_slices
from reconstruct.pipeline import Parameters, reconstruct_scan
from reconstruct.projections.p1 import read_p1
from reconstruct.simulate import Identification, simulate_scan

NIH = "dcm_qa_nih/In/20180918GE"

SERIES = {
    "head 1": ("dcm_qa_ct/In/GE/**/*", slice(0, None, 2)),
    "head 2": ("dcm_qa_ct/In/GE/**/*", slice(1, None, 2)),
    "trunk 1": ("TotalSegmentator/tests/reference_files/example_ct_dicom/*", slice(0, None, 2)),
    "trunk 2": ("TotalSegmentator/tests/reference_files/example_ct_dicom/*", slice(1, None, 2)),
    "trunk of another scanner": ("cornerstone3D/packages/dicomImageLoader/testImages/CTImage.dcm_Little*", slice(0, 1)),
    "brain, sagittal 1": ("dcm_qa_frag/In/6001_anat-T1w_acq-tfl/*", slice(0, None, 4)),
    "brain, sagittal 2": ("dcm_qa_frag/In/6001_anat-T1w_acq-tfl/*", slice(2, None, 4)),
    "brain, axial 1": (f"{NIH}/mr_0004/*", slice(0, 30)),
    "brain, axial 2": (f"{NIH}/mr_0005/*", slice(0, 30)),
}
"""Name, files, and which of them by Instance Number: interleaved halves of a series, or two scans of one head."""

MOST = 8

ROOT = "1.2.826.0.1.3680043.9.7133"


def embedded(archive: Archive, series_instance_uid: str, most: int = MOST) -> None:
    encoder = TextureEncoder.load()
    embeddings.register(archive, encoder.model_id, encoder.dimension)
    slices = choose_slices(archive, Series(archive, series_instance_uid), most, lambda _fraction: None)
    vectors = zip(slices.frames, encoder.encode(slices.images), strict=True)
    embeddings.store(archive, encoder.model_id, series_instance_uid, [(*frame, vector) for frame, vector in vectors])


def region(name: str) -> str:
    return name.partition(" ")[0] if name.startswith("trunk") else name.rpartition(" ")[0]


@pytest.fixture(scope="module")
def real(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Archive, dict[str, str]]:
    """An archive of real series, each a patient of its own, and the name of each Series Instance UID."""
    archive, name_of = Archive(tmp_path_factory.mktemp("real")), {}
    for number, (name, (pattern, which)) in enumerate(SERIES.items(), 1):
        files = [file for file in sorted(shared_data.glob(pattern)) if file.is_file() and is_dicom(file)]
        datasets = sorted(map(pydicom.dcmread, files), key=lambda dataset: int(dataset.InstanceNumber))[which]
        for index, dataset in enumerate(datasets, 1):
            dataset.PatientID, dataset.StudyInstanceUID = name, f"{ROOT}.{number}"
            dataset.SeriesInstanceUID, dataset.SOPInstanceUID = f"{ROOT}.{number}.1", f"{ROOT}.{number}.1.{index}"
            dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID  # some have it in the meta information only
            dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        name_of[archived(archive, datasets)] = name
    for series in name_of:
        embedded(archive, series)
    return archive, name_of


def test_other_slices_of_a_region_rank_above_other_regions(real: tuple[Archive, dict[str, str]]) -> None:
    """P@5, and the share of slices of other regions above one of its own: each asks for all but itself."""
    archive, name_of = real
    similarity = Similarity(archive)
    asked = archive.database.execute(
        "SELECT sop_instance_uid, series_instance_uid FROM embedding JOIN instance ON instance.id = embedding.instance "
        "JOIN series ON series.id = embedding.series"
    ).fetchall()
    precisions, above, chance = [], [], []
    for sop, series in asked:
        request = SimilarityRequest(level=Level.IMAGE, sop_instance_uid=sop, exclude=frozenset(), k=500)
        found = [n for n in similarity.search(request).neighbours if n.sop_instance_uid != sop]
        same = np.array([region(name_of[n.series_instance_uid]) == region(name_of[series]) for n in found])
        precisions.append(same[:5].mean())
        above.append(np.cumsum(~same)[same].mean() / np.count_nonzero(~same))
        chance.append(same.mean())
    print(f"{len(asked)} slices: P@5 {np.mean(precisions):.3f} (chance {np.mean(chance):.3f}), "
          f"other regions above {np.mean(above):.4f} (chance .5)")  # fmt: skip
    assert np.mean(precisions) > 0.95
    assert np.mean(above) < 0.05


@pytest.mark.parametrize("aggregation", [None, Aggregation.SERIES_MEAN, Aggregation.LATE_INTERACTION])
def test_both_halves_of_a_series_and_two_scans_of_a_head_find_each_other_first(
    real: tuple[Archive, dict[str, str]], aggregation: Aggregation | None
) -> None:
    archive, name_of = real
    for asked, name in name_of.items():
        if name[-1] not in "12":
            continue
        request = SimilarityRequest(level=Level.SERIES, series_instance_uid=asked, aggregation=aggregation)
        found = [name_of[n.series_instance_uid] for n in Similarity(archive).search(request).neighbours]
        assert found[0] == name[:-1] + ("1" if name[-1] == "2" else "2"), (name, found)


def test_a_slice_of_another_scanner_finds_its_region_first(real: tuple[Archive, dict[str, str]]) -> None:
    archive, name_of = real
    asked = next(series for series, name in name_of.items() if name == "trunk of another scanner")
    for level in (Level.SERIES, Level.IMAGE):
        found = Similarity(archive).search(SimilarityRequest(level=level, series_instance_uid=asked)).neighbours
        names = [name_of[neighbour.series_instance_uid] for neighbour in found]
        assert region(names[0]) == region(names[1]) == "trunk", names


@pytest.mark.slow
def test_phantoms_scanned_twice_find_each_other(tmp_path: Path) -> None:
    """Small scans of three phantoms, each twice with other noise, reconstructed in one energy bin."""
    archive, scans = Archive(tmp_path), {}
    for phantom in ("mouse-thigh", "mouse-thorax", "mouse-head"):
        for seed in (1, 2):
            who = Identification(patient_id=f"{phantom} {seed}")
            objects = simulate_scan(phantom, views=32, rows=24, columns=32, seed=seed, identification=who)
            series = next(iter(reconstruct_scan(read_p1(objects), Parameters(threads=2), lambda _fraction: None)))
            scans[phantom, seed] = archived(archive, list(series.instances))
            embedded(archive, scans[phantom, seed])
    similarity = Similarity(archive)
    for (phantom, seed), series in scans.items():
        nearest = similarity.search(SimilarityRequest(level=Level.SERIES, series_instance_uid=series)).neighbours[0]
        assert nearest.series_instance_uid == scans[phantom, 3 - seed], (phantom, seed)


def archived(archive: Archive, instances: list[Dataset]) -> str:
    for dataset in instances:
        buffer = BytesIO()
        dataset.save_as(buffer, enforce_file_format=True)
        stored = archive.ingest(buffer.getvalue())
    return stored.series_instance_uid
