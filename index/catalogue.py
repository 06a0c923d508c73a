"""Rows of what exists: patient → study → series → instance, with the counts that queries ask for.

Every function works inside the caller's transaction. Counts and lists (Number of Study Related Instances, Modalities in
Study, …) are kept with each change and never computed at query time.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from functools import cache
from typing import Any

from sqlite_utils import Database

from index import schema
from index.changes import now
from index.files import named_uid
from index.header import Header
from index.items import insert_items
from index.keys import KEYS, SEQUENCES, Level, Matching, keys_of, snake_case
from index.matching import fold_name


def find_instance(database: Database, sop_instance_uid: str) -> dict[str, Any] | None:
    """Return the instance's row, with the UIDs of its series and study, or None."""
    if not has_instance(database, sop_instance_uid):  # most often, and sooner told than a row of all columns
        return None
    cursor = database.execute(
        "SELECT instance.*, series.series_instance_uid, study.study_instance_uid FROM instance "
        "JOIN series ON series.id = instance.series JOIN study ON study.id = series.study "
        "WHERE instance.sop_instance_uid = ?",
        (sop_instance_uid,),
    )
    row = cursor.fetchone()
    return None if row is None else dict(zip([column[0] for column in cursor.description], row, strict=True))


def has_instance(database: Database, sop_instance_uid: str) -> bool:
    """Whether there is an instance with that UID."""
    row = database.execute("SELECT 1 FROM instance WHERE sop_instance_uid = ?", (sop_instance_uid,))
    return row.fetchone() is not None


AT_PATH = f"((sop_instance_uid = ? AND path = ?) OR ({schema.HAS_ANOTHER_NAME} AND path = ?))"
"""Condition for the instance whose file is at a path, by an index: the name of most files has the UID."""


def at_path(path: str) -> tuple[str, str, str]:
    """Return the parameters of `AT_PATH`."""
    return named_uid(path), path, path


def is_known(database: Database, path: str) -> bool:
    """Whether an instance has its file at `path`, below the data folder."""
    return database.execute(f"SELECT 1 FROM instance WHERE {AT_PATH}", at_path(path)).fetchone() is not None


def has_series(database: Database, series_instance_uid: str) -> bool:
    """Whether there is a series with that UID, in whichever study."""
    row = database.execute("SELECT 1 FROM series WHERE series_instance_uid = ? LIMIT 1", (series_instance_uid,))
    return row.fetchone() is not None


def add_instance(
    database: Database,
    header: Header,
    *,
    path: str,
    size: int,
    sha256: str,
    source_aet: str,
    received_at: str = "",
) -> None:
    """Insert the instance and whatever of its patient, study and series is new.

    Parameters
    ----------
    received_at
        ISO 8601 in UTC; the present moment when empty.
    """
    study_id, patient_id, modalities, classes = _study(database, header)
    series_id, new_series = _series(database, header, study_id)
    _insert(
        database,
        Level.IMAGE,
        header,
        {
            "series": series_id,
            "transfer_syntax_uid": header.transfer_syntax_uid,
            "path": path,
            "size": size,
            "sha256": sha256,
            "source_aet": source_aet,
            "received_at": received_at or now(),
            "verified_at": time.time(),  # its SHA-256 has just been read from the file
        },
    )
    _count(database, patient_id, study_id, series_id, instances=1, series=int(new_series), studies=0)
    if new_series:  # the modality that counts is the series' one
        _add_to_list(database, study_id, "modalities_in_study", modalities, header.values["Modality"])
    _add_to_list(database, study_id, "sop_classes_in_study", classes, header.sop_class_uid)


def note_received_again(database: Database, instance: int, senders: str) -> None:
    """Note that the instance with that row number was received again just now, and who has sent it by now.

    Parameters
    ----------
    senders
        As `index.senders` writes them.
    """
    database.execute("UPDATE instance SET received_at = ?, source_aet = ? WHERE id = ?", (now(), senders, instance))


@dataclass(frozen=True)
class OtherPatient:
    """The patient that a study belongs to already, when an instance of it names another one.

    Attributes
    ----------
    element
        Keyword of the element that differs: PatientID, IssuerOfPatientID, or what stands for an absent ID.
    is_absent
        Whether the instance names no Patient ID at all.
    """

    patient_id: str
    issuer: str
    element: str
    is_absent: bool


def other_patient(database: Database, header: Header) -> OtherPatient | None:
    """Return the patient of the instance's study when that is another one than the instance's own, else None."""
    row = database.execute(
        "SELECT patient.identity, patient.patient_id, patient.issuer_of_patient_id FROM study "
        "JOIN patient ON patient.id = study.patient WHERE study.study_instance_uid = ?",
        (header.study_instance_uid,),
    ).fetchone()
    if row is None or row[0] == _identity(header):
        return None
    told = header.values
    if told["PatientID"] != row[1]:
        element = "PatientID"
    elif told["IssuerOfPatientID"] != row[2]:
        element = "IssuerOfPatientID"
    else:  # neither has an ID: their names and birth dates tell them apart
        element = "PatientName"
    return OtherPatient(row[1], row[2], element, is_absent=not told["PatientID"])


def remove_instance(database: Database, sop_instance_uid: str) -> str:
    """Delete the instance's row and whatever it leaves empty above it; return the path of its file."""
    instance, path, sop_class, series, study, patient = database.execute(
        "SELECT instance.id, instance.path, instance.sop_class_uid, series.id, study.id, study.patient FROM instance "
        "JOIN series ON series.id = instance.series JOIN study ON study.id = series.study "
        "WHERE instance.sop_instance_uid = ?",
        (sop_instance_uid,),
    ).fetchone()
    _remove_embedding(database, instance, series)
    database.execute("DELETE FROM instance WHERE id = ?", (instance,))
    series_gone = not _has_rows(database, "instance", "series", series)
    if series_gone:
        database.execute("DELETE FROM embedding WHERE series = ?", (series,))
        database.execute("DELETE FROM series WHERE id = ?", (series,))
    study_gone = not _has_rows(database, "series", "study", study)
    if study_gone:
        database.execute("DELETE FROM study WHERE id = ?", (study,))
    elif series_gone or not _has_sop_class(database, study, sop_class):
        refresh_lists(database, study)
    if not _has_rows(database, "study", "patient", patient):
        database.execute("DELETE FROM patient WHERE id = ?", (patient,))
    _count(database, patient, study, series, instances=-1, series=-int(series_gone), studies=-int(study_gone))
    return str(path)


def _remove_embedding(database: Database, instance: int, series: int) -> None:
    """Delete the instance's vectors, and the series' own of each model that has none of its frames any more."""
    if database.execute("DELETE FROM embedding WHERE instance = ?", (instance,)).rowcount:
        database.execute(
            "DELETE FROM embedding WHERE series = ? AND instance IS NULL AND NOT EXISTS (SELECT 1 FROM embedding AS "
            "own WHERE own.model_id = embedding.model_id AND own.series = embedding.series "
            "AND own.instance IS NOT NULL)",
            (series,),
        )


def remove_series(database: Database, series: int) -> list[str]:
    """Delete a series' rows and whatever they leave empty above them; return the paths of its files."""
    study, patient = database.execute(
        "SELECT study.id, study.patient FROM series JOIN study ON study.id = series.study WHERE series.id = ?",
        (series,),
    ).fetchone()
    paths = [row[0] for row in database.execute("SELECT path FROM instance WHERE series = ?", (series,))]
    database.execute("DELETE FROM embedding WHERE series = ?", (series,))
    database.execute("DELETE FROM instance WHERE series = ?", (series,))
    database.execute("DELETE FROM series WHERE id = ?", (series,))
    study_gone = not _has_rows(database, "series", "study", study)
    if study_gone:
        database.execute("DELETE FROM study WHERE id = ?", (study,))
    else:
        refresh_lists(database, study)
    if not _has_rows(database, "study", "patient", patient):
        database.execute("DELETE FROM patient WHERE id = ?", (patient,))
    _count(database, patient, study, series, instances=-len(paths), series=-1, studies=-int(study_gone))
    return paths


def _has_rows(database: Database, table: str, column: str, value: int) -> bool:
    return database.execute(f"SELECT 1 FROM {table} WHERE {column} = ? LIMIT 1", (value,)).fetchone() is not None


def _has_sop_class(database: Database, study: int, sop_class_uid: str) -> bool:
    row = database.execute(
        "SELECT 1 FROM instance JOIN series ON series.id = instance.series "
        "WHERE series.study = ? AND instance.sop_class_uid = ? LIMIT 1",
        (study, sop_class_uid),
    ).fetchone()
    return row is not None


def _identity(header: Header) -> str:
    """What makes a patient one: ID and issuer; without an ID, name and birth date."""
    values = header.values
    if values["PatientID"]:
        return f"{values['PatientID']}\x1f{values['IssuerOfPatientID']}"
    return f"\x1f\x1f{fold_name(values['PatientName'])}\x1f{values['PatientBirthDate']}"


def _patient(database: Database, header: Header) -> int:
    identity = _identity(header)
    row = database.execute("SELECT id FROM patient WHERE identity = ?", (identity,)).fetchone()
    return int(row[0]) if row else _insert(database, Level.PATIENT, header, {"identity": identity})


def _study(database: Database, header: Header) -> tuple[int, int, str, str]:
    """Return the study's number and its patient's, and its lists of modalities and SOP classes."""
    row = database.execute(
        "SELECT id, patient, modalities_in_study, sop_classes_in_study FROM study WHERE study_instance_uid = ?",
        (header.study_instance_uid,),
    ).fetchone()
    if row is not None:
        study, patient, modalities, classes = row
        return study, patient, modalities or "", classes or ""
    patient = _patient(database, header)
    study = _insert(database, Level.STUDY, header, {"patient": patient})
    database.execute(
        "UPDATE patient SET number_of_patient_related_studies = number_of_patient_related_studies + 1 WHERE id = ?",
        (patient,),
    )
    return study, patient, "", ""


def _series(database: Database, header: Header, study: int) -> tuple[int, bool]:
    row = database.execute(
        "SELECT id FROM series WHERE study = ? AND series_instance_uid = ?", (study, header.series_instance_uid)
    ).fetchone()
    if row is not None:
        return int(row[0]), False
    return _insert(database, Level.SERIES, header, {"study": study}), True


def _insert(database: Database, level: Level, header: Header, more: dict[str, Any]) -> int:
    originals = {keyword: text for keyword, text in header.originals.items() if KEYS[keyword].level is level}
    keywords, names, statement = _insertion(level, tuple(more))
    cursor = database.execute(
        statement,
        (
            *more.values(),
            header.charset,
            header.timezone,
            json.dumps(originals) if originals else "",
            *map(header.values.__getitem__, keywords),
            *(fold_name(header.values[name]) for name in names),
        ),
    )
    row = int(cursor.lastrowid or 0)
    if header.items:
        of_level = [item for item in header.items if SEQUENCES[item.sequence].level is level]
        insert_items(database, level.table, row, of_level)
    return row


@cache
def _insertion(level: Level, more: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...], str]:
    """Return the keywords of the values of a row, those of names that are folded beside them, and the statement."""
    keys = [key for key in keys_of(level) if not key.counted]
    keywords = tuple(key.keyword for key in keys)
    names = tuple(key.keyword for key in keys if key.matching is Matching.PERSON_NAME)
    columns = [
        *more, "specific_character_set", "timezone_offset_from_utc", "originals",
        *map(snake_case, keywords), *(f"{snake_case(name)}_folded" for name in names),
    ]  # fmt: skip
    marks = ", ".join("?" * len(columns))
    return keywords, names, f"INSERT INTO {level.table} ({', '.join(columns)}) VALUES ({marks})"


def _count(
    database: Database, patient: int, study: int, series_id: int, *, instances: int, series: int, studies: int
) -> None:
    database.execute(
        "UPDATE series SET number_of_series_related_instances = number_of_series_related_instances + ? WHERE id = ?",
        (instances, series_id),
    )
    database.execute(
        "UPDATE study SET number_of_study_related_instances = number_of_study_related_instances + ?, "
        "number_of_study_related_series = number_of_study_related_series + ? WHERE id = ?",
        (instances, series, study),
    )
    database.execute(
        "UPDATE patient SET number_of_patient_related_instances = number_of_patient_related_instances + ?, "
        "number_of_patient_related_series = number_of_patient_related_series + ?, "
        "number_of_patient_related_studies = number_of_patient_related_studies + ? WHERE id = ?",
        (instances, series, studies, patient),
    )


def _add_to_list(database: Database, study: int, column: str, listed: str, value: str) -> None:
    if not value:
        return
    values = listed.split("\\") if listed else []
    if value not in values:
        joined = "\\".join(sorted([*values, value]))
        database.execute(f"UPDATE study SET {column} = ? WHERE id = ?", (joined, study))


def refresh_lists(database: Database, study: int) -> None:
    """Make the study's Modalities in Study and SOP Classes in Study again from its series and instances."""
    modalities = database.execute(
        "SELECT DISTINCT modality FROM series WHERE study = ? AND modality <> '' ORDER BY modality", (study,)
    ).fetchall()
    classes = database.execute(
        "SELECT DISTINCT sop_class_uid FROM instance JOIN series ON series.id = instance.series "
        "WHERE series.study = ? ORDER BY sop_class_uid",
        (study,),
    ).fetchall()
    database.execute(
        "UPDATE study SET modalities_in_study = ?, sop_classes_in_study = ? WHERE id = ?",
        ("\\".join(row[0] for row in modalities), "\\".join(row[0] for row in classes), study),
    )
