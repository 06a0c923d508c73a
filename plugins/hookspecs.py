"""The hooks: what a plug-in is asked, when, in which process, and what it may answer. This module is the contract.

The built-in plug-ins use exactly these; `docs/plugins.md` teaches them. What holds for all hooks:

- *When, where.* They are called by worker processes, never by a network process; each worker loads every plug-in for
  itself, and asks one after the other, in one thread. The encoder process loads the built-in plug-in `asked` alone.
  `tharsis jobs queue` asks `jobs_for_series`, and `tharsis plugins` all that name something, in a process of their own.
- *Order.* First those that ``[plugins] order`` names, then the built-in ones, then those of packages by name. Where two
  offer the same, who is asked first counts. pluggy's ``tryfirst`` and ``trylast`` change nothing; wrappers are refused.
- *Arguments.* A plug-in declares those parameters that it uses; it gets no others. `own` is the settings of its own: an
  instance of what `own_settings` names, else the table ``[plugins.settings.NAME]`` as it is.
- *Exceptions.* Whatever a plug-in raises (SystemExit too) is told by its name, in the job's error or in the log; the
  others are asked all the same.
- *Time.* One that has not returned after ``[plugins] hook_s`` seconds hangs. Its worker ends and is started again, the
  job goes on without its answer and says so; one that hangs again and again is left out (`index.plugin_troubles`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pluggy
from pydantic import BaseModel

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
def jobs_for_series(series: Series, settings: Settings, own: Any) -> list[Work] | None:
    """Say what is to be done with `series`, which has just become stable.

    When: each time that a series becomes stable: after the settle time without new instances, or at once for a series
    that this node made. Process: a worker, in its job `series_stable`. Each answer becomes a row of the job queue with
    its own retries, so this hook only looks and decides; it does no work itself, and reads headers rather than pixels.
    Exception: the others' answers are queued; the job `series_stable` fails and names the plug-in.

    Parameters
    ----------
    series
        Reads the headers lazily.
    settings
        Of the node.
    own
        Of the plug-in.

    Returns
    -------
    list of Work
        None or empty when the plug-in has nothing to do with it. It may ask for a job of another plug-in's kind.
    """


@hookspec
def job_functions() -> Mapping[str, JobFunction] | None:
    """Name the kinds of job that this plug-in does, and the function for each.

    When: once, when a worker starts. Process: each worker; the functions then run in its main thread, one job at a
    time. A kind belongs to one plug-in: who names one that belongs to a plug-in asked before is left out.
    Exception: the plug-in is left out. What a *function* raises is the failure of its job, which is tried again up to
    ``[jobs] max_attempts`` times; not after `CannotProceed`, whose message is the job's error as it is.

    Returns
    -------
    mapping of str to function of a Task
        Names of kinds are global: begin them with the plug-in's name where they might clash. None or empty when it does
        no jobs.
    """


@hookspec
def stalled_limits(settings: Settings, own: Any) -> Mapping[str, float] | None:
    """Name the kinds of job that may be silent for longer, or less long, than ``[jobs] stalled_s``.

    When: once, when a worker starts. Process: each worker. A job that has not called `Task.progress` for its limit
    hangs: it has failed, and is tried once more. Name a limit here where one step takes long; better, report more
    often. A plug-in that offers segmenters names that of its segmenters under ``segment``.
    Exception: told in the log; ``[jobs] stalled_s`` holds.

    Parameters
    ----------
    settings
        Of the node.
    own
        Of the plug-in.

    Returns
    -------
    mapping of str to float
        Kind of job → seconds; None or empty when the default is right for all.
    """


@hookspec
def worker_started(archive: Archive, settings: Settings, own: Any) -> None:
    """Look at the archive once, when a worker starts, before it takes its first job.

    When: after the node has said that it is ready. Process: each worker; several may ask at the same time, and pushing
    a job that is queued already does nothing. The place to queue work that a new version of a plug-in makes necessary.
    Exception: told in the log; the worker goes on.

    Parameters
    ----------
    archive
        What is stored, and its job queue.
    settings
        Of the node.
    own
        Of the plug-in.

    Returns
    -------
    None
        Nothing is expected.
    """


@hookspec
def segmenters(settings: Settings, own: Any) -> Sequence[Segmenter] | None:
    """Offer segmenters; those that ``[segmentation] use`` names run, each as a job and a SEG series of its own.

    When: when a worker starts and in each job `segment`, so that making a segmenter has to be cheap: load weights in
    `Segmenter.segment`. Process: each worker. What a segmenter owes is told in `plugins.segmentation.segmenter`: labels
    on the grid of the volume that it got, and a `recipe` that changes whenever the labels would. It may raise
    `plugins.node.CannotProceed` for a volume that it is not made for.
    Exception: the jobs of its segmenters fail and name the plug-in; the other segmenters work.

    Parameters
    ----------
    settings
        Of the node.
    own
        Of the plug-in.

    Returns
    -------
    sequence of Segmenter
        Of two with one name, that of the plug-in asked first counts; None or empty when there is nothing to offer.
    """


@hookspec
def own_settings() -> type[BaseModel] | None:
    """Name the pydantic model of the settings of the plug-in's own, the table ``[plugins.settings.NAME]``.

    When: once, right after the plug-in is imported. Process: each worker, and `tharsis plugins`, which lists the fields
    with defaults and descriptions. Let the model forbid what it does not know (``extra="forbid"``), so that a slip of
    the pen is told. A table that does not fit leaves the plug-in out, with a sentence that names the key.
    Exception: the plug-in is left out.

    Returns
    -------
    type of pydantic.BaseModel
        An instance is handed to the other hooks as `own`, and to jobs as `Task.own`. None: they get the table as it is.
    """
