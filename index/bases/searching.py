"""One search over a state: exact or approximate, and never fewer rows than there are.

A filter is applied to what the approximate index finds, not inside of it. The nearest that pass are then certain in the
sense in which the index was measured: a search for the n nearest of all finds them with the recall of n neighbours,
and those of them that pass are the nearest that pass. An index that skips what does not pass while it walks returns k
rows from wherever its walk has led, and nobody knows how many nearer ones it missed where the filter and the query
have to do with each other. When too few pass, the search widens, and at last it is exact.
"""

from __future__ import annotations

import math

import numpy as np

from index.bases import exact
from index.bases.approximate import Approximate
from index.bases.exact import FEW, Positions
from index.bases.limits import IndexLimits
from index.bases.selection import Hits, Selection
from index.bases.state import Competing, State
from index.bases.tuning import Curve, Step
from index.neighbours import SearchMode
from index.unit_vectors import Vectors

_WIDER = 4
_SPARE = 1.25
"""So many more than expected are looked at when only a share passes the filter."""


def nearest(
    state: State, queries: Vectors, k: int, selection: Selection, mode: SearchMode | None, limits: IndexLimits
) -> list[Hits]:
    """Return for each of `queries`, axes (m, d), the `k` nearest rows that `selection` leaves.

    Parameters
    ----------
    mode
        None: exact up to the limit for that, or where the target recall was not reached; else approximate.
    """
    competing = state.competing(selection)
    is_small = mode is None and competing.count <= limits.exact_up_to
    is_few = competing.count <= max(k, FEW * len(state.alive))
    if mode is SearchMode.EXACT or is_small or is_few or state.base is None:
        return exact.nearest(state, queries, k, competing)
    approximate, curve = state.base.approximate, state.base.made.curve
    if approximate is None or curve is None:
        return exact.nearest(state, queries, k, competing)
    search = _Search(state, approximate, curve, limits.target_recall, competing, may_miss=mode is SearchMode.APPROX)
    return search.nearest(queries, k, _wanted(state, k, selection, competing))


def _wanted(state: State, k: int, selection: Selection, competing: Competing) -> int:
    """Return how many neighbours to look for so that `k` of them are likely to pass."""
    excluded = len(selection.without)  # the query's own surroundings: all of them may be nearer than anything else
    passing = competing.count + (excluded if selection.among is None else 0)
    share = min(1.0, passing / len(state.alive))
    spare = _SPARE if selection.among is not None else 1.0
    return math.ceil(spare * (k + excluded) / share)


class _Search:
    """An approximate search for several queries at a time; those for which it does not do are searched exactly."""

    def __init__(
        self,
        state: State,
        approximate: Approximate,
        curve: Curve,
        target: float,
        competing: Competing,
        *,
        may_miss: bool,
    ) -> None:
        self._state = state
        self._approximate = approximate
        self._curve = curve
        self._target = target
        self._competing = competing
        self._may_miss = may_miss

    def nearest(self, queries: Vectors, k: int, wanted: int) -> list[Hits]:
        """Return the hits of each query, looking at `wanted` neighbours first, then at more."""
        found: list[Hits | None] = [None] * len(queries)
        added = exact.leading_added(self._state, queries, k, self._competing)
        enough = min(k, self._passing_in_base())
        left = list(range(len(queries)))
        while left:
            step = self._step(wanted)
            if step is None:
                break
            asked = queries if len(left) == len(queries) else queries[left]
            candidates = self._approximate.search(asked, wanted, step.effort)
            still = []
            for number, row in zip(left, candidates, strict=True):
                passing = self._passing(row)
                if len(passing) < enough:
                    still.append(number)
                else:
                    found[number] = self._ranked(queries[number], passing, added[number], k, step)
            left, wanted = still, wanted * _WIDER
        if left:
            for number, hits in zip(left, exact.nearest(self._state, queries[left], k, self._competing), strict=True):
                found[number] = hits
        return [hits for hits in found if hits is not None]

    def _step(self, wanted: int) -> Step | None:
        """Return the effort for so many neighbours; None where an exact search is as good or the only good one."""
        step = self._curve.step(wanted, self._target)
        costs_as_much = max(wanted / self._state.in_base, self._approximate.share_visited(step.effort)) > 0.5
        is_below = step.bound < self._target and not self._may_miss
        return None if costs_as_much or is_below else step

    def _passing_in_base(self) -> int:
        mask = self._competing.mask
        return self._state.in_base if mask is None else int(np.count_nonzero(mask[: self._state.in_base]))

    def _passing(self, candidates: Positions) -> Positions:
        positions = candidates[candidates >= 0]
        return positions if self._competing.mask is None else positions[self._competing.mask[positions]]

    def _ranked(self, query: Vectors, passing: Positions, added: Positions, k: int, step: Step) -> Hits:
        positions = np.concatenate([passing, added]) if len(added) else passing
        return exact.rank(
            self._state, query, positions, k,
            complete=False, mode=SearchMode.APPROX, estimated_recall=step.bound,
        )  # fmt: skip
