"""References typed into an ordinary query: ``~<ref>``, ``SIM:<ref>``, ``SIM:<ref>:k=10``; or bare, ``~``, ``~:k=10``.

``<ref>`` is a UID (study, series or instance), an accession number or a patient ID (its latest study), in any case. A
bare mark means what the asker has sent.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from sqlite_utils import Database

from index.archive import Archive
from index.errors import InvalidIdentifier, UnknownQuery
from index.files import is_valid_uid
from index.neighbours import MOST_RESULTS

_MARK = re.compile(r"(~|SIM:)", re.IGNORECASE)
_OPTION = re.compile(r":([A-Za-z]+)=([^:]*)\Z")
_LATEST = "ORDER BY {exact} DESC, study.study_date DESC, study.study_time DESC, study.id DESC LIMIT 1"


@dataclass(frozen=True)
class Reference:
    """What a reference names: one of the three UIDs, or none for what the asker has sent.

    Attributes
    ----------
    k
        Most neighbours wanted; None when the reference does not say.
    """

    study_instance_uid: str = ""
    series_instance_uid: str = ""
    sop_instance_uid: str = ""
    k: int | None = None

    @property
    def is_bare(self) -> bool:
        """Whether it names nothing of the archive."""
        return not (self.study_instance_uid or self.series_instance_uid or self.sop_instance_uid)


def is_reference(value: str) -> bool:
    """Whether the value of a matching key is a reference, asterisks around it aside."""
    return _MARK.match(_stripped(value)) is not None


def resolve_reference(archive: Archive, value: str) -> Reference:
    """Return what `value`, with or without its mark, names in the archive.

    Raises
    ------
    InvalidIdentifier
        An option that there is not (Status A900).
    UnknownQuery
        Names nothing here (Status C001).
    """
    text = _MARK.sub("", _stripped(value), count=1) if is_reference(value) else _stripped(value)
    k = None
    while option := _OPTION.search(text):
        k = _results(option[1], option[2])
        text = text[: option.start()]
    name = text.strip().strip("*").strip()
    if not name:
        return Reference(k=k)
    found = _find(archive.database, name)
    if found is None:
        raise UnknownQuery(f"names nothing in this archive: {name[:64]!r}")
    return Reference(**found, k=k)


def _stripped(value: str) -> str:
    return value.strip(" \0").strip("*").strip()


def _results(option: str, value: str) -> int:
    if option.lower() != "k":
        raise InvalidIdentifier(f"a reference has the option k, not {option[:16]!r}")
    if not re.fullmatch(r"[0-9]{1,4}", value.strip()) or not 1 <= int(value) <= MOST_RESULTS:
        raise InvalidIdentifier(f"k: expected 1 to {MOST_RESULTS}, got {value[:16]!r}")
    return int(value)


def _find(database: Database, name: str) -> dict[str, str] | None:
    if is_valid_uid(name):
        for table, column in (
            ("study", "study_instance_uid"),
            ("series", "series_instance_uid"),
            ("instance", "sop_instance_uid"),
        ):
            if database.execute(f"SELECT 1 FROM {table} WHERE {column} = ? LIMIT 1", (name,)).fetchone():
                return {column: name}
    for column in ("study.accession_number", "patient.patient_id"):
        latest = _LATEST.format(exact=f"({column} = :name)")
        row = database.execute(
            "SELECT study.study_instance_uid FROM study JOIN patient ON patient.id = study.patient "
            f"WHERE {column} = :name COLLATE NOCASE {latest}",
            {"name": name},
        ).fetchone()
        if row is not None:
            return {"study_instance_uid": row[0]}
    return None
