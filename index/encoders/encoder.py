"""What an encoder is: images in, unit vectors out, under an identity that changes whenever the vectors would.

Vectors of two models never meet, so everything that changes them is in the ModelID: the encoder's name, the version of
the preprocessing (`index.encoders.pixels`) and a digest of the weights.
"""

from __future__ import annotations

import hashlib
from typing import Protocol

import numpy as np
import numpy.typing as npt

from index.unit_vectors import Vectors

Images = npt.NDArray[np.float32]
"""Canonical images, axes (n, row, column), 0 (black, air) to 1."""


class Encoder(Protocol):
    """Whatever turns canonical images into vectors."""

    @property
    def name(self) -> str:
        """Short name, for example ``texture``."""

    @property
    def model_id(self) -> str:
        """Identity of the vectors: name, preprocessing version and digest of the weights; at most 64 characters."""

    @property
    def dimension(self) -> int:
        """Length d of the vectors."""

    def encode(self, images: Images) -> Vectors:
        """Return the unit vectors, axes (n, d), of `images`, axes (n, row, column)."""


def model_id(name: str, preprocessing_version: int, weights: bytes) -> str:
    """Return the ModelID: ``name-version-`` and the first 12 hex digits of the SHA-256 of the weights file.

    Parameters
    ----------
    weights
        The whole file, as it is shipped.
    """
    return f"{name}-{preprocessing_version}-{hashlib.sha256(weights).hexdigest()[:12]}"
