"""Every row of PS3.15 Table E.1-1, of Table E.3.4-1 and of Table E.3.10-1, tested from the generated tables."""

from __future__ import annotations

import csv
import hashlib
import json
import re
from functools import cache
from importlib import resources

import pytest
from pydicom.datadict import dictionary_has_tag, dictionary_VR
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from config.deidentification import Option
from index.deidentification.deidentifier import Deidentifier
from index.deidentification.profile import Profile
from index.deidentification.secret import Secret
from index.deidentification.table import attribute
from index.deidentification.table import edition as table_edition

SECRET = Secret(b"0123456789abcdef0123456789abcdef")
NAME = "Xylander"
ORIGINALS = {
    "AE": "XYLANDER", "AS": "047Y", "CS": "XYLANDER", "DA": "20190817", "DS": "123.5", "DT": "20190817143055.5",
    "IS": "1235", "LO": NAME, "LT": NAME, "PN": f"{NAME}^Zoe", "SH": NAME, "ST": NAME, "TM": "143055", "UC": NAME,
    "UI": "1.2.826.0.1.3680043.9.7133.77", "UR": "http://xylander.example", "UT": NAME, "US": 12351, "UL": 12351,
    "SS": 1235, "SL": 1235, "FD": 1.25, "FL": 1.25, "OB": b"Xylander", "OW": b"Xylander", "UN": b"Xylander",
}  # fmt: skip
OPTION_COLUMNS = {
    **{option.value: Profile("table", frozenset({option})) for option in Option},
    "retain_longitudinal_full_dates": Profile("table", dates="full"),
    "retain_longitudinal_modified_dates": Profile("table", dates="modified"),
}
UNKNOWN_CLASS = "1.2.826.0.1.3680043.9.7133.1000"


def table(name: str) -> list[dict[str, str]]:
    text = resources.files("index.deidentification").joinpath(name).read_text(encoding="utf-8")
    return list(csv.DictReader(line for line in text.splitlines() if not line.startswith("#")))


ROWS = table("basic_profile.csv")
RETIRED = {row["tag"]: (row["retired"], row["iod"]) for row in ROWS}
NOT_OPTIONS = ("tag", "name", "retired", "iod", "basic")
ODD = "(gggg,eeee) where gggg is odd"
PUBLISHED = "e257bc5e1cfecb3156ad3b871c43e6d73581cba6e80df460f4a4a87694e89442"


def tag_of(pattern: str) -> Tag:
    if pattern == "PRIVATE":
        return Tag(0x0029, 0x1010)
    concrete = pattern.replace("50xxxxxx", "50023000").replace("60xx", "6002")
    return Tag(int(concrete, 16))


def vr_of(tag: Tag) -> str:
    if tag.is_private or not dictionary_has_tag(tag):
        return "OW" if tag.group in (0x5002, 0x6002) else "LO"
    return dictionary_VR(tag).split(" or ")[-1]


def original(tag: Tag) -> DataElement:
    vr = vr_of(tag)
    if vr != "SQ":
        return DataElement(tag, vr, ORIGINALS[vr])
    item = Dataset()
    item.PatientName, item.ReferencedSOPInstanceUID = ORIGINALS["PN"], ORIGINALS["UI"]
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = "113100", "DCM", "Basic"
    if tag in (0x0040A730, 0x00400555, 0x00400612):
        item.ValueType, item.PersonName, item.RelationshipType = "PNAME", ORIGINALS["PN"], "CONTAINS"
    return DataElement(tag, "SQ", [item])


@cache
def everything() -> Dataset:
    dataset = Dataset()
    for row in ROWS:
        tag = tag_of(row["tag"])
        if tag.group > 0x0002:
            dataset[tag] = original(tag)
    dataset.add_new((0x0029, 0x0010), "LO", "SOMEBODY 1.0")
    dataset.SOPClassUID, dataset.SOPInstanceUID = UNKNOWN_CLASS, ORIGINALS["UI"]
    dataset.PatientID, dataset.StudyInstanceUID = "X4711", "1.2.826.0.1.3680043.9.7133.78"
    return dataset


@cache
def done(column: str) -> Dataset:
    profile = OPTION_COLUMNS.get(column, Profile("table"))
    return Deidentifier(profile, SECRET).deidentify(everything())


def shown(element: DataElement) -> str:
    """Return all that is in an element as text; pydicom's own shortens."""
    return f"{element.value!r}" if element.VR != "SQ" else "".join(item.to_json() for item in element.value)


def holds(result: Dataset, tag: Tag, action: str) -> bool:
    """Whether `result` is what an action code of Table E.1-1a allows."""
    found = result.get(tag)
    before = everything().get(tag)
    is_empty = found is not None and (found.value in (None, "", b"") or found.is_empty)
    if action == "X":
        return found is None
    if action == "Z":
        return found is not None and (is_empty or (found.value != before.value and NAME not in shown(found)))
    if action == "D":
        return found is not None and not is_empty and NAME.upper() not in shown(found).upper() and found != before
    if action == "K":
        return found is not None and (found == before or found.VR == "SQ") and not is_empty
    if action in ("U", "U*"):
        return found is not None and not is_empty and ORIGINALS["UI"] not in shown(found)
    if action == "C":
        is_other = found != before or (found is not None and found.VR in ("CS", "TM"))  # days move, times of day stay
        return found is None or (NAME.upper() not in shown(found).upper() and is_other)
    return any(holds(result, tag, part) for part in action.split("/"))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["tag"])
def test_each_column_does_what_the_row_says(row):
    tag = tag_of(row["tag"])
    if tag.group <= 0x0002:  # commands are no part of an object
        assert tag not in done("basic")
        return
    assert holds(done("basic"), tag, row["basic"])
    for column in OPTION_COLUMNS:
        if row["tag"] == "00080201" and column == "retain_longitudinal_modified_dates":
            assert done(column)[tag].value == ORIGINALS["SH"]  # a constant shift leaves the offset from UTC true
        elif row[column]:
            assert holds(done(column), tag, row[column]), column


@pytest.mark.parametrize("column", list(OPTION_COLUMNS))
def test_an_option_changes_no_attribute_but_those_of_its_column(column):
    own = {tag_of(row["tag"]) for row in ROWS if row[column]}
    marks = {Tag(0x0012, 0x0064), Tag(0x0028, 0x0303)}
    dates = {"DA", "TM", "DT"} if "longitudinal" in column else set()
    for element in done("basic"):
        other = done(column).get(element.tag)
        if element.tag not in own | marks and element.VR not in (*dates, "SQ"):
            assert other == element
    assert {element.tag for element in done(column)} - {element.tag for element in done("basic")} <= own


def test_required_attributes_get_dummies_and_others_go():
    """X/Z/D by the type that PS3.3 gives the attribute: Device Serial Number is 1 in Enhanced CT, 3 in CT."""
    dataset = Dataset()
    dataset.update(everything())
    for uid, expected in (("1.2.840.10008.5.1.4.1.1.2.1", "REMOVED"), ("1.2.840.10008.5.1.4.1.1.2", None)):
        dataset.SOPClassUID = uid
        assert Deidentifier(Profile("types"), SECRET).deidentify(dataset).get("DeviceSerialNumber") == expected


def test_two_extractions_of_the_standard_agree_on_every_cell():
    """PyMedPhys took Table E.1-1 of 2026d from the HTML edition and publishes the SHA-256 of its rows."""
    rows = [
        {
            "name": row["name"], "basic_profile": row["basic"], "retired": RETIRED[row["tag"]][0] == "Y",
            "in_standard_iod": RETIRED[row["tag"]][1] == "Y",
            "tag": ODD if row["tag"] == "PRIVATE" else f"({row['tag'][:4]},{row['tag'][4:]})",
            "options": {key: value for key, value in row.items() if value and key not in NOT_OPTIONS},
        }
        for row in ROWS
    ]  # fmt: skip
    canonical = json.dumps(rows, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert hashlib.sha256(canonical.encode()).hexdigest() == PUBLISHED
    assert table_edition() == "2026d"


# Attributes that the table leaves out

FULL, MODIFIED = Profile("unlisted", dates="full"), Profile("unlisted", dates="modified")
INSTITUTION, DEVICE, DESCRIPTORS = (
    OPTION_COLUMNS[option.value]
    for option in (Option.RETAIN_INSTITUTION_IDENTITY, Option.RETAIN_DEVICE_IDENTITY, Option.CLEAN_DESCRIPTORS)
)


@pytest.mark.parametrize(
    ("keyword", "keeping"),
    [
        ("PatientBirthDateInAlternativeCalendar", FULL), ("PatientDeathDateInAlternativeCalendar", FULL),
        ("PatientAlternativeCalendar", FULL), ("LocalNamespaceEntityID", INSTITUTION),
        ("UniversalEntityID", INSTITUTION), ("DeviceID", DEVICE), ("GridID", DEVICE), ("RadiationMachineName", DEVICE),
        ("BreedRegistrationNumber", None), ("ContactDisplayName", None), ("HL7InstanceIdentifier", None),
        ("StorageMediaFileSetID", None), ("HangingProtocolCreator", None), ("BoardingPassID", None),
    ],
)  # fmt: skip
def test_what_identifies_and_is_not_in_the_table_goes_unless_retained(keyword, keeping):
    tag = Tag(keyword)
    assert attribute(int(tag)) is None
    dataset, item = Dataset(), Dataset()
    item[tag] = DataElement(tag, dictionary_VR(tag), "ISLAMIC" if keyword.endswith("Calendar") else NAME)
    dataset.SOPClassUID, dataset.SOPInstanceUID = UNKNOWN_CLASS, ORIGINALS["UI"]
    dataset.IssuerOfAccessionNumberSequence, dataset.SegmentSequence, dataset[tag] = [item], [item], item[tag]
    for profile in (Profile("basic"), FULL, MODIFIED, INSTITUTION, DEVICE, DESCRIPTORS):
        made = Deidentifier(profile, SECRET).deidentify(dataset)
        left = [each.get(tag) for each in (made, made.SegmentSequence[0])]
        if profile is keeping:
            assert left == [item[tag], item[tag]]
        else:
            assert not any(element is not None and item[tag].value in str(element.value) for element in left), profile


@pytest.mark.parametrize(
    "keyword", ["CommentsOnTheScheduledProcedureStep", "CommentsOnPatientPerformanceOfVisualField", "SetupImageComment"]
)
def test_comments_that_are_not_in_the_table_go_or_are_cleaned(keyword):
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = UNKNOWN_CLASS, ORIGINALS["UI"]
    setattr(dataset, keyword, "liver, call wife of Mrs Xylander")
    assert keyword not in Deidentifier(Profile("basic"), SECRET).deidentify(dataset)
    assert Deidentifier(DESCRIPTORS, SECRET).deidentify(dataset)[keyword].value == "liver of"


# Private attributes

PRIVATE_ROWS = table("safe_private.csv")


@cache
def private_blocks(option: bool) -> tuple[Dataset, Dataset]:
    dataset = Dataset()
    blocks: dict[tuple[int, str], int] = {}
    for row in PRIVATE_ROWS:
        group = int(row["tag"][:4], 16)
        block = blocks.setdefault((group, row["creator"]), 0x10 + sum(1 for key in blocks if key[0] == group))
        dataset.add_new((group, block), "LO", row["creator"])
        vr = (row["vr"] or "LO").partition("/")[0]
        value = [Dataset()] if vr == "SQ" else 0x00100010 if vr == "AT" else ORIGINALS[vr]
        if vr == "SQ":
            value[0].PatientName = ORIGINALS["PN"]
        dataset.add_new((group, block << 8 | int(row["tag"][-2:], 16)), vr, value)
        dataset.add_new((group, block << 8 | 0xFE), "LO", NAME)
    dataset.SOPClassUID, dataset.SOPInstanceUID = UNKNOWN_CLASS, "1.2.3"
    options = frozenset({Option.RETAIN_SAFE_PRIVATE}) if option else frozenset()
    return dataset, Deidentifier(Profile("private", options), SECRET).deidentify(dataset)


def test_every_listed_private_attribute_is_retained():
    before, after = private_blocks(True)
    assert len(PRIVATE_ROWS) == 479
    for row in PRIVATE_ROWS:
        group, element = int(row["tag"][:4], 16), int(row["tag"][-2:], 16)
        kept = after.private_block(group, row["creator"])[element]
        if kept.VR == "UI":
            assert kept.value == SECRET.uid(ORIGINALS["UI"]), row
        elif kept.VR == "SQ":
            assert NAME not in shown(kept), row
        else:
            assert kept == before.private_block(group, row["creator"])[element], row


def test_other_private_attributes_go_and_all_go_without_the_option():
    _, with_option = private_blocks(True)
    assert not [element for element in with_option if element.tag.is_private and element.tag.element & 0xFF == 0xFE]
    assert not [element for element in private_blocks(False)[1] if element.tag.is_private]


# Structured content

CONTENT_ROWS = [row for row in table("content_items.csv") if row["value_type"] not in ("NUM", "CODE", "CONTAINER")]
VALUES = {
    "TEXT": ("TextValue", f"{NAME} 47110815"), "PNAME": ("PersonName", ORIGINALS["PN"]), "DATE": ("Date", "20190817"),
    "TIME": ("Time", "143055.4711"), "DATETIME": ("DateTime", "20190817143055"), "UIDREF": ("UID", ORIGINALS["UI"]),
}  # fmt: skip


@cache
def report(column: str) -> list[str]:
    """Return what is left of one item for each row, as text; "" where it went."""
    profile = OPTION_COLUMNS[column]
    profile = Profile("content", profile.options | {Option.CLEAN_STRUCTURED_CONTENT}, profile.dates)
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.88.33", "1.2.3"
    dataset.PatientID = "X4711"
    content = []
    for number, row in enumerate(CONTENT_ROWS):
        item, name = Dataset(), Dataset()
        name.CodeValue, name.CodingSchemeDesignator = row["code"], row["scheme"]
        name.CodeMeaning = f"row {number}"
        item.ValueType, item.ConceptNameCodeSequence, item.RelationshipType = row["value_type"], [name], "CONTAINS"
        if row["value_type"] in VALUES:
            setattr(item, *VALUES[row["value_type"]])
        else:
            reference = Dataset()
            reference.ReferencedSOPInstanceUID = ORIGINALS["UI"]
            item.ReferencedSOPSequence = [reference]
        content.append(item)
    dataset.ContentSequence = content
    left = Deidentifier(profile, SECRET).deidentify(dataset).ContentSequence
    by_row = {item.ConceptNameCodeSequence[0].CodeMeaning: item.to_json() for item in left}
    return [by_row.get(f"row {number}", "") for number in range(len(CONTENT_ROWS))]


SECRETS = re.compile(rf"{NAME}|20190817|143055|47110815|{re.escape(ORIGINALS['UI'])}")


def test_every_listed_content_item_is_cleaned():
    for number, row in enumerate(CONTENT_ROWS):
        left = report("clean_structured_content")[number]
        assert not SECRETS.search(left), row
        assert (left == "") == (row["basic"].startswith("X")), row
        for column in OPTION_COLUMNS:
            told = report(column)[number] if row.get(column) else ""
            if row.get(column) == "K":
                assert SECRETS.search(told) or row["value_type"] in ("IMAGE", "COMPOSITE", "WAVEFORM"), row
            elif row.get(column) == "C":
                assert told, row
                assert not SECRETS.search(told.replace("143055", "")), row  # days move, times of day stay
