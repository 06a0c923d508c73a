"""Built-in plug-in: works for an Orthanc that has our script inside. A process of its own does its jobs."""

from __future__ import annotations

from collections.abc import Mapping

from config.settings import Settings
from index import jobs
from plugins.hookspecs import JobFunction, hookimpl
from plugins.node import Series, Work
from plugins.orthanc.comparing import compare
from plugins.orthanc.pulling import pull
from plugins.orthanc.pushing import push

_LONGEST_S = 4 * 3600.0


@hookimpl
def jobs_for_series(series: Series, settings: Settings) -> list[Work]:
    """Give back to Orthanc what this node has made of Orthanc's series."""
    if not settings.orthanc.enabled or series.made_by is None or not series.comes_from_orthanc:
        return []
    return [Work(jobs.ORTHANC_PUSH, series.uid)]


@hookimpl
def stalled_limits() -> Mapping[str, float]:
    """An instance may have many GB, and Orthanc be slow: `timeout_s` tells when it has fallen silent."""
    return dict.fromkeys(jobs.ORTHANC_KINDS, _LONGEST_S)


@hookimpl
def job_functions() -> Mapping[str, JobFunction]:
    """Offer the jobs `orthanc_pull`, `orthanc_push` and `orthanc_compare`."""
    return {jobs.ORTHANC_PULL: pull, jobs.ORTHANC_PUSH: push, jobs.ORTHANC_COMPARE: compare}
