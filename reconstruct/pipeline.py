"""A scan to its CT series: line integrals, FDK and DICOM objects of each energy bin, one bin in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from reconstruct.backprojection import Device
from reconstruct.checkpoint import Checkpoint
from reconstruct.cluster import SharedFiles, connected, reconstruct_slabs
from reconstruct.corrections.chain import calibrated, corrected_integrals
from reconstruct.corrections.memory import preparing_bytes, sinograms_at_once
from reconstruct.corrections.wanted import Corrections
from reconstruct.derived import ct_series, slice_bytes
from reconstruct.fdk import fdk
from reconstruct.geometry import GeometryError, VolumeGrid
from reconstruct.projections.request import request_parameters
from reconstruct.projections.scan import EnergyBin, ReconstructionRequest, Scan, ScanError
from reconstruct.redundancy import Redundancy
from reconstruct.slabs import Plan, Slab, remaining
from reconstruct.stepped_plan import SteppedPlan, plan_of
from reconstruct.working_memory import MIB, WorkingMemory, return_freed_memory

VERSION = 4
"""Part of every recipe: raised when the same parameters would give other voxels or other headers than before."""

_NOT_IN_RECIPE = ("limited_arc", "memory_mb", "threads", "scheduler", "device", "corrections", "request")

_PREPARED, _RECONSTRUCTED = 0.25, 0.8
"""Shares of the work of a bin that are done after preprocessing and after FDK."""

INTEGRALS, VOLUME = "integrals", "volume"
"""The arrays of a bin in a checkpoint."""

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
        Most that a reconstruction holds in memory, MiB, of whatever it reads, computes and writes: line integrals and
        volume are in files where they do not fit. Not counted are the program itself and the headers of the scan.
    threads
        Of the kernels; 0: all cores.
    scheduler
        Address of a Dask scheduler whose workers reconstruct, ``tcp://host:port``; "": this process does.
    device
        Where to back-project: "cpu", "cuda", or "auto" for a CUDA device where there is one.
    corrections
        What is corrected before.
    request
        What is asked for of this reconstruction only; it goes before what the scan requests.
    """

    filter: str = "ram-lak"
    cutoff: float = 1.0
    voxel_mm: float = 0.0
    limited_arc: bool = False
    memory_mb: int = 2048
    threads: int = 0
    scheduler: str = ""
    device: Device = "cpu"
    corrections: Corrections = field(default_factory=Corrections)
    request: ReconstructionRequest = field(default_factory=ReconstructionRequest)

    def recipe(self) -> dict[str, Any]:
        """Return what determines the voxels: not where and how they are computed."""
        told = {key: value for key, value in asdict(self).items() if key not in _NOT_IN_RECIPE}
        told |= self.corrections.recipe() | request_parameters(self.request)
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
    scan: Scan,
    parameters: Parameters,
    progress: Progress,
    work_folder: Path | None = None,
    checkpoint: Checkpoint | None = None,
) -> Iterator[BinSeries]:
    """Yield the CT series of each energy bin of `scan`, in the order of the bins.

    Parameters
    ----------
    progress
        Called with the fraction done of the whole scan (0 to 1); may raise to stop the work.
    work_folder
        Where arrays go that do not fit into memory; None: where temporary files go.
    checkpoint
        Where such arrays are kept, and the work is gone on with: what it says is done is not done again, and bins that
        it says are finished are not yielded. None: what is begun is lost when the iterator ends.

    Raises
    ------
    ScanError, GeometryError, ClusterError
        The scan cannot be reconstructed; one sentence says why.
    NoRoom
        There is no room on the disk for what does not fit into memory, told before a bin is read.
    """
    return_freed_memory()
    scan = replace(scan, request=parameters.request.over(scan.request))
    with nullcontext(checkpoint) if checkpoint else _passing_checkpoint(work_folder) as files:
        parameters = replace(parameters, corrections=parameters.corrections.left_to_do(scan))
        scan, corrections = calibrated(
            scan, parameters.corrections, folder=files.folder, progress=lambda _fraction: progress(0.0)
        )
        parameters = replace(parameters, corrections=corrections)
        grid = scan.grid(parameters.voxel_mm)
        recipe = parameters.recipe()
        finished = {one.index for one in files.finished_bins()}
        shared: _Shared | None = None
        for number, energy_bin in enumerate(scan.bins):
            if energy_bin.index in finished:
                continue
            report = _part(progress, number, len(scan.bins))
            shared = shared or _shared(scan, energy_bin, grid, parameters)
            volume = _volume(scan, energy_bin, shared, parameters, report, files)
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


@contextmanager
def _passing_checkpoint(folder: Path | None) -> Iterator[Checkpoint]:
    with TemporaryDirectory(dir=folder) as passing:
        yield Checkpoint(Path(passing), {})


@dataclass(frozen=True)
class _Shared:
    """What all bins of a scan have in common: found out once.

    Attributes
    ----------
    plan, measured
        How the voxels are made, and what the measurements count for.
    memory
        What is in memory, and what in files.
    at_once
        Sinograms that are corrected together.
    """

    plan: Plan
    measured: Redundancy
    memory: WorkingMemory
    at_once: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """Size of the line integrals of a bin, (view, row, column)."""
        geometry = self.plan.geometry
        return geometry.views, geometry.rows, geometry.columns

    def in_files(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the arrays of a bin that live in files."""
        shapes: dict[str, tuple[int, ...]] = {}
        if self.memory.integrals_in_file:
            shapes[INTEGRALS] = self.shape
        if self.memory.volume_in_file:
            shapes[VOLUME] = self.plan.grid.shape_zyx
        return shapes


def _shared(scan: Scan, first: EnergyBin, grid: VolumeGrid, parameters: Parameters) -> _Shared:
    """Refuse what cannot be reconstructed, before anything is read for the bin that is the first to be made."""
    corrections = parameters.corrections
    geometry = scan.geometry.extended(*corrections.margins(scan))
    shape = (geometry.views, geometry.rows, geometry.columns)
    at_once = sinograms_at_once(scan, corrections, parameters.memory_mb * MIB // 4)
    preparing, writing = preparing_bytes(scan, corrections, at_once), slice_bytes(grid)
    try:
        memory = WorkingMemory.of(shape, grid.shape_zyx, parameters.memory_mb, preparing=preparing, writing=writing)
    except ValueError as error:
        raise ScanError(f"{_bound(first, parameters)}: {error}") from error
    if parameters.scheduler:
        memory = replace(memory, integrals_in_file=True, volume_in_file=True, fdk_mb=parameters.memory_mb)
    plan = plan_of(
        geometry,
        grid,
        scan.request.filter or parameters.filter,
        scan.request.cutoff or parameters.cutoff,
        limited_arc=parameters.limited_arc,
        extrapolated=corrections.margins(scan),
    )
    return _Shared(plan, plan.measured(), memory, at_once)


def _bound(energy_bin: EnergyBin, parameters: Parameters) -> str:
    return f"energy bin {energy_bin.index}, reconstructed with memory_mb = {parameters.memory_mb}"


def _volume(
    scan: Scan,
    energy_bin: EnergyBin,
    shared: _Shared,
    parameters: Parameters,
    report: Progress,
    files: Checkpoint,
) -> NDArray[np.float32]:
    """Return the attenuation in an energy bin, 1/mm, (z, y, x)."""
    number, plan, measured, memory = energy_bin.index, shared.plan, shared.measured, shared.memory
    grid = plan.grid
    files.take_room(number, shared.in_files())
    tell, kept = _scaled(report, 0.0, _PREPARED), files if memory.integrals_in_file else None
    integrals = _integrals(scan, number, shared.shape, parameters.corrections, shared.at_once, tell, kept)
    tell = _scaled(report, _PREPARED, _RECONSTRUCTED)
    try:
        if memory.volume_in_file:
            return _in_slabs(plan, measured, integrals, parameters, memory, tell, files, number)
        if isinstance(plan, SteppedPlan):
            return plan.reconstruct(
                integrals,
                plan.slab(0, grid.shape_zyx[0]),
                memory_mb=memory.fdk_mb,
                threads=parameters.threads,
                device=parameters.device,
                progress=tell,
            )
        return fdk(
            integrals,
            plan.geometry,
            grid,
            filter=plan.filter,
            cutoff=plan.cutoff,
            measured=measured,
            memory_mb=memory.fdk_mb,
            threads=parameters.threads,
            device=parameters.device,
            progress=tell,
        )
    except GeometryError:
        raise
    except ValueError as error:
        raise ScanError(f"{_bound(energy_bin, parameters)}: {error}") from error


def _integrals(
    scan: Scan,
    number: int,
    shape: tuple[int, int, int],
    corrections: Corrections,
    at_once: int,
    tell: Progress,
    files: Checkpoint | None,
) -> NDArray[np.float32]:
    """Return the line integrals of a bin: in memory without `files`, else in a file, where they may be already."""
    if files is None:
        out = np.empty(shape, dtype=np.float32)
        return corrected_integrals(scan, number, corrections, out=out, rows_at_once=at_once, progress=tell)
    mapped = files.array(number, INTEGRALS, shape)
    if not files.parts_done(number, INTEGRALS):
        corrected_integrals(scan, number, corrections, out=mapped, rows_at_once=at_once, progress=tell)
        files.part_done(number, INTEGRALS, 0, shape[0])
    return mapped


def _in_slabs(
    plan: Plan,
    measured: Redundancy,
    integrals: NDArray[np.float32],
    parameters: Parameters,
    memory: WorkingMemory,
    tell: Progress,
    files: Checkpoint,
    number: int,
) -> NDArray[np.float32]:
    """Reconstruct what is not done yet, slab by slab, into a file; here or on a cluster."""
    volume = files.array(number, VOLUME, plan.grid.shape_zyx)
    slabs = plan.slabs(memory.fdk_mb)
    left = remaining(slabs, files.parts_done(number, VOLUME))
    before = len(slabs) - len(left)
    if parameters.scheduler:
        finished = before

        def done(slab: Slab) -> None:
            nonlocal finished
            files.part_done(number, VOLUME, slab.start, slab.stop)
            finished += 1

        shared = SharedFiles(files.path(number, INTEGRALS), files.path(number, VOLUME))
        with connected(parameters.scheduler) as client:
            reconstruct_slabs(
                client,
                plan,
                left,
                shared,
                memory_mb=memory.fdk_mb,
                device=parameters.device,
                done=done,
                look=lambda: tell(finished / len(slabs)),
            )
        return volume
    for index, slab in enumerate(left, before):
        plan.reconstruct(
            integrals,
            slab,
            measured=measured,
            memory_mb=memory.fdk_mb,
            threads=parameters.threads,
            device=parameters.device,
            progress=_part(tell, index, len(slabs)),
            out=volume[slab.slices],
        )
        files.part_done(number, VOLUME, slab.start, slab.stop)
    return volume


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
