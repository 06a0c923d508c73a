"""A job of the router with what it needs, and the ways in which it can come to an end too early."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from config.routes import RouteSettings
from config.schedule import Schedule
from index.archive import Archive
from index.deliveries import Way
from index.jobs import Job
from plugins.routing.outgoing import Deidentifies
from plugins.routing.sender import Sender


class Closed(Exception):
    """The schedule does not allow it now: it goes on at `until`, seconds since the epoch."""

    def __init__(self, until: float) -> None:
        super().__init__(f"outside of its schedule until {until:.0f}")
        self.until = until


class Awaiting(Exception):
    """There is something to wait for, `until` seconds since the epoch at the longest."""

    def __init__(self, sentence: str, until: float) -> None:
        super().__init__(sentence)
        self.until = until


class Later(Exception):
    """The job could not be done now; others for the destination may be."""


class Trouble(Exception):
    """The destination cannot be worked with now.

    Attributes
    ----------
    is_of_job
        The job may be what is wrong: others are tried before it.
    """

    def __init__(self, sentence: str, *, is_of_job: bool) -> None:
        super().__init__(sentence)
        self.is_of_job = is_of_job


@dataclass(frozen=True)
class Errand:
    """A claimed job of the router.

    Attributes
    ----------
    opening
        When it may be done.
    deidentifier
        What every instance goes through; None: it is sent as it is.
    report_s
        A report that has not come within this time is asked for again, seconds.
    progress
        Called with the fraction done; raises `plugins.node.Interrupted` or `Cancelled` when it has to stop.
    clock
        Seconds since the epoch.
    """

    archive: Archive
    job: Job
    rule: RouteSettings
    way: Way
    opening: Schedule
    deidentifier: Deidentifies | None
    sender: Sender
    report_s: float
    progress: Callable[[float], None]
    clock: Callable[[], float]

    @property
    def title(self) -> str:
        """AE title of the destination."""
        return self.way.destination

    def require_open(self) -> None:
        """Raise `Closed` outside of the schedule."""
        now = self.clock()
        if not self.opening.is_open(now):
            raise Closed(self.opening.next_opening(now))

    def is_overdue(self, since: float) -> bool:
        """Whether what was tried first at `since` is to be given up; a job that is new has all of its time."""
        return self.clock() - max(since, self.job.created) > self.rule.retry_hours * 3600.0
