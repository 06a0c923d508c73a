"""The query engine: Identifiers in, Identifiers out, for each clause of PS3.4 C.4 and C.6, both as encoded bytes."""

from __future__ import annotations

import re
import threading
import tracemalloc
from pathlib import Path

import pytest
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_dataset
from pydicom.filewriter import write_dataset
from pydicom.sequence import Sequence
from pydicom.tag import Tag

from index.archive import Archive
from index.charset import encoded
from index.errors import InvalidIdentifier
from index.keys import KEYS, SEQUENCES, Level, item_keywords, keys_of
from index.query import Model, QueryOptions, count, find, parse_identifier

STUDY, SERIES = "1.2.826.0.1.3680043.9.7133.1", "1.2.826.0.1.3680043.9.7133.2"


def transmitted(dataset, implicit=False):
    """Return `dataset` as the peer reads it: encoded, and decoded no further than pydicom does at once."""
    buffer = DicomBytesIO()
    buffer.is_little_endian, buffer.is_implicit_VR = True, implicit
    write_dataset(buffer, encoded(dataset))
    buffer.seek(0)
    return read_dataset(buffer, is_implicit_VR=implicit, is_little_endian=True)


def identifier(level="STUDY", **values):
    dataset = Dataset()
    dataset.QueryRetrieveLevel = level
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    return dataset


def ask(archive, level="STUDY", model=Model.STUDY_ROOT, relational=False, **values):
    options = QueryOptions(relational=relational)
    query = parse_identifier(transmitted(identifier(level, **values)), model, options=options)
    answers = [transmitted(answer) for answer in find(archive, query)]
    assert len(answers) == count(archive, query)
    return answers


@pytest.fixture
def filled(archive, make_instance):
    """Two patients, three studies, four series, six instances."""
    archive.ingest(make_instance(1, InstanceNumber="02", SliceLocation="1.50"))
    archive.ingest(make_instance(2, InstanceNumber="10"))
    archive.ingest(make_instance(3, SeriesInstanceUID="1.2.2", SeriesNumber=2, Modality="MR"))
    study = {"StudyInstanceUID": "1.3", "StudyDate": "20230630", "StudyTime": "235959", "StudyDescription": "Chest"}
    archive.ingest(make_instance(4, SeriesInstanceUID="1.3.1", AccessionNumber="A2", **study))
    archive.ingest(make_instance(5, SeriesInstanceUID="1.3.1", AccessionNumber="A2", **study))
    other = {"PatientID": "P2", "PatientName": "Müller^Jörg", "SpecificCharacterSet": "ISO_IR 100"}
    archive.ingest(make_instance(6, StudyInstanceUID="1.4", SeriesInstanceUID="1.4.1", StudyDate="", **other))
    return archive


# One answer per entity, with what was asked for


@pytest.mark.parametrize(
    ("model", "level", "more", "expected"),
    [
        (Model.PATIENT_ROOT, "PATIENT", {}, 2),
        (Model.PATIENT_ROOT, "STUDY", {"PatientID": "P1"}, 2),
        (Model.PATIENT_ROOT, "SERIES", {"PatientID": "P1", "StudyInstanceUID": STUDY}, 2),
        (Model.PATIENT_ROOT, "IMAGE", {"PatientID": "P1", "StudyInstanceUID": STUDY, "SeriesInstanceUID": SERIES}, 2),
        (Model.PATIENT_ROOT, "IMAGE", {"PatientID": "P2", "StudyInstanceUID": STUDY, "SeriesInstanceUID": SERIES}, 0),
        (Model.STUDY_ROOT, "STUDY", {}, 3),
        (Model.STUDY_ROOT, "STUDY", {"PatientID": "P1"}, 2),
        (Model.STUDY_ROOT, "SERIES", {"StudyInstanceUID": STUDY}, 2),
        (Model.STUDY_ROOT, "IMAGE", {"StudyInstanceUID": STUDY, "SeriesInstanceUID": SERIES}, 2),
    ],
)
def test_one_answer_for_each_entity(model, level, more, expected, filled):
    answers = ask(filled, level, model, **more)
    assert len(answers) == expected
    assert all(answer.QueryRetrieveLevel == level for answer in answers)


def test_an_answer_holds_the_keys_asked_for_and_the_unique_ones_in_order(filled):
    asked = {"PatientName": "", "StudyDate": "", "NumberOfStudyRelatedInstances": "", "NumberOfStudyRelatedSeries": "",
             "ModalitiesInStudy": "", "SOPClassesInStudy": "", "AccessionNumber": "A1", "StudyInstanceUID": STUDY}
    (answer,) = ask(filled, **asked)
    assert {element.keyword for element in answer} == {*asked, "QueryRetrieveLevel"}
    assert list(answer.ModalitiesInStudy) == ["CT", "MR"]
    assert (answer.NumberOfStudyRelatedInstances, answer.NumberOfStudyRelatedSeries) == (3, 2)
    assert (answer.StudyDate, answer.PatientName) == ("20240102", "Doe^Jane")
    (answer,) = ask(filled, AccessionNumber="A2")
    assert answer.StudyInstanceUID == "1.3"
    assert "PatientID" not in answer  # no unique key of the Study Root model
    (answer,) = ask(filled, "PATIENT", Model.PATIENT_ROOT, PatientName="doe*", NumberOfPatientRelatedStudies="")
    assert (answer.PatientID, answer.NumberOfPatientRelatedStudies) == ("P1", 2)


def test_keys_of_higher_levels_are_matched_and_returned(filled):
    unique = {"StudyInstanceUID": STUDY, "SeriesInstanceUID": SERIES}
    answers = ask(filled, "IMAGE", **unique, PatientName="", StudyDescription="Head", Rows="", InstanceNumber="")
    assert [answer.PatientName for answer in answers] == ["Doe^Jane"] * 2
    assert [answer.Rows for answer in answers] == [8, 8]
    assert ask(filled, "IMAGE", **unique, StudyDescription="Chest") == []


@pytest.mark.parametrize(
    ("values", "studies"),
    [
        ({"StudyDate": "20240101-"}, {STUDY}),
        ({"StudyDate": "-20231231"}, {"1.3"}),
        ({"StudyDate": "20230101-20241231", "StudyTime": "10-11"}, {STUDY}),
        ({"StudyTime": "2359"}, {"1.3"}),
        ({"ModalitiesInStudy": "M*"}, {STUDY}),
        ({"ModalitiesInStudy": ["MR", "US"]}, {STUDY}),
        ({"ModalitiesInStudy": "CT"}, {STUDY, "1.3", "1.4"}),
        ({"NumberOfStudyRelatedInstances": "03"}, {STUDY}),
        ({"StudyInstanceUID": ["1.3", "1.4", "1.5"]}, {"1.3", "1.4"}),
        ({"StudyInstanceUID": ["1.3", ""]}, {"1.3"}),
        ({"PatientName": "MULLER^*"}, {"1.4"}),
        ({"PatientName": "*", "StudyDescription": "*", "StudyDate": "*"}, {STUDY, "1.3", "1.4"}),
        ({"PatientID": ["P2", "P3"]}, {"1.4"}),
        ({"PatientID": "P_"}, set()),
        ({"PatientID": "P%"}, set()),
        ({"PatientID": "[P]1"}, set()),
        ({"SOPClassesInStudy": "1.2.840.10008.5.1.4.1.1.2", "AccessionNumber": "A2"}, {"1.3"}),
    ],
)
def test_all_conditions_have_to_hold(values, studies, filled):
    assert {answer.StudyInstanceUID for answer in ask(filled, **values)} == studies


def test_100_000_uids_in_one_key(filled):
    asked = [f"1.9.{number}" for number in range(100_000)] + ["1.3"]
    assert [answer.StudyInstanceUID for answer in ask(filled, StudyInstanceUID=asked)] == ["1.3"]


def test_numbers_are_matched_by_value_and_returned_as_sent(filled):
    unique = {"StudyInstanceUID": STUDY, "SeriesInstanceUID": SERIES}
    (answer,) = ask(filled, "IMAGE", **unique, InstanceNumber="2", SliceLocation="1.5")
    assert answer.get_item("InstanceNumber").value == b"02"
    assert answer.get_item("SliceLocation").value == b"1.50"


@pytest.mark.parametrize(
    ("values", "element"),
    [({"StudyDate": "2024"}, "StudyDate"), ({"StudyDate": "-"}, "StudyDate"), ({"StudyTime": "1"}, "StudyTime"),
     ({"StudyInstanceUID": "1.2.*"}, "StudyInstanceUID"), ({"NumberOfStudyRelatedSeries": "x"},
                                                         "NumberOfStudyRelatedSeries")],
)
def test_a_malformed_value_is_refused_and_named(values, element):
    dataset = identifier()
    for keyword, value in values.items():
        dataset.add(DataElement(keyword, dictionary_VR(keyword), value, already_converted=True))
    with pytest.raises(InvalidIdentifier) as caught:
        parse_identifier(transmitted(dataset), Model.STUDY_ROOT)
    assert caught.value.element == element


# Unsupported keys (C.4.1.1.3.2: Status FF01)


def test_supported_keys_are_told_apart_from_others():
    supported = identifier(PatientName="", StudyDate="", RetrieveAETitle="", InstanceAvailability="")
    supported.SpecificCharacterSet = "ISO_IR 192"
    assert parse_identifier(supported, Model.STUDY_ROOT).all_supported


@pytest.mark.parametrize(
    ("keyword", "value"),
    [("Modality", "CT"), ("SeriesInstanceUID", "9.9"), ("SOPInstanceUID", ""), ("KVP", "100"),
     ("SmallestImagePixelValue", None), ("ContentSequence", []), ("PixelData", b""), ("OffendingElement", None)],
)
def test_an_unsupported_key_is_returned_empty_and_filters_nothing(keyword, value, filled):
    dataset = identifier(PatientID="P1")
    setattr(dataset, keyword, value)
    dataset[keyword].VR = dictionary_VR(keyword)[:2]
    query = parse_identifier(transmitted(dataset), Model.STUDY_ROOT)
    assert not query.all_supported
    answers = [transmitted(answer) for answer in find(filled, query)]
    assert len(answers) == 2
    assert all(answer[keyword].is_empty for answer in answers)
    assert all(dictionary_VR(keyword)[:2] == answer[keyword].VR for answer in answers)


def test_another_sequence_key_is_unsupported_and_returned_as_an_empty_sequence(filled):
    code = Dataset()
    code.CodeValue = "X"
    dataset = identifier(PatientID="P1", ReferencedStudySequence=Sequence([code]))
    for implicit in (False, True):
        query = parse_identifier(transmitted(dataset, implicit), Model.STUDY_ROOT)
        assert not query.all_supported
        answers = [transmitted(answer, implicit) for answer in find(filled, query)]
        assert [len(answer.ReferencedStudySequence) for answer in answers] == [0, 0]


def test_a_supported_key_sent_as_a_sequence_is_unsupported(filled):
    dataset = identifier()
    dataset.add(DataElement("PatientName", "SQ", Sequence([Dataset()])))
    query = parse_identifier(transmitted(dataset), Model.STUDY_ROOT)
    assert not query.all_supported
    assert len([transmitted(answer) for answer in find(filled, query)]) == 3


def test_a_value_of_unknown_vr_is_read_by_the_dictionary(filled):
    dataset = identifier()
    dataset.add(DataElement(Tag("PatientName"), "PN", "doe*"))
    raw = transmitted(dataset)
    raw._dict[Tag("PatientName")] = raw.get_item("PatientName")._replace(VR="UN")
    answers = list(find(filled, parse_identifier(raw, Model.STUDY_ROOT)))
    assert {answer.StudyInstanceUID for answer in answers} == {STUDY, "1.3"}


def test_group_lengths_private_and_retired_keys_are_stripped(filled):
    dataset = identifier(PatientID="P2")
    dataset.add_new(0x00080000, "UL", 10)
    dataset.private_block(0x0011, "SOMEBODY", create=True).add_new(1, "LO", "x")
    dataset.add_new(0x00080010, "SH", "")  # Recognition Code, retired
    query = parse_identifier(transmitted(dataset), Model.STUDY_ROOT)
    (answer,) = find(filled, query)
    assert query.all_supported
    assert {element.keyword for element in answer} == {"PatientID", "StudyInstanceUID", "QueryRetrieveLevel"}


@pytest.mark.parametrize("implicit", [False, True])
def test_a_standard_element_of_a_newer_dictionary_is_unsupported(implicit, filled):
    dataset = identifier(PatientID="P2")
    dataset.add_new(0x00081234, "LO", "in no dictionary")
    query = parse_identifier(transmitted(dataset, implicit), Model.STUDY_ROOT)
    assert not query.all_supported
    (answer,) = [transmitted(answer, implicit) for answer in find(filled, query)]
    assert answer[0x00081234].is_empty


@pytest.mark.parametrize(
    ("keyword", "value", "supported"),
    [("RetrieveAETitle", "", True), ("RetrieveAETitle", "*", True), ("RetrieveAETitle", "OTHER", False),
     ("InstanceAvailability", "ONLINE", False)],
)
def test_what_the_edge_answers_is_not_matched(keyword, value, supported, filled):
    query = parse_identifier(transmitted(identifier(**{keyword: value})), Model.STUDY_ROOT)
    assert query.all_supported is supported
    assert len(list(find(filled, query))) == 3


def test_one_value_of_several_is_enough(archive, make_instance):
    archive.ingest(make_instance(1, AdmittingDiagnosesDescription=["Cough", "Fever"], ImageType=["ORIGINAL", "AXIAL"]))
    assert len(ask(archive, AdmittingDiagnosesDescription="Fever")) == 1
    assert len(ask(archive, AdmittingDiagnosesDescription="Fe*")) == 1
    assert ask(archive, AdmittingDiagnosesDescription="Cough*Fever") == []


def test_a_backslash_in_a_text_is_no_delimiter(archive, make_instance):
    archive.ingest(make_instance(1, PatientComments="C: \\ images"))
    (answer,) = ask(archive, PatientComments="C: \\ images")
    assert answer.PatientComments == "C: \\ images"
    assert ask(archive, PatientComments="images") == []
    assert len(ask(archive, PatientComments="*images")) == 1


def test_the_page_for_integrators_has_every_key():
    page = (Path(__file__).parents[1] / "docs" / "query.md").read_text(encoding="utf-8")
    words = set(re.findall(r"\w+", page))
    assert {*KEYS, *SEQUENCES, *item_keywords()} <= words
    for level in Level:
        rows = " ".join(row for row in page.splitlines() if row.startswith(f"| {level.value} |"))
        told = {word for word in re.findall(r"\w+", rows) if word in KEYS and word not in item_keywords()}
        assert told == {key.keyword for key in keys_of(level) if key.keyword not in item_keywords()}


def test_every_key_of_the_table_can_be_asked_and_returned(filled):
    dataset = identifier("IMAGE", StudyInstanceUID=STUDY, SeriesInstanceUID=SERIES)
    for keyword in KEYS:
        if keyword not in dataset:
            dataset.add_new(keyword, dictionary_VR(keyword), None)
    query = parse_identifier(transmitted(dataset), Model.PATIENT_ROOT, options=QueryOptions(relational=True))
    answers = [transmitted(answer) for answer in find(filled, query)]
    assert query.all_supported
    assert len(answers) == 2
    assert all(keyword in answers[0] for keyword in KEYS)


# Values as they were sent, whatever they are


@pytest.mark.filterwarnings("ignore")
def test_values_that_their_vr_does_not_allow_are_found_and_answered(archive, make_instance):
    odd = {"PatientName": "N" * 80, "StudyDescription": "D" * 100, "StudyDate": "yesterday", "StudyTime": "noon",
           "AccessionNumber": "A" * 40, "PatientID": "I" * 70, "PatientSex": "unknown to us at the moment"}
    content = make_instance(1, **odd, InstanceNumber=4711, SliceThickness="1.23456")
    content = content.replace(b"4711", b"#11 ").replace(b"1.23456 ", b"thick!  ")
    archive.ingest(content)
    (answer,) = ask(archive, **dict.fromkeys(odd, ""))
    assert {keyword: str(answer[keyword].value) for keyword in odd} == odd
    assert len(ask(archive, PatientID="I" * 70, PatientName="n" * 80)) == 1
    query = parse_identifier(
        identifier("IMAGE", InstanceNumber="", SliceThickness=None),
        Model.STUDY_ROOT,
        options=QueryOptions(relational=True),
    )
    (answer,) = find(archive, query)
    assert transmitted(answer).get_item("InstanceNumber").value.strip() == b"#11"
    assert transmitted(answer).get_item("SliceThickness").value.strip() == b"thick!"


def test_numbers_that_fit_no_us_are_answered_empty(archive, make_instance):
    content = make_instance(1)
    place = content.index(b"\x28\x00\x10\x00US\x02\x00\x08\x00")
    for number, raw in enumerate([b"IS\x06\x00-1    ", b"IS\x06\x0099999 ", b"IS\x04\x00many"]):
        changed = content[:place] + b"\x28\x00\x10\x00" + raw + content[place + 10 :]
        archive.ingest(changed.replace(b"7133.9.1", b"7133.9.%d" % (number + 1)))
    query = parse_identifier(identifier("IMAGE", Rows=None), Model.STUDY_ROOT, options=QueryOptions(relational=True))
    answers = [transmitted(answer) for answer in find(archive, query)]
    assert [answer.Rows for answer in answers] == [None] * 3


# Answers while things change


def test_an_answer_half_given_hinders_no_one_and_can_be_abandoned(filled, make_instance):
    query = parse_identifier(identifier(), Model.STUDY_ROOT)
    answers = find(filled, query)
    next(answers)
    Archive(filled.data).ingest(make_instance(11, StudyInstanceUID="1.11"))
    filled.ingest(make_instance(12, StudyInstanceUID="1.12"))  # the same thread, the same connection
    assert len(list(answers)) == 2  # as it was when the question was asked
    assert count(filled, query) == 5
    abandoned = find(filled, query)
    next(abandoned)
    abandoned.close()
    filled.delete(Level.STUDY, "1.12")
    assert count(filled, query) == 4


def test_an_answer_may_be_taken_over_by_another_thread(filled):
    answers = find(filled, parse_identifier(identifier(), Model.STUDY_ROOT))
    rest = [next(answers)]
    thread = threading.Thread(target=lambda: rest.extend(answers))
    thread.start()
    thread.join()
    assert len(rest) == 3


def test_rows_are_streamed_in_constant_memory(archive, make_instance):
    archive.ingest(make_instance(1, StudyDescription="x" * 60))
    with archive.transaction() as database:
        columns = [each.name for each in database["study"].columns]
        names = ", ".join(name for name in columns if name not in ("id", "study_instance_uid"))
        database.execute(
            "WITH RECURSIVE counter(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM counter WHERE n < 5000) "
            f"INSERT INTO study (study_instance_uid, {names}) SELECT '1.9.' || n, {names} FROM counter, study"
        )
    answers = find(archive, parse_identifier(identifier(PatientName="", StudyDescription=""), Model.STUDY_ROOT))
    next(answers)
    tracemalloc.start()
    rows = sum(1 for _ in answers)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert rows == 5000
    assert peak < 1 << 19
