"""CE-Net and Xception in tandem: the context that one sees is what the other looks at, together with the image."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from index.encoders.learned.cenet import POOLS, CENet
from index.encoders.learned.size import Size
from index.encoders.learned.xception import Xception


class Tandem(nn.Module):
    """The pooled context of CE-Net beside the pooled features that Xception finds in its context maps.

    Attributes
    ----------
    side
        Rows and columns of the images that it sees.
    outputs
        Channels of what CE-Net predicts of a pixel.
    context_channels, channels
        Length of the pooled context, and of both parts together.
    """

    def __init__(self, size: Size, outputs: int = 1) -> None:
        super().__init__()
        self.side = size.side
        self.outputs = outputs
        self.cenet = CENet(size, outputs)
        self.xception = Xception(size, size.stages[0] + 1)
        self.context_channels = size.stages[3] + len(POOLS)
        self.channels = self.context_channels + self.xception.channels

    def forward(self, images: Tensor) -> Tensor:
        """Return the features, axes (n, `channels`), of `images`, axes (n, 1, row, column), 0 to 1.

        Both parts have length 1, so that neither outweighs the other before the whitening.
        """
        context = self.cenet.describe(images)
        seen = torch.cat([context.maps, functional.avg_pool2d(images, 2)], dim=1)
        pooled = functional.adaptive_avg_pool2d(context.bottleneck, 1).flatten(1)
        parts = (functional.normalize(pooled), functional.normalize(self.xception(seen)))
        return torch.cat(parts, dim=1)
