"""P4: any grayscale image that carries the private block, one image a view or multi-frame with functional groups."""

from __future__ import annotations

from pydicom.dataset import Dataset

from reconstruct.projections.encoding import Encoding, carries_block


def is_p4(dataset: Dataset) -> bool:
    """Whether an instance is an image with private elements that only projections have."""
    return bool(dataset.get("Rows")) and carries_block(dataset)


P4 = Encoding("P4", "image that carries the private block THARSIS PROJECTION 1.0", is_p4)
