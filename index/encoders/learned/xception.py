"""Xception (Chollet, CVPR 2017; arXiv:1610.02357), written from the paper: depthwise separable convolutions.

One departure. The paper's images have 299 pixels a side; here come context maps of 64 or 32. The last blocks of the
entry flow therefore keep the resolution (`Size.entry_strides`), so that the middle flow sees 8 × 8 (paper: 19 × 19).
The number of weights does not depend on it.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from index.encoders.learned.size import Size


class SeparableConvolution(nn.Module):
    """A 3 × 3 convolution of each channel alone, then 1 × 1 across channels with no activation between (Section 3)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs, bias=False)
        self.pointwise = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.normalisation = nn.BatchNorm2d(outputs)

    def forward(self, maps: Tensor) -> Tensor:
        """Map axes (n, inputs, row, column) to (n, outputs, row, column)."""
        normalised: Tensor = self.normalisation(self.pointwise(self.depthwise(maps)))
        return normalised


class ShrinkingBlock(nn.Module):
    """Two separable convolutions and 3 × 3 max pooling with stride 2, beside a 1 × 1 shortcut (Figure 5).

    Parameters
    ----------
    begins_with_relu
        False for the very first block, whose input has just been through one.
    """

    def __init__(
        self, inputs: int, inner: int, outputs: int, *, stride: int = 2, begins_with_relu: bool = True
    ) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.ReLU() if begins_with_relu else nn.Identity(),
            SeparableConvolution(inputs, inner),
            nn.ReLU(),
            SeparableConvolution(inner, outputs),
            nn.MaxPool2d(3, stride, padding=1),
        )
        self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, maps: Tensor) -> Tensor:
        """Map axes (n, inputs, row, column) to (n, outputs, row / stride, column / stride)."""
        shrunk: Tensor = self.layers(maps) + self.shortcut(maps)
        return shrunk


class MiddleBlock(nn.Module):
    """Three separable convolutions beside an identity shortcut (Figure 5)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        layers = [layer for _ in range(3) for layer in (nn.ReLU(), SeparableConvolution(channels, channels))]
        self.layers = nn.Sequential(*layers)

    def forward(self, maps: Tensor) -> Tensor:
        """Keep the axes (n, channels, row, column)."""
        deeper: Tensor = maps + self.layers(maps)
        return deeper


class Xception(nn.Module):
    """Entry, middle and exit flow, without the classifier.

    Parameters
    ----------
    inputs
        Channels of what comes in.
    """

    def __init__(self, size: Size, inputs: int) -> None:
        super().__init__()
        first, second = size.stem
        self.stem = nn.Sequential(
            nn.Conv2d(inputs, first, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(first),
            nn.ReLU(),
            nn.Conv2d(first, second, 3, padding=1, bias=False),
            nn.BatchNorm2d(second),
            nn.ReLU(),
        )
        a, b, c = size.entry
        strides = size.entry_strides
        self.entry = nn.Sequential(

            ShrinkingBlock(second, a, a, stride=strides[0], begins_with_relu=False),
            ShrinkingBlock(a, b, b, stride=strides[1]),
            ShrinkingBlock(b, c, c, stride=strides[2]),
        )
        self.middle = nn.Sequential(*(MiddleBlock(c) for _ in range(size.middle)))
        inner, shrunk, wide, widest = size.leave
        self.leave = nn.Sequential(
            ShrinkingBlock(c, inner, shrunk),
            SeparableConvolution(shrunk, wide),
            nn.ReLU(),
            SeparableConvolution(wide, widest),
            nn.ReLU(),
        )
        self.channels = widest

    def forward(self, maps: Tensor) -> Tensor:
        """Return the last maps averaged over the image, axes (n, channels)."""
        features: Tensor = self.leave(self.middle(self.entry(self.stem(maps))))
        return functional.adaptive_avg_pool2d(features, 1).flatten(1)
