"""Built-in plug-in: keeps house. Reads stored files back, forgets old jobs, deletes what the settings no longer keep.

Both jobs queue themselves again, and do a little at a time: a worker that does nothing else but this is free for other
work after a few seconds.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from index import retention, scrub
from index.archive import Archive
from plugins.hookspecs import JobFunction, hookimpl
from plugins.node import Task

SCRUB = "scrub"
RETENTION = "retention"
SUBJECT = "archive"
"""Of both jobs: of all workers, one does the one or the other."""

_DAY_S = 86_400.0
_SHARE_S = 5.0
"""A slice reads at most what the pace allows in this time, seconds."""

_LONGEST_PAUSE_S = 3600.0
_QUOTA_PAUSE_S = 60.0
_STUDIES_A_RUN = 20


@hookimpl
def job_functions() -> Mapping[str, JobFunction]:
    """Offer the jobs `scrub` and `retention`."""
    return {SCRUB: do_scrub, RETENTION: do_retention}


@hookimpl
def worker_started(archive: Archive) -> None:
    """Queue both: settings that do not want one of them make it a look at the clock once an hour."""
    archive.jobs.push(SCRUB, SUBJECT)
    archive.jobs.push(RETENTION, SUBJECT)


def do_scrub(task: Task) -> None:
    """Read back some of the files that are due, forget old jobs, and queue the next slice."""
    settings, started = task.settings, time.time()
    pause = _LONGEST_PAUSE_S
    task.archive.jobs.again(task.job, not_before=started + pause)  # should this run fail, there is a next one
    if settings.integrity.scrub_days:
        pause = _scrub(task, period_s=settings.integrity.scrub_days * _DAY_S)
    if settings.jobs.keep_days:
        task.archive.jobs.forget(settings.jobs.keep_days * _DAY_S)
    scrub.forget_vector_changes(task.archive)
    task.archive.jobs.again(task.job, not_before=started + pause)


def _scrub(task: Task, *, period_s: float) -> float:
    """Do one slice and return how long after its start the next may begin, seconds."""
    pace = task.settings.integrity.scrub_mb_per_s * 1e6
    budget = max(1, int(pace * _SHARE_S))
    now = time.time()
    done = scrub.scrub_slice(
        task.archive, due_before=now - period_s, budget=budget, on_fraction=task.progress
    )
    if not done.is_all:
        return max(done.size / pace, 1.0)
    due = scrub.next_due(task.archive, period_s)
    return _LONGEST_PAUSE_S if due is None else min(max(due - now, done.size / pace, 1.0), _LONGEST_PAUSE_S)


def do_retention(task: Task) -> None:
    """Delete some of the studies that the settings no longer keep, and look again later."""
    settings, started = task.settings.retention, time.time()
    task.archive.jobs.again(task.job, not_before=started + _LONGEST_PAUSE_S)  # as above
    deleted = 0
    if not settings.dry_run:
        for study in retention.due(task.archive, settings):
            task.progress(deleted / _STUDIES_A_RUN)
            deleted += retention.delete(task.archive, study)
            if deleted >= _STUDIES_A_RUN:
                break
    has_quota = bool(settings.quota_gb) and settings.when_full == "delete_oldest" and not settings.dry_run
    pause = 0.0 if deleted >= _STUDIES_A_RUN else _QUOTA_PAUSE_S if has_quota else _LONGEST_PAUSE_S
    task.archive.jobs.again(task.job, not_before=started + pause)
