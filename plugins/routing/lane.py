"""A lane: does the jobs for one destination, one after the other, so that a slow peer keeps no other one waiting.

A destination that cannot be reached is tried once for each wait, not once for each job; its jobs stay in the queue
meanwhile. They are limited by time (``retry_hours``), not by the number of attempts.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import Callable

from config.routes import RouteSettings
from config.settings import Settings
from index import deliveries
from index.archive import Archive
from index.errors import ArchiveError, NotFound, OutOfSpace
from index.jobs import CONFIRM_ROUTE, ROUTING_KINDS, Job
from plugins.claim import Claim
from plugins.node import Cancelled, CannotProceed, Interrupted
from plugins.routing import rules
from plugins.routing.confirming import confirm_series
from plugins.routing.errand import Awaiting, Closed, Errand, Later, Trouble
from plugins.routing.outgoing import Deidentifies
from plugins.routing.sender import Sender
from plugins.routing.sending import send_series

logger = logging.getLogger(__name__)

_POLL_S = 0.5
_MOST_ATTEMPTS = 1_000_000
"""Attempts are limited by time, not by number."""

_NO_ROUTE = "there is no rule {rule!r} to {destination} in the settings any more"


class Lane:
    """One destination's jobs.

    Parameters
    ----------
    archive
        Whose jobs and objects they are.
    settings
        Of the node.
    sender
        Brings objects to peers.
    title
        AE title of the destination.
    deidentifier
        Gives what de-identifies by the profile of a name; raises an `ArchiveError`.
    stop
        Set when it has to stop.
    clock
        Seconds since the epoch.
    """

    def __init__(
        self,
        archive: Archive,
        settings: Settings,
        sender: Sender,
        title: str,
        *,
        deidentifier: Callable[[str], Deidentifies],
        stop: threading.Event,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._archive = archive
        self._settings = settings
        self._sender = sender
        self._title = title
        self._name = f"router/{title}"
        self._deidentifier = deidentifier
        self._stop = stop
        self._clock = clock

    def run(self) -> None:
        """Work until `stop` is set."""
        try:
            self._archive.jobs.free_claims_of(self._name, max_attempts=_MOST_ATTEMPTS)
            while not self._stop.is_set():
                try:
                    if self.run_one():
                        continue
                except (sqlite3.Error, ArchiveError):  # a full disk, a long lock: it passes
                    logger.exception("%s could not go on", self._name)
                self._stop.wait(_POLL_S)
        finally:
            self._archive.close()

    def run_one(self) -> bool:
        """Do one job; False when none is due, or the destination is let alone for now."""
        queue = self._archive.jobs
        trouble = deliveries.trouble(self._archive, self._title)
        if trouble is not None and trouble.next_try > self._clock():
            return False
        if not queue.is_due(ROUTING_KINDS, self._title) or (job := self._claim()) is None:
            return False
        claim = Claim(self._archive, job, self._settings.jobs.claim_s, self._stop)
        with claim:
            record = self._attempt(job, claim.progress)
        record()
        return True

    def give_up(self, sentence: str) -> None:
        """Fail every job that waits for this destination, or was under way to it when the router died."""
        self._archive.jobs.free_claims_of(self._name, max_attempts=_MOST_ATTEMPTS)
        while (job := self._claim()) is not None:
            self._fail(job, sentence)()

    def _claim(self) -> Job | None:
        return self._archive.jobs.claim(
            self._name,
            claim_s=self._settings.jobs.claim_s,
            max_attempts=_MOST_ATTEMPTS,
            kinds=ROUTING_KINDS,
            destination=self._title,
        )

    def _attempt(self, job: Job, progress: Callable[[float], None]) -> Callable[[], None]:
        """Do the job and return what is to be recorded about it."""
        queue = self._archive.jobs
        rule = rules.rule_of(self._settings, str(job.parameters.get("rule", "")), self._title)
        if rule is None:
            return self._fail(job, _NO_ROUTE.format(**job.parameters))
        try:
            errand = self._errand(job, rule, progress)
            (confirm_series if job.kind == CONFIRM_ROUTE else send_series)(errand)
        except (Interrupted, Cancelled):
            return lambda: queue.release(job)
        except Closed as closed:
            until = closed.until
            return lambda: queue.release(job, not_before=until)
        except Trouble as trouble:
            return self._in_trouble(job, rule, trouble)
        except Awaiting as awaiting:
            told, until = str(awaiting), awaiting.until
            record = lambda: queue.release(job, not_before=until, error=told)  # noqa: E731
        except Later as later:
            record = self._again(job, str(later))
        except (CannotProceed, NotFound) as error:
            record = self._fail(job, str(error))
        except (sqlite3.Error, OutOfSpace, OSError) as error:  # a full disk, a long lock: no fault of the job
            return self._again(job, f"{job.kind}: {error}")
        except Exception as error:  # whatever it is, it is this job's failure, not the lane's
            logger.exception("job %d %s %s failed", job.id, job.kind, job.subject)
            sentence = f"{job.kind}: {type(error).__name__}: {error}"
            is_last = job.attempts >= self._settings.jobs.max_attempts
            return self._fail(job, sentence) if is_last else self._again(job, sentence)
        else:
            record = lambda: queue.done(job)  # noqa: E731
        deliveries.end_trouble(self._archive, self._title)
        return record

    def _errand(self, job: Job, rule: RouteSettings, progress: Callable[[float], None]) -> Errand:
        way = rules.way(self._settings, rule, self._title)
        return Errand(
            archive=self._archive,
            job=job,
            rule=rule,
            way=way,
            opening=rule.opening(),
            deidentifier=self._deidentifier(way.profile) if way.profile else None,
            sender=self._sender,
            report_s=60.0 * self._settings.routing.report_minutes,
            progress=progress,
            clock=self._clock,
        )

    def _is_overdue(self, job: Job, rule: RouteSettings, trouble: deliveries.Trouble) -> bool:
        return self._clock() - max(job.created, trouble.since) > 3600.0 * rule.retry_hours

    def _give_up(self, job: Job, rule: RouteSettings, trouble: deliveries.Trouble) -> None:
        """Fail a job that has waited too long, and with it those behind it that have, too."""
        self._fail(job, f"{trouble.error}; given up after {rule.retry_hours:g} h")()
        while (following := self._claim()) is not None:
            its_rule = rules.rule_of(self._settings, str(following.parameters.get("rule", "")), self._title)
            if its_rule is None or not self._is_overdue(following, its_rule, trouble):
                self._archive.jobs.release(following, not_before=following.not_before, error=following.error)
                return
            self._fail(following, f"{trouble.error}; given up after {its_rule.retry_hours:g} h")()

    def _fail(self, job: Job, sentence: str) -> Callable[[], None]:
        logger.warning("job %d %s %s: %s", job.id, job.kind, job.subject, sentence)
        return lambda: self._archive.jobs.fail(
            job, sentence, max_attempts=_MOST_ATTEMPTS, retry_delay_s=0.0, permanent=True
        )

    def _again(self, job: Job, sentence: str) -> Callable[[], None]:
        logger.warning("job %d %s %s: %s", job.id, job.kind, job.subject, sentence)
        delay = self._settings.jobs.retry_delay_s
        return lambda: self._archive.jobs.fail(job, sentence, max_attempts=_MOST_ATTEMPTS, retry_delay_s=delay)

    def _in_trouble(self, job: Job, rule: RouteSettings, error: Trouble) -> Callable[[], None]:
        """Let the destination alone for a while; what has waited for it too long is given up."""
        delay = self._settings.jobs.retry_delay_s
        trouble = deliveries.note_trouble(
            self._archive, self._title, str(error), retry_delay_s=delay, now=self._clock()
        )
        sentence = str(error)
        if self._is_overdue(job, rule, trouble):
            return lambda: self._give_up(job, rule, trouble)
        if error.is_of_job:
            return self._again(job, sentence)
        logger.warning("%s, tried again in %.0f s", sentence, trouble.next_try - self._clock())
        return lambda: self._archive.jobs.release(job, not_before=job.not_before, error=sentence)
