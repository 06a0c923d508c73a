"""The loop: epochs of a stage, early stopping, and a checkpoint after each epoch.

Everything random in an epoch comes from a generator that is seeded by (seed, stage, epoch). A run that was interrupted
therefore goes on from its last checkpoint to the same weights as one that was not, on the same machine and with as many
threads.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from index.durable import write_whole
from index.encoders.learned import augment, checkpoint, whitening
from index.encoders.learned.corpus import Corpus, Images
from index.encoders.learned.device import best_device
from index.encoders.learned.encoder import weights_file
from index.encoders.learned.learner import Learner, as_batch, features_of, follow, new_learner, shadow_of
from index.encoders.learned.recipe import Recipe
from index.encoders.learned.stages import Restoring, Stage, TellingApart, in_order, shuffled
from index.encoders.learned.whitening import Features, Labels

_WARM_UP = 0.1
"""Share of a stage's steps in which the learning rate rises; then it falls to 0 along half a cosine."""

_STEEPEST = 5.0
"""Gradients longer than this are shortened."""

_FORM = 2
"""Of the content of a checkpoint."""

_OTHER = {"form": "another version", "recipe": "another recipe", "images": "another set of images"}

_VIEWS_TO_WHITEN = 2
_WHITENED_AT_ONCE = 256


class CannotTrain(ValueError):
    """These images cannot be trained on; the message is a sentence."""


class OtherRun(ValueError):
    """The checkpoint belongs to another run; the message is a sentence."""


@dataclass(frozen=True)
class Epoch:
    """What an epoch came to.

    Attributes
    ----------
    stage, figure_name
        Names of the stage and of the figure on the validation images.
    epoch, epochs
        Number of the epoch, from 1, and of how many at most.
    loss
        Mean over the training images.
    figure
        On the validation images; larger is better.
    kept
        Whether its weights are kept, until a later epoch's are: its figure is the best so far, but for noise.
    """

    stage: str
    epoch: int
    epochs: int
    loss: float
    figure_name: str
    figure: float
    kept: bool


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


Progress = Callable[[Epoch], None]


_PLAIN = ("stage", "epoch", "step", "best", "noise", "best_epoch")


@dataclass(eq=False)
class _State:
    """All that changes while a run goes on, and all that a checkpoint holds."""

    learner: Learner
    shadow: Learner
    stage: int = 0
    epoch: int = 0
    step: int = 0
    best: float = -np.inf
    noise: float = 0.0
    best_epoch: int = 0
    kept: dict[str, Any] = field(default_factory=dict)
    optimiser: dict[str, Any] = field(default_factory=dict)
    history: list[Epoch] = field(default_factory=list)

    def to_content(self) -> dict[str, Any]:
        """Return it as plain values and tensors."""
        plain = {name: getattr(self, name) for name in _PLAIN}
        states = {"learner": self.learner.state_dict(), "shadow": self.shadow.state_dict()}
        history = [asdict(epoch) for epoch in self.history]
        return {**plain, **states, "kept": self.kept, "optimiser": self.optimiser, "history": history}

    def restore(self, content: dict[str, Any]) -> None:
        """Take what `to_content` returned."""
        for name in (*_PLAIN, "kept", "optimiser"):
            setattr(self, name, content[name])
        self.learner.load_state_dict(content["learner"])
        self.shadow.load_state_dict(content["shadow"])
        self.history = [Epoch(**epoch) for epoch in content["history"]]


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
    state = _State(learner, shadow_of(learner))
    identity = {"form": _FORM, "recipe": asdict(recipe), "images": [training.digest(), validation.digest()]}
    if saved is not None and saved.exists():
        _resume(state, saved, identity)
    stages: tuple[Stage, ...] = (Restoring(training, watched, recipe), TellingApart(training, watched, recipe))
    for number, stage in enumerate(stages):
        if state.stage > number:
            continue
        for epoch in _stage_epochs(state, stage, len(training), recipe):
            progress(epoch)
            if saved is not None:
                write_whole(saved, checkpoint.to_bytes({**identity, **state.to_content()}))
        _end_stage(state)
    features, labels = _to_whiten(state.shadow, training, validation, recipe)
    fitted = whitening.fit(features, labels, recipe.widths.dimension)
    weights = weights_file(state.shadow.network, recipe.widths, fitted)
    return Trained(weights, state.shadow, tuple(state.history))


def predicted(learner: Learner, images: Images) -> npt.NDArray[np.int64]:
    """Return the class that the classifier says of each of `images`, axes (n, row, column), as numbers, axis (n,)."""
    device = best_device()
    told = learner.classify(torch.from_numpy(features_of(learner.network, images)).to(device))
    return np.asarray(told.argmax(dim=1).cpu().numpy(), dtype=np.int64)


def _resume(state: _State, saved: Path, identity: dict[str, Any]) -> None:
    content = checkpoint.from_bytes(saved.read_bytes(), saved.name)
    for name, value in identity.items():
        if content.get(name) != value:
            raise OtherRun(f"{saved.name} is of a run with {_OTHER[name]}")
    state.restore(content)


def _stage_epochs(state: _State, stage: Stage, images: int, recipe: Recipe) -> Iterator[Epoch]:
    """Run the epochs that are left of a stage, and yield each when `state` holds it."""
    groups = stage.weights(state.learner)
    patience = recipe.patience * stage.epochs
    optimiser = torch.optim.AdamW(groups, lr=recipe.rate, weight_decay=recipe.decay)
    if state.optimiser:
        optimiser.load_state_dict(state.optimiser)
    while state.epoch < stage.epochs and state.epoch - state.best_epoch < max(1.0, patience):
        random = _generator(recipe.seed, stage.name, state.epoch)
        batches = shuffled(images, recipe.batch, random)
        reach = recipe.averaging * stage.epochs * len(batches)
        total = 0.0
        state.learner.train()
        for index, rows in enumerate(batches):
            rate = recipe.rate * _schedule((state.epoch + (index + 0.5) / len(batches)) / stage.epochs)
            for group in optimiser.param_groups:
                group["lr"] = rate * group["share"]
            _step(state, optimiser, loss := stage.loss(state.learner, rows, random))
            follow(state.shadow, state.learner, reach, state.step)
            state.step += 1
            total += len(rows) * float(loss.detach())
        state.epoch += 1
        judged = stage.judge(state.shadow.eval(), _generator(recipe.seed, stage.name, -1))
        if judged.figure >= state.best:
            state.best, state.noise, state.best_epoch = judged.figure, judged.noise, state.epoch
        is_kept = judged.figure >= state.best - state.noise  # of equally good ones the last: its steps were smallest
        if is_kept:
            state.kept = {name: value.clone() for name, value in state.shadow.state_dict().items()}
        state.optimiser = optimiser.state_dict()
        epoch = Epoch(stage.name, state.epoch, stage.epochs, total / images, stage.figure, judged.figure, is_kept)
        state.history.append(epoch)
        yield epoch


def _step(state: _State, optimiser: torch.optim.Optimizer, loss: torch.Tensor) -> None:
    optimiser.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(state.learner.parameters(), _STEEPEST)
    optimiser.step()


def _end_stage(state: _State) -> None:
    """Go on with the best weights of the stage that ends."""
    state.shadow.load_state_dict(state.kept)
    state.learner.load_state_dict(state.kept)
    state.stage, state.epoch, state.step, state.optimiser = state.stage + 1, 0, 0, {}
    state.best, state.noise, state.best_epoch = -np.inf, 0.0, 0


def _schedule(done: float) -> float:
    """Return the learning rate as a fraction of its peak, when the share `done` of a stage is over."""
    if done < _WARM_UP:
        return done / _WARM_UP
    return 0.5 * (1.0 + float(np.cos(np.pi * (done - _WARM_UP) / (1.0 - _WARM_UP))))


def _generator(seed: int, stage: str, epoch: int) -> torch.Generator:
    digest = hashlib.sha256(f"{seed} {stage} {epoch}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:6], "big"))


def _to_whiten(
    learner: Learner, training: Corpus, validation: Corpus, recipe: Recipe
) -> tuple[Features, Labels]:
    """Return features and labels of the training patients' images, and of other views of them.

    The views show how images of a class differ that the network has not learned by heart.
    """
    random = _generator(recipe.seed, "whitening", 0)
    features, labels = [], []
    for corpus in (training, validation):
        for rows in in_order(len(corpus), _WHITENED_AT_ONCE):
            batch = as_batch(corpus.images[rows], learner.network.side, torch.device("cpu"))
            seen = [augment.views(batch, random, recipe.strength) for _ in range(_VIEWS_TO_WHITEN)]
            for images in (corpus.images[rows], *(view[:, 0].numpy() for view in seen)):
                features.append(features_of(learner.network, images))
                labels.append(corpus.labels[rows])
    return np.concatenate(features), np.concatenate(labels)


