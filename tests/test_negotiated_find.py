"""What extended negotiation and leniency change on the wire (PS3.4 C.5.1.1), by pynetdicom and DCMTK."""

from __future__ import annotations

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, build_role, evt
from pynetdicom.pdu_primitives import SOPClassExtendedNegotiation
from pynetdicom.sop_class import CTImageStorage

from scp.contexts import STUDY_ROOT_FIND, STUDY_ROOT_GET

STUDY, SERIES = "1.2.826.0.1.3680043.9.7133.1", "1.2.826.0.1.3680043.9.7133.2"


@pytest.fixture
def node(start_node, make_file):
    node = start_node(entities=[{"title": "OLDVIEWER", "rights": ["find", "move"], "lenient": True}])
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "24725-4", "LN", "Schädel"
    node.archive.ingest(
        make_file(1, PatientName="Meier^Jörg", SpecificCharacterSet="ISO_IR 100", StudyDate="20240702",
                  StudyTime="233000", TimezoneOffsetFromUTC="+0000", ProcedureCodeSequence=Sequence([code]))
    )  # fmt: skip
    more = {"PatientID": "P2", "AccessionNumber": "A2"}
    node.archive.ingest(make_file(2, StudyInstanceUID="1.3", SeriesInstanceUID="1.3.1", **more))
    return node


def _identifier(level, **keys):
    identifier = Dataset()
    if level is not None:
        identifier.QueryRetrieveLevel = level
    identifier.StudyInstanceUID = ""
    for keyword, value in keys.items():
        setattr(identifier, keyword, value)
    return identifier


def _find(node, identifier, *, negotiate=b"", calling="VIEWER", syntax=ExplicitVRLittleEndian):
    """Return the bytes that the node granted, and its answers."""
    entity = AE(calling)
    entity.add_requested_context(STUDY_ROOT_FIND, syntax)
    items = []
    if negotiate:
        items.append(SOPClassExtendedNegotiation())
        items[0].sop_class_uid, items[0].service_class_application_information = STUDY_ROOT_FIND, negotiate
    assoc = entity.associate("127.0.0.1", node.port, ae_title="THARSIS", ext_neg=items)
    assert assoc.is_established
    granted = assoc.acceptor.sop_class_extended.get(STUDY_ROOT_FIND, b"")
    answers = list(assoc.send_c_find(identifier, STUDY_ROOT_FIND))
    assoc.release()
    return granted, answers


RANGES = {"StudyDate": "20240701-20240703", "StudyTime": "2340-2300"}
FUZZY = {"PatientName": "jurg^mayer"}
ZONE = {"StudyDate": "20240703", "StudyTime": "", "TimezoneOffsetFromUTC": "+0200"}


@pytest.mark.parametrize(
    ("proposed", "granted", "keys", "rows"),
    [
        (b"", b"", RANGES, 0),
        (b"\1\1", b"\1\1", RANGES, 1),
        (b"\1\0\1", b"\1\0\1", RANGES, 0),
        (b"", b"", FUZZY, 0),
        (b"\0\0\1", b"\0\0\1", FUZZY, 1),
        (b"\1\1\0\1", b"\1\1\0\1", FUZZY, 0),
        (b"", b"", ZONE, 0),
        (b"\0\0\0\1", b"\0\0\0\1", ZONE, 1),
        (b"\1\1\1\1\1\1\1", b"\1\1\1\1\0\0\0", ZONE, 1),
    ],
)
def test_what_was_granted_is_what_happens(node, proposed, granted, keys, rows):
    told, answers = _find(node, _identifier("STUDY", **keys), negotiate=proposed)
    assert told == granted
    assert answers[-1][0].Status == 0x0000
    assert len(answers) - 1 == rows


def test_an_answer_in_the_zone_of_the_query(node):
    _, [(status, match), _] = _find(node, _identifier("STUDY", **ZONE), negotiate=b"\0\0\0\1")
    assert status.Status == 0xFF00
    assert (match.StudyDate, match.StudyTime, match.TimezoneOffsetFromUTC) == ("20240703", "013000", "+0200")


@pytest.mark.parametrize(
    ("keys", "status"),
    [(ZONE, 0xFF01), ({"TimezoneOffsetFromUTC": ""}, 0xFF00), ({"ProcedureCodeSequence": Sequence([])}, 0xFF00),
     ({"ReferencedStudySequence": Sequence([])}, 0xFF01), ({"KVP": ""}, 0xFF01), ({"Modality": "CT"}, 0xFF01)],
)  # fmt: skip
def test_the_status_tells_whether_all_keys_are_supported(node, keys, status):
    keys = {**keys, "StudyDate": ""}
    _, answers = _find(node, _identifier("STUDY", **keys))
    assert {each.Status for each, _ in answers[:-1]} == {status}


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian])
@pytest.mark.parametrize(
    "charset", ["ISO_IR 100", "ISO_IR 192", "GB18030", ["ISO 2022 IR 6", "ISO 2022 IR 100"], "ISO_IR 144"]
)
def test_text_of_any_character_set_on_the_wire(node, charset, syntax):
    code = Dataset()
    code.CodeMeaning = ""
    identifier = _identifier("STUDY", SpecificCharacterSet=charset, ProcedureCodeSequence=Sequence([code]))
    identifier.PatientName = "Meier^J*" if charset == "ISO_IR 144" else "MEIER^JÖRG"
    _, [(status, match), _] = _find(node, identifier, syntax=syntax)
    assert status.Status == 0xFF00
    assert match.PatientName == "Meier^Jörg"
    assert match.ProcedureCodeSequence[0].CodeMeaning == "Schädel"
    assert match.SpecificCharacterSet == ("ISO_IR 100" if charset == "ISO_IR 144" else charset)


@pytest.mark.parametrize(
    ("level", "keys", "rows"),
    [("study", {}, 2), (None, {}, 2), (None, {"SeriesInstanceUID": ""}, 2), ("PATIENT", {"PatientID": ""}, 2),
     ("SERIES", {"Modality": "CT"}, 2)],
)  # fmt: skip
def test_a_lenient_ae_is_answered_where_others_are_refused(node, level, keys, rows):
    _, answers = _find(node, _identifier(level, **keys), calling="OLDVIEWER")
    assert len(answers) - 1 == rows
    assert answers[-1][0].Status == 0x0000
    _, [(status, _)] = _find(node, _identifier(level, **keys))
    assert status.Status == 0xA900
    assert status.ErrorComment
    assert status.OffendingElement is not None


@pytest.mark.parametrize(
    ("level", "keys", "sent"),
    [("STUDY", {"AccessionNumber": "A2"}, 1), (None, {"PatientID": "P1"}, 1),
     ("study", {"StudyInstanceUID": "1.3"}, 1)],
)  # fmt: skip
def test_a_lenient_ae_retrieves_by_other_keys(node, level, keys, sent):
    for calling, expected in (("OLDVIEWER", 0x0000), ("VIEWER", 0xA900)):
        received = []
        entity = AE(calling)
        entity.add_requested_context(STUDY_ROOT_GET)
        entity.add_requested_context(CTImageStorage, ExplicitVRLittleEndian)
        handlers = [(evt.EVT_C_STORE, lambda event, received=received: received.append(event) or 0x0000)]
        assoc = entity.associate("127.0.0.1", node.port, ae_title="THARSIS", evt_handlers=handlers,
                                 ext_neg=[build_role(CTImageStorage, scp_role=True)])  # fmt: skip
        statuses = [status for status, _ in assoc.send_c_get(_identifier(level, **keys), STUDY_ROOT_GET)]
        assoc.release()
        assert statuses[-1].Status == expected
        assert len(received) == (sent if expected == 0x0000 else 0)


def test_findscu_with_a_sequence_key_and_a_character_set(node, dcmtk, tmp_path):
    output = dcmtk(
        "findscu", "-v", "-S", "-X", "-od", tmp_path, "-aec", "THARSIS", "-k", "QueryRetrieveLevel=STUDY",
        "-k", "SpecificCharacterSet=ISO_IR 192", "-k", "PatientName=meier*", "-k", "StudyInstanceUID",
        "-k", "ProcedureCodeSequence[0].CodeValue=24725-4", "-k", "ProcedureCodeSequence[0].CodeMeaning",
        "127.0.0.1", node.port,
    ).stdout  # fmt: skip
    assert "Final Find Response (Success)" in output
    (path,) = tmp_path.glob("rsp*.dcm")
    answer = dcmread(path)
    assert answer.PatientName == "Meier^Jörg"
    (item,) = answer.ProcedureCodeSequence
    assert (item.CodeValue, item.CodeMeaning) == ("24725-4", "Schädel")
    assert answer.RetrieveAETitle == "THARSIS"
