"""Built-in plug-in: makes the saved indexes of vectors, and makes them again when they have fallen behind.

A look once a minute decides and cleans up; each index that is due is a job of its own, which shows its progress. All
have one subject, so that no two of them run at the same time.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping

from config.settings import Settings
from index.archive import Archive
from index.bases import building, files
from index.bases.limits import IndexLimits
from index.bases.selection import Grain
from plugins.hookspecs import JobFunction, hookimpl
from plugins.node import Task

logger = logging.getLogger(__name__)

LOOK = "look_after_vectors"
BUILD = "index_vectors"
SUBJECT = "vectors"

_PAUSE_S = 60.0
_LONGEST_STEP_S = 4 * 3600.0


@hookimpl
def job_functions() -> Mapping[str, JobFunction]:
    """Offer the jobs `look_after_vectors` and `index_vectors`."""
    return {LOOK: look, BUILD: build}


@hookimpl
def stalled_limits() -> Mapping[str, float]:
    """Training an index of tens of millions of vectors is one step."""
    return {BUILD: _LONGEST_STEP_S}


@hookimpl
def worker_started(archive: Archive, settings: Settings) -> None:
    """Queue the first look."""
    if settings.similarity.enabled:
        archive.jobs.push(LOOK, SUBJECT)


def look(task: Task) -> None:
    """Remove what does not count, queue the indexes that are due, and look again later."""
    archive = task.archive
    archive.jobs.again(task.job, not_before=time.time() + _PAUSE_S)
    files.tidy(archive)
    building.advance_unchanged(archive)
    for due in building.due(archive, IndexLimits.from_settings(task.settings.similarity)):
        logger.info("the %s index of %s is to be made: %s", due.grain, due.model_id, due.why)
        archive.jobs.push(BUILD, SUBJECT, {"model_id": due.model_id, "grain": due.grain.value})


def build(task: Task) -> None:
    """Make the index that the job's parameters name; a run that is interrupted has changed nothing."""
    wanted = task.job.parameters
    limits = IndexLimits.from_settings(task.settings.similarity)
    started = time.monotonic()
    made = building.build(task.archive, wanted["model_id"], Grain(wanted["grain"]), limits, task.progress)
    if made is None:
        return
    took = time.monotonic() - started
    logger.info("%s index of %d vectors of %s: %.1f s", made.kind, made.vectors, made.model_id, took)
    if made.curve is not None:
        step = made.curve.step(made.curve.levels[0].neighbours, limits.target_recall)
        told = (step.recall, step.bound, step.effort, limits.target_recall)
        log = logger.info if step.bound >= limits.target_recall else logger.warning
        log("recall %.3f, with 95 %% confidence at least %.3f, with effort %d (target %.3f)", *told)
