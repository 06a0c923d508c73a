"""Embeddings as rows: the truth of which every vector index is a cache.

A series is embedded as a whole: its rows under one model are replaced in one transaction, a vector per frame and one
for the series (`index.unit_vectors.whole_direction`, twice as long). Rows of two models never mix.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from sqlite_utils import Database

from index.archive import Archive
from index.changes import now
from index.errors import NotFound, UnknownModel, WrongDimension, WrongState
from index.unit_vectors import Vectors, to_bytes, unit, whole_direction

FrameVector = tuple[str, int, Vectors]
"""SOP Instance UID; frame number from 1, or 0 for a single-frame instance; vector, axis (d,)."""


@dataclass(frozen=True)
class EmbeddingModel:
    """An encoder as the archive knows it.

    Attributes
    ----------
    dimension
        Length d of its vectors.
    active
        Whether queries that name no model are answered with it. At most one is.
    wanted
        Whether it is to become the active one as soon as it has embedded what the archive holds. At most one is.
    """

    model_id: str
    dimension: int
    active: bool
    wanted: bool = False

    @property
    def whole_dimension(self) -> int:
        """Length 2d of the vectors of whole series."""
        return 2 * self.dimension


def register(archive: Archive, model_id: str, dimension: int, *, activate_first: bool = True) -> EmbeddingModel:
    """Make the encoder known; the first one becomes the active one. Known already: nothing changes.

    Parameters
    ----------
    activate_first
        False: not even when it is the first.

    Raises
    ------
    WrongDimension
        Known with vectors of another length.
    """
    with archive.transaction() as database:
        is_new = not database.execute("SELECT 1 FROM encoder WHERE model_id = ?", (model_id,)).fetchone()
        if is_new:
            database.execute(
                "INSERT INTO encoder (model_id, dimension, active, at) VALUES (?, ?, 0, ?)",
                (model_id, dimension, now()),
            )
            if activate_first and active_model(archive) is None:
                activate(archive, model_id)
        found = model(archive, model_id)
    if found.dimension != dimension:
        raise WrongDimension(f"{model_id} has vectors of {found.dimension} values, not {dimension}", element="ModelID")
    return found


def activate(archive: Archive, model_id: str) -> None:
    """Answer with this encoder from now on, and with no other one later; raises `UnknownModel`."""
    with archive.transaction() as database:
        model(archive, model_id)
        database.execute("UPDATE encoder SET active = (model_id = ?), wanted = 0", (model_id,))
        database.execute("INSERT INTO activation (model_id, at) VALUES (?, ?)", (model_id, now()))


def want(archive: Archive, model_id: str) -> None:
    """Embed with this encoder too from now on, so that it can become the active one; raises `UnknownModel`."""
    with archive.transaction() as database:
        if model(archive, model_id).active:
            database.execute("UPDATE encoder SET wanted = 0")
        else:
            database.execute("UPDATE encoder SET wanted = (model_id = ?)", (model_id,))


def previous_model(archive: Archive) -> EmbeddingModel | None:
    """Return the encoder that was active before the one that is, or None when there was none that is still known."""
    row = archive.database.execute(
        "SELECT activation.model_id FROM activation JOIN encoder ON encoder.model_id = activation.model_id "
        "WHERE NOT encoder.active ORDER BY activation.id DESC LIMIT 1"
    ).fetchone()
    return None if row is None else model(archive, row[0])


def forget(archive: Archive, model_id: str) -> int:
    """Delete the encoder and all its vectors, and return how many they were.

    Raises
    ------
    UnknownModel
        Not known here.
    WrongState
        Queries are answered with it, or are to be.
    """
    with archive.transaction() as database:
        found = model(archive, model_id)
        if found.active or found.wanted:
            raise WrongState(f"{model_id} is {'the active encoder' if found.active else 'about to be activated'}")
        deleted = database.execute("DELETE FROM embedding WHERE model_id = ?", (model_id,)).rowcount
        database.execute("DELETE FROM activation WHERE model_id = ?", (model_id,))
        database.execute("DELETE FROM encoder WHERE model_id = ?", (model_id,))
    return int(deleted)


def active_model(archive: Archive) -> EmbeddingModel | None:
    """Return the active encoder, or None before the first one is registered."""
    return next((found for found in models(archive) if found.active), None)


def wanted_model(archive: Archive) -> EmbeddingModel | None:
    """Return the encoder that is to become the active one, or None."""
    return next((found for found in models(archive) if found.wanted), None)


def models(archive: Archive) -> list[EmbeddingModel]:
    """Return all encoders that are known, the first known first."""
    rows = archive.database.execute("SELECT model_id, dimension, active, wanted FROM encoder ORDER BY at, rowid")
    return [EmbeddingModel(row[0], row[1], active=bool(row[2]), wanted=bool(row[3])) for row in rows]


def model(archive: Archive, model_id: str) -> EmbeddingModel:
    """Return the encoder with that ModelID; raises `UnknownModel` (Status C003)."""
    found = next((found for found in models(archive) if found.model_id == model_id), None)
    if found is None:
        raise UnknownModel(f"no model {model_id[:64]!r} here", element="ModelID")
    return found


def store(archive: Archive, model_id: str, series_instance_uid: str, frames: Iterable[FrameVector]) -> int:
    """Replace what is stored of the series under this model by `frames`, in one transaction.

    Parameters
    ----------
    frames
        Vectors of its frames, scaled to length 1 here. None at all: the series has no embedding any more.

    Returns
    -------
    int
        How many frame vectors are stored.

    Raises
    ------
    UnknownModel
        The encoder was never registered.
    WrongDimension
        A vector of another length than the model's.
    NotFound
        The series, or one of the instances in it, is not (any longer) in the archive.
    """
    rows = [(sop_instance_uid, frame, unit(vector)) for sop_instance_uid, frame, vector in frames]
    with archive.transaction() as database:
        dimension = model(archive, model_id).dimension
        wrong = next((vector for _, _, vector in rows if vector.shape != (dimension,)), None)
        if wrong is not None:
            raise WrongDimension(f"{model_id} has vectors of {dimension} values, got an array of {wrong.shape}")
        places = _places(database, series_instance_uid)
        missing = next((uid for uid, _, _ in rows if uid not in places), None)
        if missing is not None:
            raise NotFound(f"no instance {missing} in series {series_instance_uid}", element="SOPInstanceUID")
        _replace(database, model_id, places, rows)
    return len(rows)


def _places(database: Database, series_instance_uid: str) -> dict[str, tuple[int, int]]:
    """Return SOP Instance UID → (instance row, series row); a Series UID used by two studies is two series."""
    rows = database.execute(
        "SELECT instance.sop_instance_uid, instance.id, series.id FROM instance "
        "JOIN series ON series.id = instance.series WHERE series.series_instance_uid = ?",
        (series_instance_uid,),
    ).fetchall()
    if not rows:
        raise NotFound(f"no series {series_instance_uid}", element="SeriesInstanceUID")
    return {uid: (instance, series) for uid, instance, series in rows}


def _replace(
    database: Database, model_id: str, places: dict[str, tuple[int, int]], rows: list[FrameVector]
) -> None:
    for series in sorted({series for _, series in places.values()}):
        database.execute("DELETE FROM embedding WHERE model_id = ? AND series = ?", (model_id, series))
        own = [(places[uid][0], frame, vector) for uid, frame, vector in rows if places[uid][1] == series]
        if not own:
            continue
        whole = whole_direction(np.stack([vector for _, _, vector in own]))
        for instance, frame, vector in [(None, 0, whole), *own]:
            database.execute(
                "INSERT INTO embedding (model_id, series, instance, frame, vector) VALUES (?, ?, ?, ?, ?)",
                (model_id, series, instance, frame, to_bytes(vector)),
            )


def series_lacking(archive: Archive, model_id: str) -> list[str]:
    """Return the Series Instance UIDs that other encoders have vectors of, but not the one of `model_id`."""
    rows = archive.database.execute(
        "SELECT DISTINCT series.series_instance_uid FROM embedding JOIN series ON series.id = embedding.series "
        "WHERE NOT EXISTS (SELECT 1 FROM embedding AS own WHERE own.series = embedding.series AND own.model_id = ?)",
        (model_id,),
    )
    return [uid for (uid,) in rows]


def series_embedded(archive: Archive) -> dict[str, int]:
    """Return how many series have vectors, by ModelID."""
    rows = archive.database.execute("SELECT model_id, count(DISTINCT series) FROM embedding GROUP BY model_id")
    return dict(rows.fetchall())
