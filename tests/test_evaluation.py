"""Metrics against cases worked out by hand, scikit-learn and simulation; intervals against what they promise."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, ndcg_score

from index.evaluation import (
    Figure,
    Items,
    Scores,
    by_class,
    chance,
    chance_metrics,
    measure,
    metric_names,
    ranked,
    ranking_metrics,
    summarise,
)
from index.neighbours import Exclude
from index.unit_vectors import unit

NOTHING: frozenset[Exclude] = frozenset()


def items_of(labels: list[str], patients: list[str] | None = None, **owners: list[str]) -> Items:
    patients = patients or [f"P{number}" for number in range(len(labels))]
    studies = owners.get("studies", patients)
    series = owners.get("series", [f"series {number}" for number in range(len(labels))])
    return Items(*(np.array(column) for column in (labels, patients, studies, series)))


@pytest.mark.parametrize(
    ("relevant", "metrics"),
    [
        ([1, 0, 1, 0], {"P@1": 1, "P@3": 2 / 3, "R@1": 1 / 2, "R@3": 1, "mAP": (1 + 2 / 3) / 2,
                        "NDCG@1": 1, "NDCG@3": 1.5 / (1 + 1 / np.log2(3))}),
        ([0, 0, 0, 1], {"P@1": 0, "P@3": 0, "R@1": 0, "R@3": 0, "mAP": 1 / 4, "NDCG@1": 0, "NDCG@3": 0}),
        ([1, 1, 1, 1], {"P@1": 1, "P@3": 1, "R@1": 1 / 4, "R@3": 3 / 4, "mAP": 1, "NDCG@1": 1, "NDCG@3": 1}),
        ([1], {"P@1": 1, "P@3": 1 / 3, "R@1": 1, "R@3": 1, "mAP": 1, "NDCG@1": 1, "NDCG@3": 1}),
    ],
)  # fmt: skip
def test_metrics_of_a_ranking_are_those_worked_out_by_hand(relevant, metrics):
    assert ranking_metrics(np.array(relevant, dtype=bool), (1, 3)) == pytest.approx(metrics)


def test_metrics_are_those_of_scikit_learn():
    random = np.random.default_rng(5)
    for _ in range(50):
        relevant = random.random(random.integers(12, 40)) < 0.3
        relevant[random.integers(len(relevant))] = True
        falling = -np.arange(len(relevant))
        told = ranking_metrics(relevant, (1, 5, 10))
        assert told["mAP"] == pytest.approx(average_precision_score(relevant, falling))
        for k in (5, 10):
            assert told[f"NDCG@{k}"] == pytest.approx(ndcg_score([relevant], [falling], k=k))


@pytest.mark.parametrize(("relevant", "competing"), [(1, 1), (1, 5), (2, 5), (4, 6), (6, 6)])
def test_chance_is_the_mean_over_all_orders(relevant, competing):
    orders = itertools.combinations(range(competing), relevant)
    rows = [ranking_metrics(np.isin(np.arange(competing), order), (1, 3, 10)) for order in orders]
    means = {name: np.mean([row[name] for row in rows]) for name in metric_names((1, 3, 10))}
    assert chance_metrics(relevant, competing, (1, 3, 10)) == pytest.approx(means)


def test_rankings_are_those_of_the_cosines_without_the_query_itself():
    random = np.random.default_rng(2)
    vectors = unit(random.normal(size=(30, 8)))
    items = items_of(random.choice(["a", "b"], size=30).tolist())
    for query in range(30):
        expected = [index for index in np.argsort(-(vectors @ vectors[query])) if index != query]
        assert ranked(vectors, items, query, NOTHING).tolist() == expected


@pytest.mark.parametrize(
    ("exclude", "left"),
    [
        (NOTHING, {1, 2, 3, 4, 5}),
        ({Exclude.SAME_SERIES}, {2, 3, 4, 5}),
        ({Exclude.SAME_STUDY}, {3, 4, 5}),
        ({Exclude.SAME_PATIENT}, {5}),
        ({Exclude.SAME_SERIES, Exclude.SAME_PATIENT}, {5}),
    ],
)
def test_what_is_excluded_does_not_compete(exclude, left):
    items = items_of(
        ["a"] * 6,
        ["p", "p", "p", "p", "p", "q"],
        studies=["s1", "s1", "s1", "s2", "s2", "s3"],
        series=["r1", "r1", "r2", "r3", "r4", "r5"],
    )
    vectors = unit(np.random.default_rng(0).normal(size=(6, 3)))
    assert set(ranked(vectors, items, 0, frozenset(exclude)).tolist()) == left


def test_queries_without_a_relevant_item_are_left_out_and_counted():
    items = items_of(["a", "a", "b", "c", "c"], ["p", "q", "r", "s", "s"])
    vectors = unit(np.random.default_rng(0).normal(size=(5, 3)))
    for scores in (measure(vectors, items), chance(items)):
        assert scores.queries.tolist() == [0, 1]  # b is alone, both images of c are one patient's
        assert scores.left_out == 3
    everything = measure(vectors, items, exclude=NOTHING)
    assert everything.queries.tolist() == [0, 1, 3, 4]


def test_separated_classes_are_perfect_and_equal_vectors_are_chance():
    labels = ["a"] * 40 + ["b"] * 40
    items = items_of(labels)
    apart = unit(np.array([[1.0, 0.0]] * 40 + [[0.0, 1.0]] * 40))
    assert summarise(measure(apart, items, ks=(10,)), items)["mAP"] == Figure(1.0, 1.0, 1.0)
    alike = unit(np.ones((80, 2)))  # in the order of the items, which is that of the classes, it would be far better
    assert summarise(measure(alike, items), items)["mAP"].value == pytest.approx(
        summarise(chance(items), items)["mAP"].value, abs=0.03
    )


def test_random_vectors_reach_chance():
    random = np.random.default_rng(1)
    items = items_of(random.choice(["a", "b", "c"], size=400).tolist())
    figures = summarise(measure(unit(random.normal(size=(400, 256))), items), items)
    for name, expected in summarise(chance(items), items).items():
        assert figures[name].value == pytest.approx(expected.value, abs=0.03), name


def test_intervals_hold_the_truth_as_often_as_they_say():
    random = np.random.default_rng(4)
    held = 0
    for trial in range(200):
        values = {"mAP": random.beta(2.0, 3.0, size=60)}
        items = items_of(["a"] * 60)
        figure = summarise(Scores(np.arange(60), values, 0), items, resamples=400, seed=trial)["mAP"]
        held += figure.low <= 0.4 <= figure.high
    assert 180 <= held <= 199


def test_images_of_one_patient_count_together():
    """Forty copies of one query say no more than the query itself: the interval must not shrink with them."""
    values = np.random.default_rng(3).random(20)
    alone = summarise(Scores(np.arange(20), {"mAP": values}, 0), items_of(["a"] * 20))
    patients = [f"P{number}" for number in range(20) for _ in range(40)]
    copied = items_of(["a"] * 800, patients)
    together = summarise(Scores(np.arange(800), {"mAP": np.repeat(values, 40)}, 0), copied)
    assert (together["mAP"].low, together["mAP"].high) == pytest.approx((alone["mAP"].low, alone["mAP"].high))


def test_figures_are_reproducible_and_reported_by_class():
    random = np.random.default_rng(8)
    items = items_of(random.choice(["a", "b"], size=50).tolist())
    vectors = unit(random.normal(size=(50, 4)))
    scores = measure(vectors, items, ks=(1, 5))
    assert summarise(scores, items, seed=3) == summarise(scores, items, seed=3)
    classes = by_class(scores, items)
    assert list(classes) == ["a", "b"]
    sizes = [int((items.labels == label).sum()) for label in classes]
    whole = summarise(scores, items)
    for name in metric_names((1, 5)):
        weighted = np.average([figures[name].value for figures in classes.values()], weights=sizes)
        assert weighted == pytest.approx(whole[name].value)


def test_only_the_queries_asked_for_are_measured():
    items = items_of(["a"] * 6)
    vectors = unit(np.random.default_rng(0).normal(size=(6, 3)))
    assert measure(vectors, items, queries=np.array([4, 2])).queries.tolist() == [4, 2]
    assert chance(items, queries=np.array([4, 2])).queries.tolist() == [4, 2]
    assert summarise(measure(vectors, items_of(list("abcdef"))), items) == {}


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda v, i: measure(v[:2], i), "a vector for each of 3 items, got 2"),
        (lambda v, i: measure(v, i, ks=(0, 5)), "cut-offs count from 1"),
        (lambda v, i: Items(i.labels, i.patients[:1], i.studies, i.series), "one length"),
    ],
)
def test_arrays_that_do_not_belong_together_are_refused(call, said):
    items = items_of(["a"] * 3)
    with pytest.raises(ValueError, match=said):
        call(unit(np.eye(3)), items)


@pytest.mark.parametrize(("one", "other", "overlap"), [
    ((0.5, 0.4, 0.6), (0.65, 0.6, 0.7), True),
    ((0.5, 0.4, 0.6), (0.65, 0.61, 0.7), False),
    ((0.65, 0.61, 0.7), (0.5, 0.4, 0.6), False),
])  # fmt: skip
def test_intervals_overlap_when_they_share_a_value(one, other, overlap):
    assert Figure(*one).overlaps(Figure(*other)) is overlap
