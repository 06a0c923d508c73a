"""Built-in plug-in: a series of projections becomes one CT series for each energy bin."""

from __future__ import annotations

from collections.abc import Mapping

from config.settings import ReconstructSettings, Settings
from index import derivations, jobs
from plugins.hookspecs import JobFunction, hookimpl
from plugins.node import CannotProceed, Series, Task, Work
from plugins.publish import is_made, publish
from reconstruct.geometry import GeometryError
from reconstruct.pipeline import Parameters, reconstruct_scan
from reconstruct.projections.registry import read_scan, recognise
from reconstruct.projections.scan import ScanError

KIND = "reconstruct"


@hookimpl
def jobs_for_series(series: Series, settings: Settings) -> list[Work]:
    """Reconstruct what one of the projection readers recognises."""
    wanted = settings.reconstruct.enabled and recognise(series.header) is not None
    return [Work(KIND, series.uid)] if wanted else []


@hookimpl
def job_functions() -> Mapping[str, JobFunction]:
    """Offer the job `reconstruct`."""
    return {KIND: reconstruct}


def parameters_from(settings: ReconstructSettings) -> Parameters:
    """Return the reconstruction that the settings ask for."""
    return Parameters(settings.filter, settings.cutoff, settings.voxel_mm, settings.memory_mb, settings.threads)


def reconstruct(task: Task) -> None:
    """Reconstruct the scan in the task's series and store one CT series per energy bin.

    Raises
    ------
    CannotProceed
        The scan is incomplete, contradictory or unreadable; the sentence names what is missing.
    """
    series = task.series()
    parameters = parameters_from(task.settings.reconstruct)
    recipe, digest = parameters.recipe(), series.digest
    if is_made(task.archive, series.uid, recipe, digest):
        return
    try:
        scan = read_scan(series.paths)
        made = reconstruct_scan(scan, parameters, task.progress)
        outputs = tuple(publish(task.archive, bin_series.instances) for bin_series in made)
    except (ScanError, GeometryError) as error:
        raise CannotProceed(str(error)) from error
    with task.archive.transaction() as database:
        derivations.record(database, series.uid, recipe, digest, outputs)
        for uid in outputs:
            jobs.push(database, jobs.SERIES_STABLE, uid)
