"""The counts and lists that the catalogue keeps with each change, compared with what they count."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sqlite_utils import Database

from index import catalogue
from index.keys import Level, snake_case

_BELOW = "FROM instance JOIN series ON series.id = instance.series"
_KEPT: dict[Level, tuple[str, str]] = {
    Level.SERIES: (
        "NumberOfSeriesRelatedInstances",
        "SELECT series, count(*) FROM instance GROUP BY series",
    ),
    Level.STUDY: (
        "NumberOfStudyRelatedInstances NumberOfStudyRelatedSeries",
        f"SELECT series.study, count(*), count(DISTINCT series.id) {_BELOW} GROUP BY series.study",
    ),
    Level.PATIENT: (
        "NumberOfPatientRelatedInstances NumberOfPatientRelatedSeries NumberOfPatientRelatedStudies",
        f"SELECT study.patient, count(*), count(DISTINCT series.id), count(DISTINCT study.id) {_BELOW} "
        "JOIN study ON study.id = series.study GROUP BY study.patient",
    ),
}
_LISTS = {
    "modalities_in_study": "SELECT DISTINCT study, modality AS value FROM series WHERE modality <> ''",
    "sop_classes_in_study": f"SELECT DISTINCT series.study AS study, instance.sop_class_uid AS value {_BELOW}",
}


@dataclass(frozen=True)
class WrongCount:
    """A kept value that is not what it should be."""

    level: Level
    row: int
    uid: str
    keyword: str
    kept: str
    true: str


def wrong_counts(database: Database) -> Iterator[WrongCount]:
    """Yield every kept count and list that is wrong; the database does the counting, nothing is held in memory."""
    for level, (keywords, truth) in _KEPT.items():
        unique = {Level.SERIES: "series_instance_uid", Level.STUDY: "study_instance_uid"}.get(level, "patient_id")
        for position, keyword in enumerate(keywords.split()):
            column = snake_case(keyword)
            rows = database.execute(
                f"WITH truth(id, {', '.join(f'n{number}' for number in range(len(keywords.split())))}) AS ({truth}) "
                f"SELECT kept.id, kept.{unique}, kept.{column}, coalesce(truth.n{position}, 0) FROM {level.table} "
                f"AS kept LEFT JOIN truth ON truth.id = kept.id "
                f"WHERE kept.{column} <> coalesce(truth.n{position}, 0)"
            )
            for row, uid, kept, true in rows:
                yield WrongCount(level, row, uid, keyword, str(kept), str(true))
    for column, values in _LISTS.items():
        rows = database.execute(
            "SELECT study.id, study.study_instance_uid, study." + column + ", coalesce(group_concat(value, '\\'), '') "
            f"FROM study LEFT JOIN (SELECT study, value FROM ({values}) ORDER BY study, value) AS found "
            "ON found.study = study.id GROUP BY study.id"
        )
        for row, uid, kept, listed in rows:
            true = "\\".join(sorted(listed.split("\\")))
            if kept != true:
                keyword = "ModalitiesInStudy" if column == "modalities_in_study" else "SOPClassesInStudy"
                yield WrongCount(Level.STUDY, row, uid, keyword, kept, true)


def wrong_sum(database: Database) -> tuple[int, int] | None:
    """Return the kept and the true size of all files, bytes, when they differ."""
    kept, true = database.execute(
        "SELECT (SELECT value FROM tally WHERE name = 'stored_bytes'), (SELECT coalesce(sum(size), 0) FROM instance)"
    ).fetchone()
    return None if kept == true else (kept, true)


def recount(database: Database, wrong: WrongCount) -> None:
    """Count again what `wrong` names, inside the caller's transaction."""
    column = snake_case(wrong.keyword)
    if column in _LISTS:
        catalogue.refresh_lists(database, wrong.row)
        return
    keywords, truth = _KEPT[wrong.level]
    position = keywords.split().index(wrong.keyword)
    names = ", ".join(f"n{number}" for number in range(len(keywords.split())))
    owner = {Level.SERIES: "instance.series", Level.STUDY: "series.study", Level.PATIENT: "study.patient"}[wrong.level]
    one = truth.replace(" GROUP BY", f" WHERE {owner} = ? GROUP BY")
    database.execute(
        f"WITH truth(id, {names}) AS ({one}) UPDATE {wrong.level.table} SET {column} = "
        f"coalesce((SELECT n{position} FROM truth), 0) WHERE id = ?",
        (wrong.row, wrong.row),
    )


def resum(database: Database) -> None:
    """Add up the sizes of all files again, inside the caller's transaction."""
    database.execute(
        "UPDATE tally SET value = (SELECT coalesce(sum(size), 0) FROM instance) WHERE name = 'stored_bytes'"
    )
