"""C-FIND with real peers: rows, Status, charset, cancellation."""

from __future__ import annotations

import re
import zlib
from io import BytesIO

import pytest
from held_rows import hold_rows
from pydicom.dataset import Dataset
from pydicom.tag import Tag
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
)
from pynetdicom import AE
from pynetdicom.dimse_primitives import C_ECHO, C_FIND, C_GET, C_MOVE
from pynetdicom.dsutils import encode
from requestors import paused

from scp.contexts import PATIENT_ROOT_FIND, STUDY_ROOT_FIND, STUDY_ROOT_GET, STUDY_ROOT_MOVE

pytestmark = pytest.mark.filterwarnings("ignore:.*Invalid value for VR")

ROOT = "1.2.826.0.1.3680043.9.7133"


@pytest.fixture
def filled(start_node, make_file):
    """Two patients, three studies, four series, six images."""
    node = start_node()
    plan = [("P1", 1, 1, 2), ("P1", 2, 2, 2), ("P2", 3, 3, 1), ("P2", 3, 4, 1)]
    number = 0
    for patient, study, series, images in plan:
        for _ in range(images):
            number += 1
            node.archive.ingest(
                make_file(
                    number, PatientID=patient, PatientName=f"Name^{patient}", StudyInstanceUID=f"{ROOT}.1.{study}",
                    SeriesInstanceUID=f"{ROOT}.2.{series}", AccessionNumber=f"A{study}",
                    Modality="MR" if series == 4 else "CT",
                )
            )  # fmt: skip
    return node


def _identifier(level, **keys):
    identifier = Dataset()
    if level is not None:
        identifier.QueryRetrieveLevel = level
    for keyword, value in keys.items():
        setattr(identifier, keyword, value)
    return identifier


def _find(node, identifier, model=STUDY_ROOT_FIND, *, called="THARSIS", calling="VIEWER"):
    entity = AE(calling)
    entity.add_requested_context(model, ExplicitVRLittleEndian)
    assoc = entity.associate("127.0.0.1", node.port, ae_title=called)
    assert assoc.is_established
    answers = list(assoc.send_c_find(identifier, model))
    assoc.release()
    return answers


@pytest.mark.parametrize(
    ("model", "level", "keys", "rows"),
    [
        (PATIENT_ROOT_FIND, "PATIENT", {"PatientID": ""}, 2),
        (PATIENT_ROOT_FIND, "STUDY", {"PatientID": "P1", "StudyInstanceUID": ""}, 2),
        (STUDY_ROOT_FIND, "STUDY", {"StudyInstanceUID": ""}, 3),
        (STUDY_ROOT_FIND, "STUDY", {"PatientName": "name^p2", "StudyInstanceUID": ""}, 1),
        (STUDY_ROOT_FIND, "STUDY", {"ModalitiesInStudy": "MR", "StudyInstanceUID": ""}, 1),
        (STUDY_ROOT_FIND, "STUDY", {"StudyInstanceUID": [f"{ROOT}.1.1", f"{ROOT}.1.3", "1.2.3"]}, 2),
        (STUDY_ROOT_FIND, "SERIES", {"StudyInstanceUID": f"{ROOT}.1.3", "SeriesInstanceUID": ""}, 2),
        (STUDY_ROOT_FIND, "IMAGE",
         {"StudyInstanceUID": f"{ROOT}.1.1", "SeriesInstanceUID": f"{ROOT}.2.1", "SOPInstanceUID": ""}, 2),
        (STUDY_ROOT_FIND, "STUDY", {"PatientID": "NOBODY", "StudyInstanceUID": ""}, 0),
    ],
)  # fmt: skip
def test_one_row_for_each_entity(filled, model, level, keys, rows):
    answers = _find(filled, _identifier(level, **keys), model)
    assert [status.Status for status, _ in answers] == [0xFF00] * rows + [0x0000]
    for _, identifier in answers[:-1]:
        assert identifier.QueryRetrieveLevel == level
        assert identifier.RetrieveAETitle == "THARSIS"
        assert identifier.InstanceAvailability == "ONLINE"
        assert set(keys) <= {element.keyword for element in identifier}


@pytest.mark.parametrize(
    ("model", "identifier", "keyword"),
    [
        (STUDY_ROOT_FIND, _identifier("PATIENT", PatientID=""), "QueryRetrieveLevel"),
        (STUDY_ROOT_FIND, _identifier("study", PatientID=""), "QueryRetrieveLevel"),
        (STUDY_ROOT_FIND, _identifier(None, PatientID=""), "QueryRetrieveLevel"),
        (STUDY_ROOT_FIND, _identifier("SERIES", SeriesInstanceUID=""), "StudyInstanceUID"),
        (STUDY_ROOT_FIND, _identifier("STUDY", StudyInstanceUID="1.2.*"), "StudyInstanceUID"),
        (STUDY_ROOT_FIND, _identifier("STUDY", StudyDate="20240101-20241231-"), "StudyDate"),
        (PATIENT_ROOT_FIND, _identifier("STUDY", StudyInstanceUID=""), "PatientID"),
    ],
)
def test_an_identifier_that_the_model_does_not_allow_is_refused(filled, model, identifier, keyword):
    [(status, match)] = _find(filled, identifier, model)
    assert status.Status == 0xA900
    assert match is None
    assert 0 < len(status.ErrorComment) <= 64
    assert status["OffendingElement"].value == Tag(keyword)


@pytest.mark.parametrize("unsupported", ["AdditionalPatientHistory", "Modality"])
def test_an_unsupported_key_is_told_by_ff01(filled, unsupported):
    answers = _find(filled, _identifier("STUDY", StudyInstanceUID="", **{unsupported: ""}))
    assert {status.Status for status, _ in answers[:-1]} == {0xFF01}


def test_a_private_key_of_others_is_not_answered(filled):
    identifier = _identifier("STUDY", StudyInstanceUID="")
    identifier.private_block(0x0009, "SOMEBODY", create=True).add_new(0x01, "LO", "x")
    answers = _find(filled, identifier)
    assert len(answers) == 4
    assert not any(element.tag.is_private for _, match in answers[:-1] for element in match)


def test_the_right_to_find_is_required(start_node):
    node = start_node(entities=[{"title": "VIEWER", "rights": ["store"]}])
    [(status, _)] = _find(node, _identifier("STUDY", StudyInstanceUID=""))
    assert status.Status == 0x0124
    assert "find" in status.ErrorComment


@pytest.mark.parametrize("charset", ["ISO_IR 192", "ISO 2022 IR 87"])
def test_names_come_back_without_loss(start_node, make_file, charset):
    node = start_node()
    name = "Yamada^Tarou=山田^太郎"
    node.archive.ingest(make_file(1, SpecificCharacterSet="ISO_IR 192", PatientName=name))
    asked = _identifier("STUDY", SpecificCharacterSet=["", charset] if "2022" in charset else charset)
    asked.PatientName, asked.StudyInstanceUID = "山田*", ""
    [(_, match), _] = _find(node, asked)
    assert str(match.PatientName) == name


def test_cancelling_ends_the_rows(start_node, make_file, monkeypatch):
    hold_rows(monkeypatch, after=2)
    node = start_node()
    for number in range(1, 301):
        node.archive.ingest(make_file(number).read_bytes())
    entity = AE("VIEWER")
    entity.add_requested_context(STUDY_ROOT_FIND, ExplicitVRLittleEndian)
    assoc = entity.associate("127.0.0.1", node.port, ae_title="THARSIS")
    identifier = _identifier(
        "IMAGE", StudyInstanceUID=f"{ROOT}.1", SeriesInstanceUID=f"{ROOT}.2", SOPInstanceUID=""
    )
    statuses = []
    for status, _ in assoc.send_c_find(identifier, STUDY_ROOT_FIND, msg_id=5):
        statuses.append(status.Status)
        if len(statuses) == 2:
            assoc.send_c_cancel(5, query_model=STUDY_ROOT_FIND)
    assoc.release()
    assert statuses[-1] == 0xFE00
    assert len(statuses) <= 5, "the rows went on long after the C-CANCEL"


def test_findscu(filled, dcmtk):
    output = dcmtk(
        "findscu", "-v", "-P", "-aec", "THARSIS", "-k", "QueryRetrieveLevel=PATIENT", "-k", "PatientID",
        "-k", "NumberOfPatientRelatedStudies", "127.0.0.1", filled.port,
    ).stdout  # fmt: skip
    assert len(re.findall(r"Find Response: \d+ \(Pending\)", output)) == 2
    assert "Final Find Response (Success)" in output
    assert re.search(r"\(0020,1200\) IS \[2 ?\]", output)


def test_an_operation_that_the_class_does_not_have_is_refused(filled):
    entity = AE("VIEWER")
    entity.add_requested_context(STUDY_ROOT_FIND, ExplicitVRLittleEndian)
    assoc = entity.associate("127.0.0.1", filled.port, ae_title="THARSIS")
    identifier = _identifier("STUDY", StudyInstanceUID=f"{ROOT}.1.1")
    [(status, _)] = list(assoc.send_c_get(identifier, STUDY_ROOT_FIND))
    assert status.Status == 0x0211
    assert status.ErrorComment
    assoc.release()


def test_an_echo_on_a_context_of_another_class_is_refused_with_the_reason(filled):
    entity = AE("VIEWER")
    entity.add_requested_context(STUDY_ROOT_FIND, ExplicitVRLittleEndian)
    assoc = entity.associate("127.0.0.1", filled.port, ae_title="THARSIS")
    request = C_ECHO()
    request.MessageID, request.AffectedSOPClassUID = 3, STUDY_ROOT_FIND
    with paused(assoc):
        assoc.dimse.send_msg(request, assoc.accepted_contexts[0].context_id)
        _, response = assoc.dimse.get_msg(block=True)
    assert response.Status == 0x0211
    assert "C-ECHO" in response.ErrorComment
    assoc.release()


def test_a_context_is_refused_for_what_is_not_supported(start_node):
    """PS3.8 table 9-18: 3 for the abstract syntax, 4 for the transfer syntaxes."""
    entity = AE("VIEWER")
    for uid, syntax in (
        (STUDY_ROOT_FIND, JPEG2000Lossless),
        (CTImageStorage, "1.2.3"),
        ("1.2.840.10008.1.1", "1.2.3"),
        ("1.2.840.10008.5.1.4.31", ImplicitVRLittleEndian),  # Modality Worklist
        (PATIENT_ROOT_FIND, ImplicitVRLittleEndian),
    ):
        entity.add_requested_context(uid, syntax)
    assoc = entity.associate("127.0.0.1", start_node().port, ae_title="THARSIS")
    results = [context.result for context in sorted(
        [*assoc.accepted_contexts, *assoc.rejected_contexts], key=lambda context: context.context_id
    )]  # fmt: skip
    assoc.release()
    assert results == [4, 4, 4, 3, 0]


@pytest.mark.parametrize(("value", "status"), [("NOSUCH", 0xFF01), ("", 0xFF00)])
def test_a_retired_key_is_stripped_and_one_with_a_value_was_not_matched(filled, value, status):
    (answer, match), *_ = _find(filled, _identifier("STUDY", StudyInstanceUID="", OtherPatientIDs=value))
    assert answer.Status == status
    assert "OtherPatientIDs" not in match


def _deflated(identifier, zeros=0):
    """The Identifier with a private element of so many zeros, deflated."""
    stream = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    content = stream.compress(encode(identifier, False, True))
    if zeros:
        content += stream.compress(b"\x09\x70\x10\x00LO\x04\x00TEST")
        content += stream.compress(b"\x09\x70\x01\x10OB\0\0" + zeros.to_bytes(4, "little"))
        for _ in range(zeros >> 20):
            content += stream.compress(bytes(1 << 20))
    return content + stream.flush()


def _ask_deflated(node, model, kind, content):
    entity = AE("VIEWER")
    entity.add_requested_context(model, DeflatedExplicitVRLittleEndian)
    assoc = entity.associate("127.0.0.1", node.port, ae_title="THARSIS")
    request = kind()
    request.MessageID, request.Priority, request.AffectedSOPClassUID = 1, 1, model
    request.Identifier = BytesIO(content)
    if kind is C_MOVE:
        request.MoveDestination = "VIEWER"
    with paused(assoc):
        assoc.dimse.send_msg(request, assoc.accepted_contexts[0].context_id)
        _, response = assoc.dimse.get_msg(block=True)
    assoc.abort()
    return response


@pytest.mark.parametrize(
    ("model", "kind"), [(STUDY_ROOT_FIND, C_FIND), (STUDY_ROOT_MOVE, C_MOVE), (STUDY_ROOT_GET, C_GET)]
)
def test_a_deflated_identifier_is_inflated_no_further_than_one_can_be_long(filled, model, kind):
    identifier = _identifier("STUDY", StudyInstanceUID=f"{ROOT}.1.1")
    content = _deflated(identifier, zeros=32 << 20)
    assert len(content) < 100_000
    response = _ask_deflated(filled, model, kind, content)
    assert response.Status == 0xA900
    assert "inflates to more than" in response.ErrorComment


def test_a_deflated_identifier_is_answered_and_one_that_is_cut_off_is_not(filled):
    content = _deflated(_identifier("STUDY", StudyInstanceUID=f"{ROOT}.1.1", StudyDescription="*" + "ab" * 20))
    assert _ask_deflated(filled, STUDY_ROOT_FIND, C_FIND, content).Status == 0x0000
    response = _ask_deflated(filled, STUDY_ROOT_FIND, C_FIND, content[:-6])
    assert response.Status == 0xA900
    assert "cut o" in response.ErrorComment
