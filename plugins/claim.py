"""The claim on a job that is being done: renewed while it computes, and given up when it has to stop."""

from __future__ import annotations

import logging
import math
import sqlite3
import threading
import time

from index.archive import Archive
from index.errors import OutOfSpace
from index.jobs import Job
from plugins.node import Cancelled, Interrupted

logger = logging.getLogger(__name__)


class Claim:
    """Keeps a job's claim while it runs, and tells the job to stop when it has to.

    Parameters
    ----------
    archive
        Whose queue the job is from.
    job
        As it was claimed.
    claim_s
        How long the claim holds without being renewed, seconds.
    stop
        Set when the job has to stop.
    """

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

    @property
    def is_to_stop(self) -> bool:
        """Whether the job has to stop: `progress` has raised, or will."""
        return self._lost.is_set() or self._stop.is_set()

    def progress(self, fraction: float) -> None:
        """Record the fraction done, of whichever kind of number; raise when the job has to stop."""
        done = float(fraction)
        if not math.isnan(done):
            self._fraction = min(max(done, 0.0), 1.0)
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
