"""How good a trained encoder is on the patients that were held out, beside the texture encoder and chance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from index.encoders.encoder import Encoder
from index.encoders.learned.corpus import UNKNOWN, Corpus
from index.evaluation import Figure, Items, by_class, chance, measure, ranked, summarise
from index.neighbours import Exclude
from index.unit_vectors import Vectors

ENCODERS = ("learned", "texture", "chance")

_OTHERS_ONLY = frozenset({Exclude.SAME_PATIENT})


@dataclass(frozen=True, eq=False)
class Judgement:
    """Figures of the held-out images.

    Attributes
    ----------
    figures
        Name of an encoder (`ENCODERS`) → name of a metric → figure; empty without labels.
    classes
        Class → mean average precision of the learned encoder and of the texture encoder.
    confusion
        Images of class (row) that the classifier takes for class (column), axes (class, class); None without classes.
    """

    figures: Mapping[str, Mapping[str, Figure]]
    classes: Mapping[str, tuple[Figure, Figure]]
    confusion: npt.NDArray[np.int64] | None


def judge(corpus: Corpus, learned: Vectors, texture: Encoder, told: npt.NDArray[np.int64] | None) -> Judgement:
    """Rank the labelled images of a corpus among themselves, those of the query's patient left out.

    Parameters
    ----------
    learned
        Vectors of the images, axes (n, d).
    told
        Class that the classifier says of each image, axis (n,); None when it knows no classes.
    """
    known = corpus.labels != UNKNOWN
    part, vectors = corpus.part(known), learned[known]
    items = items_of(part)
    if len(np.unique(part.labels)) < 2:
        return Judgement({}, {}, None)
    scores = measure(vectors, items), measure(texture.encode(part.images.astype(np.float32)), items), chance(items)
    figures = {name: summarise(score, items) for name, score in zip(ENCODERS, scores, strict=True)}
    each = [by_class(score, items) for score in scores[:2]]
    classes = {
        name: (each[0][name]["mAP"], each[1][name]["mAP"]) for name in corpus.classes if name in each[0]
    }
    return Judgement(figures, classes, None if told is None else _confusion(part, told[known]))


def items_of(corpus: Corpus) -> Items:
    """Return the images as what is ranked; those without a label have the label ""."""
    names = np.array([*corpus.classes, ""], dtype=np.str_)
    return Items(names[corpus.labels], corpus.patient_keys, corpus.studies, corpus.series)


def _confusion(corpus: Corpus, told: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    table = np.zeros((len(corpus.classes),) * 2, dtype=np.int64)
    np.add.at(table, (corpus.labels, told), 1)
    return table


def neighbours(corpus: Corpus, vectors: Vectors, queries: int, k: int, seed: int) -> list[tuple[int, list[int]]]:
    """Return some images, as many of each class as possible, each with its `k` nearest of other patients."""
    random = np.random.default_rng(seed)
    items = items_of(corpus)
    order = random.permutation(len(corpus))
    turn = dict.fromkeys(np.unique(corpus.labels), 0)
    ranks = []
    for row in order:
        ranks.append(turn[corpus.labels[row]])
        turn[corpus.labels[row]] += 1
    asked = sorted(order[np.argsort(ranks, kind="stable")[:queries]].tolist(), key=lambda row: corpus.labels[row])
    return [(row, ranked(vectors, items, row, _OTHERS_ONLY)[:k].tolist()) for row in asked]
