"""What training makes small."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

TEMPERATURE = 0.1


def supervised_contrastive(vectors: Tensor, labels: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """Supervised contrastive loss, L_out of Khosla et al. (NeurIPS 2020; arXiv:2004.11362), equation 2.

    Parameters
    ----------
    vectors
        Unit vectors, axes (n, d).
    labels
        Which of them belong together, axis (n,); those below 0 belong to none and are pushed away by all.

    Returns
    -------
    Tensor
        Mean over the vectors that have a positive; 0 when none has.
    """
    same = (labels[:, None] == labels[None, :]) & (labels >= 0)[:, None]
    same.fill_diagonal_(False)
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    logits = (vectors @ vectors.T / temperature).masked_fill(itself, -torch.inf)
    log_probability = functional.log_softmax(logits, dim=1).masked_fill(~same, 0.0)
    positives = same.sum(dim=1)
    losses = -log_probability.sum(dim=1) / positives.clamp(min=1)
    return losses[positives > 0].mean() if bool((positives > 0).any()) else 0.0 * vectors.sum()


def two_views(first: Tensor, second: Tensor, groups: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """NT-Xent of SimCLR (Chen et al., ICML 2020) over two views; all views of one group are positives.

    Parameters
    ----------
    first, second
        Unit vectors of the two views of each image, axes (n, d).
    groups
        Same number: same image, or neighbouring slices of one series, axis (n,).
    """
    return supervised_contrastive(torch.cat([first, second]), torch.cat([groups, groups]), temperature)


def segmentation(predicted: Tensor, truth: Tensor) -> Tensor:
    """Cross-entropy plus one minus the mean Dice coefficient of the segments (CE-Net, Section II-D).

    Parameters
    ----------
    predicted
        Before the softmax, axes (n, 1 + segments, row, column); 0 is what belongs to no segment.
    truth
        Segment numbers, axes (n, row, column).
    """
    entropy = functional.cross_entropy(predicted, truth)
    probability = predicted.softmax(dim=1)[:, 1:]
    wanted = functional.one_hot(truth, predicted.shape[1]).movedim(-1, 1)[:, 1:].to(probability.dtype)
    overlap = (probability * wanted).sum(dim=(0, 2, 3))
    total = probability.sum(dim=(0, 2, 3)) + wanted.sum(dim=(0, 2, 3))
    return entropy + 1.0 - ((2.0 * overlap + 1.0) / (total + 1.0)).mean()


def reconstruction(predicted: Tensor, truth: Tensor) -> Tensor:
    """Mean absolute difference of the restored image, before its sigmoid, and the clean one."""
    return (predicted.sigmoid() - truth).abs().mean()
