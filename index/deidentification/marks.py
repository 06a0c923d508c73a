"""What a de-identified object says of itself: that it is, by which method, what became of its dates (PS3.3 C.7.1.1)."""

from __future__ import annotations

from pydicom.dataset import Dataset
from pydicom.tag import Tag

from config.deidentification import Option
from index.deidentification import table
from index.deidentification.profile import Profile
from index.deidentification.reader import Reader

SOP_CLASS_UID, SOP_INSTANCE_UID, STUDY_INSTANCE_UID = Tag(0x0008, 0x0016), Tag(0x0008, 0x0018), Tag(0x0020, 0x000D)
_METHOD, _CODES, _DATES = Tag(0x0012, 0x0063), Tag(0x0012, 0x0064), Tag(0x0028, 0x0303)

_BASIC = ("113100", "Basic Application Confidentiality Profile")
_PIXELS = ("113101", "Clean Pixel Data Option")
_OPTIONS = {
    Option.CLEAN_GRAPHICS: ("113103", "Clean Graphics Option"),
    Option.CLEAN_STRUCTURED_CONTENT: ("113104", "Clean Structured Content Option"),
    Option.CLEAN_DESCRIPTORS: ("113105", "Clean Descriptors Option"),
    Option.RETAIN_PATIENT_CHARACTERISTICS: ("113108", "Retain Patient Characteristics Option"),
    Option.RETAIN_DEVICE_IDENTITY: ("113109", "Retain Device Identity Option"),
    Option.RETAIN_UIDS: ("113110", "Retain UIDs Option"),
    Option.RETAIN_SAFE_PRIVATE: ("113111", "Retain Safe Private Option"),
    Option.RETAIN_INSTITUTION_IDENTITY: ("113112", "Retain Institution Identity Option"),
}
"""CID 7050, De-identification Method (PS3.16)."""

_OF_DATES = {
    "full": ("113106", "Retain Longitudinal Temporal Information Full Dates Option"),
    "modified": ("113107", "Retain Longitudinal Temporal Information Modified Dates Option"),
}
_TEMPORAL = {"remove": "REMOVED", "full": "UNMODIFIED", "modified": "MODIFIED"}
_WEAKEST_FIRST = ("UNMODIFIED", "MODIFIED", "REMOVED")


def codes(profile: Profile, *, is_masked: bool) -> list[tuple[str, str]]:
    """Return code values and meanings of the profile and of each option that was applied, in the order of CID 7050."""
    chosen = [_BASIC, *(_OPTIONS[option] for option in profile.options)]
    if is_masked:
        chosen.append(_PIXELS)
    if profile.dates in _OF_DATES:
        chosen.append(_OF_DATES[profile.dates])
    return sorted(chosen)


def put(made: Dataset, reader: Reader, profile: Profile, *, is_masked: bool) -> None:
    """Add Patient Identity Removed, the method with its codes, and what became of dates.

    Codes that an earlier de-identification left are kept, its free text is not: nobody knows what it says.
    """
    chosen = codes(profile, is_masked=is_masked)
    made.PatientIdentityRemoved = "YES"
    made.DeidentificationMethod = f"DICOM PS3.15 {table.edition()} Annex E, Tharsis"
    made.DeidentificationMethodCodeSequence = [_code(*code) for code in dict.fromkeys([*_earlier(reader), *chosen])]
    earlier = [value for value in reader.texts(_DATES) if value in _WEAKEST_FIRST]
    made.LongitudinalTemporalInformationModified = max(
        (*earlier, _TEMPORAL[profile.dates]), key=_WEAKEST_FIRST.index
    )


def _earlier(reader: Reader) -> list[tuple[str, str]]:
    known = dict([_BASIC, _PIXELS, *_OPTIONS.values(), *_OF_DATES.values()])
    element = dict(reader.elements()).get(_CODES)
    items = reader.value(_CODES, element) if element is not None else None
    values = [str(item.get("CodeValue", "")) for item in items or [] if item.get("CodingSchemeDesignator") == "DCM"]
    return [(value, known[value]) for value in values if value in known]


def _code(value: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "DCM", meaning
    return item
