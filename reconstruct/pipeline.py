"""A scan to its CT series: line integrals, FDK and DICOM objects of each energy bin, one bin in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from reconstruct.derived import ct_series
from reconstruct.fdk import fdk
from reconstruct.geometry import GeometryError, VolumeGrid
from reconstruct.projections.scan import EnergyBin, Scan, ScanError
from reconstruct.working_memory import WorkingMemory, file_array

VERSION = 2
"""Part of every recipe: raised when the same parameters would give other voxels or other headers than before."""

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
    limited_arc
        Whether an arc that is no short scan is reconstructed as tomosynthesis, without a scale of its values.
    memory_mb
        Most that line integrals, volume and the work of FDK hold in memory together, MiB. What does not fit is mapped
        from files; not counted are the headers and flat fields of the scan.
    threads
        Of the kernels; 0: all cores.
    """

    filter: str = "ram-lak"
    cutoff: float = 1.0
    voxel_mm: float = 0.0
    limited_arc: bool = False
    memory_mb: int = 2048
    threads: int = 0

    def recipe(self) -> dict[str, Any]:
        """Return what determines the voxels: not the memory and the threads, which do not."""
        told = {key: value for key, value in asdict(self).items() if key not in ("memory_mb", "threads", "limited_arc")}
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


def reconstruct_scan(
    scan: Scan, parameters: Parameters, progress: Progress, work_folder: Path | None = None
) -> Iterator[BinSeries]:
    """Yield the CT series of each energy bin of `scan`, in the order of the bins.

    Parameters
    ----------
    progress
        Called with the fraction done of the whole scan (0 to 1); may raise to stop the work.
    work_folder
        Where arrays go that do not fit into memory; None: where temporary files go.

    Raises
    ------
    ScanError, GeometryError
        The scan cannot be reconstructed; one sentence says why.
    OSError
        There is no room in `work_folder`.
    """
    grid = scan.grid(parameters.voxel_mm)
    recipe = parameters.recipe()
    for number, energy_bin in enumerate(scan.bins):
        report = _part(progress, number, len(scan.bins))
        volume = _volume(scan, energy_bin, grid, parameters, report, work_folder)
        instances = ct_series(
            volume,
            grid,
            scan=scan,
            energy_bin=energy_bin,
            recipe=recipe,
            progress=_scaled(report, _RECONSTRUCTED, 1.0),
        )
        del volume  # `instances` holds it, until the last of them
        yield BinSeries(energy_bin, grid.shape_zyx[0], _refused_as_scan_error(instances))


def _volume(
    scan: Scan,
    energy_bin: EnergyBin,
    grid: VolumeGrid,
    parameters: Parameters,
    report: Progress,
    work_folder: Path | None,
) -> NDArray[np.float32]:
    """Return the attenuation in an energy bin, 1/mm, (z, y, x)."""
    memory = WorkingMemory.of(scan.shape, grid.shape_zyx, parameters.memory_mb)
    integrals = scan.line_integrals(
        energy_bin.index,
        _scaled(report, 0.0, _PREPARED),
        file_array(scan.shape, work_folder) if memory.integrals_in_file else None,
    )
    try:
        return fdk(
            integrals,
            scan.geometry,
            grid,
            filter=scan.request.filter or parameters.filter,
            cutoff=scan.request.cutoff or parameters.cutoff,
            limited_arc=parameters.limited_arc,
            memory_mb=memory.fdk_mb,
            threads=parameters.threads,
            progress=_scaled(report, _PREPARED, _RECONSTRUCTED),
            out=file_array(grid.shape_zyx, work_folder) if memory.volume_in_file else None,
        )
    except GeometryError:
        raise
    except ValueError as error:
        bound = f"memory_mb = {parameters.memory_mb}"
        raise ScanError(f"energy bin {energy_bin.index}, reconstructed with {bound}: {error}") from error


def _refused_as_scan_error(instances: Iterator[Dataset]) -> Iterator[Dataset]:
    """Yield the same; voxels that cannot be written are the fault of the scan."""
    try:
        yield from instances
    except ValueError as error:
        raise ScanError(str(error)) from error


def _part(progress: Progress, number: int, count: int) -> Progress:
    return _scaled(progress, number / count, (number + 1) / count)


def _scaled(progress: Progress, start: float, end: float) -> Progress:
    return lambda fraction: progress(start + (end - start) * fraction)
