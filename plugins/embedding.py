"""Built-in plug-in: images become vectors, so that similar cases can be found."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import groupby
from operator import itemgetter

import pydicom

from config.settings import Settings
from index import embeddings
from index.encoders.encoder import Encoder
from index.encoders.pixels import NoPixels, canonical_frames, spread
from index.encoders.texture import TextureEncoder
from plugins.hookspecs import JobFunction, hookimpl
from plugins.node import CannotProceed, Series, Task, Work
from reconstruct.projections.registry import recognise

logger = logging.getLogger(__name__)

KIND = "embed"
_NOT_PICTURES = {"SEG", "RTSTRUCT", "RTPLAN", "SR", "PR", "KO", "ECG", "REG", "DOC"}


@hookimpl
def jobs_for_series(series: Series, settings: Settings) -> list[Work]:
    """Embed every series of images, but not projections (they show angles, not anatomy) and not segmentations."""
    header = series.header
    is_picture = "Rows" in header and str(header.get("Modality", "")) not in _NOT_PICTURES
    wanted = settings.similarity.enabled and is_picture and recognise(header) is None
    return [Work(KIND, series.uid)] if wanted else []


@hookimpl
def job_functions() -> Mapping[str, JobFunction]:
    """Offer the job `embed`."""
    return {KIND: embed}


@lru_cache(maxsize=1)
def encoder() -> Encoder:
    """Return the encoder of this node, loaded once per process."""
    return TextureEncoder.load()


def embed(task: Task) -> None:
    """Embed slices of the series, evenly spread over it, and the series as a whole."""
    series = task.series()
    model = encoder()
    embeddings.register(task.archive, model.model_id, model.dimension, activate=True)
    vectors = []
    refused = ""
    chosen = list(_chosen_frames(series, task.settings.similarity.max_frames_per_series))
    for done, (instance, numbers) in enumerate(chosen, start=1):
        dataset = pydicom.dcmread(series.instances[instance].path)
        try:
            frames = canonical_frames(dataset, numbers=numbers)
        except NoPixels as error:
            refused = str(error)
            continue
        uid = series.instances[instance].sop_instance_uid
        for number, vector in zip(frames.numbers, model.encode(frames.images), strict=True):
            vectors.append(embeddings.FrameVector(uid, number, vector))
        task.progress(done / len(chosen))
    if not vectors:
        raise CannotProceed(refused or "the series has no image")
    if refused:
        logger.warning("series %s: some images were left out: %s", series.uid, refused)
    embeddings.store(task.archive, model.model_id, series.uid, vectors)


def _chosen_frames(series: Series, most: int) -> Iterator[tuple[int, list[int]]]:
    """Yield (instance, its frame numbers from 1): at most `most` frames, evenly spread over the whole series."""
    frames = []
    for index, path in enumerate(series.paths):
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["NumberOfFrames"])
        count = int(header.get("NumberOfFrames", 1) or 1)
        frames += [(index, number) for number in range(1, count + 1)]
    picked = [frames[position] for position in spread(len(frames), most)]
    for index, group in groupby(picked, key=itemgetter(0)):
        yield index, [number for _, number in group]
