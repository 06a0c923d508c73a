"""The plug-in that reconstructs: one scan from all its series, once, and nobody else's objects are touched."""

from __future__ import annotations

import copy
import subprocess
import sys
import tracemalloc
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from config.settings import Settings, load_settings
from index.archive import Archive
from index.keys import Level
from plugins import reconstruction
from plugins.node import CannotProceed, Series
from plugins.publish import publish
from plugins.segmentation.attenuation_ranges import fat_to_soft_hu
from plugins.segmentation.volume_reader import read_volume
from plugins.worker import Worker
from reconstruct.geometry import ConeBeamGeometry, GeometryError
from reconstruct.pipeline import Parameters, reconstruct_scan
from reconstruct.projections import elements
from reconstruct.projections.p1 import read_p1
from reconstruct.projections.scan import ScanError
from reconstruct.simulate import simulate_scan
from reconstruct.simulated_scanner import Scanner
from reconstruct.working_memory import WorkingMemory, file_array

A, B = "2.25.100", "2.25.200"
"""Series; A is the lower."""


@pytest.fixture(scope="module")
def scanned() -> list[Dataset]:
    """A small scan of two energy bins, counters and flats in instances of their own, all in series B."""
    objects = simulate_scan("calibration", views=24, rows=16, columns=20, thresholds_kev=(18, 45), seed=1)
    for dataset in objects:
        dataset.SeriesInstanceUID = B
    return objects


@pytest.fixture
def scan(scanned: list[Dataset]) -> list[Dataset]:
    return copy.deepcopy(scanned)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    off = {"enabled": False}
    overrides = {"archive": {"data": tmp_path / "archive"}, "jobs": {"max_attempts": 1}, "scan_quality": off}
    return load_settings(environment={}, overrides=overrides)


def is_flat(dataset: Dataset) -> bool:
    return bool(elements.read(dataset)["FrameRole"] == "FLAT")


def flats_without_geometry(objects: list[Dataset]) -> None:
    for dataset in filter(is_flat, objects):
        for item in dataset.PerFrameFunctionalGroupsSequence:
            del item.IsocenterReferenceSystemSequence
        dataset.InstanceNumber = 0


def store(archive: Archive, *objects: Dataset) -> None:
    for dataset in objects:
        buffer = BytesIO()
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        dataset.save_as(buffer, enforce_file_format=True)
        archive.ingest(buffer.getvalue(), overwrite="always")


def work(archive: Archive, settings: Settings) -> list[str]:
    """Do what is queued; return the sentences of the jobs that failed since."""
    before = {job.id for job in archive.jobs.recent()}
    queued = {job.id for job in archive.jobs.recent(states=("queued",))}
    Worker(archive, settings, "w").run_until_idle()
    return [job.error for job in archive.jobs.recent(states=("failed",)) if job.id not in before or job.id in queued]


def of_modality(archive: Archive, modality: str) -> dict[str, tuple[str, list[str]]]:
    """Study and instances of each series of a modality."""
    rows = archive.database.execute(
        "SELECT series_instance_uid, study_instance_uid, sop_instance_uid FROM instance "
        "JOIN series ON series.id = instance.series JOIN study ON study.id = series.study WHERE modality = ? "
        "ORDER BY sop_instance_uid",
        (modality,),
    ).fetchall()
    found: dict[str, tuple[str, list[str]]] = {}
    for series, study, instance in rows:
        found.setdefault(series, (study, []))[1].append(instance)
    return found


def contents(archive: Archive) -> dict[str, str]:
    return dict(archive.database.execute("SELECT sop_instance_uid, sha256 FROM instance").fetchall())


def times_done(archive: Archive) -> int:
    return int(archive.database.execute("SELECT count(*) FROM change WHERE kind = 'derived'").fetchone()[0])


def test_the_same_scan_set_in_another_study_leaves_the_first_patient_alone(
    archive: Archive, scan: list[Dataset], settings: Settings
) -> None:
    store(archive, *scan)
    assert not work(archive, settings)
    first, ct = contents(archive), of_modality(archive, "CT")
    assert len(ct) == 2
    assert of_modality(archive, "SEG")
    for number, dataset in enumerate(scan):
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.PatientID = "2.25.9", "2.25.91", "OTHER"
        dataset.SOPInstanceUID = f"2.25.92{number}"
    store(archive, *scan)
    assert not work(archive, settings)
    assert first.items() <= contents(archive).items()
    assert len(of_modality(archive, "CT")) == 4
    assert {study for study, _ in of_modality(archive, "CT").values()} == {ct.popitem()[1][0], "2.25.9"}


def test_an_instance_of_another_study_is_not_replaced(archive: Archive, make_dataset: Any) -> None:
    publish(archive, [make_dataset(1)])
    with pytest.raises(CannotProceed, match=r"belongs to study 1\.2\.826.* made in study 2\.25\.9 cannot replace it"):
        publish(archive, [make_dataset(1, StudyInstanceUID="2.25.9", SeriesInstanceUID="2.25.91")])


def test_what_is_published_is_one_series(archive: Archive, make_dataset: Any) -> None:
    with pytest.raises(ValueError, match="at least one object"):
        publish(archive, [])
    with pytest.raises(ValueError, match=r"expected objects of series .*, got one of 2\.25\.91"):
        publish(archive, [make_dataset(1), make_dataset(2, SeriesInstanceUID="2.25.91")])
    assert archive.open_instance("1.2.826.0.1.3680043.9.7133.9.1").study_instance_uid != "2.25.9"


def test_a_series_uid_in_two_studies_is_refused(archive: Archive, make_dataset: Any, settings: Settings) -> None:
    store(archive, make_dataset(1, SeriesInstanceUID=A))
    assert Series(archive, A).uid == A
    store(archive, make_dataset(2, SeriesInstanceUID=A, StudyInstanceUID="2.25.9", PatientID="P2"))
    with pytest.raises(CannotProceed, match=r"expected series 2.25.100 in one study, got 2: 1.2.826\S+ and 2.25.9"):
        Series(archive, A)
    assert len(work(archive, settings)) == 1


def test_flats_that_come_first_without_geometry_belong_to_the_scan(
    archive: Archive, scan: list[Dataset], settings: Settings
) -> None:
    flats_without_geometry(scan)
    store(archive, *sorted(scan, key=is_flat, reverse=True))
    assert is_flat(Series(archive, B).header)
    assert not work(archive, settings)
    assert len(of_modality(archive, "CT")) == 2
    embedded = archive.database.execute(
        "SELECT count(*) FROM embedding JOIN series ON series.id = embedding.series WHERE series_instance_uid = ?", (B,)
    )
    assert embedded.fetchone() == (0,), "projections are no pictures"


def test_a_series_is_a_scan_when_any_instance_is_recognised(archive: Archive, scan: list[Dataset]) -> None:
    """The first one says nothing of itself: no macro, no role."""
    first = scan[0]
    for item in first.PerFrameFunctionalGroupsSequence:
        del item.IsocenterReferenceSystemSequence
    for item in [first, *first.PerFrameFunctionalGroupsSequence]:
        for element in list(item.group_dataset(elements.GROUP)):
            del item[element.tag]
    first.InstanceNumber = 0
    store(archive, first)
    assert not Series(archive, B).holds_projections
    store(archive, *scan[1:])
    assert Series(archive, B).holds_projections
    assert "IsocenterReferenceSystemSequence" not in Series(archive, B).header.PerFrameFunctionalGroupsSequence[0]


@pytest.mark.parametrize("flats_in", [A, "2.25.300"], ids=["lower", "higher"])
def test_a_scan_in_several_series_is_reconstructed_once_when_all_is_there(
    archive: Archive, scan: list[Dataset], settings: Settings, flats_in: str
) -> None:
    flats_without_geometry(scan)
    flats, views = [d for d in scan if is_flat(d)], [d for d in scan if not is_flat(d)]
    for dataset in flats:
        dataset.SeriesInstanceUID = flats_in
    store(archive, *views)
    assert work(archive, settings) == [f"the scan has {len(views)} of {len(scan)} instances (0071,xx06)"]
    assert not of_modality(archive, "CT")
    store(archive, *flats)
    assert not work(archive, settings)
    assert len(of_modality(archive, "CT")) == 2
    done = times_done(archive)
    for uid in (B, flats_in):
        archive.jobs.push("reconstruct", uid)
        archive.jobs.push("series_stable", uid)
    assert not work(archive, settings)
    assert times_done(archive) == done
    (source,) = archive.database.execute("SELECT source FROM derivation WHERE recipe LIKE '%FDK%'").fetchall()
    assert source == (min(B, flats_in),)


def test_series_of_other_scans_stay_out_of_it(archive: Archive, scan: list[Dataset], settings: Settings) -> None:
    other = copy.deepcopy(scan)
    for number, dataset in enumerate(other):
        dataset.SeriesInstanceUID, dataset.SOPInstanceUID = A, f"2.25.92{number}"
        elements.put(dataset, ScanSetUID="2.25.93")
    store(archive, *scan, *other)
    assert not work(archive, settings)
    assert len(of_modality(archive, "CT")) == 4


def test_a_slice_that_was_deleted_is_made_again(archive: Archive, scan: list[Dataset], settings: Settings) -> None:
    store(archive, *scan)
    assert not work(archive, settings)
    whole = contents(archive)
    _, slices = next(iter(of_modality(archive, "CT").values()))
    archive.delete(Level.IMAGE, slices[2])
    archive.jobs.push("reconstruct", B)
    assert not work(archive, settings)
    assert contents(archive) == whole


def test_what_a_changed_scan_does_not_make_any_more_is_removed(
    archive: Archive, scan: list[Dataset], settings: Settings
) -> None:
    """Sent again with one energy bin instead of two, and with a smaller matrix."""
    store(archive, *scan)
    assert not work(archive, settings)
    before = of_modality(archive, "CT")
    for dataset in scan:
        elements.put(dataset, EnergyBinCount=1, ExpectedInstances=2, RequestedMatrix=[16, 16, 4])
        if elements.read(dataset)["EnergyBinIndex"] == 2:
            archive.delete(Level.IMAGE, dataset.SOPInstanceUID)
        else:
            elements.put(dataset, ExpectedFrames=0)
            store(archive, dataset)
    assert not work(archive, settings)
    after = of_modality(archive, "CT")
    assert after.keys() < before.keys()
    ((uid, (_, slices)),) = after.items()
    assert len(slices) == 4
    assert set(slices) < set(before[uid][1])


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"WaterAttenuation": 0.0}, "Water Attenuation (0071,xx29) is 0, expected a number above 0"),
        ({"RequestedMatrix": [70_000, 10, 10]}, "is too large"),
        ({"RequestedMatrix": [60_000, 60_000, 60_000]}, "expected memory to write a slice, 54934 MiB, got 64 MiB"),
        ({"RequestedFilter": "BOX"}, "Requested Filter (0071,xx53) is 'BOX'"),
        # An axial slice alone takes more than FDK may allocate.
        ({"RequestedMatrix": [4000, 4000, 1], "RequestedVoxelSize": [0.01, 0.01, 0.01]}, "memory_mb = 64"),
    ],
)
def test_bad_values_fail_at_once_in_one_sentence(
    archive: Archive, scan: list[Dataset], tmp_path: Path, values: dict[str, Any], sentence: str
) -> None:
    for dataset in scan:
        elements.put(dataset, **values)
    store(archive, *scan)
    overrides = {"archive": {"data": archive.data}, "jobs": {"max_attempts": 9}, "reconstruct": {"memory_mb": 64}}
    (told,) = work(archive, load_settings(environment={}, overrides=overrides))
    assert sentence in told
    assert "Error" not in told


@pytest.mark.parametrize("matrix", [[16, 16], [70_000, 60_000, 60_000]])
def test_the_command_ends_with_one_sentence(scan: list[Dataset], tmp_path: Path, matrix: list[int]) -> None:
    for dataset in scan:
        elements.put(dataset, RequestedMatrix=matrix)
        dataset.save_as(tmp_path / f"{dataset.SOPInstanceUID}.dcm", enforce_file_format=True)
    command = [sys.executable, "-P", "-m", "tharsis", "reconstruct", str(tmp_path), "--out", str(tmp_path / "ct")]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    assert "has 2 values" in ended.stderr or "too large" in ended.stderr


def test_a_segmentation_does_not_need_the_projections(
    archive: Archive, scan: list[Dataset], settings: Settings
) -> None:
    store(archive, *scan)
    assert not work(archive, settings)
    expected = contents(archive)
    (seg,) = of_modality(archive, "SEG")
    first = archive.database.execute("SELECT source FROM derivation WHERE recipe LIKE '%segment%'").fetchone()[0]
    archive.delete(Level.SERIES, seg)
    archive.delete(Level.SERIES, B)
    archive.jobs.push("segment", first, {"segmenter": "classical"})
    assert not work(archive, settings)
    assert of_modality(archive, "SEG").keys() == {seg}
    (again,) = of_modality(archive, "SEG")[seg][1]
    assert again in expected
    _, volume = read_volume(Series(archive, first).paths)
    assert volume.effective_kev == elements.read(scan[0])["EffectiveEnergy"]
    made = pydicom.dcmread(archive.open_instance(again).path, stop_before_pixels=True)
    fat_to_soft = f"{fat_to_soft_hu(volume.effective_kev):g}"
    assert fat_to_soft != f"{fat_to_soft_hu(None):g}"
    assert any(fat_to_soft in segment.SegmentLabel for segment in made.SegmentSequence)


@pytest.mark.parametrize(
    ("integrals_mb", "volume_mb", "memory_mb", "expected"),
    [
        (16, 20, 80, WorkingMemory(False, False, 36)),
        (16, 24, 80, WorkingMemory(False, True, 56)),
        (24, 32, 80, WorkingMemory(True, True, 72)),
        (0, 900, 80, WorkingMemory(False, True, 72)),
    ],
)
def test_what_does_not_fit_goes_into_files(
    integrals_mb: int, volume_mb: int, memory_mb: int, expected: WorkingMemory
) -> None:
    quarter = (1 << 20) // 4
    assert WorkingMemory.of((integrals_mb, quarter), (volume_mb, quarter), memory_mb) == expected


def test_what_is_read_and_written_one_by_one_has_to_fit() -> None:
    quarter = (1 << 20) // 4
    assert WorkingMemory.of((16, quarter), (20, quarter), 80, preparing=60 << 20) == WorkingMemory(True, True, 72)
    with pytest.raises(ValueError, match="expected memory to write a slice, 73 MiB, got 80 MiB"):
        WorkingMemory.of((1, quarter), (1, quarter), 80, writing=73 << 20)


def test_a_file_array_leaves_nothing_behind(tmp_path: Path) -> None:
    array = file_array((3, 4), tmp_path)
    assert (array.shape, array.dtype, float(array.sum())) == ((3, 4), np.float32, 0.0)
    array[:] = 7
    assert list(tmp_path.iterdir()) == []


def pixels(objects: list[Dataset], parameters: Parameters, folder: Path) -> tuple[np.ndarray, float]:
    """Stored values of the first energy bin, and the most that was allocated meanwhile, MiB."""
    scan = read_p1(objects)
    # Once outside the measurement: what numba compiles stays.
    slices = []
    for _ in range(2):
        tracemalloc.start()
        try:
            made = reconstruct_scan(scan, parameters, lambda _fraction: None, folder)
            slices = [instance.pixel_array for instance in next(made).instances]
            made.close()
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    return np.stack(slices), peak / (1 << 20)


def test_memory_is_bounded_by_the_setting_and_not_by_the_volume(scan: list[Dataset], tmp_path: Path) -> None:
    for dataset in scan:
        elements.put(dataset, RequestedMatrix=[128, 128, 128], RequestedVoxelSize=[0.2, 0.2, 0.1])
    roomy, much = pixels(scan, Parameters(memory_mb=512), tmp_path)
    tight, little = pixels(scan, Parameters(memory_mb=8), tmp_path)
    volume_mb = roomy.size * 4 / (1 << 20)
    assert volume_mb == 8
    assert much > volume_mb
    # Besides the arrays: the slices that the test keeps (16 bits a voxel), headers, a few frames.
    assert little < 8 + volume_mb / 2 + 3
    # Sums in another order differ in the last bit, and so may a rounded value here and there.
    assert np.abs(roomy.astype(int) - tight).max() <= 1
    assert np.mean(roomy != tight) < 1e-3
    assert list(tmp_path.iterdir()) == []


def test_line_integrals_in_a_file_are_the_same(scan: list[Dataset], tmp_path: Path) -> None:
    whole = read_p1(scan)
    mapped = file_array(whole.shape, tmp_path)
    assert whole.line_integrals(1, out=mapped) is mapped
    np.testing.assert_array_equal(mapped, whole.line_integrals(1))
    with pytest.raises(ValueError, match=r"expected out of shape \(24, 16, 20\) and float32"):
        whole.line_integrals(1, out=np.zeros((24, 16, 20)))


def test_too_little_memory_for_any_block_is_one_sentence(scan: list[Dataset], tmp_path: Path) -> None:
    for dataset in scan:
        elements.put(dataset, RequestedMatrix=[1000, 1000, 16])
    with pytest.raises(ScanError, match="memory_mb = 2: expected memory to write a slice, 18 MiB, got 2 MiB"):
        next(reconstruct_scan(read_p1(scan), Parameters(memory_mb=2), lambda _fraction: None, tmp_path))


def test_the_hook_asks_once_for_all_series_of_a_scan(
    archive: Archive, scan: list[Dataset], settings: Settings
) -> None:
    for dataset in filter(is_flat, scan):
        dataset.SeriesInstanceUID = A
    store(archive, *scan)
    asked = {
        (work.kind, work.subject)
        for uid in (A, B)
        for work in reconstruction.jobs_for_series(Series(archive, uid), settings)
    }
    assert asked == {("reconstruct", A)}


def arc_scan(monkeypatch: pytest.MonkeyPatch, degrees: float) -> list[Dataset]:
    """A scan of an arc, a view every four degrees."""

    def geometry(scanner: Scanner, views: int, rows: int, columns: int) -> ConeBeamGeometry:
        whole = circle(scanner, 90, rows, columns)
        return whole.select(slice(0, views))

    circle = Scanner.geometry
    with monkeypatch.context() as patched:
        patched.setattr(Scanner, "geometry", geometry)
        return simulate_scan(
            "calibration", views=int(degrees / 4) + 1, rows=16, columns=20, thresholds_kev=(18,), seed=1
        )


def first_slices(objects: list[Dataset], parameters: Parameters) -> list[Dataset]:
    [series] = reconstruct_scan(read_p1(objects), parameters, lambda _fraction: None)
    return list(series.instances)


def test_a_short_scan_is_reconstructed_in_hounsfield_units(monkeypatch: pytest.MonkeyPatch) -> None:
    volume = first_slices(arc_scan(monkeypatch, 220), Parameters())
    whole = first_slices(arc_scan(monkeypatch, 356), Parameters())
    assert "coverage=short scan, arc_degrees=220.0" in volume[0].DerivationDescription.replace(": ", "=")
    assert "coverage" not in whole[0].DerivationDescription
    middle = len(volume) // 2
    short, full = (np.frombuffer(part[middle].PixelData, "<i2").astype(float) for part in (volume, whole))
    assert volume[0].RescaleType == "HU"
    assert np.corrcoef(short, full)[0, 1] > 0.97
    assert abs(short.mean() - full.mean()) < 30


def test_a_limited_arc_is_refused_or_tomosynthesis(
    monkeypatch: pytest.MonkeyPatch, validator_errors: Any, tmp_path: Path
) -> None:
    objects = arc_scan(monkeypatch, 60)
    with pytest.raises(GeometryError, match="limited_arc takes such a scan as tomosynthesis"):
        first_slices(objects, Parameters())
    volume = first_slices(objects, Parameters(limited_arc=True))
    assert volume[0].SeriesDescription.startswith("Tomosynthesis")
    assert volume[0].RescaleType == "US"
    assert "RealWorldValueMappingSequence" not in volume[0]
    assert "without a scale" in volume[0].DerivationDescription
    volume[0].save_as(tmp_path / "slice.dcm", enforce_file_format=True)
    assert validator_errors(tmp_path / "slice.dcm") == []


def test_tomosynthesis_is_not_segmented(
    archive: Archive, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = settings.reconstruct.model_copy(update={"limited_arc": True})
    store(archive, *arc_scan(monkeypatch, 60))
    assert work(archive, settings.model_copy(update={"reconstruct": wanted})) == []
    assert of_modality(archive, "CT")
    assert not of_modality(archive, "SEG")
