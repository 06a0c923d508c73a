"""The keys of the Query/Retrieve information models: which exist, at which level, how they match.

One table for C-FIND and every later door: a key that is not here is unsupported (answered empty, Status FF01).
Columns of the catalogue bear the snake_case of the keyword. PS3.4 C.3 and C.6.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property, lru_cache


class Level(StrEnum):
    """Query/Retrieve Level (0008,0052), from the top of the hierarchy down."""

    PATIENT = "PATIENT"
    STUDY = "STUDY"
    SERIES = "SERIES"
    IMAGE = "IMAGE"

    @property
    def depth(self) -> int:
        """0 for PATIENT to 3 for IMAGE."""
        return _DEPTHS[self]

    @property
    def table(self) -> str:
        """The catalogue's table of this level."""
        return _TABLES[self]


_DEPTHS = {level: depth for depth, level in enumerate(Level)}
_TABLES = {level: "instance" if level is Level.IMAGE else level.value.lower() for level in Level}


class Matching(StrEnum):
    """How the values of a key are compared (PS3.4 C.2.2.2)."""

    UID = "UID"
    TEXT = "TEXT"            # single value or wild card, case-sensitive
    PERSON_NAME = "PN"       # wild card on folded component groups
    DATE = "DA"
    TIME = "TM"
    NUMBER = "NUMBER"
    MODALITIES = "LIST"      # any value of a multi-valued element


@dataclass(frozen=True)
class Key:
    """A supported key.

    Attributes
    ----------
    keyword
        DICOM keyword.
    level
        The level it belongs to.
    matching
        How it matches.
    counted
        Kept by the catalogue (Number of Study Related Series, …), not read from the instance.
    in_item
        Inside an item of a sequence.
    """

    keyword: str
    level: Level
    matching: Matching
    counted: bool = False
    in_item: bool = False

    @cached_property
    def column(self) -> str:
        """Qualified column of the catalogue, for example ``study.study_date``."""
        return f"{'item' if self.in_item else self.level.table}.{snake_case(self.keyword)}"


@dataclass(frozen=True)
class SequenceKey:
    """A sequence whose items are matched and returned (PS3.4 C.2.2.2.6).

    Attributes
    ----------
    keyword
        DICOM keyword.
    level
        The level it belongs to.
    keys
        Attributes of its items that are matched and returned.
    sequences
        Sequences inside its items.
    """

    keyword: str
    level: Level
    keys: tuple[Key, ...]
    sequences: tuple[SequenceKey, ...] = ()


@lru_cache(maxsize=1024)
def snake_case(keyword: str) -> str:
    """``SeriesInstanceUID`` → ``series_instance_uid``."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", keyword).lower()


def _keys(level: Level, table: str) -> list[Key]:
    keys = []
    for line in table.split():
        keyword, _, matching = line.partition(":")
        keys.append(Key(keyword, level, Matching(matching.rstrip("+")), counted=matching.endswith("+")))
    return keys


KEYS: dict[str, Key] = {
    key.keyword: key
    for key in [
        *_keys(
            Level.PATIENT,
            """
            PatientID:TEXT IssuerOfPatientID:TEXT PatientName:PN PatientBirthDate:DA PatientBirthTime:TM
            PatientSex:TEXT EthnicGroup:TEXT PatientComments:TEXT PatientSpeciesDescription:TEXT
            NumberOfPatientRelatedStudies:NUMBER+ NumberOfPatientRelatedSeries:NUMBER+
            NumberOfPatientRelatedInstances:NUMBER+
            """,
        ),
        *_keys(
            Level.STUDY,
            """
            StudyInstanceUID:UID StudyDate:DA StudyTime:TM AccessionNumber:TEXT StudyID:TEXT
            StudyDescription:TEXT ReferringPhysicianName:PN NameOfPhysiciansReadingStudy:PN PatientAge:TEXT
            PatientSize:NUMBER PatientWeight:NUMBER AdmittingDiagnosesDescription:LIST
            InstitutionalDepartmentName:TEXT
            ModalitiesInStudy:LIST+ SOPClassesInStudy:LIST+ NumberOfStudyRelatedSeries:NUMBER+
            NumberOfStudyRelatedInstances:NUMBER+
            """,
        ),
        *_keys(
            Level.SERIES,
            """
            SeriesInstanceUID:UID Modality:TEXT SeriesNumber:NUMBER SeriesDescription:TEXT SeriesDate:DA
            SeriesTime:TM BodyPartExamined:TEXT Laterality:TEXT ProtocolName:TEXT PatientPosition:TEXT
            FrameOfReferenceUID:UID InstitutionName:TEXT StationName:TEXT Manufacturer:TEXT
            ManufacturerModelName:TEXT OperatorsName:PN PerformingPhysicianName:PN
            PerformedProcedureStepStartDate:DA PerformedProcedureStepStartTime:TM
            PerformedProcedureStepID:TEXT PerformedProcedureStepDescription:TEXT
            NumberOfSeriesRelatedInstances:NUMBER+
            """,
        ),
        *_keys(
            Level.IMAGE,
            """
            SOPInstanceUID:UID SOPClassUID:UID InstanceNumber:NUMBER ImageType:LIST AcquisitionNumber:NUMBER
            AcquisitionDate:DA AcquisitionTime:TM ContentDate:DA ContentTime:TM ContentLabel:TEXT
            ContentDescription:TEXT Rows:NUMBER Columns:NUMBER BitsAllocated:NUMBER NumberOfFrames:NUMBER
            SliceThickness:NUMBER SliceLocation:NUMBER ImageComments:TEXT PresentationIntentType:TEXT
            """,
        ),
    ]
}

UNIQUE_KEYS = {
    Level.PATIENT: "PatientID",
    Level.STUDY: "StudyInstanceUID",
    Level.SERIES: "SeriesInstanceUID",
    Level.IMAGE: "SOPInstanceUID",
}
"""The unique key of each level (PS3.4 C.6.1.1.2 to C.6.1.1.5)."""


DATE_TIME_PAIRS = {
    "PatientBirthDate": "PatientBirthTime",
    "StudyDate": "StudyTime",
    "SeriesDate": "SeriesTime",
    "AcquisitionDate": "AcquisitionTime",
    "ContentDate": "ContentTime",
    "PerformedProcedureStepStartDate": "PerformedProcedureStepStartTime",
}
"""Each date with the time that belongs to it (PS3.4 C.2.2.2.5.4)."""

_CODE = """
    CodeValue:TEXT LongCodeValue:TEXT URNCodeValue:TEXT CodingSchemeDesignator:TEXT CodingSchemeVersion:TEXT
    CodeMeaning:TEXT MappingResource:TEXT ContextIdentifier:TEXT ContextUID:UID
"""
"""Code Sequence Macro (PS3.3 table 8.8-1)."""


def _sequence(keyword: str, level: Level, table: str, *sequences: SequenceKey) -> SequenceKey:
    keys = [Key(key.keyword, level, key.matching, in_item=True) for key in _keys(level, table)]
    return SequenceKey(keyword, level, tuple(keys), sequences)


SEQUENCES: dict[str, SequenceKey] = {
    sequence.keyword: sequence
    for sequence in [
        _sequence("ProcedureCodeSequence", Level.STUDY, _CODE),
        _sequence(
            "RequestAttributesSequence",
            Level.SERIES,
            """
            StudyInstanceUID:UID AccessionNumber:TEXT RequestedProcedureID:TEXT RequestedProcedureDescription:TEXT
            ScheduledProcedureStepID:TEXT ScheduledProcedureStepDescription:TEXT
            """,
            _sequence("RequestedProcedureCodeSequence", Level.SERIES, _CODE),
            _sequence("ScheduledProtocolCodeSequence", Level.SERIES, _CODE),
        ),
        _sequence(
            "ReferencedRequestSequence",
            Level.IMAGE,
            """
            StudyInstanceUID:UID AccessionNumber:TEXT RequestedProcedureID:TEXT RequestedProcedureDescription:TEXT
            PlacerOrderNumberImagingServiceRequest:TEXT FillerOrderNumberImagingServiceRequest:TEXT
            """,
            _sequence("RequestedProcedureCodeSequence", Level.IMAGE, _CODE),
        ),
        _sequence(
            "AnatomicRegionSequence",
            Level.IMAGE,
            _CODE,
            _sequence("AnatomicRegionModifierSequence", Level.IMAGE, _CODE),
        ),
        _sequence("ConceptNameCodeSequence", Level.IMAGE, _CODE),
    ]
}
"""The sequences that are matched and returned; any other one is unsupported."""


def item_keywords() -> list[str]:
    """Keywords of all attributes of items that ingest reads."""
    sequences = [*SEQUENCES.values(), *(inner for outer in SEQUENCES.values() for inner in outer.sequences)]
    return list(dict.fromkeys(key.keyword for sequence in sequences for key in sequence.keys))


def indexed_keywords() -> list[str]:
    """Keywords that ingest reads from each instance."""
    return [key.keyword for key in KEYS.values() if not key.counted]


def keys_of(level: Level) -> list[Key]:
    """The supported keys of `level`."""
    return [key for key in KEYS.values() if key.level is level]
