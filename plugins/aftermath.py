"""What a worker that ended in the hands of a plug-in has left: told of the job and of the plug-in, by its successor."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from config.settings import JobSettings
from index import plugin_troubles
from index.archive import Archive
from index.errors import NotFound
from index.jobs import Job
from index.plugin_troubles import How, Trouble
from plugins.watch import NODE_ITSELF, Doing

logger = logging.getLogger(__name__)

_MOST_HANGS = 2
"""A job that hung is tried once more: what it waited for may be there now. It holds up others for long each time."""


def settle(
    archive: Archive,
    worker: str,
    left: Doing | None,
    how_it_ended: str,
    limits: JobSettings,
    versions: Mapping[str, str],
) -> None:
    """Record what the last process of this name did when it ended.

    Parameters
    ----------
    worker
        Its name.
    left
        What its note tells.
    how_it_ended
        As a clause ("died of SIGSEGV"), by its supervisor; empty when the node was started anew, so that the process
        may have ended with the machine, and whatever it was doing is not to blame.
    limits
        Of the jobs.
    versions
        Of the installed plug-ins.
    """
    if left is None or not (left.hung or how_it_ended):
        return
    how = How.HUNG if left.hung else How.DIED
    happened = left.sentence if left.hung else f"was at work on {left.place} when its worker {how_it_ended}"
    if left.plugin != NODE_ITSELF:
        trouble = Trouble(left.plugin, left.place, left.subject, how, versions.get(left.plugin, ""), happened)
        with archive.transaction() as database:
            plugin_troubles.note(database, trouble)
        logger.error("plug-in %s %s", left.plugin, happened)
    if left.hung:
        _end_job(archive, worker, left, limits)
    during = f"plug-in {left.plugin} was at work on {left.place}" if left.plugin else "running it"
    archive.jobs.free_claims_of(worker, max_attempts=limits.max_attempts, during=during)


def _end_job(archive: Archive, worker: str, left: Doing, limits: JobSettings) -> None:
    """Let the job fail that hung; one in which a plug-in hung that was only asked goes on without that one."""
    job = _claimed(archive, worker, left)
    if job is None:
        return
    if not left.place.startswith("job "):
        archive.jobs.release(job)
        return
    sentence = f"plug-in {left.plugin} {left.sentence}" if left.plugin else f"the node {left.sentence}"
    most = min(_MOST_HANGS, limits.max_attempts)
    archive.jobs.fail(job, sentence, max_attempts=most, retry_delay_s=limits.retry_delay_s)


def _claimed(archive: Archive, worker: str, left: Doing) -> Job | None:
    try:
        job = archive.jobs.get(left.job)
    except NotFound:
        return None
    return job if job.worker == worker and job.started == left.started else None
