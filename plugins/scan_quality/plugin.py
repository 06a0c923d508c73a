"""Built-in plug-in: what a scan suffers from, and what the corrections do about it, as a picture in its study."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from config.settings import Settings
from plugins import reconstruction
from plugins.hookspecs import JobFunction, hookimpl
from plugins.node import CannotProceed, Series, Task, Work
from plugins.publish import is_made, publish, record
from reconstruct.geometry import GeometryError
from reconstruct.projections.scan import ScanError
from reconstruct.working_memory import NoRoom

KIND = "scan_quality"
_LONGEST_STEP_S = 3600.0
_BIN = 1
"""The lowest one, which has the strongest contrast."""


@hookimpl
def jobs_for_series(series: Series, settings: Settings) -> list[Work]:
    """Look at the scan that this node has reconstructed, once for all of its energy bins."""
    made_by = series.made_by
    first = made_by is not None and made_by.kind == reconstruction.KIND and made_by.outputs[0] == series.uid
    return [Work(KIND, made_by.source)] if settings.scan_quality.enabled and made_by is not None and first else []


@hookimpl
def job_functions() -> Mapping[str, JobFunction]:
    """Offer the job `scan_quality`."""
    return {KIND: draw_scan_quality}


@hookimpl
def stalled_limits() -> Mapping[str, float]:
    """Judging the line integrals of a large scan is one step."""
    return {KIND: _LONGEST_STEP_S}


def draw_scan_quality(task: Task) -> None:
    """Store one picture of the quality of the scan that the task's series belongs to.

    Raises
    ------
    CannotProceed
        The scan is incomplete, contradictory or unreadable; the sentence names what is missing.
    """
    from plugins.scan_quality.drawing import draw  # matplotlib and the kernels take their time
    from plugins.scan_quality.picture import quality_picture
    from reconstruct import scan_quality

    parameters = reconstruction.parameters_from(task.settings)
    width = task.settings.scan_quality.picture_width
    recipe: dict[str, Any] = {"kind": KIND, "version": scan_quality.VERSION, "width": width}
    recipe |= parameters.corrections.recipe()
    work_folder = task.archive.data / "work"
    work_folder.mkdir(exist_ok=True)
    try:
        stored = reconstruction.StoredScan.of(task.series())
        digest = reconstruction.digest_of(task, stored)
        if is_made(task.archive, stored.uid, recipe, digest):
            return
        scan = stored.series[0].encodings.read_scan(stored.paths)
        report = scan_quality.look_at(
            scan, _BIN, parameters.corrections, task.progress, folder=work_folder, memory_mb=parameters.memory_mb
        )
    except (ScanError, GeometryError, NoRoom) as error:
        raise CannotProceed(str(error)) from error
    label = scan.bins[0].label
    title = f"Quality of the scan: energy bin {_BIN} of {len(scan.bins)}" + (f" ({label})" if label else "")
    picture = quality_picture(draw(report, title=title, width=width), scan, recipe)
    record(task.archive, stored.uid, recipe, digest, (publish(task.archive, [picture]),))
