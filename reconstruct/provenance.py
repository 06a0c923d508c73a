"""Where a derived object comes from: its patient, its source images, the equipment, the parameters."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping
from typing import Any

from pydicom.dataset import Dataset

from config.identity import MANUFACTURER, MODEL_NAME, version
from reconstruct.dicom_items import code, item_of
from reconstruct.projections.scan import SourceInstance

TYPE_2 = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "ReferringPhysicianName",
    "StudyID", "AccessionNumber",
)  # fmt: skip
"""Of the Patient and General Study modules. Images leave some out, or fill them with what the standard does not allow;
highdicom refuses both, so it gets them empty, and what is derived has them as they are."""

_REQUIRED = ("StudyInstanceUID", *TYPE_2)

_OPTIONAL = (
    "SpecificCharacterSet", "TimezoneOffsetFromUTC", "IssuerOfPatientID", "OtherPatientIDsSequence",
    "OtherPatientNames", "PatientComments", "EthnicGroup", "PatientSpeciesDescription", "PatientSpeciesCodeSequence",
    "PatientBreedDescription", "PatientBreedCodeSequence", "BreedRegistrationSequence", "ResponsiblePerson",
    "ResponsiblePersonRole", "ResponsibleOrganization", "StrainDescription", "StrainNomenclature",
    "PatientIdentityRemoved", "DeidentificationMethod", "DeidentificationMethodCodeSequence",
    "QualityControlSubject", "StudyDescription", "NameOfPhysiciansReadingStudy", "ProcedureCodeSequence",
    "IssuerOfAccessionNumberSequence", "AdmittingDiagnosesDescription", "PatientAge", "PatientSize",
    "PatientWeight", "PatientSexNeutered", "AdditionalPatientHistory", "ClinicalTrialSponsorName",
    "ClinicalTrialProtocolID", "ClinicalTrialProtocolName", "ClinicalTrialSiteID", "ClinicalTrialSiteName",
    "ClinicalTrialSubjectID", "ClinicalTrialSubjectReadingID", "ClinicalTrialTimePointID",
    "ClinicalTrialTimePointDescription",
)  # fmt: skip
"""Type 3 of the Patient, General Study, Patient Study and Clinical Trial modules, copied where present."""

_ANIMAL = (
    "PatientBreedDescription", "PatientBreedCodeSequence", "BreedRegistrationSequence", "ResponsiblePerson",
    "ResponsibleOrganization", "PatientSexNeutered",
)  # fmt: skip
"""Type 2C: required of an animal, empty where not known (PS3.3 C.7.1.1, C.7.2.2)."""

_EQUIPMENT = ("InstitutionName", "StationName", "ManufacturerModelName", "DeviceSerialNumber", "SoftwareVersions")

_LONGEST_DESCRIPTION = 1024
"""Derivation Description (0008,2111) is an ST (PS3.5 table 6.2-1)."""


def copy_patient_and_study(source: Dataset, target: Dataset) -> None:
    """Copy the Patient, General Study, Patient Study and Clinical Trial modules."""
    for keyword in _OPTIONAL:
        if keyword in source:
            target[keyword] = copy.deepcopy(source[keyword])
    for keyword in _REQUIRED:
        if keyword in source:
            target[keyword] = copy.deepcopy(source[keyword])
        else:
            setattr(target, keyword, None)
    if "PatientSpeciesDescription" in target or "PatientSpeciesCodeSequence" in target:
        for keyword in _ANIMAL:
            if keyword not in target:
                setattr(target, keyword, [] if keyword.endswith("Sequence") else None)


def add_sources(target: Dataset, sources: Iterable[SourceInstance], description: str) -> None:
    """Add the Source Image Sequence (purpose: For Processing predecessor) and the Derivation Description."""
    target.DerivationDescription = description[:_LONGEST_DESCRIPTION]
    target.SourceImageSequence = [
        item_of(
            ReferencedSOPClassUID=source.sop_class_uid,
            ReferencedSOPInstanceUID=source.sop_instance_uid,
            PurposeOfReferenceCodeSequence=[code("121358", "DCM", "For Processing predecessor")],
        )
        for source in sources
    ]


def add_equipment(target: Dataset, scanner: Dataset) -> None:
    """Name this node as the maker of `target`, and the scanner as a contributor (PS3.3 C.7.5.1, C.12.1.1.5)."""
    target.Manufacturer, target.ManufacturerModelName, target.SoftwareVersions = MANUFACTURER, MODEL_NAME, version()
    acquired = item_of(
        PurposeOfReferenceCodeSequence=[code("109101", "DCM", "Acquisition Equipment")],
        Manufacturer=str(scanner.get("Manufacturer") or "UNKNOWN"),
        ContributionDescription="Acquisition of the projections",
    )
    for keyword in _EQUIPMENT:
        if scanner.get(keyword):
            acquired[keyword] = copy.deepcopy(scanner[keyword])
    processed = item_of(
        PurposeOfReferenceCodeSequence=[code("109102", "DCM", "Processing Equipment")],
        Manufacturer=MANUFACTURER,
        ManufacturerModelName=MODEL_NAME,
        SoftwareVersions=version(),
        ContributionDescription="Cone-beam reconstruction",
    )
    earlier = copy.deepcopy(list(scanner.get("ContributingEquipmentSequence") or []))
    target.ContributingEquipmentSequence = [*earlier, acquired, processed]


def number_after(source: Dataset, offset: int) -> int:
    """Number a series after that of `source`; by the offset alone where that would be no IS (PS3.5 table 6.2-1), or 0.

    A number below 1 is an IS, too, but highdicom refuses it.
    """
    number = offset + int(source.get("SeriesNumber", 0) or 0)
    return number if 0 < number < 1 << 31 else offset


def canonical(recipe: Mapping[str, Any]) -> str:
    """Return a recipe as text that is the same for the same parameters, whatever their order."""
    return json.dumps(recipe, sort_keys=True, ensure_ascii=True, default=str)


def in_words(parameters: Mapping[str, Any]) -> str:
    """Return parameters as ``name=value`` separated by commas, numbers as short as they are exact."""
    return ", ".join(f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}"
                     for name, value in parameters.items())  # fmt: skip
