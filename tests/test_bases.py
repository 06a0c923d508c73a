"""Saved indexes: recall that was promised, answers that are exact where they have to be, files that may be lost."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from config.settings import load_settings
from index import scrub
from index import vectors as vectors_module
from index.archive import Archive
from index.bases import building, files, rows, tuning
from index.bases.approximate import Growing
from index.bases.files import BaseUnusable
from index.bases.limits import IndexLimits, Kind
from index.jobs import Job
from index.keys import Level
from index.neighbours import SearchMode
from index.similarity import Similarity, SimilarityRequest
from index.unit_vectors import unit
from index.vectors import Grain, Selection, VectorIndex
from plugins import indexing
from plugins.node import Interrupted, Task

D, COUNT, MODEL = 16, 3000, "a-1"
SERIES, UID = "1.2.826.0.1.3680043.9.7133.2", "1.2.826.0.1.3680043.9.7133.9.1"
LIMITS = {
    Kind.FLAT: IndexLimits(save_from=1),
    Kind.HNSW: IndexLimits(save_from=1, exact_up_to=0, hnsw_up_to=10**6, target_recall=0.9),
    Kind.IVF4: IndexLimits(save_from=1, exact_up_to=0, hnsw_up_to=0, target_recall=0.9),
    Kind.IVF: IndexLimits(save_from=1, exact_up_to=0, hnsw_up_to=0, target_recall=0.9),
    Kind.IVFPQ: IndexLimits(save_from=1, exact_up_to=0, hnsw_up_to=0, ivf_up_to=0, target_recall=0.9),
}
HNSW = LIMITS[Kind.HNSW]


def clustered(count: int, seed: int = 0) -> np.ndarray:
    """Points around fifty places: those of one place are near each other."""
    places = np.random.default_rng(0).normal(size=(50, D))
    random = np.random.default_rng(seed)
    return unit(places[random.integers(50, size=count)] + 0.5 * random.normal(size=(count, D)))


VECTORS = clustered(COUNT)
QUERIES = clustered(60, seed=1)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with one series of one image, whose frames are VECTORS."""
    archive = Archive(tmp_path_factory.mktemp("stored"))
    with archive.transaction() as database:
        database.execute("INSERT INTO encoder (model_id, dimension, active, at) VALUES (?, ?, 1, '')", (MODEL, D))
        database.execute("INSERT INTO patient (id, identity, patient_id) VALUES (1, 'P', 'P')")
        database.execute("INSERT INTO study (id, patient, study_instance_uid) VALUES (1, 1, '1.2.3')")
        database.execute("INSERT INTO series (id, study, series_instance_uid) VALUES (1, 1, '1.2.3.4')")
        database.execute(
            "INSERT INTO instance (id, series, sop_instance_uid, transfer_syntax_uid, path, size, sha256, received_at) "
            "VALUES (1, 1, '1.2.3.4.5', '', '', 0, '', '')"
        )
        add(database, VECTORS)
    archive.close()
    return archive.data


def add(database: Any, vectors: np.ndarray) -> None:
    (first,) = database.execute("SELECT coalesce(max(frame), 0) FROM embedding").fetchone()
    for frame, vector in enumerate(vectors, first + 1):
        database.execute(
            "INSERT INTO embedding (model_id, series, instance, frame, vector) VALUES (?, 1, 1, ?, ?)",
            (MODEL, frame, vector.astype("<f4").tobytes()),
        )


@pytest.fixture(scope="module")
def built(stored: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[Kind, Path]:
    """The same with a base of each kind."""
    folders = {}
    for kind, limits in LIMITS.items():
        folder = tmp_path_factory.mktemp(kind.value.lower()) / "data"
        shutil.copytree(stored, folder)
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(building._NEXT, limits.kind(COUNT), (kind,))  # no other one in its place
            made = build(Archive(folder), limits)
        assert made is not None
        assert made.kind is kind
        folders[kind] = folder
    return folders


@pytest.fixture(params=list(Kind), ids=str)
def kind(request: pytest.FixtureRequest) -> Kind:
    return request.param


@pytest.fixture
def archive(built: dict[Kind, Path], kind: Kind, tmp_path: Path) -> Archive:
    """One archive of each kind to change at will."""
    return copied(built[kind], tmp_path)


@pytest.fixture
def hnsw(built: dict[Kind, Path], tmp_path: Path) -> Archive:
    return copied(built[Kind.HNSW], tmp_path)


def copied(folder: Path, tmp_path: Path) -> Archive:
    shutil.copytree(folder, tmp_path / "data")
    return Archive(tmp_path / "data")


def build(archive: Archive, limits: IndexLimits, progress: Callable[[float], None] = lambda _fraction: None) -> Any:
    return building.build(archive, MODEL, Grain.FRAME, limits, progress)


def opened(archive: Archive, limits: IndexLimits) -> VectorIndex:
    index = VectorIndex(archive, MODEL, D, Grain.FRAME, limits)
    index.refresh()
    return index


def brute(ids: np.ndarray, vectors: np.ndarray, query: np.ndarray, k: int) -> list[int]:
    order = np.argsort(-(vectors.astype(np.float64) @ query.astype(np.float64)), kind="stable")
    return ids[order][:k].tolist()


def held(archive: Archive) -> tuple[np.ndarray, np.ndarray]:
    """Ids and vectors that are in the catalogue now."""
    found = archive.database.execute(
        "SELECT id, vector FROM embedding WHERE instance IS NOT NULL ORDER BY id"
    ).fetchall()
    return np.array([row for row, _ in found]), np.stack([np.frombuffer(blob, "<f4") for _, blob in found])


def test_sizes_choose_the_kind() -> None:
    limits = IndexLimits(exact_up_to=20, hnsw_up_to=30, ivf_up_to=40, save_from=10)
    kinds = [limits.kind(count) for count in (9, 10, 20, 21, 30, 31, 40, 41)]
    expected = [None, Kind.FLAT, Kind.FLAT, Kind.HNSW, Kind.HNSW, Kind.IVF4, Kind.IVF4, Kind.IVFPQ]
    assert kinds == expected


def test_settings_say_the_limits() -> None:
    told = load_settings(environment={}, overrides={"similarity": {"exact_up_to": 1007, "target_recall": 0.8}})
    limits = IndexLimits.from_settings(told.similarity)
    assert (limits.exact_up_to, limits.target_recall) == (1007, 0.8)
    assert IndexLimits.from_settings(load_settings(environment={}).similarity) == IndexLimits()


def test_delivered_recall_is_not_below_what_is_promised(archive: Archive, kind: Kind) -> None:
    index = opened(archive, LIMITS[kind])
    ids, vectors = held(archive)
    exact = [index.nearest(query, 10, Selection(), SearchMode.EXACT) for query in QUERIES]
    for query, hits in zip(QUERIES, exact, strict=True):
        assert (hits.mode, hits.estimated_recall) == (SearchMode.EXACT, 1.0)
        assert hits.ids.tolist() == brute(ids, vectors, query, 10)
    found = index.nearest_each(QUERIES, 10, Selection())
    if kind is Kind.FLAT:
        assert {hits.mode for hits in found} == {SearchMode.EXACT}
        assert {index.nearest(QUERIES[0], 10, Selection(), SearchMode.APPROX).mode} == {SearchMode.EXACT}
        return
    assert {hits.mode for hits in found} == {SearchMode.APPROX}
    promised = found[0].estimated_recall
    assert 0.9 <= promised < 1.0
    shares = [np.isin(true.ids, hits.ids).mean() for true, hits in zip(exact, found, strict=True)]
    assert np.mean(shares) >= promised
    for query, hits in zip(QUERIES, found, strict=True):  # whoever is found has its exact score
        np.testing.assert_allclose(hits.cosines, vectors[np.searchsorted(ids, hits.ids)] @ query, atol=1e-6)
        assert np.all(np.diff(hits.cosines) <= 0)


def test_a_small_index_is_exact_unless_asked_otherwise(built: dict[Kind, Path]) -> None:
    index = opened(Archive(built[Kind.HNSW]), IndexLimits(save_from=1, exact_up_to=COUNT, target_recall=0.9))
    modes = [index.nearest(QUERIES[0], 5, Selection(), mode).mode for mode in (None, *SearchMode)]
    assert modes == [SearchMode.EXACT, SearchMode.EXACT, SearchMode.APPROX]


def test_an_index_that_misses_its_target_is_not_chosen(built: dict[Kind, Path]) -> None:
    """Three hundred queries cannot prove 99 %."""
    limits = IndexLimits(save_from=1, exact_up_to=0, hnsw_up_to=10**6, target_recall=0.99)
    index = opened(Archive(built[Kind.HNSW]), limits)
    assert index.nearest(QUERIES[0], 5, Selection()).mode is SearchMode.EXACT
    hits = index.nearest(QUERIES[0], 5, Selection(), SearchMode.APPROX)
    assert hits.mode is SearchMode.APPROX
    assert hits.estimated_recall < 0.99


SHARES = (1.0, 0.6, 0.3, 0.06, 0.04, 0.01, 0.001, 0.0)


@pytest.mark.parametrize("of_one_place", [False, True], ids=["anywhere", "far from the query"])
def test_a_filter_never_returns_fewer_and_few_are_exact(archive: Archive, kind: Kind, *, of_one_place: bool) -> None:
    index = opened(archive, LIMITS[kind])
    ids, vectors = held(archive)
    random = np.random.default_rng(3)
    for share in SHARES:
        count = round(share * len(ids))
        for query in QUERIES[:6]:
            farthest = np.argsort(vectors @ query)[:count]
            among = ids[np.sort(farthest if of_one_place else random.choice(len(ids), count, replace=False))]
            without = random.choice(ids, 30, replace=False)
            selection = Selection(among, without)
            allowed = np.setdiff1d(among, without)
            rows_of = np.searchsorted(ids, allowed)
            for k in (1, 10, 70):
                expected = brute(allowed, vectors[rows_of], query, k)
                hits = index.nearest(query, k, selection)
                assert len(hits.ids) == len(expected)
                assert set(hits.ids) <= set(allowed)
                if hits.mode is SearchMode.EXACT:
                    assert hits.ids.tolist() == expected
                if share < 0.05:
                    assert hits.mode is SearchMode.EXACT
                assert index.nearest(query, k, selection, SearchMode.EXACT).ids.tolist() == expected
        assert index.count(Selection(among)) == count


@pytest.mark.parametrize("kind", [kind for kind in Kind if kind is not Kind.FLAT])
def test_filtered_recall_is_that_of_the_whole(built: dict[Kind, Path], kind: Kind) -> None:
    """Also where the filter leaves what is far from the query, and a search among near ones would not get there."""
    archive = Archive(built[kind])
    index = opened(archive, LIMITS[kind])
    ids, vectors = held(archive)
    shares = []
    for query in QUERIES:
        among = ids[np.sort(np.argsort(vectors @ query)[: len(ids) // 2])]
        expected = index.nearest(query, 10, Selection(among), SearchMode.EXACT)
        shares.append(np.isin(expected.ids, index.nearest(query, 10, Selection(among)).ids).mean())
    assert np.mean(shares) >= 0.9


def test_what_another_process_adds_and_deletes_is_seen_at_once(archive: Archive, kind: Kind) -> None:
    index, other = opened(archive, LIMITS[kind]), Archive(archive.data)
    ids, _ = held(archive)
    gone = ids[::7]
    with other.transaction() as database:
        add(database, QUERIES)
        for row in gone.tolist():
            database.execute("DELETE FROM embedding WHERE id = ?", (row,))
    index.refresh()
    ids, vectors = held(archive)
    assert index.ntotal == len(ids)
    np.testing.assert_array_equal(index.competing(Selection()), ids)
    np.testing.assert_array_equal(index.vectors(ids[::-1]), vectors[::-1])
    for query in QUERIES:
        for mode in (None, SearchMode.EXACT):
            hits = index.nearest(query, 10, Selection(), mode)
            assert hits.cosines[0] == pytest.approx(1.0)
            assert len(hits.ids) >= 10
            assert not np.isin(hits.ids, gone).any()
        assert hits.ids[:10].tolist() == brute(ids, vectors, query, 10)
    with other.transaction() as database:
        database.execute("DELETE FROM embedding")
    index.refresh()
    assert index.ntotal == 0
    assert not len(index.nearest(QUERIES[0], 10, Selection()).ids)


def test_a_restart_reads_only_what_came_since(hnsw: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    with hnsw.transaction() as database:
        add(database, QUERIES[:5])
        database.execute("DELETE FROM embedding WHERE frame = 1")
    done, asked = rows.read, []

    def counted(*arguments: Any) -> Any:
        asked.append(len(arguments[3]))
        return done(*arguments)

    monkeypatch.setattr(rows, "read", counted)
    monkeypatch.setattr(rows, "all_ids", lambda *_: pytest.fail("all rows were read"))
    index = opened(Archive(hnsw.data), HNSW)
    assert asked == [6]
    assert index.ntotal == COUNT + 5 - 1


def test_when_changes_are_forgotten_the_base_is_where_to_start_again(hnsw: Archive) -> None:
    index = opened(hnsw, HNSW)
    for row in range(1, 6):
        hnsw.database.execute("DELETE FROM embedding WHERE id = ?", (row,))
    hnsw.database.execute("DELETE FROM embedding_change WHERE seq < (SELECT max(seq) FROM embedding_change)")
    index.refresh()
    assert index.ntotal == COUNT - 5
    assert index.base is None  # it has not seen what is forgotten
    build(hnsw, HNSW)
    fresh = opened(hnsw, HNSW)
    assert fresh.base is not None
    assert fresh.competing(Selection()).tolist() == index.competing(Selection()).tolist()


def test_changes_are_kept_as_long_as_a_base_needs_them(hnsw: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrub, "_KEPT_VECTOR_CHANGES", 1)
    seen = files.every(hnsw.database)[0].seq
    with hnsw.transaction() as database:
        add(database, QUERIES)
    scrub.forget_vector_changes(hnsw)
    assert rows.changes(hnsw.database)[0] == seen + 1
    building.advance_unchanged(hnsw)
    assert files.every(hnsw.database)[0].seq == seen
    build(hnsw, HNSW)
    scrub.forget_vector_changes(hnsw)
    assert rows.changes(hnsw.database)[0] > seen + 1
    hnsw.database.execute("INSERT INTO embedding_change (model_id, embedding, removed) VALUES ('other', 1, 1)")
    building.advance_unchanged(hnsw)
    assert files.every(hnsw.database)[0].seq == rows.changes(hnsw.database)[1]


def test_a_base_is_made_again_as_it_grows(hnsw: Archive) -> None:
    before = files.find(hnsw.database, MODEL, Grain.FRAME)
    assert list(building.due(hnsw, HNSW)) == []
    with hnsw.transaction() as database:
        add(database, clustered(int(0.06 * COUNT), seed=5))
    (due,) = building.due(hnsw, HNSW)
    assert (due.model_id, due.grain) == (MODEL, Grain.FRAME)
    assert "180 vectors added" in due.why
    build(hnsw, HNSW)
    after = files.find(hnsw.database, MODEL, Grain.FRAME)
    assert (before.vectors, after.vectors) == (COUNT, COUNT + 180)
    assert (before.curve.queries, after.curve.queries) == (300, 318)  # measured again, on a sample of what there is
    assert list(building.due(hnsw, HNSW)) == []
    with hnsw.transaction() as database:
        database.execute("DELETE FROM embedding WHERE id % 4 = 0")
    assert "removed" in next(building.due(hnsw, HNSW)).why
    (due,) = building.due(hnsw, IndexLimits(save_from=10**6))
    assert "no base" in due.why
    assert build(hnsw, IndexLimits(save_from=10**6)) is None
    assert files.every(hnsw.database) == []


def test_a_running_process_moves_to_the_new_base(hnsw: Archive, wait_until: Callable[..., None]) -> None:
    index = opened(hnsw, HNSW)
    with hnsw.transaction() as database:
        add(database, QUERIES)
    index.refresh()
    made = build(Archive(hnsw.data), HNSW)
    with index.unchanged():  # a search that is under way is not disturbed
        here = index.base
        wait_until(lambda: threading.Thread(target=index.refresh).start() or stands_on(index, made.folder))
        assert index.base == here
    assert index.base.folder == made.folder
    assert index.ntotal == COUNT + len(QUERIES)


def stands_on(index: VectorIndex, folder: str) -> bool:
    state = index._state
    return state is not None and state.base is not None and state.base.made.folder == folder


@pytest.mark.parametrize("name", [files.IDS, files.VECTORS, files.INDEX])
@pytest.mark.parametrize("how", ["flipped", "short", "missing", "folder"])
def test_a_damaged_base_is_never_answered_from(
    hnsw: Archive, name: str, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    made = files.find(hnsw.database, MODEL, Grain.FRAME)
    path = hnsw.data / files.FOLDER / made.folder / name
    content = bytearray(path.read_bytes())
    if how == "flipped":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif how == "short":
        path.write_bytes(content[:-1])
    elif how == "missing":
        path.unlink()
    else:
        shutil.rmtree(path.parent)
    with caplog.at_level(logging.WARNING):
        index = opened(hnsw, HNSW)
    assert "will be made again" in caplog.text
    assert index.base is None
    ids, vectors = held(hnsw)
    hits = index.nearest(QUERIES[0], 10, Selection())
    assert (hits.mode, hits.ids.tolist()) == (SearchMode.EXACT, brute(ids, vectors, QUERIES[0], 10))
    assert next(building.due(hnsw, HNSW)).why == "its files are damaged"
    build(hnsw, HNSW)
    assert opened(hnsw, HNSW).base is not None
    files.tidy(hnsw, grace_s=0)
    assert len(list((hnsw.data / files.FOLDER).iterdir())) == 1


class Killed(BaseException):
    """Stands for the end of a process: nothing catches it."""


@pytest.mark.parametrize("step", ["flush", "commit"])
def test_death_between_file_and_row_leaves_the_old_base(
    hnsw: Archive, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files.find(hnsw.database, MODEL, Grain.FRAME)

    def die(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(files, step, die)
        patched.setattr(shutil, "rmtree", lambda *_args, **_kwargs: None)
        with pytest.raises(Killed):
            build(hnsw, HNSW)
    folder = hnsw.data / files.FOLDER
    assert len(list(folder.iterdir())) == 2
    index = opened(Archive(hnsw.data), HNSW)
    assert index.base == before
    files.tidy(hnsw)
    assert len(list(folder.iterdir())) == (1 if step == "flush" else 2)  # a named one may be about to count
    files.tidy(hnsw, grace_s=0)
    assert [path.name for path in folder.iterdir()] == [before.folder]


def test_an_interrupted_job_changes_nothing_and_the_next_one_builds(hnsw: Archive) -> None:
    before = files.find(hnsw.database, MODEL, Grain.FRAME)
    settings = load_settings(environment={}, overrides={"similarity": {"exact_up_to": 1000, "save_from": 1}})
    parameters = {"model_id": MODEL, "grain": "frame"}
    told: list[float] = []

    def stop(fraction: float) -> None:
        told.append(fraction)
        if fraction > 0.5:
            raise Interrupted

    with pytest.raises(Interrupted):
        indexing.build(Task(hnsw, settings, Job(1, indexing.BUILD, indexing.SUBJECT, parameters), stop))
    assert files.find(hnsw.database, MODEL, Grain.FRAME) == before
    assert len(list((hnsw.data / files.FOLDER).iterdir())) == 1
    told.clear()
    indexing.build(Task(hnsw, settings, Job(1, indexing.BUILD, indexing.SUBJECT, parameters), told.append))
    assert told == sorted(told)
    assert files.find(hnsw.database, MODEL, Grain.FRAME) != before


def test_the_look_queues_what_is_due_and_itself(stored: Path, tmp_path: Path) -> None:
    archive = copied(stored, tmp_path)
    settings = load_settings(environment={}, overrides={"similarity": {"save_from": 1}})
    indexing.worker_started(archive, settings)
    job = archive.jobs.recent()[0]
    for _ in range(2):
        indexing.look(Task(archive, settings, job, lambda _fraction: None))
    queued = sorted((each.kind, each.subject) for each in archive.jobs.recent(states=("queued",)))
    assert queued == [("index_vectors", "vectors"), ("look_after_vectors", "vectors")]
    assert archive.jobs.pending() == 1


def test_two_processes_map_the_same_files(hnsw: Archive) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom index.archive import Archive\n"
        "from index.bases.limits import IndexLimits\nfrom index.vectors import Grain, VectorIndex\n"
        f"index = VectorIndex(Archive(Path(sys.argv[1])), {MODEL!r}, {D}, Grain.FRAME, IndexLimits(exact_up_to=0))\n"
        "index.refresh()\nprint(Path('/proc/self/maps').read_text())"
    )
    index = opened(hnsw, HNSW)
    theirs = subprocess.run([sys.executable, "-c", code, hnsw.data], capture_output=True, text=True, check=True).stdout
    mine = Path("/proc/self/maps").read_text(encoding="ascii")
    assert index.base is not None
    for name in (files.VECTORS, files.INDEX):
        path = str(hnsw.data / files.FOLDER / index.base.folder / name)
        assert path in mine
        assert path in theirs


def test_searches_do_not_wait_for_each_other(hnsw: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    """All are inside of the search at the same time: a barrier lets none leave before the others have come."""
    index = opened(hnsw, HNSW)
    together = threading.Barrier(3, timeout=60)
    done = vectors_module.searching.nearest

    def meeting(*arguments: Any) -> Any:
        together.wait()
        return done(*arguments)

    monkeypatch.setattr(vectors_module.searching, "nearest", meeting)
    found: list[int] = []

    def ask() -> None:
        with index.unchanged():
            index.refresh()
            found.append(len(index.nearest(QUERIES[0], 10, Selection()).ids))

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [10, 10, 10]


def test_the_answer_tells_how_it_was_found(built: dict[Kind, Path]) -> None:
    search = Similarity(Archive(built[Kind.HNSW]), limits=HNSW)
    for mode, expected in ((None, SearchMode.APPROX), (SearchMode.APPROX, SearchMode.APPROX),
                           (SearchMode.EXACT, SearchMode.EXACT)):  # fmt: skip
        answer = search.search(SimilarityRequest(level=Level.IMAGE, vector=QUERIES[0], k=1, mode=mode))
        assert answer.mode is expected
        assert (answer.estimated_recall == 1.0) is (expected is SearchMode.EXACT)


@pytest.mark.parametrize(("mean", "count"), [(1.0, 100), (0.95, 1000), (0.5, 50), (0.0, 10)])
def test_the_bound_solves_its_equation(mean: float, count: int) -> None:
    for alternatives in (1, 16):
        bound = tuning.lower_bound(mean, count, alternatives=alternatives)
        assert 0.0 <= bound <= mean
        if mean > 0.0:
            assert count * tuning._divergence(mean, bound) == pytest.approx(np.log(alternatives / 0.05), rel=1e-6)
    assert tuning.lower_bound(mean, 10 * count) >= tuning.lower_bound(mean, count)


def test_the_bound_holds_in_nineteen_of_twenty_samples() -> None:
    random = np.random.default_rng(0)
    recalls = 1 - random.beta(0.2, 3.0, size=(2000, 200))  # most queries find everything, some hardly anything
    true = 1 - 0.2 / 3.2
    held_by = np.mean([tuning.lower_bound(mean, 200) <= true for mean in recalls.mean(axis=1)])
    assert held_by >= 0.95


def test_effort_rises_with_the_target_and_with_the_neighbours(built: dict[Kind, Path]) -> None:
    curve = files.every(Archive(built[Kind.HNSW]).database)[0].curve
    assert curve == tuning.Curve.from_json(curve.to_json())
    assert curve.step(10, 0.5).effort <= curve.step(10, 0.9).effort
    assert curve.step(10, 0.9).effort <= curve.step(100, 0.9).effort < curve.step(1000, 0.9).effort
    for level in curve.levels:
        assert all(step.bound < step.recall for step in level.steps)


def test_queries_that_measure_are_not_in_the_index_that_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    growing = Growing(Kind.HNSW, D, COUNT)
    growing.add(VECTORS[:-300], lambda _fraction: None)
    truth = tuning.ground_truth(VECTORS[:-300], VECTORS[-300:], 10, lambda _fraction: None)
    for query, mine in zip(VECTORS[-300:], truth, strict=True):
        assert mine.tolist() == brute(np.arange(COUNT - 300), VECTORS[:-300], query, 10)
    monkeypatch.setattr(tuning, "_BLOCK", 700)
    again = tuning.ground_truth(VECTORS[:-300], VECTORS[-300:], 10, lambda _fraction: None)
    np.testing.assert_array_equal(np.sort(again), np.sort(truth))


def test_a_graph_that_misses_the_target_gives_way_to_lists(stored: Path, tmp_path: Path) -> None:
    archive = copied(stored, tmp_path)
    # More than three hundred queries can prove.
    limits = IndexLimits(save_from=1, exact_up_to=0, hnsw_up_to=10**6, target_recall=0.99)
    told: list[float] = []
    assert build(archive, limits, told.append).kind is Kind.IVF
    assert told == sorted(told)
    assert list(building.due(archive, limits)) == []


def test_a_base_of_another_dimension_is_not_used(hnsw: Archive) -> None:
    made = files.find(hnsw.database, MODEL, Grain.FRAME)
    opening = vectors_module._Opening(hnsw, made)
    opening.run()
    with pytest.raises(BaseUnusable, match="expected vectors of 8 values, got 16"):
        opening.result(8)
