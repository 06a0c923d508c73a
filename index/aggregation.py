"""How images, series and studies rank by vectors of frames: the ways that Aggregation names, and the default.

By single vectors: the query's with each frame (INSTANCE), or with the mean of each series (SERIES_MEAN).
By pairs: every frame of the query with every frame of a series, the best pair (SERIES_MAX), or for each frame of the
query its best partner, averaged (LATE_INTERACTION; Khattab and Zaharia, SIGIR 2020).
By default, for series and studies: late interaction too. A question of one vector is a search for the nearest frames.
Else all that compete are compared where the mode is EXACT, or where they are few enough for an exact search. Of more,
only a shortlist is ranked: what leads by one vector for each series, its mean beside its maximum, and what leads by the
frames nearest to each frame of the query. These also bound what everything else can be worth, so that the answer can
say how much of it is proved.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from index.matches import best_of_each, matches_of
from index.neighbours import Aggregation, SearchMode
from index.pairs import by_pairs, contenders, values_of_series
from index.search import Found, Search
from index.unit_vectors import Vectors, cosines
from index.vectors import Hits, Ids

_ROUNDING = 1e-6
"""How far the mean half of a stored vector, in single precision, may be off."""

_FEW_PAIRS = 32
"""Pairs of frames for each that may be searched exactly, up to which all are compared when no aggregation is named."""

_ASKED_FRAMES = 64
"""Frames of a query, at most, whose nearest frames are looked for to make a shortlist."""

_PROVED = 1e-9
"""How far a value has to be above a bound to be beyond rounding."""

Cosines = npt.NDArray[np.float64]


def ranked(search: Search, wholes: Callable[[], Search], shortlist: int) -> Found:
    """Return what matches the example of `search` as its request asks.

    Parameters
    ----------
    search
        Through the frames; where the aggregation is SERIES_MEAN, through the vectors of whole series.
    wholes
        The same query through the vectors of whole series; asked where a shortlist is made.
    shortlist
        Entities that lead by their whole series, and series that lead by their frames, which are ranked when the
        request names no aggregation and there are many frames: at least so many of each, and at least k.
    """
    how = search.request.how
    if how is Aggregation.INSTANCE:
        return _best(search, _by_frame(search))
    if how is Aggregation.SERIES_MEAN:
        return _best(search, _by_mean(search))
    if how is None and all(len(part) == 1 for part in search.example.parts):
        return _best(search, _by_frame(search))  # the best partner of one frame is the frame nearest to it
    if how is None and not _is_exact(search):
        return _by_shortlist(search, wholes(), max(search.request.k, shortlist))
    return _best(search, Found(by_pairs(search, contenders(search))))


def _is_exact(search: Search) -> bool:
    """Whether all that compete are compared when no aggregation is named."""
    if search.request.mode is not None:
        return search.request.mode is SearchMode.EXACT
    frames, few = search.index.count(search.selection), search.index.exact_up_to
    return frames <= few and frames * sum(map(len, search.example.parts)) <= _FEW_PAIRS * few


def _by_shortlist(search: Search, wholes: Search, least: int) -> Found:
    """Rank what leads by whole series and by frames; what is proved to be of the best k is the recall that is told."""
    by_frames = _leading_by_frames(search, least)
    listed = {match.series for match in _by_whole(wholes, least).matches} | set(by_frames.series[:least].tolist())
    best = best_of_each(by_pairs(search, sorted(listed)), search.request.level)
    others = [bound for row, bound in zip(by_frames.series, by_frames.bounds, strict=True) if row not in listed]
    limit = max([by_frames.unseen, *others])
    if limit == -np.inf:  # nothing else competes
        return Found(best)
    answered = [match.cosine > limit + _PROVED for match in best[: search.request.k]]
    if by_frames.is_certain and all(answered):
        return Found(best)
    proved = sum(answered) / len(answered) if by_frames.is_certain and any(answered) else None
    return Found(best, SearchMode.APPROX, proved)


@dataclass(frozen=True, eq=False)
class _Leading:
    """Series that have frames near to those of the query, and what they can be worth at most.

    Attributes
    ----------
    series
        Rows of the table `series`, those that can be worth the most first.
    bounds
        What each of them can be worth, axis (series,).
    unseen
        What any other series can be worth; minus infinity where no other competes.
    is_certain
        Whether the bounds hold: no frame was missed by an approximate search.
    """

    series: Ids
    bounds: Cosines
    unseen: float
    is_certain: bool


def _leading_by_frames(search: Search, least: int) -> _Leading:
    """Return the series of the `least` frames nearest to each frame of the query.

    A frame that was not found is no nearer than the last that was (Fagin, Lotem and Naor, PODS 2001).
    """
    queries = np.concatenate(search.example.parts)
    asked = np.unique(np.linspace(0, len(queries) - 1, min(len(queries), _ASKED_FRAMES)).round().astype(np.intp))
    found = search.index.nearest_each(queries[asked], least, search.selection, search.request.mode)
    ids = np.concatenate([hits.ids for hits in found])
    owners = _series_of(search, ids)
    series, places = np.unique(owners, return_inverse=True)
    horizons = np.ones(len(queries))  # of a frame that is not asked about, nothing is known
    horizons[asked] = [hits.cosines[-1] if len(hits.cosines) else -1.0 for hits in found]
    partners = np.tile(horizons, (len(series), 1))
    columns = np.repeat(asked, [len(hits.ids) for hits in found])
    np.maximum.at(partners, (places, columns), np.concatenate([hits.cosines for hits in found]))
    bounds = values_of_series(search, partners)
    is_whole = any(hits.complete for hits in found)
    unseen = -np.inf if is_whole else float(values_of_series(search, horizons[None, :])[0])
    order = np.argsort(-bounds, kind="stable")
    return _Leading(series[order], bounds[order], unseen, _mode(found) is SearchMode.EXACT)


def _series_of(search: Search, ids: Ids) -> Ids:
    """Return the rows of the table `series` that rows of the index are of."""
    owners = dict(
        search.database.execute(
            "SELECT id, series FROM embedding WHERE id IN (SELECT value FROM json_each(?))",
            (json.dumps(np.unique(ids).tolist()),),
        ).fetchall()
    )
    return np.asarray([owners[row] for row in ids.tolist()], dtype=np.int64)


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
