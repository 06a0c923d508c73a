"""Similar cases: from a request to ranked neighbours, over stored vectors alone (no pixels, no encoder).

Prior art: Dicoogle's profiled content-based retrieval (PLoS ONE 2013); Sotomayor et al. (Diagnostics 2021, 11, 1470).
Filters and exclusions apply before the search; equal scores rank by UID.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

from sqlite_utils import Database

from index import candidates, embeddings
from index.aggregation import ranked
from index.archive import Archive
from index.bases.limits import IndexLimits
from index.embeddings import EmbeddingModel
from index.errors import NotEmbedded, UnknownModel
from index.example import find_example, locate, missing_part
from index.matches import Match
from index.neighbours import Aggregation, Exclude, Neighbour, SearchMode, Sent, SimilarityAnswer, SimilarityRequest
from index.on_demand import OnDemand, never
from index.references import Reference, is_reference, resolve_reference
from index.search import Search
from index.unit_vectors import distance, score
from index.vectors import Grain, VectorIndex, refresh

SHORTLIST = 100
"""Series or studies that are put on a shortlist, unless the settings say otherwise."""


class Similarity:
    """Answers similarity queries from one archive. Safe to share between threads.

    Indexes are read at the first query that needs them, and then follow the archive; those of models that it has
    forgotten are given up.

    Parameters
    ----------
    on_demand
        Has embedded what is asked about and has no stored vector; None: such a query is refused.
    shortlist
        Series or studies that lead by their whole series, and series that lead by their frames, which are ranked by
        late interaction when a query names no aggregation and more frames compete than are searched exactly; more
        when it asks for more.
    limits
        From which size on an index is approximate, and how good it has to be; None: as the settings say by default.
    """

    def __init__(
        self,
        archive: Archive,
        on_demand: OnDemand | None = None,
        *,
        shortlist: int = SHORTLIST,
        limits: IndexLimits | None = None,
    ) -> None:
        self._archive = archive
        self._on_demand = on_demand
        self._shortlist = shortlist
        self._limits = limits
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
        grains = _grains(request)
        indexes = {grain: self._index(model, grain) for grain in grains}
        # Index, example, exclusions and answer have to speak of the same rows: a series that is embedded anew gets
        # others, and would come back as its own best neighbour. So the indexes are brought to one state of the
        # catalogue, and stay there until that state has answered everything else.
        with ExitStack() as stack:
            for index in indexes.values():
                stack.enter_context(index.unchanged())
            database = stack.enter_context(_one_state(self._archive.database))
            refresh(list(indexes.values()))
            example = find_example(database, model, request)

            def search(grain: Grain) -> Search:
                selection = candidates.select(database, model.model_id, grain, request, example)
                return Search(database, model.model_id, indexes[grain], example, selection, request)

            own = search(grains[0])
            found = ranked(own, partial(search, Grain.SERIES), self._shortlist)
            index_size = own.index.count(own.selection)
        return SimilarityAnswer(
            neighbours=tuple(_neighbours(found.matches, request)),
            model_id=model.model_id,
            index_size=index_size,
            mode=found.mode,
            estimated_recall=found.estimated_recall,
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
        known = {each.model_id for each in embeddings.models(self._archive)}
        with self._lock:
            for forgotten in [key for key in self._indexes if key[0] not in known]:
                del self._indexes[forgotten]
            key = (model.model_id, grain)
            if key not in self._indexes:
                dimension = model.whole_dimension if grain is Grain.SERIES else model.dimension
                self._indexes[key] = VectorIndex(self._archive, model.model_id, dimension, grain, self._limits)
            return self._indexes[key]


def _grains(request: SimilarityRequest) -> tuple[Grain, ...]:
    """Return the grains of the vectors that are searched, first of those that compete."""
    if request.how is Aggregation.SERIES_MEAN:
        return (Grain.SERIES,)
    if request.how is None and request.mode is not SearchMode.EXACT:
        return (Grain.FRAME, Grain.SERIES)
    return (Grain.FRAME,)


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


def _neighbours(matches: list[Match], request: SimilarityRequest) -> Iterator[Neighbour]:
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
