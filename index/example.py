"""The example of a query by example: what it names in the archive, its vectors, and where it stands."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from sqlite_utils import Database

from index import asked
from index.asked import Part
from index.embeddings import EmbeddingModel
from index.errors import InvalidIdentifier, NotEmbedded, UnknownQuery, WrongDimension
from index.neighbours import Exclude, Sent, SimilarityRequest
from index.unit_vectors import Vectors, from_bytes, mean_direction, unit, whole_direction


@dataclass(frozen=True, eq=False)
class Example:
    """What a query is about.

    Attributes
    ----------
    parts
        One for each series (an image or a vector is one part): its frames' vectors, axes (frame, d).
    series
        Rows of the table `series` that hold it; none for a vector of unknown origin.
    """

    parts: tuple[Vectors, ...]
    series: tuple[int, ...]

    def means(self) -> Vectors:
        """Return the vector of each part, axes (part, d)."""
        return np.stack([mean_direction(part) for part in self.parts])

    def wholes(self) -> Vectors:
        """Return the vector of each part as series have one, axes (part, 2d)."""
        return np.stack([whole_direction(part) for part in self.parts])


@dataclass(frozen=True)
class _Place:
    """Where the catalogue has what the request names."""

    table: str
    uid: str
    keyword: str

    @property
    def column(self) -> str:
        return f"{self.table}.{'sop' if self.table == 'instance' else self.table}_instance_uid"


def locate(database: Database, request: SimilarityRequest) -> tuple[int, ...]:
    """Return the series rows that hold what `request` names, none for a vector; raises `UnknownQuery`."""
    if request.vector is not None or request.sent is not None:
        return ()
    place = _place(request)
    rows = database.execute(
        "SELECT DISTINCT series.id FROM study JOIN series ON series.study = study.id "
        f"JOIN instance ON instance.series = series.id WHERE {place.column} = ? ORDER BY series.id",
        (place.uid,),
    ).fetchall()
    if not rows:
        raise UnknownQuery(f"no such {place.table} here: {place.uid[:64]}", element=place.keyword)
    return tuple(row[0] for row in rows)


def find_example(database: Database, model: EmbeddingModel, request: SimilarityRequest) -> Example:
    """Return what `request` names, with its vectors under `model`.

    Raises
    ------
    UnknownQuery
        Not in the archive (Status C001).
    NotEmbedded
        In the archive, without vectors under this model (Status C002).
    WrongDimension
        A vector of another length than the model's (Status C004).
    InvalidIdentifier
        A frame that the instance does not have, a vector without direction (Status A900).
    """
    if request.vector is not None:
        return _from_vector(request.vector, model)
    if request.sent is not None:
        return _from_sent(database, request.sent, model, request.exclude)
    place, series = _place(request), locate(database, request)
    if request.frame_number is not None:
        _require_frame(database, place.uid, request.frame_number)
    parts: list[Vectors] = []
    if request.region is None:
        parts = _stored(database, model.model_id, series, place, request.frame_number)
    if not parts and request.sop_instance_uid:
        made = asked.find(database, model.model_id, _part(request))
        parts = [] if made is None else [made]
    if not parts:
        what = f"frame {request.frame_number} of " if request.frame_number is not None else ""
        what = what if request.region is None else f"a region of {what}"
        raise NotEmbedded(f"not embedded (yet): {what}{place.table} {place.uid[:64]}", element=place.keyword)
    return Example(tuple(parts), series)


def missing_part(database: Database, model: EmbeddingModel, request: SimilarityRequest) -> Part | None:
    """Return what has to be embedded before `find_example` can answer; None: nothing, or what only a worker embeds.

    Raises
    ------
    UnknownQuery, InvalidIdentifier
        As `find_example`.
    """
    if not request.sop_instance_uid:
        return None
    place, series = _place(request), locate(database, request)
    if request.frame_number is not None:
        _require_frame(database, place.uid, request.frame_number)
    if request.region is None and _stored(database, model.model_id, series, place, request.frame_number):
        return None
    return _part(request)


def _part(request: SimilarityRequest) -> Part:
    return Part(request.sop_instance_uid, request.frame_number or 0, request.region)


def _from_sent(database: Database, sent: Sent, model: EmbeddingModel, exclude: frozenset[Exclude]) -> Example:
    if sent.model_id != model.model_id:
        raise NotEmbedded(f"what was sent is embedded by {sent.model_id}, not {model.model_id}: send it again")
    # Of all that the wider exclusions leave out any series will do, so the archive need not hold the sent one itself.
    own = "series_instance_uid = :series AND study_instance_uid = :study"
    if exclude & {Exclude.SAME_STUDY, Exclude.SAME_PATIENT}:  # without a Patient ID the study stands for the patient
        own = "study_instance_uid = :study"
    if Exclude.SAME_PATIENT in exclude and sent.patient_id:
        own = "study_instance_uid = :study OR patient_id = :patient"
    values = {
        "series": sent.series_instance_uid,
        "study": sent.study_instance_uid,
        "patient": sent.patient_id,
        "instances": json.dumps(sent.sop_instance_uids),
    }
    rows = database.execute(
        "SELECT series.id FROM patient JOIN study ON study.patient = patient.id JOIN series ON series.study = study.id "
        f"WHERE {own} UNION SELECT series FROM instance "
        "WHERE sop_instance_uid IN (SELECT value FROM json_each(:instances)) ORDER BY 1",
        values,
    )
    return Example((sent.vectors,), tuple(row[0] for row in rows))


def _from_vector(vector: Vectors, model: EmbeddingModel) -> Example:
    values = np.asarray(vector)
    if values.shape != (model.dimension,):
        raise WrongDimension(
            f"{model.model_id} has vectors of {model.dimension} values, got {values.size}", element="QueryVector"
        )
    try:
        return Example((unit(values[None, :]),), ())
    except ValueError as error:
        raise InvalidIdentifier(f"the query vector is {error}", element="QueryVector") from error


def _place(request: SimilarityRequest) -> _Place:
    if request.sop_instance_uid:
        return _Place("instance", request.sop_instance_uid, "QuerySOPInstanceUID")
    if request.series_instance_uid:
        return _Place("series", request.series_instance_uid, "QuerySeriesInstanceUID")
    return _Place("study", request.study_instance_uid, "QueryStudyInstanceUID")


def _require_frame(database: Database, sop_instance_uid: str, frame_number: int) -> None:
    stored = database.execute(
        "SELECT number_of_frames FROM instance WHERE sop_instance_uid = ?", (sop_instance_uid,)
    ).fetchone()[0]
    frames = int(stored) if str(stored).isdecimal() else 1
    if frame_number > max(frames, 1):
        raise InvalidIdentifier(
            f"frame {frame_number} asked of an instance of {max(frames, 1)}", element="QueryFrameNumber"
        )


def _stored(
    database: Database, model_id: str, series: tuple[int, ...], place: _Place, frame_number: int | None
) -> list[Vectors]:
    """Return the frames' vectors, series by series."""
    frame, frames = "1", []
    if frame_number is not None:  # a single-frame instance keeps its one frame as 0
        frame, frames = "(embedding.frame = ? OR (embedding.frame = 0 AND ? = 1))", [frame_number] * 2
    rows = database.execute(
        "SELECT embedding.series, embedding.vector FROM embedding JOIN instance ON instance.id = embedding.instance "
        "JOIN series ON series.id = embedding.series JOIN study ON study.id = series.study "
        "WHERE embedding.model_id = ? AND embedding.series IN (SELECT value FROM json_each(?)) "
        f"AND {place.column} = ? AND {frame} ORDER BY embedding.series, embedding.id",
        (model_id, str(list(series)), place.uid, *frames),
    )
    return [np.stack([from_bytes(row[1]) for row in group]) for _, group in groupby(rows, key=lambda row: row[0])]
