"""The training of an encoder: its two stages, then the whitening."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from index.encoders.learned import augment, whitening
from index.encoders.learned.corpus import Corpus, Images
from index.encoders.learned.device import best_device
from index.encoders.learned.encoder import weights_file
from index.encoders.learned.learner import Learner, as_batch, features_of, new_learner
from index.encoders.learned.loop import CannotTrain, Epoch, Progress, Stage, generator, in_order, run
from index.encoders.learned.recipe import Recipe
from index.encoders.learned.stages import Restoring, TellingApart
from index.encoders.learned.whitening import Features, Labels

_FORM = 2
"""Of the content of a checkpoint."""

_VIEWS_TO_WHITEN = 2
_WHITENED_AT_ONCE = 256


@dataclass(frozen=True, eq=False)
class Trained:
    """What training gives.

    Attributes
    ----------
    weights
        The file for `LearnedEncoder`.
    learner
        The network with its classifier.
    history
        Every epoch of both stages.
    """

    weights: bytes
    learner: Learner
    history: tuple[Epoch, ...]


def train(
    training: Corpus,
    validation: Corpus,
    recipe: Recipe,
    *,
    saved: Path | None = None,
    progress: Progress = lambda _epoch: None,
) -> Trained:
    """Train both networks and fit the whitening.

    Parameters
    ----------
    training, validation
        Of one corpus, disjoint by patient. Early stopping watches the second; without any image in it, it watches the
        training images.
    saved
        Checkpoint, written after every epoch. When it exists the run goes on from there.
    progress
        Called after every epoch.

    Raises
    ------
    CannotTrain
        Fewer than 8 training images.
    OtherRun
        The checkpoint was made of other images or by another recipe.
    UnusableFile
        The checkpoint is broken.
    """
    if len(training) < 8:
        raise CannotTrain(f"training needs at least 8 images, and there are {len(training)}")
    watched = validation if len(validation) else training
    learner = new_learner(recipe.widths, len(training.classes), len(training.segments), recipe.seed)
    learner.to(best_device())
    identity = {"form": _FORM, "recipe": asdict(recipe), "images": [training.digest(), validation.digest()]}
    stages: tuple[Stage[Learner], ...] = (Restoring(training, watched, recipe), TellingApart(training, watched, recipe))
    state = run(learner, stages, recipe, identity, saved=saved, progress=progress)
    features, labels = _to_whiten(state.shadow, training, validation, recipe)
    fitted = whitening.fit(features, labels, recipe.widths.dimension)
    weights = weights_file(state.shadow.network, recipe.widths, fitted)
    return Trained(weights, state.shadow, tuple(state.history))


def predicted(learner: Learner, images: Images) -> npt.NDArray[np.int64]:
    """Return the class that the classifier says of each of `images`, axes (n, row, column), as numbers, axis (n,)."""
    device = best_device()
    told = learner.classify(torch.from_numpy(features_of(learner.network, images)).to(device))
    return np.asarray(told.argmax(dim=1).cpu().numpy(), dtype=np.int64)


def _to_whiten(
    learner: Learner, training: Corpus, validation: Corpus, recipe: Recipe
) -> tuple[Features, Labels]:
    """Return features and labels of the training patients' images, and of other views of them.

    The views show how images of a class differ that the network has not learned by heart.
    """
    random = generator(recipe.seed, "whitening", 0)
    features, labels = [], []
    for corpus in (training, validation):
        for rows in in_order(len(corpus), _WHITENED_AT_ONCE):
            batch = as_batch(corpus.images[rows], learner.network.side, torch.device("cpu"))
            seen = [augment.views(batch, random, recipe.strength) for _ in range(_VIEWS_TO_WHITEN)]
            for images in (corpus.images[rows], *(view[:, 0].numpy() for view in seen)):
                features.append(features_of(learner.network, images))
                labels.append(corpus.labels[rows])
    return np.concatenate(features), np.concatenate(labels)


