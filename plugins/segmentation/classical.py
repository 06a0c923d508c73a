"""The segmenter ``classical``: thresholds that follow the energy, and three-dimensional morphology.

What it finds are ranges of attenuation, refined by size, evenness and position; the labels say so. Where Hounsfield
units are neither given nor follow from the effective energy, the ranges are found by multi-Otsu (Liao, Chen and Chung,
J. Inf. Sci. Eng. 17, 2001) and have no names of tissues.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import scipy  # loads its parts when they are used
from numpy.typing import NDArray
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from plugins.segmentation.attenuation_ranges import GAS_HU, Ranges
from plugins.segmentation.hounsfield import hounsfield
from plugins.segmentation.morphology import without_islands
from plugins.segmentation.noise import noise, sigma_for
from plugins.segmentation.outline import Sample
from plugins.segmentation.segmenter import Algorithm, Progress, Segment, Segmentation, Volume, large_enough
from plugins.segmentation.tissues import Tissue, label_tissues

VERSION = "3"
"""Counts up whenever the same volume gets other labels."""

_OTSU_CLASSES = 4  # surroundings and three classes within the sample
_OTSU_SAMPLES = 200_000
_BEARABLE_HU = 30.0
"""Noise that thresholds half-way between fat and soft tissue bear, standard deviation."""
_BEARABLE_SHARE = 0.02


@dataclass(frozen=True)
class Classical:
    """Finds ranges of attenuation within the sample.

    Attributes
    ----------
    smoothing_voxels
        Sigma of the Gaussian applied first, voxels.
    min_volume_mm3
        Islands smaller than this take the label of what is around them, and a segment with less volume is left out.
    """

    smoothing_voxels: float
    min_volume_mm3: float

    @property
    def name(self) -> str:
        """Name in the settings."""
        return "classical"

    def recipe(self) -> Mapping[str, Any]:
        """Return the version and the parameters."""
        return {
            "version": VERSION,
            "smoothing_voxels": self.smoothing_voxels,
            "min_volume_mm3": self.min_volume_mm3,
        }

    def segment(self, volume: Volume, progress: Progress) -> Segmentation:
        """Label the volume; without segments when it holds nothing denser than its surroundings."""
        in_hu = hounsfield(volume)
        values = volume.values if in_hu is None else in_hu
        if in_hu is None:
            bearable = _BEARABLE_SHARE * float(np.ptp(values))
            found = noise(values, -np.inf)
        else:
            bearable, found = _BEARABLE_HU, noise(values, GAS_HU)
        sigma = min(self.smoothing_voxels, sigma_for(found, bearable))
        if sigma:
            values = scipy.ndimage.gaussian_filter(values, sigma)
        progress(0.2)
        least = self.min_volume_mm3 / volume.voxel_mm3
        if in_hu is None:
            labels, segments, told = _by_otsu(values, volume, least, progress)
        else:
            labels, segments, told = _by_tissue(values, volume, least, progress)
        labels, segments = large_enough(labels, segments, least)
        parameters = {
            **told,
            "smoothing_voxels": f"{self.smoothing_voxels:g}",
            "min_volume_mm3": f"{self.min_volume_mm3:g}",
        }
        name = "Multi-Otsu thresholds on attenuation" if in_hu is None else "Thresholds on Hounsfield units"
        family = Code("123105", "DCM", "Histogram Analysis")
        return Segmentation(labels, segments, Algorithm(name, VERSION, family, parameters))


Found = tuple[NDArray[np.uint8], tuple[Segment, ...], dict[str, str]]


def _by_tissue(values: NDArray[np.float32], volume: Volume, least: float, progress: Progress) -> Found:
    ranges = Ranges.at(volume.effective_kev)
    told = {
        "thresholds_hu": ",".join(
            f"{cut:g}" for cut in (GAS_HU, ranges.gas_to_fat, ranges.fat_to_soft, ranges.soft_to_contrast,
                                   ranges.mineral, ranges.sure_mineral)
        )
    }  # fmt: skip
    sample = Sample.find(values, volume.spacing_mm_zyx, GAS_HU)
    if sample is None:
        return np.zeros(values.shape, np.uint8), (), told
    progress(0.5)
    labels = label_tissues(sample, ranges, island_voxels=least)
    return labels, _tissue_segments(ranges), told | {"width_mm": f"{sample.width_mm:.1f}"}


def _tissue_segments(ranges: Ranges) -> tuple[Segment, ...]:
    """In the order of `Tissue`."""
    sct = codes.SCT
    fat, soft, contrast = ranges.fat_to_soft, ranges.soft_to_contrast, ranges.sure_mineral
    known = {
        Tissue.SOFT: Segment(f"Soft tissue ({fat:g} to {soft:g} HU)", sct.Tissue, sct.SoftTissue),
        Tissue.FAT: Segment(f"Fat ({ranges.gas_to_fat:g} to {fat:g} HU)", sct.Tissue, sct.AdiposeTissue),
        Tissue.LUNG: Segment("Lung (large, between gas and soft tissue)", sct.AnatomicalStructure, sct.Lung),
        Tissue.GAS: Segment(f"Gas in the sample (below {GAS_HU:g} HU)", sct.BodySubstance, sct.Gas),
        Tissue.CONTRAST: Segment(
            f"Contrast agent or as dense ({soft:g} to {contrast:g} HU)", sct.Substance, sct.ContrastAgent
        ),
        Tissue.BONE: Segment(f"Bone or as dense as bone (from {ranges.mineral:g} HU)", sct.Tissue, sct.BoneTissue),
        Tissue.CALCIFICATION: Segment(
            f"Calcification or as small and dense (from {ranges.mineral:g} HU)",
            sct.MorphologicallyAbnormalStructure,
            sct.PathologicCalcification,
        ),
    }
    return tuple(known[tissue] for tissue in Tissue)


def _by_otsu(values: NDArray[np.float32], volume: Volume, least: float, progress: Progress) -> Found:
    from skimage.filters import threshold_multiotsu  # takes its time, and most volumes do without

    nothing: Found = np.zeros(values.shape, np.uint8), (), {"thresholds_per_cm": ""}
    some = _samples(values)
    if np.unique(some).size < _OTSU_CLASSES:
        return nothing
    cuts = tuple(float(cut) for cut in threshold_multiotsu(some, classes=_OTSU_CLASSES))
    sample = Sample.find(values, volume.spacing_mm_zyx, cuts[0])
    if sample is None:
        return nothing
    progress(0.6)
    labels = np.where(sample.outline, np.digitize(values, cuts), 0).astype(np.uint8)
    for number in range(2, _OTSU_CLASSES):  # an island is what it would be were it less dense
        is_class = labels >= number
        labels[is_class & ~without_islands(is_class, least)] = number - 1
    bounds = [*(f"{cut:.3g}" for cut in cuts), "above"]
    segments = tuple(
        Segment(f"Attenuation class {number} ({low} to {high} 1/cm)", codes.SCT.Tissue, codes.SCT.Tissue)
        for number, (low, high) in enumerate(pairwise(bounds), start=1)
    )
    return labels, segments, {"thresholds_per_cm": ",".join(f"{cut:.4g}" for cut in cuts)}


def _samples(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return some of the values, from all over the volume: a step that divides a slice would stay in a few columns."""
    step = max(1, values.size // _OTSU_SAMPLES)
    while math.gcd(step, values[0].size) > 1:
        step += 1
    return values.ravel()[::step]
