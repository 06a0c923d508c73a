"""An evaluation from the archive to a table: whom to judge and by what, and how it is told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Column, Table

from commands.console import USAGE, err, fail, out, print_json, progress_bar
from commands.judging import RANDOM, Summary, Terms, Verdict, judge
from config.settings import Settings
from index.archive import Archive
from index.encoders import registry
from index.encoders.encoder import Encoder
from index.errors import InvalidIdentifier, UnknownModel
from index.evaluation import Figure
from index.gallery import Part
from index.keys import Level
from index.labels import InvalidLabels, read_labels, unlabelled
from index.neighbours import Exclude

_NOTHING = "NOTHING"
_NO_LABELS = "none"
"""What training notes when it had none."""

_TOO_GOOD = "A model was trained on some of those that it is judged on: its figures are too good."


@dataclass(frozen=True)
class Wishes:
    """What the command line says, as `tharsis evaluate --help` describes it; None: not said."""

    labels: str | None
    models: tuple[str, ...]
    held_out: float | None
    seed: int | None
    level: str
    ks: str
    exclude: tuple[str, ...]
    queries: int
    by_class: bool
    probe: bool
    picture: Path | None
    as_json: bool


def run_evaluation(archive: Archive, settings: Settings, wishes: Wishes) -> None:
    """Do what `tharsis evaluate` says; what cannot be done ends the command with one sentence."""
    encoders = _encoders(archive, wishes.models)
    notes = _notes(archive, encoders, decides=wishes.held_out is None)
    source, terms = _terms(wishes, notes[0] if notes else {}, settings)
    try:
        labels = read_labels(archive, source)
    except InvalidLabels as error:
        fail(str(error), USAGE)
    seen = _was_seen(terms.part, notes)
    if seen:
        err.print(_TOO_GOOD, style="yellow", soft_wrap=True)
    verdict = _judged(archive, encoders, labels, terms, quiet=wishes.as_json)
    if not verdict.figures[RANDOM]:
        fail(f"nothing to judge by: no two patients of this part share a label of {source}")
    files = _drawn(archive, verdict, terms, wishes.picture) if wishes.picture is not None else []
    lacking = unlabelled(archive, labels)
    if wishes.as_json:
        report = _report(verdict, terms, source, lacking, by_class=wishes.by_class)
        print_json(report | {"judged_on_training_patients": seen})
        return
    _print(verdict, terms, source, lacking, by_class=wishes.by_class)
    for file in files:
        out.print(f"written: {file}", highlight=False, soft_wrap=True, markup=False)


def _terms(wishes: Wishes, note: Mapping[str, Any], settings: Settings) -> tuple[str, Terms]:
    """Return where the labels come from, and the terms: as wished, else as training noted."""
    source = wishes.labels or str(note.get("labels") or _NO_LABELS)
    if source == _NO_LABELS:
        fail("--labels has to say which series belong together: a DICOM keyword or a CSV file", USAGE)
    part = _part(wishes.held_out, wishes.seed, note)
    if wishes.probe and part.fraction is None:
        fail("a probe is fitted on those who are not held out: give --held-out", USAGE)
    return source, Terms(
        part=part,
        level=_level(wishes.level),
        ks=_cut_offs(wishes.ks),
        exclude=_exclusions(wishes.exclude),
        most=settings.similarity.max_frames_per_series,
        queries=wishes.queries,
        seed=part.seed,
        probe=wishes.probe,
    )


def _encoders(archive: Archive, wanted: Sequence[str]) -> list[Encoder]:
    """Return the encoders to judge, the texture encoder at the end."""
    try:
        chosen = [registry.load(archive, one) for one in wanted] or [registry.current(archive)]
    except UnknownModel as error:
        fail(str(error))
    unique = {encoder.model_id: encoder for encoder in chosen}
    unique.setdefault(registry.built_in().model_id, registry.built_in())
    return list(unique.values())


def _notes(archive: Archive, encoders: Sequence[Encoder], *, decides: bool) -> list[Mapping[str, Any]]:
    """Return what training noted about the models; when it decides who is held out, they have to agree."""
    chosen = {encoder.model_id for encoder in encoders}
    notes: list[Mapping[str, Any]] = [
        weights.facts for weights in registry.trained(archive) if weights.model_id in chosen and weights.facts
    ]
    splits = {(note.get("held_out_fraction"), note.get("seed")) for note in notes}
    if decides and len(splits) > 1:
        fail("these models held out different patients in training: say which with --held-out and --seed", USAGE)
    return notes


def _was_seen(part: Part, notes: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a model was trained on some of those that it is judged on: its figures are then too good."""
    for note in notes:
        noted = float(note.get("held_out_fraction") or 0.0)
        if part.fraction is None or part.fraction > noted or part.seed != note.get("seed"):
            return True
    return False


def _part(held_out: float | None, seed: int | None, note: Mapping[str, Any]) -> Part:
    fraction = held_out if held_out is not None else note.get("held_out_fraction")
    chosen = seed if seed is not None else note.get("seed", 0)
    return Part(float(fraction) if fraction else None, int(chosen))


def _level(level: str) -> Level:
    if level.upper() not in (Level.IMAGE, Level.SERIES):
        fail(f"--level: expected IMAGE or SERIES, got {level!r}", USAGE)
    return Level(level.upper())


def _cut_offs(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) >= 1 for part in parts):
        fail(f"-k: expected whole numbers from 1, separated by commas, got {text!r}", USAGE)
    return tuple(sorted({int(part) for part in parts}))


def _exclusions(given: Sequence[str]) -> frozenset[Exclude]:
    if [each.upper() for each in given] == [_NOTHING]:
        return frozenset()
    try:
        return frozenset(Exclude.parse(each.upper()) for each in given) or frozenset({Exclude.SAME_PATIENT})
    except InvalidIdentifier as error:
        fail(f"--exclude: {error}", USAGE)


def _judged(
    archive: Archive, encoders: Sequence[Encoder], labels: Mapping[str, str], terms: Terms, *, quiet: bool
) -> Verdict:
    with progress_bar("Embedding", quiet=quiet) as bar:
        try:
            return judge(archive, encoders, labels, terms, bar.fraction)
        except ValueError as error:
            fail(str(error))


def _drawn(archive: Archive, verdict: Verdict, terms: Terms, file: Path) -> list[Path]:
    from commands.evaluation_pictures import draw  # matplotlib takes a second

    return draw(archive, verdict, terms.exclude, file)


def _report(verdict: Verdict, terms: Terms, source: str, lacking: int, *, by_class: bool) -> dict[str, Any]:
    items = verdict.gallery.items
    return {
        "labels": source,
        "series_without_label": lacking,
        "series_without_vectors": verdict.without_vectors,
        "level": terms.level.value,
        "excluded": sorted(terms.exclude),
        "held_out": terms.part.fraction,
        "seed": terms.part.seed,
        "classes": dict(sorted(Counter(items.labels.tolist()).items())),
        "patients": len(set(items.patients.tolist())),
        "items": len(items),
        "queries": len(verdict.scores[RANDOM].queries),
        "queries_left_out": verdict.left_out,
        "metrics": {name: _plain(figures) for name, figures in verdict.figures.items()},
        "by_class": {
            name: {label: _plain(figures) for label, figures in classes.items()}
            for name, classes in verdict.classes.items()
        }
        if by_class
        else None,
        "probe": {name: asdict(probe) for name, probe in verdict.probes.items()},
    }


def _plain(figures: Summary) -> dict[str, dict[str, float]]:
    return {name: asdict(figure) for name, figure in figures.items()}


def _print(verdict: Verdict, terms: Terms, source: str, lacking: int, *, by_class: bool) -> None:
    items = verdict.gallery.items
    out.print(_table(f"All classes ({len(verdict.scores[RANDOM].queries):,} queries)", verdict.figures))
    if by_class:
        for label, count in sorted(Counter(items.labels.tolist()).items()):
            own = {name: classes[label] for name, classes in verdict.classes.items() if label in classes}
            if own:
                out.print(_table(f"{label} ({count:,} of {len(items):,})", own))
    for name, probe in verdict.probes.items():
        out.print(
            f"Linear probe on {name}: accuracy {in_words(probe.accuracy)}, fitted on {probe.trained_on:,} "
            f"(always the most frequent class: {probe.majority:.3f})",
            highlight=False, soft_wrap=True,
        )  # fmt: skip
    part = "everybody" if terms.part.fraction is None else f"{terms.part.fraction:g} held out, seed {terms.part.seed}"
    facts = [
        f"labels: {source}",
        f"patients: {part}, {len(set(items.patients.tolist())):,} of them",
        f"queries without any relevant item: {verdict.left_out:,}",
        f"series without a label: {lacking:,}; without vectors: {verdict.without_vectors:,}",
    ]
    out.print("; ".join(facts), highlight=False, soft_wrap=True, markup=False)


def _table(title: str, figures: Mapping[str, Summary]) -> Table:
    table = Table("", *(Column(escape(name), overflow="fold") for name in figures), title=escape(title))
    for metric in next(iter(figures.values())):
        table.add_row(metric, *(in_words(summary[metric]) for summary in figures.values()))
    return table


def in_words(figure: Figure) -> str:
    """Return a figure with its interval, as reports write it."""
    return f"{figure.value:.3f} ({figure.low:.3f}–{figure.high:.3f})"
