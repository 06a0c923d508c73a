"""Encoders judged on an archive: who takes part, stored and new vectors, the probe, and the command itself."""

from __future__ import annotations

import json
import shutil
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from typer.testing import CliRunner

import tharsis as composition
from commands.judging import RANDOM, Terms, judge
from index import embeddings
from index.encoders import registry
from index.encoders.pixels import SIDE, canonical_frames
from index.encoders.registry import Weights
from index.encoders.texture import TextureEncoder
from index.evaluation import Items, chance, measure, summarise
from index.gallery import Part, gallery, members, stored_frames
from index.image_files import read_image_file
from index.keys import Level
from index.labels import read_labels
from index.probe import linear_probe
from index.secondary_capture import Description, secondary_capture
from index.split import is_held_out
from index.unit_vectors import unit

ROOT = "1.2.826.0.1.3680043.9.7133"


def quiet(_fraction: float) -> None:
    """Nobody watches."""


class Constant:
    """An encoder that makes a vector of the mean grey, and counts the images that it saw."""

    name, dimension = "constant", 2

    def __init__(self, model_id: str = "constant-1-000000000000") -> None:
        self.model_id, self.seen = model_id, 0

    def encode(self, images):
        assert images.shape[1:] == (SIDE, SIDE)
        self.seen += len(images)
        return unit(np.stack([images.mean(axis=(1, 2)) + 0.01, np.ones(len(images))], axis=1))


@pytest.fixture
def filled(archive, make_instance):
    """14 series of 2 images: 6 patients with "a", 6 with "b", two series of P0, one without a label."""
    for number, patient in enumerate([*range(12), 0, 12]):
        label = "" if patient == 12 else "b" if patient % 2 else "a"
        for image in (0, 1):
            pixels = np.arange(64, dtype=np.uint16) * (1 if label == "a" else 1 + image)
            archive.ingest(
                make_instance(
                    10 * number + image, PatientID=f"P{patient}", StudyInstanceUID=f"{ROOT}.1.{number}",
                    SeriesInstanceUID=f"{ROOT}.2.{number}", SeriesDescription=label, PixelData=pixels.tobytes(),
                )
            )  # fmt: skip
    return archive


def uid(number: int) -> str:
    return f"{ROOT}.2.{number}"


def test_who_takes_part_are_the_labelled_series_by_their_patients(filled):
    labels = read_labels(filled, "SeriesDescription")
    found = members(filled, labels)
    assert {member.series_instance_uid for member in found} == {uid(number) for number in range(13)}
    assert [member.patient for member in found if member.series_instance_uid == uid(12)] == ["P0"]
    part = Part(0.5, seed=3)
    held = {member.patient for member in found if part.holds(member)}
    assert held == {f"P{n}" for n in range(12) if is_held_out(f"P{n}", seed=3, fraction=0.5)}
    assert all(Part().holds(member) for member in found)


def test_stored_vectors_are_used_and_the_rest_is_embedded_for_the_run_alone(filled):
    labels = read_labels(filled, "SeriesDescription")
    encoder = Constant()
    embeddings.register(filled, encoder.model_id, 2)
    stored = np.array([0.6, 0.8], dtype=np.float32)
    embeddings.store(filled, encoder.model_id, uid(3), [(f"{ROOT}.9.30", 0, stored)])
    verdict = judge(filled, [encoder], labels, Terms(), quiet)
    assert encoder.seen == 2 * 12
    place = verdict.gallery.frames.index((f"{ROOT}.9.30", 0))
    np.testing.assert_allclose(verdict.gallery.vectors[encoder.model_id][place], stored, atol=1e-6)
    assert len(verdict.gallery.items) == 2 * 12 + 1
    assert list(stored_frames(filled, encoder.model_id, members(filled, labels))) == [uid(3)]


@pytest.mark.parametrize(("level", "items"), [(Level.IMAGE, 26), (Level.SERIES, 13)])
def test_images_or_whole_series_are_ranked(filled, level, items):
    verdict = judge(filled, [Constant()], read_labels(filled, "SeriesDescription"), Terms(level=level), quiet)
    assert len(verdict.gallery.items) == len(verdict.gallery.frames) == items
    assert verdict.left_out == 0
    assert set(verdict.figures) == {Constant().model_id, RANDOM}


def test_a_level_above_the_series_is_refused(filled):
    with pytest.raises(ValueError, match="IMAGE or SERIES"):
        gallery([], {"a": {}}, Level.STUDY)


def test_encoders_are_judged_by_the_same_items(filled):
    """What one of them has no vector of is ranked by none."""
    chosen = members(filled, read_labels(filled, "SeriesDescription"))
    one = {member.series_instance_uid: [("i", frame, unit([1.0, frame])) for frame in (1, 2, 3)] for member in chosen}
    two = {key: frames[:2] for key, frames in one.items() if key != uid(4)}
    found = gallery(chosen, {"one": one, "two": two}, Level.IMAGE)
    assert len(found.items) == 2 * 12
    assert uid(4) not in found.items.series
    assert found.vectors["one"].shape == found.vectors["two"].shape


def test_a_series_that_cannot_be_embedded_is_counted_not_hidden(filled):
    path = filled.open_instance(f"{ROOT}.9.50").path
    other = filled.open_instance(f"{ROOT}.9.51").path
    for file in (path, other):
        file.write_bytes(b"no DICOM")
    verdict = judge(filled, [Constant()], read_labels(filled, "SeriesDescription"), Terms(), quiet)
    assert verdict.without_vectors == 1
    assert uid(5) not in verdict.gallery.items.series


def test_only_as_many_queries_are_asked_as_wanted(filled):
    verdict = judge(filled, [Constant()], read_labels(filled, "SeriesDescription"), Terms(queries=7), quiet)
    assert len(verdict.scores[RANDOM].queries) == len(verdict.scores[Constant().model_id].queries) == 7


def items_of(labels: np.ndarray) -> Items:
    names = np.array([f"P{number}" for number in range(len(labels))])
    return Items(labels, names, names, names)


def test_a_probe_reaches_what_a_line_can_separate():
    random = np.random.default_rng(0)
    labels = random.choice(["a", "b", "c"], size=300)
    means = {"a": [3, 0, 0, 0], "b": [0, 3, 0, 0], "c": [0, 0, 3, 0]}
    vectors = unit(np.array([means[label] for label in labels]) + random.normal(size=(300, 4)))
    train, held = slice(0, 200), slice(200, 300)
    told = linear_probe(vectors[train], items_of(labels[train]), vectors[held], items_of(labels[held]))
    assert told.accuracy.value > 0.9
    assert told.accuracy.low < told.accuracy.value < told.accuracy.high
    assert told.trained_on == 200
    noise = unit(random.normal(size=(300, 4)))
    none = linear_probe(noise[train], items_of(labels[train]), noise[held], items_of(labels[held]))
    assert none.accuracy.value == pytest.approx(1 / 3, abs=0.15)


@pytest.mark.parametrize(
    ("training", "held", "said"),
    [
        (["a", "a", "a"], ["a"], "two classes"),
        (["a", "a", "b"], ["a"], "two training patients"),
        (["a", "a", "b", "b"], [], "nothing is held out"),
    ],
)
def test_a_probe_that_cannot_be_fitted_says_why(training, held, said):
    def arrays(labels):
        return np.eye(4, dtype=np.float32)[: len(labels)], items_of(np.array(labels, dtype=np.str_))

    with pytest.raises(ValueError, match=said):
        linear_probe(*arrays(training), *arrays(held))


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        ([], 2, "--labels has to say"),
        (["--labels", "Unicorn"], 2, "is neither"),
        (["--labels", "SeriesDescription", "--level", "PATIENT"], 2, "expected IMAGE or SERIES"),
        (["--labels", "SeriesDescription", "-k", "1,0"], 2, "whole numbers from 1"),
        (["--labels", "SeriesDescription", "--exclude", "HOME"], 2, "expected one of SAME_SERIES"),
        (["--labels", "SeriesDescription", "--probe"], 2, "give --held-out"),
        (["--labels", "SeriesDescription", "--model", "learned-9-0123456789ab"], 1, "learned-9-0123456789ab"),
        (["--labels", "StudyID", "--held-out", "0.000001"], 1, "no two patients"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_mistake_is_told_in_one_sentence(filled, options, code, said):
    told = CliRunner(env={"COLUMNS": "250"}).invoke(composition.app, ["evaluate", "--data", str(filled.data), *options])
    assert told.exit_code == code, told.output
    assert said in told.output
    assert told.output.count("tharsis:") == 1


def test_what_training_noted_decides_who_is_judged(filled, monkeypatch):
    """Labels, held-out share and seed come from the note beside the weights; two notes that differ need a word."""
    note = {"labels": "SeriesDescription", "held_out_fraction": 0.5}
    notes = [Weights(f"m{seed}", Path(f"m{seed}.pt"), {**note, "seed": seed}) for seed in (3, 4)]
    monkeypatch.setattr(registry, "trained", lambda _archive: notes)
    monkeypatch.setattr(registry, "load", lambda _archive, model_id: Constant(model_id))

    def run(*options):
        return CliRunner().invoke(composition.app, ["evaluate", "--data", str(filled.data), "--json", *options])

    report = json.loads(run("--model", "m3").stdout)
    assert (report["labels"], report["held_out"], report["seed"]) == ("SeriesDescription", 0.5, 3)
    assert not report["judged_on_training_patients"]
    everybody = json.loads(run("--model", "m3", "--held-out", "0").stdout)
    assert (everybody["held_out"], everybody["patients"]) == (None, 12)
    assert everybody["judged_on_training_patients"]
    assert "figures are too good" in run("--model", "m3", "--seed", "9").stderr
    told = run("--model", "m3", "--model", "m4")
    assert told.exit_code == 2
    assert "--held-out and --seed" in told.output
    assert run("--model", "m3", "--model", "m4", "--held-out", "0.5", "--seed", "1").exit_code == 0


@pytest.fixture(scope="session")
def med_nist(shared_data, tmp_path_factory):
    """Twelve images of each of two classes that are easy to tell apart, in folders by class."""
    folder = tmp_path_factory.mktemp("mednist")
    for name in ("Hand", "HeadCT"):
        for file in sorted((shared_data / "MedNIST" / "resized" / name).iterdir())[:12]:
            (folder / name).mkdir(exist_ok=True)
            shutil.copy(file, folder / name)
    return folder


@pytest.mark.slow
def test_images_come_in_and_encoders_are_judged_on_them(tharsis, med_nist, tmp_path):
    data = tmp_path / "data"
    assert tharsis("import", med_nist, "--images", "--data", data).returncode == 0
    chart = tmp_path / "chart.png"
    told = tharsis("evaluate", "--labels", "SeriesDescription", "--held-out", "0.6", "--seed", "1", "--probe",
                   "--by-class", "-k", "1,3", "--picture", chart, "--data", data, "--json")  # fmt: skip
    assert told.returncode == 0, told.stderr
    report = json.loads(told.stdout)
    assert (report["held_out"], report["seed"], report["level"]) == (0.6, 1, "IMAGE")
    assert set(report["classes"]) == {"Hand", "HeadCT"}
    assert report["items"] == report["queries"] == report["patients"] == sum(report["classes"].values())
    (texture,) = (name for name in report["metrics"] if name != RANDOM)
    figures = report["metrics"][texture]
    assert list(figures) == ["P@1", "P@3", "R@1", "R@3", "mAP", "NDCG@1", "NDCG@3"]
    for figure in figures.values():
        assert 0.0 <= figure["low"] <= figure["value"] <= figure["high"] <= 1.0
    assert figures["mAP"]["low"] > report["metrics"][RANDOM]["mAP"]["high"]
    assert set(report["by_class"][texture]) == {"Hand", "HeadCT"}
    assert report["probe"][texture]["accuracy"]["value"] > report["probe"][texture]["majority"]
    assert report["probe"][texture]["trained_on"] == 24 - report["items"]
    for picture in (chart, tmp_path / "chart-neighbours.png"):
        with Image.open(picture) as image:
            assert min(image.size) > 200

    shown = tharsis("evaluate", "--labels", "SeriesDescription", "--data", data)
    assert shown.returncode == 0, shown.stderr
    assert "All classes (24 queries)" in shown.stdout
    assert "random" in shown.stdout


@pytest.mark.slow
def test_texture_finds_its_like_in_mednist_beyond_chance(shared_data):
    images, labels = [], []
    for folder in sorted((shared_data / "MedNIST" / "resized").iterdir()):
        for file in sorted(folder.iterdir())[::15]:
            dataset = pydicom.dcmread(BytesIO(secondary_capture(read_image_file(file), Description(file.stem))))
            images.append(canonical_frames(dataset).images[0])
            labels.append(folder.name)
    items = items_of(np.array(labels))
    figures = summarise(measure(TextureEncoder.load().encode(np.stack(images)), items), items)
    for name, by_chance in summarise(chance(items), items).items():
        assert figures[name].low > by_chance.high, name
    assert figures["P@1"].value > 0.9
