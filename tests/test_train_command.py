"""`tharsis train`: from an archive to weights, facts and a report; and what it refuses."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid
from typer.testing import CliRunner, Result

from index.archive import Archive
from index.encoders import registry
from index.encoders.learned.corpus import NO_TRUTH
from index.encoders.learned.encoder import LearnedEncoder

PATIENTS = 24


@pytest.fixture
def filled(tmp_path: Path, make_dataset: Callable[..., Dataset]) -> Path:
    """A data folder of 24 patients, each with one image; half of them striped across (head), half down (hand)."""
    archive = Archive(tmp_path / "data", settle_time_s=0.0)
    random = np.random.default_rng(0)
    for number in range(PATIENTS):
        wave = np.tile(2000 + 1500 * np.sin(np.arange(48) * random.uniform(0.3, 0.6)), (48, 1))
        pixels = (wave if number % 2 else wave.T) + random.normal(0, 50, size=(48, 48))
        dataset = make_dataset(
            number,
            SOPInstanceUID=generate_uid(entropy_srcs=["image", str(number)]),
            SeriesInstanceUID=generate_uid(entropy_srcs=["series", str(number)]),
            StudyInstanceUID=generate_uid(entropy_srcs=["study", str(number)]),
            PatientID=f"P{number}", Modality="MR", Rows=48, Columns=48,
            BodyPartExamined="HAND" if number % 2 else "HEAD",
            PixelData=pixels.clip(0, 4095).astype(np.uint16).tobytes(),
        )
        file = tmp_path / "one.dcm"
        dataset.save_as(file, enforce_file_format=True)
        archive.ingest(file)
    archive.close()
    return tmp_path / "data"


def run_train(data: Path, *options: str) -> Result:
    from tharsis import app

    return CliRunner().invoke(app, ["train", "--data", str(data), "--threads", "1", *options], env={"COLUMNS": "300"})


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A first stage of one epoch: what a small archive is given by default takes minutes."""
    monkeypatch.setattr("commands.training_run.epochs_for", lambda _images: (1, 2))


@pytest.mark.usefixtures("quick")
def test_train_writes_weights_facts_and_a_report(filled: Path) -> None:
    result = run_train(filled, "--labels", "BodyPartExamined", "--seed", "3", "--activate", "--batch", "8")
    assert result.exit_code == 0, result.output
    archive = Archive(filled)
    (weights,) = registry.trained(archive)
    encoder = registry.load(archive, weights.model_id)
    assert isinstance(encoder, LearnedEncoder)
    facts = json.loads(weights.path.with_suffix(".json").read_text())
    assert facts["labels"] == "BodyPartExamined"
    assert facts["classes"] == ["HAND", "HEAD"]
    assert facts["seed"] == 3
    assert facts["training"] + facts["validation"] + facts["held_out"] == PATIENTS
    assert facts["held_out_patients"] == facts["held_out"] > 0
    assert facts["mAP"]["learned"]["low"] <= facts["mean_average_precision"] <= facts["mAP"]["learned"]["high"]
    assert {"learned", "texture", "chance"} == set(facts["mAP"])
    folder = filled / "models" / weights.model_id
    assert {file.name for file in folder.iterdir()} == {
        "report.html", "curves.png", "confusion.png", "neighbours.png"
    }
    page = (folder / "report.html").read_text()
    assert weights.model_id in page
    assert page.count("data:image/png;base64,") == 3
    assert re.findall(r'(?:src|href)="(?!data:)', page) == []
    assert not list((filled / "models").glob("*.checkpoint"))
    assert archive.jobs.recent(states=("queued",), limit=5)[0].subject == weights.model_id


@pytest.mark.usefixtures("quick")
def test_train_without_labels_shows_neighbours_and_claims_nothing(filled: Path) -> None:
    result = run_train(filled, "--batch", "8")
    assert result.exit_code == 0, result.output
    (weights,) = registry.trained(Archive(filled))
    facts = json.loads(weights.path.with_suffix(".json").read_text())
    assert facts["labels"] == "none"
    assert facts["mAP"] == {}
    folder = filled / "models" / weights.model_id
    assert {file.name for file in folder.iterdir()} == {"report.html", "curves.png", "neighbours.png"}
    assert "fewer than two classes" in (folder / "report.html").read_text()


@pytest.mark.usefixtures("quick")
def test_files_that_are_missing_or_corrupt_are_left_out_and_counted(filled: Path) -> None:
    archive = Archive(filled)
    missing, corrupt = (
        archive.open_instance(generate_uid(entropy_srcs=["image", str(number)])).path for number in (0, 1)
    )
    archive.close()
    missing.unlink()
    corrupt.unlink()
    corrupt.write_bytes(bytes(4096))
    result = run_train(filled, "--batch", "8")
    assert result.exit_code == 0, result.output
    assert "2 series take no part: nothing of them can be read or decoded" in result.output
    (weights,) = registry.trained(Archive(filled))
    facts = json.loads(weights.path.with_suffix(".json").read_text())
    assert facts["series_left_out"] == 2
    assert facts["training"] + facts["validation"] + facts["held_out"] == PATIENTS - 2
    page = (filled / "models" / weights.model_id / "report.html").read_text()
    assert "2 series take no part" in page


@pytest.mark.parametrize(
    ("options", "sentence", "code"),
    [
        (("--labels", "NoSuchThing"), "neither", 2),
        (("--labels", "Modality"), "labels of at least two classes are needed", 1),
        (("--size", "huge"), "the size is one of small, paper, got 'huge'", 2),
        (("--resume",), "no interrupted training to go on with", 1),
        (("--held-out", "0.9"), "training needs at least 8 images", 1),
    ],
)
def test_what_cannot_be_trained_is_told_in_a_sentence(
    filled: Path, options: tuple[str, ...], sentence: str, code: int
) -> None:
    result = run_train(filled, *options)
    assert result.exit_code == code
    assert sentence in result.output
    assert not registry.trained(Archive(filled))


def test_an_empty_archive_has_nothing_to_train_on(tmp_path: Path) -> None:
    Archive(tmp_path / "data").close()
    result = run_train(tmp_path / "data")
    assert result.exit_code == 1
    assert "holds no image" in result.output


def test_images_are_found_where_similarity_is_switched_off(filled: Path) -> None:
    from commands.training_data import collect
    from config.settings import load_settings

    off = {"archive": {"data": filled}, "similarity": {"enabled": False}}
    assert len(collect(Archive(filled), load_settings(environment={}, overrides=off), {})) == PATIENTS


def test_segmentations_of_the_archive_come_with_their_images(
    tmp_path: Path, make_dataset: Callable[..., Dataset]
) -> None:
    """A SEG lies over its slices as they are embedded, in the slices that it tells of and in no others."""
    from pydicom.sr.coding import Code

    from commands.training_data import collect
    from config.settings import load_settings
    from plugins.segmentation.seg_object import seg_object
    from plugins.segmentation.segmenter import Algorithm, Segment, Segmentation

    archive = Archive(tmp_path / "data", settle_time_s=0.0)
    slices = []
    for number in range(6):
        pixels = np.full((64, 32), 50, np.uint16)
        pixels[4 * number : 4 * number + 20, 5:15] = 3000
        dataset = make_dataset(
            number, Modality="MR", Rows=64, Columns=32, PixelData=pixels.tobytes(), PixelSpacing=[1.0, 2.0],
            ImageOrientationPatient=[1, 0, 0, 0, -1, 0], ImagePositionPatient=[0, 0, 3.0 * number],
            SliceThickness=3.0, FrameOfReferenceUID="1.2.3", PositionReferenceIndicator="", PatientBirthDate="",
            PatientSex="", ReferringPhysicianName="",
        )
        slices.append(dataset)
        file = tmp_path / "one.dcm"
        dataset.save_as(file, enforce_file_format=True)
        archive.ingest(file)
    labels = np.stack([dataset.pixel_array > 1000 for dataset in slices]).astype(np.uint8)
    bone = Segment("bone", Code("91723000", "SCT", "Anatomical structure"), Code("272673000", "SCT", "Bone"))
    made = Segmentation(labels, (bone,), Algorithm("t", "1", Code("123105", "DCM", "Histogram Analysis"), {}))
    seg = seg_object(made, slices, recipe="{}")
    seg.save_as(tmp_path / "seg.dcm", enforce_file_format=True)
    archive.ingest(tmp_path / "seg.dcm")

    settings = load_settings(environment={}, overrides={"archive": {"data": tmp_path / "data"}})
    corpus = collect(archive, settings, {})
    assert len(corpus) == 6
    assert corpus.segments == ("Bone",)
    assert corpus.truth is not None
    assert (corpus.truth != NO_TRUTH).all()
    np.testing.assert_array_equal(corpus.truth == 1, corpus.images > 0.5)
    assert (corpus.truth == 1).any(axis=(1, 2)).all()
