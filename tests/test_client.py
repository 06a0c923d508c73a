"""The SCU side, against this node and against DCMTK."""

from __future__ import annotations

import socket

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import AE, evt

from scp import client
from scp.client import RequestFailed, Requestor
from scp.contexts import STORAGE, STUDY_ROOT_FIND, STUDY_ROOT_GET, STUDY_ROOT_MOVE
from scp.errors import AssociationLost, PeerRejected, PeerUnreachable
from scp.part10 import NotDicomError, data_set_offset, read_object
from scp.requestor import Peer, Timeouts

STUDY = "1.2.826.0.1.3680043.9.7133.1"
ME = Requestor("ME", Timeouts(connect=60.0, acse=60.0))


def _peer(node, title="THARSIS"):
    return Peer("127.0.0.1", node.port, title)


def _study():
    identifier = Dataset()
    identifier.QueryRetrieveLevel = "STUDY"
    identifier.StudyInstanceUID = STUDY
    return identifier


def test_echo(start_node):
    assert 0 <= client.echo(_peer(start_node()), ME) < 60


def test_a_closed_port_is_unreachable_and_says_where():
    with socket.socket() as closed:  # bound, so that nobody else has the port, but not listening
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        with pytest.raises(PeerUnreachable, match=rf"ARCHIVE at 127\.0\.0\.1:{port}"):
            client.echo(Peer("127.0.0.1", port, "ARCHIVE"), ME)


def test_a_rejection_says_why(start_node):
    with pytest.raises(PeerRejected, match="called ae title"):
        client.echo(_peer(start_node(), "OTHER"), ME)


def test_a_peer_without_the_service_is_told_so(start_node):
    with pytest.raises(PeerRejected, match="none of the presentation contexts"):
        list(client.find(_peer(start_node()), _study(), "1.2.840.10008.5.1.4.31", ME))


def test_each_file_has_its_own_result(start_node, make_file, tmp_path):
    node = start_node()
    text = tmp_path / "notes.txt"
    text.write_text("no DICOM here, but long enough to be looked at " * 10)
    files = [make_file(1), text, make_file(2, StudyInstanceUID=None), tmp_path / "absent.dcm"]
    results = {result.path: result for result in client.send(_peer(node), files, ME)}
    assert set(results) == set(files)
    assert [results[path].is_stored for path in files] == [True, False, False, False]
    assert results[files[0]].error == ""
    assert results[text].status is None
    assert "DICOM" in results[text].error
    assert results[files[2]].status.code == 0xA900
    assert "StudyInstanceUID" in results[files[2]].error
    assert results[files[3]].error


def test_files_without_preamble_or_meta_are_sent_as_they_stand(start_node, make_file, tmp_path):
    node, whole = start_node(), make_file(1)
    content = whole.read_bytes()
    bare, no_preamble = tmp_path / "bare.dcm", tmp_path / "nopreamble.dcm"
    bare.write_bytes(content[data_set_offset(whole):])
    no_preamble.write_bytes(content[132:])
    for path in (bare, no_preamble):
        item = read_object(path)
        assert item.transfer_syntax_uid == ExplicitVRLittleEndian
        assert path.read_bytes()[item.offset:] == content[data_set_offset(whole):]
    results = list(client.send(_peer(node), [bare, no_preamble], ME))
    assert [result.status.code for result in results] == [0, 0]


def test_what_is_no_dicom_object_is_not_sent(tmp_path):
    path = tmp_path / "empty"
    path.write_bytes(b"")
    with pytest.raises(NotDicomError):
        read_object(path)


@pytest.mark.slow
def test_more_kinds_of_files_than_an_association_has_contexts(start_node, make_file):
    node = start_node()
    classes = sorted(uid for uid in STORAGE if uid.startswith("1.2.840.10008.5.1.4.1.1."))[:135]
    files = [make_file(number, SOPClassUID=uid) for number, uid in enumerate(classes, start=1)]
    results = list(client.send(_peer(node), files, ME))
    assert all(result.is_stored for result in results), [result for result in results if not result.is_stored][:3]
    assert len(results) == 135


def test_a_transfer_syntax_that_the_peer_lacks_is_named(make_file):
    entity = AE("PEER")
    entity.add_supported_context("1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.1.2")
    entity.add_supported_context("1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.1.2.1")
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, lambda _event: 0)])
    peer = Peer("127.0.0.1", server.server_address[1], "PEER")
    files = [make_file(1), make_file(2, SOPClassUID="1.2.840.10008.5.1.4.1.1.4")]
    results = {result.path: result for result in client.send(peer, files, ME)}
    server.shutdown()
    assert "CT Image Storage in Explicit VR Little Endian" in results[files[0]].error
    assert results[files[1]].is_stored


def _aborting_at(fatal):
    """A peer that ends the association at one of these objects, and stores all others."""
    entity = AE("PEER")
    entity.add_supported_context("1.2.840.10008.5.1.4.1.1.2", ExplicitVRLittleEndian)

    def answer(event):
        if event.request.AffectedSOPInstanceUID in fatal:
            event.assoc.abort()
        return 0

    return entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, answer)])


def test_a_file_that_ends_the_association_keeps_no_other_back(make_file):
    files = [make_file(number) for number in range(1, 7)]
    fatal = {read_object(path).sop_instance_uid for path in (files[0], files[1], files[4])}
    server = _aborting_at(fatal)
    results = list(client.send(Peer("127.0.0.1", server.server_address[1], "PEER"), files, ME))
    server.shutdown()
    assert [result.path for result in results] == files
    assert [result.is_stored for result in results] == [False, False, True, True, False, True]
    assert "not confirmed" in results[4].error


def test_a_peer_that_is_lost_leaves_what_was_answered_known(make_file):
    files = [make_file(number) for number in range(1, 7)]
    server = _aborting_at({read_object(path).sop_instance_uid for path in files[1:]})
    results = client.send(Peer("127.0.0.1", server.server_address[1], "PEER"), files, ME)
    first, second, third = (next(results) for _ in range(3))
    assert (first.path, first.is_stored) == (files[0], True)
    assert (second.is_stored, third.is_stored) == (False, False)
    with pytest.raises(AssociationLost):
        next(results)
    server.shutdown()


def test_find_yields_matches_and_raises_a_failure(start_node, make_file):
    node = start_node()
    node.archive.ingest(make_file(1))
    [match] = client.find(_peer(node), _study(), STUDY_ROOT_FIND, ME)
    assert match.StudyInstanceUID == STUDY
    wrong = _study()
    wrong.QueryRetrieveLevel = "PATIENT"
    with pytest.raises(RequestFailed, match="A900") as caught:
        list(client.find(_peer(node), wrong, STUDY_ROOT_FIND, ME))
    assert caught.value.status.code == 0xA900


def test_find_can_be_left_early(start_node, make_file, wait_until):
    node = start_node()
    for number in range(1, 30):
        node.archive.ingest(make_file(number, StudyInstanceUID=f"{STUDY}.{number}"))
    identifier = _study()
    identifier.StudyInstanceUID = ""
    matches = client.find(_peer(node), identifier, STUDY_ROOT_FIND, ME)
    next(matches)
    matches.close()
    wait_until(lambda: node.server._acceptor.associations == [])


def test_a_peer_without_c_get_is_told_so(start_node, tmp_path):
    entity = AE("PEER")
    entity.add_supported_context("1.2.840.10008.5.1.4.1.1.2", ExplicitVRLittleEndian, scu_role=True, scp_role=True)
    server = entity.start_server(("127.0.0.1", 0), block=False)
    peer = Peer("127.0.0.1", server.server_address[1], "PEER")
    with pytest.raises(PeerRejected, match=r"PEER at 127.* offers no C-GET"):
        list(client.get(peer, _study(), tmp_path / "got", STUDY_ROOT_GET, ME))
    server.shutdown()


def test_get_writes_files_and_move_counts(start_node, make_file, tmp_path):
    target = start_node(aet="TARGET")
    node = start_node(entities=[{"title": "TARGET", "host": "127.0.0.1", "port": target.port}])
    for number in (1, 2, 3):
        node.archive.ingest(make_file(number))
    *_, last = client.get(_peer(node), _study(), tmp_path / "got", STUDY_ROOT_GET, ME)
    assert last.status.is_success
    assert last.counts.completed == 3
    names = sorted(path.name for path in (tmp_path / "got").iterdir())
    assert names == [f"1.2.826.0.1.3680043.9.7133.9.{number}.dcm" for number in (1, 2, 3)]
    first, *_, last = client.move(_peer(node), _study(), "TARGET", STUDY_ROOT_MOVE, ME)
    assert first.status.is_pending
    assert first.counts.remaining == 3
    assert (last.status.code, last.counts.completed) == (0, 3)
    assert target.archive.open_instance("1.2.826.0.1.3680043.9.7133.9.3")
