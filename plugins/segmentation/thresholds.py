"""Segmentation by thresholds: in HU where water is known, else by multi-Otsu on the attenuation.

What this finds are ranges of attenuation, and the segments are labelled as such. Iodine and calcified plaque are as
dense as bone to it.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from scipy import ndimage
from skimage.filters import threshold_multiotsu

from plugins.segmentation.segmenter import Algorithm, Segment, Segmentation, Volume
from reconstruct.materials import LIPID, WATER

VERSION = "1"

_SAMPLE_HU = -500.0
_CLINICAL_FAT_TO_SOFT_HU = -60.0
_SOFT_TO_DENSE_HU = 300.0
_OTSU_CLASSES = 4  # surroundings and three classes within the sample
_OTSU_SAMPLES = 200_000

_TISSUE = Code("85756007", "SCT", "Tissue")
_GAS, _FAT, _SOFT, _DENSE = 1, 2, 3, 4


def segment(volume: Volume, *, smoothing_voxels: float, min_volume_mm3: float) -> Segmentation:
    """Label ranges of attenuation within the sample.

    Parameters
    ----------
    volume
        Values in HU or 1/cm.
    smoothing_voxels
        Sigma of the Gaussian applied first, voxels.
    min_volume_mm3
        Islands smaller than this take the label of soft tissue, and a segment with less volume is left out.

    Returns
    -------
    Segmentation
        Without segments when the volume holds nothing denser than its surroundings.
    """
    smooth = ndimage.gaussian_filter(volume.values, smoothing_voxels) if smoothing_voxels else volume.values
    least = min_volume_mm3 / volume.voxel_mm3
    if volume.is_hu:
        cuts: tuple[float, ...] = (_SAMPLE_HU, fat_to_soft_hu(volume.effective_kev), _SOFT_TO_DENSE_HU)
        labels, segments, unit = _by_hu(smooth, cuts[1], least), _hu_segments(cuts[1]), "hu"
        name = "Thresholds on Hounsfield units"
    else:
        labels, segments, cuts = _by_otsu(smooth)
        unit, name = "per_cm", "Multi-Otsu thresholds on attenuation"
    labels, segments = _drop_small(labels, segments, least)
    parameters = {
        f"thresholds_{unit}": ",".join(f"{cut:.4g}" for cut in cuts),
        "smoothing_voxels": f"{smoothing_voxels:g}",
        "min_volume_mm3": f"{min_volume_mm3:g}",
    }
    family = Code("123105", "DCM", "Histogram Analysis")
    return Segmentation(labels, segments, Algorithm(name, VERSION, family, parameters))


def fat_to_soft_hu(effective_kev: float | None) -> float:
    """Return the threshold between fat and soft tissue, HU: half-way from water to lipid at that energy.

    Fat lies at -100 HU in clinical CT, but near -400 HU at the 25 keV of a micro-CT's lowest energy bin.
    """
    if effective_kev is None:
        return _CLINICAL_FAT_TO_SOFT_HU
    lipid, water = (float(material.per_mm(effective_kev)) for material in (LIPID, WATER))
    return round(500 * (lipid / water - 1))


def _hu_segments(fat_to_soft: float) -> tuple[Segment, ...]:
    dense = f"{_SOFT_TO_DENSE_HU:g} HU"
    return (
        Segment(
            f"Gas in the sample (below {_SAMPLE_HU:g} HU)",
            Code("91720002", "SCT", "Body substance"),
            Code("74947009", "SCT", "Gas"),
        ),
        Segment(f"Fat ({_SAMPLE_HU:g} to {fat_to_soft:g} HU)", _TISSUE, Code("55603005", "SCT", "Adipose tissue")),
        Segment(f"Soft tissue ({fat_to_soft:g} to {dense})", _TISSUE, Code("87784001", "SCT", "Soft tissue")),
        Segment(f"Bone or as dense as bone (above {dense})", _TISSUE, Code("3138006", "SCT", "Bone")),
    )


def _by_hu(values: NDArray[np.float32], fat_to_soft: float, least_voxels: float) -> NDArray[np.uint8]:
    sample = _sample(values > _SAMPLE_HU)
    labels = np.where(sample, np.uint8(_SOFT), np.uint8(0))
    # Opening takes away the shell, one voxel thick, where the border of the sample passes through fat's range.
    fat = ndimage.binary_opening(sample & (values > _SAMPLE_HU) & (values <= fat_to_soft))
    for number, found in (
        (_FAT, fat),
        (_GAS, sample & (values <= _SAMPLE_HU)),
        (_DENSE, sample & (values > _SOFT_TO_DENSE_HU)),
    ):
        labels[_without_islands(found, least_voxels)] = number
    return labels


def _without_islands(found: NDArray[np.bool_], least_voxels: float) -> NDArray[np.bool_]:
    parts, _ = ndimage.label(found)
    large = np.bincount(parts.ravel()) >= least_voxels
    large[0] = False
    return np.asarray(large[parts])


def _by_otsu(
    values: NDArray[np.float32],
) -> tuple[NDArray[np.uint8], tuple[Segment, ...], tuple[float, ...]]:
    stride = max(1, values.size // _OTSU_SAMPLES)
    some = values.ravel()[::stride]
    if np.unique(some).size < _OTSU_CLASSES:
        return np.zeros(values.shape, np.uint8), (), ()
    cuts = tuple(float(cut) for cut in threshold_multiotsu(some, classes=_OTSU_CLASSES))
    sample = _sample(values > cuts[0])
    labels = np.where(sample, np.digitize(values, cuts), 0).astype(np.uint8)
    bounds = [*(f"{cut:.3g}" for cut in cuts), "above"]
    segments = tuple(
        Segment(f"Attenuation class {number} ({low} to {high} 1/cm)", _TISSUE, codes.SCT.Tissue)
        for number, (low, high) in enumerate(pairwise(bounds), start=1)
    )
    return labels, segments, cuts


def _sample(above: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The largest connected object with the holes in its slices filled."""
    parts, count = ndimage.label(above)
    if count == 0:
        return above
    largest = 1 + int(np.argmax(np.bincount(parts.ravel())[1:]))
    sample = np.asarray(parts == largest)
    for index in range(sample.shape[0]):
        sample[index] = ndimage.binary_fill_holes(sample[index])
    return sample


def _drop_small(
    labels: NDArray[np.uint8], segments: tuple[Segment, ...], min_voxels: float
) -> tuple[NDArray[np.uint8], tuple[Segment, ...]]:
    """Leave out segments that are too small, and number the others from 1 without gaps (PS3.3 C.8.20.2)."""
    counts = np.bincount(labels.ravel(), minlength=len(segments) + 1)
    kept = [number for number in range(1, len(segments) + 1) if counts[number] > 0 and counts[number] >= min_voxels]
    table = np.zeros(len(counts), np.uint8)
    for new, old in enumerate(kept, start=1):
        table[old] = new
    return table[labels], tuple(segments[number - 1] for number in kept)
