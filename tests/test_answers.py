"""Answers encoded from rows of the catalogue: the same bytes as the data sets that they stand for."""

from __future__ import annotations

import pytest
from pydicom.datadict import dictionary_VR
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian

import index.query
from index.answers import answers
from index.keys import KEYS, SEQUENCES, Level
from index.query import Model, QueryOptions, parse_identifier

EDGE = {"RetrieveAETitle": "THARSIS", "InstanceAvailability": "ONLINE"}

ODD = {
    "PatientName": "Doe^Jane=山田^花子=やまだ^はなこ", "PatientComments": "two\r\nlines \\ one value ",
    "StudyDescription": "\\", "AccessionNumber": "A\\B", "StudyID": "x" * 300, "PatientSize": "1.7\\",
    "PatientAge": "old",
    "ReferringPhysicianName": "Müller^Jörg\\Ørsted^Å==", "SeriesDescription": "Straße", "Modality": "\u00c4T",
    "BodyPartExamined": "HEAD \\ NECK", "SliceThickness": "0.1234567890123456789", "SliceLocation": "1.50e+1",
    "NumberOfFrames": "1.0", "InstanceNumber": "+02", "AcquisitionNumber": "12345678901", "ImageComments": "y" * 70000,
    "ImageType": "ORIGINAL\\PRIMARY\\", "FrameOfReferenceUID": "1.2.3", "StudyDate": "2024.01.02", "StudyTime": "10:15",
    "ContentDescription": "e\u0301", "OperatorsName": "Doe^J^^^",
    "PerformingPhysicianName": "Doe=山=", "NameOfPhysiciansReadingStudy": "A=\\B", "TimezoneOffsetFromUTC": "+0100",
}  # fmt: skip


@pytest.fixture
def odd(archive, make_instance):
    """One instance as it should be, and one for each odd value."""
    archive.ingest(make_instance(1, TimezoneOffsetFromUTC="+0100"))
    for number, (keyword, value) in enumerate(ODD.items(), 2):
        where = {"StudyInstanceUID": f"1.2.{number}", "SeriesInstanceUID": f"1.2.{number}.1", "PatientID": str(number)}
        charset = {"SpecificCharacterSet": "ISO_IR 192"}
        archive.ingest(make_instance(number, **charset, **where, **{keyword: value}))
    return archive


def every_key(level, charset):
    asked = Dataset()
    if charset:
        asked.SpecificCharacterSet = charset
    asked.QueryRetrieveLevel = level.value
    for key in KEYS.values():
        asked.add_new(key.keyword, dictionary_VR(key.keyword), None)
    asked.TimezoneOffsetFromUTC = None
    asked.KVP = None  # not supported: answered without a value
    asked.FailureReason = None  # in group 0008, before the first key
    return asked


def test_the_bytes_are_those_of_the_data_set_for_every_key_and_odd_value(odd, transmit, same_answers):
    for charset in ("", "ISO_IR 100", "ISO_IR 192", ["", "ISO 2022 IR 87"], "KLINGON"):
        for level in Level:
            asked = transmit(every_key(level, charset))
            query = parse_identifier(asked, Model.PATIENT_ROOT, options=QueryOptions(relational=True))

            assert same_answers(odd, query) > 0, (level, charset)


def test_an_answer_of_a_few_keys_is_encoded_from_its_row(odd, transmit, same_answers):
    for keyword in ("StudyInstanceUID", "PatientName", "NumberOfStudyRelatedInstances", "StudyDate"):
        asked = Dataset()
        asked.QueryRetrieveLevel, asked.PatientID = "STUDY", "P1"
        asked.add_new(keyword, dictionary_VR(keyword), None)

        query = parse_identifier(transmit(asked), Model.STUDY_ROOT)

        assert same_answers(odd, query) == 2, keyword  # in both transfer syntaxes


def test_sequences_and_other_transfer_syntaxes_are_left_to_be_encoded(odd, transmit):
    asked = Dataset()
    asked.QueryRetrieveLevel, asked.PatientID = "STUDY", "P1"
    plain = parse_identifier(transmit(asked), Model.STUDY_ROOT)
    asked.add_new("ProcedureCodeSequence", "SQ", [])
    assert "ProcedureCodeSequence" in SEQUENCES
    with_items = parse_identifier(transmit(asked), Model.STUDY_ROOT)

    (big,) = answers(odd, plain, EDGE, str(ExplicitVRBigEndian))
    (nested,) = answers(odd, with_items, EDGE, str(ImplicitVRLittleEndian))

    assert big.RetrieveAETitle == nested.RetrieveAETitle == "THARSIS"
    assert "ProcedureCodeSequence" in nested


def test_an_answer_is_there_before_the_next_row_is_read(odd, transmit):
    asked = Dataset()
    asked.QueryRetrieveLevel, asked.StudyInstanceUID = "STUDY", None
    found = answers(odd, parse_identifier(transmit(asked), Model.STUDY_ROOT), EDGE, str(ImplicitVRLittleEndian))

    assert next(found)
    found.close()  # as a C-CANCEL does: the connection is given back or closed, and the archive can be written to
    with odd.transaction() as database:
        database.execute("UPDATE study SET study_id = 'later'")


def test_who_takes_few_answers_slowly_keeps_no_old_state_of_the_catalogue(odd, transmit, monkeypatch):
    asked = Dataset()
    asked.QueryRetrieveLevel, asked.StudyInstanceUID = "STUDY", None
    query = parse_identifier(transmit(asked), Model.STUDY_ROOT)

    def is_kept() -> bool:
        with odd.transaction() as database:
            database.execute("UPDATE study SET study_id = study_id || 'x'")
        return bool(odd.database.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()[0])

    odd.database.execute("PRAGMA busy_timeout = 1")
    found = answers(odd, query, EDGE, str(ImplicitVRLittleEndian))
    assert next(found)
    assert not is_kept()
    assert list(found)

    monkeypatch.setattr(index.query, "_MOST_AT_ONCE", 3)  # as the first of many
    now = [1000.0]
    monkeypatch.setattr(index.query.time, "monotonic", lambda: now[0])
    found = answers(odd, query, EDGE, str(ImplicitVRLittleEndian))
    got = [next(found) for _ in range(5)]
    assert is_kept()
    now[0] += 1
    got += [next(found), next(found)]  # the next one finds that it takes long, and the rest is put aside
    assert not is_kept()
    got += found
    at_once = list(answers(odd, query, EDGE, str(ImplicitVRLittleEndian)))
    assert sorted(map(bytes, got)) == sorted(map(bytes, at_once))
    assert len(got) == len(ODD) + 1
    assert not list(odd.incoming.iterdir())


def test_items_of_sequences_are_of_the_state_in_which_their_rows_were_found(archive, make_instance, transmit):
    """Numbers of rows are given again: the items of a later study would be taken for those of one that is gone."""

    def store(number, code):
        item = Dataset()
        item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code, "99X", code
        where = {"StudyInstanceUID": f"1.2.{number}", "SeriesInstanceUID": f"1.2.{number}.1", "PatientID": str(number)}
        archive.ingest(make_instance(number, **where, ProcedureCodeSequence=[item]))

    for number in (1, 2, 3):
        store(number, f"OF{number}")
    asked = Dataset()
    asked.QueryRetrieveLevel, asked.StudyInstanceUID, asked.ProcedureCodeSequence = "STUDY", None, []
    found = answers(archive, parse_identifier(transmit(asked), Model.STUDY_ROOT), EDGE, str(ImplicitVRLittleEndian))
    got = [next(found)]
    for number in (2, 3):
        archive.delete(Level.STUDY, f"1.2.{number}")
    store(4, "OF4")
    got += found
    told = {(each.StudyInstanceUID, each.ProcedureCodeSequence[0].CodeValue) for each in got}
    assert told == {("1.2.1", "OF1"), ("1.2.2", "OF2"), ("1.2.3", "OF3")}
