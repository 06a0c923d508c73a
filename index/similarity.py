"""Similar cases: from a request to ranked neighbours, over stored vectors alone (no pixels, no encoder).

Prior art: Dicoogle's profiled content-based retrieval (PLoS ONE 2013); Sotomayor et al. (Diagnostics 2021, 11, 1470).
Filters and exclusions apply before the search; equal scores rank by UID.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sqlite_utils import Database

from index import candidates, embeddings
from index.archive import Archive
from index.embeddings import EmbeddingModel
from index.errors import NotEmbedded, UnknownModel
from index.example import Example, find_example, locate, missing_part
from index.keys import Level
from index.neighbours import Aggregation, Exclude, Neighbour, SearchMode, Sent, SimilarityAnswer, SimilarityRequest
from index.on_demand import OnDemand, never
from index.references import Reference, is_reference, resolve_reference
from index.unit_vectors import cosines, distance, score
from index.vectors import Grain, Ids, Selection, VectorIndex

_BLOCK = 16384
"""Frames whose pairwise cosines are in memory at a time, about."""


@dataclass(frozen=True)
class _Match:
    """A row of an index that stands for an image, a series or a study."""

    cosine: float
    sop_instance_uid: str
    frame: int
    series_instance_uid: str
    study_instance_uid: str
    patient_id: str

    def entity(self, level: Level) -> tuple[str, ...]:
        """Return the UIDs that identify what it stands for at `level`."""
        uids = (self.study_instance_uid, self.series_instance_uid, self.sop_instance_uid)
        return uids[: level.depth]

    def order(self) -> tuple[float | str | int, ...]:
        """Return the key that sorts the best first, and equal ones by their UIDs."""
        return (-self.cosine, *self.entity(Level.IMAGE), self.frame)


class Similarity:
    """Answers similarity queries from one archive. Safe to share between threads.

    Indexes are read at the first query that needs them, and then follow the archive.

    Parameters
    ----------
    on_demand
        Has embedded what is asked about and has no stored vector; None: such a query is refused.
    """

    def __init__(self, archive: Archive, on_demand: OnDemand | None = None) -> None:
        self._archive = archive
        self._on_demand = on_demand
        self._indexes: dict[tuple[str, Grain], VectorIndex] = {}
        self._lock = threading.Lock()

    def search(self, request: SimilarityRequest, cancelled: Callable[[], bool] = never) -> SimilarityAnswer:
        """Return the neighbours of what `request` names, best first.

        Parameters
        ----------
        cancelled
            Asked while vectors are made on demand.

        Raises
        ------
        UnknownModel
            No encoder with that ModelID, or a vector before there is any encoder (Status C003).
        UnknownQuery, NotEmbedded, WrongDimension, InvalidIdentifier
            As `index.example.find_example`.
        QueryCancelled
            `cancelled` said so.
        """
        model = self._model(request)
        self._provide(model, request, cancelled)
        grain = Grain.SERIES if request.how is Aggregation.SERIES_MEAN else Grain.FRAME
        by_vector = request.how in (Aggregation.INSTANCE, Aggregation.SERIES_MEAN)
        find_matches = _nearest if by_vector else _pairwise
        index = self._index(model, grain)
        # Index, example, exclusions and answer have to speak of the same rows: a series that is embedded anew gets
        # others, and would come back as its own best neighbour. So the index is brought to one state of the
        # catalogue, and stays there until that state has answered everything else.
        with index.unchanged(), _one_state(self._archive.database) as database:
            index.refresh()
            example = find_example(database, model, request)
            selection = candidates.select(database, model.model_id, grain, request, example)
            matches = find_matches(database, index, example, selection, request)
            index_size = index.count(selection)
        return SimilarityAnswer(
            neighbours=tuple(_neighbours(matches, request)),
            model_id=model.model_id,
            index_size=index_size,
            mode=SearchMode.EXACT,
            estimated_recall=1.0,
        )

    def _provide(self, model: EmbeddingModel, request: SimilarityRequest, cancelled: Callable[[], bool]) -> None:
        """Wait for the vectors of what is asked about, where they have to be made."""
        if self._on_demand is None:
            return
        part = missing_part(self._archive.database, model, request)
        if part is not None:
            self._on_demand.require(model.model_id, part, cancelled)

    def _model(self, request: SimilarityRequest) -> EmbeddingModel:
        if request.model_id:
            return embeddings.model(self._archive, request.model_id)
        active = embeddings.active_model(self._archive)
        if active is not None:
            return active
        if locate(self._archive.database, request):
            raise NotEmbedded("nothing is embedded here yet")
        raise UnknownModel("no encoder is known here yet", element="ModelID")

    def _index(self, model: EmbeddingModel, grain: Grain) -> VectorIndex:
        with self._lock:
            key = (model.model_id, grain)
            if key not in self._indexes:
                self._indexes[key] = VectorIndex(self._archive, model.model_id, model.dimension, grain)
            return self._indexes[key]


@contextmanager
def _one_state(database: Database) -> Iterator[Database]:
    """Let the block read one state of the catalogue, whatever others commit meanwhile."""
    if database.conn.in_transaction:
        yield database
        return
    database.execute("BEGIN")
    try:
        yield database
    finally:
        database.execute("COMMIT")


def _nearest(
    database: Database, index: VectorIndex, example: Example, selection: Selection, request: SimilarityRequest
) -> list[_Match]:
    """Return the matches of single vectors: widen the search until k different entities are certain."""
    queries = example.means()
    wanted = request.k
    while True:
        found = [index.nearest(query, wanted, selection) for query in queries]
        # Below the last hit of a query that found only a part, others of it may be missing.
        horizon = max((float(hits.cosines[-1]) for hits in found if not hits.complete), default=-np.inf)
        best: dict[int, float] = {}
        for hits in found:
            for row, cosine in zip(hits.ids.tolist(), hits.cosines.tolist(), strict=True):
                if cosine >= horizon:
                    best[row] = max(cosine, best.get(row, -np.inf))
        matches = _best_of_each(_matches(database, best), request.level)
        if len(matches) >= request.k or all(hits.complete for hits in found):
            return matches
        wanted *= 4


def _pairwise(
    database: Database, index: VectorIndex, example: Example, selection: Selection, request: SimilarityRequest
) -> list[_Match]:
    """Return the matches of series by all pairs of a frame of the query and a frame of theirs."""
    queries = np.concatenate(example.parts)
    ends = np.cumsum([len(part) for part in example.parts])[:-1]
    best: dict[int, float] = {}
    for ids, starts in _whole_series(database, index.competing(selection)):
        pairs = cosines(index.vectors(ids), queries)
        partners = np.maximum.reduceat(pairs, starts, axis=0)
        by_part = np.split(partners, ends, axis=1)
        if request.how is Aggregation.LATE_INTERACTION:
            values = np.max([part.mean(axis=1) for part in by_part], axis=0)
        else:
            values = partners.max(axis=1)
        leading = pairs.max(axis=1)
        for start, stop, value in zip(starts, [*starts[1:], len(ids)], np.round(values, 12), strict=True):
            best[int(ids[start + leading[start:stop].argmax()])] = float(value)
    return _best_of_each(_matches(database, best), request.level)


def _whole_series(database: Database, ids: Ids) -> Iterator[tuple[Ids, npt.NDArray[np.intp]]]:
    """Yield `ids` in blocks of whole series, with the index in each block at which a series starts."""
    rows = database.execute(
        "SELECT id, series FROM embedding WHERE id IN (SELECT value FROM json_each(?)) ORDER BY series, id",
        (str(ids.tolist()),),
    ).fetchall()
    if not rows:
        return
    table = np.asarray(rows, dtype=np.int64)
    starts = np.flatnonzero(np.r_[True, np.diff(table[:, 1]) != 0])
    cuts = starts[np.flatnonzero(np.diff(starts // _BLOCK)) + 1]
    for first, last in zip([0, *cuts], [*cuts, len(table)], strict=True):
        inside = starts[(starts >= first) & (starts < last)]
        yield table[first:last, 0], inside - first


def _matches(database: Database, cosine_of: dict[int, float]) -> list[_Match]:
    """Return what the rows stand for."""
    rows = database.execute(
        "SELECT embedding.id, coalesce(instance.sop_instance_uid, ''), embedding.frame, series.series_instance_uid, "
        "study.study_instance_uid, patient.patient_id FROM embedding "
        "JOIN series ON series.id = embedding.series JOIN study ON study.id = series.study "
        "JOIN patient ON patient.id = study.patient LEFT JOIN instance ON instance.id = embedding.instance "
        "WHERE embedding.id IN (SELECT value FROM json_each(?))",
        (str(list(cosine_of)),),
    )
    return [_Match(cosine_of[row], *place) for row, *place in rows]


def _best_of_each(matches: Iterable[_Match], level: Level) -> list[_Match]:
    """Return the best match of each entity at `level`, best first."""
    best: dict[tuple[str, ...], _Match] = {}
    for match in sorted(matches, key=_Match.order):
        best.setdefault(match.entity(level), match)
    return list(best.values())


def _neighbours(matches: list[_Match], request: SimilarityRequest) -> Iterator[Neighbour]:
    for rank, match in enumerate(matches[: request.k], start=1):
        if score(match.cosine) < request.minimum_score:
            return
        yield Neighbour(
            rank=rank,
            score=score(match.cosine),
            distance=distance(match.cosine),
            sop_instance_uid=match.sop_instance_uid,
            frame=match.frame,
            series_instance_uid=match.series_instance_uid,
            study_instance_uid=match.study_instance_uid,
            patient_id=match.patient_id,
        )


__all__ = [
    "Aggregation",
    "Exclude",
    "Neighbour",
    "Reference",
    "SearchMode",
    "Sent",
    "Similarity",
    "SimilarityAnswer",
    "SimilarityRequest",
    "is_reference",
    "resolve_reference",
]
