"""A linear probe: how far a straight line through the vectors tells the classes apart (Alain and Bengio, 2016).

Multinomial logistic regression on frozen vectors, fitted on the training part. Its one free number, the
regularisation, is chosen by cross-validation inside that part, with the images of a patient in one fold. What it
reaches on the held-out part is what a supervised classifier draws from an embedding, whatever the distances say.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from index.evaluation import Figure, Items, Scores, summarise
from index.unit_vectors import Vectors

_FOLDS = 5
_STRENGTHS = np.logspace(-5, 1, 7)
"""Inverse regularisations that are tried, on standardised vectors: they mean the same for every encoder."""


@dataclass(frozen=True)
class Probe:
    """What the probe reached.

    Attributes
    ----------
    accuracy
        On the held-out part, with its interval.
    majority
        Accuracy of naming the most frequent training class always.
    trained_on
        Items of the training part.
    regularisation
        The inverse regularisation C that cross-validation chose.
    """

    accuracy: Figure
    majority: float
    trained_on: int
    regularisation: float


def linear_probe(
    training: Vectors, training_items: Items, held_out: Vectors, held_out_items: Items, *, seed: int = 0
) -> Probe:
    """Fit on the training part, judge on the held-out one.

    Raises
    ------
    ValueError
        A training part with fewer than two classes, a class with fewer than two patients in it, or nothing held out.
    """
    labels, groups = training_items.labels, training_items.patients
    classes, counts = np.unique(labels, return_counts=True)
    folds = min(_FOLDS, *(len(np.unique(groups[labels == name])) for name in classes)) if len(classes) else 0
    if len(classes) < 2 or folds < 2:
        raise ValueError(f"a probe needs two classes with two training patients each, got {len(classes)} classes")
    if not len(held_out_items):
        raise ValueError("a probe needs a held-out part, and nothing is held out")
    search = GridSearchCV(
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)),
        {"logisticregression__C": _STRENGTHS},
        cv=StratifiedGroupKFold(folds, shuffle=True, random_state=seed),
    )
    search.fit(training, labels, groups=groups)
    right = (search.predict(held_out) == held_out_items.labels).astype(np.float64)
    scores = Scores(np.arange(len(right)), {"accuracy": right}, 0)
    return Probe(
        accuracy=summarise(scores, held_out_items, seed=seed)["accuracy"],
        majority=float(np.mean(held_out_items.labels == classes[np.argmax(counts)])),
        trained_on=len(labels),
        regularisation=float(search.best_params_["logisticregression__C"]),
    )
