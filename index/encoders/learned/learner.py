"""The network with the classifier that training hangs on it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from index.encoders.learned.loop import CHANNELS_LAST, channels_last
from index.encoders.learned.size import Size
from index.encoders.learned.tandem import Tandem
from index.encoders.learned.whitening import Features

_SHARPNESS = 3.0
"""Features have length √2; a linear classifier that decays would take long to make sure statements of them."""

_DROPPED = 0.2
_ENCODED_AT_ONCE = 32


class Learner(nn.Module):
    """The tandem and a linear classifier.

    Parameters
    ----------
    classes
        Number of classes, 0 without labels.
    segments
        Number of segments that CE-Net tells from the rest, 0 without segmentations. Its first output is always the
        restored image.
    """

    def __init__(self, size: Size, classes: int, segments: int) -> None:
        super().__init__()
        self.network = Tandem(size, outputs=1 + (1 + segments if segments else 0))
        self.classifier = nn.Linear(self.network.channels, classes)

    def logits(self, features: Tensor, random: torch.Generator) -> Tensor:
        """Return what the classifier says of `features`, axes (n, channel), some of which are dropped."""
        kept = (torch.rand(features.shape, generator=random) >= _DROPPED).to(features.device)
        told: Tensor = self.classifier(features * kept * (_SHARPNESS / (1.0 - _DROPPED)))
        return told

    def classify(self, features: Tensor) -> Tensor:
        """Return the probabilities of the classes, axes (n, class)."""
        told: Tensor = self.classifier(features * _SHARPNESS)
        return told.softmax(dim=1)


def new_learner(size: Size, classes: int, segments: int, seed: int) -> Learner:
    """Return a learner whose first weights follow from `seed`, without touching the global generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return channels_last(Learner(size, classes, segments))


def features_of(network: Tandem, images: npt.NDArray[np.floating]) -> Features:
    """Return the features, axes (n, channel), of canonical `images`, axes (n, row, column)."""
    device = next(network.parameters()).device
    network.eval()
    parts = [np.zeros((0, network.channels), dtype=np.float32)]
    with torch.inference_mode():
        for start in range(0, len(images), _ENCODED_AT_ONCE):
            batch = as_batch(images[start : start + _ENCODED_AT_ONCE], network.side, device)
            parts.append(network(batch).cpu().numpy())
    return np.concatenate(parts)


def as_batch(images: npt.NDArray[np.floating], side: int, device: torch.device) -> Tensor:
    """Return `images`, axes (n, row, column), averaged down to `side`, as a tensor, axes (n, 1, row, column)."""
    batch = torch.from_numpy(np.ascontiguousarray(images, dtype=np.float32))[:, None]
    return functional.avg_pool2d(batch, images.shape[1] // side).to(device).contiguous(memory_format=CHANNELS_LAST)


def unit_rows(features: Tensor) -> Tensor:
    """Scale rows, axes (n, d), to length 1."""
    return functional.normalize(features)
