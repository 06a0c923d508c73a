"""Which embeddings compete in a similarity query: chosen by SQL before the search, so that k appear while k exist."""

from __future__ import annotations

import numpy as np
from sqlite_utils import Database

from index.bases.rows import fetch_ids, of_grain
from index.bases.selection import Grain, Selection
from index.example import Example
from index.keys import Level
from index.neighbours import Exclude, SimilarityRequest

_SERIES = "patient JOIN study ON study.patient = patient.id JOIN series ON series.study = study.id"
_IMAGES = f"{_SERIES} JOIN instance ON instance.series = series.id"

_EXCLUDED_SERIES = {
    Exclude.SAME_SERIES: "SELECT value FROM json_each(?)",
    Exclude.SAME_STUDY: (
        "SELECT id FROM series WHERE study IN "
        "(SELECT study FROM series WHERE id IN (SELECT value FROM json_each(?)))"
    ),
    Exclude.SAME_PATIENT: (
        "WITH own AS (SELECT study.id, study.patient, patient.patient_id FROM series "
        "JOIN study ON study.id = series.study JOIN patient ON patient.id = study.patient "
        "WHERE series.id IN (SELECT value FROM json_each(?))) "
        "SELECT series.id FROM series JOIN study ON study.id = series.study "
        "WHERE study.patient IN (SELECT patient FROM own WHERE patient_id <> '') "
        "UNION SELECT id FROM series WHERE study IN (SELECT id FROM own)"
    ),
}
"""A study without a Patient ID stands for a patient of its own, as in `index.split`."""


def select(
    database: Database, model_id: str, grain: Grain, request: SimilarityRequest, example: Example
) -> Selection:
    """Return which rows of `grain` under the model pass the filter of `request` and are not excluded."""
    own = f"SELECT id FROM embedding WHERE model_id = ? AND {of_grain(grain)}"
    among = None
    if request.filter is not None and request.filter.conditions:
        where, parameters = request.filter.where()
        # Most conditions are on patient, study and series: then the images, of which there are most, are not looked at.
        asks_images = "instance." in where
        matched = "instance" if asks_images and request.level is Level.IMAGE else "series"
        chosen = f"SELECT {matched}.id FROM {_IMAGES if asks_images else _SERIES} WHERE {where}"
        among = fetch_ids(database, f"{own} AND {matched} IN ({chosen})", [model_id, *parameters])
    without = [
        fetch_ids(
            database, f"{own} AND series IN ({_EXCLUDED_SERIES[exclude]})", [model_id, str(list(example.series))]
        )
        for exclude in sorted(request.exclude)
        if example.series
    ]
    return Selection(among, np.unique(np.concatenate([np.empty(0, dtype=np.int64), *without])))
