"""An AE title of the node that de-identifies what is stored there before it is stored."""

from __future__ import annotations

import logging
import threading

import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian
from pynetdicom import AE, evt
from wire import identifiers, leaked

from config.ae_titles import own_titles
from config.settings import SettingsError, load_settings
from index.changes import since
from index.commitments import Reference
from index.keys import Level
from scp import client
from scp.commitment import SOP_INSTANCE_UID, request_information
from scp.contexts import STORAGE_COMMITMENT, STUDY_ROOT_FIND, STUDY_ROOT_MOVE, VERIFICATION
from scp.requestor import Peer

TITLE = "THARSIS_ANON"
TITLES = [{"title": TITLE, "deidentify": "ingest", "profile": "research"}]
PROFILES = [{"name": "research"}]
FILES = ("ct_image.dcm", "seg_image_ct_binary_single_frame.dcm", "sr_document.dcm", "dx_image.dcm")


@pytest.fixture
def originals(shared_data):
    folder = shared_data / "highdicom" / "data" / "test_files"
    return [folder / name for name in FILES]


@pytest.fixture
def node(start_node):
    return start_node(titles=TITLES, profiles=PROFILES)


def _send(node, *paths, called=TITLE, calling="SCANNER"):
    entity = AE(calling)
    read = [pydicom.dcmread(path) for path in paths]
    for dataset in read:
        syntax = dataset.file_meta.TransferSyntaxUID
        entity.add_requested_context(dataset.file_meta.MediaStorageSOPClassUID, syntax)
    assoc = entity.associate("127.0.0.1", node.port, ae_title=called)
    assert assoc.is_established
    statuses = [assoc.send_c_store(str(path)) for path in paths]
    assoc.release()
    return statuses


def _stored(node):
    rows = node.archive.database.execute("SELECT path FROM instance ORDER BY id").fetchall()
    return [pydicom.dcmread(node.archive.files.path(path)) for (path,) in rows]


def test_what_is_stored_there_is_deidentified_and_nothing_else_is_kept(node, originals, dcmtk, caplog, wait_until):
    told = identifiers(*map(pydicom.dcmread, originals))
    with caplog.at_level(logging.DEBUG, "scp"), caplog.at_level(logging.DEBUG, "tharsis.audit"):
        dcmtk("dcmsend", "-aet", "SCANNER", "-aec", TITLE, "127.0.0.1", node.port, *originals)
    stored = _stored(node)
    assert len(stored) == len(FILES)
    assert all(each.PatientIdentityRemoved == "YES" for each in stored)
    wait_until(lambda: not list(node.archive.incoming.iterdir()))
    node.archive.database.conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert leaked(node.archive.data, told) == set(), "in files, catalogue, change feed and jobs"
    assert leaked(caplog.text.encode(), told) == set()
    by_modality = {each.Modality: each for each in stored}
    [series] = by_modality["SEG"].ReferencedSeriesSequence
    assert series.ReferencedInstanceSequence[0].ReferencedSOPInstanceUID == by_modality["CT"].SOPInstanceUID


def test_the_same_object_again_is_written_once(node, originals):
    ct = originals[0]
    assert [status.Status for status in _send(node, ct, ct)] == [0x0000, 0x0000]
    assert [status.Status for status in _send(node, ct, calling="ANOTHER")] == [0x0000]
    assert len(_stored(node)) == 1
    assert len(list(since(node.archive.database))) == 1


def test_other_content_of_the_same_uid_is_a_conflict_without_a_word_of_it(node, make_file):
    one, other = make_file(1, PatientName="Original^Name"), make_file(1, PatientName="Original^Name", Modality="MR")
    assert _send(node, one)[0].Status == 0x0000
    [status] = _send(node, other)
    assert status.Status == 0xB006
    assert "Original" not in status.ErrorComment
    assert "7133" not in status.ErrorComment


@pytest.mark.parametrize(
    ("values", "code"),
    [
        ({"BurnedInAnnotation": "YES"}, 0xC010),
        ({"SeriesInstanceUID": None}, 0xA900),
    ],
)
def test_what_is_refused_leaves_nothing(node, make_file, caplog, values, code):
    path = make_file(1, PatientName="Secret^Person", PatientID="SECRET-1", **values)
    with caplog.at_level(logging.INFO):
        [status] = _send(node, path)
    assert status.Status == code
    assert status.ErrorComment
    assert not _stored(node)
    assert not list(node.archive.incoming.iterdir())
    assert not list(since(node.archive.database))
    told = {b"Secret^Person", b"SECRET-1", b"1.2.826.0.1.3680043.9.7133.9.1"}
    assert leaked(caplog.text.encode(), told) == set()
    assert "an object refused from SCANNER@127.0.0.1, called THARSIS_ANON" in caplog.text


def test_a_cut_off_object_is_refused(node, make_file):
    path = make_file(1)
    path.write_bytes(path.read_bytes()[:-20])
    peer = Peer("127.0.0.1", node.port, TITLE)
    [sent] = client.send(peer, [path], client.Requestor("SCANNER"))
    assert sent.status.code == 0xC010
    assert "cut off" in sent.status.comment
    assert not _stored(node)
    assert not list(node.archive.incoming.iterdir())


def test_it_answers_storage_commitment_and_echo_and_nothing_else(node):
    entity = AE("SCANNER")
    for uid in (VERIFICATION, STUDY_ROOT_FIND, STUDY_ROOT_MOVE):
        entity.add_requested_context(uid)
    assoc = entity.associate("127.0.0.1", node.port, ae_title=TITLE)
    identifier = Dataset()
    identifier.QueryRetrieveLevel, identifier.StudyInstanceUID = "STUDY", ""
    assert assoc.send_c_echo().Status == 0x0000
    [(found, _)] = assoc.send_c_find(identifier, STUDY_ROOT_FIND)
    identifier.StudyInstanceUID = "1.2.3"
    [(moved, _)] = assoc.send_c_move(identifier, "SCANNER", STUDY_ROOT_MOVE)
    assoc.release()
    assert (found.Status, moved.Status) == (0x0122, 0x0122)


def test_storage_commitment_is_asked_and_reported_with_the_uids_that_were_sent(node, originals, wait_until):
    _send(node, *originals[:2])
    sent = [pydicom.dcmread(path) for path in originals[:2]]
    references = [(str(each.SOPClassUID), str(each.SOPInstanceUID)) for each in sent]
    references.append((str(CTImageStorage), "1.2.826.0.1.3680043.9.7133.404"))
    for _ in range(2):  # the same request again is checked and reported anew
        event_type, report = _commit(node, wait_until, "1.2.3.4", references)
        assert event_type == 2
        committed = report.ReferencedSOPSequence
        assert [(each.ReferencedSOPClassUID, each.ReferencedSOPInstanceUID) for each in committed] == references[:2]
        [failed] = report.FailedSOPSequence
        assert (failed.ReferencedSOPInstanceUID, failed.FailureReason) == (references[2][1], 0x0112)
        assert "RetrieveAETitle" not in report, "nothing is retrieved by the UIDs that were sent"


def test_what_was_sent_is_forgotten_when_it_has_been_reported(node, originals, wait_until):
    _send(node, originals[0])
    sent = pydicom.dcmread(originals[0])
    _commit(node, wait_until, "1.2.3.5", [(str(sent.SOPClassUID), str(sent.SOPInstanceUID))])
    assert str(sent.SOPInstanceUID) not in _kept(node)[1]


@pytest.mark.parametrize(("requestor", "failed"), [("RESEARCH", 1), ("SCANNER", 0)])
def test_storage_commitment_tells_an_ae_with_a_profile_of_nothing_but_its_own(
    start_node, make_file, wait_until, requestor, failed
):
    node = start_node(entities=[{"title": "RESEARCH", "rights": ["store"], "profile": "research"}], profiles=PROFILES)
    for number, sender in ((1, "RESEARCH"), (2, "SCANNER")):
        _send(node, make_file(number), calling=sender, called="THARSIS")
    references = [(str(CTImageStorage), f"1.2.826.0.1.3680043.9.7133.9.{number}") for number in (1, 2)]
    _, report = _commit(node, wait_until, "1.2.3.6", references, calling=requestor, called="THARSIS")
    assert [item.ReferencedSOPInstanceUID for item in report.get("FailedSOPSequence", [])] == [
        uid for _, uid in references[2 - failed :]
    ]


def _commit(node, wait_until, transaction, references, *, calling="SCANNER", called=TITLE):
    reports, came = [], threading.Event()

    def take(event):
        reports.append((event.event_type, event.event_information))
        came.set()
        return 0, None

    entity = AE(calling)
    entity.add_requested_context(STORAGE_COMMITMENT, ExplicitVRLittleEndian)
    handlers = [(evt.EVT_N_EVENT_REPORT, take)]
    assoc = entity.associate("127.0.0.1", node.port, ae_title=called, evt_handlers=handlers)
    information = request_information(transaction, [Reference(*each) for each in references])
    status, _ = assoc.send_n_action(information, 1, STORAGE_COMMITMENT, UID(SOP_INSTANCE_UID))
    assert status.Status == 0x0000
    assert came.wait(300), "no report came"
    wait_until(lambda: _kept(node)[0] == "reported")  # who releases before has not answered the report
    assoc.release()
    return reports[0]


def _kept(node):
    return node.archive.database.execute("SELECT state, instances FROM commitment").fetchone()


def test_without_the_right_nothing_is_kept(start_node, make_file):
    node = start_node(titles=TITLES, profiles=PROFILES, entities=[{"title": "SCANNER", "rights": ["find"]}])
    [status] = _send(node, make_file(1))
    assert status.Status == 0x0124
    assert not _stored(node)
    assert not list(node.archive.incoming.iterdir())


@pytest.mark.parametrize(
    ("titles", "words"),
    [
        ([{"title": "A" * 17, "deidentify": "ingest", "profile": "research"}], "1 to 16"),
        ([{"title": "A" * 13, "deidentify": "view", "profile": "research"}], "at most 12"),
        ([{"title": "THARSIS", "deidentify": "ingest", "profile": "research"}], "'THARSIS' in two ways"),
        ([{"title": "T", "deidentify": "view", "profile": "research"},
          {"title": "T_SIM", "deidentify": "ingest", "profile": "research"}], "'T_SIM' in two ways"),
        ([{"title": "T", "deidentify": "ingest", "profile": "none"}], "no profile 'none'"),
        ([{"title": "T", "deidentify": "ingest"}], "profile"),
        ([{"title": "T", "deidentify": "both", "profile": "research"}], "'ingest' or 'view'"),
    ],
)  # fmt: skip
def test_titles_that_cannot_be_are_one_sentence(titles, words):
    with pytest.raises(SettingsError) as caught:
        load_settings(environment={}, overrides={"ae_titles": titles, "deidentification": PROFILES})
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_view_has_a_similarity_title_and_an_inbox_has_none():
    overrides = {
        "ae_titles": [*TITLES, {"title": "TEACHING", "deidentify": "view", "profile": "research"}],
        "deidentification": PROFILES,
    }
    titles = load_settings(environment={}, overrides=overrides).own_titles()
    assert list(titles) == ["THARSIS", "THARSIS_SIM", TITLE, "TEACHING", "TEACHING_SIM"]
    assert [title for title, own in titles.items() if own.asks_similarity] == ["THARSIS_SIM", "TEACHING_SIM"]
    assert list(own_titles("A", ())) == ["A", "A_SIM"]


def test_the_catalogue_finds_it_by_its_new_uid_only(node, originals):
    _send(node, originals[0])
    original = pydicom.dcmread(originals[0])
    [stored] = _stored(node)
    assert stored.SOPInstanceUID != original.SOPInstanceUID
    rows = node.archive.database.execute("SELECT level, uid FROM change").fetchall()
    assert rows == [(Level.IMAGE.value, stored.SOPInstanceUID)]
