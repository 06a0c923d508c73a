"""Embedding rows: what is stored, replaced and refused."""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset

from index import embeddings, migrations
from index.archive import Archive
from index.errors import NotFound, UnknownModel, WrongDimension
from index.keys import Level
from index.unit_vectors import cosines, distance, from_bytes, mean_direction, score, to_bytes, unit, whole_direction

SERIES = "1.2.826.0.1.3680043.9.7133.2"
UIDS = [f"1.2.826.0.1.3680043.9.7133.9.{number}" for number in (1, 2, 3)]


@pytest.fixture
def archive(tmp_path: Path, make_dataset: Callable[..., Dataset]) -> Archive:
    archive = Archive(tmp_path)
    for number in (1, 2, 3):
        archive.ingest(part10(make_dataset(number)))
    embeddings.register(archive, "a-1", 4)
    return archive


def part10(dataset: Dataset) -> bytes:
    buffer = BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def vectors(count: int, seed: int = 0) -> np.ndarray:
    return unit(np.random.default_rng(seed).normal(size=(count, 4)))


def rows(archive: Archive, model_id: str = "a-1") -> list[tuple[Any, ...]]:
    return archive.database.execute(
        "SELECT coalesce(instance.sop_instance_uid, ''), frame, vector FROM embedding "
        "LEFT JOIN instance ON instance.id = embedding.instance WHERE model_id = ? ORDER BY embedding.id",
        (model_id,),
    ).fetchall()


def test_frames_and_the_series_are_rows(archive: Archive) -> None:
    found = vectors(4)
    frames = [(UIDS[0], 0, found[0]), (UIDS[1], 1, found[1]), (UIDS[1], 2, found[2]), (UIDS[2], 0, found[3])]
    assert embeddings.store(archive, "a-1", SERIES, frames) == 4
    stored = rows(archive)
    assert [row[:2] for row in stored] == [("", 0), (UIDS[0], 0), (UIDS[1], 1), (UIDS[1], 2), (UIDS[2], 0)]
    np.testing.assert_array_equal(np.stack([from_bytes(row[2]) for row in stored[1:]]), found)
    mean, largest = found.mean(axis=0), found.max(axis=0)
    halves = [mean / np.linalg.norm(mean), largest / np.linalg.norm(largest)]
    np.testing.assert_allclose(from_bytes(stored[0][2]), np.concatenate(halves) / np.sqrt(2), atol=1e-6)
    assert [len(row[2]) for row in stored] == [32, 16, 16, 16, 16]


def test_vectors_are_scaled_to_length_one(archive: Archive) -> None:
    embeddings.store(archive, "a-1", SERIES, [(UIDS[0], 0, np.array([3, 0, 4, 0], np.float64))])
    np.testing.assert_allclose(from_bytes(rows(archive)[1][2]), [0.6, 0, 0.8, 0], atol=1e-7)


def test_storing_again_replaces_the_rows_of_that_model_only(archive: Archive) -> None:
    embeddings.register(archive, "b-1", 4)
    frames = [(uid, 0, vector) for uid, vector in zip(UIDS, vectors(3), strict=True)]
    for model_id in ("a-1", "b-1"):
        embeddings.store(archive, model_id, SERIES, frames)
    embeddings.store(archive, "a-1", SERIES, [(UIDS[2], 0, vectors(1, seed=1)[0])])
    assert [row[0] for row in rows(archive)] == ["", UIDS[2]]
    assert len(rows(archive, "b-1")) == 4
    assert embeddings.store(archive, "a-1", SERIES, []) == 0
    assert rows(archive) == []


def test_a_series_uid_in_two_studies_is_two_series(archive: Archive, make_dataset: Callable[..., Dataset]) -> None:
    archive.ingest(part10(make_dataset(8, StudyInstanceUID="1.2.3.8", PatientID="P8")))
    other = "1.2.826.0.1.3680043.9.7133.9.8"
    found = vectors(2)
    embeddings.store(archive, "a-1", SERIES, [(UIDS[0], 0, found[0]), (other, 0, found[1])])
    wholes = [from_bytes(row[2]) for row in rows(archive) if not row[0]]
    np.testing.assert_allclose(wholes, np.tile(found, 2) / np.sqrt(2), atol=1e-6)


@pytest.mark.parametrize(
    ("model_id", "series", "frames", "error"),
    [
        ("none-1", SERIES, [(UIDS[0], 0, [1, 0, 0, 0])], UnknownModel),
        ("a-1", SERIES, [(UIDS[0], 0, [1, 0, 0])], WrongDimension),
        ("a-1", "1.2.3", [], NotFound),
        ("a-1", SERIES, [("1.2.3", 0, [1, 0, 0, 0])], NotFound),
        ("a-1", SERIES, [(UIDS[0], 0, [0, 0, 0, 0])], ValueError),
        ("a-1", SERIES, [(UIDS[0], 0, [np.nan, 0, 0, 0])], ValueError),
    ],
)
def test_what_cannot_be_stored_leaves_the_rows_alone(
    archive: Archive, model_id: str, series: str, frames: Any, error: type[Exception]
) -> None:
    embeddings.store(archive, "a-1", SERIES, [(UIDS[1], 0, vectors(1)[0])])
    before = rows(archive)
    with pytest.raises(error):
        embeddings.store(archive, model_id, series, [(uid, frame, np.array(vector)) for uid, frame, vector in frames])
    assert rows(archive) == before


def test_series_of_before_get_their_second_half(archive: Archive) -> None:
    """A catalogue of before: the vector of a series was the direction of its mean alone."""
    embeddings.register(archive, "b-1", 4)
    for model_id, seed in (("a-1", 0), ("b-1", 1)):
        frames = [(uid, 0, vector) for uid, vector in zip(UIDS, vectors(3, seed), strict=True)]
        embeddings.store(archive, model_id, SERIES, frames)
    expected = {model_id: {row[0]: row[2] for row in rows(archive, model_id)} for model_id in ("a-1", "b-1")}
    with archive.transaction() as database:
        for model_id, seed in (("a-1", 0), ("b-1", 1)):
            before = (to_bytes(mean_direction(vectors(3, seed))), model_id)
            database.execute("UPDATE embedding SET vector = ? WHERE instance IS NULL AND model_id = ?", before)
    seen = archive.database.execute("SELECT max(seq) FROM embedding_change").fetchone()[0]
    migrations.whole_series(archive.database)
    for model_id, whole in expected.items():
        assert {row[0]: row[2] for row in rows(archive, model_id)} == whole
    followed = archive.database.execute(
        "SELECT removed, count(*) FROM embedding_change WHERE seq > ? GROUP BY removed", (seen,)
    ).fetchall()
    assert followed == [(0, 2), (1, 2)], "an index that had read the rows of before would keep them"


def test_deleting_an_instance_deletes_its_rows(archive: Archive) -> None:
    embeddings.store(archive, "a-1", SERIES, [(uid, 0, vector) for uid, vector in zip(UIDS, vectors(3), strict=True)])
    archive.delete(Level.IMAGE, UIDS[0])
    assert [row[0] for row in rows(archive)] == ["", *UIDS[1:]]
    archive.delete(Level.SERIES, SERIES)
    assert rows(archive) == []


def test_the_first_encoder_is_active_until_another_is_activated(archive: Archive) -> None:
    embeddings.register(archive, "b-1", 2)
    assert embeddings.active_model(archive) == embeddings.EmbeddingModel("a-1", 4, active=True)
    embeddings.activate(archive, "b-1")
    assert embeddings.active_model(archive) == embeddings.EmbeddingModel("b-1", 2, active=True)
    assert not embeddings.model(archive, "a-1").active
    embeddings.register(archive, "a-1", 4)
    assert embeddings.model(archive, "b-1").active
    with pytest.raises(UnknownModel, match="c-1"):
        embeddings.activate(archive, "c-1")
    assert embeddings.model(archive, "b-1").active
    with pytest.raises(WrongDimension, match="4 values, not 5"):
        embeddings.register(archive, "a-1", 5)


def test_no_encoder_is_active_in_an_empty_archive(tmp_path: Path) -> None:
    assert embeddings.active_model(Archive(tmp_path)) is None


def test_unit_vectors() -> None:
    found = unit([[3, 4], [0, -2]])
    np.testing.assert_allclose(found, [[0.6, 0.8], [0, -1]], atol=1e-7)
    np.testing.assert_array_equal(from_bytes(to_bytes(found[0])), found[0])
    np.testing.assert_allclose(mean_direction([[1, 0], [0, 1]]), [0.5**0.5] * 2, atol=1e-7)
    np.testing.assert_allclose(whole_direction([[3, 4]]), np.array([0.6, 0.8, 0.6, 0.8]) / 2**0.5, atol=1e-7)
    np.testing.assert_allclose(whole_direction([[1, 0], [0, 1]]), [0.5] * 4, atol=1e-7)
    np.testing.assert_allclose(whole_direction([[-1, 0], [0, -1]]), [-(0.5**0.5)] * 2 + [0, 0], atol=1e-7)
    with pytest.raises(ValueError, match="without direction"):
        whole_direction([[1, 0], [-1, 0]])
    np.testing.assert_allclose(cosines(found, found), [[1, -0.8], [-0.8, 1]], atol=1e-6)
    random = vectors(50)
    assert np.all(np.diag(cosines(random, random)) == 1.0)
    assert (score(1.0), score(-1.0), score(0.0)) == (1.0, 0.0, 0.5)
    assert (distance(1.0), distance(-1.0)) == (0.0, 2.0)
    assert distance(0.6) == pytest.approx(np.linalg.norm(np.array([1, 0]) - np.array([0.6, 0.8])))
