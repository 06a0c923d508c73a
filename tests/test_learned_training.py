"""Training: it learns, it resumes, nothing leaks out of the held-out part, and its files are checked."""

import dataclasses
import hashlib
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from index.encoders.encoder import Encoder
from index.encoders.learned import checkpoint, stages
from index.encoders.learned.checkpoint import UnusableFile
from index.encoders.learned.corpus import NO_TRUTH, UNKNOWN, Corpus, split
from index.encoders.learned.encoder import LearnedEncoder
from index.encoders.learned.loop import CannotTrain, Epoch, Judged, OtherRun
from index.encoders.learned.recipe import Recipe, epochs_for
from index.encoders.learned.stages import TellingApart, _mean
from index.encoders.learned.training import Trained, train
from index.encoders.pixels import SIDE, VERSION
from index.split import is_held_out

QUICK = Recipe(restoring_epochs=1, epochs=2, batch=8)


def made_corpus(count: int = 16, seed: int = 0, **values: object) -> Corpus:
    """Stripes that run across or down, of random period and phase; each image is a patient of its own."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    images = []
    for label in labels:
        wave = 0.5 + 0.5 * np.sin(np.arange(SIDE) * random.uniform(0.2, 0.5) + random.uniform(0.0, 6.0))
        stripes = np.tile(wave, (SIDE, 1))
        images.append((stripes if label else stripes.T) + random.normal(0.0, 0.05, size=(SIDE, SIDE)))
    names = np.array([f"P{number}" for number in range(count)])
    plain = Corpus(
        images=np.clip(np.stack(images), 0.0, 1.0).astype(np.float16),
        labels=labels.astype(np.int64),
        classes=("across", "down"),
        patients=names,
        studies=names,
        series=names,
        places=np.zeros(count, dtype=np.int64),
    )
    return dataclasses.replace(plain, **values)


def halves(corpus: Corpus) -> tuple[Corpus, Corpus]:
    first = np.arange(len(corpus)) < 3 * len(corpus) // 4
    return corpus.part(first), corpus.part(~first)


@pytest.fixture(scope="module")
def trained() -> Trained:
    return train(*halves(made_corpus()), QUICK)


@pytest.fixture(scope="module")
def encoder(trained: Trained) -> LearnedEncoder:
    return LearnedEncoder.from_bytes(trained.weights)


@pytest.mark.slow
def test_training_learns_to_tell_two_kinds_of_stripes_apart() -> None:
    result = train(*halves(made_corpus(32)), Recipe(restoring_epochs=2, epochs=10, batch=8))
    losses = [epoch.loss for epoch in result.history if epoch.stage == "telling apart"]
    assert np.mean(losses[-3:]) < 0.85 * np.mean(losses[:3])
    fresh = made_corpus(20, seed=5)
    vectors = LearnedEncoder.from_bytes(result.weights).encode(fresh.images.astype(np.float32))
    similarity = vectors @ vectors.T - 2.0 * np.eye(len(vectors))
    assert (fresh.labels[similarity.argmax(axis=1)] == fresh.labels).mean() > 0.9


def test_both_stages_report_every_epoch(trained: Trained) -> None:
    told = [(epoch.stage, epoch.epoch, epoch.epochs) for epoch in trained.history]
    assert told == [("restoring", 1, 1), ("telling apart", 1, 2), ("telling apart", 2, 2)]
    assert all(np.isfinite([epoch.loss, epoch.figure]).all() for epoch in trained.history)


def test_the_last_of_the_epochs_that_are_equally_good_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    figures = iter([0.5, 0.9, 0.86, 0.84, 0.87, 0.7, 0.7, 0.95])  # the best, then two within its noise, then worse
    monkeypatch.setattr(TellingApart, "judge", lambda *_: Judged(next(figures), 0.05))
    recipe = dataclasses.replace(QUICK, epochs=8, patience=0.5)
    history = train(*halves(made_corpus()), recipe).history
    told = [epoch.kept for epoch in history if epoch.stage == "telling apart"]
    assert told == [True, True, True, False, True, False]  # four epochs after the best it stops


def test_a_figure_of_perfect_answers_is_no_surer_than_one_query() -> None:
    assert _mean(np.ones(50)) == Judged(1.0, 1 / 50)
    spread = np.array([0.0, 1.0] * 50)
    assert _mean(spread) == Judged(0.5, pytest.approx(0.05))


@pytest.mark.parametrize("after", [1, 2, 3])
def test_a_resumed_training_gives_the_weights_of_one_that_was_not_interrupted(
    trained: Trained, tmp_path: Path, after: int
) -> None:
    saved = tmp_path / "run.checkpoint"
    seen: list[Epoch] = []

    def interrupt(epoch: Epoch) -> None:
        seen.append(epoch)
        if len(seen) == after + 1:
            raise KeyboardInterrupt

    if after < len(trained.history):
        with pytest.raises(KeyboardInterrupt):
            train(*halves(made_corpus()), QUICK, saved=saved, progress=interrupt)
    else:
        train(*halves(made_corpus()), QUICK, saved=saved, progress=interrupt)
    resumed: list[Epoch] = []
    result = train(*halves(made_corpus()), QUICK, saved=saved, progress=resumed.append)
    assert len(resumed) == len(trained.history) - after
    assert result.history == trained.history
    assert hashlib.sha256(result.weights).digest() == hashlib.sha256(trained.weights).digest()


@pytest.mark.parametrize(
    ("change", "recipe"),
    [({}, dataclasses.replace(QUICK, seed=1)), ({"seed": 9}, QUICK)],
    ids=["recipe", "images"],
)
def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path, change: dict[str, int], recipe: Recipe) -> None:
    saved = tmp_path / "run.checkpoint"
    train(*halves(made_corpus()), QUICK, saved=saved)
    with pytest.raises(OtherRun, match="another"):
        train(*halves(made_corpus(**change)), recipe, saved=saved)


def test_a_broken_checkpoint_is_refused(tmp_path: Path) -> None:
    saved = tmp_path / "run.checkpoint"
    saved.write_bytes(b"nothing of the kind")
    with pytest.raises(UnusableFile, match=r"run\.checkpoint is no file of weights"):
        train(*halves(made_corpus()), QUICK, saved=saved)


def seen_by_training(corpus: Corpus) -> tuple[Corpus, Corpus]:
    parts = split(corpus, fraction=0.3, seed=0)
    seen = corpus.part(~parts.held_out).compact()
    watched = parts.validation[~parts.held_out]
    return seen.part(~watched), seen.part(watched)


def test_held_out_patients_influence_nothing() -> None:
    clean = made_corpus(24)
    held_out = split(clean, fraction=0.3, seed=0).held_out
    assert 0 < held_out.sum() < 12
    images, labels = clean.images.copy(), clean.labels.copy()
    images[held_out], labels[held_out] = 1.0, 2
    poisoned = dataclasses.replace(clean, images=images, labels=labels, classes=("across", "down", "poison"))
    one, other = (train(*seen_by_training(corpus), QUICK).weights for corpus in (clean, poisoned))
    assert one == other


def test_the_parts_are_disjoint_by_patient_and_the_held_out_part_is_that_of_the_evaluation() -> None:
    patients = np.array([f"P{number // 3}" for number in range(60)])
    corpus = made_corpus(60, patients=patients)
    parts = split(corpus, fraction=0.25, seed=4)
    sides = [set(patients[part]) for part in (parts.training, parts.validation, parts.held_out)]
    assert sum(map(len, sides)) == len(set(patients))
    assert all(sides)
    assert sides[2] == {patient for patient in patients if is_held_out(patient, seed=4, fraction=0.25)}


def test_a_patient_without_id_is_its_study() -> None:
    corpus = made_corpus(30, patients=np.full(30, ""), studies=np.array([f"1.{number // 2}" for number in range(30)]))
    held_out = split(corpus, fraction=0.5, seed=0).held_out
    assert 0 < held_out.sum() < 30
    assert (held_out[::2] == held_out[1::2]).all()


def test_images_without_patient_id_are_judged_among_those_of_other_studies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one patient, no image could ask for another one, and the figure by which an epoch is kept would be none."""
    monkeypatch.setattr(stages, "features_of", lambda _network, images: np.eye(2)[np.arange(len(images)) % 2])
    corpus = made_corpus(16, patients=np.full(16, ""))
    judged = TellingApart(corpus, corpus, QUICK).judge(SimpleNamespace(network=None), torch.Generator())
    assert judged.figure == 1.0


def test_classes_and_segments_that_do_not_occur_are_forgotten() -> None:
    truth = np.full((4, SIDE, SIDE), NO_TRUTH, dtype=np.uint8)
    truth[1] = 0
    truth[1, :9, :9] = 3
    corpus = made_corpus(
        4, labels=np.array([4, UNKNOWN, 2, 4]), classes=tuple("abcde"), truth=truth, segments=("x", "y", "z")
    ).compact()
    assert corpus.classes == ("c", "e")
    assert corpus.labels.tolist() == [1, UNKNOWN, 0, 1]
    assert corpus.segments == ("z",)
    assert corpus.truth is not None
    assert np.unique(corpus.truth[0]).tolist() == [NO_TRUTH]
    assert (corpus.truth[1] == 1).sum() == 81


def test_neighbours_are_the_slices_before_and_after() -> None:
    corpus = made_corpus(5, series=np.array(["a", "a", "a", "b", "b"]), places=np.array([0, 1, 2, 0, 1]))
    assert corpus.neighbours.tolist() == [[0, 1], [0, 2], [1, 2], [3, 4], [3, 4]]


@pytest.mark.parametrize("labelled", [0, 6], ids=["no labels", "some labels"])
def test_images_without_labels_take_part(labelled: int) -> None:
    corpus = made_corpus(16)
    labels = np.where(np.arange(16) < labelled, corpus.labels, UNKNOWN)
    result = train(*halves(dataclasses.replace(corpus, labels=labels).compact()), QUICK)
    assert {epoch.figure_name for epoch in result.history} == {"negative loss"}
    assert all(np.isfinite(epoch.loss) and epoch.loss > 0 for epoch in result.history)
    assert LearnedEncoder.from_bytes(result.weights).encode(corpus.images.astype(np.float32)).shape[0] == 16


def test_segmentations_take_part_where_there_are_some() -> None:
    truth = np.full((16, SIDE, SIDE), NO_TRUTH, dtype=np.uint8)
    truth[::2] = 0
    truth[::2, 30:90, 30:90] = 1
    with_truth, without = made_corpus(truth=truth, segments=("lung",)), made_corpus()
    losses = [train(*halves(corpus), QUICK).history[0].loss for corpus in (with_truth, without)]
    assert losses[0] > losses[1]


def test_too_few_images_are_told_in_a_sentence() -> None:
    with pytest.raises(CannotTrain, match="at least 8 images, and there are 7"):
        train(made_corpus(7), made_corpus(2), QUICK)


@pytest.mark.parametrize(
    ("values", "message"),
    [({"size": "huge"}, "small, paper, got 'huge'"), ({"batch": 1}, "at least 2 images"), ({"epochs": 0}, "1 epoch")],
)
def test_recipes_that_make_no_sense_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe(**values)


def test_few_images_are_seen_more_often() -> None:
    few, many, huge = (epochs_for(count) for count in (200, 1300, 100_000))
    assert few[0] > many[0] >= huge[0] >= 1
    assert few[1] > many[1] > huge[1] >= 1


def test_the_encoder_is_one_and_its_identity_is_that_of_its_file(trained: Trained, encoder: LearnedEncoder) -> None:
    checked: Encoder = encoder
    assert checked.model_id == f"learned-{VERSION}-{hashlib.sha256(trained.weights).hexdigest()[:12]}"
    vectors = checked.encode(made_corpus(3).images.astype(np.float32))
    assert vectors.shape == (3, checked.dimension)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-6)
    assert checked.encode(np.zeros((0, SIDE, SIDE), np.float32)).shape == (0, checked.dimension)
    with pytest.raises(ValueError, match="expected images of 128 × 128"):
        checked.encode(np.zeros((1, 64, 64), np.float32))


def test_other_weights_have_another_identity(trained: Trained, encoder: LearnedEncoder) -> None:
    content = checkpoint.from_bytes(trained.weights, "it")
    content["mean"][0] += 1.0
    assert LearnedEncoder.from_bytes(checkpoint.to_bytes(content)).model_id != encoder.model_id


def test_vectors_do_not_depend_on_what_else_is_encoded(trained: Trained, encoder: LearnedEncoder) -> None:
    images = made_corpus(40, seed=2).images.astype(np.float32)
    vectors = encoder.encode(images)
    np.testing.assert_array_equal(vectors, LearnedEncoder.from_bytes(trained.weights).encode(images))
    np.testing.assert_allclose(encoder.encode(images[33:36]), vectors[33:36], atol=1e-5)


class Evil:
    """What a pickle may do."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return print, ("run",)


def torch_file(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def altered(trained: Trained, **values: object) -> bytes:
    return torch_file({**checkpoint.from_bytes(trained.weights, "it"), **values})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda _: b"", "no file of weights"),
        (lambda _: b"rubbish" * 100, "no file of weights"),
        (lambda trained: trained.weights[:5000], "no file of weights"),
        (lambda _: pickle.dumps(Evil()), "no file of weights"),
        (lambda _: torch_file({"format": 1, "evil": Evil()}), "no file of weights"),
        (lambda _: torch_file([1, 2]), "expected a dictionary, got list"),
        (lambda _: torch_file({}), "format None, expected 1"),
        (lambda trained: altered(trained, format=9), "format 9, expected 1"),
        (lambda trained: altered(trained, preprocessing=0), f"preprocessing 0, this node makes {VERSION}"),
        (lambda trained: altered(trained, network={}), "does not hold the weights of a tandem"),
        (lambda trained: altered(trained, size={"name": "odd"}), "does not hold the weights of a tandem"),
        (lambda trained: altered(trained, projection=torch.zeros(3, 4)), "expected a whitening of"),
    ],
)
def test_files_that_are_no_weights_are_refused_in_a_sentence(
    trained: Trained, capsys: pytest.CaptureFixture[str], make: Callable[[Trained], bytes], message: str
) -> None:
    with pytest.raises(UnusableFile, match=message) as caught:
        LearnedEncoder.from_bytes(make(trained), "x.pt")
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("x.pt")
    assert capsys.readouterr().out == ""
