"""The training of a segmenter: one stage, judged by the Dice coefficient on slices that it does not learn from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from index.encoders.learned.device import best_device
from index.encoders.learned.loop import (
    CHANNELS_LAST,
    CannotTrain,
    Epoch,
    Judged,
    Numbers,
    Progress,
    channels_last,
    run,
)
from plugins.segmentation.classes import can_be_mirrored, mirrored
from plugins.segmentation.learned import weights
from plugins.segmentation.learned.examples import Examples
from plugins.segmentation.learned.inference import probabilities
from plugins.segmentation.learned.inputs import CHANNELS, seen, windowed
from plugins.segmentation.learned.losses import UNKNOWN, partial_segmentation
from plugins.segmentation.learned.network import SegmentationNet
from plugins.segmentation.learned.recipe import Recipe, Strength
from plugins.segmentation.learned.views import views

_FORM = 1
"""Of the content of a checkpoint."""

_FEWEST_SLICES = 8
_MOST_WATCHED = 12
"""Slices on which each epoch is judged, spread over those of the validation part."""

_RAREST = 1e-5
"""Share of the voxels that is taken for a class that has fewer."""

_NOISE = 0.005
"""A Dice coefficient that differs by less says nothing about which epoch is better."""


@dataclass(frozen=True, eq=False)
class Run:
    """What training gives.

    Attributes
    ----------
    file
        For `weights.from_bytes`.
    history
        Every epoch.
    watched_validation
        Whether early stopping watched the validation part; else the training slices.
    """

    file: bytes
    history: tuple[Epoch, ...]
    watched_validation: bool


def train(
    training: Examples,
    validation: Examples,
    recipe: Recipe,
    *,
    saved: Path | None = None,
    progress: Progress = lambda _epoch: None,
) -> Run:
    """Train a network on annotated slices.

    Parameters
    ----------
    training, validation
        Early stopping watches the second; without any class in its slices, it watches the training slices.
    saved
        Checkpoint, written after every epoch. When it exists the run goes on from there.
    progress
        Called after every epoch.

    Raises
    ------
    CannotTrain
        Fewer than 8 annotated slices.
    OtherRun
        The checkpoint was made of other volumes or by another recipe.
    UnusableFile
        The checkpoint is broken.
    """
    slices = training.slices()
    if len(slices) < _FEWEST_SLICES:
        raise CannotTrain(f"training needs at least {_FEWEST_SLICES} annotated slices, and there are {len(slices)}")
    if not _with_classes(training):
        raise CannotTrain("none of the annotated slices of the training part shows any of the classes")
    network = _new_network(recipe, training)
    is_validated = bool(_with_classes(validation))
    watched = validation if is_validated else training
    stage = Segmenting(training, watched, recipe, torch.from_numpy(mirrored(training.classes)))
    identity = {"form": _FORM, "recipe": asdict(recipe), "images": [training.digest(), validation.digest()]}
    state = run(network, (stage,), recipe, identity, saved=saved, progress=progress)
    return Run(weights.to_bytes(state.shadow, recipe, training.classes), tuple(state.history), is_validated)


def _new_network(recipe: Recipe, training: Examples) -> SegmentationNet:
    """Return a network whose first weights follow from the seed, without touching the global generator.

    It begins by saying everywhere how frequent each class is, which it need not learn then (Lin et al., *Focal Loss*,
    ICCV 2017, Section 3.3).
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        network = SegmentationNet(recipe.width, CHANNELS, 1 + len(training.classes))
    shares = training.counts() / max(int(training.counts().sum()), 1)
    network.head.bias = torch.nn.Parameter(torch.from_numpy(np.log(shares + _RAREST)).float())
    return channels_last(network).to(best_device())


@dataclass(frozen=True, eq=False)
class Segmenting:
    """The stage: views of annotated slices to classes.

    Attributes
    ----------
    sides
        Class → class of the other side.
    """

    training: Examples
    validation: Examples
    recipe: Recipe
    sides: Tensor
    name: str = "segmenting"
    figure: str = "mean Dice"

    @cached_property
    def _slices(self) -> list[tuple[int, int]]:
        return self.training.slices()

    @cached_property
    def _strength(self) -> Strength:
        strength = self.recipe.strength
        return strength if can_be_mirrored(self.training.classes) else replace(strength, mirror=0.0)

    @property
    def epochs(self) -> int:
        """Passes over the slices, at most."""
        return self.recipe.epochs

    @property
    def images(self) -> int:
        """How many training slices there are."""
        return len(self._slices)

    def weights(self, learner: SegmentationNet) -> list[dict[str, Any]]:
        """Train the whole network at one rate."""
        return [{"params": list(learner.parameters()), "share": 1.0}]

    def loss(self, learner: SegmentationNet, rows: Numbers, random: torch.Generator) -> Tensor:
        """Return cross-entropy and Dice of views of the slices `rows`."""
        device = next(learner.parameters()).device
        parts = [self._view(self._slices[row], random) for row in rows]
        images = torch.cat([image for image, _, _ in parts]).to(device).contiguous(memory_format=CHANNELS_LAST)
        truth = torch.cat([own for _, own, _ in parts]).to(device)
        is_told = torch.stack([told for _, _, told in parts]).to(device)
        return partial_segmentation(learner(images), truth, is_told)

    def _view(self, place: tuple[int, int], random: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        volume, at = place
        example = self.training.volumes[volume]
        slices = seen(example.values, np.array([at]), example.step)
        truth = torch.from_numpy(example.truth[at : at + 1].astype(np.int64))
        moved, own, is_mirrored = views(slices, truth, self.sides, self.recipe.tile, random, self._strength)
        is_told = torch.from_numpy(example.is_told[at])
        return windowed(moved), own, is_told[self.sides[: len(is_told)]] if bool(is_mirrored) else is_told

    def judge(self, learner: SegmentationNet, random: torch.Generator) -> Judged:  # noqa: ARG002
        """Judge it by the mean Dice coefficient of the classes over some of the validation slices, without flips."""
        slices = _with_classes(self.validation)
        some = slices[:: -(-len(slices) // _MOST_WATCHED)]
        told = dice(_told(learner, self.validation, some, self.recipe.tile), 1 + len(self.validation.classes))
        return Judged(0.0 if np.isnan(told).all() else float(np.nanmean(told)), _NOISE)


def _with_classes(examples: Examples) -> list[tuple[int, int]]:
    """Return (volume, slice) of each slice that shows a class: there is something to judge."""
    return [
        (number, at)
        for number, at in examples.slices()
        if bool(((examples.volumes[number].truth[at] > 0) & (examples.volumes[number].truth[at] != UNKNOWN)).any())
    ]


Told = tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8], npt.NDArray[np.bool_]]
"""What is predicted of a slice, its truth, axes (row, column), and of which classes it tells, axis (class,)."""


def _told(
    network: SegmentationNet, examples: Examples, slices: Sequence[tuple[int, int]], tile: int
) -> Iterator[Told]:
    for number, example in enumerate(examples.volumes):
        wanted = np.array([at for volume, at in slices if volume == number], dtype=np.int64)
        found = probabilities(network, example.values, example.step, tile, None, wanted=wanted, flips=False)
        for at, each in zip(wanted, found, strict=True):
            yield each.argmax(dim=0).cpu().numpy().astype(np.uint8), example.truth[at], example.is_told[at]


def dice(slices: Iterable[Told], classes: int) -> npt.NDArray[np.float64]:
    """Return the Dice coefficient of each class but the background over all slices, axis (class,).

    Voxels of which nothing is told are left out, and so are slices for the classes that nobody looked for in them. A
    class that neither has is NaN.
    """
    overlap, total = np.zeros(classes), np.zeros(classes)
    for predicted, truth, is_told in slices:
        is_known = truth != UNKNOWN
        own, other = predicted[is_known], truth[is_known]
        overlap += is_told * np.bincount(own[own == other], minlength=classes)
        total += is_told * (np.bincount(own, minlength=classes) + np.bincount(other, minlength=classes))
    with np.errstate(invalid="ignore"):
        return np.asarray((2.0 * overlap / total)[1:])
