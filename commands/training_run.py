"""A training from the archive to the archive: read the images, train, judge, keep the weights, report."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from commands.console import USAGE, fail, out, progress_bar
from commands.training_bar import training_bar
from commands.training_data import collect
from commands.training_judgement import Judgement, judge, neighbours
from commands.training_report import Report, write_report
from config.identity import version
from config.settings import Settings
from index.archive import Archive
from index.encoders import registry
from index.encoders.learned.checkpoint import UnusableFile
from index.encoders.learned.corpus import UNKNOWN, Corpus, Split, split
from index.encoders.learned.device import describe, use_threads
from index.encoders.learned.encoder import LearnedEncoder
from index.encoders.learned.loop import CannotTrain, OtherRun
from index.encoders.learned.recipe import Recipe, epochs_for
from index.encoders.learned.training import Trained, predicted, train
from index.labels import InvalidLabels, read_labels
from plugins.embedding import replace_encoder

CHECKPOINT = "training.checkpoint"
_QUERIES, _NEIGHBOURS = 10, 8


@dataclass(frozen=True)
class Wishes:
    """What the command line says.

    Attributes
    ----------
    labels
        A DICOM keyword or the path of a CSV file; None: none are used.
    held_out
        Share of the patients.
    epochs
        Of the second stage; None: by the number of images.
    report
        Folder; None: one named after the model.
    """

    labels: str | None
    held_out: float
    seed: int
    size: str
    epochs: int | None
    batch: int
    threads: int
    resume: bool
    activate: bool
    report: Path | None


def run_training(archive: Archive, settings: Settings, wishes: Wishes) -> None:
    """Do what `tharsis train` says; what cannot be done ends the command with one sentence."""
    use_threads(wishes.threads)
    try:
        labels = read_labels(archive, wishes.labels) if wishes.labels is not None else {}
        recipe = Recipe(size=wishes.size, seed=wishes.seed, batch=wishes.batch)
    except (InvalidLabels, ValueError) as error:
        fail(str(error), USAGE)
    with progress_bar("Reading the images") as bar:
        corpus = collect(archive, settings, labels, bar.fraction)
    if corpus.left_out:
        out.print(f"{corpus.left_out:,} series take no part: nothing of them can be read or decoded")
    parts = split(corpus, fraction=wishes.held_out, seed=wishes.seed)
    _refuse_too_little(corpus, parts, wishes.labels)
    run = _Run.of(corpus, parts, recipe, wishes.epochs)
    checkpoint = registry.models_folder(archive) / CHECKPOINT
    trained = _train(run, checkpoint, resume=wishes.resume)
    _keep(archive, run, trained, wishes)
    checkpoint.unlink(missing_ok=True)


def _refuse_too_little(corpus: Corpus, parts: Split, labels: str | None) -> None:
    """End the command, with one sentence, where training could only give nonsense."""
    if not len(corpus):
        fail("the archive holds no image that can be embedded: there is nothing to train on")
    known = corpus.labels[~parts.held_out]
    if labels is not None and len(np.unique(known[known != UNKNOWN])) < 2:
        names = ", ".join(corpus.classes) or "none"
        fail(
            f"labels of at least two classes are needed among the training patients, and {labels} gives: {names}; "
            "without --labels the encoder learns by itself"
        )


@dataclass(frozen=True, eq=False)
class _Run:
    """The corpus, the parts of it that training may see, and the numbers it goes by."""

    corpus: Corpus
    held_out: Corpus
    training: Corpus
    validation: Corpus
    recipe: Recipe

    @classmethod
    def of(cls, corpus: Corpus, parts: Split, recipe: Recipe, epochs: int | None) -> _Run:
        """Take the parts out; what only held-out patients have is not even known by name in the others."""
        seen = corpus.part(~parts.held_out).compact()
        is_watched = parts.validation[~parts.held_out]
        training, validation = seen.part(~is_watched), seen.part(is_watched)
        restoring, telling_apart = epochs_for(len(training))
        full = replace(recipe, restoring_epochs=restoring, epochs=epochs or telling_apart)
        return cls(corpus, corpus.part(parts.held_out), training, validation, full)


def _train(run: _Run, checkpoint: Path, *, resume: bool) -> Trained:
    if not resume:
        checkpoint.unlink(missing_ok=True)
    elif not checkpoint.exists():
        fail(f"there is no interrupted training to go on with (no {checkpoint})")
    try:
        with training_bar(run.recipe.restoring_epochs + run.recipe.epochs) as show:
            return train(run.training, run.validation, run.recipe, saved=checkpoint, progress=show)
    except KeyboardInterrupt:
        fail("interrupted; the same command with --resume goes on after the last whole epoch")
    except OtherRun as error:
        fail(f"{error}; give the options of the interrupted training, or leave out --resume")
    except (CannotTrain, UnusableFile) as error:
        fail(str(error))


def _keep(archive: Archive, run: _Run, trained: Trained, wishes: Wishes) -> None:
    """Judge the encoder, store it with what it depends on, write its report and tell of it."""
    encoder = LearnedEncoder.from_bytes(trained.weights)
    images = run.held_out.images.astype(np.float32)
    vectors = encoder.encode(images)
    judgement = judge(run.held_out, vectors, registry.built_in(), _told(run, trained))
    facts = _facts(run, trained, judgement, wishes)
    registry.add(archive, trained.weights, facts)
    pairs = neighbours(run.held_out, vectors, _QUERIES, _NEIGHBOURS, run.recipe.seed)
    folder = wishes.report or registry.models_folder(archive) / encoder.model_id
    page = write_report(Report(encoder.model_id, facts, trained.history, run.held_out, judgement, pairs), folder)
    out.print(f"model: {encoder.model_id}", highlight=False, soft_wrap=True)
    for name, figures in judgement.figures.items():
        if "mAP" in figures:
            mean = figures["mAP"]
            told = f"mAP on held-out patients, {name}: {mean.value:.3f} ({mean.low:.3f} to {mean.high:.3f})"
            out.print(told, highlight=False)
    out.print(f"report: {page}", highlight=False, soft_wrap=True, markup=False)
    if wishes.activate:
        replace_encoder(archive, encoder.model_id)
        out.print("The archive is being embedded with it, and answers with it when that is done.")
    else:
        out.print(f"Answer with it: tharsis models activate {encoder.model_id}", highlight=False, soft_wrap=True)


def _told(run: _Run, trained: Trained) -> npt.NDArray[np.int64] | None:
    """Return the class, as a number of the corpus, that the classifier says of each held-out image; None without."""
    classes = run.training.classes
    if len(classes) < 2:
        return None
    numbers = np.array([run.corpus.classes.index(name) for name in classes], dtype=np.int64)
    return np.asarray(numbers[predicted(trained.learner, run.held_out.images)])


def _facts(run: _Run, trained: Trained, judgement: Judgement, wishes: Wishes) -> dict[str, Any]:
    """Return what is written beside the weights."""
    figures = {name: asdict(own["mAP"]) for name, own in judgement.figures.items() if "mAP" in own}
    counts: dict[str, Any] = {}
    for name, part in (("training", run.training), ("validation", run.validation), ("held_out", run.held_out)):
        counts[name] = len(part)
        counts[f"{name}_patients"] = len(set(part.patient_keys.tolist()))
    learned = {"mean_average_precision": figures["learned"]["value"]} if figures else {}
    return {
        "labels": wishes.labels or "none",
        "classes": list(run.training.classes),
        "segments": list(run.training.segments),
        "series_left_out": run.corpus.left_out,
        "held_out_fraction": wishes.held_out,
        "mAP": figures,
        "epochs_run": len(trained.history),
        **learned,
        **counts,
        **asdict(run.recipe),
        "tharsis": version(),
        **describe(),
    }
