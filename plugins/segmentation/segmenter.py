"""The interface of a segmenter: a volume in, a label map with coded segments out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydicom.sr.coding import Code


@dataclass(frozen=True, eq=False)
class Volume:
    """A reconstructed volume.

    Attributes
    ----------
    values
        ``(z, y, x)`` float32, HU when `is_hu`, else attenuation in 1/cm.
    spacing_mm_zyx
        Distance of voxel centres, mm.
    effective_kev
        Energy of a monochromatic beam that would attenuate alike, keV; None when not known.
    """

    values: NDArray[np.float32]
    spacing_mm_zyx: tuple[float, float, float]
    is_hu: bool
    effective_kev: float | None = None

    @property
    def voxel_mm3(self) -> float:
        """Volume of a voxel, mm³."""
        z, y, x = self.spacing_mm_zyx
        return z * y * x


@dataclass(frozen=True)
class Segment:
    """What a label stands for (PS3.3 C.8.20.4, coded in SNOMED CT)."""

    label: str
    category: Code
    type: Code


@dataclass(frozen=True)
class Algorithm:
    """What made the labels: told in the SEG as it is (PS3.3 10.16)."""

    name: str
    version: str
    family: Code
    parameters: Mapping[str, str]


@dataclass(frozen=True, eq=False)
class Segmentation:
    """The result.

    Attributes
    ----------
    labels
        ``(z, y, x)`` uint8 on the volume's grid; 0 is background, n is ``segments[n - 1]``.
    """

    labels: NDArray[np.uint8]
    segments: tuple[Segment, ...]
    algorithm: Algorithm
