"""What leaves the node to an AE with a de-identification profile, heard on the wire (C-MOVE, C-GET)."""

from __future__ import annotations

import os
import signal
from contextlib import suppress

import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pynetdicom import AE, build_role, evt
from wire import identifiers, leaked

from config.settings import SettingsError, load_settings
from scp.contexts import STUDY_ROOT_FIND, STUDY_ROOT_GET, STUDY_ROOT_MOVE

PROFILES = [{"name": "research"}]
FILES = ("ct_image.dcm", "seg_image_ct_binary_single_frame.dcm", "sr_document.dcm", "dx_image.dcm")


@pytest.fixture
def originals(shared_data):
    folder = shared_data / "highdicom" / "data" / "test_files"
    return {name: folder / name for name in FILES}


@pytest.fixture
def told(originals):
    """What would identify the patients of the files."""
    return identifiers(*(pydicom.dcmread(path) for path in originals.values()))


def _entity(port, **more):
    return {"title": "STORESCP", "host": "127.0.0.1", "port": port, "profile": "research", **more}


@pytest.fixture
def node(start_node, storescp, wire, originals):
    """A node with the files; storescp, which has a profile, is behind a wire."""
    line = wire(storescp[1])
    doctor = {"title": "DOCTOR", "rights": ["find", "move"]}
    node = start_node(entities=[_entity(line.port, rights=["find", "move", "store"]), doctor], profiles=PROFILES)
    for path in originals.values():
        node.archive.ingest(path)
    node.line, node.folder = line, storescp[0]
    return node


def _move(dcmtk, node, *keys, port=None, calling="DOCTOR", check=True):
    options = [option for key in keys for option in ("-k", key)]
    return dcmtk(
        "movescu", "-d", "-S", "-aet", calling, "-aec", "THARSIS", "-aem", "STORESCP", "127.0.0.1", port or node.port,
        *options, check=check,
    ).stdout  # fmt: skip


def _received(node):
    return [pydicom.dcmread(path) for path in sorted(node.folder.iterdir())]


def _studies(originals):
    return sorted({str(pydicom.dcmread(path).StudyInstanceUID) for path in originals.values()})


def test_nothing_identified_arrives(node, dcmtk, originals, told):
    assert len(told) > 40
    for study in _studies(originals):
        log = _move(dcmtk, node, "QueryRetrieveLevel=STUDY", f"StudyInstanceUID={study}")
        assert "Status: Success" in log or "0x0000" in log, log
    sent = _received(node)
    assert len(sent) == len(FILES)
    assert leaked(node.folder, told) == set()
    assert leaked(bytes(node.line.to_target), told) == set()
    assert b"DOCTOR" not in bytes(node.line.to_target), "who works with the originals is nobody's business"
    for each in sent:
        assert each.PatientIdentityRemoved == "YES"
        assert each.file_meta.MediaStorageSOPInstanceUID == each.SOPInstanceUID
    assert not list(node.archive.incoming.iterdir())


def test_what_stays_the_same_and_refers_to_each_other_over_separate_retrievals(node, dcmtk, originals):
    read = {name: pydicom.dcmread(path) for name, path in originals.items()}
    for dataset in read.values():
        _move(
            dcmtk, node, "QueryRetrieveLevel=IMAGE", f"StudyInstanceUID={dataset.StudyInstanceUID}",
            f"SeriesInstanceUID={dataset.SeriesInstanceUID}", f"SOPInstanceUID={dataset.SOPInstanceUID}",
        )  # fmt: skip
    by_modality = {each.Modality: each for each in _received(node)}
    ct, seg, report = by_modality["CT"], by_modality["SEG"], by_modality["SR"]
    assert ct.StudyInstanceUID == seg.StudyInstanceUID == report.StudyInstanceUID
    assert ct.PatientID == seg.PatientID != by_modality["DX"].PatientID
    [series] = seg.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == ct.SeriesInstanceUID
    assert [item.ReferencedSOPInstanceUID for item in series.ReferencedInstanceSequence] == [ct.SOPInstanceUID]
    assert ct.PixelData == read["ct_image.dcm"].PixelData


def test_a_get_by_that_ae_is_deidentified(start_node, originals, told, wire):
    node = start_node(entities=[{"title": "RESEARCH", "rights": ["find", "move"], "profile": "research"}],
                      profiles=PROFILES)  # fmt: skip
    node.archive.ingest(originals["ct_image.dcm"])
    line, got = wire(node.port), []
    entity = AE("RESEARCH")
    entity.add_requested_context(STUDY_ROOT_FIND)
    entity.add_requested_context(STUDY_ROOT_GET)
    entity.add_requested_context(CTImageStorage, ExplicitVRLittleEndian)

    def keep(event):
        got.append((event.request.AffectedSOPInstanceUID, event.dataset))
        return 0x0000

    assoc = entity.associate(
        "127.0.0.1", line.port, ext_neg=[build_role(CTImageStorage, scp_role=True)], ae_title="THARSIS",
        evt_handlers=[(evt.EVT_C_STORE, keep)],
    )  # fmt: skip
    asked = _keys("STUDY", PatientName="", PatientID="", StudyDate="", StudyInstanceUID="", AccessionNumber="")
    (status, answer), *_ = assoc.send_c_find(asked, STUDY_ROOT_FIND)
    assert status.Status == 0xFF00
    *_, (last, _) = assoc.send_c_get(_keys("STUDY", StudyInstanceUID=answer.StudyInstanceUID), STUDY_ROOT_GET)
    original = str(pydicom.dcmread(originals["ct_image.dcm"]).StudyInstanceUID)
    *_, (of_original, _) = assoc.send_c_get(_keys("STUDY", StudyInstanceUID=original), STUDY_ROOT_GET)
    assoc.release()
    assert (last.Status, last.NumberOfCompletedSuboperations) == (0x0000, 1)
    assert (of_original.Status, of_original.NumberOfCompletedSuboperations) == (0x0000, 0), "it was never told"
    [(uid, dataset)] = got
    assert uid == dataset.SOPInstanceUID
    assert (dataset.StudyInstanceUID, dataset.PatientID) == (answer.StudyInstanceUID, answer.PatientID)
    assert leaked(bytes(line.from_target), told) == set()


def _keys(level, **keys):
    identifier = Dataset()
    identifier.QueryRetrieveLevel = level
    for keyword, value in keys.items():
        setattr(identifier, keyword, value)
    return identifier


def test_a_compressed_object_is_converted_after_it_is_deidentified(start_node, start_storescp, dcmtk, shared_data):
    folder, port = start_storescp("+xi")
    trusting = [{"name": "research", "burned_in": "trust_unmarked"}]
    node = start_node(entities=[_entity(port, rights=[])], profiles=trusting)
    path = shared_data / "pydicom" / "src" / "pydicom" / "data" / "test_files" / "JPEG2000.dcm"
    original = pydicom.dcmread(path)
    assert original.file_meta.TransferSyntaxUID.is_compressed
    node.archive.ingest(path)
    _move(dcmtk, node, "QueryRetrieveLevel=STUDY", f"StudyInstanceUID={original.StudyInstanceUID}")
    [file] = folder.iterdir()
    sent = pydicom.dcmread(file)
    assert not sent.file_meta.TransferSyntaxUID.is_compressed
    assert (sent.pixel_array == original.pixel_array).all()
    assert leaked(folder, identifiers(original)) == set()


def test_what_cannot_be_deidentified_fails_alone(node, dcmtk, make_file, told):
    marked = make_file(7, BurnedInAnnotation="YES", PatientName="Burned^In", PatientID="BURNED-7")
    node.archive.ingest(marked)
    node.archive.ingest(make_file(8, PatientName="Burned^In", PatientID="BURNED-7"))
    study = pydicom.dcmread(marked).StudyInstanceUID
    statuses = _status_of_move(node, study, "DOCTOR")
    last, identifier = statuses[-1]
    assert last.Status == 0xB000
    assert (last.NumberOfCompletedSuboperations, last.NumberOfFailedSuboperations) == (1, 1)
    assert "1 of 2 failed" in last.ErrorComment
    assert "urned" in last.ErrorComment or "annotation" in last.ErrorComment, last.ErrorComment
    assert identifier.FailedSOPInstanceUIDList == pydicom.dcmread(marked).SOPInstanceUID, "the UID that DOCTOR knows"
    assert len(_received(node)) == 1
    assert leaked(bytes(node.line.to_target), {b"Burned^In", b"BURNED-7"}) == set()
    assert not list(node.archive.incoming.iterdir())


def test_what_is_cut_off_fails_alone(node, make_file):
    cut_off = make_file(7)
    uid, study = (pydicom.dcmread(cut_off)[keyword].value for keyword in ("SOPInstanceUID", "StudyInstanceUID"))
    cut_off.write_bytes(cut_off.read_bytes()[:-20])
    node.archive.ingest(cut_off)
    node.archive.ingest(make_file(8))
    last, identifier = _status_of_move(node, study, "DOCTOR")[-1]
    assert (last.Status, last.NumberOfCompletedSuboperations, last.NumberOfFailedSuboperations) == (0xB000, 1, 1)
    assert "cut off" in last.ErrorComment
    assert identifier.FailedSOPInstanceUIDList == uid
    assert len(_received(node)) == 1
    assert not list(node.archive.incoming.iterdir())


def test_the_failed_list_of_a_requestor_with_a_profile_has_the_uids_it_was_told(node, make_file):
    node.archive.ingest(make_file(7, BurnedInAnnotation="YES"))
    answers = _ask(node, STUDY_ROOT_FIND, _keys("IMAGE", StudyInstanceUID="", SeriesInstanceUID="", SOPInstanceUID="",
                                                Modality="CT"), "STORESCP")  # fmt: skip
    assert answers[-1][0].Status == 0xA900, "hierarchical: the unique keys above are required"
    studies = _ask(node, STUDY_ROOT_FIND, _keys("STUDY", StudyInstanceUID="", StudyDescription=""), "STORESCP")
    uids = [match.StudyInstanceUID for _, match in studies[:-1]]
    failed = []
    for uid in uids:
        _, identifier = _status_of_move(node, uid, "STORESCP")[-1]
        failed += [identifier.FailedSOPInstanceUIDList] if identifier else []
    original = str(pydicom.dcmread(make_file(7)).SOPInstanceUID)
    assert len(failed) == 1
    assert failed[0] != original
    assert node.archive.database.execute("SELECT original FROM told WHERE uid = ?", failed).fetchone() == (original,)


def _ask(node, model, identifier, calling, called="THARSIS"):
    entity = AE(calling)
    entity.add_requested_context(model)
    assoc = entity.associate("127.0.0.1", node.port, ae_title=called)
    answers = list(assoc.send_c_find(identifier, model))
    assoc.release()
    return answers


def _status_of_move(node, study, calling):
    entity = AE(calling)
    entity.add_requested_context(STUDY_ROOT_MOVE)
    assoc = entity.associate("127.0.0.1", node.port, ae_title="THARSIS")
    answers = list(assoc.send_c_move(_keys("STUDY", StudyInstanceUID=study), "STORESCP", STUDY_ROOT_MOVE))
    assoc.release()
    return answers


@pytest.mark.slow
def test_a_killed_node_leaves_no_scratch(serve, start_storescp, dcmtk, make_file, wait_until):
    """The receiver waits while it receives, so that the node dies while de-identified objects are on their way."""
    _, port = start_storescp("--sleep-during", "60")
    more = (
        f'[[application_entities]]\ntitle = "STORESCP"\nhost = "127.0.0.1"\nport = {port}\nprofile = "research"\n'
        '[[deidentification]]\nname = "research"\n'
    )
    node = serve(more=more)
    path = make_file(1)
    dcmtk("storescu", "-aec", "THARSIS", "127.0.0.1", node.port, path)
    entity = AE("ANY")
    entity.add_requested_context(STUDY_ROOT_MOVE)
    assoc = entity.associate("127.0.0.1", node.port, ae_title="THARSIS")
    answers = assoc.send_c_move(
        _keys("STUDY", StudyInstanceUID=pydicom.dcmread(path).StudyInstanceUID), "STORESCP", STUDY_ROOT_MOVE
    )
    next(answers)
    incoming = node.data / "incoming"

    def sizes():
        with suppress(FileNotFoundError):  # it was removed between two looks
            return sum(each.stat().st_size for each in incoming.iterdir())

    wait_until(sizes)
    os.kill(node.processes()["network"], signal.SIGKILL)
    wait_until(lambda: not list(incoming.iterdir()))
    assoc.abort()


def test_a_profile_that_there_is_not_is_one_sentence():
    overrides = {"application_entities": [{"title": "WS", "profile": "reserch"}], "deidentification": PROFILES}
    with pytest.raises(SettingsError, match=r"WS: there is no profile 'reserch' .* which has: research"):
        load_settings(environment={}, overrides=overrides)


