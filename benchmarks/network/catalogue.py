"""A catalogue of many studies, made in bulk by the functions of the catalogue itself: rows only, no files.

    python -m benchmarks.network.catalogue FOLDER --studies 100000 --instances 100

The first instance of each study goes the way of every instance; the others are copies of its row, made inside SQLite,
and are counted. So 10^7 instances take minutes and not hours, and the rows are as C-STORE would have left them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

from sqlite_utils import Database

from index import catalogue
from index.archive import Archive
from index.header import Header
from index.keys import indexed_keywords

ROOT = "1.2.826.0.1.3680043.9.7133.8"
_BLOCK = 2000
_FAMILIES = "AHMED BAUER CHEN DUBOIS ERIKSSON FISCHER GARCIA HANSEN IVANOVA JANSEN KOWALSKI LOPEZ MEYER".title().split()
_GIVEN = "ANNA BEN CLARA DAVID EVA FELIX GRETA HUGO IDA JONAS".title().split()
_MODALITIES = ("CT", "MR", "CR", "US", "PT")
_DESCRIPTIONS = ("Head", "Chest", "Abdomen", "Pelvis", "Knee")


def patient_id(number: int) -> str:
    """Return the Patient ID of study `number`."""
    return f"PID{number:07d}"


def headers(studies: int, first: int = 0) -> Iterator[Header]:
    """Yield the header of the first instance of each study; each study has a patient of its own."""
    blank = dict.fromkeys(indexed_keywords(), "")
    for number in range(first, first + studies):
        uid = f"{ROOT}.{number + 1}"
        values = blank | {
            "PatientID": patient_id(number),
            "PatientName": f"{_FAMILIES[number % 13]}{number // 130}^{_GIVEN[number % 10]}",
            "PatientBirthDate": f"{1930 + number % 80}{number % 12 + 1:02d}{number % 28 + 1:02d}",
            "PatientSex": "MF"[number % 2],
            "StudyInstanceUID": uid,
            "StudyDate": f"{2000 + number % 25}{number // 25 % 12 + 1:02d}{number // 300 % 28 + 1:02d}",
            "StudyTime": f"{number % 24:02d}{number % 60:02d}{number % 59:02d}",
            "AccessionNumber": f"A{number:08d}",
            "StudyID": str(number),
            "StudyDescription": _DESCRIPTIONS[number % 5],
            "ReferringPhysicianName": f"Referrer^{number % 50}",
            "SeriesInstanceUID": f"{uid}.1",
            "Modality": _MODALITIES[number % 5],
            "SeriesNumber": "1",
            "SOPInstanceUID": f"{uid}.1.1",
            "SOPClassUID": "1.2.840.10008.5.1.4.1.1.2",
            "InstanceNumber": "1",
            "Rows": "512",
            "Columns": "512",
        }
        yield Header(
            values["SOPClassUID"], values["SOPInstanceUID"], values["SeriesInstanceUID"], uid,
            "1.2.840.10008.1.2.1", "ISO_IR 100", values,
        )  # fmt: skip


def fill(archive: Archive, studies: int, *, instances: int = 1, first: int = 0) -> None:
    """Add studies, each with one series of so many instances, from number `first` on."""
    source = headers(studies, first)
    for begin in range(0, studies, _BLOCK):
        with archive.transaction() as database:
            (before,) = database.execute("SELECT coalesce(max(id), 0) FROM instance").fetchone()
            for _ in range(min(_BLOCK, studies - begin)):
                header = next(source)
                catalogue.add_instance(
                    database, header, path=f"synthetic/{header.sop_instance_uid}", size=0, sha256="", source_aet="",
                    received_at="2026-01-01T00:00:00+00:00",
                )  # fmt: skip
            if instances > 1:
                _multiply(database, before, instances)


def _multiply(database: Database, before: int, instances: int) -> None:
    """Give each series whose instance has a number above `before` so many instances."""
    own = {"sop_instance_uid": "substr(sop_instance_uid, 1, length(sop_instance_uid) - 1) || n",
           "path": "path || '.' || n", "instance_number": "n"}  # fmt: skip
    columns = [each.name for each in database["instance"].columns if each.name != "id"]
    database.execute(
        f"INSERT INTO instance ({', '.join(columns)}) WITH RECURSIVE counter(n) AS (SELECT 2 UNION ALL SELECT n + 1 "
        f"FROM counter WHERE n < ?) SELECT {', '.join(own.get(name, name) for name in columns)} "
        "FROM (SELECT * FROM instance WHERE id > ?), counter",
        (instances, before),
    )
    series = "SELECT DISTINCT series FROM instance WHERE id > ?"
    studies = f"SELECT study FROM series WHERE id IN ({series})"
    for table, column, chosen in (
        ("series", "number_of_series_related_instances", series),
        ("study", "number_of_study_related_instances", studies),
        ("patient", "number_of_patient_related_instances", f"SELECT patient FROM study WHERE id IN ({studies})"),
    ):
        database.execute(f"UPDATE {table} SET {column} = {column} + ? WHERE id IN ({chosen})", (instances - 1, before))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--studies", type=int, default=10_000)
    parser.add_argument("--instances", type=int, default=1, help="of each study")
    arguments = parser.parse_args()
    started = time.perf_counter()
    fill(Archive(arguments.folder), arguments.studies, instances=arguments.instances)
    print(f"{arguments.studies} studies of {arguments.instances} in {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
