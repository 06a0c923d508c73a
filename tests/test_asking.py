"""Asking by sending, over the network."""

from __future__ import annotations

import logging

import pytest
from cases import ROOT, picture
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pynetdicom import AE

from index.embeddings import active_model
from index.on_demand import OnDemand
from index.similarity import Similarity
from scp.contexts import STUDY_ROOT_FIND
from scp.private_elements import CREATOR, ELEMENTS, put_block

ENTITIES = [
    {"title": "DOCTOR", "rights": ["find", "similar"]},
    {"title": "COLLEAGUE", "rights": ["find", "similar"]},
    {"title": "STUDENT", "rights": ["store", "find", "move"]},
]


@pytest.fixture
def node(start_node, filled_folder, encoder):
    node = start_node(
        entities=ENTITIES, data=filled_folder,
        similarity=lambda archive: Similarity(archive, OnDemand(archive, timeout_s=60.0)),
    )  # fmt: skip
    encoder(node.archive)
    return node


def _store(node, *paths, calling="DOCTOR"):
    entity = AE(calling)
    entity.add_requested_context(CTImageStorage, ExplicitVRLittleEndian)
    assoc = entity.associate("127.0.0.1", node.port, ae_title="THARSIS_SIM")
    statuses = [assoc.send_c_store(str(path)) for path in paths]
    assoc.release()
    return statuses


def _find(node, *, level="STUDY", block=None, calling="DOCTOR", called="THARSIS_SIM", **keys):
    identifier = Dataset()
    identifier.QueryRetrieveLevel = level
    for keyword, value in {"StudyInstanceUID": "", "StudyDescription": "", "PatientID": "", **keys}.items():
        setattr(identifier, keyword, value)
    if block is not None:
        put_block(identifier, block)
    entity = AE(calling)
    entity.add_requested_context(STUDY_ROOT_FIND, ExplicitVRLittleEndian)
    assoc = entity.associate("127.0.0.1", node.port, ae_title=called)
    answers = list(assoc.send_c_find(identifier, STUDY_ROOT_FIND))
    assoc.release()
    return answers


def _studies(answers):
    return [int(match.StudyInstanceUID.rsplit(".", 1)[1]) for _, match in answers[:-1]]


@pytest.mark.parametrize("keys", [{}, {"PatientID": "*"}, {"PatientID": "~"}, {"StudyDescription": "*SIM:*"}])
def test_what_was_sent_is_answered_by_the_next_blank_query(node, make_image, keys):
    plain = _find(node, PatientName="", **{**keys, "PatientID": ""})
    if "PatientID" not in keys:
        assert keys or len(plain) == 7, "before anything is sent, a blank query is an ordinary one"
    [status] = _store(node, make_image(20, 1, PixelData=picture(1, 9).tobytes()))
    assert status.Status == 0x0000
    answers = _find(node, PatientName="", **keys)
    assert set(_studies(answers)[:2]) == {1, 4}
    assert len(_studies(answers)) == 6
    assert answers[0][1].StudyDescription.startswith("#01 ")
    assert len(_studies(_find(node, PatientID="~:k=2"))) == 2
    assert len(_studies(_find(node, PatientID="~", AccessionNumber="A2"))) == 1
    drilled = _find(node, level="SERIES", StudyInstanceUID=f"{ROOT}.1.2", SeriesInstanceUID="", StudyDescription="")
    assert [match.StudyDescription for _, match in drilled[:-1]] == ["Case 2"], "a drill-down is an ordinary query"
    assert len(_find(node, calling="COLLEAGUE")) == 7, "another's question is not theirs"
    assert not node.archive.database.execute(
        "SELECT 1 FROM instance WHERE sop_instance_uid = ?", (f"{ROOT}.9.20.1",)
    ).fetchall()


def test_a_block_that_names_nothing_asks_about_what_was_sent(node, make_image):
    assert _find(node, block={"MaximumResults": 3})[-1][0].Status == 0xC001
    _store(node, make_image(20, 1, PixelData=picture(1, 9).tobytes()))
    answers = _find(node, level="SERIES", SeriesInstanceUID="", block={"MaximumResults": 3, "MinimumScore": 0.1})
    block = [match.private_block(0x0073, CREATOR) for _, match in answers[:-1]]
    assert [each[ELEMENTS["Rank"].number].value for each in block] == [1, 2, 3]
    assert answers[0][1].StudyDescription in ("Case 1", "Case 4"), "what asks with the block is not decorated"
    assert _find(node, called="THARSIS", block={"MaximumResults": 3})[-1][0].Status == 0xA900


@pytest.mark.parametrize(
    ("values", "code", "comment"),
    [
        ({"PixelData": None}, 0xC002, "has no pixel data"),
        ({"PixelData": b"\0\0"}, 0xC002, "cannot be decoded"),
        ({"SeriesInstanceUID": None}, 0xA900, "SeriesInstanceUID"),
    ],
)
def test_what_cannot_be_asked_about_is_refused(node, make_image, values, code, comment):
    [status] = _store(node, make_image(20, 1, **values))
    assert status.Status == code
    assert comment in status.ErrorComment
    assert len(_find(node)) == 7
    assert not list(node.archive.incoming.iterdir())


def test_without_the_right_nothing_is_kept_and_nothing_archived(node, make_image, caplog):
    with caplog.at_level(logging.INFO, "tharsis.audit"):
        [status] = _store(node, make_image(20, 1), calling="STUDENT")
    assert status.Status == 0x0124
    assert "similar" in status.ErrorComment
    assert node.archive.database.execute("SELECT count(*) FROM instance").fetchone() == (18,)
    assert any("refused from STUDENT@127.0.0.1" in record.getMessage() for record in caplog.records)


def test_every_question_is_in_the_audit_log(node, make_image, caplog):
    with caplog.at_level(logging.INFO, "tharsis.audit"):
        _store(node, make_image(20, 1))
        _find(node, PatientID="~:k=2")
        _find(node, level="IMAGE", block={"QuerySOPInstanceUID": f"{ROOT}.9.0.1", "QueryRegion": [40, 40, 20, 20]})
    model = active_model(node.archive).model_id
    lines = [record.getMessage() for record in caplog.records if record.name == "tharsis.audit"]
    assert lines[0] == (
        f"image to ask about kept for DOCTOR@127.0.0.1, called THARSIS_SIM: {ROOT}.9.20.1 of series {ROOT}.2.20"
    )
    assert lines[1] == (
        "similar cases asked by DOCTOR@127.0.0.1, called THARSIS_SIM: STUDY like ~:k=2, "
        f"k=2, model {model}: 2 neighbours"
    )
    assert lines[2].startswith("similar cases refused to DOCTOR@127.0.0.1, called THARSIS_SIM: asked: QuerySOP")
    assert "QueryRegion=(40, 40, 20, 20)" in lines[2]
    assert "not inside the image" in lines[2]


def test_a_switched_off_similarity_refuses_images(start_node, make_image):
    node = start_node(entities=ENTITIES)
    [status] = _store(node, make_image(20, 1))
    assert status.Status == 0x0122
    assert "switched off" in status.ErrorComment
