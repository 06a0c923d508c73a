"""`tharsis train-segmenter`: from the annotations of an archive to weights, a report and SEG of the node."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import generate_uid
from stacks import images
from typer.testing import CliRunner, Result

from commands.segmenter_data import collect, pairs_of, spacings_of
from config.settings import load_settings
from index import jobs
from index.archive import Archive
from plugins.manager import load_plugins
from plugins.node import CannotProceed, Series, Task
from plugins.segmentation import plugin
from plugins.segmentation.learned import models, weights
from plugins.segmentation.learned.losses import UNKNOWN
from plugins.segmentation.learned.segmenter import Learned
from plugins.segmentation.reading import read_segmentation
from plugins.segmentation.seg_object import seg_object
from plugins.segmentation.segmenter import Algorithm, Placement, Segment, Segmentation, Volume
from plugins.segmentation.source_grid import source_grid

SHAPE, SPACING = (10, 48, 48), (3.0, 2.0, 2.0)
LIVER = Segment("liver", codes.SCT.AnatomicalStructure, codes.SCT.Liver)
KIDNEYS = tuple(
    Segment(f"kidney {side.meaning}", codes.SCT.AnatomicalStructure, codes.SCT.Kidney, modifiers=(side,))
    for side in (codes.SCT.Left, codes.SCT.Right)
)
SEGMENTS = (LIVER, *KIDNEYS)
ALGORITHM = Algorithm("drawn", "1", codes.DCM.ManualProcessing, {})


def phantom(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A body of water with a liver in front and two kidneys behind; in LPS the right one is at low columns."""
    random = np.random.default_rng(seed)
    _, y, x = np.indices(SHAPE)
    dy, dx = random.uniform(-2, 2, 2)
    labels = np.zeros(SHAPE, np.uint8)
    labels[((y - 16 - dy) / 8) ** 2 + ((x - 24 - dx) / 12) ** 2 < 1] = 1
    labels[((y - 33 - dy) / 5) ** 2 + ((x - 34 - dx) / 5) ** 2 < 1] = 2
    labels[((y - 33 - dy) / 5) ** 2 + ((x - 14 - dx) / 5) ** 2 < 1] = 3
    body = ((y - 24 - dy) / 21) ** 2 + ((x - 24 - dx) / 22) ** 2 < 1
    hounsfield = np.where(body, 0.0, -1000.0) + np.array([0.0, 90.0, 180.0, 180.0])[labels]
    return hounsfield + random.normal(0.0, 15.0, SHAPE), labels


def ct(patient: int) -> list[Dataset]:
    values, _ = phantom(patient)
    slices = images(SHAPE, spacing=SPACING, name=f"ct {patient}", frame_of_reference=f"frame {patient}",
                    values=np.round((values + 1000) / 2).astype(np.int16))  # fmt: skip
    for number, dataset in enumerate(slices):
        dataset.PatientID, dataset.PatientName = f"P{patient}", f"P{patient}^"
        dataset.StudyInstanceUID = generate_uid(entropy_srcs=["study", str(patient)])
        dataset.SOPInstanceUID = generate_uid(entropy_srcs=["image", str(patient), str(number)])
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    return slices


def annotation(slices: list[Dataset], labels: np.ndarray, segments: tuple[Segment, ...] = SEGMENTS) -> Dataset:
    return seg_object(Segmentation(labels, segments, ALGORITHM), slices, recipe=f"drawn by somebody: {segments}")


def as_bytes(dataset: Dataset) -> bytes:
    buffer = BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def fill(data: Path, patients: int) -> None:
    archive = Archive(data, settle_time_s=0.0)
    for patient in range(patients):
        slices = ct(patient)
        for dataset in (*slices, annotation(slices, phantom(patient)[1])):
            archive.ingest(as_bytes(dataset))
    archive.close()


def run(data: Path, *options: str) -> Result:
    from tharsis import app

    command = ["train-segmenter", "--data", str(data), "--threads", "1", *options]
    return CliRunner().invoke(app, command, env={"COLUMNS": "300"})


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, Result]:
    """A data folder of six annotated patients, the segmenter that was trained there, and what the command said."""
    data = tmp_path_factory.mktemp("segmenter") / "data"
    fill(data, 6)
    result = run(data, "--epochs", "8", "--seed", "1", "--held-out", "0.4")
    assert result.exit_code == 0, result.output
    (model,) = models.trained(data)
    return data, model, result


@pytest.mark.slow(60)
def test_what_is_drawn_is_learned(trained: tuple[Path, str, Result]) -> None:
    """Held-out patients, left told from right, far above the best that thresholds can be."""
    data, model, result = trained
    facts = json.loads(models.weights_file(data, model).with_suffix(".json").read_text())
    assert facts["held_out_by"] == "patients"
    assert facts["held_out_patients"] >= 1
    assert set(facts["dice"]) == {"Liver", "Kidney, Left", "Kidney, Right"}
    assert min(facts["dice"].values()) > 0.8, facts["dice"]
    assert facts["dice_all"]["learned"]["low"] > facts["dice_all"]["classical"]["high"]
    assert model in result.output
    assert f'learned_model = "{model}"' in result.output


@pytest.mark.slow
def test_the_report_needs_nothing_else(trained: tuple[Path, str, Result]) -> None:
    data, model, _ = trained
    folder = models.folder_of(data) / model
    assert {file.name for file in folder.iterdir()} == {"report.html", "curves.png", "dice.png", "slices.png"}
    page = (folder / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 3
    assert re.findall(r'(?:src|href)="(?!data:)', page) == []
    for name in ("Liver", "Kidney, Left", "Kidney, Right"):
        assert name in page
    assert not list(models.folder_of(data).glob("*.checkpoint"))


def task_for(archive: Archive, settings: Any, uid: str) -> Task:
    job = jobs.Job(1, plugin.KIND, uid, {plugin.SEGMENTER: "learned"})
    return Task(archive, settings, job, lambda *_: None, load_plugins(["segmentation"]))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["binary", "labelmap"])
def test_the_node_segments_with_it(
    trained: tuple[Path, str, Result],
    tmp_path: Path,
    validator_errors: Callable[..., list[str]],
    kind: str,
) -> None:
    data, model, _ = trained
    told = {"use": ["learned"], "learned_model": model, "images": "ct", "object": kind, "learned_flips": False}
    settings = load_settings(environment={}, overrides={"archive": {"data": data}, "segmentation": told})
    archive = Archive(data, settle_time_s=0.0)
    slices = ct(77)
    for dataset in slices:
        archive.ingest(as_bytes(dataset))
    uid = str(slices[0].SeriesInstanceUID)
    (work,) = plugin.jobs_for_series(Series(archive, uid), settings)
    assert work.parameters == {plugin.SEGMENTER: "learned"}
    before = set(archive_files(archive, "SEG"))
    plugin.segment(task_for(archive, settings, uid))
    (seg,) = set(archive_files(archive, "SEG")) - before
    assert uid in referenced(seg)
    assert validator_errors(seg) == []
    (found,) = read_segmentation(dcmread(seg), source_grid(slices)).segmentations
    names = [segment.label for segment in found.segments]
    assert names == ["Kidney, Left", "Kidney, Right", "Liver"]
    truth = phantom(77)[1]
    for label, number in enumerate((2, 3, 1), start=1):
        own, true = found.labels == label, truth == number
        assert 2 * (own & true).sum() / (own.sum() + true.sum()) > 0.75, names[label - 1]
    assert found.algorithm.parameters["model"] == model


def archive_files(archive: Archive, modality: str) -> list[Path]:
    rows = archive.database.execute(
        "SELECT instance.path FROM instance JOIN series ON series.id = instance.series WHERE series.modality = ?",
        (modality,),
    ).fetchall()
    return [archive.files.path(stored) for (stored,) in rows]


def referenced(path: Path) -> list[str]:
    dataset = dcmread(path, stop_before_pixels=True)
    return [str(item.SeriesInstanceUID) for item in dataset.ReferencedSeriesSequence]


@pytest.mark.slow
def test_weights_that_were_altered_are_refused(trained: tuple[Path, str, Result], tmp_path: Path) -> None:
    data, model, _ = trained
    content = bytearray(models.weights_file(data, model).read_bytes())
    content[len(content) // 2] ^= 1
    models.folder_of(tmp_path).mkdir()
    models.weights_file(tmp_path, model).write_bytes(content)
    values, _ = phantom(0)
    placement = Placement((0, 0, 0), (0, 0, 3), (0, 2, 0), (2, 0, 0))
    volume = Volume(values.astype(np.float32), SPACING, True, None, placement)
    with pytest.raises(CannotProceed, match=f"{model}.pt was altered"):
        Learned(tmp_path, model, False, 0.0).segment(volume, lambda _: None)
    with pytest.raises(CannotProceed, match="where it lies in the patient"):
        Learned(data, model, False, 0.0).segment(Volume(values.astype(np.float32), SPACING, True), lambda _: None)
    with pytest.raises(CannotProceed, match="effective energy"):
        Learned(data, model, False, 0.0).segment(
            Volume(values.astype(np.float32), SPACING, False, None, placement), lambda _: None
        )


@pytest.mark.slow(30)
def test_an_interrupted_training_comes_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path / "data", 2)
    options = ("--hold-out", "slices", "--epochs", "2")
    whole = run(tmp_path / "data", *options)
    assert whole.exit_code == 0, whole.output
    (model,) = models.trained(tmp_path / "data")
    models.weights_file(tmp_path / "data", model).unlink()

    from commands import segmenter_run

    original = segmenter_run.train

    def interrupted(*arguments: Any, progress: Any, **named: Any) -> Any:
        def stop(epoch: Any) -> None:
            if epoch.epoch == 2:
                raise KeyboardInterrupt
            progress(epoch)

        return original(*arguments, progress=stop, **named)

    with monkeypatch.context() as patch:
        patch.setattr(segmenter_run, "train", interrupted)
        result = run(tmp_path / "data", *options)
    assert result.exit_code == 1
    assert "--resume goes on" in result.output
    other = run(tmp_path / "data", *options, "--resume", "--seed", "5")
    assert other.exit_code == 1
    assert "no interrupted training of these volumes and options" in other.output
    result = run(tmp_path / "data", *options, "--resume")
    assert result.exit_code == 0, result.output
    assert models.trained(tmp_path / "data") == [model]


def test_what_is_annotated_is_listed(tmp_path: Path) -> None:
    fill(tmp_path / "data", 2)
    result = run(tmp_path / "data", "--list")
    assert result.exit_code == 0, result.output
    assert "Kidney, Left" in result.output
    assert "10200004" in result.output


@pytest.mark.parametrize(
    ("options", "sentence", "code"),
    [
        (("--segment", "Spleen"), "nothing of the name 'Spleen' is annotated", 2),
        (("--size", "huge"), "the size is one of small, large, got 'huge'", 2),
        (("--resume",), "no interrupted training of these volumes and options to go on with", 1),
        (("--held-out", "0.9", "--seed", "2"), "there is nothing to train on: take --hold-out slices", 1),
    ],
)
def test_what_cannot_be_trained_is_told_in_a_sentence(
    tmp_path: Path, options: tuple[str, ...], sentence: str, code: int
) -> None:
    fill(tmp_path / "data", 3)
    options = options if "--held-out" in options else (*options, "--hold-out", "slices")
    result = run(tmp_path / "data", *options)
    assert sentence in result.output
    assert result.exit_code == code
    assert not models.trained(tmp_path / "data")


@pytest.mark.slow
def test_nothing_held_out_and_nothing_to_watch(tmp_path: Path) -> None:
    """With nothing held out the report has no figures; slices without any class are not what epochs are judged by."""
    archive = Archive(tmp_path / "data", settle_time_s=0.0)
    for patient, labels in ((1, phantom(1)[1] == 1), (2, np.zeros(SHAPE, bool))):
        slices = ct(patient)
        labels[0, 0, 0] |= patient == 2
        for dataset in (*slices, annotation(slices, labels.astype(np.uint8), (LIVER,))):
            archive.ingest(as_bytes(dataset))
    archive.close()
    result = run(tmp_path / "data", "--held-out", "0", "--epochs", "1")
    assert result.exit_code == 0, result.output
    (model,) = models.trained(tmp_path / "data")
    page = (models.folder_of(tmp_path / "data") / model / "report.html").read_text()
    assert "there is nothing to measure" in page


def test_files_that_vanish_or_break_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fill(tmp_path / "data", 2)
    first, second = (str(ct(patient)[0].SOPInstanceUID) for patient in (0, 1))
    archive = Archive(tmp_path / "data")
    archive.open_instance(first).path.unlink()
    archive.open_instance(second).path.write_bytes(b"x" * 400)
    archive.close()
    result = run(tmp_path / "data")
    assert result.exit_code == 1
    assert "none of the annotated series is a stack of slices" in result.output


def test_an_archive_without_annotations_has_nothing_to_learn_from(tmp_path: Path) -> None:
    archive = Archive(tmp_path / "data", settle_time_s=0.0)
    for dataset in ct(1):
        archive.ingest(as_bytes(dataset))
    archive.close()
    result = run(tmp_path / "data")
    assert result.exit_code == 1
    assert "the archive holds no annotated series" in result.output


def test_what_the_node_segmented_itself_is_not_learned_from(tmp_path: Path) -> None:
    archive = Archive(tmp_path / "data", settle_time_s=0.0)
    slices = ct(1)
    for dataset in slices:
        archive.ingest(as_bytes(dataset))
    settings = load_settings(
        environment={}, overrides={"archive": {"data": tmp_path / "data"}, "segmentation": {"images": "ct"}}
    )
    uid = str(slices[0].SeriesInstanceUID)
    job = jobs.Job(1, plugin.KIND, uid, {plugin.SEGMENTER: "classical"})
    plugin.segment(Task(archive, settings, job, lambda *_: None, load_plugins(["segmentation"])))
    assert archive_files(archive, "SEG")
    assert pairs_of(archive) == []


def test_annotations_that_tell_of_a_part_leave_the_rest_open(tmp_path: Path) -> None:
    """A SEG of the liver in some slices, another of a kidney in all: what nobody tells of is no background."""
    archive = Archive(tmp_path / "data", settle_time_s=0.0)
    slices, labels = ct(1), phantom(1)[1]
    for dataset in slices:
        archive.ingest(as_bytes(dataset))
    archive.ingest(as_bytes(annotation(slices[2:5], (labels[2:5] == 1).astype(np.uint8), (LIVER,))))
    (pair,) = pairs_of(archive)
    examples = collect([pair], 2.0, 3.0)
    (volume,) = examples.volumes
    assert [each.name for each in examples.classes] == ["Liver"]
    assert (volume.truth[2:5] != UNKNOWN).all()
    assert (volume.truth[[0, 1, 5, 6, 7, 8, 9]] == UNKNOWN).all()
    np.testing.assert_array_equal(volume.truth[2:5], labels[2:5] == 1)
    archive.ingest(as_bytes(annotation(slices, (labels == 2).astype(np.uint8), KIDNEYS[:1])))
    (pair,) = pairs_of(archive)
    examples = collect([pair], 2.0, 3.0)
    (volume,) = examples.volumes
    assert [each.name for each in examples.classes] == ["Kidney, Left", "Liver"]
    assert (volume.truth != UNKNOWN).all()
    assert volume.is_told[:, 1].all(), "the kidney"
    assert volume.is_told[:, 2].nonzero()[0].tolist() == [2, 3, 4], "the liver"


def test_classes_of_one_name_and_other_codes_are_told_apart(tmp_path: Path) -> None:
    """One site codes the liver in SNOMED CT, the other in FMA: figures, labels and tracking UIDs go by the name."""
    archive = Archive(tmp_path / "data", settle_time_s=0.0)
    foreign = Segment("liver", codes.SCT.AnatomicalStructure, Code("7197", "FMA", "Liver"))
    for patient, segment in ((0, foreign), (1, LIVER)):
        slices = ct(patient)
        for dataset in (*slices, annotation(slices, (phantom(patient)[1] == 1).astype(np.uint8), (segment,))):
            archive.ingest(as_bytes(dataset))
    pairs = pairs_of(archive)
    examples = collect(pairs, 2.0, 3.0)
    assert [(each.name, each.type.value) for each in examples.classes] == [
        ("Liver", "10200004"), ("Liver (7197, FMA)", "7197"),
    ]  # fmt: skip
    assert (examples.counts() > 0).all()
    (only,) = collect(pairs, 2.0, 3.0, ["liver (7197, fma)"]).classes
    assert only.type.value == "7197"
    archive.close()
    listed = run(tmp_path / "data", "--list").output
    assert "Liver (7197, FMA)" in listed


def test_what_the_network_sees_follows_from_the_ct_alone(tmp_path: Path) -> None:
    """MR is annotated, too, but nothing is learned from it."""
    fill(tmp_path / "data", 1)
    archive = Archive(tmp_path / "data", settle_time_s=0.0)
    alone = spacings_of(pairs_of(archive))
    for number in range(3):
        slices = images(SHAPE, spacing=(9.0, 5.0, 5.0), name=f"mr {number}", Modality="MR")
        for dataset in slices:
            del dataset.RescaleSlope, dataset.RescaleIntercept
        for dataset in (*slices, annotation(slices, phantom(1)[1])):
            archive.ingest(as_bytes(dataset))
    assert len(pairs_of(archive)) == 4
    assert spacings_of(pairs_of(archive)) == alone


def test_weights_of_strangers_are_refused() -> None:
    from index.encoders.learned.checkpoint import UnusableFile, to_bytes

    with pytest.raises(UnusableFile, match="no segmenter of this version"):
        weights.from_bytes(to_bytes({"a": 1}), "x.pt")
    with pytest.raises(UnusableFile, match="no file of a segmenter"):
        weights.from_bytes(to_bytes({"form": 1, "classes": [], "size": "small", "weights": {}}), "x.pt")
