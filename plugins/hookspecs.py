"""The hooks: what a plug-in is asked, and when. The built-in plug-ins use exactly these.

The hooks run in a worker process, never in a network process. A plug-in that raises is told by its name, in the job's
error or in the log; the others are asked all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pluggy

from config.settings import Settings
from index.archive import Archive
from plugins.node import Series, Task, Work
from plugins.segmentation.segmenter import Segmenter

PROJECT = "tharsis"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

JobFunction = Callable[[Task], None]
"""Does one job. Returning means done; `plugins.node.CannotProceed` means that trying again will not help."""


@hookspec
def jobs_for_series(series: Series, settings: Settings) -> list[Work] | None:
    """Say what is to be done with `series`, which has just become stable.

    Asked once each time that a series becomes stable: after the settle time without new instances, or at once for a
    series that this node made. Each answer becomes a row of the job queue with its own retries, so this hook only
    looks and decides; it does no work itself.

    Parameters
    ----------
    series
        Reads the headers lazily.
    settings
        Of the node.

    Returns
    -------
    list of Work
        None or empty when the plug-in has nothing to do with it.
    """


@hookspec
def job_functions() -> Mapping[str, JobFunction] | None:
    """Name the kinds of job that this plug-in does, and the function for each.

    Asked once, when a worker starts. A kind belongs to one plug-in.
    """


@hookspec
def worker_started(archive: Archive, settings: Settings) -> None:
    """Look at the archive once, when a worker starts, before it takes its first job.

    The place to queue work that a new version of a plug-in makes necessary. Several workers may ask; pushing a job that
    is queued already does nothing.
    """


@hookspec
def segmenters(settings: Settings) -> Sequence[Segmenter] | None:
    """Offer segmenters; those that ``[segmentation] use`` names run, each as a job and a SEG series of its own.

    Asked when a worker starts and in each job `segment`, so that making a segmenter has to be cheap: load weights in
    `Segmenter.segment`. What a segmenter owes is told in `plugins.segmentation.segmenter`: labels on the grid of the
    volume that it got, and a `recipe` that changes whenever the labels would. It may raise
    `plugins.node.CannotProceed` for a volume that it is not made for.

    Parameters
    ----------
    settings
        Of the node.

    Returns
    -------
    sequence of Segmenter
        Their names are unique among all plug-ins; None or empty when there is nothing to offer.
    """
