"""Encoders judged on an archive: who takes part, their vectors, the figures. `tharsis evaluate` shows them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from pydicom.errors import InvalidDicomError

from index.archive import Archive
from index.embeddings import FrameVector
from index.encoders.encoder import Encoder
from index.errors import ArchiveError
from index.evaluation import KS, Figure, Scores, by_class, chance, measure, summarise
from index.gallery import Gallery, Member, Part, gallery, members, stored_frames
from index.keys import Level
from index.neighbours import Exclude
from plugins.embedding import is_picture
from plugins.node import CannotProceed, Series
from plugins.slices import Slices, choose_slices

if TYPE_CHECKING:
    from index.probe import Probe

logger = logging.getLogger(__name__)

RANDOM = "random"
"""Stands beside the encoders: what a random order reaches."""

Summary = dict[str, Figure]


@dataclass(frozen=True)
class Terms:
    """How encoders are judged.

    Attributes
    ----------
    most
        Frames of a series that are embedded where the archive has no vectors.
    queries
        At most so many items are asked about, drawn by the seed.
    """

    part: Part = field(default_factory=Part)
    level: Level = Level.IMAGE
    ks: tuple[int, ...] = KS
    exclude: frozenset[Exclude] = frozenset({Exclude.SAME_PATIENT})
    most: int = 24
    queries: int = 5000
    seed: int = 0
    probe: bool = False


@dataclass(frozen=True, eq=False)
class Verdict:
    """What encoders reached.

    Attributes
    ----------
    figures, classes, probes
        By encoder (ModelID), `RANDOM` among those of the first two.
    scores
        By encoder: what each query reached.
    left_out
        Queries without any relevant item.
    without_vectors
        Labelled series of the part that no vectors could be made of.
    """

    gallery: Gallery
    figures: Mapping[str, Summary]
    classes: Mapping[str, Mapping[str, Summary]]
    probes: Mapping[str, Probe]
    scores: Mapping[str, Scores]
    left_out: int
    without_vectors: int


Progress = Callable[[float], None]
"""Told which fraction of the embedding is done, first of what is judged, then of what a probe is fitted on."""

_BATCH = 64
"""Images that are embedded together."""


def judge(
    archive: Archive, encoders: Sequence[Encoder], labels: Mapping[str, str], terms: Terms, progress: Progress
) -> Verdict:
    """Judge `encoders` on the labelled series of the archive.

    Raises
    ------
    ValueError
        A probe that cannot be fitted (see `index.probe`).
    """
    everybody = members(archive, labels)
    judged = [member for member in everybody if terms.part.holds(member)]
    frames_of = _frames_of(archive, encoders, judged, terms, progress)
    ranked = gallery(judged, frames_of, terms.level)
    queries = _queries(len(ranked.items), terms)
    scores = {
        name: measure(vectors, ranked.items, ks=terms.ks, exclude=terms.exclude, queries=queries, seed=terms.seed)
        for name, vectors in ranked.vectors.items()
    }
    by_chance = chance(ranked.items, ks=terms.ks, exclude=terms.exclude, queries=queries)
    scores[RANDOM] = by_chance
    probes: dict[str, Probe] = {}
    if terms.probe:
        training = [member for member in everybody if not terms.part.holds(member)]
        fitted_on = gallery(training, _frames_of(archive, encoders, training, terms, progress), terms.level)
        probes = _probes(fitted_on, ranked, terms)
    return Verdict(
        gallery=ranked,
        figures={name: summarise(score, ranked.items, seed=terms.seed) for name, score in scores.items()},
        classes={name: by_class(score, ranked.items, seed=terms.seed) for name, score in scores.items()},
        probes=probes,
        scores=scores,
        left_out=by_chance.left_out,
        without_vectors=len(judged) - len(np.unique(ranked.items.series)),
    )


def _queries(count: int, terms: Terms) -> npt.NDArray[np.intp]:
    if count <= terms.queries:
        return np.arange(count)
    return np.sort(np.random.default_rng(terms.seed).choice(count, size=terms.queries, replace=False))


def _frames_of(
    archive: Archive, encoders: Sequence[Encoder], chosen: Sequence[Member], terms: Terms, progress: Progress
) -> dict[str, dict[str, list[FrameVector]]]:
    """Return the vectors of the chosen series, by encoder: the stored ones, and for the rest new ones."""
    found = {encoder.model_id: stored_frames(archive, encoder.model_id, chosen) for encoder in encoders}
    uids = [member.series_instance_uid for member in chosen]
    missing = [uid for uid in uids if any(uid not in own for own in found.values())]
    waiting: list[tuple[str, Slices]] = []
    for done, uid in enumerate(missing, start=1):
        slices = _slices(archive, uid, terms.most)
        if slices is not None:
            waiting.append((uid, slices))
        if done == len(missing) or sum(len(each.frames) for _, each in waiting) >= _BATCH:
            for encoder in encoders:
                _encode(encoder, waiting, found[encoder.model_id])
            waiting.clear()
            progress(done / len(missing))
    return found


def _slices(archive: Archive, uid: str, most: int) -> Slices | None:
    """Return the slices of a series, None when it is no picture or cannot be decoded."""
    try:
        series = Series(archive, uid)
        return choose_slices(archive, series, most, lambda _fraction: None) if is_picture(series) else None
    except (CannotProceed, ArchiveError, InvalidDicomError, OSError) as error:
        logger.warning("series %s takes no part: %s", uid, error)
        return None


def _encode(encoder: Encoder, waiting: Sequence[tuple[str, Slices]], own: dict[str, list[FrameVector]]) -> None:
    """Add the vectors of what is waiting, except of series that have vectors."""
    new = [(uid, slices) for uid, slices in waiting if uid not in own]
    if not new:
        return
    vectors = iter(encoder.encode(np.concatenate([slices.images for _, slices in new])))
    for uid, slices in new:
        own[uid] = [(*frame, next(vectors)) for frame in slices.frames]


def _probes(training: Gallery, held_out: Gallery, terms: Terms) -> dict[str, Probe]:
    from index.probe import linear_probe  # scikit-learn takes a second

    return {
        name: linear_probe(training.vectors[name], training.items, vectors, held_out.items, seed=terms.seed)
        for name, vectors in held_out.vectors.items()
    }
