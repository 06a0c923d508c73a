"""A profile: which options, dates and masks; and the action that it gives an attribute (PS3.15 Table E.1-1)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Literal

from pydicom.datadict import dictionary_has_tag, dictionary_keyword, dictionary_VR, repeater_has_tag

from config.deidentification import DeidentificationSettings, Option
from index.deidentification import table

Dates = Literal["remove", "full", "modified"]


class Action(StrEnum):
    """What is done with an attribute (PS3.15 Table E.1-1a)."""

    REMOVE = "X"
    EMPTY = "Z"
    DUMMY = "D"
    KEEP = "K"
    CLEAN = "C"
    REPLACE_UIDS = "U"


@dataclass(frozen=True)
class MaskRule:
    """Which images have identifying text in their pixels, and where.

    Attributes
    ----------
    modality, manufacturer, model
        Values that the image has, without regard to case; "" for any.
    rows, columns
        Its size; 0 for any.
    rectangles
        What is painted over, (left, top, width, height) in pixels from the upper left corner.
    """

    modality: str = ""
    manufacturer: str = ""
    model: str = ""
    rows: int = 0
    columns: int = 0
    rectangles: tuple[tuple[int, int, int, int], ...] = ()


@dataclass(frozen=True)
class Profile:
    """The Basic Application Level Confidentiality Profile with options (PS3.15 E.2, E.3).

    Attributes
    ----------
    dates
        ``remove``, ``full`` (kept as they are) or ``modified`` (all dates of a patient moved by the same time).
    burned_in
        ``refuse``: kinds of image that often show names need a mask rule or Burned In Annotation NO;
        ``trust_unmarked``: only what says Burned In Annotation YES does.
    """

    name: str
    options: frozenset[Option] = frozenset()
    dates: Dates = "remove"
    burned_in: Literal["refuse", "trust_unmarked"] = "refuse"
    masks: tuple[MaskRule, ...] = ()

    @classmethod
    def from_settings(cls, entry: DeidentificationSettings) -> Profile:
        """Return the profile that an entry of ``[[deidentification]]`` describes."""
        masks = tuple(MaskRule(**mask.model_dump()) for mask in entry.masks)
        return cls(entry.name, entry.options, entry.dates, entry.burned_in, masks)

    def has(self, option: Option) -> bool:
        """Whether `option` was chosen."""
        return option in self.options

    def action(self, tag: int, *, sop_class: str = "", parent: int = 0) -> Action:
        """Return what is done with a standard attribute.

        The combined actions of the table are decided by whether the SOP Class requires the attribute: a required one
        gets a dummy, one that may be empty is emptied, any other is removed. Where two options disagree, cleaning wins
        for dates, keeping for all else.

        Parameters
        ----------
        sop_class
            SOP Class UID of the object; "" where there is none, and the strictest is assumed.
        parent
            Tag of the sequence that holds the attribute; 0 at the top of the data set.
        """
        return _action(self.options, self.dates, tag, sop_class, parent)


@lru_cache(maxsize=1 << 16)
def _action(options: frozenset[Option], dates: Dates, tag: int, sop_class: str, parent: int) -> Action:
    row = table.attribute(tag)
    if row is None:
        return _unlisted(options, dates, tag, sop_class, parent)
    chosen = {row.options[column] for column in _columns(options, dates) if column in row.options}
    if chosen == {"K", "C"}:
        chosen = {"C"} if row.options.get("retain_longitudinal_modified_dates") and dates == "modified" else {"K"}
    if tag >> 24 in (0x50, 0x60) and tag >> 16 & 0xFF < 0x20:
        return Action.REMOVE  # also where graphics are cleaned: nobody can tell what a bitmap or a curve shows
    if chosen:
        return Action(chosen.pop())
    return _resolved(row.basic, sop_class, parent, tag)


def required(tag: int, sop_class: str, parent: int) -> Action:
    """Return what the Basic Profile does with an attribute whose cleaned value says nothing any more."""
    row = table.attribute(tag)
    return _resolved(row.basic, sop_class, parent, tag) if row else Action.EMPTY


def _columns(options: frozenset[Option], dates: Dates) -> list[str]:
    return [*options, *([f"retain_longitudinal_{dates}_dates"] if dates != "remove" else [])]


def _resolved(basic: str, sop_class: str, parent: int, tag: int) -> Action:
    """Decide a combined action of the Basic Profile by the type of the attribute."""
    if basic in ("X", "D", "U"):
        return Action(basic)
    allowed = basic.split("/")
    if "U*" in allowed:
        return Action.REPLACE_UIDS
    kind = table.attribute_type(sop_class, parent, tag)
    if kind == "1":
        return Action.DUMMY
    if kind == "2":
        return Action.EMPTY if "Z" in allowed else Action.DUMMY
    return Action(allowed[0])


_UIDS_OF_DEFINITIONS = frozenset({
    "CodingSchemeUID", "ContextUID", "ContextGroupExtensionCreatorUID", "MappingResourceUID", "SOPClassesInStudy",
    "SOPClassesSupported", "PertinentSOPClassesInStudy", "PertinentSOPClassesInSeries",
})  # fmt: skip


_PUBLIC_UR = frozenset({"CodingSchemeURL", "URNCodeValue"})
_ALSO_IDENTIFYING = frozenset({
    "PlacerOrderNumberProcedure", "FillerOrderNumberProcedure", "PlacerOrderNumberImagingServiceRequestRetired",
    "FillerOrderNumberImagingServiceRequestRetired", "OwnerID", "MACParametersSequence", "Signature",
    "EncryptedAttributesSequence", "BreedRegistrationNumber", "ComponentWelderIDs", "ContactDisplayName",
    "HangingProtocolCreator", "HL7InstanceIdentifier", "UniformResourceLocatorTrial", "StorageMediaFileSetID",
    "FilmSessionLabel", "RecordKey", "PriorRecordKey", "AssignedLocation", "BoardingPassID", "ItineraryID",
    "ItineraryIDAssigningAuthority", "RouteID", "RouteIDAssigningAuthority", "CarrierID", "DocumentTitle",
})  # fmt: skip
"""Attributes that the table leaves out, for they are retired, young or of no composite object."""

_ALSO_INSTITUTIONS = frozenset({"LocalNamespaceEntityID", "UniversalEntityID", "HangingProtocolUserGroupName"})
_ALSO_DEVICES = frozenset({
    "DeviceID", "GridID", "SubstanceAdministrationDeviceID", "RadiationMachineName", "PrinterName", "NTPSourceAddress",
    "AuthorizationEquipmentCertificationNumber",
})  # fmt: skip
_ALSO_DATES = frozenset({
    "PatientBirthDateInAlternativeCalendar", "PatientDeathDateInAlternativeCalendar", "PatientAlternativeCalendar",
})  # fmt: skip
"""Of another calendar, as text, so that nothing can move them."""

_ALSO_COMMENTS = frozenset({
    "CommentsOnTheScheduledProcedureStep", "CommentsOnPatientPerformanceOfVisualField", "AssertionComments",
    "ApprovalStatusFurtherDescription", "SubstanceAdministrationNotes", "ReasonForCancellation", "SystemStatusComment",
    "ProcedureStepProgressDescription", "InstructionPerformanceComment", "SOPAuthorizationComment", "DoseComment",
    "TreatmentStatusComment", "SetupImageComment", "OverrideReason", "TransactionStatusComment", "InventoryPurpose",
    "InventoryInstanceDescription", "SpecimenDescriptionTrial", "ReportStatusCommentTrial",
    "IdentificationDescriptionTrial", "CompletionFlagDescription", "TreatmentTerminationDescription",
})  # fmt: skip
"""What somebody writes of one patient or procedure, like the comments that the table lists."""

_ALSO_REQUIRED = {
    "HangingProtocolCreator": Action.DUMMY, "DocumentTitle": Action.EMPTY, "RadiationMachineName": Action.EMPTY,
}  # fmt: skip
"""Of these, what the objects that have it require (type 1), or require to be there (type 2)."""


def _unlisted(options: frozenset[Option], dates: Dates, tag: int, sop_class: str, parent: int) -> Action:
    """Return the action for an attribute without a row: kept, unless its VR says that it could identify somebody."""
    if tag >> 16 <= 0x0007 or not tag & 0xFFFF or not (dictionary_has_tag(tag) or repeater_has_tag(tag)):
        return Action.REMOVE
    vr, keyword = dictionary_VR(tag), dictionary_keyword(tag)
    if vr == "UI":
        is_definition = "ClassUID" in keyword or "TransferSyntaxUID" in keyword or keyword in _UIDS_OF_DEFINITIONS
        return Action.KEEP if is_definition or Option.RETAIN_UIDS in options else Action.REPLACE_UIDS
    if vr in ("DA", "TM", "DT"):
        if dates != "remove":
            return Action.KEEP if dates == "full" else Action.CLEAN
        return _resolved("X/Z/D", sop_class, parent, tag)
    if keyword == "TextValue":
        return Action.DUMMY  # of a content item; where the option cleans those, it has the last word
    if 0x6000 <= tag >> 16 < 0x6100:
        return Action.REMOVE  # the plane goes with its data
    if keyword in _ALSO_COMMENTS:
        return Action.CLEAN if Option.CLEAN_DESCRIPTORS in options else Action.REMOVE
    is_address = vr == "UR" and keyword not in _PUBLIC_UR
    if vr in ("PN", "AE") or is_address or _is_also_identifying(options, dates, keyword):
        return _ALSO_REQUIRED.get(keyword, Action.REMOVE)
    return Action.KEEP


def _is_also_identifying(options: frozenset[Option], dates: Dates, keyword: str) -> bool:
    """Whether an attribute without a row identifies somebody, and no option that was chosen retains it."""
    return (
        keyword in _ALSO_IDENTIFYING
        or (keyword in _ALSO_INSTITUTIONS and Option.RETAIN_INSTITUTION_IDENTITY not in options)
        or (keyword in _ALSO_DEVICES and Option.RETAIN_DEVICE_IDENTITY not in options)
        or (keyword in _ALSO_DATES and dates != "full")
    )
