"""The job `orthanc_compare`: whatever was missed, by a crash or a restored backup, is found by comparing the lists.

It looks at every series of Orthanc, a page at a time, and queues a pull of each that is new here or has other instances
than when it was pulled; a pull of each that is not in Orthanc any more; a push of what Orthanc lacks.
"""

from __future__ import annotations

import logging
import time
from typing import Any

from index import elsewhere, jobs
from index.errors import OutOfSpace
from plugins.node import Cancelled, CannotProceed, Interrupted, Task
from plugins.orthanc.client import OrthancAway, OrthancClient, OrthancRefused
from plugins.orthanc.waiting import waits_for_orthanc

SUBJECT = "orthanc"
ONCE = {"once": True}
"""Parameters of a comparison that is asked for, beside the one that comes again by itself."""
DELETIONS = "deletions"
_FEW = 20
"""So many series may be gone at once; of more, a tenth of all, without somebody saying that this is meant."""

logger = logging.getLogger(__name__)

_PAGE = 200
_HOUR_S = 3600.0


@waits_for_orthanc
def compare(task: Task, orthanc: OrthancClient) -> None:
    """Compare all series, queue what is to be done and, of a recurring one, the next comparison, however it ends.

    Raises
    ------
    CannotProceed
        Orthanc refuses to list its series.
    """
    try:
        _compare(task, orthanc)
    except (OrthancAway, OutOfSpace, Interrupted, Cancelled):  # it is tried again, or nobody wants it
        raise
    except OrthancRefused as error:
        _look_again(task)
        raise CannotProceed(str(error)) from error
    except Exception:
        if task.job.attempts >= task.settings.jobs.max_attempts:
            _look_again(task)
        raise
    _look_again(task)


def _look_again(task: Task) -> None:
    if not task.job.parameters.get("once"):
        due = time.time() + task.settings.orthanc.compare_hours * _HOUR_S
        task.archive.jobs.again(task.job, not_before=due)


def _compare(task: Task, orthanc: OrthancClient) -> None:
    archive = task.archive
    noted = elsewhere.all_series(archive.database)
    gone = set(noted)
    total = _total(orthanc)
    since = 0
    while page := _page(orthanc, since):
        task.progress(since / max(total, since + 1))
        since += len(page)
        gone.difference_update(each["ID"] for each in page)
        news = [
            each["ID"]
            for each in page
            if each.get("IsStable", True) and noted.get(each["ID"]) != elsewhere.digest(each["Instances"])
        ]
        _queue_pulls(task, news)
    is_suspicious = len(gone) > max(_FEW, len(noted) // 10) and not task.job.parameters.get(DELETIONS)
    if not is_suspicious:
        _queue_pulls(task, sorted(gone))
    with archive.transaction() as database:
        for uid in elsewhere.unsent(database):
            jobs.push(database, jobs.ORTHANC_PUSH, uid)
    if is_suspicious:  # an Orthanc that lost its index, or another one at its address
        logger.error(
            "%d of %d series are not in Orthanc any more: nothing is deleted here; "
            "`tharsis orthanc compare --deletions` does so", len(gone), len(noted),
        )  # fmt: skip


def _total(orthanc: OrthancClient) -> int:
    return int(orthanc.get("/statistics").get("CountSeries", 0))


def _page(orthanc: OrthancClient, since: int) -> list[dict[str, Any]]:
    page: list[dict[str, Any]] = orthanc.get(f"/series?expand&since={since}&limit={_PAGE}")
    return page


def _queue_pulls(task: Task, orthanc_ids: list[str]) -> None:
    """Queue pulls behind those of series that have just become stable."""
    if not orthanc_ids:
        return
    with task.archive.transaction() as database:
        for orthanc_id in orthanc_ids:
            jobs.push(database, jobs.ORTHANC_PULL, orthanc_id)
