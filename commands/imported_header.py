"""Whose scan an imported one is: patient and study, as options tell them and as the archive has them already."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pydicom.dataset import Dataset

from index.archive import Archive
from index.files import is_valid_uid
from index.matching import fold_name
from reconstruct.projections.frames import ScanError

_LONGEST_LO, _LONGEST_SH, _LONGEST_CS = 64, 16, 16
_GROUPS, _COMPONENTS = 3, 5
"""Of a person's name: alphabetic, ideographic and phonetic, each of family, given, middle, prefix and suffix."""

_TAKEN_OVER = (
    "PatientID", "PatientName", "IssuerOfPatientID", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID",
    "StudyDescription", "ReferringPhysicianName",
)  # fmt: skip
_STORED = (
    "SELECT patient_id, patient_name, issuer_of_patient_id, patient_birth_date, patient_sex, accession_number, "
    "study_id, study_description, referring_physician_name FROM study JOIN patient ON patient.id = study.patient "
    "WHERE study_instance_uid = ?"
)
"""Values of `_TAKEN_OVER`, in their order."""


@dataclass(frozen=True)
class Told:
    """Patient and study as the options of the command tell them; empty: not told."""

    patient_id: str = ""
    patient_name: str = ""
    study_uid: str = ""
    study_description: str = ""
    accession_number: str = ""
    body_part: str = ""

    def check(self, stem: str) -> None:
        """Refuse what an element cannot hold (PS3.5 6.2).

        Parameters
        ----------
        stem
            Name of the file, which stands for an ID and a name that are not told.

        Raises
        ------
        ScanError
            A value that is too long, has several parts or unprintable characters, or is no UID.
        """
        if self.study_uid and not is_valid_uid(self.study_uid):
            raise ScanError(
                f"--study-uid is {self.study_uid!r}, expected a UID: digits and dots, at most 64 characters"
            )
        for option, value, longest in (
            ("--patient-id", self.patient_id or stem, _LONGEST_LO),
            ("--study-description", self.study_description, _LONGEST_LO),
            ("--accession-number", self.accession_number, _LONGEST_SH),
        ):
            _check_text(option, value, longest)
        _check_name(self.patient_name or stem)
        if self.body_part and not re.fullmatch(rf"[A-Z0-9_ ]{{1,{_LONGEST_CS}}}", self.body_part):
            raise ScanError(
                f"--body-part is {self.body_part!r}, expected at most {_LONGEST_CS} capital letters, digits, spaces "
                "and underscores"
            )


def _check_text(option: str, value: str, longest: int) -> None:
    if len(value) > longest:
        raise ScanError(f"{option} is {value!r}, {len(value)} characters long, expected at most {longest}")
    if "\\" in value or not value.isprintable():
        raise ScanError(f"{option} is {value!r}, expected no backslash, which parts values, and no control characters")


def _check_name(name: str) -> None:
    groups = name.split("=")
    if len(groups) > _GROUPS or any(group.count("^") >= _COMPONENTS for group in groups):
        raise ScanError(
            f"--patient-name is {name!r}, expected at most {_GROUPS} groups parted by = and {_COMPONENTS} components "
            "parted by ^ in each"
        )
    for group in groups:
        _check_text("--patient-name", group, _LONGEST_LO)


def header_of(told: Told, stem: str, described: str, archive: Archive | None) -> Dataset:
    """Return patient, study and series attributes of a scan.

    A study that the archive has keeps its patient: what is not told is taken over from it.

    Parameters
    ----------
    told
        What the options say.
    stem
        Name of the file, which stands for an ID and a name that nobody tells.
    described
        What the scan is, for Series Description.
    archive
        Where the scan goes; None: into files.

    Raises
    ------
    ScanError
        The study is of another patient than the options say.
    """
    header = Dataset()
    header.SpecificCharacterSet = "ISO_IR 192"
    header.PatientID = told.patient_id or stem
    header.PatientName = told.patient_name or stem
    header.PatientBirthDate = header.PatientSex = header.ReferringPhysicianName = None
    if told.study_uid:
        header.StudyInstanceUID = told.study_uid
    header.StudyID = None
    header.AccessionNumber = told.accession_number or None
    if told.study_description:
        header.StudyDescription = told.study_description
    if archive is not None and told.study_uid:
        header.update(_taken_over(told, archive))
    header.SeriesNumber = 1
    header.SeriesDescription = f"Projections {described}".strip()[:64]
    if told.body_part:
        header.BodyPartExamined = told.body_part
    return header


def _taken_over(told: Told, archive: Archive) -> Dataset:
    """Return what the study tells of itself and its patient where the options do not; nothing of a study not stored."""
    row = archive.database.execute(_STORED, (told.study_uid,)).fetchone()
    taken = Dataset()
    if row is None:
        return taken
    stored = {keyword: str(value or "") for keyword, value in zip(_TAKEN_OVER, row, strict=True)}
    differs = told.patient_id and told.patient_id.strip(" ") != stored["PatientID"].strip(" ")
    if differs or (told.patient_name and fold_name(told.patient_name) != fold_name(stored["PatientName"])):
        option, value, has = (
            ("--patient-id", told.patient_id, stored["PatientID"])
            if differs
            else ("--patient-name", told.patient_name, stored["PatientName"])
        )
        raise ScanError(
            f"study {told.study_uid} is of the patient {has!r} and {option} is {value!r}: a study has one patient, so "
            "leave the option out, or have the scan make a study of its own"
        )
    own = {"AccessionNumber": told.accession_number, "StudyDescription": told.study_description}
    for keyword, value in stored.items():
        if value and not own.get(keyword):
            setattr(taken, keyword, value)
        elif keyword in ("PatientID", "PatientName"):
            setattr(taken, keyword, None)
    return taken
