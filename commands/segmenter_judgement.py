"""How good a trained segmenter is on what was held out, beside the best that the segmenter `classical` can be."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from index.evaluation import Figure
from plugins.segmentation.classical import Classical
from plugins.segmentation.learned.examples import Example, Examples
from plugins.segmentation.learned.inference import probabilities
from plugins.segmentation.learned.losses import UNKNOWN
from plugins.segmentation.learned.weights import Trained
from plugins.segmentation.segmenter import Volume

Labels = npt.NDArray[np.uint8]
Counts = npt.NDArray[np.int64]

LARGE = 0.01
"""A class is large when it has at least this share of the annotated voxels of the training part."""

_DRAWS = 1000
_SMOOTHING_VOXELS, _LEAST_MM3 = 1.0, 1.0


@dataclass(frozen=True, eq=False)
class Judgement:
    """Figures on the held-out part.

    Attributes
    ----------
    predicted, classical
        Labels of each held-out volume: classes as the network numbers them, and segments of `classical`, whose names
        are `classical_names` (number n is item n - 1).
    dice
        Class → Dice coefficient of the learned segmenter and of the segment of `classical` that fits the class best;
        those of the held-out part only.
    matches
        Class → name of that segment; "" where `classical` found none that overlaps it.
    large
        The large ones of these classes.
    means
        ``large`` and ``all`` → the mean of the two over those classes, with 95 % bootstrap intervals over the held-out
        volumes or blocks of slices.
    """

    predicted: tuple[Labels, ...]
    classical: tuple[Labels, ...]
    classical_names: tuple[str, ...]
    dice: Mapping[str, tuple[float, float]]
    matches: Mapping[str, str]
    large: tuple[str, ...]
    means: Mapping[str, tuple[Figure, Figure]]


def judge(trained: Trained, held_out: Examples, whole: Examples, training: Examples, spacing_mm: float) -> Judgement:
    """Segment the held-out part and compare with what the annotations say.

    Parameters
    ----------
    whole
        All volumes, uncut: `classical` sees each as a whole, the network only the held-out slices.
    training
        Says which classes are large.
    spacing_mm
        Of rows and columns of the volumes.
    """
    if not held_out.slices():
        return Judgement((), (), (), {}, {}, (), {})
    predicted = tuple(_predicted(trained, volume) for volume in held_out.volumes)
    classical, names = _classical(held_out, whole, spacing_mm)
    learned = np.stack([_counts(own, volume) for own, volume in zip(predicted, held_out.volumes, strict=True)])
    other = np.stack([_counts(own, volume) for own, volume in zip(classical, held_out.volumes, strict=True)])
    present = np.flatnonzero(_voxels(learned.sum(axis=0))[1:]) + 1
    voxels = training.counts()
    large = present[voxels[present] >= LARGE * voxels[1:].sum()]
    called = {int(number): held_out.classes[number - 1].name for number in present}
    own_dice, best_dice = _own(learned.sum(axis=0)), _best(other.sum(axis=0))
    fitting = _dice(other.sum(axis=0))[1:].argmax(axis=0)
    return Judgement(
        predicted,
        classical,
        names,
        {name: (float(own_dice[number]), float(best_dice[number])) for number, name in called.items()},
        {name: names[fitting[number]] if best_dice[number] > 0 else "" for number, name in called.items()},
        tuple(called[int(number)] for number in large),
        {
            name: (_figure(learned, _own, some), _figure(other, _best, some))
            for name, some in (("large", large), ("all", present))
            if len(some)
        },
    )


def _predicted(trained: Trained, volume: Example) -> Labels:
    found = probabilities(trained.network, volume.values, volume.step, trained.tile, trained.mirrored)
    return np.stack([each.argmax(dim=0).cpu().numpy() for each in found]).astype(np.uint8)


def _classical(held_out: Examples, whole: Examples, spacing_mm: float) -> tuple[tuple[Labels, ...], tuple[str, ...]]:
    """Return the labels of `classical` for each held-out volume, and the names that the numbers from 1 on stand for."""
    wanted = {volume.series for volume in held_out.volumes}
    found = {}
    for volume in whole.volumes:
        if volume.series in wanted:
            seen = Volume(volume.values.astype(np.float32), (volume.slice_mm, spacing_mm, spacing_mm), is_hu=True)
            found[volume.series] = Classical(_SMOOTHING_VOXELS, _LEAST_MM3).segment(seen, lambda _done: None)
    names = sorted({segment.label for own in found.values() for segment in own.segments})
    cut = []
    for volume in held_out.volumes:
        own = found[volume.series]
        numbers = np.array([0, *(names.index(segment.label) + 1 for segment in own.segments)], dtype=np.uint8)
        cut.append(numbers[own.labels[volume.first : volume.first + len(volume.values)]])
    return tuple(cut), tuple(names)


def _counts(labels: Labels, volume: Example) -> Counts:
    """Return voxels that have each label and each true class, and voxels that have each label; axes (2, label, class).

    Of each class only the slices count in which somebody looked for it, and of those the voxels whose truth is known.
    """
    classes = volume.is_told.shape[1]
    counts = np.zeros((2, 256, classes), dtype=np.int64)
    for own, truth, is_told in zip(labels, volume.truth, volume.is_told, strict=True):
        is_known = truth != UNKNOWN
        pairs = own[is_known].astype(np.int64) * classes + truth[is_known]
        table = np.bincount(pairs, minlength=256 * classes).reshape(256, classes)
        counts[0] += table * is_told
        counts[1] += table.sum(axis=1)[:, None] * is_told
    return counts


def _voxels(counts: Counts) -> npt.NDArray[np.int64]:
    """Return how many voxels each class has, axis (class,)."""
    return np.asarray(counts[0].sum(axis=0))


def _dice(counts: Counts) -> npt.NDArray[np.float64]:
    """Return the Dice coefficient of each label with each class, axes (label, class)."""
    overlap, labelled = counts
    return np.asarray(2.0 * overlap / np.maximum(labelled + _voxels(counts)[None, :], 1))


def _own(counts: Counts) -> npt.NDArray[np.float64]:
    """Return the Dice coefficient of each class with the label of its number, axis (class,)."""
    return np.diagonal(_dice(counts)[: counts.shape[2]]).copy()


def _best(counts: Counts) -> npt.NDArray[np.float64]:
    """Return the Dice coefficient of each class with the label that fits it best, axis (class,)."""
    return np.asarray(_dice(counts)[1:].max(axis=0))


def _figure(
    counts: Counts, dice: Callable[[Counts], npt.NDArray[np.float64]], some: npt.NDArray[np.intp]
) -> Figure:
    """Return the mean over the classes `some`, with the percentile bootstrap over the first axis (Efron, 1979).

    A draw in which a class is not annotated says nothing of it. From one volume there is no interval.
    """

    def mean(counts: Counts) -> float:
        is_there = some[_voxels(counts)[some] > 0]
        return float(dice(counts)[is_there].mean()) if len(is_there) else np.nan

    random = np.random.default_rng(0)
    draws = [mean(counts[random.integers(len(counts), size=len(counts))].sum(axis=0)) for _ in range(_DRAWS)]
    low, high = np.nanquantile(draws, [0.025, 0.975])
    return Figure(mean(counts.sum(axis=0)), float(low), float(high))
