"""What training makes small, where annotations tell of some classes and are silent on others.

A class that nobody looked for in a slice may lie anywhere in it, so its probability counts as background there
(Fang and Yan, *PIPO-FAN*, IEEE TMI 2020; Shi et al., *Marginal loss and exclusion loss*, Medical Image Analysis 2021).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

UNKNOWN = 255
"""Truth of a voxel of which no annotation tells."""


def partial_segmentation(predicted: Tensor, truth: Tensor, is_told: Tensor) -> Tensor:
    """Cross-entropy plus one minus the mean Dice coefficient of the classes (CE-Net, Section II-D), over what is told.

    Parameters
    ----------
    predicted
        Before the softmax, axes (n, class, row, column); class 0 is the background.
    truth
        Class numbers, axes (n, row, column); `UNKNOWN` where no annotation tells.
    is_told
        Which classes the annotations of each slice tell of, axes (n, class); class 0 always.
    """
    log_probability = _merged(functional.log_softmax(predicted, dim=1), is_told)
    is_known = truth != UNKNOWN
    numbers = torch.where(is_known, truth, 0)
    at_truth = log_probability.gather(1, numbers[:, None])[:, 0]
    entropy = -(at_truth * is_known).sum() / is_known.sum().clamp(min=1)
    probability = log_probability.exp()
    if not bool(is_known.all()):
        probability = probability * is_known[:, None]
    claimed = (probability.sum(dim=(2, 3)) * is_told).sum(dim=0)
    overlap, wanted = (
        torch.zeros_like(claimed).index_add(0, numbers.flatten(), values.flatten())
        for values in (at_truth.exp() * is_known, is_known.to(claimed.dtype))
    )
    dice = (2.0 * overlap + 1.0) / (claimed + wanted + 1.0)
    is_present = (wanted > 0)[1:]
    return entropy + 1.0 - (dice[1:] * is_present).sum() / is_present.sum().clamp(min=1)


def _merged(log_probability: Tensor, is_told: Tensor) -> Tensor:
    """Count the probability of classes of which nothing is told as background."""
    silent = ~is_told[:, :, None, None]
    if not bool(silent.any()):
        return log_probability
    is_background = torch.zeros_like(silent)
    is_background[:, 0] = True
    background = log_probability.masked_fill(~(silent | is_background), -torch.inf).logsumexp(dim=1, keepdim=True)
    rest = log_probability[:, 1:].masked_fill(silent[:, 1:], -50.0)
    return torch.cat([background, rest], dim=1)
