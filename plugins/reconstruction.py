"""Built-in plug-in: a series of projections becomes one CT series for each energy bin."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from config.settings import ReconstructSettings, Settings
from index import derivations
from plugins.hookspecs import JobFunction, hookimpl
from plugins.node import CannotProceed, Series, Task, Work
from plugins.publish import is_made, publish, record
from reconstruct.geometry import GeometryError
from reconstruct.projections.scan import ScanError

if TYPE_CHECKING:
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


def parameters_from(settings: ReconstructSettings) -> Parameters:
    """Return the reconstruction that the settings ask for."""
    from reconstruct.pipeline import Parameters

    return Parameters(settings.filter, settings.cutoff, settings.voxel_mm, settings.memory_mb, settings.threads)


def reconstruct(task: Task) -> None:
    """Reconstruct the scan that the task's series belongs to and store one CT series per energy bin.

    Raises
    ------
    CannotProceed
        The scan is incomplete, contradictory or unreadable; the sentence names what is missing.
    """
    from reconstruct.pipeline import reconstruct_scan

    parameters = parameters_from(task.settings.reconstruct)
    recipe = parameters.recipe()
    work_folder = task.archive.data / "work"
    work_folder.mkdir(exist_ok=True)
    try:
        stored = StoredScan.of(task.series())
        digest = derivations.source_digest(task.archive.database, *(series.uid for series in stored.series))
        if is_made(task.archive, stored.uid, recipe, digest):
            return
        scan = stored.series[0].encodings.read_scan(stored.paths)
        made = reconstruct_scan(scan, parameters, task.progress, work_folder)
        outputs = tuple(publish(task.archive, bin_series.instances) for bin_series in made)
    except (ScanError, GeometryError) as error:
        raise CannotProceed(str(error)) from error
    record(task.archive, stored.uid, recipe, digest, outputs)
