"""Built-in plug-in: what a similarity query asks about becomes vectors while its asker waits.

Its jobs are done by a process of their own, which loads nothing but the encoders that queries name: no kernel, no other
plug-in. Nothing here is retried: who asks again has it tried again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from config.settings import Settings
from index import asked, embeddings
from index.archive import Archive
from index.asked import Wanted
from index.decoding import open_image
from index.doorbell import ENCODER_BELL, Doorbell
from index.encoders import registry
from index.encoders.pixels import NoPixels, Region, canonical_frames
from index.errors import ArchiveError, InvalidIdentifier, NotEmbedded, NotFound, UnknownModel
from index.jobs import EMBED_ASKED
from index.unit_vectors import Vectors
from plugins.hookspecs import JobFunction, hookimpl
from plugins.node import Task

logger = logging.getLogger(__name__)

_TIDY_S = 30.0
_QUIET_S = 1.0
"""How long the encoder process sleeps when no bell rings: it looks for work all the same."""


@hookimpl
def job_functions() -> Mapping[str, JobFunction]:
    """Offer the job `embed_asked`."""
    return {EMBED_ASKED: embed_asked}


def embed_asked(task: Task) -> None:
    """Embed what the row whose number is the job's subject asks for; put the vectors, or the reason, into it."""
    number = int(task.job.subject)
    try:
        wanted = asked.wanted(task.archive, number)
    except NotFound:  # its asker has gone
        return
    try:
        vectors = _embedded(task.archive, wanted, task.settings.similarity.max_frames_per_series)
    except (InvalidIdentifier, UnknownModel, NotEmbedded) as error:
        asked.refuse(task.archive, number, error)
    except (NoPixels, ArchiveError, OSError) as error:
        asked.refuse(task.archive, number, NotEmbedded(_sentence(error)))
    else:
        asked.answer(task.archive, number, vectors)


def _embedded(archive: Archive, wanted: Wanted, most: int) -> Vectors:
    """Return the vectors, axes (n, d), of what is wanted."""
    encoder = registry.load(archive, wanted.model_id)
    path = archive.incoming / wanted.file if wanted.file else archive.open_instance(wanted.sop_instance_uid).path
    region = None if wanted.region is None else Region(*wanted.region)
    numbers = [wanted.frame] if wanted.frame else None
    with open_image(path, archive.scratch_file) as (dataset, file):
        frames = canonical_frames(dataset, file=file, numbers=numbers, most=most, region=region)
    return encoder.encode(frames.images)


def _sentence(error: Exception) -> str:
    """The reason without the path of a file, which is nobody's business."""
    return (error.strerror or type(error).__name__) if isinstance(error, OSError) else str(error)


class Attention:
    """What the encoder process does between two jobs: listen for the bell, and delete what has served its time.

    Parameters
    ----------
    clock
        Seconds since the epoch.
    """

    def __init__(self, archive: Archive, settings: Settings, clock: Callable[[], float] = time.time) -> None:
        self._archive = archive
        self._kept_s = 60.0 * settings.similarity.question_minutes
        self._clock = clock
        self._bell = Doorbell(bell_path(archive))
        self._tidied_at = 0.0

    def ring(self) -> None:
        """End the wait (safe in a signal handler)."""
        self._bell.ring()

    def wait(self, _seconds: float) -> None:
        """Tidy up when it is time, then wait for the bell."""
        if not 0.0 <= self._clock() - self._tidied_at < _TIDY_S:
            self._tidied_at = self._clock()
            asked.forget(self._archive, at=self._clock(), questions_kept_s=self._kept_s)
        self._bell.wait(_QUIET_S)


def bell_path(archive: Archive) -> Path:
    """Where the bell of the encoder process hangs."""
    return archive.data / ENCODER_BELL


def warm_up(archive: Archive) -> None:
    """Load the encoder that queries use, before the first one needs it."""
    active = embeddings.active_model(archive)
    if active is None:
        return
    try:
        registry.load(archive, active.model_id)
    except ArchiveError as error:
        logger.warning("the active encoder cannot be loaded: %s", error)
