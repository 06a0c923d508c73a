"""The approximate indexes, and the only place that knows faiss (Douze et al., arXiv:2401.08281).

An index numbers its vectors from 0 in the order in which they were added. It finds candidates; who asks ranks them by
their vectors. A graph walks over the very vectors that the base keeps: its file holds none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from index.bases.limits import Kind
from index.bases.selection import Ids
from index.unit_vectors import Vectors

_LINKS, _CONSTRUCTION_EFFORT = 32, 80
"""Of a graph: links of a vector at each layer (twice as many at the lowest), and candidates weighed for them."""

_LISTS_BY_ROOT = {Kind.IVF4: 1.0, Kind.IVF: 2.0, Kind.IVFPQ: 4.0}
"""Inverted lists, by the square root of the number of vectors: the less it costs to go through a list, the longer it
may be, and the fewer there are to choose from."""

_VALUES_A_CODE = 4
"""Values of a vector that one code of a product-quantised one stands for."""

_CANDIDATES = {Kind.IVF4: (4.0, 8), Kind.IVF: (1.5, 1), Kind.IVFPQ: (8.0, 16)}
"""For each neighbour, and for each list that is visited: the coarser the codes, the more of them are compared by their
vectors; and with more effort not only more lists are visited, but more of what they hold is looked at."""

_BLOCK = 4096
_TRAINING_A_LIST, _MOST_TRAINING = 64, 1 << 20

_FACTORS = (1.0, 1.4, 2.0, 2.8, 4.0, 5.6, 8.0, 12.0, 16.0, 24.0, 32.0, 64.0)
_LISTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256)


@cache
def _faiss() -> Any:
    """The library: loaded when somebody searches, since processes that only might do so have no use for its memory.

    Without a type: its stubs describe the C++ signatures, not those of its Python wrappers.
    """
    import faiss

    return faiss


class IndexBroken(Exception):
    """A file that faiss cannot read as the index that it should be."""


class Approximate:
    """An index that is open. Any number of threads may search at the same time.

    Parameters
    ----------
    index
        Of faiss.
    kind
        What it is.
    """

    def __init__(self, index: Any, kind: Kind, keep: tuple[Any, ...] = ()) -> None:
        self._index = index
        self._kind = kind
        self._keep = keep  # what faiss only points to

    def search(self, queries: Vectors, wanted: int, effort: int) -> Ids:
        """Return candidates for the `wanted` nearest of each query, axes (m, n ≥ wanted), -1 where there are fewer.

        Parameters
        ----------
        queries
            Axes (m, d).
        effort
            Candidates that the walk through a graph keeps; lists visited of the other kinds.
        """
        if self._kind is Kind.HNSW:
            parameters = _faiss().SearchParametersHNSW(efSearch=max(effort, wanted))
            return np.asarray(self._index.search(queries, wanted, params=parameters)[1])
        by_neighbour, by_list = _CANDIDATES[self._kind]
        depth = int(by_neighbour * wanted) + by_list * effort
        parameters = _faiss().SearchParametersIVF(nprobe=min(effort, self._index.nlist))
        return np.asarray(self._index.search(queries, min(depth, self._index.ntotal), params=parameters)[1])

    def share_visited(self, effort: int) -> float:
        """Return about which share of the vectors a search with this effort compares."""
        if self._kind is Kind.HNSW:
            return min(1.0, effort * _LINKS / max(1, int(self._index.ntotal)))
        return min(1.0, effort / int(self._index.nlist))

    def ladder(self, wanted: int) -> Sequence[int]:
        """Return the efforts worth trying for so many neighbours, rising."""
        if self._kind is Kind.HNSW:
            return [round(wanted * factor) for factor in _FACTORS]
        return [lists for lists in _LISTS if lists < self._index.nlist] + [self._index.nlist]


def largest_products(vectors: Vectors, queries: Vectors, most: int) -> tuple[Vectors, Ids]:
    """Return the largest inner products of each query with `vectors`, axes (n, d), and where: axes (m, most)."""
    products, positions = _faiss().knn(queries, vectors, min(most, len(vectors)), _faiss().METRIC_INNER_PRODUCT)
    return np.asarray(products), np.asarray(positions)


def open_file(path: Path, kind: Kind, vectors: Vectors) -> Approximate:
    """Map an index file that `Growing.write` wrote; `vectors`, axes (n, d), are those of the base, mapped as well.

    Raises
    ------
    IndexBroken
        The file is not an index of this kind over so many vectors.
    """
    try:
        index = _faiss().read_index(str(path), _faiss().IO_FLAG_MMAP_IFC)
    except RuntimeError as error:
        raise IndexBroken(f"{path.name}: {error}"[:200]) from error
    if (index.ntotal, index.d) != vectors.shape:
        raise IndexBroken(f"{path.name}: expected {vectors.shape} vectors and values, got {(index.ntotal, index.d)}")
    if kind is not Kind.HNSW:
        return Approximate(index, kind)
    storage = _faiss().IndexFlatIP(index.d)
    owner = index.hnsw.neighbors.owner  # the type has no other maker in Python; whom the view belongs to is our matter
    library = _faiss()
    storage.codes = library.MaybeOwnedVectorUInt8.create_view(library.swig_ptr(_bytes(vectors)), vectors.nbytes, owner)
    storage.ntotal = len(vectors)
    index.storage, index.own_fields = storage, False
    return Approximate(index, kind, (storage, vectors))


def _bytes(vectors: Vectors) -> npt.NDArray[np.uint8]:
    return vectors.reshape(-1).view(np.uint8)


class Growing:
    """An index that is being made.

    Parameters
    ----------
    kind
        Not FLAT.
    dimension
        Values of a vector.
    count
        How many vectors it will have.
    """

    def __init__(self, kind: Kind, dimension: int, count: int) -> None:
        self._kind = kind
        inner = _faiss().METRIC_INNER_PRODUCT
        if kind is Kind.HNSW:
            self._index = _faiss().IndexHNSWFlat(dimension, _LINKS, inner)
            self._index.hnsw.efConstruction = _CONSTRUCTION_EFFORT
            return
        lists = max(1, min(int(_LISTS_BY_ROOT[kind] * np.sqrt(count)), count // 40))
        codes = _codes(dimension)
        encoded = {Kind.IVF4: f"PQ{codes}x4fs", Kind.IVF: "SQ8", Kind.IVFPQ: f"PQ{codes}np"}[kind]
        self._index = _faiss().index_factory(dimension, f"IVF{lists},{encoded}", inner)

    @property
    def ranks_exactly(self) -> bool:
        """Whether it returns the best of what it compares: it has the vectors themselves, not codes of them."""
        return self._kind is Kind.HNSW

    @property
    def searchable(self) -> Approximate:
        """What is there so far."""
        return Approximate(self._index, self._kind)

    def train(self, vectors: Vectors) -> None:
        """Learn lists and codes from a sample of `vectors`, axes (n, d); a graph has nothing to learn."""
        if self._index.is_trained:
            return
        most = min(len(vectors), max(_TRAINING_A_LIST * self._index.nlist, 1 << 14), _MOST_TRAINING)
        chosen = np.sort(np.random.default_rng(0).choice(len(vectors), most, replace=False))
        self._index.cp.min_points_per_centroid = 1
        if self._kind is not Kind.IVF:
            self._index.pq.cp.min_points_per_centroid = 1
        self._index.train(np.ascontiguousarray(vectors[chosen]))

    def add(self, vectors: Vectors, on_fraction: Callable[[float], None]) -> None:
        """Add `vectors`, axes (n, d), in order; `on_fraction` gets the fraction done, and may raise to stop."""
        for first in range(0, len(vectors), _BLOCK):
            on_fraction(first / len(vectors))
            self._index.add(np.ascontiguousarray(vectors[first : first + _BLOCK]))

    def write(self, path: Path) -> None:
        """Write the index; of a graph without its vectors."""
        _faiss().write_index(self._index, str(path), _faiss().IO_FLAG_SKIP_STORAGE if self._kind is Kind.HNSW else 0)


def _codes(dimension: int) -> int:
    """Return into how many parts a vector is cut, a code for each."""
    most = max(1, dimension // _VALUES_A_CODE)
    return next(parts for parts in range(most, 0, -1) if dimension % parts == 0)
