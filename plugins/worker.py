"""The worker: claims jobs from the queue and runs them, one at a time, until told to stop.

Progress renews the claim; a heartbeat thread does so too while a job computes without reporting. A worker that stops
gives its job back; a worker that dies loses its claim when it is started again, or when the claim expires. A job that
reports nothing for its limit hangs, and its process is ended (`plugins.watch`).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager

import pluggy

from config.settings import Settings
from index import changes, jobs, plugin_troubles
from index.archive import Archive
from index.changes import ChangeKind
from index.errors import NotFound
from index.jobs import RECURRING, Job
from index.keys import Level
from plugins.claim import Claim
from plugins.hookspecs import JobFunction
from plugins.manager import (
    Plugins,
    ask_each,
    complaint,
    is_of_user,
    job_owners,
    load_plugins,
    sentence_of,
    words_of,
    work_for,
)
from plugins.node import Cancelled, CannotProceed, Interrupted, Postponed, Task, Work
from plugins.watch import NODE_ITSELF

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
    is_over
        Asked between two jobs; `run` returns when it says so.
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
        is_over: Callable[[], bool] = lambda: False,
    ) -> None:
        self._archive = archive
        self._settings = settings
        self._name = name
        self._kinds = kinds
        self._stop = threading.Event()
        self._wait = wait or self._stop.wait
        self._is_over = is_over
        self._plugins = _as_ours(plugins, settings)
        self._owners: dict[str, tuple[str, JobFunction]] = {
            **job_owners(self._plugins),
            jobs.SERIES_STABLE: (NODE_ITSELF, self._series_stable),
        }
        self._plugins.ask_limits()

    def stop(self) -> None:
        """Ask the worker to stop at the next point where its job can (safe in another thread)."""
        self._stop.set()

    def run(self) -> None:
        """Work until `stop` is called."""
        freed = self._archive.jobs.free_claims_of(self._name, max_attempts=self._settings.jobs.max_attempts)
        if freed:
            logger.warning("%d job(s) of a worker that died go back to the queue", freed)
        for _ in ask_each(self._plugins, "worker_started", archive=self._archive, settings=self._settings):
            if self._stop.is_set():
                return
        while not self._stop.is_set() and not self._is_over():
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
        claim = Claim(self._archive, job, limits.claim_s, self._stop)
        started = time.monotonic()
        self._plugins.not_asked = plugin_troubles.not_asked(self._archive.database, job.subject)
        with claim, self._watched(job):
            outcome = self._attempt(job, claim)
        outcome()
        if self._plugins.not_asked:  # who was not asked this time is asked the next time
            with self._archive.transaction() as database:
                plugin_troubles.forget_subject(database, job.subject)
        level = logging.DEBUG if job.kind in RECURRING else logging.INFO  # those come for ever
        logger.log(level, "job %d %s %s: %.1f s", job.id, job.kind, job.subject, time.monotonic() - started)
        return True

    def _watched(self, job: Job) -> AbstractContextManager[None]:
        owner, _ = self._owners.get(job.kind, (NODE_ITSELF, None))
        limit_s = self._plugins.stalled_s(owner, job.kind)
        attempt = (job.id, job.started or 0.0, job.subject)
        return self._plugins.watch.over(owner, f"job {job.kind}", limit_s, job=attempt)

    def _attempt(self, job: Job, claim: Claim) -> Callable[[], None]:
        """Run the job and return what is to be recorded about it."""
        queue, watch = self._archive.jobs, self._plugins.watch
        owner, function = self._owners.get(job.kind, (NODE_ITSELF, self._refuse))

        def report(fraction: float) -> None:
            watch.sign_of_life()
            claim.progress(fraction)

        own = self._plugins.own(owner)
        try:
            function(Task(self._archive, self._settings, job, report, self._plugins, own, watch))
        except (Interrupted, Cancelled) as error:
            if not claim.is_to_stop:  # nobody asked for it: released as untried, it would begin anew for ever
                return self._failure(job, f"{self._who(owner)}{job.kind}: {words_of(error)}", permanent=False)
            if isinstance(error, Cancelled):
                logger.info("job %d was cancelled", job.id)
            return lambda: queue.release(job)
        except Postponed as error:
            logger.info("job %d %s %s waits %.0f s: %s", job.id, job.kind, job.subject, error.delay_s, error)
            due, why = time.time() + error.delay_s, str(error)
            return lambda: queue.release(job, not_before=due, error=why)
        except (CannotProceed, NotFound) as error:
            return self._failure(job, sentence_of(error), permanent=True)
        except BaseException as error:  # whatever a plug-in raises, SystemExit too, is its job's failure
            if is_of_user(error):
                raise
            logger.exception("job %d %s %s failed", job.id, job.kind, job.subject)
            return self._failure(job, f"{self._who(owner)}{job.kind}: {words_of(error)}", permanent=False)
        return lambda: queue.done(job)

    @staticmethod
    def _who(owner: str) -> str:
        return f"plug-in {owner}: " if owner != NODE_ITSELF else ""

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

    def _refuse(self, task: Task) -> None:
        missing = [*self._plugins.disabled, *self._plugins.left_out]
        why = f" (disabled or left out: {', '.join(missing)})" if missing else ""
        raise CannotProceed(f"no plug-in does jobs of kind {task.job.kind!r}{why}")

    def _series_stable(self, task: Task) -> None:
        """Ask every plug-in what is to be done with the series, and queue it."""
        series = task.series()
        wanted: list[Work] = []
        failures: list[str] = []
        for name, answer in work_for(self._plugins, series, self._settings):
            if isinstance(answer, Exception):
                failures.append(complaint(name, answer))
            else:
                wanted += answer
        with task.archive.transaction() as database:
            changes.append(database, ChangeKind.STABLE, Level.SERIES, series.uid)
            for work in wanted:
                jobs.push(database, work.kind, work.subject, work.parameters)
        if failures:  # the others' jobs are queued all the same
            raise CannotProceed("; ".join(failures))


def _as_ours(plugins: pluggy.PluginManager | None, settings: Settings) -> Plugins:
    """Return the plug-ins in the form in which they can be watched and left out."""
    if plugins is None:
        return load_plugins(settings=settings)
    if isinstance(plugins, Plugins):
        return plugins
    ours = Plugins(settings)
    for name, plugin in plugins.list_name_plugin():
        ours.register(plugin, name)
    return ours
