"""The learned encoder: a file of weights as an `Encoder`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from index.encoders.encoder import Images, model_id
from index.encoders.learned import checkpoint
from index.encoders.learned.checkpoint import UnusableFile
from index.encoders.learned.device import best_device
from index.encoders.learned.learner import features_of
from index.encoders.learned.loop import channels_last
from index.encoders.learned.size import Size
from index.encoders.learned.tandem import Tandem
from index.encoders.learned.whitening import Whitening
from index.encoders.pixels import SIDE, VERSION
from index.unit_vectors import Vectors, unit

NAME = "learned"
_FORMAT = 1


def weights_file(network: Tandem, size: Size, whitening: Whitening) -> bytes:
    """Return the file that `LearnedEncoder.from_bytes` reads."""
    return checkpoint.to_bytes(
        {
            "format": _FORMAT,
            "preprocessing": VERSION,
            "size": asdict(size),
            "outputs": network.outputs,
            "network": {name: value.cpu() for name, value in network.state_dict().items()},
            "mean": torch.from_numpy(whitening.mean),
            "projection": torch.from_numpy(whitening.projection),
        }
    )


@dataclass(frozen=True, eq=False)
class LearnedEncoder:
    """CE-Net and Xception in tandem, whitened.

    Attributes
    ----------
    network
        On the GPU where torch finds one.
    weights
        The whole file, whose digest is in the ModelID.
    """

    network: Tandem
    whitening: Whitening
    weights: bytes

    @classmethod
    def from_bytes(cls, weights: bytes, what: str = "the file") -> LearnedEncoder:
        """Load what training wrote.

        Parameters
        ----------
        what
            What the file is called in the error.

        Raises
        ------
        UnusableFile
            No such file, or one for another preprocessing: its vectors would not be those it was trained for.
        """
        content = checkpoint.from_bytes(weights, what)
        if content.get("format") != _FORMAT:
            raise UnusableFile(f"{what} has weights of format {content.get('format')}, expected {_FORMAT}")
        if content["preprocessing"] != VERSION:
            raise UnusableFile(
                f"{what} was trained on images of preprocessing {content['preprocessing']}, this node makes {VERSION}"
            )
        try:
            network = Tandem(_size(content["size"]), content["outputs"])
            network.load_state_dict(content["network"])
            whitening = Whitening(content["mean"].numpy(), content["projection"].numpy())
        except (KeyError, TypeError, RuntimeError, AttributeError) as error:
            raise UnusableFile(f"{what} does not hold the weights of a tandem: {str(error).splitlines()[0]}") from error
        if whitening.projection.shape[:1] != (network.channels,) or whitening.mean.shape != (network.channels,):
            raise UnusableFile(
                f"{what}: expected a whitening of {network.channels} features, got {whitening.projection.shape}"
            )
        return cls(_placed(network), whitening, weights)

    @property
    def name(self) -> str:
        """``learned``."""
        return NAME

    @cached_property
    def model_id(self) -> str:
        """``learned-<preprocessing version>-<digest of the weights>``."""
        return model_id(NAME, VERSION, self.weights)

    @property
    def dimension(self) -> int:
        """Length d of the vectors."""
        return int(self.whitening.projection.shape[1])

    def encode(self, images: Images) -> Vectors:
        """Return the vectors, axes (n, d), of canonical `images`, axes (n, row, column).

        Raises
        ------
        ValueError
            Images of another size than the canonical one.
        """
        if images.ndim != 3 or images.shape[1:] != (SIDE, SIDE):
            raise ValueError(f"expected images of {SIDE} × {SIDE}, got an array of {images.shape}")
        if not len(images):
            return np.zeros((0, self.dimension), dtype=np.float32)
        return unit(self.whitening(features_of(self.network, images)))


def _size(told: Mapping[str, Any]) -> Size:
    return Size(**told)


def _placed(network: Tandem) -> Tandem:
    network.requires_grad_(requires_grad=False)
    return channels_last(network.to(best_device())).eval()
