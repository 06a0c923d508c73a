"""Built-in plug-in: a series of projections becomes one CT series for each energy bin."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage

from config.settings import Settings
from index import derivations
from index.errors import NotFound
from plugins.hookspecs import JobFunction, hookimpl
from plugins.node import Cancelled, CannotProceed, Series, Task, Work
from plugins.publish import is_made, publish, record, withdraw
from reconstruct.geometry import GeometryError
from reconstruct.projections.request import request_of_parameters
from reconstruct.projections.scan import ReconstructionRequest, ScanError
from reconstruct.working_memory import NoRoom

if TYPE_CHECKING:
    from reconstruct.checkpoint import Checkpoint
    from reconstruct.pipeline import Parameters  # the kernels' compiler takes its time: imported when they are used

KIND = "reconstruct"


@dataclass(frozen=True)
class StoredScan:
    """The series of a study that hold one scan, in the order of their UIDs, whichever of them one started from."""

    series: tuple[Series, ...]

    @classmethod
    def of(cls, series: Series) -> StoredScan:
        """Return the series with those that name the same Scan Set UID (0071,xx01).

        Raises
        ------
        ScanError
            A file cannot be read.
        CannotProceed
            Another study uses the UID of one of the series.
        """
        scan_sets = series.encodings.scan_sets
        scan_set = next((uid for uid in scan_sets(series.projection_paths) if uid), "")
        others = series.others_with_projections() if scan_set else []
        same = [other for other in others if scan_set in scan_sets(other.projection_paths)]
        return cls(tuple(sorted([series, *same], key=lambda each: each.uid)))

    @property
    def uid(self) -> str:
        """Which of the series stands for all: the one that the derivation is recorded of."""
        return self.series[0].uid

    @property
    def paths(self) -> list[Path]:
        """The files that may hold projections."""
        return [path for series in self.series for path in series.projection_paths]


@hookimpl
def jobs_for_series(series: Series, settings: Settings) -> list[Work]:
    """Reconstruct what one of the projection readers recognises, once for all series of a scan."""
    wanted = settings.reconstruct.enabled and series.holds_projections
    return [Work(KIND, StoredScan.of(series).uid)] if wanted else []


@hookimpl
def job_functions() -> Mapping[str, JobFunction]:
    """Offer the job `reconstruct`."""
    return {KIND: reconstruct}


def is_lowest_bin(series: Series) -> bool:
    """Whether this node reconstructed `series` as the lowest energy bin of a scan, with values that are attenuation.

    Those of a limited arc only tell more from less.
    """
    made_by = series.made_by
    return (
        made_by is not None
        and made_by.kind == KIND
        and series.instances[0].sop_class_uid == CTImageStorage
        and made_by.outputs[0] == series.uid
        and "RealWorldValueMappingSequence" in series.header
    )


def parameters_from(
    settings: Settings, scheduler: str = "", request: ReconstructionRequest | None = None
) -> Parameters:
    """Return the reconstruction that the settings ask for.

    Parameters
    ----------
    scheduler
        Address of a Dask scheduler, instead of that of the settings.
    request
        What is asked for of this reconstruction only.
    """
    from reconstruct.corrections.wanted import Corrections
    from reconstruct.pipeline import Parameters

    told = settings.reconstruct
    return Parameters(
        told.filter,
        told.cutoff,
        told.voxel_mm,
        told.limited_arc,
        told.memory_mb,
        told.threads,
        scheduler or told.scheduler,
        told.device,
        Corrections(**settings.corrections.model_dump()),
        request or ReconstructionRequest(),
    )


def reconstruct(task: Task) -> None:
    """Reconstruct the scan that the task's series belongs to and store one CT series per energy bin.

    What a run that was killed had done is not done again: slabs of a volume that is kept in a file, and whole bins. Of
    one that is cancelled, or finds that it cannot proceed, nothing stays.

    Raises
    ------
    CannotProceed
        The scan is incomplete, contradictory or unreadable, or the disk has no room; the sentence names what is
        missing.
    """
    from reconstruct.checkpoint import Checkpoint, remove_abandoned

    work_folder = task.archive.data / "work"
    remove_abandoned(work_folder)
    try:
        told = task.job.parameters
        parameters = parameters_from(task.settings, str(told.get("scheduler", "")), request_of_parameters(told))
        recipe = parameters.recipe()
        stored = StoredScan.of(task.series())
        digest = digest_of(task, stored)
        if is_made(task.archive, stored.uid, recipe, digest):
            return
        names = {"source": stored.uid, "digest": digest, "recipe": derivations.canonical(recipe)}
        checkpoint = Checkpoint(work_folder, names)
        begun = [one.series_instance_uid for one in checkpoint.finished_bins()]
        try:
            outputs = _carry_out(task, stored, parameters, checkpoint, begun)
        except (ScanError, GeometryError, CannotProceed, Cancelled) as error:
            if not (isinstance(error, Cancelled) and _is_taken_over(task)):
                for uid in begun:
                    withdraw(task.archive, uid)
                checkpoint.remove()
            raise
    except (ScanError, GeometryError, NoRoom) as error:  # without room, what is done already stays
        raise CannotProceed(str(error)) from error
    record(task.archive, stored.uid, recipe, digest, outputs)
    checkpoint.remove()


def _is_taken_over(task: Task) -> bool:
    """Whether another worker goes on with what is there, for this one's claim had expired; else it was cancelled."""
    try:
        return task.archive.jobs.get(task.job.id).state != "cancelled"
    except NotFound:  # it went with its series
        return False


def digest_of(task: Task, stored: StoredScan) -> str:
    """Return what changes when an instance of the scan does, or what the site says of its scanners."""
    digest = derivations.source_digest(task.archive.database, *(series.uid for series in stored.series))
    told = stored.series[0].encodings.told
    return hashlib.sha256(f"{digest} {told}".encode()).hexdigest() if told else digest


def _carry_out(
    task: Task, stored: StoredScan, parameters: Parameters, checkpoint: Checkpoint, begun: list[str]
) -> tuple[derivations.Output, ...]:
    """Store the series of every bin that `checkpoint` does not know as finished; return those of all bins.

    The UID of a series goes to `begun` as soon as something of it is stored.
    """
    from reconstruct.checkpoint import FinishedBin
    from reconstruct.pipeline import reconstruct_scan

    database = task.archive.database
    for one in checkpoint.finished_bins():
        if derivations.count_instances(database, one.series_instance_uid) < one.instances:
            checkpoint.forget_bins()  # somebody deleted what was made
    scan = stored.series[0].encodings.read_scan(stored.paths)
    for made in reconstruct_scan(scan, parameters, task.progress, checkpoint=checkpoint):
        output = publish(task.archive, _noted(made.instances, begun))
        checkpoint.finish_bin(FinishedBin(made.energy_bin.index, output.series_instance_uid, output.instances))
    finished = {one.index: one for one in checkpoint.finished_bins()}
    bins = [finished[energy_bin.index] for energy_bin in scan.bins]
    return tuple(derivations.Output(one.series_instance_uid, one.instances) for one in bins)


def _noted(instances: Iterator[Dataset], begun: list[str]) -> Iterator[Dataset]:
    """Yield the same; the UID of their series goes to `begun` when the first of them has been stored."""
    for instance in instances:
        yield instance
        if instance.SeriesInstanceUID not in begun:
            begun.append(str(instance.SeriesInstanceUID))
