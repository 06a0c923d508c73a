"""The query engine: Identifiers in, Identifiers out, for each clause of PS3.4 C.4 and C.6, both as encoded bytes."""

from __future__ import annotations

import threading
import unicodedata

import pytest
from pydicom import dcmread
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_dataset
from pydicom.filewriter import write_dataset
from pydicom.sequence import Sequence
from pydicom.tag import Tag

from index.archive import Archive
from index.errors import InvalidIdentifier
from index.keys import KEYS, Level
from index.query import Model, QueryOptions, count, find, instances, parse_identifier

STUDY, SERIES = "1.2.826.0.1.3680043.9.7133.1", "1.2.826.0.1.3680043.9.7133.2"


def transmitted(dataset, implicit=False):
    """Return `dataset` as the peer reads it: encoded, and decoded no further than pydicom does at once."""
    buffer = DicomBytesIO()
    buffer.is_little_endian, buffer.is_implicit_VR = True, implicit
    write_dataset(buffer, dataset)
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


def test_3000_uids_in_one_key(filled):
    asked = [f"1.9.{number}" for number in range(3000)] + ["1.3"]
    assert [answer.StudyInstanceUID for answer in ask(filled, StudyInstanceUID=asked)] == ["1.3"]


def test_numbers_are_matched_by_value_and_returned_as_sent(filled):
    unique = {"StudyInstanceUID": STUDY, "SeriesInstanceUID": SERIES}
    (answer,) = ask(filled, "IMAGE", **unique, InstanceNumber="2", SliceLocation="1.5")
    assert answer.get_item("InstanceNumber").value == b"02"
    assert answer.get_item("SliceLocation").value == b"1.50"


# Levels and unique keys (C.4.1.1.3.1, C.4.1.2)


@pytest.mark.parametrize(
    ("model", "level"),
    [(Model.STUDY_ROOT, "PATIENT"), (Model.STUDY_ROOT, "study"), (Model.STUDY_ROOT, "EVERYTHING"),
     (Model.STUDY_ROOT, ""), (Model.STUDY_ROOT, None), (Model.PATIENT_ROOT, ["STUDY", "SERIES"])],
)
def test_a_level_that_the_model_does_not_have_is_refused(model, level):
    with pytest.raises(InvalidIdentifier) as caught:
        parse_identifier(identifier(level, PatientID="P1"), model)
    assert caught.value.element == "QueryRetrieveLevel"


def test_a_level_that_is_missing_is_refused():
    with pytest.raises(InvalidIdentifier, match="missing"):
        parse_identifier(Dataset(), Model.STUDY_ROOT)


@pytest.mark.parametrize(
    ("model", "level", "values", "element"),
    [
        (Model.STUDY_ROOT, "SERIES", {}, "StudyInstanceUID"),
        (Model.STUDY_ROOT, "SERIES", {"StudyInstanceUID": ""}, "StudyInstanceUID"),
        (Model.STUDY_ROOT, "SERIES", {"StudyInstanceUID": "*"}, "StudyInstanceUID"),
        (Model.STUDY_ROOT, "IMAGE", {"StudyInstanceUID": "1.3"}, "SeriesInstanceUID"),
        (Model.STUDY_ROOT, "IMAGE", {"SeriesInstanceUID": "1.3"}, "StudyInstanceUID"),
        (Model.PATIENT_ROOT, "STUDY", {}, "PatientID"),
        (Model.PATIENT_ROOT, "STUDY", {"PatientID": "P*"}, "PatientID"),
        (Model.PATIENT_ROOT, "STUDY", {"PatientID": ["P1", "P2"]}, "PatientID"),
    ],
)
def test_the_unique_keys_above_the_level_are_required(model, level, values, element, filled):
    with pytest.raises(InvalidIdentifier) as caught:
        ask(filled, level, model, **values)
    assert caught.value.element == element


def test_a_relational_query_needs_no_unique_keys_above(filled):
    found = ask(filled, "SERIES", relational=True, Modality="MR")
    assert [answer.SeriesInstanceUID for answer in found] == ["1.2.2"]
    assert found[0].StudyInstanceUID == STUDY
    assert len(ask(filled, "IMAGE", Model.PATIENT_ROOT, relational=True, PatientID="P1")) == 5


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
     ("SmallestImagePixelValue", None), ("ProcedureCodeSequence", []), ("PixelData", b""), ("OffendingElement", None)],
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


def test_a_sequence_key_is_unsupported_and_returned_as_an_empty_sequence(filled):
    code = Dataset()
    code.CodeValue = "X"
    dataset = identifier(PatientID="P1", ProcedureCodeSequence=Sequence([code]))
    for implicit in (False, True):
        query = parse_identifier(transmitted(dataset, implicit), Model.STUDY_ROOT)
        assert not query.all_supported
        answers = [transmitted(answer, implicit) for answer in find(filled, query)]
        assert [len(answer.ProcedureCodeSequence) for answer in answers] == [0, 0]


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
    dataset.add_new(0x00080010, "SH", "old")  # Recognition Code, retired
    dataset.add_new(0x00081234, "LO", "in no dictionary")
    query = parse_identifier(transmitted(dataset), Model.STUDY_ROOT)
    (answer,) = find(filled, query)
    assert query.all_supported
    assert {element.keyword for element in answer} == {"PatientID", "StudyInstanceUID", "QueryRetrieveLevel"}


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


# Retrieval (C.4.2, C.4.3)


def found(archive, level, model=Model.STUDY_ROOT, **values):
    query = parse_identifier(transmitted(identifier(level, **values)), model, retrieve=True)
    return [instance.sop_instance_uid.rpartition(".")[2] for instance in instances(archive, query)]


@pytest.mark.parametrize(
    ("level", "model", "values", "numbers"),
    [
        ("STUDY", Model.STUDY_ROOT, {"StudyInstanceUID": STUDY}, "123"),
        ("STUDY", Model.STUDY_ROOT, {"StudyInstanceUID": ["1.3", "1.4"]}, "456"),
        ("STUDY", Model.STUDY_ROOT, {"StudyInstanceUID": ["1.3", ""]}, "45"),
        ("STUDY", Model.STUDY_ROOT, {"StudyInstanceUID": STUDY, "PatientID": "P2"}, ""),
        ("STUDY", Model.STUDY_ROOT, {"StudyInstanceUID": STUDY, "StudyDate": "19990101"}, "123"),
        ("STUDY", Model.STUDY_ROOT, {"StudyInstanceUID": STUDY, "SeriesInstanceUID": ""}, "123"),
        ("SERIES", Model.STUDY_ROOT, {"StudyInstanceUID": STUDY, "SeriesInstanceUID": "1.2.2"}, "3"),
        ("SERIES", Model.STUDY_ROOT, {"StudyInstanceUID": "1.3", "SeriesInstanceUID": "1.2.2"}, ""),
        ("PATIENT", Model.PATIENT_ROOT, {"PatientID": "P1"}, "12345"),
        ("STUDY", Model.PATIENT_ROOT, {"PatientID": "P1", "StudyInstanceUID": "1.4"}, ""),
        ("STUDY", Model.STUDY_ROOT, {"StudyInstanceUID": "9.9"}, ""),
    ],
)
def test_unique_keys_select_what_is_retrieved(level, model, values, numbers, filled):
    assert "".join(sorted(found(filled, level, model, **values))) == numbers


@pytest.mark.parametrize(
    ("level", "model", "values"),
    [
        ("STUDY", Model.STUDY_ROOT, {}),
        ("STUDY", Model.STUDY_ROOT, {"AccessionNumber": "A1"}),
        ("STUDY", Model.STUDY_ROOT, {"StudyInstanceUID": ["", ""]}),
        ("STUDY", Model.STUDY_ROOT, {"StudyInstanceUID": "*"}),
        ("STUDY", Model.STUDY_ROOT, {"StudyInstanceUID": STUDY, "SeriesInstanceUID": "1.2.2"}),
        ("SERIES", Model.STUDY_ROOT, {"SeriesInstanceUID": "1.2.2"}),
        ("PATIENT", Model.PATIENT_ROOT, {"PatientID": "*"}),
        ("PATIENT", Model.PATIENT_ROOT, {"PatientID": ["P1", "P2"]}),
        ("PATIENT", Model.PATIENT_ROOT, {}),
    ],
)
def test_a_retrieval_that_could_send_too_much_is_refused(level, model, values, filled):
    with pytest.raises(InvalidIdentifier):
        found(filled, level, model, **values)


def test_instances_come_series_by_series_in_the_order_of_their_numbers(archive, make_instance):
    for number, (series, instance) in enumerate([("1.5", "10"), ("1.6", "2"), ("1.5", "9"), ("1.6", "1")]):
        archive.ingest(
            make_instance(number, SeriesInstanceUID=series, SeriesNumber=series[-1], InstanceNumber=instance)
        )
    assert found(archive, "STUDY", StudyInstanceUID=STUDY) == ["2", "0", "3", "1"]


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


# Character sets


def charset_files(shared_data):
    return sorted((shared_data / "pydicom" / "src" / "pydicom" / "data" / "charset_files").glob("*.dcm"))


def without_accents(text):
    return "".join(each for each in unicodedata.normalize("NFD", text) if unicodedata.category(each) != "Mn")


@pytest.mark.filterwarnings("ignore")
def test_real_names_of_every_character_set_are_found_in_any_group_and_returned_without_loss(shared_data, tmp_path):
    seen = 0
    for path in charset_files(shared_data):
        source = dcmread(path)
        name = str(source.get("PatientName", ""))
        if not name or not source.get("StudyInstanceUID"):
            continue
        archive = Archive(tmp_path / path.stem)
        archive.ingest(path)
        groups = [group for group in name.split("=") if group.strip("^ ")]
        asked = [name, *groups, *[group.upper() for group in groups], *[group.lower() for group in groups]]
        asked += [group[0] + "*" for group in groups] + ["*" + group[-1] for group in groups]
        if not any("\u3040" <= character <= "\u30ff" or "\u0590" <= character <= "\u06ff" for character in name):
            asked += [without_accents(group) for group in groups]
        for value in asked:
            charsets = ["ISO_IR 192"]
            if value in (name, *groups):  # a variant need not exist in the file's own character set
                charsets.append(source.get("SpecificCharacterSet", ""))
            for charset in charsets:
                answers = ask(archive, SpecificCharacterSet=charset, PatientName=value)
                assert len(answers) == 1, f"{path.name}: {value!r} in {charset}"
                assert str(answers[0].PatientName) == name, f"{path.name}: {charset}"
                seen += 1
        for charset in (None, "ISO_IR 100", "ISO_IR 144"):  # cannot represent most of them: never lossy all the same
            more = {"SpecificCharacterSet": charset} if charset else {}
            (answer,) = ask(archive, PatientName="", StudyDescription="", **more)
            assert str(answer.PatientName) == name
        assert ask(archive, SpecificCharacterSet="ISO_IR 192", PatientName=name + "x") == []
    assert seen > 100


@pytest.mark.parametrize(
    ("stored", "asked", "answered"),
    [
        ("ISO_IR 100", None, "ISO_IR 100"),
        ("ISO_IR 100", "ISO_IR 192", "ISO_IR 192"),
        ("ISO_IR 192", "ISO_IR 100", "ISO_IR 100"),
        ("ISO_IR 192", "ISO_IR 144", "ISO_IR 192"),
        ("ISO_IR 192", None, "ISO_IR 192"),
        ("ISO_IR 100", "ISO_IR 999", "ISO_IR 100"),
        ("ISO_IR 100", "NONSENSE", "ISO_IR 100"),
        ("GB18030", "ISO_IR 13", "GB18030"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_the_answer_prefers_the_character_set_of_the_request_then_the_stored_one(
    stored, asked, answered, archive, make_instance
):
    archive.ingest(make_instance(1, PatientName="Müller^Jörg", SpecificCharacterSet=stored))
    (answer,) = ask(archive, PatientName="", **({"SpecificCharacterSet": asked} if asked else {}))
    assert answer.SpecificCharacterSet == answered
    assert answer.PatientName == "Müller^Jörg"


def test_ascii_needs_no_character_set(archive, make_instance):
    archive.ingest(make_instance(1, SpecificCharacterSet="ISO_IR 100"))
    (answer,) = ask(archive, PatientName="")
    assert "SpecificCharacterSet" not in answer


@pytest.mark.filterwarnings("ignore")
def test_no_character_set_holds_both_names_but_utf_8(archive, make_instance):
    archive.ingest(make_instance(1, PatientName="Иванов", SpecificCharacterSet="ISO_IR 144"))
    archive.ingest(make_instance(2, PatientName="Иванов", SpecificCharacterSet="ISO_IR 100", SeriesInstanceUID="1.8",
                                 OperatorsName="Müller", SeriesDescription="Schädel"))
    (answer,) = ask(archive, "SERIES", StudyInstanceUID=STUDY, SeriesInstanceUID="1.8", PatientName="",
                    OperatorsName="MULLER", SeriesDescription="")
    assert answer.SpecificCharacterSet == "ISO_IR 192"
    assert (answer.PatientName, answer.OperatorsName, answer.SeriesDescription) == ("Иванов", "Müller", "Schädel")


def test_several_names_in_one_element_match_one_by_one(archive, make_instance):
    archive.ingest(make_instance(1, OperatorsName=["Lee^Ann", "Roe^Max"]))
    for value in ("lee^ann", "Roe*", "roe^max"):
        (answer,) = ask(archive, "SERIES", StudyInstanceUID=STUDY, OperatorsName=value)
        assert list(answer.OperatorsName) == ["Lee^Ann", "Roe^Max"]
    assert ask(archive, "SERIES", StudyInstanceUID=STUDY, OperatorsName="lee*max") == []


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
