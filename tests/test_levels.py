"""Levels and unique keys (PS3.4 C.4.1.1.3.1, C.4.1.2, C.4.2.1.4), for every AE and for a lenient one."""

from __future__ import annotations

import pytest
from pydicom.dataset import Dataset

from index.errors import InvalidIdentifier
from index.query import BASELINE, Model, QueryOptions, instances, parse_identifier

STUDY, SERIES = "1.2.826.0.1.3680043.9.7133.1", "1.2.826.0.1.3680043.9.7133.2"
RELATIONAL, LENIENT = QueryOptions(relational=True), QueryOptions(lenient=True)
STUDY_ROOT, PATIENT_ROOT = Model.STUDY_ROOT, Model.PATIENT_ROOT


@pytest.fixture
def filled(archive, make_instance):
    """Two patients, three studies, four series, six instances."""
    archive.ingest(make_instance(1))
    archive.ingest(make_instance(2))
    archive.ingest(make_instance(3, SeriesInstanceUID="1.2.2", SeriesNumber=2, Modality="MR"))
    archive.ingest(make_instance(4, StudyInstanceUID="1.3", SeriesInstanceUID="1.3.1", AccessionNumber="A2"))
    archive.ingest(make_instance(5, StudyInstanceUID="1.3", SeriesInstanceUID="1.3.1", AccessionNumber="A2"))
    archive.ingest(make_instance(6, StudyInstanceUID="1.4", SeriesInstanceUID="1.4.1", PatientID="P2"))
    return archive


def identifier(level=None, **values):
    dataset = Dataset()
    if level is not None:
        dataset.QueryRetrieveLevel = level
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    return dataset


@pytest.mark.parametrize(
    ("model", "level"),
    [(STUDY_ROOT, "PATIENT"), (STUDY_ROOT, "study"), (STUDY_ROOT, "EVERYTHING"), (STUDY_ROOT, ""), (STUDY_ROOT, None),
     (PATIENT_ROOT, ["STUDY", "SERIES"]), (PATIENT_ROOT, "INSTANCE")],
)  # fmt: skip
def test_a_level_that_the_model_does_not_have_is_refused(model, level):
    with pytest.raises(InvalidIdentifier) as caught:
        parse_identifier(identifier(level, PatientID="P1"), model)
    assert caught.value.element == "QueryRetrieveLevel"


@pytest.mark.parametrize(
    ("model", "level", "values", "element"),
    [
        (STUDY_ROOT, "SERIES", {}, "StudyInstanceUID"),
        (STUDY_ROOT, "SERIES", {"StudyInstanceUID": ""}, "StudyInstanceUID"),
        (STUDY_ROOT, "SERIES", {"StudyInstanceUID": "*"}, "StudyInstanceUID"),
        (STUDY_ROOT, "IMAGE", {"StudyInstanceUID": "1.3"}, "SeriesInstanceUID"),
        (STUDY_ROOT, "IMAGE", {"SeriesInstanceUID": "1.3"}, "StudyInstanceUID"),
        (PATIENT_ROOT, "STUDY", {}, "PatientID"),
        (PATIENT_ROOT, "STUDY", {"PatientID": "P*"}, "PatientID"),
        (PATIENT_ROOT, "STUDY", {"PatientID": ["P1", "P2"]}, "PatientID"),
    ],
)
def test_the_unique_keys_above_the_level_are_required(model, level, values, element, filled, ask):
    with pytest.raises(InvalidIdentifier) as caught:
        ask(filled, level, model=model, **values)
    assert caught.value.element == element


def test_a_relational_query_needs_no_unique_keys_above(filled, ask):
    found = ask(filled, "SERIES", options=RELATIONAL, Modality="MR")
    assert [answer.SeriesInstanceUID for answer in found] == ["1.2.2"]
    assert found[0].StudyInstanceUID == STUDY
    assert len(ask(filled, "IMAGE", model=PATIENT_ROOT, options=RELATIONAL, PatientID="P1")) == 5


# Retrieval (C.4.2, C.4.3)


def retrieved(archive, transmit, model, options, level, values):
    query = parse_identifier(transmit(identifier(level, **values)), model, retrieve=True, options=options)
    return "".join(sorted(each.sop_instance_uid.rpartition(".")[2] for each in instances(archive, query)))


@pytest.mark.parametrize(
    ("level", "model", "values", "numbers"),
    [
        ("STUDY", STUDY_ROOT, {"StudyInstanceUID": STUDY}, "123"),
        ("STUDY", STUDY_ROOT, {"StudyInstanceUID": ["1.3", "1.4"]}, "456"),
        ("STUDY", STUDY_ROOT, {"StudyInstanceUID": ["1.3", ""]}, "45"),
        ("STUDY", STUDY_ROOT, {"StudyInstanceUID": STUDY, "PatientID": "P2"}, ""),
        ("STUDY", STUDY_ROOT, {"StudyInstanceUID": STUDY, "StudyDate": "19990101"}, "123"),
        ("STUDY", STUDY_ROOT, {"StudyInstanceUID": STUDY, "SeriesInstanceUID": ""}, "123"),
        ("SERIES", STUDY_ROOT, {"StudyInstanceUID": STUDY, "SeriesInstanceUID": "1.2.2"}, "3"),
        ("SERIES", STUDY_ROOT, {"StudyInstanceUID": "1.3", "SeriesInstanceUID": "1.2.2"}, ""),
        ("PATIENT", PATIENT_ROOT, {"PatientID": "P1"}, "12345"),
        ("STUDY", PATIENT_ROOT, {"PatientID": "P1", "StudyInstanceUID": "1.4"}, ""),
        ("STUDY", STUDY_ROOT, {"StudyInstanceUID": "9.9"}, ""),
    ],
)
def test_unique_keys_select_what_is_retrieved(level, model, values, numbers, filled, transmit):
    assert retrieved(filled, transmit, model, BASELINE, level, values) == numbers


@pytest.mark.parametrize(
    ("level", "model", "values"),
    [
        ("STUDY", STUDY_ROOT, {}),
        ("STUDY", STUDY_ROOT, {"AccessionNumber": "A1"}),
        ("STUDY", STUDY_ROOT, {"StudyInstanceUID": ["", ""]}),
        ("STUDY", STUDY_ROOT, {"StudyInstanceUID": "*"}),
        ("STUDY", STUDY_ROOT, {"StudyInstanceUID": STUDY, "SeriesInstanceUID": "1.2.2"}),
        ("SERIES", STUDY_ROOT, {"SeriesInstanceUID": "1.2.2"}),
        ("PATIENT", PATIENT_ROOT, {"PatientID": "*"}),
        ("PATIENT", PATIENT_ROOT, {"PatientID": ["P1", "P2"]}),
        ("PATIENT", PATIENT_ROOT, {}),
    ],
)
def test_a_retrieval_that_could_send_too_much_is_refused(level, model, values, filled, transmit):
    with pytest.raises(InvalidIdentifier):
        retrieved(filled, transmit, model, BASELINE, level, values)


def test_instances_come_series_by_series_in_the_order_of_their_numbers(archive, make_instance, transmit):
    for number, (series, instance) in enumerate([("1.5", "10"), ("1.6", "2"), ("1.5", "9"), ("1.6", "1")]):
        archive.ingest(
            make_instance(number, SeriesInstanceUID=series, SeriesNumber=series[-1], InstanceNumber=instance)
        )
    query = parse_identifier(transmit(identifier("STUDY", StudyInstanceUID=STUDY)), STUDY_ROOT, retrieve=True)
    numbers = [each.sop_instance_uid.rpartition(".")[2] for each in instances(archive, query)]
    assert numbers == ["2", "0", "3", "1"]


# A lenient AE


@pytest.mark.parametrize(
    ("model", "level", "values", "answered", "rows"),
    [
        (STUDY_ROOT, "study", {}, "STUDY", 3),
        (STUDY_ROOT, " Series ", {"StudyInstanceUID": STUDY}, "SERIES", 2),
        (STUDY_ROOT, "PATIENT", {"PatientID": ""}, "PATIENT", 2),
        (STUDY_ROOT, "patient", {"PatientName": "doe*"}, "PATIENT", 2),
        (PATIENT_ROOT, "patient", {"PatientID": "P2"}, "PATIENT", 1),
        (STUDY_ROOT, None, {}, "STUDY", 3),
        (STUDY_ROOT, None, {"PatientID": "P1"}, "STUDY", 2),
        (STUDY_ROOT, None, {"StudyInstanceUID": STUDY}, "STUDY", 1),
        (STUDY_ROOT, None, {"StudyInstanceUID": STUDY, "SeriesInstanceUID": ""}, "SERIES", 2),
        (STUDY_ROOT, "", {"SOPInstanceUID": ""}, "IMAGE", 6),
        (PATIENT_ROOT, None, {"PatientID": ""}, "PATIENT", 2),
        (PATIENT_ROOT, None, {"PatientName": ""}, "PATIENT", 2),
        (PATIENT_ROOT, None, {"PatientID": "P1", "StudyInstanceUID": ""}, "STUDY", 2),
        (STUDY_ROOT, "SERIES", {"Modality": "MR"}, "SERIES", 1),
        (STUDY_ROOT, "IMAGE", {"SeriesInstanceUID": SERIES}, "IMAGE", 2),
        (PATIENT_ROOT, "STUDY", {}, "STUDY", 3),
    ],
)
def test_a_lenient_ae_is_understood(model, level, values, answered, rows, filled, ask):
    answers = ask(filled, level, model=model, options=LENIENT, **values)
    assert [answer.QueryRetrieveLevel for answer in answers] == [answered] * rows
    with pytest.raises(InvalidIdentifier):
        ask(filled, level, model=model, **values)


@pytest.mark.parametrize(
    ("level", "values", "element"),
    [("EVERYTHING", {}, "QueryRetrieveLevel"), ("STUDY", {"StudyDate": "2024"}, "StudyDate"),
     ("STUDY", {"StudyInstanceUID": "1.*"}, "StudyInstanceUID")],
)  # fmt: skip
def test_what_has_no_meaning_is_refused_to_a_lenient_ae_as_well(level, values, element, transmit):
    dataset = identifier(level)
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    with pytest.raises(InvalidIdentifier) as caught:
        parse_identifier(transmit(dataset), STUDY_ROOT, options=LENIENT)
    assert caught.value.element == element


@pytest.mark.parametrize(
    ("model", "level", "values", "numbers"),
    [
        (STUDY_ROOT, "STUDY", {"AccessionNumber": "A2"}, "45"),
        (STUDY_ROOT, "STUDY", {"PatientID": "P2"}, "6"),
        (STUDY_ROOT, "STUDY", {"PatientID": "P1", "AccessionNumber": "A2"}, "45"),
        (STUDY_ROOT, "STUDY", {"PatientID": "P2", "AccessionNumber": "A2"}, ""),
        (STUDY_ROOT, "STUDY", {"StudyInstanceUID": STUDY, "AccessionNumber": "A2"}, ""),
        (STUDY_ROOT, None, {"AccessionNumber": "A2"}, "45"),
        (STUDY_ROOT, None, {"PatientID": "P1"}, "12345"),
        (STUDY_ROOT, None, {"StudyInstanceUID": "1.4", "SeriesInstanceUID": ""}, "6"),
        (STUDY_ROOT, None, {"SOPInstanceUID": "1.2.826.0.1.3680043.9.7133.9.3"}, "3"),
        (STUDY_ROOT, "series", {"SeriesInstanceUID": "1.2.2"}, "3"),
        (STUDY_ROOT, "PATIENT", {"PatientID": "P1"}, "12345"),
        (PATIENT_ROOT, "STUDY", {"StudyInstanceUID": "1.4"}, "6"),
        (PATIENT_ROOT, None, {"PatientID": "P2"}, "6"),
    ],
)
def test_a_lenient_ae_retrieves_what_it_asks_for(model, level, values, numbers, filled, transmit):
    assert retrieved(filled, transmit, model, LENIENT, level, values) == numbers
    if "StudyInstanceUID" not in values or level != "STUDY" or model is PATIENT_ROOT:
        with pytest.raises(InvalidIdentifier) as caught:
            retrieved(filled, transmit, model, BASELINE, level, values)
        assert caught.value.element


@pytest.mark.parametrize(
    ("level", "values", "element"),
    [
        (None, {}, "StudyInstanceUID"),
        ("STUDY", {}, "StudyInstanceUID"),
        ("STUDY", {"StudyDate": "20240102"}, "StudyInstanceUID"),
        ("STUDY", {"PatientName": "Doe*"}, "StudyInstanceUID"),
        ("STUDY", {"PatientID": ""}, "StudyInstanceUID"),
        ("STUDY", {"PatientID": "P*"}, "PatientID"),
        ("STUDY", {"PatientID": "*"}, "PatientID"),
        ("STUDY", {"AccessionNumber": "A?"}, "AccessionNumber"),
        ("STUDY", {"AccessionNumber": ["A1", "A2"]}, "AccessionNumber"),
        ("SERIES", {"StudyInstanceUID": STUDY}, "SeriesInstanceUID"),
        ("STUDY", {"StudyInstanceUID": STUDY, "SeriesInstanceUID": SERIES}, "SeriesInstanceUID"),
    ],
)
def test_a_lenient_retrieval_that_could_send_too_much_is_refused(level, values, element, filled, transmit):
    with pytest.raises(InvalidIdentifier) as caught:
        retrieved(filled, transmit, STUDY_ROOT, LENIENT, level, values)
    assert caught.value.element == element
