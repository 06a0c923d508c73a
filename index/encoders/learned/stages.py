"""The two stages of training: CE-Net learns to restore (and to segment), then both networks learn to tell apart.

A stage says which weights it trains at which rate, what it makes small, and how it is judged. Its figures are larger
when better.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from index.encoders.learned import augment, losses
from index.encoders.learned.corpus import NO_TRUTH, UNKNOWN, Corpus
from index.encoders.learned.learner import Learner, as_batch, features_of, unit_rows
from index.encoders.learned.loop import Judged, Numbers, in_order
from index.encoders.learned.recipe import Recipe
from index.evaluation import Items, measure
from index.unit_vectors import unit

Precisions = npt.NDArray[np.float64]

_FEWEST_QUERIES = 8
"""With fewer labelled validation images a mean average precision says nothing."""


@dataclass(frozen=True, eq=False)
class Restoring:
    """First stage: CE-Net restores images that were masked and made noisy, and segments those that have a truth."""

    training: Corpus
    validation: Corpus
    recipe: Recipe
    name: str = "restoring"
    figure: str = "negative loss"

    @property
    def epochs(self) -> int:
        """Passes over the images, at most."""
        return self.recipe.restoring_epochs

    @property
    def images(self) -> int:
        """How many training images there are."""
        return len(self.training)

    def weights(self, learner: Learner) -> list[dict[str, Any]]:
        """Train CE-Net alone."""
        return [{"params": list(learner.network.cenet.parameters()), "share": 1.0}]

    def loss(self, learner: Learner, rows: Numbers, random: torch.Generator) -> Tensor:
        """Return the mean absolute error, plus cross-entropy and Dice where there is a truth."""
        return self._loss(learner, self.training, rows, random)

    def judge(self, learner: Learner, random: torch.Generator) -> Judged:
        """Judge it by the negative loss on the validation images."""
        with torch.inference_mode():
            parts = [
                (len(rows), float(self._loss(learner, self.validation, rows, random)))
                for rows in in_order(len(self.validation), self.recipe.batch)
            ]
        return Judged(-sum(count * loss for count, loss in parts) / len(self.validation))

    def _loss(self, learner: Learner, corpus: Corpus, rows: Numbers, random: torch.Generator) -> Tensor:
        images = as_batch(corpus.images[rows], learner.network.side, _device(learner))
        if corpus.truth is None:
            seen = augment.views(images, random, self.recipe.strength)
            return losses.reconstruction(learner.network.cenet(augment.masked(seen, random)), seen)
        step = corpus.truth.shape[1] // learner.network.side
        truth = torch.from_numpy(corpus.truth[rows, ::step, ::step]).to(images.device)
        has_truth = (truth != NO_TRUTH).flatten(1).any(dim=1)
        seen, truth = augment.views_with_truth(images, truth, random, self.recipe.strength)
        # What is to be segmented is not hidden.
        shown = torch.where(has_truth[:, None, None, None], seen, augment.masked(seen, random))
        predicted = learner.network.cenet(shown)
        loss = losses.reconstruction(predicted[:, :1], seen)
        if bool(has_truth.any()):
            loss = loss + losses.segmentation(predicted[has_truth, 1:], truth[has_truth].long())
        return loss


@dataclass(frozen=True, eq=False)
class TellingApart:
    """Second stage: images of one class lie together; those without a label lie beside another view of themselves."""

    training: Corpus
    validation: Corpus
    recipe: Recipe
    name: str = "telling apart"

    @property
    def figure(self) -> str:
        """``mAP`` where the validation images have labels of two classes, else ``negative loss``."""
        known = self.validation.labels[self.validation.labels != UNKNOWN]
        return "mAP" if len(known) >= _FEWEST_QUERIES and len(np.unique(known)) > 1 else "negative loss"

    @property
    def epochs(self) -> int:
        """Passes over the images, at most."""
        return self.recipe.epochs

    @property
    def images(self) -> int:
        """How many training images there are."""
        return len(self.training)

    def weights(self, learner: Learner) -> list[dict[str, Any]]:
        """Train Xception and the classifier, and CE-Net at a lower rate."""
        rest = [*learner.network.xception.parameters(), *learner.classifier.parameters()]
        cenet = list(learner.network.cenet.parameters())
        return [{"params": cenet, "share": self.recipe.fine_tuning}, {"params": rest, "share": 1.0}]

    def loss(self, learner: Learner, rows: Numbers, random: torch.Generator) -> Tensor:
        """Return cross-entropy and supervised contrastive loss of the labelled, NT-Xent of the other images."""
        return self._loss(learner, self.training, rows, random)

    def judge(self, learner: Learner, random: torch.Generator) -> Judged:
        """Judge it by the mean average precision among the validation images, or by the negative loss."""
        corpus = self.validation
        if self.figure == "mAP":
            known = corpus.part(corpus.labels != UNKNOWN)
            items = Items(known.labels.astype(np.str_), known.patient_keys, known.studies, known.series)
            scores = measure(unit(features_of(learner.network, known.images)), items)
            return _mean(scores.values["mAP"])
        with torch.inference_mode():
            parts = [
                (len(rows), float(self._loss(learner, corpus, rows, random)))
                for rows in in_order(len(corpus), self.recipe.batch)
            ]
        return Judged(-sum(count * loss for count, loss in parts) / len(corpus))

    def _loss(self, learner: Learner, corpus: Corpus, rows: Numbers, random: torch.Generator) -> Tensor:
        is_known = corpus.labels[rows] != UNKNOWN
        known, unknown = rows[is_known], rows[~is_known]
        others = _neighbours(corpus, unknown, random)
        rows = np.concatenate([known, unknown, others])
        images = as_batch(corpus.images[rows], learner.network.side, _device(learner))
        features = learner.network(augment.views(images, random, self.recipe.strength))
        vectors = unit_rows(features)
        loss = 0.0 * vectors.sum()
        if len(known):
            labels = torch.from_numpy(corpus.labels[known]).to(features.device)
            logits = learner.logits(features[: len(known)], random)
            loss = loss + functional.cross_entropy(logits, labels, label_smoothing=self.recipe.smoothing)
            loss = loss + self.recipe.contrastive * losses.supervised_contrastive(vectors[: len(known)], labels)
        if len(unknown) > 1:
            first, second = vectors[len(known) : len(rows) - len(others)], vectors[-len(others) :]
            groups = torch.arange(len(unknown), device=features.device)
            loss = loss + losses.two_views(first, second, groups)
        return loss


def _mean(values: Precisions) -> Judged:
    """Return the mean over the queries and its standard error, but at least what one query more or less would change.

    Where all queries are right the error would be none, and chance would decide between epochs.
    """
    if not len(values):
        return Judged(0.0)
    return Judged(float(values.mean()), max(float(values.std()) / math.sqrt(len(values)), 1.0 / len(values)))


def _neighbours(corpus: Corpus, rows: Numbers, random: torch.Generator) -> Numbers:
    """Return for each of `rows` itself, or the slice before or after it in its series."""
    before, after = corpus.neighbours[rows].T
    choice = torch.randint(3, (len(rows),), generator=random).numpy()
    return np.asarray(np.choose(choice, [rows, before, after]), dtype=np.int64)


def _device(learner: Learner) -> torch.device:
    return next(learner.parameters()).device
