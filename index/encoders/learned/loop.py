"""The loop of every training: epochs of a stage, early stopping, and a checkpoint after each epoch.

Everything random in an epoch comes from a generator that is seeded by (seed, stage, epoch). A run that was interrupted
therefore goes on from its last checkpoint to the same weights as one that was not, on the same machine and with as many
threads.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from index.durable import write_whole
from index.encoders.learned import checkpoint

Numbers = npt.NDArray[np.int64]
AnyModule = TypeVar("AnyModule", bound=nn.Module)
Learner = TypeVar("Learner", bound=nn.Module)
OfStage = TypeVar("OfStage", bound=nn.Module, contravariant=True)

CHANNELS_LAST = torch.channels_last

_WARM_UP = 0.1
"""Share of a stage's steps in which the learning rate rises; then it falls to 0 along half a cosine."""

_STEEPEST = 5.0
"""Gradients longer than this are shortened."""

_OTHER = {"form": "another version", "recipe": "another recipe", "images": "another set of images"}


class CannotTrain(ValueError):
    """There is nothing here to train on; the message is a sentence."""


class OtherRun(ValueError):
    """The checkpoint belongs to another run; the message is a sentence."""


@dataclass(frozen=True)
class Judged:
    """A figure on the validation images.

    Attributes
    ----------
    figure
        Larger is better.
    noise
        A difference of so much says nothing.
    """

    figure: float
    noise: float = 0.0


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


Progress = Callable[[Epoch], None]


class Stage(Protocol[OfStage]):
    """What a stage has to say: which weights it trains, what it makes small, and how it is judged."""

    @property
    def name(self) -> str:
        """What the report calls it."""

    @property
    def figure(self) -> str:
        """Name of the figure that `judge` returns."""

    @property
    def epochs(self) -> int:
        """Passes over the images, at most."""

    @property
    def images(self) -> int:
        """How many training images there are."""

    def weights(self, learner: OfStage) -> list[dict[str, Any]]:
        """Return groups for the optimiser, each with its ``share`` of the learning rate."""

    def loss(self, learner: OfStage, rows: Numbers, random: torch.Generator) -> Tensor:
        """Return the loss over the training images `rows`."""

    def judge(self, learner: OfStage, random: torch.Generator) -> Judged:
        """Judge it on the validation images."""


class Course(Protocol):
    """The numbers that the loop goes by: peak of the learning rate, weight decay, patience and averaging as shares."""

    @property
    def seed(self) -> int:
        """Of everything random."""

    @property
    def batch(self) -> int:
        """Images in a step."""

    @property
    def rate(self) -> float:
        """Peak of the learning rate."""

    @property
    def decay(self) -> float:
        """Weight decay (Loshchilov and Hutter, ICLR 2019)."""

    @property
    def patience(self) -> float:
        """A stage ends after this share of its epochs without a better figure."""

    @property
    def averaging(self) -> float:
        """Share of a stage's steps that the moving average of the weights reaches back."""


_PLAIN = ("stage", "epoch", "step", "best", "noise", "best_epoch")


@dataclass(eq=False)
class State(Generic[Learner]):
    """All that changes while a run goes on, and all that a checkpoint holds.

    Attributes
    ----------
    learner
        What is trained.
    shadow
        The moving average of its weights (Polyak and Juditsky, 1992): what is judged and kept.
    history
        Every epoch.
    """

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

    @classmethod
    def of(cls, learner: Learner) -> State[Learner]:
        """Begin with `learner`."""
        shadow = copy.deepcopy(learner).eval()
        return cls(learner, shadow.requires_grad_(requires_grad=False))

    def to_content(self) -> dict[str, Any]:
        """Return it as plain values and tensors."""
        plain = {name: getattr(self, name) for name in _PLAIN}
        states = {"learner": self.learner.state_dict(), "shadow": self.shadow.state_dict()}
        history = [asdict(epoch) for epoch in self.history]
        return {**plain, **states, "kept": self.kept, "optimiser": self.optimiser, "history": history}

    def restore(self, content: Mapping[str, Any]) -> None:
        """Take what `to_content` returned."""
        for name in (*_PLAIN, "kept", "optimiser"):
            setattr(self, name, content[name])
        self.learner.load_state_dict(content["learner"])
        self.shadow.load_state_dict(content["shadow"])
        self.history = [Epoch(**epoch) for epoch in content["history"]]


def run(
    learner: Learner,
    stages: Sequence[Stage[Learner]],
    course: Course,
    identity: Mapping[str, Any],
    *,
    saved: Path | None = None,
    progress: Progress = lambda _epoch: None,
) -> State[Learner]:
    """Train `learner` in one stage after the other; `State.shadow` has the weights to keep.

    Parameters
    ----------
    identity
        What a checkpoint of this run bears: ``form``, ``recipe`` and ``images``, as plain values.
    saved
        Checkpoint, written after every epoch. When it exists the run goes on from there.
    progress
        Called after every epoch.

    Raises
    ------
    OtherRun
        The checkpoint has another identity.
    UnusableFile
        The checkpoint is broken.
    """
    state = State.of(learner)
    if saved is not None and saved.exists():
        _resume(state, saved, identity)
    for number, stage in enumerate(stages):
        if state.stage > number:
            continue
        for epoch in _epochs(state, stage, course):
            progress(epoch)
            if saved is not None:
                write_whole(saved, checkpoint.to_bytes({**identity, **state.to_content()}))
        _end_stage(state)
    return state


def generator(seed: int, stage: str, epoch: int) -> torch.Generator:
    """Return the source of all that is random in an epoch of a stage."""
    digest = hashlib.sha256(f"{seed} {stage} {epoch}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:6], "big"))


def channels_last(module: AnyModule) -> AnyModule:
    """Lay out the weights of `module` with the channels last, which convolutions on a CPU like better."""
    for weights in module.parameters():
        if weights.dim() == 4:
            weights.data = weights.data.contiguous(memory_format=CHANNELS_LAST)
    return module


def in_order(count: int, batch: int) -> Iterator[Numbers]:
    """Yield the rows 0 … `count` − 1 in batches."""
    if count:
        yield from np.array_split(np.arange(count), -(-count // batch))


def shuffled(count: int, batch: int, random: torch.Generator) -> list[Numbers]:
    """Return the rows 0 … `count` − 1 in random order, in batches of nearly the same length, none of one image."""
    order = torch.randperm(count, generator=random).numpy()
    return np.array_split(order, max(1, round(count / batch)))


def _resume(state: State[Learner], saved: Path, identity: Mapping[str, Any]) -> None:
    content = checkpoint.from_bytes(saved.read_bytes(), saved.name)
    for name, value in identity.items():
        if content.get(name) != value:
            raise OtherRun(f"{saved.name} is of a run with {_OTHER[name]}")
    state.restore(content)


def _epochs(state: State[Learner], stage: Stage[Learner], course: Course) -> Iterator[Epoch]:
    """Run the epochs that are left of a stage, and yield each when `state` holds it."""
    groups = stage.weights(state.learner)
    patience = course.patience * stage.epochs
    optimiser = torch.optim.AdamW(groups, lr=course.rate, weight_decay=course.decay)
    if state.optimiser:
        optimiser.load_state_dict(state.optimiser)
    while state.epoch < stage.epochs and state.epoch - state.best_epoch < max(1.0, patience):
        random = generator(course.seed, stage.name, state.epoch)
        batches = shuffled(stage.images, course.batch, random)
        reach = course.averaging * stage.epochs * len(batches)
        total = 0.0
        state.learner.train()
        for index, rows in enumerate(batches):
            rate = course.rate * _schedule((state.epoch + (index + 0.5) / len(batches)) / stage.epochs)
            for group in optimiser.param_groups:
                group["lr"] = rate * group["share"]
            _step(state, optimiser, loss := stage.loss(state.learner, rows, random))
            _follow(state.shadow, state.learner, reach, state.step)
            state.step += 1
            total += len(rows) * float(loss.detach())
        state.epoch += 1
        judged = stage.judge(state.shadow.eval(), generator(course.seed, stage.name, -1))
        if judged.figure >= state.best:
            state.best, state.noise, state.best_epoch = judged.figure, judged.noise, state.epoch
        # Of equally good ones the last: its steps were smallest. A figure that is no number decides nothing.
        is_kept = not judged.figure < state.best - state.noise
        if is_kept:
            state.kept = {name: value.clone() for name, value in state.shadow.state_dict().items()}
        state.optimiser = optimiser.state_dict()
        mean = total / stage.images
        epoch = Epoch(stage.name, state.epoch, stage.epochs, mean, stage.figure, judged.figure, is_kept)
        state.history.append(epoch)
        yield epoch


def _step(state: State[Learner], optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
    optimiser.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(state.learner.parameters(), _STEEPEST)
    optimiser.step()


@torch.no_grad()
def _follow(shadow: nn.Module, learner: nn.Module, steps: float, step: int) -> None:
    """Move the weights of `shadow` towards those of `learner`: an average over the last `steps`, fewer at the start."""
    share = max(1.0 / max(steps, 1.0), 1.0 / (1.0 + step))
    for average, current in zip(shadow.state_dict().values(), learner.state_dict().values(), strict=True):
        if average.is_floating_point():
            average.lerp_(current, share)
        else:
            average.copy_(current)


def _end_stage(state: State[Learner]) -> None:
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
