"""Built-in plug-in: images become vectors, so that similar cases can be found."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from config.settings import Settings
from index import embeddings
from index.archive import Archive
from index.encoders import registry
from index.encoders.encoder import Encoder
from index.errors import InvalidInstance, NotFound, UnknownModel
from plugins.hookspecs import JobFunction, hookimpl
from plugins.node import CannotProceed, Series, Task, Work
from plugins.pictures import is_drawn
from plugins.slices import choose_slices

logger = logging.getLogger(__name__)

KIND = "embed"
ADOPT = "adopt_encoder"
_NOT_PICTURES = {"SEG", "RTSTRUCT", "RTPLAN", "SR", "PR", "KO", "ECG", "REG", "DOC"}
_NOT_PICTURES_OF_KIND = {"decompose"}
"""Kinds of derivation."""


@hookimpl
def jobs_for_series(series: Series, settings: Settings) -> list[Work]:
    """Embed every series of images, but not projections (they show angles), segmentations and pictures that we drew."""
    return [Work(KIND, series.uid)] if settings.similarity.enabled and is_picture(series) else []


def is_picture(series: Series) -> bool:
    """Whether the series shows anatomy, so that it can be embedded; maps that this node made show composition."""
    header = series.header
    if "Rows" not in header or str(header.get("Modality", "")) in _NOT_PICTURES:
        return False
    if series.holds_projections or is_drawn(header):
        return False
    return series.made_by is None or series.made_by.kind not in _NOT_PICTURES_OF_KIND


@hookimpl
def job_functions() -> Mapping[str, JobFunction]:
    """Offer the jobs `embed` and `adopt_encoder`."""
    return {KIND: embed, ADOPT: adopt}


@hookimpl
def worker_started(archive: Archive, settings: Settings) -> None:
    """Queue the change to this version's own encoder when the active one cannot embed what comes in any more."""
    active, wanted = embeddings.active_model(archive), embeddings.wanted_model(archive)
    if not settings.similarity.enabled or active is None:
        return
    if wanted is None and not _can_embed(archive, active.model_id):
        model = registry.built_in()
        logger.warning("the encoder %s cannot be used any more: %s follows it", active.model_id, model.model_id)
        wanted = embeddings.register(archive, model.model_id, model.dimension)
    if wanted is not None:
        replace_encoder(archive, wanted.model_id)


def replace_encoder(archive: Archive, model_id: str) -> None:
    """Embed what the archive holds with this encoder, in the background, and answer with it when that is done.

    Queries are answered with the old one meanwhile, and what comes in is embedded with both.
    """
    with archive.transaction():
        embeddings.want(archive, model_id)
        archive.jobs.push(ADOPT, model_id)


def restore_encoder(archive: Archive, model_id: str) -> None:
    """Answer with this encoder from now on, and embed in the background what it has not seen yet."""
    with archive.transaction():
        embeddings.activate(archive, model_id)
        archive.jobs.push(ADOPT, model_id)


def embed(task: Task) -> None:
    """Embed slices of the task's series, spread over what they show, and with them the series as a whole."""
    models = _models_at_work(task.archive)
    for done, model in enumerate(models):
        progress = task.progress_of(done, len(models))
        _embed_series(task.archive, model, task.series(), task.settings.similarity.max_frames_per_series, progress)


def adopt(task: Task) -> None:
    """Embed with the task's encoder what others have embedded so far; then answer with it, if that is still wanted.

    A run that was interrupted goes on where it stopped. A series of which nothing can be read or decoded is left out.
    """
    archive = task.archive
    try:
        model = registry.load(archive, task.job.subject)
    except UnknownModel as error:
        raise CannotProceed(str(error)) from error
    tried: set[str] = set()
    while left := [uid for uid in embeddings.series_lacking(archive, model.model_id) if uid not in tried]:
        for done, uid in enumerate(left):  # more of them may come meanwhile, from jobs that began before this one
            task.progress(done / len(left))
            tried.add(uid)
            try:
                most = task.settings.similarity.max_frames_per_series
                _embed_series(archive, model, Series(archive, uid), most, task.progress_of(done, len(left)))
            except (CannotProceed, InvalidInstance, NotFound, OSError) as error:
                logger.warning("series %s has no vectors of %s: %s", uid, model.model_id, error)
    with archive.transaction():
        if embeddings.model(archive, model.model_id).wanted:
            embeddings.activate(archive, model.model_id)


def _models_at_work(archive: Archive) -> list[Encoder]:
    """Return the encoders that a new series is embedded with: the active one, and the one that is to follow it."""
    known = (embeddings.active_model(archive), embeddings.wanted_model(archive))
    wanted = [found.model_id for found in known if found is not None]
    if not wanted:
        return [registry.built_in()]
    usable: list[Encoder] = []
    for model_id in wanted:
        try:
            usable.append(registry.load(archive, model_id))
        except UnknownModel as error:
            logger.warning("not embedded with %s: %s", model_id, error)
            refused = str(error)
    if not usable:
        raise CannotProceed(refused)
    return usable


def _can_embed(archive: Archive, model_id: str) -> bool:
    try:
        registry.load(archive, model_id)
    except UnknownModel:
        return False
    return True


def _embed_series(
    archive: Archive, model: Encoder, series: Series, most: int, progress: Callable[[float], None]
) -> None:
    embeddings.register(archive, model.model_id, model.dimension)
    slices = choose_slices(archive, series, most, progress)
    vectors = zip(slices.frames, model.encode(slices.images), strict=True)
    embeddings.store(archive, model.model_id, series.uid, [(*frame, vector) for frame, vector in vectors])
