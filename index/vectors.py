"""The vector index: faiss over the embedding rows of one model, and the only place that knows faiss.

It is a cache. It reads all rows when it is first asked, then follows `embedding_change` by sequence number, so that rows
which other processes add or delete are seen by the next search. Exact: inner products of unit vectors with every row.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum

import faiss
import numpy as np
import numpy.typing as npt

from index.archive import Archive
from index.unit_vectors import Vectors, cosines, from_bytes

Ids = npt.NDArray[np.int64]
"""Rows of the table `embedding`, by their id."""

FEW = 0.05
"""Below this share of the index, candidates are compared one by one instead of being selected in a full pass."""

_NO_IDS: Ids = np.empty(0, dtype=np.int64)
_SINGLE_PRECISION = 2e-6
"""Inner products of unit vectors in float32 are this far off at most: rows so close may change places."""
_EXTRA = 16
_BLOCK = 4096


class Grain(StrEnum):
    """Which rows an index holds."""

    FRAME = "frame"
    SERIES = "series"


@dataclass(frozen=True, eq=False)
class Selection:
    """Which rows of an index compete.

    Attributes
    ----------
    among
        Only these; None: all.
    without
        Not these.
    """

    among: Ids | None = None
    without: Ids = field(default_factory=lambda: _NO_IDS)


@dataclass(frozen=True, eq=False)
class Hits:
    """Rows found, best first, rows of equal cosine in the order of their ids.

    Attributes
    ----------
    complete
        Whether these are all rows that compete.
    """

    ids: Ids
    cosines: npt.NDArray[np.float64]
    complete: bool


class VectorIndex:
    """Vectors of one model and one grain, searched exactly. Safe to share between threads.

    Parameters
    ----------
    archive
        Its rows are the truth.
    dimension
        Length d of the vectors.
    """

    def __init__(self, archive: Archive, model_id: str, dimension: int, grain: Grain) -> None:
        self._archive = archive
        self._model_id = model_id
        self._instance = "IS NULL" if grain is Grain.SERIES else "IS NOT NULL"
        self._index = faiss.IndexIDMap2(faiss.IndexFlatIP(dimension))
        self._ids: set[int] = set()
        self._seq: int | None = None
        self._lock = threading.RLock()

    @property
    def ntotal(self) -> int:
        """How many vectors it holds."""
        return int(self._index.ntotal)

    def refresh(self) -> None:
        """Catch up with the rows: all of them at first, then what `embedding_change` tells."""
        with self._lock:
            database = self._archive.database
            last = database.execute("SELECT coalesce(max(seq), 0) FROM embedding_change").fetchone()[0]
            if self._seq is None:
                self._add(database.execute(*self._rows("")))
            elif last > self._seq:
                changed = (self._model_id, self._seq, last)
                touched = database.execute(
                    "SELECT DISTINCT embedding FROM embedding_change WHERE model_id = ? AND seq > ? AND seq <= ?", changed
                )
                self._remove(row[0] for row in touched)
                self._add(
                    database.execute(
                        *self._rows(
                            "AND id IN (SELECT embedding FROM embedding_change WHERE model_id = ? AND seq > ? AND seq <= ?)",
                            *changed,
                        )
                    )
                )
            self._seq = last

    def _rows(self, condition: str, *parameters: str | int) -> tuple[str, tuple[str | int, ...]]:
        sql = f"SELECT id, vector FROM embedding WHERE model_id = ? AND instance {self._instance} {condition}"
        return sql, (self._model_id, *parameters)

    def _add(self, rows: Iterable[tuple[int, bytes]]) -> None:
        for block in _blocks((row for row in rows if row[0] not in self._ids), _BLOCK):
            ids = [row[0] for row in block]
            vectors = np.stack([from_bytes(row[1]) for row in block])
            self._index.add_with_ids(vectors, np.asarray(ids, dtype=np.int64))
            self._ids.update(ids)

    def _remove(self, ids: Iterable[int]) -> None:
        known = [row for row in ids if row in self._ids]
        if known:
            self._index.remove_ids(np.asarray(known, dtype=np.int64))
            self._ids.difference_update(known)

    def competing(self, selection: Selection) -> Ids:
        """Return the ids, ascending, of the rows that `selection` leaves."""
        with self._lock:
            known = np.fromiter(self._ids, dtype=np.int64, count=len(self._ids))
        if selection.among is not None:
            known = np.intersect1d(known, selection.among)
        return np.setdiff1d(known, selection.without)

    def count(self, selection: Selection) -> int:
        """Return how many rows `selection` leaves."""
        if selection.among is None:
            return self.ntotal - sum(1 for row in set(selection.without.tolist()) if row in self._ids)
        return len(self.competing(selection))

    def vectors(self, ids: Ids) -> Vectors:
        """Return the vectors, axes (n, d), of rows that the index holds."""
        with self._lock:
            return np.asarray(self._index.reconstruct_batch(ids), dtype=np.float32).reshape(len(ids), -1)

    def nearest(self, query: Vectors, k: int, selection: Selection) -> Hits:
        """Return the `k` rows nearest to `query`, axis (d,), and those that tie with the last of them.

        Never fewer than `k` while `selection` leaves as many.
        """
        with self._lock:
            count = self.count(selection)
            if count <= max(k, FEW * self.ntotal):
                return self._best(query, self.competing(selection), k, complete=True)
            parameters = self._parameters(selection)
            fetched = min(count, k + _EXTRA)
            while True:
                products, ids = self._index.search(query[None, :], fetched, params=parameters)
                is_settled = fetched == count or products[0, -1] < products[0, k - 1] - _SINGLE_PRECISION
                if is_settled:
                    return self._best(query, np.sort(ids[0]), k, complete=fetched == count)
                fetched = min(count, fetched * 4)

    def _best(self, query: Vectors, ids: Ids, k: int, *, complete: bool) -> Hits:
        if not len(ids):
            return Hits(ids, np.empty(0), complete=True)
        found = cosines(self.vectors(ids), query[None, :])[:, 0]
        order = np.lexsort((ids, -found))
        if len(order) > k:
            complete = False
            order = order[: np.count_nonzero(found >= found[order[k - 1]])]
        return Hits(ids[order], found[order], complete=complete)

    def _parameters(self, selection: Selection) -> faiss.SearchParameters | None:
        if selection.among is None and not len(selection.without):
            return None
        allowed = np.ones(max(self._ids) + 1, dtype=np.bool_)
        if selection.among is not None:
            allowed[:] = False
            allowed[selection.among[selection.among < len(allowed)]] = True
        allowed[selection.without[selection.without < len(allowed)]] = False
        return faiss.SearchParameters(sel=faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little")))


def _blocks(rows: Iterable[tuple[int, bytes]], size: int) -> Iterator[list[tuple[int, bytes]]]:
    block: list[tuple[int, bytes]] = []
    for row in rows:
        block.append(row)
        if len(block) == size:
            yield block
            block = []
    if block:
        yield block
