"""What of the archive an Orthanc holds as well, and under which of its identifiers.

Orthanc's identifiers are its own (SHA-1, in five groups); one of its series is one of a patient and a study. The rows
are noted by who pulls from Orthanc and pushes to it, and forgotten with the instances.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlite_utils import Database

from index.catalogue import find_instance
from index.derivations import maker
from index.senders import all_senders


@dataclass(frozen=True)
class Held:
    """An instance that Orthanc holds.

    Attributes
    ----------
    orthanc_id
        Of the instance, in Orthanc.
    version
        Of what was pulled: Orthanc's name of the file (FileUuid), another one when it is overwritten. Of what was
        pushed: the SHA-256 of the file. Empty: Orthanc has some version of what this node has made.
    """

    sop_instance_uid: str
    orthanc_id: str
    version: str


@dataclass(frozen=True)
class OrthancSeries:
    """A series that Orthanc holds.

    Attributes
    ----------
    listing
        `digest` of the identifiers of its instances when it was last pulled as a whole.
    content
        `digest` of these with their versions.
    """

    orthanc_id: str
    orthanc_study: str
    series_instance_uid: str
    listing: str = ""
    content: str = ""


def digest(parts: Iterable[str]) -> str:
    """Digest of a set of strings, whatever their order."""
    return hashlib.sha256("\n".join(sorted(parts)).encode()).hexdigest()


def note_instance(database: Database, held: Held, orthanc_series: str) -> None:
    """Note that Orthanc holds an instance; nothing when the archive does not."""
    database.execute(
        "INSERT INTO orthanc_instance (instance, orthanc_id, orthanc_series, version) "
        "SELECT id, ?, ?, ? FROM instance WHERE sop_instance_uid = ? ON CONFLICT (instance) DO UPDATE SET "
        "orthanc_id = excluded.orthanc_id, orthanc_series = excluded.orthanc_series, version = excluded.version",
        (held.orthanc_id, orthanc_series, held.version, held.sop_instance_uid),
    )


def forget_instance(database: Database, sop_instance_uid: str) -> None:
    """Note that Orthanc holds an instance no longer, or not in a version that is known."""
    database.execute(
        "DELETE FROM orthanc_instance WHERE instance = (SELECT id FROM instance WHERE sop_instance_uid = ?)",
        (sop_instance_uid,),
    )


def note_series(database: Database, series: OrthancSeries) -> None:
    """Note that Orthanc holds a series, and what of it is known."""
    database.execute(
        "INSERT OR REPLACE INTO orthanc_series (orthanc_id, orthanc_study, series_instance_uid, listing, content) "
        "VALUES (?, ?, ?, ?, ?)",
        (series.orthanc_id, series.orthanc_study, series.series_instance_uid, series.listing, series.content),
    )


def forget_series(database: Database, orthanc_id: str) -> None:
    """Note that Orthanc holds a series no longer."""
    database.execute("DELETE FROM orthanc_series WHERE orthanc_id = ?", (orthanc_id,))


def find_series(database: Database, orthanc_id: str) -> OrthancSeries | None:
    """Return what is noted of a series, by Orthanc's identifier."""
    row = database.execute(
        "SELECT orthanc_id, orthanc_study, series_instance_uid, listing, content FROM orthanc_series "
        "WHERE orthanc_id = ?",
        (orthanc_id,),
    ).fetchone()
    return None if row is None else OrthancSeries(*row)


def all_series(database: Database) -> dict[str, str]:
    """Return Orthanc's identifier of every series that is noted, with its listing."""
    return dict(database.execute("SELECT orthanc_id, listing FROM orthanc_series").fetchall())


def study_uid(database: Database, orthanc_study: str) -> str:
    """Return the Study Instance UID of a study, by Orthanc's identifier; "" when none of its series is here."""
    row = database.execute(
        "SELECT study.study_instance_uid FROM orthanc_series "
        "JOIN series ON series.series_instance_uid = orthanc_series.series_instance_uid "
        "JOIN study ON study.id = series.study WHERE orthanc_series.orthanc_study = ? LIMIT 1",
        (orthanc_study,),
    ).fetchone()
    return "" if row is None else str(row[0])


def instances_of(database: Database, orthanc_series: str) -> dict[str, Held]:
    """Return the instances of one of Orthanc's series that are noted, by Orthanc's identifiers."""
    rows = database.execute(
        "SELECT instance.sop_instance_uid, orthanc_instance.orthanc_id, orthanc_instance.version "
        "FROM orthanc_instance JOIN instance ON instance.id = orthanc_instance.instance "
        "WHERE orthanc_instance.orthanc_series = ?",
        (orthanc_series,),
    )
    return {orthanc_id: Held(uid, orthanc_id, version) for uid, orthanc_id, version in rows.fetchall()}


def held(database: Database, sop_instance_uids: Sequence[str]) -> dict[str, Held]:
    """Return those of the instances that Orthanc holds, by their SOP Instance UIDs."""
    rows = database.execute(
        "SELECT instance.sop_instance_uid, orthanc_instance.orthanc_id, orthanc_instance.version "
        "FROM orthanc_instance JOIN instance ON instance.id = orthanc_instance.instance "
        "WHERE instance.sop_instance_uid IN (SELECT value FROM json_each(?))",
        (json.dumps(list(sop_instance_uids)),),
    )
    return {uid: Held(uid, orthanc_id, version) for uid, orthanc_id, version in rows.fetchall()}


def series_by_instances(database: Database, orthanc_ids: Sequence[str]) -> list[str]:
    """Return Orthanc's identifiers of the series that hold these of its instances."""
    rows = database.execute(
        "SELECT DISTINCT orthanc_series FROM orthanc_instance WHERE orthanc_id IN (SELECT value FROM json_each(?)) "
        "ORDER BY orthanc_series",
        (json.dumps(list(orthanc_ids)),),
    )
    return [series for (series,) in rows.fetchall()]


def comes_from_orthanc(database: Database, series_instance_uid: str) -> bool:
    """Whether Orthanc holds the series, or one that it was made from, however many steps ago."""
    row = database.execute(
        "WITH RECURSIVE origin(uid) AS (SELECT ? UNION SELECT derivation.source FROM origin "
        "JOIN derivation_output ON derivation_output.series_instance_uid = origin.uid "
        "JOIN derivation ON derivation.id = derivation_output.derivation) "
        "SELECT 1 FROM origin JOIN orthanc_series ON orthanc_series.series_instance_uid = origin.uid LIMIT 1",
        (series_instance_uid,),
    ).fetchone()
    return row is not None


def is_known_from_it_alone(database: Database, sop_instance_uid: str, aet: str) -> bool:
    """Whether an instance is stored that nobody but Orthanc (of that AE title) has sent, or that this node has made."""
    stored = find_instance(database, sop_instance_uid)
    if stored is None:
        return False
    is_copy = all(sender == aet for sender in all_senders(stored["source_aet"]))
    return is_copy or maker(database, stored["series_instance_uid"]) is not None


def unsent(database: Database, series_instance_uid: str = "") -> list[str]:
    """Return the series made from what Orthanc holds, of which it lacks an instance or has an older version.

    Parameters
    ----------
    series_instance_uid
        Only what was made from this series; "": from any.
    """
    rows = database.execute(
        "WITH RECURSIVE made(uid) AS (SELECT series_instance_uid FROM orthanc_series "
        "WHERE :uid IN ('', series_instance_uid) UNION SELECT derivation_output.series_instance_uid FROM made "
        "JOIN derivation ON derivation.source = made.uid "
        "JOIN derivation_output ON derivation_output.derivation = derivation.id) "
        "SELECT DISTINCT made.uid FROM made "
        "JOIN derivation_output ON derivation_output.series_instance_uid = made.uid "
        "JOIN series ON series.series_instance_uid = made.uid JOIN instance ON instance.series = series.id "
        "LEFT JOIN orthanc_instance ON orthanc_instance.instance = instance.id "
        "WHERE orthanc_instance.version IS NOT instance.sha256 ORDER BY made.uid",
        {"uid": series_instance_uid},
    )
    return [uid for (uid,) in rows.fetchall()]


def pictured_series(database: Database, study_instance_uid: str) -> str:
    """Return a series of the study that is embedded, to be shown for it; "" when there is none."""
    row = database.execute(
        "SELECT series.series_instance_uid FROM study JOIN series ON series.study = study.id "
        "WHERE study.study_instance_uid = ? AND EXISTS (SELECT 1 FROM embedding WHERE embedding.series = series.id) "
        "ORDER BY CAST(series.series_number AS INTEGER), series.id LIMIT 1",
        (study_instance_uid,),
    ).fetchone()
    return "" if row is None else str(row[0])


_DESCRIBED = (
    "patient_id", "patient_name", "study_date", "study_description", "accession_number", "modality",
    "series_description",
)  # fmt: skip


def described(database: Database, series_instance_uid: str, sop_instance_uid: str = "") -> dict[str, Any]:
    """Return what people want to know of a series, and its identifiers in Orthanc (None: it is not there).

    Parameters
    ----------
    sop_instance_uid
        The image that is to be shown for it; "": the middle one.

    Returns
    -------
    dict
        Empty when the archive does not hold the series (any more). ``orthanc_series``, ``orthanc_study``,
        ``orthanc_instance`` (the image to show), and descriptive keys by their names in snake case.
    """
    row = database.execute(
        f"SELECT series.id, {', '.join(_DESCRIBED)} FROM series JOIN study ON study.id = series.study "
        "JOIN patient ON patient.id = study.patient WHERE series.series_instance_uid = ? LIMIT 1",
        (series_instance_uid,),
    ).fetchone()
    if row is None:
        return {}
    number, *values = row
    shown = database.execute(
        "SELECT instance.sop_instance_uid, orthanc_instance.orthanc_id, orthanc_instance.orthanc_series "
        "FROM instance LEFT JOIN orthanc_instance ON orthanc_instance.instance = instance.id "
        "WHERE instance.series = ? ORDER BY instance.sop_instance_uid = ? DESC, "
        "CAST(instance.instance_number AS INTEGER), instance.id "
        "LIMIT 1 OFFSET (SELECT CASE WHEN ? = '' THEN count(*) / 2 ELSE 0 END FROM instance WHERE series = ?)",
        (number, sop_instance_uid, sop_instance_uid, number),
    ).fetchone()
    orthanc_series = shown[2] if shown else None
    noted = find_series(database, orthanc_series) if orthanc_series else None
    return {
        **dict(zip(_DESCRIBED, values, strict=True)),
        "sop_instance_uid": shown[0] if shown else None,
        "orthanc_instance": shown[1] if shown else None,
        "orthanc_series": orthanc_series,
        "orthanc_study": noted.orthanc_study if noted else None,
    }
