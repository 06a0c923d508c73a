"""Files of trained segmenters: the weights, and all that it takes to apply them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from index.encoders.learned import checkpoint
from index.encoders.learned.checkpoint import UnusableFile
from index.encoders.learned.device import best_device
from index.encoders.learned.loop import channels_last
from plugins.segmentation.classes import SegmentClass, can_be_mirrored, mirrored
from plugins.segmentation.learned.inputs import CHANNELS
from plugins.segmentation.learned.network import SegmentationNet
from plugins.segmentation.learned.recipe import WIDTHS, Recipe

_FORM = 1
"""Of the content of the file, and of what the network sees of a volume."""


@dataclass(frozen=True, eq=False)
class Trained:
    """A trained network with what it takes to apply it.

    Attributes
    ----------
    classes
        Map n of what the network says is ``classes[n - 1]``; map 0 is the background.
    spacing_mm, reach_mm, tile
        As in `Recipe`.
    """

    network: SegmentationNet
    classes: tuple[SegmentClass, ...]
    spacing_mm: float
    reach_mm: float
    tile: int

    @property
    def mirrored(self) -> npt.NDArray[np.int64] | None:
        """Class → class of the other side; None where a side has no counterpart, so that nothing can be mirrored."""
        return mirrored(self.classes) if can_be_mirrored(self.classes) else None


def to_bytes(network: SegmentationNet, recipe: Recipe, classes: Sequence[SegmentClass]) -> bytes:
    """Return the file of a trained network."""
    return checkpoint.to_bytes(
        {
            "form": _FORM,
            "size": recipe.size,
            "spacing_mm": recipe.spacing_mm,
            "reach_mm": recipe.reach_mm,
            "tile": recipe.tile,
            "classes": [each.to_plain() for each in classes],
            "weights": {name: value.cpu().contiguous() for name, value in network.state_dict().items()},
        }
    )


def from_bytes(file: bytes, what: str) -> Trained:
    """Return what `to_bytes` wrote, ready to segment, on the GPU where there is one.

    Raises
    ------
    UnusableFile
        It is no such file, or one of another version.
    """
    content = checkpoint.from_bytes(file, what)
    if content.get("form") != _FORM:
        raise UnusableFile(f"{what} is no segmenter of this version: form {content.get('form')!r}, expected {_FORM}")
    try:
        classes = tuple(SegmentClass.from_plain(plain) for plain in content["classes"])
        network = SegmentationNet(WIDTHS[content["size"]], CHANNELS, 1 + len(classes))
        network.load_state_dict(content["weights"])
        numbers = float(content["spacing_mm"]), float(content["reach_mm"]), int(content["tile"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UnusableFile(f"{what} is no file of a segmenter: {' '.join(str(error).split())}"[:300]) from error
    return Trained(channels_last(network.to(best_device())).eval(), classes, *numbers)


def load(file: Path, digest: str) -> Trained:
    """Load a file whose SHA-256 begins with `digest`.

    Raises
    ------
    UnusableFile
        There is none, it is broken, or it was altered.
    """
    try:
        content = file.read_bytes()
    except FileNotFoundError as error:
        raise UnusableFile(f"no weights {file.name} in {file.parent}") from error
    if not hashlib.sha256(content).hexdigest().startswith(digest):
        raise UnusableFile(f"{file.name} was altered: its digest is {hashlib.sha256(content).hexdigest()[:12]}")
    return from_bytes(content, file.name)
