"""What the UIDs stand for that were told to those who see the archive through a de-identification profile.

A replaced UID cannot be turned back into its original, not even with the key. So each is noted before it is told: a
peer asks for an object, or about it, by the UID that it was told. What is not noted stands for nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable

from index.archive import Archive

_OF_STUDY = (
    "SELECT study_instance_uid FROM study WHERE study_instance_uid = :study UNION ALL "
    "SELECT series_instance_uid FROM series JOIN study ON study.id = series.study "
    "WHERE study_instance_uid = :study UNION ALL "
    "SELECT frame_of_reference_uid FROM series JOIN study ON study.id = series.study "
    "WHERE study_instance_uid = :study AND frame_of_reference_uid <> '' UNION ALL "
    "SELECT sop_instance_uid FROM instance JOIN series ON series.id = instance.series "
    "JOIN study ON study.id = series.study WHERE study_instance_uid = :study"
)


def note(archive: Archive, profile: str, original_of: dict[str, str]) -> None:
    """Note what UIDs that are about to be told under `profile` stand for; what is noted already costs no write."""
    if not original_of:
        return
    known = originals(archive, profile, original_of)
    new = [(profile, uid, original) for uid, original in original_of.items() if uid not in known]
    if new:
        with archive.transaction() as database:
            database.conn.executemany("INSERT INTO told VALUES (?, ?, ?) ON CONFLICT DO NOTHING", new)


def originals(archive: Archive, profile: str, uids: Iterable[str]) -> dict[str, str]:
    """Return what those of `uids` stand for that were told under `profile`."""
    rows = archive.database.execute(
        "SELECT uid, original FROM told WHERE profile = ? AND uid IN (SELECT value FROM json_each(?))",
        (profile, json.dumps(list(uids))),
    )
    return {str(uid): str(original) for uid, original in rows}


def note_studies(archive: Archive, profile: str, studies: Iterable[str], replaced: Callable[[str], str]) -> None:
    """Note every UID of the studies: an object of one tells the UIDs of others of it, which it refers to.

    Parameters
    ----------
    studies
        Their own Study Instance UIDs.
    replaced
        Gives the UID that is told for an original one.
    """
    for study in dict.fromkeys(studies):
        uids = [str(row[0]) for row in archive.database.execute(_OF_STUDY, {"study": study}).fetchall()]
        note(archive, profile, {replaced(uid): uid for uid in uids})
