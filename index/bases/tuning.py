"""How much effort a recall costs: measured once on vectors that the index has not seen, with a bound that holds.

The recall of a query lies in [0, 1]; queries are a random sample. By Hoeffding (JASA 1963, theorem 1) its mean over
`count` queries exceeds the true one so far with probability at most exp(-count · KL(mean ‖ true)): solved for `true`
that is a lower bound without any assumption about how recalls are distributed. It is computed for every step of the
ladder at once (Bonferroni), so that the step chosen afterwards, for whatever target, keeps its 95 %.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from index.bases.approximate import largest_products
from index.bases.selection import Ids
from index.unit_vectors import Vectors

CONFIDENCE = 0.95
LEVELS = (10, 30, 100)
"""Numbers of neighbours for which effort is measured."""

HIGHEST_TARGET = 0.99
_ENOUGH = 0.9985
"""Mean recall at which more effort is not measured any more: the bound of 1000 queries is above the highest target."""

_LONGEST_LADDER = 16
_BLOCK = 1 << 17

Search = Callable[[Vectors, int, int], Ids]
"""Queries (m, d), neighbours wanted and effort → positions of the best (m, wanted), -1 where there are fewer."""


@dataclass(frozen=True)
class Step:
    """What an effort has reached.

    Attributes
    ----------
    recall
        Mean over the sample.
    bound
        Lower 95 % confidence bound of the expected recall.
    """

    effort: int
    recall: float
    bound: float


@dataclass(frozen=True)
class Level:
    """Steps of rising effort for one number of neighbours."""

    neighbours: int
    steps: tuple[Step, ...]

    def reaching(self, target: float) -> Step:
        """Return the first step whose bound reaches `target`, else the one that comes nearest."""
        first = next((step for step in self.steps if step.bound >= target), None)
        return first or max(self.steps, key=lambda step: step.bound)


@dataclass(frozen=True)
class Curve:
    """What a base has been found to deliver.

    Attributes
    ----------
    queries
        Size of the sample.
    """

    queries: int
    levels: tuple[Level, ...]

    def step(self, wanted: int, target: float) -> Step:
        """Return the effort with which `wanted` neighbours reach `target`; beyond the last level it grows with them."""
        level = next((each for each in self.levels if each.neighbours >= wanted), self.levels[-1])
        step = level.reaching(target)
        if wanted <= level.neighbours:
            return step
        return Step(-(-step.effort * wanted // level.neighbours), step.recall, step.bound)

    def reaches(self, target: float) -> bool:
        """Whether there is an effort for every level that reaches `target`."""
        return all(level.reaching(target).bound >= target for level in self.levels)

    def to_json(self) -> str:
        """Return it as a row of the catalogue keeps it."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Curve:
        """Return what `to_json` wrote."""
        told = json.loads(text)
        levels = (Level(each["neighbours"], tuple(Step(**step) for step in each["steps"])) for each in told["levels"])
        return cls(told["queries"], tuple(levels))


def lower_bound(mean: float, count: int, *, alternatives: int = 1) -> float:
    """Return the lower 95 % confidence bound of the expectation of values in [0, 1] with this mean over `count` draws.

    Parameters
    ----------
    alternatives
        How many such bounds have to hold at the same time.
    """
    exponent = np.log(alternatives / (1.0 - CONFIDENCE)) / count
    low, high = 0.0, mean
    for _ in range(60):
        middle = (low + high) / 2.0
        low, high = (middle, high) if _divergence(mean, middle) > exponent else (low, middle)
    return low


def _divergence(p: float, q: float) -> float:
    """Kullback-Leibler divergence of two coins."""
    if q <= 0.0:
        return 0.0 if p <= 0.0 else np.inf
    if q >= 1.0:
        return 0.0 if p >= 1.0 else np.inf
    head = p * np.log(p / q) if p > 0.0 else 0.0
    tail = (1.0 - p) * np.log((1.0 - p) / (1.0 - q)) if p < 1.0 else 0.0
    return float(head + tail)


def measure(
    search: Search,
    queries: Vectors,
    truth: Ids,
    ladder: Callable[[int], Sequence[int]],
    on_fraction: Callable[[float], None],
) -> Curve:
    """Climb the ladder at every level.

    Parameters
    ----------
    queries
        Axes (m, d): vectors that the index does not hold.
    truth
        Axes (m, n): positions of the true nearest, best first; of levels above n nothing is measured.
    ladder
        Number of neighbours → efforts to try, rising; at most `_LONGEST_LADDER` of them.
    on_fraction
        Called with the fraction done; may raise to stop.
    """
    measured = []
    neighbours = [level for level in LEVELS if level <= truth.shape[1]] or [truth.shape[1]]
    for number, wanted in enumerate(neighbours):
        steps: list[Step] = []
        efforts = list(ladder(wanted))[:_LONGEST_LADDER]
        for effort in efforts:
            on_fraction((number + len(steps) / len(efforts)) / len(neighbours))
            mean = mean_recall(search(queries, wanted, effort), truth[:, :wanted])
            steps.append(Step(effort, mean, lower_bound(mean, len(queries), alternatives=_LONGEST_LADDER)))
            if mean >= _ENOUGH:
                break
        measured.append(Level(wanted, tuple(steps)))
    return Curve(len(queries), tuple(measured))


def mean_recall(found: Ids, truth: Ids) -> float:
    """Return the share of `truth`, axes (m, k), that is in the same row of `found`, axes (m, n)."""
    size = max(int(found.max()), int(truth.max())) + 2
    row = np.arange(len(truth))[:, None] * size
    return float(np.isin(truth + row, np.where(found < 0, size - 1, found) + row).mean())


def ground_truth(vectors: Vectors, queries: Vectors, most: int, on_fraction: Callable[[float], None]) -> Ids:
    """Return the positions in `vectors`, axes (n, d), of the `most` nearest of each query, best first."""
    most = min(most, len(vectors))
    products = np.empty((len(queries), 0), dtype=np.float32)
    rows: Ids = np.empty((len(queries), 0), dtype=np.int64)
    for first in range(0, len(vectors), _BLOCK):
        on_fraction(first / len(vectors))
        found, positions = largest_products(vectors[first : first + _BLOCK], queries, most)
        products, rows = np.hstack([products, found]), np.hstack([rows, first + positions])
        best = np.argsort(-products, axis=1, kind="stable")[:, :most]
        products, rows = np.take_along_axis(products, best, 1), np.take_along_axis(rows, best, 1)
    return rows
