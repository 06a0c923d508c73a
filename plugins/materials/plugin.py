"""Built-in plug-in: the energy bins of a reconstruction are decomposed into materials, one series each."""

from __future__ import annotations

from collections.abc import Mapping

from config.settings import Settings
from plugins import reconstruction
from plugins.hookspecs import JobFunction, hookimpl
from plugins.node import Series, Task, Work

KIND = "decompose"


@hookimpl
def jobs_for_series(series: Series, settings: Settings) -> list[Work]:
    """Decompose what this node reconstructed from two energy bins and more, asked of the lowest: all exist together."""
    made_by = series.made_by
    several = made_by is not None and len(made_by.outputs) > 1
    wanted = settings.materials.enabled and several and reconstruction.is_lowest_bin(series)
    return [Work(KIND, series.uid)] if wanted else []


@hookimpl
def job_functions() -> Mapping[str, JobFunction]:
    """Offer the job `decompose`."""
    return {KIND: decompose_bins}


def decompose_bins(task: Task) -> None:
    """Decompose the energy bins that were reconstructed with the task's series; store a series for each material.

    Raises
    ------
    CannotProceed
        The bins do not tell what the settings need, or cannot tell the materials apart.
    """
    from plugins.materials.decomposing import decompose_bins as decompose  # kernels and highdicom take their time

    decompose(task, KIND)
