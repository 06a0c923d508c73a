"""Codes in content items under de-identification: those of private schemes may mean anything, and are replaced."""

from __future__ import annotations

import pytest
from pydicom.dataset import Dataset

from config.deidentification import Option
from index.deidentification.deidentifier import Deidentifier
from index.deidentification.profile import Profile
from index.deidentification.secret import Secret

SECRET = Secret(bytes(range(32)))
CLEAN = Profile("clean", frozenset({Option.CLEAN_STRUCTURED_CONTENT}))
SECRETS = ("99887766", "Poppins")
DUMMY = ("REMOVED", "99THARSIS", "Removed")


def code(value: str, scheme: str | None, meaning: str, keyword: str = "CodeValue") -> Dataset:
    item = Dataset()
    setattr(item, keyword, value)
    if scheme is not None:
        item.CodingSchemeDesignator = scheme
    item.CodeMeaning = meaning
    return item


def private(scheme: str | None = "99HOSP", keyword: str = "CodeValue") -> Dataset:
    return code("urn:MRN-99887766", scheme, "seen with sister Mary Poppins", keyword)


LIVER, FINDING = code("10200004", "SCT", "Liver"), code("121071", "DCM", "Finding")


def content(kind: str, name: Dataset, **values: object) -> Dataset:
    item = Dataset()
    item.RelationshipType, item.ValueType, item.ConceptNameCodeSequence = "CONTAINS", kind, [name]
    for keyword, value in values.items():
        setattr(item, keyword, value)
    return item


def report(*items: Dataset, title: Dataset = FINDING) -> Dataset:
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.88.33", "1.2.3.4"
    dataset.ValueType, dataset.ConceptNameCodeSequence = "CONTAINER", [title]
    dataset.ContentSequence = [content("CONTAINER", FINDING, ContentSequence=list(items))]
    return dataset


def cleaned(*items: Dataset, title: Dataset = FINDING, profile: Profile = CLEAN) -> Dataset:
    made = Deidentifier(profile, SECRET).deidentify(report(*items, title=title))
    assert not [secret for secret in SECRETS if secret in made.to_json()]
    return made


def told(item: Dataset) -> tuple[str, str, str]:
    return item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning


@pytest.mark.parametrize("keyword", ["CodeValue", "LongCodeValue", "URNCodeValue"])
@pytest.mark.parametrize("scheme", ["99HOSP", " 99hosp", "L", "LOCAL", "", None])
def test_a_code_of_a_private_scheme_becomes_a_dummy(scheme, keyword):
    item = content("CODE", private(scheme, keyword), ConceptCodeSequence=[private(scheme, keyword)])
    (left,) = cleaned(item).ContentSequence[0].ContentSequence
    assert told(left.ConceptNameCodeSequence[0]) == told(left.ConceptCodeSequence[0]) == DUMMY


def test_a_meaning_without_a_code_becomes_a_dummy():
    meaning = Dataset()
    meaning.CodeMeaning = "seen with sister Mary Poppins"
    (left,) = cleaned(content("CODE", FINDING, ConceptCodeSequence=[meaning])).ContentSequence[0].ContentSequence
    assert told(left.ConceptCodeSequence[0]) == DUMMY


def test_codes_within_codes_and_units_become_dummies():
    organ = code("10200004", "SCT", "Liver")
    organ.EquivalentCodeSequence = [private()]
    measured = Dataset()
    measured.NumericValue, measured.MeasurementUnitsCodeSequence = "5", [private()]
    items = (
        content("CODE", FINDING, ConceptCodeSequence=[organ]),
        content("NUM", LIVER, MeasuredValueSequence=[measured]),
    )
    first, second = cleaned(*items).ContentSequence[0].ContentSequence
    assert told(first.ConceptCodeSequence[0].EquivalentCodeSequence[0]) == DUMMY
    assert told(second.MeasuredValueSequence[0].MeasurementUnitsCodeSequence[0]) == DUMMY


@pytest.mark.parametrize("profile", [CLEAN, Profile("basic")], ids=["clean", "basic"])
def test_the_title_of_a_report_is_the_name_of_a_content_item_too(profile):
    made = cleaned(title=private(), profile=profile)
    assert told(made.ConceptNameCodeSequence[0]) == DUMMY
    assert told(cleaned(title=LIVER, profile=profile).ConceptNameCodeSequence[0]) == told(LIVER)


def test_public_codes_and_energy_windows_of_this_node_stay():
    window = code("18-30keV", "99THARSIS", "18-30 keV, effective 24.64 keV")
    items = [content("CODE", FINDING, ConceptCodeSequence=[each]) for each in (LIVER, window)]
    left = cleaned(*items).ContentSequence[0].ContentSequence
    assert [told(each.ConceptCodeSequence[0]) for each in left] == [told(LIVER), told(window)]


def test_an_acquisition_context_is_cleaned_as_well():
    dataset = report()
    dataset.AcquisitionContextSequence = [content("CODE", FINDING, ConceptCodeSequence=[private()])]
    made = Deidentifier(CLEAN, SECRET).deidentify(dataset)
    assert told(made.AcquisitionContextSequence[0].ConceptCodeSequence[0]) == DUMMY


def test_a_long_code_of_a_private_scheme_is_no_clean_descriptor():
    dataset = report()
    dataset.ReasonForRequestedProcedureCodeSequence = [private("99HOSP", "LongCodeValue"), LIVER]
    made = Deidentifier(Profile("x", frozenset({Option.CLEAN_DESCRIPTORS})), SECRET).deidentify(dataset)
    assert [told(each) for each in made.ReasonForRequestedProcedureCodeSequence] == [told(LIVER)]
