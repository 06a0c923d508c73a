"""The network: CE-Net's encoder, context extractor and decoder, with skips at full resolution.

From Gu et al., *CE-Net: Context Encoder Network for 2D Medical Image Segmentation* (IEEE TMI 2019; arXiv:1903.02740):
residual blocks, dense atrous convolution, residual multi-kernel pooling, decoder blocks with additions from the
encoder. Two departures. The paper's first convolution and pooling divide the resolution by 4, which at the voxels of a
whole-body CT is wider than a vessel or a rib: here the first stage keeps it, and the decoder comes back to it. And the
input is 2.5-dimensional: a slice with its neighbours as channels (Roth et al., MICCAI 2014).
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from index.encoders.learned.cenet import (
    POOLS,
    DecoderBlock,
    DenseAtrousConvolution,
    ResidualBlock,
    ResidualMultiKernelPooling,
    convolution,
)
from plugins.segmentation.learned.recipe import Width

DIVISOR = 8
"""Rows and columns of an image are a multiple of this: the bottleneck is so much coarser."""


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
        self.decoder = nn.ModuleList(
            DecoderBlock(before, after, 2)
            for before, after in ((fourth + len(POOLS), third), (third, second), (second, first))
        )
        self.refine = convolution(first, first, 3)
        self.head = nn.Conv2d(first, outputs, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Map axes (n, inputs, row, column) to (n, outputs, row, column), before any softmax."""
        maps = self.stem(images)
        skips = []
        for stage in self.stages:
            skips.append(maps)
            maps = stage(maps)
        maps = self.context(maps)
        for block, skip in zip(self.decoder, reversed(skips), strict=True):
            maps = block(maps) + skip
        predicted: Tensor = self.head(functional.relu(self.refine(maps)))
        return predicted
