"""Exact search: inner products in single precision tell who may be among the nearest, double precision ranks them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from index.bases.selection import Hits
from index.bases.state import Competing, Mask, State
from index.neighbours import SearchMode
from index.unit_vectors import Vectors, cosines

FEW = 0.05
"""Below this share of an index, candidates are compared one by one instead of in a pass over everything."""

_AT_ONCE = 1 << 25
"""Inner products in memory at a time, at most about."""

_GATHERED = 8192
_FEW_ULPS = 8
"""How far stored vectors are from length 1, in units of the last place, well rounded up."""

Positions = npt.NDArray[np.intp]


def nearest(state: State, queries: Vectors, k: int, competing: Competing) -> list[Hits]:
    """Return for each of `queries`, axes (m, d), the `k` nearest that compete, and those that tie with the last."""
    if not competing.count:
        return [rank(state, query, np.empty(0, dtype=np.intp), k, complete=True) for query in queries]
    is_few = competing.mask is not None and competing.count <= max(k, FEW * len(competing.mask))
    positions = np.flatnonzero(competing.mask) if is_few and competing.mask is not None else None
    size = len(state.alive) if positions is None else len(positions)
    at_once = max(1, _AT_ONCE // size)
    found = []
    for first in range(0, len(queries), at_once):
        block = queries[first : first + at_once]
        products = _all_products(state, block) if positions is None else _products(state, block, positions)
        for query, row in zip(block, products, strict=True):
            if positions is not None:
                chosen = positions[_leading(row, k, len(query))]
            else:
                chosen = _leading(_masked(row, competing.mask), k, len(query))
            found.append(rank(state, query, chosen, k, complete=len(chosen) == competing.count))
    return found


def leading_added(state: State, queries: Vectors, k: int, competing: Competing) -> list[Positions]:
    """Return for each query the positions among the added rows that may be among its `k` nearest."""
    mask = None if competing.mask is None else competing.mask[state.in_base :]
    if not len(state.added_ids) or (mask is not None and not mask.any()):
        return [np.empty(0, dtype=np.intp)] * len(queries)
    products = queries @ state.added_vectors.T
    return [state.in_base + _leading(_masked(row, mask), k, queries.shape[1]) for row in products]


def _all_products(state: State, queries: Vectors) -> npt.NDArray[np.float32]:
    products = np.empty((len(queries), len(state.alive)), dtype=np.float32)
    if state.base is not None:
        np.matmul(queries, state.base.vectors.T, out=products[:, : state.in_base])
    np.matmul(queries, state.added_vectors.T, out=products[:, state.in_base :])
    return products


def _products(state: State, queries: Vectors, positions: Positions) -> npt.NDArray[np.float32]:
    products = np.empty((len(queries), len(positions)), dtype=np.float32)
    for first in range(0, len(positions), _GATHERED):
        rows = state.vectors(positions[first : first + _GATHERED])
        np.matmul(queries, rows.T, out=products[:, first : first + _GATHERED])
    return products


def _masked(products: npt.NDArray[np.float32], mask: Mask | None) -> npt.NDArray[np.float32]:
    return products if mask is None else np.where(mask, products, np.float32(-np.inf))


def _leading(products: npt.NDArray[np.float32], k: int, dimension: int) -> Positions:
    """Return the indexes of the `k` largest, and of all that may belong to them but for rounding.

    The inner product of unit vectors of d values is off by at most about d·2⁻²⁴ in single precision, in whatever order
    it is summed (Higham, Accuracy and Stability of Numerical Algorithms, 3.1).
    """
    limit = np.float32(-np.inf)
    if len(products) > k:
        rounding = np.float32(2 * (dimension + _FEW_ULPS) * 2.0**-24)
        limit = np.partition(products, len(products) - k)[len(products) - k] - rounding
    if limit == -np.inf:  # that is what stands where nothing competes
        return np.flatnonzero(products > limit)
    return (products >= limit).nonzero()[0]


def rank(
    state: State, query: Vectors, positions: Positions, k: int, *, complete: bool,
    mode: SearchMode = SearchMode.EXACT, estimated_recall: float = 1.0,
) -> Hits:  # fmt: skip
    """Return the best `k` at `positions`, and those that tie with the last, by their exact cosines with `query`.

    Parameters
    ----------
    complete
        Whether these are all that compete.
    """
    if not len(positions):
        return Hits(state.ids(positions), np.empty(0), complete, mode, estimated_recall)
    vectors = state.vectors(positions)
    if len(positions) > k:
        leading = _leading(vectors @ query, k, len(query))
        positions, vectors, complete = positions[leading], vectors[leading], complete and len(leading) == len(positions)
    ids = state.ids(positions)
    found = cosines(vectors, query[None, :])[:, 0]
    order = np.lexsort((ids, -found))
    if len(order) > k:
        complete = False
        order = order[: np.count_nonzero(found >= found[order[k - 1]])]
    return Hits(ids[order], found[order], complete, mode, estimated_recall)
