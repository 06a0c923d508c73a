"""Built-in plug-in: says where a stable series goes. The router sends it (`plugins.routing.router`)."""

from __future__ import annotations

from collections.abc import Mapping

from config.settings import Settings
from index.jobs import CONFIRM_ROUTE, ROUTE
from plugins.hookspecs import JobFunction, hookimpl
from plugins.node import CannotProceed, Series, Task, Work
from plugins.routing.rules import Subject, destinations, fits


@hookimpl
def jobs_for_series(series: Series, settings: Settings) -> list[Work]:
    """Send the series to the destinations of every rule that fits."""
    if not settings.routes:
        return []
    subject = subject_of(series)
    return [
        Work(ROUTE, series.uid, {"destination": title, "rule": rule.name})
        for rule in settings.routes
        if fits(rule, subject)
        for title in destinations(rule, subject)
    ]


@hookimpl
def job_functions() -> Mapping[str, JobFunction]:
    """Name the jobs `route` and `confirm_route`, which no worker does."""
    return {ROUTE: _by_the_router, CONFIRM_ROUTE: _by_the_router}


def subject_of(series: Series) -> Subject:
    """Return what the rules look at of a stored series."""
    return Subject(series.header, series.sources, is_derived=series.made_by is not None)


def _by_the_router(task: Task) -> None:
    raise CannotProceed(f"jobs of kind {task.job.kind} are done by the router, which `tharsis serve` starts")
