"""The network: CE-Net's encoder, context extractor and decoder, with skips at full resolution.

From Gu et al., *CE-Net: Context Encoder Network for 2D Medical Image Segmentation* (IEEE TMI 2019; arXiv:1903.02740):
residual blocks, dense atrous convolution, residual multi-kernel pooling, decoder blocks with additions from the
encoder. Three departures. The paper's first convolution and pooling divide the resolution by 4, which at the voxels of
a whole-body CT is wider than a vessel or a rib: here the first stage keeps it, and the decoder comes back to it. The
paper's decoder narrows to a quarter of its width between two resolutions: enough for one class, too little for sixty,
so here it does not. And the input is 2.5-dimensional: a slice with its neighbours as channels (Roth et al., MICCAI
2014).
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from index.encoders.learned.cenet import (
    POOLS,
    DenseAtrousConvolution,
    ResidualBlock,
    ResidualMultiKernelPooling,
    convolution,
)
from plugins.segmentation.learned.recipe import Width

DIVISOR = 8
"""Rows and columns of an image are a multiple of this: the bottleneck is so much coarser."""


class Up(nn.Module):
    """A block of the decoder: twice the resolution, with what the encoder knew there added."""

    def __init__(self, inputs: int, skipped: int, outputs: int) -> None:
        super().__init__()
        self.reduce = convolution(inputs, outputs, 1)
        self.skip = convolution(skipped, outputs, 1)
        self.refine = convolution(outputs, outputs, 3)

    def forward(self, maps: Tensor, skip: Tensor) -> Tensor:
        """Map axes (n, inputs, row, column) and (n, skipped, 2 row, 2 column) to (n, outputs, 2 row, 2 column)."""
        larger = functional.interpolate(self.reduce(maps), scale_factor=2, mode="bilinear", align_corners=False)
        refined: Tensor = self.refine(functional.relu(larger + self.skip(skip)))
        return functional.relu(refined)


class SegmentationNet(nn.Module):
    """Channels in, one map for each class out, at the resolution of the image.

    Parameters
    ----------
    inputs
        Channels of an image.
    outputs
        Classes, the background included.
    """

    def __init__(self, width: Width, inputs: int, outputs: int) -> None:
        super().__init__()
        first, second, third, fourth = width.stages
        self.stem = nn.Sequential(convolution(inputs, first, 3), nn.ReLU())
        self.stages = nn.ModuleList(
            nn.Sequential(
                ResidualBlock(before, after, 2), *(ResidualBlock(after, after, 1) for _ in range(blocks - 1))
            )
            for before, after, blocks in zip((first, second, third), (second, third, fourth), width.blocks, strict=True)
        )
        self.context = nn.Sequential(DenseAtrousConvolution(fourth), ResidualMultiKernelPooling(fourth))
        low, middle, full = width.decoder
        steps = ((fourth + len(POOLS), third, low), (low, second, middle), (middle, first, full))
        self.decoder = nn.ModuleList(Up(before, skipped, after) for before, skipped, after in steps)
        self.head = nn.Conv2d(full, outputs, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Map axes (n, inputs, row, column) to (n, outputs, row, column), before any softmax."""
        maps = self.stem(images)
        skips = []
        for stage in self.stages:
            skips.append(maps)
            maps = stage(maps)
        maps = self.context(maps)
        for block, skip in zip(self.decoder, reversed(skips), strict=True):
            maps = block(maps, skip)
        predicted: Tensor = self.head(maps)
        return predicted
