"""What is ranked when encoders are judged: the labelled series of an archive, with the vectors of each encoder.

Vectors that the archive has are taken from it; what an encoder has not embedded is embedded by whoever asks (no model
runs here). Only what every encoder has a vector of takes part: they are judged by the same queries.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from index.archive import Archive
from index.embeddings import FrameVector
from index.evaluation import Items
from index.keys import Level
from index.split import is_held_out, patient_key
from index.unit_vectors import Vectors, from_bytes, whole_direction

FramesOf = Mapping[str, Sequence[FrameVector]]
"""Series Instance UID → the vectors of its frames, of one encoder."""


@dataclass(frozen=True)
class Member:
    """A labelled series.

    Attributes
    ----------
    patient
        `index.split.patient_key` of its study.
    """

    series_instance_uid: str
    study_instance_uid: str
    patient: str
    label: str


@dataclass(frozen=True)
class Part:
    """Which patients take part.

    Attributes
    ----------
    fraction
        Share of the patients that is held out; None: there is no held-out part, and everybody takes part.
    seed
        Of the split.
    """

    fraction: float | None = None
    seed: int = 0

    def holds(self, member: Member) -> bool:
        """Whether the series belongs to the held-out part, or to everything where there is none."""
        return self.fraction is None or is_held_out(member.patient, seed=self.seed, fraction=self.fraction)


@dataclass(frozen=True, eq=False)
class Gallery:
    """What is ranked.

    Attributes
    ----------
    items
        Axis (n,).
    vectors
        By encoder, axes (n, d).
    frames
        SOP Instance UID and frame number that show each item, axis (n,); the middle one of a series.
    """

    items: Items
    vectors: Mapping[str, Vectors]
    frames: tuple[tuple[str, int], ...]


def members(archive: Archive, labels: Mapping[str, str]) -> list[Member]:
    """Return the series that have a label and images, by their UIDs."""
    rows = archive.database.execute(
        "SELECT DISTINCT series.series_instance_uid, study.study_instance_uid, patient.patient_id FROM patient "
        "JOIN study ON study.patient = patient.id JOIN series ON series.study = study.id "
        "JOIN instance ON instance.series = series.id WHERE instance.rows <> '' ORDER BY series.series_instance_uid"
    )
    return [
        Member(series, study, patient_key(patient, study), labels[series])
        for series, study, patient in rows
        if series in labels
    ]


def stored_frames(archive: Archive, model_id: str, chosen: Sequence[Member]) -> dict[str, list[FrameVector]]:
    """Return the vectors of frames that the archive has of the `chosen` series under that model."""
    found: dict[str, list[FrameVector]] = defaultdict(list)
    rows = archive.database.execute(
        "SELECT series.series_instance_uid, instance.sop_instance_uid, embedding.frame, embedding.vector "
        "FROM embedding JOIN series ON series.id = embedding.series JOIN instance ON instance.id = embedding.instance "
        "WHERE embedding.model_id = ? AND series.series_instance_uid IN (SELECT value FROM json_each(?)) "
        "ORDER BY embedding.id",
        (model_id, json.dumps([member.series_instance_uid for member in chosen])),
    )
    for series, instance, frame, vector in rows:
        found[series].append((instance, frame, from_bytes(vector)))
    return dict(found)


def gallery(chosen: Sequence[Member], frames_of: Mapping[str, FramesOf], level: Level) -> Gallery:
    """Return the items at `level` with their vectors.

    At level IMAGE each frame is one; at level SERIES each series, by the vector that the node's search shortlists by
    (mean beside maximum, `index.unit_vectors.whole_direction`), without the re-ranking that follows there.

    Parameters
    ----------
    frames_of
        By encoder.

    Raises
    ------
    ValueError
        Another level.
    """
    if level not in (Level.IMAGE, Level.SERIES):
        raise ValueError(f"encoders are judged at level IMAGE or SERIES, not {level}")
    owners: list[Member] = []
    shown: list[tuple[str, int]] = []
    rows: dict[str, list[Vectors]] = {name: [] for name in frames_of}
    for member in chosen:
        own = {
            name: {(instance, frame): vector for instance, frame, vector in frames.get(member.series_instance_uid, ())}
            for name, frames in frames_of.items()
        }
        common = [frame for frame in next(iter(own.values())) if all(frame in vectors for vectors in own.values())]
        groups = [common] if level is Level.SERIES and common else [[frame] for frame in common]
        for group in groups:
            owners.append(member)
            shown.append(group[len(group) // 2])
            for name, vectors in own.items():
                own_frames = np.stack([vectors[frame] for frame in group])
                rows[name].append(whole_direction(own_frames) if level is Level.SERIES else own_frames[0])
    columns = [
        np.array([getattr(owner, name) for owner in owners], dtype=np.str_)
        for name in ("label", "patient", "study_instance_uid", "series_instance_uid")
    ]
    vectors_of = {name: np.stack(own) if own else np.empty((0, 0), np.float32) for name, own in rows.items()}
    return Gallery(Items(*columns), vectors_of, tuple(shown))
