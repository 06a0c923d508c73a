"""A training of a segmenter, from the archive to the archive: read the pairs, train, judge, keep, report."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from commands.console import USAGE, fail, out, progress_bar
from commands.segmenter_data import Pair, collect, pairs_of, spacings_of
from commands.segmenter_judgement import Judgement, judge
from commands.segmenter_report import Report, write_report
from commands.segmenter_training import HoldOut
from commands.training_bar import training_bar
from config.identity import version
from index.archive import Archive
from index.encoders.learned.checkpoint import UnusableFile
from index.encoders.learned.device import describe, use_threads
from index.encoders.learned.loop import CannotTrain, OtherRun
from plugins.node import CannotProceed
from plugins.segmentation.learned import models, weights
from plugins.segmentation.learned.examples import Examples, Parts, split_patients, split_slices
from plugins.segmentation.learned.recipe import Recipe, epochs_for
from plugins.segmentation.learned.training import Run, train


@dataclass(frozen=True)
class Wishes:
    """What the command line says.

    Attributes
    ----------
    segments
        Names of the classes to learn; None: all.
    hold_out, held_out
        What is held out whole, and which share of it.
    spacing_mm, epochs
        None: by the images.
    report
        Folder; None: one named after the model.
    """

    segments: tuple[str, ...] | None
    hold_out: HoldOut
    held_out: float
    spacing_mm: float | None
    seed: int
    size: str
    epochs: int | None
    threads: int
    resume: bool
    report: Path | None


def list_annotated(archive: Archive) -> None:
    """Show the names of what is annotated, and in how many series."""
    pairs = _pairs(archive)
    counts: Counter[str] = Counter()
    with progress_bar("Reading the annotations") as bar:
        examples = _collected(pairs, _spacings(pairs, None), None, bar.fraction)
    for volume in examples.volumes:
        is_told = np.asarray(volume.is_told.any(axis=0))
        counts.update(each.name for number, each in enumerate(examples.classes, start=1) if is_told[number])
    table = Table("segment", "code", "series")
    for each in examples.classes:
        code = ", ".join(f"({code.value}, {code.scheme_designator})" for code in (each.type, *each.modifiers))
        table.add_row(escape(each.name), code, str(counts[each.name]))
    out.print(table)


def run_training(archive: Archive, wishes: Wishes) -> None:
    """Do what `tharsis train-segmenter` says; what cannot be done ends the command with one sentence."""
    use_threads(wishes.threads)
    pairs = _pairs(archive)
    spacing, reach = _spacings(pairs, wishes.spacing_mm)
    with progress_bar("Reading the annotated volumes") as bar:
        examples = _collected(pairs, (spacing, reach), wishes.segments, bar.fraction)
    _refuse_unknown(examples, wishes.segments)
    parts = _split(examples, wishes)
    recipe = _recipe(parts.training, wishes, spacing, reach)
    checkpoint = models.folder_of(archive.data) / f"segmenter-{_identity(parts, recipe)}.checkpoint"
    run = _train(parts, recipe, checkpoint, resume=wishes.resume)
    _keep(archive, examples, parts, recipe, run, wishes)
    checkpoint.unlink(missing_ok=True)


def _pairs(archive: Archive) -> list[Pair]:
    pairs = pairs_of(archive)
    if not pairs:
        fail("the archive holds no annotated series: send SEG or RTSTRUCT objects about CT that it holds")
    return pairs


def _spacings(pairs: list[Pair], wanted: float | None) -> tuple[float, float]:
    try:
        spacing, reach = spacings_of(pairs)
    except CannotProceed as error:
        fail(str(error))
    return (spacing, reach) if wanted is None else (wanted, max(reach, wanted))


def _collected(
    pairs: list[Pair],
    spacings: tuple[float, float],
    segments: tuple[str, ...] | None,
    progress: Callable[[float], None],
) -> Examples:
    try:
        return collect(pairs, *spacings, segments, progress)
    except CannotProceed as error:
        fail(str(error))


def _refuse_unknown(examples: Examples, segments: tuple[str, ...] | None) -> None:
    for name in segments or ():
        if not any(each.is_called({name.casefold()}) for each in examples.classes):
            fail(f"nothing of the name {name!r} is annotated; `tharsis train-segmenter --list` shows what is", USAGE)
    if not examples.classes:
        fail("no annotation of the archive can be read on a CT volume in Hounsfield units: there is nothing to learn")


def _split(examples: Examples, wishes: Wishes) -> Parts:
    """Split the volumes; ends the command where a part that is needed stays empty."""
    if wishes.hold_out is HoldOut.SLICES:
        parts = split_slices(examples, fraction=wishes.held_out, seed=wishes.seed)
    else:
        parts = split_patients(examples, fraction=wishes.held_out, seed=wishes.seed)
    if not parts.training.slices() or (wishes.held_out and not parts.held_out.slices()):
        patients = len({volume.patient or volume.study for volume in examples.volumes})
        empty = "hold out" if parts.training.slices() else "train on"
        instead = "" if wishes.hold_out is HoldOut.SLICES else "--hold-out slices, "
        fail(
            f"with {patients} annotated patients and seed {wishes.seed} there is nothing to {empty}: "
            f"take {instead}another --seed or another --held-out"
        )
    return parts


def _recipe(training: Examples, wishes: Wishes, spacing: float, reach: float) -> Recipe:
    epochs = wishes.epochs or epochs_for(len(training.slices()))
    try:
        return Recipe(spacing, reach, size=wishes.size, seed=wishes.seed, epochs=epochs)
    except ValueError as error:
        fail(str(error), USAGE)


def _identity(parts: Parts, recipe: Recipe) -> str:
    """Return what stands for a training in the name of its checkpoint."""
    told = repr((asdict(recipe), parts.training.digest(), parts.validation.digest()))
    return hashlib.sha256(told.encode()).hexdigest()[:12]


def _train(parts: Parts, recipe: Recipe, checkpoint: Path, *, resume: bool) -> Run:
    if not resume:
        checkpoint.unlink(missing_ok=True)
    elif not checkpoint.exists():
        fail(f"there is no interrupted training of these volumes and options to go on with (no {checkpoint})")
    try:
        with training_bar(recipe.epochs) as show:
            return train(parts.training, parts.validation, recipe, saved=checkpoint, progress=show)
    except KeyboardInterrupt:
        fail("interrupted; the same command with --resume goes on after the last whole epoch")
    except (CannotTrain, OtherRun, UnusableFile) as error:
        fail(str(error))


def _keep(archive: Archive, examples: Examples, parts: Parts, recipe: Recipe, run: Run, wishes: Wishes) -> None:
    """Judge the segmenter, store it with what it depends on, write its report and tell of it."""
    trained = weights.from_bytes(run.file, "the trained network")
    with progress_bar("Judging by what was held out"):
        judgement = judge(trained, parts.held_out, examples, parts.training, recipe.spacing_mm)
    facts = _facts(parts, recipe, run, judgement, wishes)
    model = models.add(archive.data, run.file, facts)
    folder = wishes.report or models.folder_of(archive.data) / model
    page = write_report(Report(model, facts, run.history, parts.held_out, judgement), folder)
    out.print(f"segmenter: {model}", highlight=False, soft_wrap=True)
    for name, (own, other) in judgement.means.items():
        out.print(
            f"mean Dice, {name} classes, held-out {wishes.hold_out}: learned {own.value:.3f} "
            f"({own.low:.3f} to {own.high:.3f}), classical at best {other.value:.3f}",
            highlight=False,
        )
    out.print(f"report: {page}", highlight=False, soft_wrap=True, markup=False)
    out.print(
        f'Use it: in the settings, [segmentation] use = ["classical", "learned"] and learned_model = "{model}"; '
        "what is stored already gets it by `tharsis jobs queue segment`",
        highlight=False, soft_wrap=True, markup=False,
    )  # fmt: skip


def _facts(parts: Parts, recipe: Recipe, run: Run, judgement: Judgement, wishes: Wishes) -> dict[str, Any]:
    """Return what is written beside the weights."""
    counts: dict[str, Any] = {}
    for name, part in (("training", parts.training), ("validation", parts.validation), ("held_out", parts.held_out)):
        counts[f"{name}_slices"] = len(part.slices())
        counts[f"{name}_patients"] = len({volume.patient or volume.study for volume in part.volumes})
    means = {
        f"dice_{name}": {"learned": asdict(own), "classical": asdict(other)}
        for name, (own, other) in judgement.means.items()
    }
    return {
        "classes": [each.to_plain() for each in parts.training.classes],
        "dice": {name: own for name, (own, _) in judgement.dice.items()},
        "held_out_by": str(wishes.hold_out),
        "held_out_fraction": wishes.held_out,
        "watched": "validation patients" if run.watched_validation else "training slices",
        "epochs_run": len(run.history),
        **means,
        **counts,
        **asdict(recipe),
        "tharsis": version(),
        **describe(),
    }
