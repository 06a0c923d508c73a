"""How good a ranking is: P@k, R@k, mAP and NDCG@k over all queries, with bootstrap intervals. Arrays in, numbers out.

Every item is asked about in turn and ranks all others; what belongs to the query's own series, study or patient does
not compete. An item is relevant when it has the query's label. Queries without any relevant item are left out and
counted: no ranking could answer them. Definitions as in Manning, Raghavan and Schütze, Introduction to Information
Retrieval (2008), chapter 8; NDCG of Järvelin and Kekäläinen (TOIS 2002) with binary gains and log2 discounts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from index.neighbours import Exclude
from index.unit_vectors import Vectors

Indices = npt.NDArray[np.intp]
Values = npt.NDArray[np.float64]
Texts = npt.NDArray[np.str_]

KS = (1, 5, 10)
RESAMPLES = 2000
CONFIDENCE = 0.95

_BLOCK_CELLS = 1 << 24
"""Cosines that are in memory at a time."""


@dataclass(frozen=True, eq=False)
class Items:
    """What is ranked, item by item; all arrays have the axis (n,).

    Attributes
    ----------
    labels
        Class of each item.
    patients, studies, series
        Whom and what it belongs to; intervals take the items of one patient together.
    """

    labels: Texts
    patients: Texts
    studies: Texts
    series: Texts

    def __post_init__(self) -> None:
        """Refuse arrays that do not belong together."""
        lengths = {len(self.labels), len(self.patients), len(self.studies), len(self.series)}
        if len(lengths) != 1:
            raise ValueError(f"expected arrays of one length, got {sorted(lengths)}")

    def __len__(self) -> int:
        return len(self.labels)

    def excluded(self, query: int, exclude: frozenset[Exclude]) -> npt.NDArray[np.bool_]:
        """Return which items, axis (n,), do not compete when item `query` is asked about; itself never does."""
        gone = np.zeros(len(self), dtype=np.bool_)
        gone[query] = True
        owners = {
            Exclude.SAME_SERIES: self.series,
            Exclude.SAME_STUDY: self.studies,
            Exclude.SAME_PATIENT: self.patients,
        }
        for what in exclude:
            gone |= owners[what] == owners[what][query]
        return gone


@dataclass(frozen=True)
class Figure:
    """A mean over queries with the ends of its confidence interval."""

    value: float
    low: float
    high: float

    def overlaps(self, other: Figure) -> bool:
        """Whether the two intervals share a value."""
        return self.low <= other.high and other.low <= self.high


@dataclass(frozen=True, eq=False)
class Scores:
    """What each query reached.

    Attributes
    ----------
    queries
        Items that were asked about, axis (m,).
    values
        Name of the metric (``P@5``, ``R@10``, ``mAP``, ``NDCG@10``) → its value for each query, axis (m,).
    left_out
        Queries without any relevant item, which are not among them.
    """

    queries: Indices
    values: Mapping[str, Values]
    left_out: int


def ranked(vectors: Vectors, items: Items, query: int, exclude: frozenset[Exclude], *, seed: int = 0) -> Indices:
    """Return the items that compete when item `query` is asked about, the most similar first."""
    _, order = next(_rankings(vectors, items, np.array([query]), exclude, seed))
    return order


def measure(
    vectors: Vectors,
    items: Items,
    *,
    ks: Sequence[int] = KS,
    exclude: frozenset[Exclude] = frozenset({Exclude.SAME_PATIENT}),
    queries: Indices | None = None,
    seed: int = 0,
) -> Scores:
    """Ask about the items in turn and measure the rankings.

    Parameters
    ----------
    vectors
        Unit vectors of the items, axes (n, d).
    ks
        Where the rankings are cut off, each from 1.
    exclude
        What of the query's surroundings does not compete.
    queries
        Items to ask about, axis (m,); None: all.
    seed
        Of the order among equal similarities, which is random: the order of the items must not help.

    Raises
    ------
    ValueError
        Vectors and items of different numbers, or a cut-off below 1.
    """
    asked = _checked(vectors, items, ks, queries)
    rows: list[dict[str, float]] = []
    answered: list[int] = []
    for query, order in _rankings(vectors, items, asked, exclude, seed):
        relevant = items.labels[order] == items.labels[query]
        if relevant.any():
            answered.append(query)
            rows.append(ranking_metrics(relevant, ks))
    return _scores(answered, rows, len(asked) - len(answered), ks)


def chance(
    items: Items,
    *,
    ks: Sequence[int] = KS,
    exclude: frozenset[Exclude] = frozenset({Exclude.SAME_PATIENT}),
    queries: Indices | None = None,
) -> Scores:
    """Return what rankings in random order reach on average: exact expectations, nothing is drawn.

    Parameters are those of `measure`.
    """
    asked = np.arange(len(items)) if queries is None else queries
    rows: list[dict[str, float]] = []
    answered: list[int] = []
    for query in asked.tolist():
        competing = ~items.excluded(query, exclude)
        relevant = int((competing & (items.labels == items.labels[query])).sum())
        if relevant:
            answered.append(query)
            rows.append(chance_metrics(relevant, int(competing.sum()), ks))
    return _scores(answered, rows, len(asked) - len(answered), ks)


def metric_names(ks: Sequence[int]) -> list[str]:
    """Return the names of the metrics in the order of a report."""
    return [*(f"P@{k}" for k in ks), *(f"R@{k}" for k in ks), "mAP", *(f"NDCG@{k}" for k in ks)]


def ranking_metrics(relevant: npt.NDArray[np.bool_], ks: Sequence[int]) -> dict[str, float]:
    """Return the metrics of one ranking.

    Parameters
    ----------
    relevant
        Whether each item is relevant, the best first, over the full ranking; at least one is.
    """
    ranks = np.flatnonzero(relevant) + 1
    hits = {k: int(np.searchsorted(ranks, k, side="right")) for k in ks}
    metrics = {f"P@{k}": hits[k] / k for k in ks} | {f"R@{k}": hits[k] / len(ranks) for k in ks}
    metrics["mAP"] = float(np.mean(np.arange(1, len(ranks) + 1) / ranks))
    for k in ks:
        metrics[f"NDCG@{k}"] = float(_discounts(ranks[: hits[k]]).sum() / _ideal(len(ranks), k))
    return metrics


def chance_metrics(relevant: int, competing: int, ks: Sequence[int]) -> dict[str, float]:
    """Return the expected metrics of a random order of `competing` items, `relevant` of which are relevant."""
    share = relevant / competing
    metrics = {f"P@{k}": share * min(k, competing) / k for k in ks}
    metrics |= {f"R@{k}": min(k, competing) / competing for k in ks}
    # Precision at a rank i that is relevant: (1 + (i − 1)(R − 1)/(N − 1))/i; every rank is relevant with R/N.
    ranks = np.arange(1, competing + 1)
    others = (relevant - 1) / max(1, competing - 1)
    metrics["mAP"] = float(np.mean((1 + (ranks - 1) * others) / ranks))
    for k in ks:
        metrics[f"NDCG@{k}"] = float(share * _discounts(ranks[:k]).sum() / _ideal(relevant, k))
    return metrics


def _discounts(ranks: npt.NDArray[np.integer]) -> Values:
    return np.asarray(1.0 / np.log2(ranks + 1.0), dtype=np.float64)


def _ideal(relevant: int, k: int) -> float:
    return float(_discounts(np.arange(1, min(relevant, k) + 1)).sum())


def _checked(vectors: Vectors, items: Items, ks: Sequence[int], queries: Indices | None) -> Indices:
    if len(vectors) != len(items):
        raise ValueError(f"expected a vector for each of {len(items)} items, got {len(vectors)}")
    if not ks or min(ks) < 1:
        raise ValueError(f"cut-offs count from 1, got {list(ks)}")
    return np.arange(len(items)) if queries is None else queries


def _rankings(
    vectors: Vectors, items: Items, queries: Indices, exclude: frozenset[Exclude], seed: int
) -> Iterator[tuple[int, Indices]]:
    """Yield (query, the items that compete, the most similar first)."""
    shuffled = np.random.default_rng(seed).permutation(len(items))
    mixed = vectors[shuffled].astype(np.float64)
    block = max(1, _BLOCK_CELLS // max(1, len(items)))
    for start in range(0, len(queries), block):
        # Rounded, so that equal vectors are equally similar however the product was added up.
        similar = np.round(vectors[queries[start : start + block]].astype(np.float64) @ mixed.T, 12)
        for query, row in zip(queries[start : start + block].tolist(), similar, strict=True):
            order = shuffled[np.argsort(-row, kind="stable")]
            yield query, order[~items.excluded(query, exclude)[order]]


def _scores(queries: list[int], rows: list[dict[str, float]], left_out: int, ks: Sequence[int]) -> Scores:
    values = {name: np.array([row[name] for row in rows], dtype=np.float64) for name in metric_names(ks)}
    return Scores(np.array(queries, dtype=np.intp), values, left_out)


def summarise(scores: Scores, items: Items, *, resamples: int = RESAMPLES, seed: int = 0) -> dict[str, Figure]:
    """Return each metric's mean over the queries with its interval; none when no query was answered.

    The interval is the percentile bootstrap (Efron, 1979) at 95 %. Patients are drawn, not queries: images of one
    patient resemble each other, and drawn one by one they would make the interval too narrow. The gallery stays as it
    is: the interval speaks of other queries to this archive, not of another archive.
    """
    if not len(scores.queries):
        return {}
    names = list(scores.values)
    table = np.stack([scores.values[name] for name in names], axis=1)
    _, group = np.unique(items.patients[scores.queries], return_inverse=True)
    sums = np.zeros((group.max() + 1, len(names)))
    np.add.at(sums, group, table)
    means = _resampled_means(sums, np.bincount(group).astype(np.float64), resamples, seed)
    tail = (1.0 - CONFIDENCE) / 2.0
    lows, highs = np.quantile(means, (tail, 1.0 - tail), axis=0)
    values = table.mean(axis=0)
    return {name: Figure(*map(float, ends)) for name, *ends in zip(names, values, lows, highs, strict=True)}


def _resampled_means(sums: Values, counts: Values, resamples: int, seed: int) -> Values:
    """Return the means, axes (resample, metric), over groups drawn with replacement.

    Parameters
    ----------
    sums
        Of the metrics in each group, axes (group, metric).
    counts
        Queries in each group, axis (group,).
    """
    random = np.random.default_rng(seed)
    groups = len(counts)
    means = np.empty((resamples, sums.shape[1]))
    for row in means:
        times = np.bincount(random.integers(groups, size=groups), minlength=groups)
        row[:] = (times @ sums) / (times @ counts)
    return means


def by_class(
    scores: Scores, items: Items, *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, dict[str, Figure]]:
    """Return `summarise` of the queries of each class, sorted by class."""
    labels = items.labels[scores.queries]
    found: dict[str, dict[str, Figure]] = {}
    for label in np.unique(labels).tolist():
        own = labels == label
        values = {name: value[own] for name, value in scores.values.items()}
        found[label] = summarise(Scores(scores.queries[own], values, 0), items, resamples=resamples, seed=seed)
    return found
