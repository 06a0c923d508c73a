"""References typed into an ordinary query: ``~<ref>``, ``SIM:<ref>``, ``SIM:<ref>:k=10``; or bare, ``~``, ``~:k=10``.

``<ref>`` is a UID (study, series or instance), an accession number or a patient ID (its latest study), in any case. A
bare mark means what the asker has sent.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from sqlite_utils import Database

from index.archive import Archive
from index.condition import Condition
from index.errors import InvalidIdentifier, UnknownQuery
from index.files import is_valid_uid
from index.neighbours import MOST_RESULTS

_MARK = re.compile(r"(~|SIM:)", re.IGNORECASE)
_ANY = Condition("1 = 1")
_OPTION = re.compile(r":([A-Za-z]+)=([^:]*)\Z")


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


def resolve_reference(archive: Archive, value: str, issuer: str = "") -> Reference:
    """Return what `value`, with or without its mark, names in the archive.

    Parameters
    ----------
    issuer
        Of a patient ID; empty: any, as long as there is no other with that ID.

    Raises
    ------
    InvalidIdentifier
        An option that there is not, or a patient ID that several issuers have given (Status A900).
    UnknownQuery
        Names nothing here (Status C001).
    """
    return parse_reference(value, lambda name: _find(archive.database, name, issuer))


def parse_reference(value: str, named: Callable[[str], Reference | None]) -> Reference:
    """Return what `value` names, with its options.

    Parameters
    ----------
    named
        Finds what a name stands for; None: nothing.

    Raises
    ------
    InvalidIdentifier, UnknownQuery
        As `resolve_reference`.
    """
    text = _MARK.sub("", _stripped(value), count=1) if is_reference(value) else _stripped(value)
    k = None
    while option := _OPTION.search(text):
        k = _results(option[1], option[2])
        text = text[: option.start()]
    name = text.strip().strip("*").strip()
    if not name:
        return Reference(k=k)
    found = named(name)
    if found is None:
        raise UnknownQuery(f"the reference names nothing in this archive: {name[:64]!r}")
    return replace(found, k=k)


def _stripped(value: str) -> str:
    return value.strip(" \0").strip("*").strip()


def _results(option: str, value: str) -> int:
    if option.lower() != "k":
        raise InvalidIdentifier(f"a reference has the option k, not {option[:16]!r}")
    if not re.fullmatch(r"[0-9]{1,4}", value.strip()) or not 1 <= int(value) <= MOST_RESULTS:
        raise InvalidIdentifier(f"k: expected 1 to {MOST_RESULTS}, got {value[:16]!r}")
    return int(value)


def _find(database: Database, name: str, issuer: str) -> Reference | None:
    if is_valid_uid(name) and (found := find_uid(database, name)) is not None:
        return found
    accession = Condition("study.accession_number = ? COLLATE NOCASE", (name,))
    found = latest_study(database, accession, Condition("(study.accession_number = ?)", (name,)))
    return found or _of_patient(database, name, issuer)


def _of_patient(database: Database, name: str, issuer: str) -> Reference | None:
    """Return the latest study of the patient with the ID `name`; as it is written, or else in any case."""
    for collation in ("BINARY", "NOCASE"):
        of_that_name = Condition(f"patient.patient_id = ? COLLATE {collation}", (name,))
        if issuer:
            of_that_name = Condition(
                f"{of_that_name.sql} AND patient.issuer_of_patient_id = ?", (*of_that_name.parameters, issuer)
            )
        issuers = database.execute(
            f"SELECT count(DISTINCT issuer_of_patient_id) FROM patient WHERE {of_that_name.sql}",
            of_that_name.parameters,
        ).fetchone()[0]
        if issuers > 1:
            raise InvalidIdentifier(
                f"{issuers} issuers have a patient of that ID: name the Issuer of Patient ID",
                element="IssuerOfPatientID",
            )
        if issuers:
            return latest_study(database, of_that_name)
    return None


def latest_study(database: Database, condition: Condition, preferred: Condition = _ANY) -> Reference | None:
    """Return the latest of the studies that fulfil `condition`, those that are `preferred` before the others."""
    row = database.execute(
        "SELECT study.study_instance_uid FROM study JOIN patient ON patient.id = study.patient "
        f"WHERE {condition.sql} ORDER BY {preferred.sql} DESC, study.study_date DESC, study.study_time DESC, "
        "study.id DESC LIMIT 1",
        (*condition.parameters, *preferred.parameters),
    ).fetchone()
    return None if row is None else Reference(study_instance_uid=row[0])


def find_uid(database: Database, uid: str) -> Reference | None:
    """Return the study, series or instance of that UID, None when there is none."""
    for reference, table, column in (
        (Reference(study_instance_uid=uid), "study", "study_instance_uid"),
        (Reference(series_instance_uid=uid), "series", "series_instance_uid"),
        (Reference(sop_instance_uid=uid), "instance", "sop_instance_uid"),
    ):
        if database.execute(f"SELECT 1 FROM {table} WHERE {column} = ? LIMIT 1", (uid,)).fetchone():
            return reference
    return None
