"""How a network is trained: every number that its weights depend on, beside the images."""

from __future__ import annotations

import math
from dataclasses import dataclass

from index.encoders.learned.augment import Strength
from index.encoders.learned.size import SIZES, Size

_VIEWS_TO_RESTORE, _VIEWS_TO_TELL_APART = 5000, 24000
"""Images seen in the two stages, when no number of epochs is given: a few minutes on two cores at size small."""

_FEWEST_EPOCHS, _MOST_EPOCHS = 2, 80


@dataclass(frozen=True)
class Recipe:
    """The numbers of a run.

    Attributes
    ----------
    size
        Name in `index.encoders.learned.size.SIZES`.
    seed
        Of the first weights, the order of the images and their views.
    restoring_epochs, epochs
        Passes over the training images in the first and in the second stage, at most.
    patience
        A stage ends after this share of its epochs without a better figure on the validation images. Long, since the
        figure wavers on few images, and most of all while the learning rate is high.
    batch
        Images in a step.
    rate
        Peak of the learning rate; CE-Net has a share of it in the second stage, `fine_tuning`.
    decay
        Weight decay (Loshchilov and Hutter, ICLR 2019).
    averaging
        Share of a stage's steps that the moving average of the weights reaches back: it is what is judged and kept.
    contrastive
        Weight of the supervised contrastive term beside the cross-entropy.
    smoothing
        Label smoothing of the cross-entropy.
    """

    size: str = "small"
    seed: int = 0
    restoring_epochs: int = 10
    epochs: int = 40
    patience: float = 0.5
    batch: int = 32
    rate: float = 2e-3
    fine_tuning: float = 0.3
    decay: float = 0.05
    averaging: float = 0.1
    contrastive: float = 1.0
    smoothing: float = 0.1

    def __post_init__(self) -> None:
        """Refuse what cannot be trained."""
        if self.size not in SIZES:
            raise ValueError(f"the size is one of {', '.join(SIZES)}, got {self.size!r}")
        if self.batch < 2:
            raise ValueError(f"a batch has at least 2 images, got {self.batch}")
        if min(self.restoring_epochs, self.epochs) < 1:
            raise ValueError(f"each stage has at least 1 epoch, got {self.restoring_epochs} and {self.epochs}")

    @property
    def widths(self) -> Size:
        """The size by its name."""
        return SIZES[self.size]

    @property
    def strength(self) -> Strength:
        """How far the views are from their images."""
        return Strength()


def epochs_for(images: int) -> tuple[int, int]:
    """Return how many epochs the two stages take by default: few images are seen more often."""
    wanted = (math.ceil(views / max(images, 1)) for views in (_VIEWS_TO_RESTORE, _VIEWS_TO_TELL_APART))
    restoring, telling_apart = (min(max(number, _FEWEST_EPOCHS), _MOST_EPOCHS) for number in wanted)
    return restoring, telling_apart
