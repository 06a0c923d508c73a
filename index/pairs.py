"""Series compared by all pairs of a frame of the query and a frame of theirs.

For each frame of the query its best partner in the series, averaged (late interaction; Khattab and Zaharia, SIGIR
2020), or the best pair of all. All that compete are compared in single precision, in blocks; what may be among the best
is compared again in double precision, so that equal series rank by their UIDs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import numpy as np
import numpy.typing as npt

from index.keys import Level
from index.matches import Match, matches_of
from index.neighbours import Aggregation
from index.search import Search
from index.unit_vectors import Vectors, cosines, from_bytes
from index.vectors import Ids

_BLOCK = 16384
"""Frames whose pairwise cosines are in memory at a time, about."""

_SERIES = 256
"""Series whose frames are in memory at a time, where they are compared in double precision."""

_FEW = 4096
"""Up to so many rows are looked up one by one; to find the series of more, all rows of the model are gone through."""

_SINGLE_PRECISION = 1e-5
"""How far values of series may be off, at most, in single precision, with room to spare."""


def by_pairs(search: Search, series: list[int]) -> list[Match]:
    """Return the matches of rows of the table `series`, each with its frame that is nearest to one of the query."""
    best: dict[int, float] = {}
    for first in range(0, len(series), _SERIES):
        ids, starts, vectors = _frames(search, series[first : first + _SERIES])
        if not len(ids):  # what an older version left of series whose embedded frames were deleted
            continue
        pairs = cosines(vectors, np.concatenate(search.example.parts))
        values = np.round(values_of_series(search, np.maximum.reduceat(pairs, starts, axis=0)), 12)
        leading = pairs.max(axis=1)
        for start, stop, value in zip(starts, [*starts[1:], len(ids)], values, strict=True):
            best[int(ids[start + leading[start:stop].argmax()])] = float(value)
    return matches_of(search.database, best)


def values_of_series(search: Search, partners: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the value of each series, axis (series,), of the best partner of each frame of the query.

    Parameters
    ----------
    partners
        Their cosines, axes (series, frame of the query).
    """
    if search.request.how is Aggregation.SERIES_MAX:
        return np.asarray(partners.max(axis=1))
    ends = np.cumsum([len(part) for part in search.example.parts])[:-1]
    return np.asarray(np.max([part.mean(axis=1) for part in np.split(partners, ends, axis=1)], axis=0))


def _frames(search: Search, series: list[int]) -> tuple[Ids, npt.NDArray[np.intp], Vectors]:
    """Return the ids of the frames of rows of `series`, the index at which each series starts, and their vectors.

    These few are read from their rows, which are of the same state as the index.
    """
    rows = search.database.execute(
        "SELECT id, series, vector FROM embedding WHERE model_id = ? AND instance IS NOT NULL "
        "AND series IN (SELECT value FROM json_each(?)) ORDER BY series, id",
        (search.model_id, json.dumps(series)),
    ).fetchall()
    table = np.asarray([row[:2] for row in rows], dtype=np.int64).reshape(-1, 2)
    vectors = [from_bytes(row[2]) for row in rows]
    return table[:, 0], _starts(table[:, 1]), np.stack(vectors) if vectors else np.empty((0, 0), dtype=np.float32)


def contenders(search: Search) -> list[int]:
    """Return the series that may be of the best k entities: all that compete are compared, in single precision."""
    table = _competing(search)
    queries = np.concatenate(search.example.parts)
    starts = _starts(table[:, 1])
    cuts = starts[np.flatnonzero(np.diff(starts // _BLOCK)) + 1]
    values = [np.empty(0)]
    for first, last in zip([0, *cuts], [*cuts, len(table)], strict=True):
        inside = starts[(starts >= first) & (starts < last)]
        if len(inside):
            pairs = search.index.vectors(table[first:last, 0]) @ queries.T
            values.append(values_of_series(search, np.maximum.reduceat(pairs, inside - first, axis=0)))
    series = table[starts, 1]
    is_contender = _may_be_best(np.concatenate(values), _entities(search, series), search.request.k)
    return [int(row) for row in series[is_contender]]


def _may_be_best(values: npt.NDArray[Any], entities: Ids, k: int) -> npt.NDArray[np.bool_]:
    """Return where `values`, axis (series,), are no more than rounding below that of the entity of rank `k`."""
    order = np.argsort(-values, kind="stable")
    first_of_each = np.sort(np.unique(entities[order], return_index=True)[1])
    if len(first_of_each) <= k:
        return np.ones(len(values), dtype=np.bool_)
    return np.asarray(values >= values[order[first_of_each[k - 1]]] - _SINGLE_PRECISION)


def _entities(search: Search, series: Ids) -> Ids:
    """Return what rows of the table `series` are ranked as: themselves, or rows of their studies."""
    if search.request.level is not Level.STUDY:
        return series
    studies = dict(
        search.database.execute(
            "SELECT id, study FROM series WHERE id IN (SELECT value FROM json_each(?))", (json.dumps(series.tolist()),)
        ).fetchall()
    )
    return np.asarray([studies[row] for row in series.tolist()], dtype=np.int64)


def _competing(search: Search) -> Ids:
    """Return the frames that compete, axes (frame, id and series), series after series."""
    ids = search.index.competing(search.selection)
    if len(ids) <= _FEW:
        rows = search.database.execute(
            "SELECT id, series FROM embedding WHERE model_id = ? AND id IN (SELECT value FROM json_each(?))",
            (search.model_id, json.dumps(ids.tolist())),
        ).fetchall()
        table = np.asarray(rows, dtype=np.int64).reshape(-1, 2)
    else:
        table = np.concatenate(list(_owners(search)))
        table = table[np.isin(table[:, 0], ids)]
    return table[np.lexsort((table[:, 0], table[:, 1]))]


def _owners(search: Search) -> Iterator[Ids]:
    """Yield all frames of the model, axes (frame, id and series); a row a series is read in a fraction of the time."""
    rows = search.database.execute(
        "SELECT series, count(*), group_concat(id) FROM embedding WHERE model_id = ? AND instance IS NOT NULL "
        "GROUP BY series",
        (search.model_id,),
    )
    with closing(rows):
        while block := rows.fetchmany(_SERIES):
            series, counts, ids = zip(*block, strict=True)
            yield np.stack([np.fromstring(",".join(ids), dtype=np.int64, sep=","), np.repeat(series, counts)], axis=1)


def _starts(owners: Ids) -> npt.NDArray[np.intp]:
    """Return the indices at which a new value begins in `owners`, which are in order."""
    return np.flatnonzero(np.r_[len(owners) > 0, np.diff(owners) != 0])
