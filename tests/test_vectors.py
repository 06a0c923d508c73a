"""The vector index: exact, selective, and never behind the rows."""

import threading
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset

from index import embeddings
from index.archive import Archive
from index.keys import Level
from index.unit_vectors import unit, whole_direction
from index.vectors import Grain, Selection, VectorIndex

D = 16
SERIES = "1.2.826.0.1.3680043.9.7133.2"
UID = "1.2.826.0.1.3680043.9.7133.9.1"


@pytest.fixture
def archive(tmp_path: Path, make_dataset: Callable[..., Dataset]) -> Archive:
    archive = Archive(tmp_path)
    ingest(archive, make_dataset(1))
    embeddings.register(archive, "a-1", D)
    return archive


def ingest(archive: Archive, dataset: Dataset) -> None:
    buffer = BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    archive.ingest(buffer.getvalue())


def fill(archive: Archive, vectors: np.ndarray, model_id: str = "a-1") -> np.ndarray:
    """Store `vectors` as frames of one instance; return their row ids."""
    embeddings.store(archive, model_id, SERIES, [(UID, number, vector) for number, vector in enumerate(vectors, 1)])
    return np.array(
        archive.database.execute(
            "SELECT id FROM embedding WHERE model_id = ? AND instance IS NOT NULL ORDER BY frame", (model_id,)
        ).fetchall()
    )[:, 0]


def random_vectors(count: int, seed: int = 0) -> np.ndarray:
    return unit(np.random.default_rng(seed).normal(size=(count, D)))


def frames(archive: Archive) -> VectorIndex:
    index = VectorIndex(archive, "a-1", D, Grain.FRAME)
    index.refresh()
    return index


def brute(vectors: np.ndarray, ids: np.ndarray, query: np.ndarray, k: int, allowed: np.ndarray) -> list[int]:
    keep = np.isin(ids, allowed)
    order = np.argsort(-(vectors[keep].astype(np.float64) @ query.astype(np.float64)), kind="stable")
    return ids[keep][order][:k].tolist()


def test_nearest_is_what_brute_force_finds(archive: Archive) -> None:
    vectors = random_vectors(600)
    ids = fill(archive, vectors)
    index = frames(archive)
    random = np.random.default_rng(1)
    assert index.ntotal == 600
    for share in (None, 0.9, 0.5, 0.1, 0.03, 0.002, 0.0):
        for k in (1, 7, 40):
            query = random_vectors(1, seed=k)[0]
            among = None if share is None else random.choice(ids, int(share * 600), replace=False)
            without = random.choice(ids, 50, replace=False)
            selection = Selection(among, without)
            allowed = np.setdiff1d(ids if among is None else among, without)
            hits = index.nearest(query, k, selection)
            assert hits.ids[:k].tolist() == brute(vectors, ids, query, k, allowed), (share, k)
            assert len(hits.ids) >= min(k, len(allowed))
            assert index.count(selection) == len(allowed)
            np.testing.assert_array_equal(index.competing(selection), allowed)


def test_all_rows_that_tie_with_the_last_are_returned_in_order(archive: Archive) -> None:
    vectors = np.repeat(random_vectors(3), 40, axis=0)
    ids = fill(archive, vectors)
    index = frames(archive)
    for selection in (Selection(), Selection(among=ids[::2]), Selection(without=ids[:3])):
        hits = index.nearest(vectors[0], 5, selection)
        expected = np.intersect1d(ids[:40], index.competing(selection))
        assert hits.ids.tolist() == expected.tolist()
        assert set(hits.cosines.tolist()) == {1.0}
        assert not hits.complete
    assert index.nearest(vectors[0], 500, Selection()).complete


def test_candidates_the_index_does_not_hold_are_nobody(archive: Archive) -> None:
    ids = fill(archive, random_vectors(50))
    index = frames(archive)
    strangers = np.array([10**6, 10**7])
    for among in (np.concatenate([ids[:40], strangers]), np.concatenate([ids[:1], strangers]), strangers):
        hits = index.nearest(random_vectors(1)[0], 100, Selection(among, strangers))
        assert sorted(hits.ids) == sorted(set(among) & set(ids))


def test_series_and_frames_do_not_meet_nor_do_models(archive: Archive) -> None:
    embeddings.register(archive, "b-1", D)
    vectors = random_vectors(5)
    fill(archive, vectors)
    fill(archive, random_vectors(9, seed=2), "b-1")
    series = VectorIndex(archive, "a-1", 2 * D, Grain.SERIES)
    series.refresh()
    assert (frames(archive).ntotal, series.ntotal) == (5, 1)
    np.testing.assert_allclose(series.vectors(series.competing(Selection()))[0], whole_direction(vectors), atol=1e-6)


def test_what_another_process_stores_and_deletes_is_followed(
    archive: Archive, make_dataset: Callable[..., Dataset]
) -> None:
    index = frames(archive)
    assert index.ntotal == 0
    assert len(index.nearest(random_vectors(1)[0], 3, Selection()).ids) == 0
    other = Archive(archive.data)
    ids = fill(other, random_vectors(30))
    index.refresh()
    assert index.competing(Selection()).tolist() == ids.tolist()
    replaced = random_vectors(10, seed=9)
    ids = fill(other, replaced)
    index.refresh()
    assert index.competing(Selection()).tolist() == ids.tolist()
    np.testing.assert_array_equal(index.vectors(ids), replaced)
    ingest(other, make_dataset(2))
    other.delete(Level.IMAGE, UID)
    index.refresh()
    assert index.ntotal == 0


def test_many_rows_are_read_in_blocks(archive: Archive) -> None:
    vectors = random_vectors(5000)
    ids = fill(archive, vectors)
    index = frames(archive)
    assert index.ntotal == 5000
    np.testing.assert_array_equal(index.vectors(ids[[0, 4095, 4096, 4999]]), vectors[[0, 4095, 4096, 4999]])


def test_threads_search_while_rows_change(archive: Archive) -> None:
    vectors = random_vectors(200)
    fill(archive, vectors)
    index = frames(archive)
    wrong: list[str] = []

    def ask(seed: int) -> None:
        for step in range(30):
            index.refresh()
            hits = index.nearest(random_vectors(1, seed=seed * 100 + step)[0], 10, Selection())
            if len(hits.ids) < 10 or not np.all(np.diff(hits.cosines) <= 0):
                wrong.append(f"{len(hits.ids)} hits")

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for seed in range(10):
        last = fill(archive, random_vectors(200, seed=seed))
    for thread in threads:
        thread.join()
    index.refresh()
    assert wrong == []
    assert index.competing(Selection()).tolist() == last.tolist()
