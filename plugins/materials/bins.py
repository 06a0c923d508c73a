"""The energy bins of a reconstructed scan as volumes, and what their headers tell of the beam."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from plugins.node import CannotProceed, Series
from reconstruct.decomposition import Allocate
from reconstruct.multi_energy import tube_voltage
from reconstruct.projections import elements

_SAME_KEV = 1e-6


@dataclass(frozen=True, eq=False)
class Bin:
    """One energy bin.

    Attributes
    ----------
    slices
        Headers without pixels, from feet to head.
    low_kev, high_kev
        Its thresholds, keV; None where not told.
    water_per_cm
        Attenuation of water in it, 1/cm; None where not told.
    """

    slices: tuple[Dataset, ...]
    low_kev: float | None
    high_kev: float | None
    water_per_cm: float | None


@dataclass(frozen=True, eq=False)
class Bins:
    """The energy bins of a scan, on one grid.

    Attributes
    ----------
    bins
        Ascending with energy.
    volumes
        Attenuation, 1/cm, (bin, z, y, x) float32.
    """

    bins: tuple[Bin, ...]
    volumes: NDArray[np.float32]

    @property
    def first(self) -> Dataset:
        """Header of the lowest slice of the lowest bin."""
        return self.bins[0].slices[0]

    @property
    def pixel_mm2(self) -> float:
        """Area of a voxel within a slice, mm²."""
        rows, columns = (float(value) for value in self.first.PixelSpacing)
        return rows * columns

    @property
    def kvp(self) -> float:
        """Tube voltage, kV; raises `CannotProceed` when it is not told."""
        told = tube_voltage(self.first)
        if told is None:
            raise CannotProceed("the reconstruction does not tell the tube voltage (KVP): calibrate the materials")
        return told

    @property
    def thresholds_kev(self) -> tuple[float, ...]:
        """Lower ends of the bins; raises `CannotProceed` when they are not told or leave energies out."""
        lows = [each.low_kev for each in self.bins if each.low_kev is not None]
        if len(lows) < len(self.bins):
            raise CannotProceed("the energy bins do not tell their thresholds: calibrate the materials")
        for below, above in pairwise(self.bins):
            if below.high_kev is not None and abs(below.high_kev - (above.low_kev or 0)) > _SAME_KEV:
                raise CannotProceed(
                    f"an energy bin ends at {below.high_kev:g} keV and the next begins at {above.low_kev:g} keV: "
                    "calibrate the materials"
                )
        return tuple(lows)

    @property
    def water_per_cm(self) -> tuple[float, ...]:
        """Attenuation of water in each bin, 1/cm; raises `CannotProceed` when it is not told."""
        told = [each.water_per_cm for each in self.bins if each.water_per_cm is not None]
        if len(told) < len(self.bins):
            raise CannotProceed(
                "the energy bins do not tell the attenuation of water: set filtration_mm_al in [materials]"
            )
        return tuple(told)


def read_bins(series: Sequence[Series], allocate: Allocate | None = None) -> Bins:
    """Read the CT series of the energy bins of one scan.

    Parameters
    ----------
    allocate
        Makes the array of the volumes; None: in memory.

    Raises
    ------
    CannotProceed
        Less than two bins, or bins that do not lie on one grid.
    """
    if len(series) < 2:
        raise CannotProceed(f"expected two energy bins or more, got {len(series)}")
    files = [_from_feet_to_head(each) for each in series]
    bins = [_bin(headers) for headers, _ in files]
    for below, above in pairwise(bins):
        if _grid(below) != _grid(above):
            raise CannotProceed("the energy bins do not lie on one grid: reconstruct the scan again")
    first = bins[0].slices[0]
    shape = (len(bins), len(bins[0].slices), int(first.Rows), int(first.Columns))
    volumes = np.empty(shape, np.float32) if allocate is None else allocate(shape)
    for volume, (_, paths) in zip(volumes, files, strict=True):
        for image, path in zip(volume, paths, strict=True):
            image[:] = _per_cm(pydicom.dcmread(path))
    return Bins(tuple(bins), volumes)


def _from_feet_to_head(series: Series) -> tuple[list[Dataset], list[Path]]:
    """Return the headers of the slices and their files."""
    headers = [pydicom.dcmread(path, stop_before_pixels=True) for path in series.paths]
    order = sorted(range(len(headers)), key=lambda place: float(headers[place].ImagePositionPatient[2]))
    return [headers[place] for place in order], [series.paths[place] for place in order]


def _bin(slices: list[Dataset]) -> Bin:
    told = elements.read(slices[0])
    return Bin(
        tuple(slices), told.get("EnergyThresholdLow"), told.get("EnergyThresholdHigh"), told.get("WaterAttenuation")
    )


def _grid(each: Bin) -> list[tuple[float, ...]]:
    first = each.slices[0]
    frame = (*map(float, first.PixelSpacing), *map(float, first.ImageOrientationPatient), first.Rows, first.Columns)
    return [frame, *(tuple(map(float, ds.ImagePositionPatient)) for ds in each.slices)]


def _per_cm(dataset: Dataset) -> NDArray[np.float32]:
    mapping = dataset.RealWorldValueMappingSequence[0]
    slope, intercept = float(mapping.RealWorldValueSlope), float(mapping.RealWorldValueIntercept)
    return dataset.pixel_array.astype(np.float32) * np.float32(slope) + np.float32(intercept)
