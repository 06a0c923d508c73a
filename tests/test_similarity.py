"""Similar cases against a naive implementation: every aggregation, level, exclusion and filter."""

import itertools
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from index import aggregation, candidates, embeddings, pairs
from index import similarity as search_module
from index.archive import Archive
from index.bases.limits import IndexLimits
from index.errors import InvalidIdentifier, NotEmbedded, UnknownModel, UnknownQuery, WrongDimension
from index.keys import Level
from index.query import Model, Query, QueryOptions, parse_identifier
from index.similarity import (
    Aggregation,
    Exclude,
    Neighbour,
    Reference,
    SearchMode,
    Similarity,
    SimilarityRequest,
    is_reference,
    resolve_reference,
)
from index.unit_vectors import unit
from index.vectors import VectorIndex

D = 6
ROOT = "1.2.826.0.1.3680043.9.7133"
LEVELS = [Level.IMAGE, Level.SERIES, Level.STUDY]
EXCLUSIONS = [frozenset(), frozenset({Exclude.SAME_SERIES}), frozenset({Exclude.SAME_STUDY}),
              frozenset({Exclude.SAME_PATIENT}), frozenset({Exclude.SAME_SERIES, Exclude.SAME_STUDY})]  # fmt: skip


@dataclass(frozen=True)
class Frame:
    """One stored frame and everything above it."""

    patient: int
    study: str
    series: str
    sop: str
    number: int
    instance_number: int
    modality: str
    vector: Any


def instance(frame: Frame, frames: int) -> bytes:
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, frame.sop
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = frame.study, frame.series
    dataset.PatientID, dataset.PatientName = f"P{frame.patient}", f"Doe^{frame.patient}"
    dataset.StudyDate, dataset.StudyTime = f"2024010{frame.study[-1]}", "101500"
    dataset.AccessionNumber = f"Acc{frame.study.removeprefix(ROOT)}"
    dataset.Modality, dataset.InstanceNumber = frame.modality, frame.instance_number
    dataset.Rows = dataset.Columns = 8
    if frames > 1:
        dataset.NumberOfFrames = frames
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = CTImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = frame.sop
    buffer = BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def population() -> list[Frame]:
    """5 patients, 2 studies each, 2 series each, 1 to 3 instances, each third one of 2 frames; some vectors twice."""
    random = np.random.default_rng(11)
    frames: list[Frame] = []
    for patient, study, series in itertools.product(range(1, 6), (1, 2), (1, 2)):
        centre = random.normal(size=D)
        for number in range(1, 2 + (patient + study + series) % 3):
            study_uid = f"{ROOT}.{patient}.{study}"
            count = 2 if number == 3 else 1
            for frame in range(1, count + 1):
                vector = unit(centre + random.normal(scale=0.7, size=D))
                if len(frames) % 7 == 6:
                    vector = frames[-5].vector
                frames.append(
                    Frame(patient, study_uid, f"{study_uid}.{series}", f"{study_uid}.{series}.{number}",
                          0 if count == 1 else frame, number, "CT" if series == 1 else "MR", vector)
                )  # fmt: skip
    return frames


FRAMES = population()


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    archive = Archive(tmp_path_factory.mktemp("similarity"))
    embeddings.register(archive, "a-1", D)
    for _, group in itertools.groupby(FRAMES, key=lambda frame: frame.sop):
        own = list(group)
        archive.ingest(instance(own[0], len(own)))
    for series in {frame.series for frame in FRAMES}:
        own = [frame for frame in FRAMES if frame.series == series]
        embeddings.store(archive, "a-1", series, [(frame.sop, frame.number, frame.vector) for frame in own])
    return archive


@pytest.fixture(scope="module")
def similarity(archive: Archive) -> Similarity:
    return Similarity(archive)


def where(level: Level, **values: Any) -> Query:
    identifier = Dataset()
    identifier.QueryRetrieveLevel = level.value
    for keyword, value in values.items():
        setattr(identifier, keyword, value)
    return parse_identifier(identifier, Model.STUDY_ROOT, options=QueryOptions(relational=True))


def mean(frames: list[Frame]) -> np.ndarray:
    return np.float64(unit(np.mean([np.float64(frame.vector) for frame in frames], axis=0)))


def naive(
    asked: list[Frame],
    level: Level,
    how: Aggregation | None,
    exclude: frozenset[Exclude],
    keep: Callable[[Frame], bool],
) -> list[tuple[float, tuple[str, ...]]]:
    """Scores and UIDs of everything that may be answered, best first; UIDs from the study down."""
    hidden: set[str] = set()
    for frame, other in itertools.product(asked, FRAMES):
        if (
            (Exclude.SAME_SERIES in exclude and frame.series == other.series)
            or (Exclude.SAME_STUDY in exclude and frame.study == other.study)
            or (Exclude.SAME_PATIENT in exclude and frame.patient == other.patient)
        ):
            hidden.add(other.series)
    parts = [list(part) for _, part in itertools.groupby(asked, key=lambda frame: frame.series)]
    best: dict[tuple[str, ...], float] = {}
    for series in sorted({frame.series for frame in FRAMES} - hidden):
        theirs = [frame for frame in FRAMES if frame.series == series]
        if level is not Level.IMAGE and not any(keep(frame) for frame in theirs):
            continue
        for part in parts:
            if level is Level.IMAGE:
                scored = [((f.study, f.series, f.sop), mean(part) @ f.vector) for f in theirs if keep(f)]
            else:
                pairs = np.array([[np.float64(a.vector) @ b.vector for b in theirs] for a in part])
                value = {
                    Aggregation.INSTANCE: max(mean(part) @ f.vector for f in theirs),
                    Aggregation.SERIES_MEAN: mean(part) @ mean(theirs),
                    Aggregation.SERIES_MAX: pairs.max(),
                    Aggregation.LATE_INTERACTION: pairs.max(axis=1).mean(),
                    None: pairs.max(axis=1).mean(),
                }[how]
                scored = [((theirs[0].study, series)[: level.depth], value)]
            for uids, value in scored:
                best[uids] = max(best.get(uids, -2), float(value))
    return sorted(((1 + round(value, 6)) / 2, uids) for uids, value in best.items())


def by_score(pairs: list[tuple[float, tuple[str, ...]]]) -> list[tuple[float, tuple[str, ...]]]:
    return sorted(pairs, key=lambda pair: (-round(pair[0], 6), pair[1]))


def uids(neighbour: Neighbour, level: Level) -> tuple[str, ...]:
    return (neighbour.study_instance_uid, neighbour.series_instance_uid, neighbour.sop_instance_uid)[: level.depth]


SERIES_3 = f"{ROOT}.2.2.2"
"""A series with three instances, the last of which has two frames."""

QUERIES: list[tuple[dict[str, Any], Callable[[Frame], bool]]] = [
    ({"sop_instance_uid": f"{ROOT}.1.1.1.1"}, lambda frame: frame.sop == f"{ROOT}.1.1.1.1"),
    ({"sop_instance_uid": f"{ROOT}.3.1.1.3"}, lambda frame: frame.sop == f"{ROOT}.3.1.1.3"),
    ({"sop_instance_uid": f"{ROOT}.3.1.1.3", "frame_number": 2},
     lambda frame: frame.sop == f"{ROOT}.3.1.1.3" and frame.number == 2),
    ({"series_instance_uid": f"{ROOT}.2.1.2"}, lambda frame: frame.series == f"{ROOT}.2.1.2"),
    ({"study_instance_uid": f"{ROOT}.4.2"}, lambda frame: frame.study == f"{ROOT}.4.2"),
]  # fmt: skip

FILTERS: list[tuple[Query | None, Callable[[Frame], bool]]] = [
    (None, lambda frame: True),
    (where(Level.SERIES, Modality="MR"), lambda frame: frame.modality == "MR"),
    (where(Level.IMAGE, InstanceNumber=2), lambda frame: frame.instance_number == 2),
    (where(Level.STUDY, AccessionNumber="Acc.5.1"), lambda frame: frame.study == f"{ROOT}.5.1"),
]


@pytest.mark.parametrize("query", range(len(QUERIES)))
@pytest.mark.parametrize(
    ("level", "how"), [(Level.IMAGE, Aggregation.INSTANCE), *itertools.product(LEVELS[1:], [*Aggregation, None])]
)
def test_neighbours_are_those_of_the_naive_implementation(
    similarity: Similarity, query: int, level: Level, how: Aggregation | None
) -> None:
    named, is_asked = QUERIES[query]
    asked = [frame for frame in FRAMES if is_asked(frame)]
    assert asked
    for exclude, (query_filter, keep) in itertools.product(EXCLUSIONS, FILTERS):
        expected = by_score(naive(asked, level, how, exclude, keep))
        for k in (1, 4, 500):
            request = SimilarityRequest(
                level=level, aggregation=how, exclude=exclude, filter=query_filter, k=k, **named
            )
            answer = similarity.search(request)
            found = [(neighbour.score, uids(neighbour, level)) for neighbour in answer.neighbours]
            assert [pair[1] for pair in found] == [pair[1] for pair in expected[:k]], (exclude, query_filter, k)
            np.testing.assert_allclose([pair[0] for pair in found], [pair[0] for pair in expected[:k]], atol=1e-5)


def test_answer_says_how_it_was_found(similarity: Similarity) -> None:
    sop = f"{ROOT}.1.1.1.1"
    answer = similarity.search(SimilarityRequest(level=Level.IMAGE, sop_instance_uid=sop, k=3))
    own = sum(frame.series == f"{ROOT}.1.1.1" for frame in FRAMES)
    assert (answer.model_id, answer.mode, answer.estimated_recall) == ("a-1", SearchMode.EXACT, 1.0)
    assert answer.index_size == len(FRAMES) - own
    assert [neighbour.rank for neighbour in answer.neighbours] == [1, 2, 3]
    first = answer.neighbours[0]
    cosine = 2 * first.score - 1
    assert first.distance == pytest.approx(np.sqrt(2 - 2 * cosine))
    assert first.patient_id == f"P{first.study_instance_uid.removeprefix(ROOT + '.')[0]}"
    filtered = similarity.search(
        SimilarityRequest(level=Level.SERIES, sop_instance_uid=sop, filter=where(Level.SERIES, Modality="MR"))
    )
    assert filtered.index_size == sum(frame.modality == "MR" for frame in FRAMES)
    assert len(filtered.neighbours) == 10


def test_identical_scores_exactly_one_and_names_the_frame(similarity: Similarity) -> None:
    sop = f"{ROOT}.3.1.1.3"
    request = SimilarityRequest(level=Level.IMAGE, sop_instance_uid=sop, frame_number=2, exclude=frozenset(), k=1)
    (itself,) = similarity.search(request).neighbours
    assert (itself.sop_instance_uid, itself.frame, itself.score, itself.distance) == (sop, 2, 1.0, 0.0)
    series = similarity.search(replace(request, level=Level.SERIES, aggregation=Aggregation.SERIES_MAX)).neighbours[0]
    assert (series.sop_instance_uid, series.frame, series.score) == (sop, 2, 1.0)
    whole = SimilarityRequest(level=Level.SERIES, series_instance_uid=SERIES_3, exclude=frozenset(), k=1,
                              aggregation=Aggregation.SERIES_MEAN)  # fmt: skip
    (mean_of_it,) = similarity.search(whole).neighbours
    assert (mean_of_it.series_instance_uid, mean_of_it.score) == (SERIES_3, 1.0)
    assert (mean_of_it.sop_instance_uid, mean_of_it.frame) == ("", 0)


def test_the_first_frame_of_a_single_frame_instance_can_be_asked(similarity: Similarity) -> None:
    sop = f"{ROOT}.1.1.1.1"
    whole = similarity.search(SimilarityRequest(level=Level.IMAGE, sop_instance_uid=sop))
    assert similarity.search(SimilarityRequest(level=Level.IMAGE, sop_instance_uid=sop, frame_number=1)) == whole


def test_vector_may_have_any_length(similarity: Similarity) -> None:
    frame = FRAMES[20]
    request = SimilarityRequest(level=Level.IMAGE, vector=np.asarray(frame.vector) * 3, k=5)
    answer = similarity.search(request)
    assert answer.index_size == len(FRAMES)
    assert frame.sop in [neighbour.sop_instance_uid for neighbour in answer.neighbours if neighbour.score == 1.0]


def test_equal_scores_rank_by_uid_whatever_k_is(similarity: Similarity) -> None:
    twice = [frame for frame in FRAMES if sum(np.array_equal(frame.vector, other.vector) for other in FRAMES) > 1]
    assert twice
    for frame in twice:
        request = SimilarityRequest(level=Level.IMAGE, vector=frame.vector, k=500)
        everything = similarity.search(request).neighbours
        for k in (1, 2, 3):
            assert similarity.search(replace(request, k=k)).neighbours == everything[:k]


def test_a_series_hidden_behind_frames_of_a_better_one_is_still_found(tmp_path: Path) -> None:
    archive = Archive(tmp_path)
    embeddings.register(archive, "a-1", 3)
    asked = {f"{ROOT}.1.1.1": [(1.0, 0.0)], f"{ROOT}.1.1.2": [(0.0, 1.0)]}
    stored = {**asked, f"{ROOT}.2.1.1": [(0.9, 0.0), (0.89, 0.0), (0.885, 0.0)], f"{ROOT}.3.1.1": [(0.88, 0.0)],
              f"{ROOT}.4.1.1": [(0.0, 0.5), (0.0, 0.45)], f"{ROOT}.5.1.1": [(0.0, 0.4)]}  # fmt: skip
    for series, cosines in stored.items():
        study = series.rpartition(".")[0]
        rows = []
        for number, (first, second) in enumerate(cosines, 1):
            vector = np.array([first, second, np.sqrt(1 - first**2 - second**2)])
            frame = Frame(int(study[-3]), study, series, f"{series}.{number}", 0, number, "CT", vector)
            archive.ingest(instance(frame, 1))
            rows.append((frame.sop, 0, vector))
        embeddings.store(archive, "a-1", series, rows)
    request = SimilarityRequest(
        level=Level.SERIES, study_instance_uid=f"{ROOT}.1.1", aggregation=Aggregation.INSTANCE, k=2
    )
    found = [neighbour.series_instance_uid for neighbour in Similarity(archive).search(request).neighbours]
    assert found == [f"{ROOT}.2.1.1", f"{ROOT}.3.1.1"]


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> tuple[Archive, dict[str, np.ndarray]]:
    """60 series of 1 to 6 frames in 30 studies, and their vectors."""
    archive = Archive(tmp_path_factory.mktemp("crowd"))
    embeddings.register(archive, "a-1", D)
    random = np.random.default_rng(3)
    stored = {}
    for number in range(60):
        study = f"{ROOT}.{1000 + number // 2}"
        series = f"{study}.{number % 2 + 1}"
        vectors = unit(random.normal(size=D) + random.normal(scale=0.8, size=(1 + number % 6, D)))
        own = [Frame(number, study, series, f"{series}.{index}", 0, index, "CT", vector)
               for index, vector in enumerate(vectors, 1)]  # fmt: skip
        for frame in own:
            archive.ingest(instance(frame, 1))
        embeddings.store(archive, "a-1", series, [(frame.sop, 0, frame.vector) for frame in own])
        stored[series] = vectors
    return archive, stored


def late_interaction(asked: np.ndarray, vectors: np.ndarray) -> float:
    return float((np.float64(asked) @ np.float64(vectors).T).max(axis=1).mean())


FEW = IndexLimits(exact_up_to=0)
"""However few frames compete, those of a shortlist alone are compared."""


def best_values(asked: list[np.ndarray], stored: dict[str, np.ndarray], level: Level) -> dict[str, float]:
    """Late interaction of the parts that are asked about with every entity at `level`, best first."""
    best: dict[str, float] = {}
    for series, vectors in stored.items():
        entity = series if level is Level.SERIES else series.rpartition(".")[0]
        value = max(late_interaction(part, vectors) for part in asked)
        best[entity] = max(best.get(entity, -1.0), value)
    return dict(sorted(best.items(), key=lambda item: -item[1]))


@pytest.mark.parametrize("limits", [None, FEW], ids=["few frames", "many frames"])
@pytest.mark.parametrize("mode", [None, *SearchMode])
@pytest.mark.parametrize("level", [Level.SERIES, Level.STUDY])
@pytest.mark.parametrize(("shortlist", "k"), [(1, 1), (5, 3), (3, 12), (1, 500)])
def test_the_default_says_how_much_of_late_interaction_it_finds(
    crowd: tuple[Archive, dict[str, np.ndarray]],
    limits: IndexLimits | None, mode: SearchMode | None, level: Level, shortlist: int, k: int,
) -> None:  # fmt: skip
    archive, stored = crowd
    searcher = Similarity(archive, shortlist=shortlist, limits=limits)
    for asked in list(stored)[::7]:
        others = {series: vectors for series, vectors in stored.items() if series != asked}
        true = best_values([stored[asked]], others, level)
        answer = searcher.search(SimilarityRequest(level=level, series_instance_uid=asked, k=k, mode=mode))
        found = [uids(neighbour, level)[-1] for neighbour in answer.neighbours]
        assert len(set(found)) == len(found) == min(k, len(true))
        share = len(set(found) & set(list(true)[:k])) / len(found)
        assert answer.index_size == sum(map(len, others.values()))
        if mode is SearchMode.EXACT or (mode is None and limits is None) or len(stored[asked]) == 1:
            assert answer.mode is SearchMode.EXACT
        if answer.mode is SearchMode.EXACT:
            assert (found, answer.estimated_recall) == (list(true)[:k], 1.0)
        else:
            assert answer.estimated_recall is None or 0.0 < answer.estimated_recall <= share
        if level is Level.SERIES:  # a study ranks by the best of its series that were compared
            np.testing.assert_allclose([2 * neighbour.score - 1 for neighbour in answer.neighbours],
                                       [true[uid] for uid in found], atol=1e-6)  # fmt: skip


def test_a_shortlist_may_be_proved_in_part(crowd: tuple[Archive, dict[str, np.ndarray]]) -> None:
    archive, stored = crowd
    searcher = Similarity(archive, shortlist=10, limits=FEW)
    answers = [searcher.search(SimilarityRequest(level=Level.SERIES, series_instance_uid=series, k=10))
               for series in stored]  # fmt: skip
    told = {(answer.mode, answer.estimated_recall) for answer in answers}
    assert (SearchMode.EXACT, 1.0) in told
    assert any(mode is SearchMode.APPROX and recall is not None and recall < 1.0 for mode, recall in told)


@pytest.mark.parametrize("limits", [None, FEW], ids=["few frames", "many frames"])
@pytest.mark.parametrize("mode", [None, SearchMode.EXACT])
@pytest.mark.parametrize("level", [Level.SERIES, Level.STUDY])
def test_a_series_with_the_very_same_slice_is_found_first(
    crowd: tuple[Archive, dict[str, np.ndarray]], limits: IndexLimits | None, mode: SearchMode | None, level: Level
) -> None:
    archive, stored = crowd
    searcher = Similarity(archive, shortlist=1, limits=limits)
    for series, vectors in stored.items():
        answer = searcher.search(SimilarityRequest(level=level, vector=vectors[-1], k=1, mode=mode))
        (first,) = answer.neighbours
        assert (first.series_instance_uid, first.score) == (series, 1.0)
        assert first.sop_instance_uid == f"{series}.{len(vectors)}"
        assert (answer.mode, answer.estimated_recall) == (SearchMode.EXACT, 1.0)


def test_only_some_frames_of_a_long_example_are_looked_for(
    crowd: tuple[Archive, dict[str, np.ndarray]], monkeypatch: pytest.MonkeyPatch
) -> None:
    archive, stored = crowd
    monkeypatch.setattr(aggregation, "_ASKED_FRAMES", 2)
    asked = max(stored, key=lambda series: len(stored[series]))
    others = {series: vectors for series, vectors in stored.items() if series != asked}
    true = list(best_values([stored[asked]], others, Level.SERIES))
    for k in (1, 5, 59):
        request = SimilarityRequest(level=Level.SERIES, series_instance_uid=asked, k=k)
        answer = Similarity(archive, shortlist=1, limits=FEW).search(request)
        found = [neighbour.series_instance_uid for neighbour in answer.neighbours]
        share = len(set(found) & set(true[:k])) / k
        assert len(found) == k
        assert (answer.estimated_recall or 0.0) <= share


@pytest.mark.parametrize("how", [Aggregation.SERIES_MAX, Aggregation.LATE_INTERACTION])
@pytest.mark.parametrize("level", [Level.SERIES, Level.STUDY])
def test_pairs_are_compared_in_blocks_of_any_size(
    crowd: tuple[Archive, dict[str, np.ndarray]], monkeypatch: pytest.MonkeyPatch, level: Level, how: Aggregation
) -> None:
    archive, stored = crowd
    requests = [SimilarityRequest(level=level, series_instance_uid=list(stored)[11], aggregation=how, k=k)
                for k in (1, 5, 500)]  # fmt: skip
    expected = [Similarity(archive).search(request) for request in requests]
    for block, series, few in ((1, 1, 0), (7, 2, 0), (7, 1000, 5000)):
        monkeypatch.setattr(pairs, "_BLOCK", block)
        monkeypatch.setattr(pairs, "_SERIES", series)
        monkeypatch.setattr(pairs, "_FEW", few)
        assert [Similarity(archive).search(request) for request in requests] == expected


def test_a_shortlist_of_studies_never_answers_too_few(crowd: tuple[Archive, dict[str, np.ndarray]]) -> None:
    archive, stored = crowd
    for k in (1, 7, 29, 500):
        request = SimilarityRequest(level=Level.STUDY, series_instance_uid=next(iter(stored)), k=k)
        found = Similarity(archive, shortlist=2, limits=FEW).search(request).neighbours
        assert len({neighbour.study_instance_uid for neighbour in found}) == len(found) == min(k, 30)


def test_a_vector_asks_for_series_as_a_series_of_one_frame_would(
    crowd: tuple[Archive, dict[str, np.ndarray]]
) -> None:
    archive, stored = crowd
    vector = stored[f"{ROOT}.1001.1"][0]
    values = {series: float(np.max(np.float64(vectors) @ vector)) for series, vectors in stored.items()}
    answer = Similarity(archive).search(SimilarityRequest(level=Level.SERIES, vector=vector, k=60))
    assert [n.series_instance_uid for n in answer.neighbours] == sorted(values, key=lambda series: -values[series])
    first = answer.neighbours[0]
    assert (first.series_instance_uid, first.sop_instance_uid, first.score) == (
        f"{ROOT}.1001.1", f"{ROOT}.1001.1.1", 1.0)  # fmt: skip


def test_minimum_score_cuts_the_tail(similarity: Similarity) -> None:
    request = SimilarityRequest(level=Level.SERIES, sop_instance_uid=f"{ROOT}.1.1.1.1", k=500)
    everything = similarity.search(request).neighbours
    limit = everything[3].score
    assert similarity.search(replace(request, minimum_score=limit)).neighbours == everything[:4]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "got 0"),
        ({"sop_instance_uid": "1.2", "series_instance_uid": "1.3"}, "got 2"),
        ({"study_instance_uid": "1.2", "vector": np.ones(D)}, "got 2"),
        ({"series_instance_uid": "1.2", "frame_number": 1}, "needs its query instance"),
        ({"sop_instance_uid": "1.2", "frame_number": 0}, "count from 1"),
        ({"sop_instance_uid": "1.2", "k": 0}, "1 to 500"),
        ({"sop_instance_uid": "1.2", "k": 501}, "1 to 500"),
        ({"sop_instance_uid": "1.2", "minimum_score": 1.5}, "0 to 1"),
        ({"sop_instance_uid": "1.2", "minimum_score": float("nan")}, "0 to 1"),
        ({"sop_instance_uid": "1.2", "level": Level.PATIENT}, "not PATIENT"),
        ({"sop_instance_uid": "1.2", "aggregation": Aggregation.SERIES_MEAN}, "ranks series"),
        ({"sop_instance_uid": "1.2", "region": (0, 0, 8, 0)}, "width and height"),
        ({"sop_instance_uid": "1.2", "region": (-1, 0, 8, 8)}, "width and height"),
        ({"sop_instance_uid": "1.2", "region": (0, 0, 8)}, "width and height"),
        ({"series_instance_uid": "1.2", "region": (0, 0, 8, 8)}, "needs its query instance"),
    ],
)
def test_bad_requests_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidIdentifier, match=message):
        SimilarityRequest(**{"level": Level.IMAGE, **values})


def test_terms_are_parsed() -> None:
    assert Aggregation.parse("SERIES_MAX ") is Aggregation.SERIES_MAX
    with pytest.raises(InvalidIdentifier, match="SAME_SERIES, SAME_STUDY, SAME_PATIENT"):
        Exclude.parse("OTHERS")


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({"sop_instance_uid": "1.2.3"}, UnknownQuery),
        ({"series_instance_uid": "1.2.3"}, UnknownQuery),
        ({"study_instance_uid": "1.2.3"}, UnknownQuery),
        ({"sop_instance_uid": f"{ROOT}.1.1.1.1", "model_id": "b-1"}, UnknownModel),
        ({"vector": np.ones(D + 1)}, WrongDimension),
        ({"vector": np.zeros(D)}, InvalidIdentifier),
        ({"sop_instance_uid": f"{ROOT}.3.1.1.3", "frame_number": 3}, InvalidIdentifier),
        ({"sop_instance_uid": f"{ROOT}.1.1.1.1", "frame_number": 2}, InvalidIdentifier),
    ],
)
def test_what_cannot_be_asked_about(similarity: Similarity, values: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        similarity.search(SimilarityRequest(level=Level.IMAGE, **values))


def test_before_anything_is_embedded(tmp_path: Path) -> None:
    archive = Archive(tmp_path)
    archive.ingest(instance(FRAMES[0], 1))
    archive.ingest(instance(FRAMES[1], 2))
    similarity = Similarity(archive)
    known = SimilarityRequest(level=Level.IMAGE, sop_instance_uid=FRAMES[0].sop)
    with pytest.raises(NotEmbedded):
        similarity.search(known)
    with pytest.raises(UnknownQuery):
        similarity.search(replace(known, sop_instance_uid="1.2.3"))
    with pytest.raises(UnknownModel):
        similarity.search(SimilarityRequest(level=Level.IMAGE, vector=np.ones(D)))
    embeddings.register(archive, "a-1", D)
    with pytest.raises(NotEmbedded):
        similarity.search(known)
    embeddings.store(archive, "a-1", FRAMES[1].series, [(FRAMES[1].sop, 2, FRAMES[1].vector)])
    with pytest.raises(NotEmbedded, match="frame 1"):
        similarity.search(replace(known, sop_instance_uid=FRAMES[1].sop, frame_number=1))
    assert similarity.search(SimilarityRequest(level=Level.IMAGE, vector=np.ones(D))).index_size == 1


def test_rows_of_another_process_are_found_and_deleted_ones_are_not(tmp_path: Path) -> None:
    mine, theirs = Archive(tmp_path), Archive(tmp_path)
    embeddings.register(theirs, "a-1", D)
    similarity = Similarity(mine)
    request = SimilarityRequest(level=Level.SERIES, vector=FRAMES[0].vector)
    assert similarity.search(request).neighbours == ()
    chosen = [next(group) for _, group in itertools.groupby(FRAMES, key=lambda frame: frame.series)][:4]
    for count, frame in enumerate(chosen, 1):
        theirs.ingest(instance(frame, 1))
        embeddings.store(theirs, "a-1", frame.series, [(frame.sop, 0, frame.vector)])
        assert len(similarity.search(request).neighbours) == count
    theirs.delete(Level.SERIES, chosen[0].series)
    left = similarity.search(request)
    assert sorted(neighbour.series_instance_uid for neighbour in left.neighbours) == [f.series for f in chosen[1:]]
    assert left.index_size == 3


@pytest.mark.parametrize("mode", [None, SearchMode.APPROX])
def test_indexes_of_frames_and_of_series_are_of_one_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: SearchMode | None
) -> None:
    """Others who search meanwhile bring one of the two indexes further; this search must not see that."""
    archive = Archive(tmp_path)
    embeddings.register(archive, "a-1", D)
    chosen = [next(group) for _, group in itertools.groupby(FRAMES, key=lambda frame: frame.series)][:4]
    for frame in chosen:
        archive.ingest(instance(frame, 1))
        embeddings.store(archive, "a-1", frame.series, [(frame.sop, 0, frame.vector)])
    searcher = Similarity(archive)
    request = SimilarityRequest(level=Level.SERIES, series_instance_uid=chosen[0].series, mode=mode)
    expected = searcher.search(request)
    others: list[threading.Thread] = []
    refresh = VectorIndex.refresh

    def interrupted(index: VectorIndex) -> None:
        refresh(index)
        if not others:
            by_mean = replace(request, aggregation=Aggregation.SERIES_MEAN)
            embeddings.store(Archive(tmp_path), "a-1", chosen[0].series, [(chosen[0].sop, 0, chosen[0].vector)])
            others.append(threading.Thread(target=searcher.search, args=(by_mean,)))
            others[0].start()
            others[0].join(0.5)

    with monkeypatch.context() as patched:
        patched.setattr(VectorIndex, "refresh", interrupted)
        assert searcher.search(request) == expected
    others[0].join()
    assert searcher.search(request) == expected


MOMENTS = [(VectorIndex, "refresh"), (search_module, "find_example"), (candidates, "select")]


@pytest.mark.parametrize("how", [*Aggregation, None])
@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize(("place", "name"), MOMENTS, ids=[name for _, name in MOMENTS])
def test_a_series_that_is_embedded_anew_during_the_search_stays_excluded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: Any, name: str, before: bool, how: Aggregation
) -> None:
    mine, theirs = Archive(tmp_path), Archive(tmp_path)
    embeddings.register(mine, "a-1", D)
    chosen = [next(group) for _, group in itertools.groupby(FRAMES, key=lambda frame: frame.series)][:4]
    for frame in chosen:
        mine.ingest(instance(frame, 1))
        embeddings.store(mine, "a-1", frame.series, [(frame.sop, 0, frame.vector)])
    searcher = Similarity(mine)
    request = SimilarityRequest(level=Level.SERIES, series_instance_uid=chosen[0].series, aggregation=how, k=3)
    expected = searcher.search(request)
    assert sorted(n.series_instance_uid for n in expected.neighbours) == sorted(f.series for f in chosen[1:])
    done = getattr(place, name)

    def interrupted(*arguments: Any) -> Any:
        if before:
            embed_anew()
        result = done(*arguments)
        if not before:
            embed_anew()
        return result

    def embed_anew() -> None:
        for frame in chosen[:2]:
            embeddings.store(theirs, "a-1", frame.series, [(frame.sop, 0, frame.vector)])

    with monkeypatch.context() as patched:
        patched.setattr(place, name, interrupted)
        assert searcher.search(request) == expected
    assert searcher.search(request) == expected


@pytest.mark.parametrize("limits", [None, FEW], ids=["few frames", "many frames"])
@pytest.mark.parametrize("left_by_an_older_version", [False, True])
def test_a_series_whose_embedded_frames_were_deleted_does_not_compete(
    tmp_path: Path, limits: IndexLimits | None, left_by_an_older_version: bool
) -> None:
    archive = Archive(tmp_path)
    embeddings.register(archive, "a-1", D)
    first = next(frame for frame in FRAMES if frame.series == SERIES_3)
    own = [first, replace(first, sop=f"{SERIES_3}.98", vector=FRAMES[0].vector)]
    gone = next(frame for frame in FRAMES if frame.series != SERIES_3)
    other = replace(gone, sop=f"{gone.series}.99", vector=None)
    for frame, frames in ((own[0], 1), (own[1], 1), (gone, 1), (other, 1)):
        archive.ingest(instance(frame, frames))
    embeddings.store(archive, "a-1", SERIES_3, [(frame.sop, 0, frame.vector) for frame in own])
    embeddings.store(archive, "a-1", gone.series, [(gone.sop, 0, gone.vector)])
    request = SimilarityRequest(level=Level.SERIES, series_instance_uid=SERIES_3)
    assert len(Similarity(archive, limits=limits).search(request).neighbours) == 1
    whole = archive.database.execute(
        "SELECT model_id, series, vector FROM embedding JOIN series ON series.id = series "
        "WHERE instance IS NULL AND series_instance_uid = ?", (gone.series,)
    ).fetchall()  # fmt: skip
    archive.delete(Level.IMAGE, gone.sop)
    rows = "SELECT count(*) FROM embedding JOIN series ON series.id = series WHERE series_instance_uid = ?"
    assert archive.database.execute(rows, (gone.series,)).fetchone() == (0,)
    if left_by_an_older_version:
        with archive.transaction() as database:
            database.conn.executemany("INSERT INTO embedding (model_id, series, vector) VALUES (?, ?, ?)", whole)
    assert Similarity(archive, limits=limits).search(request).neighbours == ()


def test_the_vector_of_a_series_stays_as_long_as_one_of_its_frames(tmp_path: Path) -> None:
    archive = Archive(tmp_path)
    embeddings.register(archive, "a-1", D)
    first = next(frame for frame in FRAMES if frame.series == SERIES_3)
    own = [first, replace(first, sop=f"{SERIES_3}.98", vector=FRAMES[0].vector)]
    for frame in own:
        archive.ingest(instance(frame, 1))
    embeddings.store(archive, "a-1", SERIES_3, [(frame.sop, 0, frame.vector) for frame in own])
    archive.delete(Level.IMAGE, own[0].sop)
    whole = "SELECT count(*) FROM embedding WHERE instance IS NULL"
    assert archive.database.execute(whole).fetchone() == (1,)


def test_models_never_meet(tmp_path: Path) -> None:
    archive = Archive(tmp_path)
    embeddings.register(archive, "a-1", D)
    embeddings.register(archive, "b-1", 2)
    first, second = FRAMES[0], next(frame for frame in FRAMES if frame.study != FRAMES[0].study)
    for frame in (first, second):
        archive.ingest(instance(frame, 1))
        embeddings.store(archive, "a-1", frame.series, [(frame.sop, 0, frame.vector)])
    embeddings.store(archive, "b-1", second.series, [(second.sop, 0, np.array([0.0, 1.0]))])
    similarity = Similarity(archive)
    request = SimilarityRequest(level=Level.IMAGE, sop_instance_uid=second.sop, exclude=frozenset())
    assert len(similarity.search(request).neighbours) == 2
    old = similarity.search(replace(request, model_id="b-1"))
    assert (old.model_id, [n.sop_instance_uid for n in old.neighbours]) == ("b-1", [second.sop])
    embeddings.activate(archive, "b-1")
    assert similarity.search(request).model_id == "b-1"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("~acc.4.2", Reference(study_instance_uid=f"{ROOT}.4.2")),
        ("SIM:ACC.4.2", Reference(study_instance_uid=f"{ROOT}.4.2")),
        ("sim:Acc.4.2:k=10", Reference(study_instance_uid=f"{ROOT}.4.2", k=10)),
        ("*~p3*", Reference(study_instance_uid=f"{ROOT}.3.2")),
        ("~*P3*", Reference(study_instance_uid=f"{ROOT}.3.2")),
        ("*SIM:P3:K=500*", Reference(study_instance_uid=f"{ROOT}.3.2", k=500)),
        ("P3", Reference(study_instance_uid=f"{ROOT}.3.2")),
        (f"~{ROOT}.4.2 ", Reference(study_instance_uid=f"{ROOT}.4.2")),
        (f"~{ROOT}.4.2.1", Reference(series_instance_uid=f"{ROOT}.4.2.1")),
        (f"~{ROOT}.4.2.1.1:k=1", Reference(sop_instance_uid=f"{ROOT}.4.2.1.1", k=1)),
        ("~", Reference()),
        ("*~*", Reference()),
        ("SIM::k=3", Reference(k=3)),
        ("*~:k=3*", Reference(k=3)),
    ],
)
def test_references(archive: Archive, value: str, expected: Reference) -> None:
    assert resolve_reference(archive, value) == expected


@pytest.mark.parametrize(
    ("value", "error"),
    [
        ("~:k=0", InvalidIdentifier),
        ("~P3:k=0", InvalidIdentifier),
        ("~P3:k=501", InvalidIdentifier),
        ("~P3:k=ten", InvalidIdentifier),
        ("~P3:n=4", InvalidIdentifier),
        ("~nobody", UnknownQuery),
        ("~1.2.3.4", UnknownQuery),
        ("~P_", UnknownQuery),
    ],
)
def test_references_to_nothing(archive: Archive, value: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        resolve_reference(archive, value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [("~P3", True), ("*~P3*", True), ("sim:P3", True), ("SIMON", False), ("P~3", False), ("*", False), ("", False)],
)
def test_what_is_a_reference(value: str, expected: bool) -> None:
    assert is_reference(value) is expected


@pytest.mark.parametrize("missing", ["", None])
def test_a_study_without_patient_id_stands_for_a_patient_of_its_own(
    tmp_path: Path, make_file: Callable[..., Path], missing: str | None
) -> None:
    """Anonymised: three studies of nobody, the first one of two series; their patients are one row of the catalogue."""
    archive = Archive(tmp_path / "data", settle_time_s=0.0)
    embeddings.register(archive, "a-1", 2)
    for number, study in enumerate((0, 0, 1, 2), start=1):
        series = f"{ROOT}.2.{number}"
        archive.ingest(make_file(
            number, StudyInstanceUID=f"{ROOT}.1.{study}", SeriesInstanceUID=series, PatientID=missing,
            PatientName=missing,
        ))  # fmt: skip
        vector = np.array([1.0, 0.1 * number], np.float32)
        embeddings.store(archive, "a-1", series, [(f"{ROOT}.9.{number}", 0, vector)])
    assert archive.database.execute("SELECT count(*) FROM patient").fetchone() == (1,)
    answer = Similarity(archive).search(SimilarityRequest(
        level=Level.SERIES, series_instance_uid=f"{ROOT}.2.1", exclude=frozenset({Exclude.SAME_PATIENT})
    ))  # fmt: skip
    found = {neighbour.series_instance_uid for neighbour in answer.neighbours}
    assert found == {f"{ROOT}.2.3", f"{ROOT}.2.4"}


def test_indexes_of_forgotten_models_are_given_up(tmp_path: Path) -> None:
    archive = Archive(tmp_path)
    archive.ingest(instance(FRAMES[0], 1))
    searcher = Similarity(archive)
    for model in ("a-1", "b-1", "c-1"):
        embeddings.register(archive, model, D)
        embeddings.store(archive, model, FRAMES[0].series, [(FRAMES[0].sop, 0, FRAMES[0].vector)])
        previous = embeddings.active_model(archive)
        embeddings.activate(archive, model)
        if previous is not None and previous.model_id != model:
            embeddings.forget(archive, previous.model_id)
        searcher.search(SimilarityRequest(level=Level.IMAGE, vector=FRAMES[0].vector))
    assert {model for model, _ in searcher._indexes} == {"c-1"}
