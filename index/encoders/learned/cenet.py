"""CE-Net, the context encoder network (Gu et al., IEEE TMI 2019; arXiv:1903.02740), written from the paper.

A ResNet-34 encoder, the context extractor (a dense atrous convolution block, then residual multi-kernel pooling) and a
decoder of transposed convolutions with additions from the encoder.

One departure. The paper's images have 448 pixels a side, which its encoder divides by 32: the bottleneck has 14. Ours
have 128 or 64. The last stages of the encoder therefore keep their resolution (`Size.strides`), and so do the blocks of
the decoder that answer them: the bottleneck has 8 a side, and the pools of 2, 3, 5 and 6 fit into it. The number of
weights does not depend on it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from index.encoders.learned.size import Size

POOLS = (2, 3, 5, 6)
"""Kernels of residual multi-kernel pooling, places of the bottleneck."""


def convolution(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """Return convolution and batch normalisation; the border is filled with zeros so that stride 1 keeps the size."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False), nn.BatchNorm2d(outputs)
    )


class ResidualBlock(nn.Module):
    """Two 3 × 3 convolutions with a shortcut: the basic block of ResNet-34 (He et al., CVPR 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = convolution(inputs, outputs, 3, stride)
        self.second = convolution(outputs, outputs, 3)
        is_same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if is_same else convolution(inputs, outputs, 1, stride)

    def forward(self, maps: Tensor) -> Tensor:
        """Map axes (n, inputs, row, column) to (n, outputs, row / stride, column / stride)."""
        return functional.relu(self.second(functional.relu(self.first(maps))) + self.shortcut(maps))


class DenseAtrousConvolution(nn.Module):
    """The DAC block: four branches whose receptive fields grow (3, 7, 9, 19), added to their input (Section II-B).

    Each branch is a cascade of 3 × 3 convolutions with the dilations of `CASCADES`; all but the first end in 1 × 1.
    """

    CASCADES = ((1,), (3,), (1, 3), (1, 3, 5))

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(self._branch(channels, dilations) for dilations in self.CASCADES)

    @staticmethod
    def _branch(channels: int, dilations: tuple[int, ...]) -> nn.Sequential:
        layers: list[nn.Module] = [
            nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation) for dilation in dilations
        ]
        if dilations != (1,):
            layers.append(nn.Conv2d(channels, channels, 1))
        return nn.Sequential(*layers, nn.ReLU())

    def forward(self, maps: Tensor) -> Tensor:
        """Keep the axes (n, channels, row, column)."""
        return maps + torch.stack([branch(maps) for branch in self.branches]).sum(dim=0)


class ResidualMultiKernelPooling(nn.Module):
    """The RMP block: the maxima over four sizes, one map each, brought back to full size, beside its input (II-B)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reductions = nn.ModuleList(nn.Conv2d(channels, 1, 1) for _ in POOLS)

    def forward(self, maps: Tensor) -> Tensor:
        """Map axes (n, channels, row, column) to (n, channels + 4, row, column)."""
        pooled = [
            functional.interpolate(
                reduction(functional.max_pool2d(maps, kernel, kernel)), maps.shape[2:], mode="bilinear"
            )
            for kernel, reduction in zip(POOLS, self.reductions, strict=True)
        ]
        return torch.cat([maps, *pooled], dim=1)


class DecoderBlock(nn.Module):
    """Multiplies the resolution by `stride`: 1 × 1, 3 × 3 transposed, 1 × 1 (Section II-C)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        inner = inputs // 4
        self.layers = nn.Sequential(
            convolution(inputs, inner, 1),
            nn.ReLU(),
            nn.ConvTranspose2d(inner, inner, 3, stride, padding=1, output_padding=stride - 1, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(),
            convolution(inner, outputs, 1),
            nn.ReLU(),
        )

    def forward(self, maps: Tensor) -> Tensor:
        """Map axes (n, inputs, row, column) to (n, outputs, stride × row, stride × column)."""
        larger: Tensor = self.layers(maps)
        return larger


@dataclass(frozen=True, eq=False)
class Context:
    """What CE-Net knows of a batch of images.

    Attributes
    ----------
    maps
        Last feature maps of the decoder, at half the resolution of the image, axes (n, channel, row, column).
    bottleneck
        What the context extractor gives, axes (n, channel + 4, 8, 8).
    """

    maps: Tensor
    bottleneck: Tensor


class CENet(nn.Module):
    """The context encoder network.

    Parameters
    ----------
    outputs
        Channels of what it predicts: 1 for an image that it restores, else one per segment and one for the rest.
    """

    def __init__(self, size: Size, outputs: int = 1) -> None:
        super().__init__()
        stages = size.stages
        self.stem = nn.Sequential(
            convolution(1, stages[0], 7, 2), nn.ReLU(), nn.MaxPool2d(3, stride=2, padding=1)
        )
        self.stages = nn.ModuleList(
            self._stage(inputs, channels, blocks, stride)
            for inputs, channels, blocks, stride in zip(
                (stages[0], *stages[:3]), stages, size.blocks, size.strides, strict=True
            )
        )
        self.context = nn.Sequential(DenseAtrousConvolution(stages[3]), ResidualMultiKernelPooling(stages[3]))
        self.decoder = nn.ModuleList(
            [
                DecoderBlock(stages[3] + len(POOLS), stages[2], size.strides[3]),
                DecoderBlock(stages[2], stages[1], size.strides[2]),
                DecoderBlock(stages[1], stages[0], size.strides[1]),
                DecoderBlock(stages[0], stages[0], 2),
            ]
        )
        inner = max(stages[0] // 2, 8)
        self.head = nn.Sequential(
            nn.ConvTranspose2d(stages[0], inner, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(inner, outputs, 3, padding=1),
        )

    @staticmethod
    def _stage(inputs: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
        rest = (ResidualBlock(channels, channels, 1) for _ in range(blocks - 1))
        return nn.Sequential(ResidualBlock(inputs, channels, stride), *rest)

    def describe(self, images: Tensor) -> Context:
        """Return the context of `images`, axes (n, 1, row, column), as many a side as the size says."""
        maps = self.stem(images)
        skipped = []
        for stage in self.stages:
            maps = stage(maps)
            skipped.append(maps)
        bottleneck = maps = self.context(maps)
        *deep, last = self.decoder
        for block, skip in zip(deep, reversed(skipped[:3]), strict=True):
            maps = block(maps) + skip
        return Context(last(maps), bottleneck)

    def forward(self, images: Tensor) -> Tensor:
        """Return what is predicted of every pixel, axes (n, outputs, row, column), before any sigmoid or softmax."""
        predicted: Tensor = self.head(self.describe(images).maps)
        return predicted
