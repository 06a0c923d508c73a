"""The worker: claims jobs from the queue and runs them, one at a time, until told to stop.

Progress renews the claim; a heartbeat thread does so too while a job computes without reporting. A worker that stops
gives its job back; a worker that dies loses its claim when it is started again, or when the claim expires.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Collection

import pluggy

from config.settings import Settings
from index import changes, jobs
from index.archive import Archive
from index.changes import ChangeKind
from index.errors import NotFound, OutOfSpace
from index.jobs import Job
from index.keys import Level
from plugins.hookspecs import JobFunction
from plugins.manager import ask_each, job_functions, load_plugins
from plugins.node import Cancelled, CannotProceed, Interrupted, Task, Work

logger = logging.getLogger(__name__)

_POLL_S = 0.25
"""How long an idle worker waits before it looks at the queue again, seconds."""


class Worker:
    """One worker of the node.

    Parameters
    ----------
    archive
        Whose jobs it does.
    settings
        Of the node.
    name
        Unique among the node's workers; a new worker of the same name takes back what its predecessor had claimed.
    plugins
        Who is asked what is to be done; None: the built-in plug-ins and those that are installed.
    kinds
        Does jobs of these kinds only; None: of all that are meant for ordinary workers.
    wait
        Called with seconds when nothing is due; returns then, or earlier when there may be something.
    """

    def __init__(
        self,
        archive: Archive,
        settings: Settings,
        name: str,
        plugins: pluggy.PluginManager | None = None,
        *,
        kinds: Collection[str] | None = None,
        wait: Callable[[float], object] | None = None,
    ) -> None:
        self._archive = archive
        self._settings = settings
        self._name = name
        self._kinds = kinds
        self._stop = threading.Event()
        self._wait = wait or self._stop.wait
        self._plugins = plugins or load_plugins()
        self._functions: dict[str, JobFunction] = {
            jobs.SERIES_STABLE: self._series_stable,
            **job_functions(self._plugins),
        }

    def stop(self) -> None:
        """Ask the worker to stop at the next point where its job can (safe in a signal handler)."""
        self._stop.set()

    def run(self) -> None:
        """Work until `stop` is called."""
        freed = self._archive.jobs.free_claims_of(self._name, max_attempts=self._settings.jobs.max_attempts)
        if freed:
            logger.warning("%d job(s) of a worker that died go back to the queue", freed)
        for _ in ask_each(self._plugins, "worker_started", archive=self._archive, settings=self._settings):
            if self._stop.is_set():
                return
        while not self._stop.is_set():
            if not self.run_one():
                self._wait(_POLL_S)

    def run_until_idle(self) -> None:
        """Work until nothing is queued any more, waiting for jobs that are not due yet (no node is running)."""
        while not self._stop.is_set() and self._archive.jobs.pending(excluding=jobs.NOT_FOR_WORKERS):
            if not self.run_one():
                self._stop.wait(_POLL_S)

    def run_one(self) -> bool:
        """Claim and run one job; False when none is due."""
        limits = self._settings.jobs
        if self._kinds is not None and not self._archive.jobs.is_due(self._kinds):
            return False
        job = self._archive.jobs.claim(
            self._name,
            claim_s=limits.claim_s,
            max_attempts=limits.max_attempts,
            kinds=self._kinds,
            excluding=jobs.NOT_FOR_WORKERS if self._kinds is None else (),
        )
        if job is None:
            return False
        claim = _Claim(self._archive, job, limits.claim_s, self._stop)
        started = time.monotonic()
        with claim:
            outcome = self._attempt(job, claim.progress)
        outcome()
        logger.info("job %d %s %s: %.1f s", job.id, job.kind, job.subject, time.monotonic() - started)
        return True

    def _attempt(self, job: Job, progress: Callable[[float], None]) -> Callable[[], None]:
        """Run the job and return what is to be recorded about it."""
        queue = self._archive.jobs
        try:
            self._function(job)(Task(self._archive, self._settings, job, progress, self._plugins))
        except Interrupted:
            return lambda: queue.release(job)
        except Cancelled:
            logger.info("job %d was cancelled", job.id)
            return lambda: queue.release(job)
        except (CannotProceed, NotFound) as error:
            return self._failure(job, str(error), permanent=True)
        except Exception as error:  # whatever a plug-in raises is its job's failure, not the worker's
            logger.exception("job %d %s %s failed", job.id, job.kind, job.subject)
            return self._failure(job, f"{job.kind}: {type(error).__name__}: {error}", permanent=False)
        return lambda: queue.done(job)

    def _failure(self, job: Job, sentence: str, *, permanent: bool) -> Callable[[], None]:
        logger.warning("job %d %s %s: %s", job.id, job.kind, job.subject, sentence)
        limits = self._settings.jobs
        return lambda: self._archive.jobs.fail(
            job,
            sentence,
            max_attempts=limits.max_attempts,
            retry_delay_s=limits.retry_delay_s,
            permanent=permanent,
        )

    def _function(self, job: Job) -> JobFunction:
        function = self._functions.get(job.kind)
        if function is None:
            raise CannotProceed(f"no plug-in does jobs of kind {job.kind!r}")
        return function

    def _series_stable(self, task: Task) -> None:
        """Ask every plug-in what is to be done with the series, and queue it."""
        series = task.series()
        wanted: list[Work] = []
        failures: list[str] = []
        for name, answer in ask_each(self._plugins, "jobs_for_series", series=series, settings=self._settings):
            if isinstance(answer, Exception):
                failures.append(f"plug-in {name}: {type(answer).__name__}: {answer}")
            else:
                wanted += answer or []
        with task.archive.transaction() as database:
            changes.append(database, ChangeKind.STABLE, Level.SERIES, series.uid)
            for work in wanted:
                jobs.push(database, work.kind, work.subject, work.parameters)
        if failures:  # the others' jobs are queued all the same
            raise CannotProceed("; ".join(failures))


class _Claim:
    """Keeps a job's claim while it runs, and tells the job to stop when it has to."""

    def __init__(self, archive: Archive, job: Job, claim_s: float, stop: threading.Event) -> None:
        self._archive = archive
        self._job = job
        self._claim_s = claim_s
        self._stop = stop
        self._lost = threading.Event()
        self._over = threading.Event()
        self._fraction = 0.0
        self._heartbeat = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> None:
        self._heartbeat.start()

    def __exit__(self, *_exception: object) -> None:
        self._over.set()
        self._heartbeat.join()

    def progress(self, fraction: float) -> None:
        """Record the fraction done; raise when the job has to stop."""
        self._fraction = min(max(fraction, 0.0), 1.0)
        if self._lost.is_set():
            raise Cancelled
        if self._stop.is_set():
            raise Interrupted

    def _beat(self) -> None:
        expires = time.monotonic() + self._claim_s
        while not self._over.wait(min(1.0, self._claim_s / 4)):
            try:
                held = self._archive.jobs.renew(self._job, claim_s=self._claim_s, progress=self._fraction)
                expires = time.monotonic() + self._claim_s
            except (sqlite3.Error, OutOfSpace):  # a full disk or a long lock: the claim holds until it expires
                logger.exception("the claim on job %d could not be renewed", self._job.id)
                held = time.monotonic() < expires
            if not held:
                self._lost.set()
                break
        self._archive.close()
