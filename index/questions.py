"""Images that an AE has sent to ask about them: embedded, kept for a while as vectors, never archived.

What an AE sends is one question as long as it is of one series. The pixels are deleted as soon as they are embedded, or
refused; the vectors are rows, so that a question outlives a restart, and go when its time is over.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from sqlite_utils import Database

from index import asked, embeddings
from index.archive import Archive
from index.errors import NotEmbedded, OutOfSpace
from index.header import Header
from index.neighbours import Sent
from index.on_demand import OnDemand

_OF_ASKER = "asked JOIN question ON question.asked = asked.id WHERE question.asker = ?"


class Questions:
    """Who asks about which images. Safe to share between threads.

    Parameters
    ----------
    archive
        Whose rows these are, and whose incoming folder the images lie in.
    on_demand
        Has them embedded.
    kept_s
        How long after its last image a question can be asked, seconds.
    most_images
        Of one question.
    clock
        Seconds since the epoch.
    """

    def __init__(
        self,
        archive: Archive,
        on_demand: OnDemand,
        *,
        kept_s: float,
        most_images: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._archive = archive
        self._on_demand = on_demand
        self._kept_s = kept_s
        self._most_images = most_images
        self._clock = clock

    def keep(self, asker: str, header: Header, file: Path) -> None:
        """Add an image to the question of `asker`; when this returns, it can be asked about.

        A series other than that of the last question, or a question that was asked already, makes this a new one.
        Nothing changes when the image is refused.

        Parameters
        ----------
        file
            In the incoming folder; not needed any more when this returns or raises.

        Raises
        ------
        NotEmbedded
            No pixels, none that can be decoded, not embedded in time, or no vectors here to compare with (C002).
        UnknownModel
            The encoder cannot be loaded (C003).
        OutOfSpace
            The question has as many images as it may have (A700).
        """
        number = self._begin(asker, header, file, self._model_id(asker, header))
        try:
            self._on_demand.wait(number)
        except BaseException:
            self._drop("id = ?", number)
            raise
        self._accept(asker, header, number)

    def current(self, asker: str) -> Sent | None:
        """Return what `asker` has sent and not yet been too long about; None for nothing."""
        rows = self._archive.database.execute(
            "SELECT model_id, vectors, (SELECT dimension FROM encoder WHERE encoder.model_id = asked.model_id), "
            f"patient_id, study_instance_uid, series_instance_uid, sop_instance_uid, at FROM {_OF_ASKER} "
            "AND vectors IS NOT NULL ORDER BY asked.id",
            (asker,),
        ).fetchall()
        if not rows or max(row[7] for row in rows) < self._clock() - self._kept_s:
            return None
        last = rows[-1]
        own = [row for row in rows if row[0] == last[0] and row[5] == last[5]]
        return Sent(
            model_id=last[0],
            vectors=np.concatenate([asked.vectors_from(row[1], row[2]) for row in own]),
            patient_id=last[3],
            study_instance_uid=last[4],
            series_instance_uid=last[5],
            sop_instance_uids=tuple(row[6] for row in own),
        )

    def close(self, asker: str) -> None:
        """Take note that `asker` has been answered: the next image that it sends starts a new question."""
        with self._archive.transaction() as database:
            database.execute("UPDATE question SET is_closed = 1 WHERE asker = ? AND is_closed = 0", (asker,))

    def _model_id(self, asker: str, header: Header) -> str:
        """Return the model of the question that the image belongs to, or for a new one the active one."""
        begun = self._archive.database.execute(
            f"SELECT model_id FROM {_OF_ASKER} AND series_instance_uid = ? AND NOT is_closed AND at >= ? "
            "AND model_id IN (SELECT model_id FROM encoder) ORDER BY asked.id LIMIT 1",
            (asker, header.series_instance_uid, self._clock() - self._kept_s),
        ).fetchone()
        if begun is not None:
            return str(begun[0])
        active = embeddings.active_model(self._archive)
        if active is None:
            raise NotEmbedded("nothing is embedded here yet: there is nothing to compare with")
        return active.model_id

    def _begin(self, asker: str, header: Header, file: Path, model_id: str) -> int:
        with self._archive.transaction() as database:
            self._require_room(database, asker, header)
            number = database.execute(
                "INSERT INTO asked (model_id, file, at) VALUES (?, ?, ?) RETURNING id",
                (model_id, file.name, self._clock()),
            ).fetchone()[0]
            database.execute(
                "INSERT INTO question (asked, asker, patient_id, study_instance_uid, series_instance_uid, "
                "sop_instance_uid) VALUES (?, ?, ?, ?, ?, ?)",
                (number, asker, header.values.get("PatientID", ""), *header.uids),
            )
            asked.push(database, number)
        return int(number)

    def _require_room(self, database: Database, asker: str, header: Header) -> None:
        """Count what is still being embedded as well, of any series: it takes room all the same."""
        images = database.execute(
            f"SELECT count(*) FROM {_OF_ASKER} AND sop_instance_uid <> ? AND "
            "(vectors IS NULL OR (series_instance_uid = ? AND NOT is_closed AND at >= ?))",
            (asker, header.sop_instance_uid, header.series_instance_uid, self._clock() - self._kept_s),
        ).fetchone()[0]
        if images >= self._most_images:
            raise OutOfSpace(f"a question has at most {self._most_images} images: ask it, or send fewer")

    def _accept(self, asker: str, header: Header, number: int) -> None:
        """Let the image replace its older self, and a question about another series."""
        self._drop(
            f"id IN (SELECT id FROM {_OF_ASKER} AND id <> ? AND vectors IS NOT NULL AND "
            "(series_instance_uid <> ? OR sop_instance_uid = ? OR is_closed OR at < ?))",
            asker, number, header.series_instance_uid, header.sop_instance_uid, self._clock() - self._kept_s,
        )  # fmt: skip

    def _drop(self, where: str, *parameters: str | int | float) -> None:
        with self._archive.transaction() as database:
            database.execute(f"DELETE FROM asked WHERE {where}", parameters)
