"""A scan to its CT series: line integrals, FDK and DICOM objects of each energy bin, one bin in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from pydicom.dataset import Dataset

from reconstruct.derived import ct_series
from reconstruct.fdk import fdk
from reconstruct.geometry import VolumeGrid
from reconstruct.projections.scan import EnergyBin, Scan

VERSION = 1
"""Part of every recipe: raised when the same parameters would give other voxels than before."""

_PREPARED, _RECONSTRUCTED = 0.25, 0.8
"""Shares of the work of a bin that are done after preprocessing and after FDK."""

Progress = Callable[[float], None]


@dataclass(frozen=True)
class Parameters:
    """How to reconstruct. What a scan requests itself goes before `filter`, `cutoff` and `voxel_mm`.

    Attributes
    ----------
    filter, cutoff
        Window of the ramp filter, and its cut-off as a fraction of the Nyquist frequency.
    voxel_mm
        Edge of a voxel, mm; 0: the detector's pitch, scaled to the isocentre.
    memory_mb
        Most that FDK allocates, MiB.
    threads
        Of the kernels; 0: all cores.
    """

    filter: str = "ram-lak"
    cutoff: float = 1.0
    voxel_mm: float = 0.0
    memory_mb: int = 2048
    threads: int = 0

    def recipe(self) -> dict[str, Any]:
        """Return what determines the voxels: not the memory and the threads, which do not."""
        told = {key: value for key, value in asdict(self).items() if key not in ("memory_mb", "threads")}
        return {"kind": "reconstruct", "method": "FDK", "version": VERSION, **told}


@dataclass(frozen=True)
class BinSeries:
    """The CT series of one energy bin.

    Attributes
    ----------
    energy_bin
        Which.
    slices
        How many instances `instances` yields.
    instances
        The CT images, one a slice, to be consumed before the next bin is asked for.
    """

    energy_bin: EnergyBin
    slices: int
    instances: Iterator[Dataset]


def reconstruct_scan(scan: Scan, parameters: Parameters, progress: Progress) -> Iterator[BinSeries]:
    """Yield the CT series of each energy bin of `scan`, in the order of the bins.

    Parameters
    ----------
    progress
        Called with the fraction done of the whole scan (0 to 1); may raise to stop the work.

    Raises
    ------
    ScanError, GeometryError
        The scan cannot be reconstructed; one sentence says why.
    """
    grid = scan.grid(parameters.voxel_mm)
    recipe = parameters.recipe()
    for number, energy_bin in enumerate(scan.bins):
        report = _part(progress, number, len(scan.bins))
        integrals = scan.line_integrals(energy_bin.index, _scaled(report, 0.0, _PREPARED))
        volume = fdk(
            integrals,
            scan.geometry,
            grid,
            filter=scan.request.filter or parameters.filter,
            cutoff=scan.request.cutoff or parameters.cutoff,
            memory_mb=parameters.memory_mb,
            threads=parameters.threads,
            progress=_scaled(report, _PREPARED, _RECONSTRUCTED),
        )
        del integrals
        instances = ct_series(
            volume,
            grid,
            scan=scan,
            energy_bin=energy_bin,
            recipe=recipe,
            progress=_scaled(report, _RECONSTRUCTED, 1.0),
        )
        yield BinSeries(energy_bin, _slices(grid), instances)


def _slices(grid: VolumeGrid) -> int:
    return grid.shape_zyx[0]


def _part(progress: Progress, number: int, count: int) -> Progress:
    return _scaled(progress, number / count, (number + 1) / count)


def _scaled(progress: Progress, start: float, end: float) -> Progress:
    return lambda fraction: progress(start + (end - start) * fraction)
