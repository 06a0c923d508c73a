"""What the jobs have in common: a connection to Orthanc, and patience while it, or room for what it has, is missing."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import wraps

from index.errors import OutOfSpace
from plugins.hookspecs import JobFunction
from plugins.node import Postponed, Task
from plugins.orthanc.client import OrthancAway, OrthancClient

_LONGEST_DELAY_S = 300.0
_SHARE = 0.25
"""The wait grows with the time since the job was queued: a quarter of it."""


def waits_for_orthanc(function: Callable[[Task, OrthancClient], None]) -> JobFunction:
    """Turn a function of task and connection into that of a job, which waits as long as it has to.

    Raises
    ------
    Postponed
        From the job: Orthanc is away, or the archive has no room; however long that lasts, the job stays queued.
    """

    @wraps(function)
    def job(task: Task) -> None:
        try:
            with OrthancClient(task.settings.orthanc) as orthanc:
                function(task, orthanc)
        except (OrthancAway, OutOfSpace) as error:
            raise Postponed(str(error), _delay(task)) from error

    return job


def _delay(task: Task) -> float:
    waited = time.time() - task.job.created
    return min(max(task.settings.jobs.retry_delay_s, _SHARE * waited), _LONGEST_DELAY_S)
