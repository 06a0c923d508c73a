"""Embeddings read in bulk from the catalogue, which is the truth of which every base is a copy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from sqlite_utils import Database

from index.bases.selection import Grain, Ids
from index.errors import WrongDimension
from index.unit_vectors import Vectors, from_bytes

_BLOCK = 4096

_OF_GRAIN = {Grain.FRAME: "instance IS NOT NULL", Grain.SERIES: "instance IS NULL"}


def of_grain(grain: Grain) -> str:
    """Return the SQL condition that a row of `embedding` belongs to `grain`."""
    return _OF_GRAIN[grain]


def fetch_ids(database: Database, sql: str, parameters: Sequence[str | int | float]) -> Ids:
    """Return what a query of one column of row ids yields, in its order; a million take a fraction of a second."""
    (text,) = database.execute(f"SELECT group_concat(id) FROM ({sql})", tuple(parameters)).fetchone()
    return np.fromstring(text, dtype=np.int64, sep=",") if text else np.empty(0, dtype=np.int64)


def all_ids(database: Database, model_id: str, grain: Grain) -> Ids:
    """Return the ids, ascending, of all rows of a model and grain."""
    sql = f"SELECT id FROM embedding WHERE model_id = ? AND {of_grain(grain)}"
    return np.sort(fetch_ids(database, sql, [model_id]))


def changed_ids(database: Database, model_id: str, after: int, last: int) -> Ids:
    """Return the ids, ascending, of rows of the model that came or went in the changes `after` (without) to `last`."""
    sql = "SELECT DISTINCT embedding AS id FROM embedding_change WHERE model_id = ? AND seq > ? AND seq <= ?"
    return np.sort(fetch_ids(database, sql, [model_id, after, last]))


def changes(database: Database) -> tuple[int, int]:
    """Return the first and the last number in `embedding_change`; 0 and 0 when it has none."""
    first, last = database.execute(
        "SELECT (SELECT min(seq) FROM embedding_change), (SELECT max(seq) FROM embedding_change)"
    ).fetchone()  # one of them alone is a step down the tree, both in one SELECT would be a walk through it
    return first or 0, last or 0


def read(
    database: Database, model_id: str, grain: Grain, ids: Ids, dimension: int
) -> Iterator[tuple[Ids, Vectors]]:
    """Yield the rows among `ids` (ascending) that exist and belong to model and grain, in blocks, in order.

    Raises
    ------
    WrongDimension
        A vector is not of `dimension` values.
    """
    for first in range(0, len(ids), _BLOCK):
        found = database.execute(
            f"SELECT id, vector FROM embedding WHERE model_id = ? AND +{of_grain(grain)} "
            "AND id IN (SELECT value FROM json_each(?)) ORDER BY id",
            (model_id, str(ids[first : first + _BLOCK].tolist())),
        ).fetchall()
        if found:
            yield np.array([row for row, _ in found], dtype=np.int64), _vectors(found, dimension)


def _vectors(rows: list[tuple[int, bytes]], dimension: int) -> Vectors:
    values = from_bytes(b"".join(vector for _, vector in rows))
    wrong = next((row for row, vector in rows if len(vector) != values.itemsize * dimension), None)
    if wrong is not None:
        raise WrongDimension(f"embedding {wrong} was expected to have {dimension} values and has not")
    return values.reshape(len(rows), dimension)
