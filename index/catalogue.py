"""Rows of what exists: patient → study → series → instance, with the counts that queries ask for.

Every function works inside the caller's transaction. Counts and lists (Number of Study Related Instances, Modalities in
Study, …) are kept with each change and never computed at query time.
"""

from __future__ import annotations

from typing import Any

from sqlite_utils import Database

from index.changes import now
from index.header import Header
from index.keys import Level, Matching, keys_of, snake_case
from index.matching import fold_name


def find_instance(database: Database, sop_instance_uid: str) -> dict[str, Any] | None:
    """Return the instance's row, with the UIDs of its series and study, or None."""
    cursor = database.execute(
        "SELECT instance.*, series.series_instance_uid, study.study_instance_uid FROM instance "
        "JOIN series ON series.id = instance.series JOIN study ON study.id = series.study "
        "WHERE instance.sop_instance_uid = ?",
        (sop_instance_uid,),
    )
    row = cursor.fetchone()
    return None if row is None else dict(zip([column[0] for column in cursor.description], row, strict=True))


def has_series(database: Database, series_instance_uid: str) -> bool:
    """Whether there is a series with that UID, in whichever study."""
    row = database.execute("SELECT 1 FROM series WHERE series_instance_uid = ? LIMIT 1", (series_instance_uid,))
    return row.fetchone() is not None


def add_instance(
    database: Database, header: Header, *, path: str, size: int, sha256: str, source_aet: str
) -> str | None:
    """Insert the instance and whatever of its patient, study and series is new.

    Returns
    -------
    str or None
        The Patient ID that the study already belongs to when the instance names another one, else None.
    """
    study_id, patient_id, mismatch = _study(database, header)
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
            "received_at": now(),
        },
    )
    _count(database, patient_id, study_id, series_id, instances=1, series=int(new_series), studies=0)
    if new_series:  # the modality that counts is the series' one
        _add_to_list(database, study_id, "modalities_in_study", header.values["Modality"])
    _add_to_list(database, study_id, "sop_classes_in_study", header.sop_class_uid)
    return mismatch


def remove_instance(database: Database, sop_instance_uid: str) -> str:
    """Delete the instance's row and whatever it leaves empty above it; return the path of its file."""
    instance, path, sop_class, series, study, patient = database.execute(
        "SELECT instance.id, instance.path, instance.sop_class_uid, series.id, study.id, study.patient FROM instance "
        "JOIN series ON series.id = instance.series JOIN study ON study.id = series.study "
        "WHERE instance.sop_instance_uid = ?",
        (sop_instance_uid,),
    ).fetchone()
    database.execute("DELETE FROM embedding WHERE instance = ?", (instance,))
    database.execute("DELETE FROM instance WHERE id = ?", (instance,))
    series_gone = not _has_rows(database, "instance", "series", series)
    if series_gone:
        database.execute("DELETE FROM embedding WHERE series = ?", (series,))
        database.execute("DELETE FROM series WHERE id = ?", (series,))
    study_gone = not _has_rows(database, "series", "study", study)
    if study_gone:
        database.execute("DELETE FROM study WHERE id = ?", (study,))
    elif series_gone or not _has_sop_class(database, study, sop_class):
        _refresh_lists(database, study)
    if not _has_rows(database, "study", "patient", patient):
        database.execute("DELETE FROM patient WHERE id = ?", (patient,))
    _count(database, patient, study, series, instances=-1, series=-int(series_gone), studies=-int(study_gone))
    return str(path)


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


def _study(database: Database, header: Header) -> tuple[int, int, str | None]:
    row = database.execute(
        "SELECT study.id, patient.id, patient.identity, patient.patient_id FROM study "
        "JOIN patient ON patient.id = study.patient WHERE study.study_instance_uid = ?",
        (header.study_instance_uid,),
    ).fetchone()
    if row is not None:
        return int(row[0]), int(row[1]), None if row[2] == _identity(header) else str(row[3])
    patient = _patient(database, header)
    study = _insert(database, Level.STUDY, header, {"patient": patient})
    database.execute(
        "UPDATE patient SET number_of_patient_related_studies = number_of_patient_related_studies + 1 WHERE id = ?",
        (patient,),
    )
    return study, patient, None


def _series(database: Database, header: Header, study: int) -> tuple[int, bool]:
    row = database.execute(
        "SELECT id FROM series WHERE study = ? AND series_instance_uid = ?", (study, header.series_instance_uid)
    ).fetchone()
    if row is not None:
        return int(row[0]), False
    return _insert(database, Level.SERIES, header, {"study": study}), True


def _insert(database: Database, level: Level, header: Header, more: dict[str, Any]) -> int:
    values: dict[str, Any] = {**more, "specific_character_set": header.charset}
    for key in keys_of(level):
        if key.counted:
            continue
        column = snake_case(key.keyword)
        values[column] = header.values[key.keyword]
        if key.matching is Matching.PERSON_NAME:
            values[f"{column}_folded"] = fold_name(header.values[key.keyword])
    columns, marks = ", ".join(values), ", ".join("?" * len(values))
    cursor = database.execute(f"INSERT INTO {level.table} ({columns}) VALUES ({marks})", tuple(values.values()))
    return int(cursor.lastrowid or 0)


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


def _add_to_list(database: Database, study: int, column: str, value: str) -> None:
    if not value:
        return
    (listed,) = database.execute(f"SELECT {column} FROM study WHERE id = ?", (study,)).fetchone()
    values = listed.split("\\") if listed else []
    if value not in values:
        joined = "\\".join(sorted([*values, value]))
        database.execute(f"UPDATE study SET {column} = ? WHERE id = ?", (joined, study))


def _refresh_lists(database: Database, study: int) -> None:
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
