"""How images, series and studies rank by vectors of frames: the ways that Aggregation names, and the default.

By single vectors: the query's with each frame (INSTANCE), or with the mean of each series (SERIES_MEAN).
By pairs: every frame of the query with every frame of a series, the best pair (SERIES_MAX), or for each frame of the
query its best partner, averaged (LATE_INTERACTION; Khattab and Zaharia, SIGIR 2020).
By default, for series and studies: a shortlist by one vector for each series, its mean beside its maximum, re-ranked by
late interaction; what counts is the frames, and what it costs does not grow with the archive's frames.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from index.matches import best_of_each, matches_of
from index.neighbours import Aggregation, SearchMode
from index.pairs import by_pairs, contenders
from index.search import Found, Search
from index.unit_vectors import Vectors, cosines
from index.vectors import Hits

_ROUNDING = 1e-6
"""How far the mean half of a stored vector, in single precision, may be off."""

Cosines = npt.NDArray[np.float64]


def ranked(search: Search, shortlist: int) -> Found:
    """Return what matches the example of `search` as its request asks.

    Parameters
    ----------
    shortlist
        Entities that are re-ranked when the request names no aggregation: at least this many, and at least k.
    """
    how = search.request.how
    if how is Aggregation.INSTANCE:
        return _best(search, _by_frame(search))
    if how is Aggregation.SERIES_MEAN:
        return _best(search, _by_mean(search))
    if how is None:
        found = _by_whole(search, max(search.request.k, shortlist))
        matches = by_pairs(search, sorted({match.series for match in found.matches}))
        return _best(search, Found(matches, found.mode, found.estimated_recall))
    return _best(search, Found(by_pairs(search, contenders(search))))


def _best(search: Search, found: Found) -> Found:
    return Found(best_of_each(found.matches, search.request.level), found.mode, found.estimated_recall)


def _by_frame(search: Search) -> Found:
    means = search.example.means()
    return _nearest(search, means, search.request.k, lambda vectors: cosines(vectors, means))


def _by_whole(search: Search, least: int) -> Found:
    wholes = search.example.wholes()
    return _nearest(search, wholes, least, lambda vectors: cosines(vectors, wholes))


def _by_mean(search: Search) -> Found:
    """Rank by the mean halves alone: those of the stored vectors have length 1/√2."""
    means = search.example.means()
    queries = np.concatenate([means, np.zeros_like(means)], axis=1)
    half = means.shape[1]
    return _nearest(
        search,
        queries,
        search.request.k,
        lambda vectors: cosines(vectors[:, :half], means),
        bound=lambda cosine: np.sqrt(2.0) * cosine + _ROUNDING,
        is_tuned=False,
    )


def _nearest(
    search: Search,
    queries: Vectors,
    least: int,
    compare: Callable[[Vectors], Cosines],
    *,
    bound: Callable[[float], float] = lambda cosine: cosine,
    is_tuned: bool = True,
) -> Found:
    """Return matches of single vectors: widen the search until `least` different entities are certain.

    Parameters
    ----------
    queries
        Axes (part, D), as the index is asked.
    compare
        Cosines, axes (n, part), of stored vectors, axes (n, D), with the parts of the example.
    bound
        What such a cosine can be at most, of a row that the index did not find because its own was no more than this.
    is_tuned
        Whether `queries` are like the vectors on which an approximate index was tuned; the search is exact if not.
    """
    wanted = least
    mode = search.request.mode if is_tuned else SearchMode.EXACT
    while True:
        found = search.index.nearest_each(queries, wanted, search.selection, mode)
        # Below the last hit of a query that found only a part, others of it may be missing.
        horizon = max((bound(float(hits.cosines[-1])) for hits in found if not hits.complete), default=-np.inf)
        ids = np.unique(np.concatenate([hits.ids for hits in found]))
        values = compare(search.index.vectors(ids)).max(axis=1) if len(ids) else np.empty(0)
        certain = values >= horizon
        best = dict(zip(ids[certain].tolist(), values[certain].tolist(), strict=True))
        matches = matches_of(search.database, best)
        entities = {match.entity(search.request.level) for match in matches}
        if len(entities) >= least or all(hits.complete for hits in found):
            return Found(matches, _mode(found), min(hits.estimated_recall for hits in found))
        wanted *= 4


def _mode(found: list[Hits]) -> SearchMode:
    is_exact = all(hits.mode is SearchMode.EXACT for hits in found)
    return SearchMode.EXACT if is_exact else SearchMode.APPROX
