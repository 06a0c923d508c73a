"""How a segmenter is trained: every number that its weights depend on, beside the images and their annotations."""

from __future__ import annotations

import math
from dataclasses import dataclass

_VIEWS = 3000
"""Slices seen when no number of epochs is given: some minutes on two cores at size small."""

_FEWEST_EPOCHS, _MOST_EPOCHS = 4, 80


@dataclass(frozen=True)
class Width:
    """Channels of the encoder at its four resolutions, residual blocks at the lower three, channels of the decoder."""

    stages: tuple[int, int, int, int]
    blocks: tuple[int, int, int]
    decoder: tuple[int, int, int]


WIDTHS = {
    "small": Width((16, 32, 64, 96), (1, 1, 2), (64, 48, 32)),
    "large": Width((64, 128, 256, 512), (3, 4, 6), (256, 128, 64)),
}
"""``small`` for a CPU; ``large`` has the widths and depths of the paper's ResNet-34, for a GPU."""


@dataclass(frozen=True)
class Strength:
    """How far a view of a slice may be from it: standard deviations, unless told otherwise.

    Attributes
    ----------
    angle_rad, log_zoom
        Of rotation and of the logarithm of the scale.
    shift
        Of the shift, in sides of the tile.
    warp
        Of a smooth displacement, in sides of the tile.
    mirror, reverse
        Probability of being mirrored left to right (sides change their names), and of having its slices reversed.
    offset_hu, log_contrast, noise_hu
        Of a shift of all values, of the logarithm of a factor around 0 HU, and the most noise.
    """

    angle_rad: float = 0.12
    log_zoom: float = 0.12
    shift: float = 0.06
    warp: float = 0.02
    mirror: float = 0.5
    reverse: float = 0.5
    offset_hu: float = 12.0
    log_contrast: float = 0.06
    noise_hu: float = 25.0


@dataclass(frozen=True)
class Recipe:
    """The numbers of a run.

    Attributes
    ----------
    size
        Name in `WIDTHS`.
    seed
        Of the split, the first weights, the order of the slices and their views.
    spacing_mm
        Of rows and columns that the network sees, mm.
    reach_mm
        Distance of neighbouring slices that the network sees beside a slice, mm: one and two times above and below.
    tile
        Rows and columns of what it sees at a time.
    epochs
        Passes over the annotated slices, at most.
    patience
        Training ends after this share of the epochs without a better figure on the validation slices.
    batch
        Slices in a step.
    rate, decay, averaging
        Peak of the learning rate; weight decay; share of the steps that the moving average of the weights reaches back.
    """

    spacing_mm: float
    reach_mm: float
    size: str = "small"
    seed: int = 0
    tile: int = 128
    epochs: int = 35
    patience: float = 0.5
    batch: int = 4
    rate: float = 3e-3
    decay: float = 0.02
    averaging: float = 0.1

    def __post_init__(self) -> None:
        """Refuse what cannot be trained."""
        if self.size not in WIDTHS:
            raise ValueError(f"the size is one of {', '.join(WIDTHS)}, got {self.size!r}")
        if self.batch < 2:
            raise ValueError(f"a batch has at least 2 slices, got {self.batch}")
        if self.epochs < 1:
            raise ValueError(f"there is at least 1 epoch, got {self.epochs}")
        if not (self.spacing_mm > 0 and self.reach_mm > 0):
            raise ValueError(f"spacings are positive, got {self.spacing_mm} and {self.reach_mm} mm")

    @property
    def width(self) -> Width:
        """The size by its name."""
        return WIDTHS[self.size]

    @property
    def strength(self) -> Strength:
        """How far the views are from their slices."""
        return Strength()


def epochs_for(slices: int) -> int:
    """Return how many epochs a run takes by default: few slices are seen more often."""
    return min(max(math.ceil(_VIEWS / max(slices, 1)), _FEWEST_EPOCHS), _MOST_EPOCHS)
