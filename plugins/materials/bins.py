"""The energy bins of a reconstructed scan as volumes, and what their headers tell of the beam."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from plugins.node import CannotProceed, Series
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
    def voxel_mm(self) -> float:
        """Edge of a voxel within a slice, mm."""
        return float(self.first.PixelSpacing[0])

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


def read_bins(series: Sequence[Series]) -> Bins:
    """Read the CT series of the energy bins of one scan.

    Raises
    ------
    CannotProceed
        Less than two bins, or bins that do not lie on one grid.
    """
    if len(series) < 2:
        raise CannotProceed(f"expected two energy bins or more, got {len(series)}")
    bins, volumes = [], []
    for each in series:
        slices = sorted(map(pydicom.dcmread, each.paths), key=lambda ds: float(ds.ImagePositionPatient[2]))
        volumes.append(np.stack([_per_cm(dataset) for dataset in slices]))
        for dataset in slices:
            del dataset.PixelData
        told = elements.read(slices[0])
        bins.append(
            Bin(
                tuple(slices), told.get("EnergyThresholdLow"), told.get("EnergyThresholdHigh"),
                told.get("WaterAttenuation"),
            )
        )  # fmt: skip
    for below, above in pairwise(bins):
        if _grid(below) != _grid(above):
            raise CannotProceed("the energy bins do not lie on one grid: reconstruct the scan again")
    return Bins(tuple(bins), np.stack(volumes))


def _grid(each: Bin) -> list[tuple[float, ...]]:
    first = each.slices[0]
    frame = (*map(float, first.PixelSpacing), *map(float, first.ImageOrientationPatient), first.Rows, first.Columns)
    return [frame, *(tuple(map(float, ds.ImagePositionPatient)) for ds in each.slices)]


def _per_cm(dataset: Dataset) -> NDArray[np.float32]:
    mapping = dataset.RealWorldValueMappingSequence[0]
    slope, intercept = float(mapping.RealWorldValueSlope), float(mapping.RealWorldValueIntercept)
    return dataset.pixel_array.astype(np.float32) * np.float32(slope) + np.float32(intercept)
