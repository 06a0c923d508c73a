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
    """Embed slices of the task's series, spread over what they show, and with them the series as a whole.

    An encoder that came to be wanted or active meanwhile embeds it too: its own job may have looked for series with
    vectors before this one had any.
    """
    archive, most = task.archive, task.settings.similarity.max_frames_per_series
    tried: set[str] = set()
    while wanted := [model_id for model_id in _models_at_work(archive) if model_id not in tried]:
        tried.update(wanted)
        models = _usable(archive, wanted)
        for done, model in enumerate(models):
            try:
                _embed_series(archive, model, task.series(), most, task.progress_of(done, len(models)))
            except UnknownModel as error:  # deleted meanwhile
                logger.warning("series %s is not embedded: %s", task.job.subject, error)


def adopt(task: Task) -> None:
    """Embed with the task's encoder what others have embedded so far; then answer with it, if that is still wanted.

    A run that was interrupted goes on where it stopped, and one whose encoder is neither wanted nor active any more
    ends. A series of which nothing can be read or decoded is left out.
    """
    archive, model_id = task.archive, task.job.subject
    if not _is_at_work(archive, model_id):
        logger.info("nothing more is embedded with %s: it is neither wanted nor active", model_id)
        return
    try:
        _embed_lacking(task, registry.load(archive, model_id))
    except UnknownModel as error:
        if _is_at_work(archive, model_id):
            raise CannotProceed(str(error)) from error
        logger.info("%s was deleted while it embedded the archive", model_id)
    with archive.transaction():
        wanted = embeddings.wanted_model(archive)
        if wanted is not None and wanted.model_id == model_id:
            embeddings.activate(archive, model_id)


def _embed_lacking(task: Task, model: Encoder) -> None:
    """Embed with this encoder what only others have embedded, as long as it is wanted or active.

    Raises
    ------
    UnknownModel
        Somebody deleted it meanwhile.
    """
    archive, most = task.archive, task.settings.similarity.max_frames_per_series
    tried: set[str] = set()
    while left := [uid for uid in embeddings.series_lacking(archive, model.model_id) if uid not in tried]:
        for done, uid in enumerate(left):  # more of them may come meanwhile, from jobs that began before this one
            task.progress(done / len(left))
            if not _is_at_work(archive, model.model_id):
                return
            tried.add(uid)
            try:
                _embed_series(archive, model, Series(archive, uid), most, task.progress_of(done, len(left)))
            except (CannotProceed, InvalidInstance, NotFound, OSError) as error:
                logger.warning("series %s has no vectors of %s: %s", uid, model.model_id, error)


def _models_at_work(archive: Archive) -> list[str]:
    """Return which encoders a new series is embedded with: the active one, and the one that is to follow it.

    Before there is any, that which needs no training becomes the active one.
    """
    known = (embeddings.active_model(archive), embeddings.wanted_model(archive))
    found = [model.model_id for model in known if model is not None]
    if found:
        return found
    model = registry.built_in()
    return [embeddings.register(archive, model.model_id, model.dimension).model_id]


def _is_at_work(archive: Archive, model_id: str) -> bool:
    known = (embeddings.active_model(archive), embeddings.wanted_model(archive))
    return any(model is not None and model.model_id == model_id for model in known)


def _usable(archive: Archive, wanted: list[str]) -> list[Encoder]:
    """Return those of the `wanted` encoders that can embed; raises `CannotProceed` when none can."""
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
    slices = choose_slices(archive, series, most, progress)
    vectors = zip(slices.frames, model.encode(slices.images), strict=True)
    embeddings.store(archive, model.model_id, series.uid, [(*frame, vector) for frame, vector in vectors])
