"""The rows of a vector index as what they stand for: an image, the series that it is of, its study."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sqlite_utils import Database

from index.keys import Level


@dataclass(frozen=True)
class Match:
    """A row of an index that stands for an image, a series or a study.

    Attributes
    ----------
    series
        Row of the table `series`.
    """

    cosine: float
    series: int
    sop_instance_uid: str
    frame: int
    series_instance_uid: str
    study_instance_uid: str
    patient_id: str

    def entity(self, level: Level) -> tuple[str, ...]:
        """Return the UIDs that identify what it stands for at `level`."""
        uids = (self.study_instance_uid, self.series_instance_uid, self.sop_instance_uid)
        return uids[: level.depth]

    def order(self) -> tuple[float | str | int, ...]:
        """Return the key that sorts the best first, and equal ones by their UIDs."""
        return (-self.cosine, *self.entity(Level.IMAGE), self.frame)


def matches_of(database: Database, cosine_of: Mapping[int, float]) -> list[Match]:
    """Return what rows of the table `embedding` stand for, in no order."""
    rows = database.execute(
        "SELECT embedding.id, embedding.series, coalesce(instance.sop_instance_uid, ''), embedding.frame, "
        "series.series_instance_uid, study.study_instance_uid, patient.patient_id FROM embedding "
        "JOIN series ON series.id = embedding.series JOIN study ON study.id = series.study "
        "JOIN patient ON patient.id = study.patient LEFT JOIN instance ON instance.id = embedding.instance "
        "WHERE embedding.id IN (SELECT value FROM json_each(?))",
        (json.dumps(list(cosine_of)),),
    )
    return [Match(cosine_of[row], *place) for row, *place in rows]


def best_of_each(matches: Iterable[Match], level: Level) -> list[Match]:
    """Return the best match of each entity at `level`, best first; a study ranks by its best series."""
    best: dict[tuple[str, ...], Match] = {}
    for match in sorted(matches, key=Match.order):
        best.setdefault(match.entity(level), match)
    return list(best.values())
