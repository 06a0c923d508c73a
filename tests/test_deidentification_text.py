"""Free text under de-identification: numbers that may be more than a measure, and names that are short or not Latin."""

from __future__ import annotations

import pytest
from pydicom.dataset import Dataset

from config.deidentification import Option
from index.deidentification.deidentifier import Deidentifier
from index.deidentification.descriptors import Cleaner
from index.deidentification.profile import Profile
from index.deidentification.secret import Secret

SECRET = Secret(bytes(range(32)))
CLEAN = Profile("clean", frozenset({Option.CLEAN_DESCRIPTORS, Option.CLEAN_STRUCTURED_CONTENT}))


# Numbers

@pytest.mark.parametrize(
    "number",
    [
        "123-456-789", "123.456.789", "123 456 789", "123_456_789", "123/456", "123;456", "12'345'678", "123\\456",
        "A123-456", "HN12/3456", "123-A-456", "03/12/24", "3/12/24", "12-03-56", "12-03-56m", "12 03 56", "12.3.56",
        "12.3.", "12.03", "12.03.1956", "2024.03.12", "12–03–56", "12·03·56", "12 Mar 56", "12. März 56", "12,3,56 m",
        "030 123 45 67", "(030) 123-45", "030/123 45 67", "123 45-6789", "10:15", "1:20", "03:15:59", "٠٣٠ ١٢٣ 45",
        "1956年3月12日", "030",
    ],
)  # fmt: skip
@pytest.mark.parametrize("text", ["{}", "CT head {}", "{}: liver", "born {}, spine"])
def test_no_digit_stays_of_numbers_in_a_row(text, number):
    left = Cleaner().clean(text.format(number))
    assert not [sign for sign in left if sign.isdecimal()]
    assert ("liver" in left, "head" in left, "spine" in left) == ("liver" in text, "head" in text, "spine" in text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2.5 mm", "2.5 mm"), ("3.0T", "3.0T"), ("T1", "T1"), ("L4-L5", "L4 L5"), ("C5/C6", "C5 C6"), ("L4-5", "L4 5"),
        ("5 x 5 mm", "5 5 mm"), ("axial 1.25 mm", "axial 1.25 mm"), ("12.03 mm", "12.03 mm"), ("Th12/L1", "Th12 L1"),
        ("CT 120 kV 50 mAs 5.0 mm", "CT 120 kV 50 mAs 5.0 mm"), ("CT 120kV/50mAs", "CT 120kV 50mAs"),
        ("5/5mm Plain", "5 5mm Plain"), ("Thorax 2 5.0 mm", "Thorax 2 5.0 mm"), ("lossy 10:1", "lossy 10 1"),
        ("THORAX 1.5 B70f", "THORAX 1.5"), ("delayed 5 min 3 mm", "delayed 5 min 3 mm"), ("0.5 sec", "0.5 sec"),
    ],
)  # fmt: skip
def test_measures_stay(text, expected):
    assert Cleaner().clean(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1.1 Routine Brain", "1.1 Routine Brain"),
        ("5.5 AORTA AND MAJOR VESSEL", "5.5 AORTA AND MAJOR VESSEL"),
        ("CT Body 3.0", "CT Body 3.0"),
        ("2D 16Echo qT2", "2D"),
        ("PRO DCE W_T1 MAPPING AN/", "W T1 MAPPING"),
        ("e+1 MR BRAIN", "1 MR BRAIN"),
        ("SmartScore - Gated 0.5 sec", "Gated 0.5 sec"),
        ("T1W/SE/1024", "T1W SE"),
        ("Thorax^1HEAD_NECK_PETCT", "Thorax NECK"),
        ("XR C Spine Comp Min 4 Views", "Spine Min 4 Views"),
        ("anat-T1w_acq-tfl", "T1w"),
        ("near lossless JPEG-LS compression, factor 11.141 (NEAR=2)", "near compression factor 11.141 NEAR 2"),
        ("9 bit signed 0 to 255, No Window", "9 signed 0 to 255 No Window"),
        ("tumor segmentation - User2 Manual trial 1", "tumor segmentation Manual trial 1"),
    ],
)
def test_descriptions_of_real_scans_stay_useful(text, expected):
    assert Cleaner().clean(text) == expected


def test_numbers_go_from_descriptions_and_from_reports():
    dataset, item = Dataset(), Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.88.11", "1.2.3.4"
    dataset.PatientID, dataset.StudyDescription = "123456789", "CT head 123-456-789"
    item.RelationshipType, item.ValueType = "CONTAINS", "TEXT"
    item.TextValue = "Liver of 123.456.789 born 12.3.56, phone 030/123 45 67"
    dataset.ValueType, dataset.ContentSequence = "CONTAINER", [item]
    made = Deidentifier(CLEAN, SECRET).deidentify(dataset)
    assert made.StudyDescription == "CT head"
    assert made.ContentSequence[0].TextValue == "Liver of phone"


# Names that kept text repeats

def labelled(text: str, name: str = "", patient_id: str = "", **values: str) -> str:
    """Return what becomes of a Segment Label, which Table E.1-1 does not list, of a patient."""
    dataset, segment = Dataset(), Dataset()
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.66.4", "1.2.3.4"
    dataset.PatientName, dataset.PatientID = name, patient_id
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    segment.SegmentLabel = text
    dataset.SegmentSequence = [segment]
    return str(Deidentifier(Profile("basic"), SECRET).deidentify(dataset).SegmentSequence[0].SegmentLabel)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("Lee^Amy", "Lee Amy, Lee^Amy: liver", "liver"),
        ("Lee^Amy", "Lee, Amy", "REMOVED"),
        ("Lee^Amy", "LEE_AMY liver", "liver"),
        ("Lee^Amy", "LeeAmy liver", "liver"),
        ("Lee^Amy", "AmyLee liver", "liver"),
        ("Li^Xu", "liver XuLi", "liver"),
        ("Lee^Bruce", "tumor of Lee's liver", "tumor of liver"),
        ("Doe^Jane", "liver, Mrs. Doe", "liver"),
        ("van der Lee^Amy", "liver of Mrs Lee", "liver of"),
        ("Müller-Lüdenscheidt^Eva", "liver, Frau Lüdenscheidts", "liver"),
        ("MU\u0308LLER^Eva", "liver Müller", "liver"),
        ("Ｌｅｅ^Amy", "liver Lee", "liver"),
        ("Hip^Anna", "left hip", "left"),
        ("Head^John", "head, left", "left"),
    ],
)
def test_short_names_are_found_as_words(name, text, expected):
    assert labelled(text, name) == expected


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("山田^太郎", "山田 太郎 liver", "liver"),
        ("Yamada^Tarou=山田^太郎", "山田太郎", "REMOVED"),
        ("Yamada^Tarou=山田^太郎=やまだ^たろう", "liver たろうさん", "liver"),
        ("山田 太郎", "liver 山田さん", "liver"),
        ("王^芳", "王芳 liver", "liver"),
        ("王^芳", "王 芳 liver", "liver"),
        ("王^芳", "王^芳 liver", "liver"),
        ("홍^길동", "홍길동 liver", "liver"),
        ("홍^길동", "길동 liver", "liver"),
        ("ﾔﾏﾀﾞ^ﾀﾛｳ", "liver ヤマダ", "liver"),
        ("王^芳", "女王 liver", "女王 liver"),
    ],
)
def test_names_in_writing_without_spaces_are_found_from_two_letters(name, text, expected):
    assert labelled(text, name) == expected


@pytest.mark.parametrize(
    ("values", "text", "expected"),
    [
        ({"patient_id": "471"}, "liver, ID 471", "liver"),
        ({"patient_id": "47"}, "liver 47", "liver"),
        ({"patient_id": "A7"}, "liver a7", "liver"),
        ({"AccessionNumber": "815"}, "liver 815", "liver"),
        ({"InstitutionName": "UKE"}, "liver, UKE", "liver"),
        ({"InstitutionName": "東大"}, "東大病院 liver", "liver"),
    ],
)
def test_short_numbers_and_places_are_found_as_words(values, text, expected):
    assert labelled(text, **values) == expected


@pytest.mark.parametrize(
    ("name", "values", "text"),
    [
        ("Lee^Amy", {}, "sleeve of the amygdala!"),
        ("Ma^Li", {}, "malignant!"),
        ("Doe^Jane^^Dr^Jr", {}, "Dr. jr!"),
        ("", {"patient_id": "471"}, "4711!"),
        ("", {"StudyID": "10"}, "T10, 10!"),
        ("", {"patient_id": "1"}, "segment 1!"),
    ],
)
def test_other_words_stay_as_they_are(name, values, text):
    assert labelled(text, name, **values) == text


def test_public_codes_are_not_searched_for_short_names():
    dataset, segment, public, private = Dataset(), Dataset(), Dataset(), Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.66.4", "1.2.3.4"
    dataset.PatientName, dataset.PatientID = "Sct^T1", "471"
    public.CodeValue, public.CodingSchemeDesignator, public.CodeMeaning = "471", "SCT", "liver 471"
    private.CodeValue, private.CodingSchemeDesignator, private.CodeMeaning = "471", "99HOSP", "liver"
    segment.SegmentedPropertyTypeCodeSequence, segment.AnatomicRegionSequence = [public], [private]
    dataset.SegmentSequence = [segment]
    (made,) = Deidentifier(Profile("basic"), SECRET).deidentify(dataset).SegmentSequence
    (left,) = made.SegmentedPropertyTypeCodeSequence
    assert (left.CodeValue, left.CodingSchemeDesignator, left.CodeMeaning) == ("471", "SCT", "liver")
    assert made.AnatomicRegionSequence[0].CodeValue == "REMOVED"
