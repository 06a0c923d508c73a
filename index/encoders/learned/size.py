"""How wide and how deep the two networks are: the papers' numbers, and numbers that two CPU cores can train."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Size:
    """Widths (channels) and depths (blocks) of the tandem.

    Attributes
    ----------
    side
        Rows and columns that the networks see: canonical images are averaged down to it.
    stages, blocks, strides
        Channels, number of residual blocks and stride of the four stages of CE-Net's ResNet encoder.
    stem
        Channels of the two convolutions that Xception begins with.
    entry, entry_strides
        Channels and strides of the three blocks of its entry flow.
    middle
        Number of blocks of its middle flow, as wide as the end of the entry flow.
    leave
        Channels of its exit flow: the two convolutions of the last residual block, then the last two.
    dimension
        Length d of the vectors, at most.
    """

    name: str
    side: int
    stages: tuple[int, int, int, int]
    blocks: tuple[int, int, int, int]
    strides: tuple[int, int, int, int]
    stem: tuple[int, int]
    entry: tuple[int, int, int]
    entry_strides: tuple[int, int, int]
    middle: int
    leave: tuple[int, int, int, int]
    dimension: int


PAPER = Size(
    name="paper",
    side=128,
    stages=(64, 128, 256, 512),
    blocks=(3, 4, 6, 3),
    strides=(1, 2, 2, 1),
    stem=(32, 64),
    entry=(128, 256, 728),
    entry_strides=(2, 2, 1),
    middle=8,
    leave=(728, 1024, 1536, 2048),
    dimension=256,
)
"""ResNet-34 and Xception as published: 21.3 and 20.8 million weights. For a GPU."""

SMALL = Size(
    name="small",
    side=64,
    stages=(16, 24, 48, 64),
    blocks=(1, 1, 2, 1),
    strides=(1, 2, 1, 1),
    stem=(16, 24),
    entry=(32, 64, 96),
    entry_strides=(2, 1, 1),
    middle=2,
    leave=(96, 128, 160, 192),
    dimension=64,
)
"""For a CPU: a thousand images in a few minutes on two cores."""

SIZES = {size.name: size for size in (SMALL, PAPER)}
