"""The interface of a segmenter: a volume in, a label map with coded segments out (docs/decisions/0009)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from pydicom.sr.coding import Code  # and with it 15 MB of codes, which not every process needs

Progress = Callable[[float], None]
"""Called with the fraction done; may raise to stop the work."""


@dataclass(frozen=True)
class Placement:
    """Where the voxels of a stack of slices are, patient LPS (PS3.3 C.7.6.2.1.1).

    Attributes
    ----------
    origin_mm_xyz
        Centre of voxel (0, 0, 0).
    step_z_xyz, step_y_xyz, step_x_xyz
        From a voxel to the next along each axis of the array, mm. Slices need not lie straight above each other.
    """

    origin_mm_xyz: tuple[float, float, float]
    step_z_xyz: tuple[float, float, float]
    step_y_xyz: tuple[float, float, float]
    step_x_xyz: tuple[float, float, float]

    @property
    def affine(self) -> NDArray[np.float64]:
        """Homogeneous matrix (4, 4) from voxel indices (z, y, x, 1) to (x, y, z, 1) in mm, LPS."""
        matrix = np.eye(4)
        matrix[:3, 0], matrix[:3, 1], matrix[:3, 2] = self.step_z_xyz, self.step_y_xyz, self.step_x_xyz
        matrix[:3, 3] = self.origin_mm_xyz
        return matrix


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
    placement
        Where it is in the patient; None when not known.
    """

    values: NDArray[np.float32]
    spacing_mm_zyx: tuple[float, float, float]
    is_hu: bool
    effective_kev: float | None = None
    placement: Placement | None = None

    @property
    def voxel_mm3(self) -> float:
        """Volume of a voxel, mm³."""
        z, y, x = self.spacing_mm_zyx
        return z * y * x


@dataclass(frozen=True)
class Algorithm:
    """What made the labels: told in the SEG as it is (PS3.3 10.16).

    Attributes
    ----------
    family
        None when what was read does not tell it; what this node makes has one.
    """

    name: str
    version: str
    family: Code | None
    parameters: Mapping[str, str]


@dataclass(frozen=True)
class Segment:
    """What a label stands for (PS3.3 C.8.20.4, coded in SNOMED CT).

    Attributes
    ----------
    modifiers
        Of the type: left, right (Segmented Property Type Modifier Code Sequence).
    tracking_id, tracking_uid
        Name of the finding over time; empty where it has none.
    number
        Segment Number or ROI Number in the object that it was read from; None when it was not read.
    algorithm
        What made this segment, as the object that it was read from tells; None when it does not.
    """

    label: str
    category: Code
    type: Code
    tracking_id: str = ""
    tracking_uid: str = ""
    number: int | None = None
    algorithm: Algorithm | None = None
    modifiers: tuple[Code, ...] = ()


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


class Segmenter(Protocol):
    """What finds segments in volumes."""

    @property
    def name(self) -> str:
        """Short name, by which settings choose it, for example ``classical``."""

    def recipe(self) -> Mapping[str, Any]:
        """Return everything that determines the labels, the version of the method included, as plain values."""

    def segment(self, volume: Volume, progress: Progress) -> Segmentation:
        """Find segments; none when the volume holds nothing to find."""


def large_enough(
    labels: NDArray[np.uint8], segments: tuple[Segment, ...], min_voxels: float
) -> tuple[NDArray[np.uint8], tuple[Segment, ...]]:
    """Leave out segments that are empty or too small, and number the others from 1 without gaps (PS3.3 C.8.20.2).

    Parameters
    ----------
    labels
        ``(z, y, x)``; n is ``segments[n - 1]``.
    """
    counts = np.bincount(labels.ravel(), minlength=len(segments) + 1)
    kept = [number for number in range(1, len(segments) + 1) if counts[number] > 0 and counts[number] >= min_voxels]
    table = np.zeros(len(counts), np.uint8)
    for new, old in enumerate(kept, start=1):
        table[old] = new
    return table[labels], tuple(segments[number - 1] for number in kept)
