"""Similar cases over DICOM, through both doors, with real peers; the vectors are given, so the answers are known."""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)
from pynetdicom import AE, build_role, evt
from pynetdicom.pdu_primitives import SOPClassExtendedNegotiation

from index import embeddings
from index.errors import UnknownQuery
from index.keys import Level
from index.similarity import Similarity, resolve_reference
from scp.contexts import (
    PATIENT_ROOT_FIND,
    SIMILARITY_FIND,
    SIMILARITY_GET,
    SIMILARITY_MOVE,
    STUDY_ROOT_FIND,
    STUDY_ROOT_GET,
)
from scp.private_elements import CREATOR, ELEMENTS, dcmtk_dictionary, put_block

ROOT = "1.2.826.0.1.3680043.9.7133"
MODEL = "given-1-000000000000"
CASES = 5
ENTITIES = [
    {"title": "DOCTOR", "rights": ["store", "find", "move", "similar"]},
    {"title": "STUDENT", "rights": ["find", "move"]},
    {"title": "FINDSCU", "rights": ["find", "similar"]},
]


def _study(case):
    return f"{ROOT}.1.{case}"


def _series(case):
    return f"{ROOT}.2.{case}"


@pytest.fixture
def target(start_node):
    """A second node, which a C-MOVE can send to."""
    return start_node(aet="TARGET")


@pytest.fixture
def node(start_node, make_file, target):
    """Five cases of one image each; case n lies n·10° away from case 0, case 4 has no vector yet."""
    destination = {"title": "TARGET", "host": "127.0.0.1", "port": target.port}
    node = start_node(entities=[*ENTITIES, destination], similarity=Similarity)
    archive = node.archive
    embeddings.register(archive, MODEL, 2)
    for case in range(CASES):
        archive.ingest(
            make_file(
                case + 1, StudyInstanceUID=_study(case), SeriesInstanceUID=_series(case), PatientID=f"P{case}",
                PatientName=f"Name^{case}", AccessionNumber=f"A{case}", StudyDescription=f"Head {case}",
                Modality="MR" if case == 2 else "CT", StudyID=f"S{case}",
            )
        )  # fmt: skip
        if case < 4:
            angle = np.deg2rad(10.0 * case)
            vector = np.array([np.cos(angle), np.sin(angle)], np.float32)
            embeddings.store(archive, MODEL, _series(case), [(f"{ROOT}.9.{case + 1}", 0, vector)])
    return node


def _identifier(level="SERIES", block=None, **keys):
    identifier = Dataset()
    identifier.QueryRetrieveLevel = level
    for keyword, value in keys.items():
        setattr(identifier, keyword, value)
    if block is not None:
        put_block(identifier, block)
    return identifier


def _find(node, identifier, model=SIMILARITY_FIND, *, called="THARSIS", calling="DOCTOR",
          syntax=ExplicitVRLittleEndian):  # fmt: skip
    entity = AE(calling)
    entity.add_requested_context(model, syntax)
    assoc = entity.associate("127.0.0.1", node.port, ae_title=called)
    assert assoc.is_established
    answers = list(assoc.send_c_find(identifier, model))
    assoc.release()
    return answers


def _find_negotiated(node, identifier):
    """Ask with relational queries, combined date-time matching and fuzzy matching of names negotiated."""
    entity = AE("DOCTOR")
    entity.add_requested_context(STUDY_ROOT_FIND, ExplicitVRLittleEndian)
    extended = SOPClassExtendedNegotiation()
    extended.sop_class_uid, extended.service_class_application_information = STUDY_ROOT_FIND, b"\1\1\1"
    assoc = entity.associate("127.0.0.1", node.port, ae_title="THARSIS", ext_neg=[extended])
    assert assoc.is_established
    answers = list(assoc.send_c_find(identifier, STUDY_ROOT_FIND))
    assoc.release()
    return answers


def _private(identifier, keyword):
    return identifier.private_block(0x0073, CREATOR)[ELEMENTS[keyword].number].value


def _cases(answers):
    return [int(match.StudyInstanceUID.rsplit(".", 1)[1]) for _, match in answers[:-1]]


@pytest.mark.parametrize("model", [SIMILARITY_FIND, STUDY_ROOT_FIND])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
@pytest.mark.parametrize("level", ["STUDY", "SERIES", "IMAGE"])
def test_neighbours_come_in_rank_order(node, model, syntax, level):
    identifier = _identifier(level, {"QuerySeriesInstanceUID": _series(0)}, PatientName="", StudyInstanceUID="")
    answers = _find(node, identifier, model, syntax=syntax)
    assert [status.Status for status, _ in answers] == [0xFF00] * 3 + [0x0000]
    assert _cases(answers) == [1, 2, 3]
    for rank, (_, match) in enumerate(answers[:-1], start=1):
        cosine = np.cos(np.deg2rad(10.0 * rank))
        assert _private(match, "Rank") == rank
        assert _private(match, "Score") == pytest.approx((1 + cosine) / 2, abs=1e-6)
        assert _private(match, "Distance") == pytest.approx(np.sqrt(2 - 2 * cosine), abs=1e-3)
        assert _private(match, "MatchedModelID") == MODEL
        assert _private(match, "IndexSize") == 3
        assert _private(match, "UsedSearchMode") == "EXACT"
        assert _private(match, "EstimatedRecall") == 1.0
        assert str(match.PatientName) == f"Name^{rank}"
        assert match.RetrieveAETitle == "THARSIS"
        assert match.InstanceAvailability == "ONLINE"
        if level == "IMAGE":
            assert _private(match, "MatchedSOPInstanceUID") == f"{ROOT}.9.{rank + 1}"


@pytest.mark.parametrize(
    ("block", "keys", "cases"),
    [
        ({"QuerySOPInstanceUID": f"{ROOT}.9.1", "MaximumResults": 2}, {}, [1, 2]),
        ({"QueryStudyInstanceUID": _study(3), "MaximumResults": 1}, {}, [2]),
        ({"QueryVector": np.array([0.0, 1.0], np.float32).tobytes()}, {}, [3, 2, 1, 0]),
        ({"QuerySeriesInstanceUID": _series(0), "MinimumScore": 0.975}, {}, [1]),
        ({"QuerySeriesInstanceUID": _series(0), "ModelID": MODEL}, {}, [1, 2, 3]),
        ({"QuerySeriesInstanceUID": _series(0), "MaximumResults": 1}, {"Modality": "MR"}, [2]),
        ({"QuerySeriesInstanceUID": _series(0)}, {"PatientID": "P3"}, [3]),
        ({"QuerySeriesInstanceUID": _series(0), "Exclude": ["SAME_SERIES", "SAME_PATIENT"]}, {}, [1, 2, 3]),
        ({"QuerySeriesInstanceUID": _series(0), "SearchMode": "EXACT"}, {}, [1, 2, 3]),
        ({"QuerySOPInstanceUID": f"{ROOT}.9.1", "QueryFrameNumber": 1}, {}, [1, 2, 3]),
        *[
            ({"QueryStudyInstanceUID": _study(0), "Aggregation": aggregation, "MaximumResults": 2}, {}, [1, 2])
            for aggregation in ("INSTANCE", "SERIES_MEAN", "SERIES_MAX", "LATE_INTERACTION")
        ],
        ({"QuerySeriesInstanceUID": _series(0), "MaximumResults": 500, "MinimumScore": 0.0}, {}, [1, 2, 3]),
        (
            {"QuerySeriesInstanceUID": _series(3), "MaximumResults": 2, "MinimumScore": 0.9, "ModelID": MODEL,
             "Aggregation": "LATE_INTERACTION", "Exclude": ["SAME_STUDY"], "SearchMode": "EXACT"},
            {"StudyDate": "20240101-20241231", "Modality": "CT"}, [1, 0],
        ),
    ],
)  # fmt: skip
@pytest.mark.parametrize("level", ["STUDY", "SERIES"])
def test_what_is_asked_shapes_the_answer(node, block, keys, cases, level):
    keys = {{"Modality": "ModalitiesInStudy"}.get(key, key) if level == "STUDY" else key: keys[key] for key in keys}
    identifier = _identifier(level, block, **{"StudyInstanceUID": "", **keys})
    assert _cases(_find(node, identifier)) == cases


@pytest.mark.parametrize(
    "syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian]
)
def test_every_element_of_the_request_arrives_in_every_encoding(node, syntax):
    """A vector beside case 3 and its mirror image beside case 0: a byte order mistaken gives neither."""
    order = ">f4" if syntax == ExplicitVRBigEndian else "<f4"
    for angle, cases in ((31.0, [3, 2]), (-1.0, [0, 1])):
        vector = np.array([np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))]).astype(order)
        block = {
            "QueryVector": vector.tobytes(), "MaximumResults": 2, "MinimumScore": 0.5, "ModelID": MODEL,
            "Aggregation": "INSTANCE", "Exclude": ["SAME_SERIES", "SAME_STUDY"], "SearchMode": "EXACT",
        }  # fmt: skip
        answers = _find(node, _identifier("IMAGE", block, StudyInstanceUID=""), syntax=syntax)
        assert _cases(answers) == cases
        assert _private(answers[0][1], "MatchedSOPInstanceUID") == f"{ROOT}.9.{cases[0] + 1}"


def test_a_key_that_is_not_supported_makes_the_answers_ff01(node):
    block = {"QueryStudyInstanceUID": _study(0)}
    identifier = _identifier("STUDY", block, StudyInstanceUID="", PatientMotherBirthName="")
    assert [status.Status for status, _ in _find(node, identifier)] == [0xFF01] * 3 + [0x0000]


@pytest.mark.parametrize(
    ("block", "level", "code"),
    [
        ({}, "SERIES", 0xA900),
        (None, "SERIES", 0xA900),
        ({"QuerySeriesInstanceUID": _series(0), "QueryStudyInstanceUID": _study(0)}, "SERIES", 0xA900),
        ({"QuerySeriesInstanceUID": _series(0), "MaximumResults": 501}, "SERIES", 0xA900),
        ({"QuerySeriesInstanceUID": _series(0), "MaximumResults": 0}, "SERIES", 0xA900),
        ({"QuerySeriesInstanceUID": _series(0), "MinimumScore": 1.5}, "SERIES", 0xA900),
        ({"QuerySeriesInstanceUID": _series(0), "QueryFrameNumber": 1}, "SERIES", 0xA900),
        ({"QuerySOPInstanceUID": f"{ROOT}.9.1", "QueryFrameNumber": 2}, "SERIES", 0xA900),
        ({"QuerySeriesInstanceUID": _series(0), "QueryRegion": [0, 0, 4, 4]}, "SERIES", 0xA900),
        ({"QuerySOPInstanceUID": f"{ROOT}.9.1", "QueryRegion": [0, 0, 4, 0]}, "SERIES", 0xA900),
        ({"QuerySOPInstanceUID": f"{ROOT}.9.1", "QueryRegion": [0, 0, 4]}, "SERIES", 0xA900),
        ({"QuerySeriesInstanceUID": _series(0), "Exclude": ["SAME_SERIES", "SAME_ROOM"]}, "SERIES", 0xA900),
        ({"QuerySeriesInstanceUID": _series(0), "SearchMode": "FAST"}, "SERIES", 0xA900),
        ({"QuerySeriesInstanceUID": _series(0), "Aggregation": "SERIES_MAX"}, "IMAGE", 0xA900),
        ({"QueryVector": np.zeros(2, np.float32).tobytes()}, "SERIES", 0xA900),
        ({"QuerySeriesInstanceUID": _series(0), "Aggregation": "SOMEHOW"}, "SERIES", 0xA900),
        ({"QuerySeriesInstanceUID": _series(0)}, "PATIENT", 0xA900),
        ({"QuerySeriesInstanceUID": "1.2.3"}, "SERIES", 0xC001),
        ({"QuerySeriesInstanceUID": _series(4)}, "SERIES", 0xC002),
        ({"QuerySeriesInstanceUID": _series(0), "ModelID": "other"}, "SERIES", 0xC003),
        ({"QueryVector": np.ones(3, np.float32).tobytes()}, "SERIES", 0xC004),
    ],
)
def test_what_cannot_be_answered_has_its_status(node, block, level, code):
    [(status, match)] = _find(node, _identifier(level, block))
    assert status.Status == code
    assert 0 < len(status.ErrorComment) <= 64
    assert match is None


@pytest.mark.parametrize(
    ("called", "identifier"),
    [
        ("THARSIS", _identifier("SERIES", {"QuerySeriesInstanceUID": _series(0)})),
        ("THARSIS_SIM", _identifier("STUDY", PatientID="~A0", StudyInstanceUID="")),
    ],
)
def test_the_right_to_ask_is_required_and_every_query_is_in_the_audit_log(node, called, identifier, caplog):
    with caplog.at_level(logging.INFO, "tharsis.audit"):
        [(status, _)] = _find(node, identifier, STUDY_ROOT_FIND, called=called, calling="STUDENT")
        assert status.Status == 0x0124
        assert _find(node, identifier, STUDY_ROOT_FIND, called=called)[-1][0].Status == 0x0000
    lines = [record.getMessage() for record in caplog.records if record.name == "tharsis.audit"]
    assert len(lines) == 2
    assert "STUDENT@127.0.0.1" in lines[0]
    assert "refused" in lines[0]
    assert "DOCTOR@127.0.0.1" in lines[1]
    assert "3 neighbours" in lines[1]


@pytest.mark.parametrize(
    "keys",
    [
        {"PatientID": "~P0", "StudyID": "~S1"},
        {"PatientID": "~P0", "AccessionNumber": "*SIM:A0*"},
        {"PatientID": ["~P0", "~P1"]},
    ],
    ids=["different", "same", "in-one-key"],
)
def test_two_references_at_once_are_refused(node, keys):
    identifier = _identifier("STUDY", StudyInstanceUID="", **keys)
    [(status, _)] = _find(node, identifier, STUDY_ROOT_FIND, called="THARSIS_SIM")
    assert status.Status == 0xA900
    assert "one reference" in status.ErrorComment
    assert "got 2" in status.ErrorComment


def test_a_reference_beside_the_private_block_is_refused(node):
    identifier = _identifier("STUDY", {"QueryStudyInstanceUID": _study(0)}, StudyInstanceUID="", PatientID="~P0")
    [(status, _)] = _find(node, identifier, STUDY_ROOT_FIND, called="THARSIS_SIM")
    assert status.Status == 0xA900
    assert "not by both" in status.ErrorComment


def test_a_switched_off_similarity_says_so(start_node):
    node = start_node(entities=ENTITIES)
    [(status, _)] = _find(node, _identifier("SERIES", {"QuerySeriesInstanceUID": _series(0)}))
    assert status.Status == 0x0122
    assert status.ErrorComment


# Plain findscu. Without a dictionary DCMTK takes the value of an unknown tag as hexadecimal bytes.


def _hexadecimal(text):
    return "\\".join(f"{byte:02x}" for byte in text.encode())


@pytest.mark.parametrize("implicit", [[], ["-xi"]])
def test_plain_findscu_without_a_dictionary(node, dcmtk, implicit):
    arguments = [
        "-k", "QueryRetrieveLevel=SERIES", "-k", "StudyInstanceUID", "-k", f"(0073,0010)={CREATOR}",
        "-k", f"(0073,1002)={_hexadecimal(_series(0))}", "-k", "(0073,1006)=2",
    ]  # fmt: skip
    output = dcmtk("findscu", "-v", *implicit, "-S", "-aec", "THARSIS", *arguments, "127.0.0.1", node.port).stdout
    answers = output.split("Find Response: ")[1:]
    assert [int(re.search(rf"\[{re.escape(ROOT)}\.1\.(\d)", answer)[1]) for answer in answers] == [1, 2]
    assert "Final Find Response (Success)" in output


def test_findscu_with_the_dictionary(node, dcmtk, tmp_path, monkeypatch):
    dictionary = tmp_path / "tharsis.dic"
    dictionary.write_text(dcmtk_dictionary())
    standard = next(Path("/usr/share").glob("libdcmtk*/dicom.dic"))
    monkeypatch.setenv("DCMDICTPATH", f"{standard}:{dictionary}")
    output = dcmtk(
        "findscu", "-v", "-S", "-aec", "THARSIS", "-k", "QueryRetrieveLevel=SERIES", "-k", "StudyInstanceUID",
        "-k", f"(0073,0010)={CREATOR}", "-k", f"(0073,1002)={_series(0)}", "-k", "(0073,1006)=10",
        "127.0.0.1", node.port,
    ).stdout  # fmt: skip
    answers = output.split("Find Response: ")[1:]
    assert [int(re.search(rf"\[{re.escape(ROOT)}\.1\.(\d)", answer)[1]) for answer in answers] == [1, 2, 3]
    assert re.search(r"\(0073,1020\) US 3 ", output)


def test_a_value_that_lost_its_vr_is_refused_and_not_guessed(node, dcmtk):
    output = dcmtk(
        "findscu", "-d", "-S", "-aec", "THARSIS", "-k", "QueryRetrieveLevel=SERIES",
        "-k", f"(0073,0010)={CREATOR}", "-k", f"(0073,1002)={_series(0)}", "127.0.0.1", node.port,
    ).stdout  # fmt: skip
    assert "0xa900" in output


# Retrieve with request keys


def _get(node, identifier, model, *, calling="DOCTOR", called="THARSIS"):
    got = []
    entity = AE(calling)
    entity.add_requested_context(model, ExplicitVRLittleEndian)
    entity.add_requested_context(CTImageStorage, ExplicitVRLittleEndian)

    def keep(event):
        got.append(event.request.AffectedSOPInstanceUID)
        return 0

    assoc = entity.associate(
        "127.0.0.1", node.port, ae_title=called, ext_neg=[build_role(CTImageStorage, scp_role=True)],
        evt_handlers=[(evt.EVT_C_STORE, keep)],
    )  # fmt: skip
    answers = list(assoc.send_c_get(identifier, model))
    assoc.release()
    return answers, got


@pytest.mark.parametrize("model", [SIMILARITY_GET, STUDY_ROOT_GET])
def test_get_sends_the_top_k(node, model):
    block = {"QuerySeriesInstanceUID": _series(0), "MaximumResults": 2}
    answers, got = _get(node, _identifier("SERIES", block), model)
    assert answers[-1][0].Status == 0x0000
    assert got == [f"{ROOT}.9.2", f"{ROOT}.9.3"]


def test_get_of_more_than_fifty_is_refused(node):
    block = {"QuerySeriesInstanceUID": _series(0), "MaximumResults": 51}
    [(status, _)], got = _get(node, _identifier("SERIES", block), SIMILARITY_GET)
    assert status.Status == 0xA900
    assert not got


def test_get_needs_the_right_too(node):
    block = {"QuerySeriesInstanceUID": _series(0)}
    [(status, _)], got = _get(node, _identifier("SERIES", block), SIMILARITY_GET, calling="STUDENT")
    assert status.Status == 0x0124
    assert not got


def test_move_sends_the_top_k(node, target):
    entity = AE("DOCTOR")
    entity.add_requested_context(SIMILARITY_MOVE, ExplicitVRLittleEndian)
    assoc = entity.associate("127.0.0.1", node.port, ae_title="THARSIS")
    identifier = _identifier("STUDY", {"QueryStudyInstanceUID": _study(0), "MaximumResults": 2})
    answers = list(assoc.send_c_move(identifier, "TARGET", SIMILARITY_MOVE))
    assoc.release()
    assert answers[-1][0].Status == 0x0000
    stored = target.archive.database.execute("SELECT study_instance_uid FROM study ORDER BY 1").fetchall()
    assert [row[0] for row in stored] == [_study(1), _study(2)]


# Door 2: the second AE title


def _ask(node, level="STUDY", model=STUDY_ROOT_FIND, **keys):
    wanted = {"StudyInstanceUID": "", "StudyDescription": "", "StudyID": "", "PatientID": "", **keys}
    return _find(node, _identifier(level, **wanted), model, called="THARSIS_SIM")


@pytest.mark.parametrize("keyword", ["PatientID", "AccessionNumber", "StudyID", "StudyDescription"])
@pytest.mark.parametrize("text", ["~A0", "*~a0*", "sim:p0"])
@pytest.mark.parametrize("model", [STUDY_ROOT_FIND, PATIENT_ROOT_FIND])
def test_a_reference_in_an_ordinary_key_asks(node, keyword, text, model):
    answers = _ask(node, model=model, **{keyword: text})
    assert _cases(answers) == [1, 2, 3]
    for rank, (status, match) in enumerate(answers[:-1], start=1):
        assert status.Status == 0xFF00
        score = (1 + np.cos(np.deg2rad(10.0 * rank))) / 2
        assert match.StudyDescription == f"#{rank:02d} {score:.3f} | Head {rank}"
        assert match.StudyID == f"SIM-{rank:02d}"
        assert match.PatientID == f"P{rank}"
        assert match.RetrieveAETitle == "THARSIS_SIM"
        assert not any(element.tag.is_private for element in match)


@pytest.mark.parametrize("uid", [_study(0), _series(0), f"{ROOT}.9.1"])
def test_a_reference_may_be_a_uid(node, uid):
    assert _cases(_ask(node, PatientID=f"~{uid}")) == [1, 2, 3]


def test_the_reference_says_how_many(node):
    assert _cases(_ask(node, PatientID="SIM:A0:k=2")) == [1, 2]


def test_a_reference_at_series_level(node):
    answers = _ask(node, "SERIES", PatientID="~A0", SeriesInstanceUID="")
    assert [match.SeriesInstanceUID for _, match in answers[:-1]] == [_series(1), _series(2), _series(3)]


@pytest.mark.parametrize(("text", "code"), [("~NOBODY", 0xC001), ("~A4", 0xC002), ("~A0:x=3", 0xA900), ("~", 0xC001)])
def test_a_reference_that_cannot_be_answered(node, text, code):
    [(status, _)] = _ask(node, PatientID=text)
    assert status.Status == code
    assert status.ErrorComment


def test_both_doors_agree(node):
    block = {"QueryStudyInstanceUID": _study(1)}
    first = _cases(_find(node, _identifier("STUDY", block, StudyInstanceUID="")))
    assert first == _cases(_ask(node, PatientID=f"~{_study(1)}"))
    assert len(first) == 3


def test_everything_else_there_is_an_ordinary_archive(node):
    answers = _ask(node, PatientID="P1")
    assert _cases(answers) == [1]
    assert answers[0][1].StudyDescription == "Head 1"


def test_on_the_first_title_a_reference_is_just_text(node):
    identifier = _identifier("STUDY", PatientID="~A0", StudyInstanceUID="")
    assert [status.Status for status, _ in _find(node, identifier, STUDY_ROOT_FIND)] == [0x0000]


def test_a_reference_and_the_elements_of_the_block_go_together(node):
    block = {"MaximumResults": 2, "MinimumScore": 0.975}
    identifier = _identifier("SERIES", block, StudyInstanceUID="", SeriesInstanceUID="", PatientID="~A0")
    answers = _find(node, identifier, STUDY_ROOT_FIND, called="THARSIS_SIM")
    assert _cases(answers) == [1]
    assert _private(answers[0][1], "Rank") == 1


def test_filters_apply_to_a_reference_as_well(node):
    assert _cases(_ask(node, PatientID="~A0", ModalitiesInStudy="MR")) == [2]
    assert _cases(_ask(node, StudyID="~A0:k=1", PatientID="P3")) == [3]


def test_the_series_level_shows_it_too(node):
    answers = _ask(node, "SERIES", PatientID="~A0", SeriesInstanceUID="")
    assert [match.StudyID for _, match in answers[:-1]] == ["SIM-01", "SIM-02", "SIM-03"]
    assert answers[0][1].StudyDescription.startswith("#01 ")


def test_a_column_that_was_not_asked_for_is_not_added(node):
    identifier = _identifier("STUDY", StudyInstanceUID="", PatientID="~A0")
    match = _find(node, identifier, STUDY_ROOT_FIND, called="THARSIS_SIM")[0][1]
    assert "StudyDescription" not in match
    assert "StudyID" not in match


def _set(node, monkeypatch, **values):
    """Change settings of a running node's similarity."""
    services = node.server._acceptor._services
    changed = node.settings.similarity.model_copy(update=values)
    monkeypatch.setattr(services, "_settings", node.settings.model_copy(update={"similarity": changed}))


@pytest.mark.parametrize("keyword", ["PatientID", "AccessionNumber", "StudyDescription"])
def test_what_was_typed_can_be_echoed(node, monkeypatch, keyword):
    _set(node, monkeypatch, echo=True)
    answers = _ask(node, **{"AccessionNumber": "", keyword: "*~a0*"})
    for rank, (_, match) in enumerate(answers[:-1], start=1):
        told = {"PatientID": f"P{rank}", "AccessionNumber": f"A{rank}", keyword: "~a0"}
        assert {name: match[name].value for name in told} == told
        assert match.StudyID == f"SIM-{rank:02d}"


def test_retrieving_there_by_uids_is_ordinary(node):
    identifier = _identifier("STUDY", StudyInstanceUID=_study(2))
    answers, got = _get(node, identifier, STUDY_ROOT_GET, calling="STUDENT", called="THARSIS_SIM")
    assert answers[-1][0].Status == 0x0000
    assert got == [f"{ROOT}.9.3"]


def test_decoration_can_be_turned_off(node, monkeypatch):
    _set(node, monkeypatch, decorate=False)
    answers = _ask(node, PatientID="~A0")
    assert answers[0][1].StudyDescription == "Head 1"
    assert answers[0][1].StudyID == "S1"


@pytest.mark.parametrize(
    "keys", [{"StudyDate": "20240101-20240103", "StudyTime": "120000-100000"}, {"PatientName": "Nahme"}]
)
def test_filters_are_read_as_it_was_negotiated(node, keys):
    """From noon of the first day to ten of the third; the studies are of the second, a quarter past ten."""
    ordinary = _find_negotiated(node, _identifier("STUDY", StudyInstanceUID="", **keys))
    assert sorted(_cases(ordinary)) == [0, 1, 2, 3, 4]
    asked = {"QueryStudyInstanceUID": _study(0)}
    assert _cases(_find_negotiated(node, _identifier("STUDY", asked, StudyInstanceUID="", **keys))) == [1, 2, 3]
    assert _cases(_find(node, _identifier("STUDY", asked, StudyInstanceUID="", **keys), STUDY_ROOT_FIND)) == []


def test_items_of_sequences_have_the_attributes_that_were_asked_for(node, make_file):
    item = Dataset()
    item.ScheduledProcedureStepID, item.RequestedProcedureID = "S1", "R1"
    node.archive.ingest(make_file(50, StudyInstanceUID=_study(7), SeriesInstanceUID=_series(7), PatientID="P7",
                                  RequestAttributesSequence=Sequence([item])))  # fmt: skip
    embeddings.store(node.archive, MODEL, _series(7), [(f"{ROOT}.9.50", 0, np.array([1.0, 0.0], np.float32))])
    wanted = Dataset()
    wanted.ScheduledProcedureStepID = None
    asked = _identifier("SERIES", {"QuerySeriesInstanceUID": _series(0)}, StudyInstanceUID="",
                        RequestAttributesSequence=Sequence([wanted]))  # fmt: skip
    (told,) = _find(node, asked)[0][1].RequestAttributesSequence
    assert [element.keyword for element in told] == ["ScheduledProcedureStepID"]
    assert told.ScheduledProcedureStepID == "S1"


def test_a_description_of_two_values_is_shown_as_it_is(node, make_file):
    node.archive.ingest(make_file(50, StudyInstanceUID=_study(7), SeriesInstanceUID=_series(7), PatientID="P7",
                                  StudyDescription=["CT head", "contrast"]))  # fmt: skip
    embeddings.store(node.archive, MODEL, _series(7), [(f"{ROOT}.9.50", 0, np.array([1.0, 0.0], np.float32))])
    first = _ask(node, PatientID="~P0")[0][1]
    assert "\\".join(first.StudyDescription) == "#01 1.000 | CT head\\contrast"


def test_a_series_without_an_embedded_frame_ends_no_query(node, make_file):
    node.archive.ingest(make_file(50, StudyInstanceUID=_study(1), SeriesInstanceUID=_series(1), PatientID="P1"))
    node.archive.delete(Level.IMAGE, f"{ROOT}.9.2")
    answers = _find(node, _identifier("SERIES", {"QuerySeriesInstanceUID": _series(0)}, StudyInstanceUID=""))
    assert (_cases(answers), answers[-1][0].Status) == ([2, 3], 0x0000)


def test_an_unknown_recall_is_an_empty_element(node, monkeypatch):
    search = Similarity.search
    monkeypatch.setattr(Similarity, "search", lambda *asked: replace(search(*asked), estimated_recall=None))
    first = _find(node, _identifier("SERIES", {"QuerySeriesInstanceUID": _series(0)}, StudyInstanceUID=""))[0][1]
    assert _private(first, "EstimatedRecall") is None


def test_a_patient_of_two_issuers_is_asked_about_by_one(node, make_file):
    for number, (issuer, day, x) in enumerate((("A", "20200101", 1.0), ("B", "20240601", 0.0)), start=50):
        node.archive.ingest(make_file(number, StudyInstanceUID=_study(number), SeriesInstanceUID=_series(number),
                                      PatientID="TWICE", IssuerOfPatientID=issuer, StudyDate=day))  # fmt: skip
        vector = np.array([x, 1.0 - x], np.float32)
        embeddings.store(node.archive, MODEL, _series(number), [(f"{ROOT}.9.{number}", 0, vector)])
    answers = _ask(node, PatientID="~TWICE")
    assert (len(answers), answers[0][0].Status) == (1, 0xA900)
    assert "issuers" in answers[0][0].ErrorComment
    archive = node.archive
    assert resolve_reference(archive, "~twice", "A").study_instance_uid == _study(50)
    assert resolve_reference(archive, "~TWICE", "B").study_instance_uid == _study(51)
    with pytest.raises(UnknownQuery):
        resolve_reference(archive, "~TWICE", "C")
    answers = _ask(node, PatientID="~TWICE", IssuerOfPatientID="A")
    assert (_cases(answers), answers[-1][0].Status) == ([], 0x0000), "its own series is left out, others are filtered"
