"""Built-in plug-in: images become vectors, so that similar cases can be found."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import lru_cache

from config.settings import Settings
from index import embeddings
from index.archive import Archive
from index.encoders.encoder import Encoder
from index.encoders.texture import TextureEncoder
from index.errors import NotFound
from plugins.hookspecs import JobFunction, hookimpl
from plugins.node import CannotProceed, Series, Task, Work
from plugins.slices import choose_slices

logger = logging.getLogger(__name__)

KIND = "embed"
ADOPT = "adopt_encoder"
_NOT_PICTURES = {"SEG", "RTSTRUCT", "RTPLAN", "SR", "PR", "KO", "ECG", "REG", "DOC"}


@hookimpl
def jobs_for_series(series: Series, settings: Settings) -> list[Work]:
    """Embed every series of images, but not projections (they show angles, not anatomy) and not segmentations."""
    header = series.header
    is_picture = "Rows" in header and str(header.get("Modality", "")) not in _NOT_PICTURES
    wanted = settings.similarity.enabled and is_picture and not series.holds_projections
    return [Work(KIND, series.uid)] if wanted else []


@hookimpl
def job_functions() -> Mapping[str, JobFunction]:
    """Offer the jobs `embed` and `adopt_encoder`."""
    return {KIND: embed, ADOPT: adopt}


@hookimpl
def worker_started(archive: Archive, settings: Settings) -> None:
    """Queue the change of encoder when the vectors that queries use come from another one."""
    active = embeddings.active_model(archive)
    if settings.similarity.enabled and active is not None and active.model_id != encoder().model_id:
        archive.jobs.push(ADOPT, encoder().model_id)


@lru_cache(maxsize=1)
def encoder() -> Encoder:
    """Return the encoder of this node, loaded once per process."""
    return TextureEncoder.load()


def embed(task: Task) -> None:
    """Embed slices of the task's series, spread over what they show, and with them the series as a whole."""
    _embed_series(task.archive, task.series(), task.settings.similarity.max_frames_per_series, task.progress)


def adopt(task: Task) -> None:
    """Embed with this node's encoder what another one has embedded so far, then answer with the new vectors.

    Queries are answered with the old ones meanwhile. A run that was interrupted goes on where it stopped.
    """
    model = encoder()
    old = embeddings.active_model(task.archive)
    if old is None or old.model_id == model.model_id:
        return
    left = embeddings.series_lacking(task.archive, model.model_id, old.model_id)
    for done, uid in enumerate(left):
        task.progress(done / len(left))
        most = task.settings.similarity.max_frames_per_series
        try:
            _embed_series(task.archive, Series(task.archive, uid), most, lambda _fraction: None)
        except (CannotProceed, NotFound) as error:
            logger.warning("series %s has no vectors of the new encoder: %s", uid, error)
    embeddings.activate(task.archive, model.model_id)


def _embed_series(archive: Archive, series: Series, most: int, progress: Callable[[float], None]) -> None:
    model = encoder()
    embeddings.register(archive, model.model_id, model.dimension)
    slices = choose_slices(archive, series, most, progress)
    vectors = zip(slices.frames, model.encode(slices.images), strict=True)
    embeddings.store(archive, model.model_id, series.uid, [(*frame, vector) for frame, vector in vectors])
