"""The volume of a series: single-frame images or a multi-frame one, in any orientation, in HU or 1/cm."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from index import decoding
from index.encoders.functional_groups import functional_group, of_frame
from plugins.node import CannotProceed
from plugins.segmentation.segmenter import Volume
from plugins.segmentation.source_grid import SourceGrid, source_grid
from reconstruct.projections import elements

_GIB = 1 << 30

_VOXEL_BYTES = 6
"""As stored, and as float32."""

_PER_CM = frozenset({"/cm", "cm-1", "1/cm"})


def read_volume(paths: Sequence[Path]) -> tuple[list[Dataset], Volume]:
    """Read the images of a series and their volume.

    The images come in the order of the volume's slices, each once: a multi-frame image, which holds them all, stands
    alone, and `read_on_grid` tells which of its frames each slice is.

    Raises
    ------
    CannotProceed
        As `read_on_grid`.
    """
    images, _, volume = read_on_grid(paths)
    return images, volume


def read_on_grid(paths: Sequence[Path]) -> tuple[list[Dataset], SourceGrid, Volume]:
    """Read the images of a series, their grid, and their values on it.

    The effective energy is the one that reconstruction wrote into the images, None where there is none.

    Raises
    ------
    CannotProceed
        The images are no stack of slices (`source_grid`), cannot be decoded, are neither in HU nor in 1/cm, or take
        more memory than the machine has.
    """
    _require_memory(paths)
    read: dict[str, Dataset] = {str(dataset.SOPInstanceUID): dataset for dataset in map(pydicom.dcmread, paths)}
    grid = source_grid(list(read.values()))
    images = [read[uid] for uid in dict.fromkeys(uid for uid, _ in grid.frames)]
    is_hu = _is_hu(images[0])
    values = np.empty(grid.shape_zyx, np.float32)
    for image in images:
        uid = str(image.SOPInstanceUID)
        slices = {max(frame, 1) - 1: number for number, (other, frame) in enumerate(grid.frames) if other == uid}
        for index, stored in zip(slices, _stored(image, list(slices)), strict=True):
            slope, intercept = _rescale(image, index, is_hu=is_hu)
            values[slices[index]] = stored * np.float32(slope) + np.float32(intercept)
    kev = elements.read(images[0]).get("EffectiveEnergy")
    effective_kev = None if kev is None else float(kev)
    return images, grid, Volume(values, grid.spacing_mm_zyx, is_hu, effective_kev, grid.placement)


def _require_memory(paths: Sequence[Path]) -> None:
    """Refuse a volume that would be read until the system ends the process."""
    for path in paths[:1]:
        first = pydicom.dcmread(path, stop_before_pixels=True)
        rows, columns = (int(first.get(keyword) or 0) for keyword in ("Rows", "Columns"))
        slices = max(len(paths), int(first.get("NumberOfFrames") or 1))
        needed, there = slices * rows * columns * _VOXEL_BYTES, machine_bytes()
        if needed > there:
            raise CannotProceed(
                f"a volume of {columns} × {rows} × {slices} voxels takes {needed / _GIB:.1f} GiB to be read, and this "
                f"machine has {there / _GIB:.1f} GiB of memory"
            )


def machine_bytes() -> int:
    """Return the memory of the machine."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _is_hu(image: Dataset) -> bool:
    """Whether the output of the rescaling is in HU: said by Rescale Type, and understood of CT (PS3.3 C.11.1.1.2)."""
    told = of_frame(image, 0, "PixelValueTransformationSequence", "RescaleType")
    return str(told) == "HU" if told else image.get("Modality") == "CT"


def _stored(image: Dataset, indices: list[int]) -> list[NDArray[np.float32]]:
    try:
        decoded = decoding.frames(image, image.PixelData, image.file_meta.TransferSyntaxUID, indices=indices)
        return [np.asarray(pixels, np.float32) for pixels, _ in decoded]
    except Exception as error:
        why = " ".join(str(error).split())
        raise CannotProceed(f"image {image.SOPInstanceUID} cannot be decoded: {why}"[:300]) from error


def _rescale(image: Dataset, index: int, *, is_hu: bool) -> tuple[float, float]:
    """Return slope and intercept to HU, or to 1/cm by the Real World Value Mapping."""
    if is_hu:
        group = "PixelValueTransformationSequence"
        slope, intercept = (of_frame(image, index, group, keyword) for keyword in ("RescaleSlope", "RescaleIntercept"))
        if slope is None or intercept is None:
            raise CannotProceed(f"image {image.SOPInstanceUID} has no Rescale Slope and Intercept to HU")
        return float(slope), float(intercept)
    for mapping in _mappings(image, index):
        units = mapping.get("MeasurementUnitsCodeSequence") or [Dataset()]
        if units[0].get("CodeValue") in _PER_CM and mapping.get("RealWorldValueSlope") is not None:
            return float(mapping.RealWorldValueSlope), float(mapping.RealWorldValueIntercept)
    raise CannotProceed(f"the values of image {image.SOPInstanceUID} are neither in HU nor in 1/cm")


def _mappings(image: Dataset, index: int) -> Sequence[Any]:
    group = functional_group(image, index, "RealWorldValueMappingSequence")
    return [group] if group is not None else image.get("RealWorldValueMappingSequence") or []
