"""How images, series and studies rank by vectors of frames: the ways that Aggregation names, and the default.

By single vectors: the query's with each frame (INSTANCE), or with the mean of each series (SERIES_MEAN).
By pairs: every frame of the query with every frame of a series, the best pair (SERIES_MAX), or for each frame of the
query its best partner, averaged (LATE_INTERACTION; Khattab and Zaharia, SIGIR 2020).
By default, for series and studies: a shortlist by one vector for each series, its mean beside its maximum, re-ranked by
late interaction; what counts is the frames, and what it costs does not grow with the archive's frames.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt
from sqlite_utils import Database

from index.example import Example
from index.matches import Match, best_of_each, matches_of
from index.neighbours import Aggregation, SearchMode, SimilarityRequest
from index.unit_vectors import Vectors, cosines, from_bytes
from index.vectors import Hits, Ids, Selection, VectorIndex

_BLOCK = 16384
"""Frames whose pairwise cosines are in memory at a time, about."""

_RERANKED = 256
"""Series whose frames are in memory at a time while a shortlist is re-ranked."""

_ROUNDING = 1e-6
"""How far the mean half of a stored vector, in single precision, may be off."""

Cosines = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Search:
    """What one query looks through, in one state of the catalogue.

    Attributes
    ----------
    index
        Of the frames, or of the series.
    selection
        What of it competes.
    """

    database: Database
    model_id: str
    index: VectorIndex
    example: Example
    selection: Selection
    request: SimilarityRequest


@dataclass(frozen=True, eq=False)
class Found:
    """The best match of each entity, best first, and how they were found."""

    matches: list[Match]
    mode: SearchMode = SearchMode.EXACT
    estimated_recall: float = 1.0


@dataclass(frozen=True, eq=False)
class _Block:
    """Frames of whole series: ids, axis (n,), vectors, axes (n, d), and the index at which each series starts."""

    ids: Ids
    vectors: Vectors
    starts: npt.NDArray[np.intp]


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
        return _reranked(search, _by_whole(search, max(search.request.k, shortlist)))
    return _best(search, Found(_by_pairs(search, _competing(search))))


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
    )


def _nearest(
    search: Search,
    queries: Vectors,
    least: int,
    compare: Callable[[Vectors], Cosines],
    bound: Callable[[float], float] = lambda cosine: cosine,
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
    """
    wanted = least
    while True:
        found = [search.index.nearest(query, wanted, search.selection) for query in queries]
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


def _reranked(search: Search, shortlist: Found) -> Found:
    """Return the entities of `shortlist`, ranked by the late interaction of all frames of its series."""
    series = sorted({match.series for match in shortlist.matches})
    blocks = (_frames(search, series[first : first + _RERANKED]) for first in range(0, len(series), _RERANKED))
    matches = _by_pairs(search, blocks)
    return _best(search, Found(matches, shortlist.mode, shortlist.estimated_recall))


def _by_pairs(search: Search, blocks: Iterator[_Block]) -> list[Match]:
    """Return the matches of series, each with its frame that is the nearest to a frame of the query."""
    queries = np.concatenate(search.example.parts)
    ends = np.cumsum([len(part) for part in search.example.parts])[:-1]
    best: dict[int, float] = {}
    for block in blocks:
        pairs = cosines(block.vectors, queries)
        partners = np.maximum.reduceat(pairs, block.starts, axis=0)
        if search.request.how is Aggregation.SERIES_MAX:
            values = partners.max(axis=1)
        else:
            values = np.max([part.mean(axis=1) for part in np.split(partners, ends, axis=1)], axis=0)
        leading = pairs.max(axis=1)
        stops = chain(block.starts[1:], [len(block.ids)])
        for start, stop, value in zip(block.starts, stops, np.round(values, 12), strict=True):
            best[int(block.ids[start + leading[start:stop].argmax()])] = float(value)
    return matches_of(search.database, best)


def _competing(search: Search) -> Iterator[_Block]:
    """Yield the frames that compete, in blocks of whole series."""
    ids = search.index.competing(search.selection)
    rows = search.database.execute(
        "SELECT id, series FROM embedding WHERE id IN (SELECT value FROM json_each(?)) ORDER BY series, id",
        (json.dumps(ids.tolist()),),
    ).fetchall()
    if not rows:
        return
    table = np.asarray(rows, dtype=np.int64)
    starts = np.flatnonzero(np.r_[True, np.diff(table[:, 1]) != 0])
    cuts = starts[np.flatnonzero(np.diff(starts // _BLOCK)) + 1]
    for first, last in zip([0, *cuts], [*cuts, len(table)], strict=True):
        inside = starts[(starts >= first) & (starts < last)]
        yield _Block(table[first:last, 0], search.index.vectors(table[first:last, 0]), inside - first)


def _frames(search: Search, series: list[int]) -> _Block:
    """Return the frames of rows of the table `series`: these few are read from their rows, of the same state."""
    rows = search.database.execute(
        "SELECT id, series, vector FROM embedding WHERE model_id = ? AND instance IS NOT NULL "
        "AND series IN (SELECT value FROM json_each(?)) ORDER BY series, id",
        (search.model_id, json.dumps(series)),
    ).fetchall()
    ids, owners = (np.asarray([row[column] for row in rows], dtype=np.int64) for column in (0, 1))
    starts = np.flatnonzero(np.r_[True, np.diff(owners) != 0])
    return _Block(ids, np.stack([from_bytes(row[2]) for row in rows]), starts)
