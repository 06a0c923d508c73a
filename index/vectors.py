"""The vector index: faiss over the embedding rows of one model, and the only place that knows faiss.

It is a cache. It reads all rows when it is first asked, then follows `embedding_change` by sequence number, so that the
next search sees rows which other processes added or deleted. Exact: inner products of unit vectors with every row.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from index.archive import Archive
from index.neighbours import SearchMode
from index.unit_vectors import Vectors, cosines, from_bytes

_faiss: Any = faiss
# Its type stubs describe the C++ signatures, not those of its Python wrappers.

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
    mode: SearchMode = SearchMode.EXACT
    estimated_recall: float = 1.0


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
        self._index = _faiss.IndexIDMap2(_faiss.IndexFlatIP(dimension))
        self._present = np.zeros(1, dtype=np.bool_)
        self._seq: int | None = None
        self._lock = threading.RLock()

    @property
    def ntotal(self) -> int:
        """How many vectors it holds."""
        return int(self._index.ntotal)

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Keep the index as it is while the block runs."""
        with self._lock:
            yield

    def refresh(self) -> None:
        """Catch up with the rows: all of them at first, then what `embedding_change` tells."""
        with self._lock:
            database = self._archive.database
            first, last = database.execute(
                "SELECT coalesce(min(seq), 0), coalesce(max(seq), 0) FROM embedding_change"
            ).fetchone()
            if self._seq is None or first > self._seq + 1:  # never read, or so long ago that changes are forgotten
                self._index.reset()
                self._present[:] = False
                self._add(self._rows())
            elif last > self._seq:
                changed = database.execute(
                    "SELECT DISTINCT embedding FROM embedding_change WHERE model_id = ? AND seq > ? AND seq <= ?",
                    (self._model_id, self._seq, last),
                )
                ids = [row[0] for row in changed]
                self._remove(ids)
                self._add(self._rows("AND id IN (SELECT value FROM json_each(?))", str(ids)))
            self._seq = last

    def _rows(self, condition: str = "", *parameters: str) -> Iterator[tuple[int, bytes]]:
        sql = f"SELECT id, vector FROM embedding WHERE model_id = ? AND instance {self._instance} {condition}"
        yield from self._archive.database.execute(sql, (self._model_id, *parameters))

    def _add(self, rows: Iterable[tuple[int, bytes]]) -> None:
        for block in _blocks(rows, _BLOCK):
            ids = np.array([row[0] for row in block], dtype=np.int64)
            self._index.add_with_ids(np.stack([from_bytes(row[1]) for row in block]), ids)
            if ids.max() >= len(self._present):
                self._present = np.pad(self._present, (0, int(ids.max()) + 1 - len(self._present)))
            self._present[ids] = True

    def _remove(self, ids: Iterable[int]) -> None:
        known = np.array([row for row in ids if row < len(self._present) and self._present[row]], dtype=np.int64)
        if len(known):  # one pass over all vectors
            self._index.remove_ids(known)
            self._present[known] = False

    def competing(self, selection: Selection) -> Ids:
        """Return the ids, ascending, of the rows that `selection` leaves."""
        with self._lock:
            return np.flatnonzero(self._allowed(selection)).astype(np.int64)

    def count(self, selection: Selection) -> int:
        """Return how many rows `selection` leaves."""
        with self._lock:
            return int(np.count_nonzero(self._allowed(selection)))

    def _allowed(self, selection: Selection) -> npt.NDArray[np.bool_]:
        """Return for each id from 0 whether that row is held and left by `selection`."""
        allowed = self._present.copy()
        if selection.among is not None:
            allowed[:] = False
            among = selection.among[selection.among < len(allowed)]
            allowed[among] = self._present[among]
        allowed[selection.without[selection.without < len(allowed)]] = False
        return allowed

    def vectors(self, ids: Ids) -> Vectors:
        """Return the vectors, axes (n, d), of rows that the index holds."""
        with self._lock:
            return np.asarray(self._index.reconstruct_batch(ids), dtype=np.float32).reshape(len(ids), -1)

    def nearest(self, query: Vectors, k: int, selection: Selection) -> Hits:
        """Return the `k` rows nearest to `query`, axis (d,), and those that tie with the last of them.

        Never fewer than `k` while `selection` leaves as many.
        """
        with self._lock:
            allowed = self._allowed(selection)
            count = int(np.count_nonzero(allowed))
            if count <= max(k, FEW * self.ntotal):
                return self._best(query, np.flatnonzero(allowed).astype(np.int64), k, complete=True)
            parameters = _faiss.SearchParameters(sel=_faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little")))
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


def _blocks(rows: Iterable[tuple[int, bytes]], size: int) -> Iterator[list[tuple[int, bytes]]]:
    block: list[tuple[int, bytes]] = []
    for row in rows:
        block.append(row)
        if len(block) == size:
            yield block
            block = []
    if block:
        yield block
