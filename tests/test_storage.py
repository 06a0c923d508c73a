"""C-STORE with real peers: what is answered, and what is then in the archive."""

from __future__ import annotations

import socket
import struct
import threading
from io import BytesIO

import pydicom
import pytest
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian, MRImageStorage
from pynetdicom import AE
from pynetdicom.dimse_messages import C_STORE_RQ
from pynetdicom.dimse_primitives import C_CANCEL, C_STORE, N_EVENT_REPORT
from pynetdicom.dsutils import encode
from pynetdicom.sop_class import Verification
from requestors import SteadyEntity, paused
from retrieved import UID_OF, data_set

from config.identity import IMPLEMENTATION_CLASS_UID
from index.errors import NotFound
from scp import client
from scp.client import Requestor
from scp.contexts import Proposal
from scp.part10 import EncodedObject, data_set_offset
from scp.requestor import Peer
from scp.services import NodeServices


def _send(node, *files, title="MODALITY", called="THARSIS"):
    return list(client.send(Peer("127.0.0.1", node.port, called), files, Requestor(title)))


def _associate(node, *, calling="MODALITY", called="THARSIS"):
    entity = SteadyEntity(calling)
    entity.add_requested_context(CTImageStorage, [ExplicitVRLittleEndian])
    entity.add_requested_context(Verification)
    return entity.associate("127.0.0.1", node.port, ae_title=called)


@pytest.mark.parametrize("tool", ["storescu", "dcmsend"])
def test_dcmtk_stores_a_file(start_node, dcmtk, make_file, tool):
    node, path = start_node(), make_file(1)
    dcmtk(tool, "-aec", "THARSIS", "127.0.0.1", node.port, path)
    stored = node.archive.open_instance(UID_OF(1))
    assert data_set(stored.path) == data_set(path)
    meta = pydicom.dcmread(stored.path, stop_before_pixels=True).file_meta
    assert meta.ImplementationClassUID == IMPLEMENTATION_CLASS_UID
    assert meta.SourceApplicationEntityTitle == tool.upper()


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"])
def test_bytes_stay_in_their_transfer_syntax(start_node, make_file, syntax):
    node, path = start_node(), make_file(1, transfer_syntax=syntax)
    assert _send(node, path)[0].is_stored
    stored = node.archive.open_instance(UID_OF(1))
    assert stored.transfer_syntax_uid == syntax
    assert data_set(stored.path) == data_set(path)


def test_an_empty_patient_id_is_stored(start_node, make_file):
    node = start_node()
    assert _send(node, make_file(1, PatientID=None))[0].status.code == 0x0000


@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SeriesInstanceUID"])
@pytest.mark.parametrize("value", [None, ""])
def test_an_object_without_its_uids_is_refused(start_node, make_file, keyword, value):
    node = start_node()
    [result] = _send(node, make_file(1, **{keyword: value}))
    assert result.status.code == 0xA900
    assert keyword in result.status.comment
    assert result.status.offending == (pydicom.datadict.tag_for_keyword(keyword),)
    with pytest.raises(NotFound):
        node.archive.open_instance(UID_OF(1))
    assert list(node.archive.incoming.iterdir()) == []


def test_an_instance_whose_own_data_set_does_not_name_it_is_refused(start_node, make_dataset):
    node, dataset = start_node(), make_dataset(1, SOPInstanceUID=None)
    assoc = _associate(node)
    request = C_STORE()
    request.MessageID, request.Priority = 3, 1
    request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = CTImageStorage, UID_OF(1)
    context = assoc.accepted_contexts[0]
    syntax = context.transfer_syntax[0]
    request.DataSet = BytesIO(encode(dataset, syntax.is_implicit_VR, syntax.is_little_endian))
    with paused(assoc):
        assoc.dimse.send_msg(request, context.context_id)
        _, response = assoc.dimse.get_msg(block=True)
    assoc.release()
    assert (response.Status, response.OffendingElement) == (0xA900, 0x00080018)


def test_a_command_that_names_another_object_is_refused(start_node, make_dataset):
    node, dataset = start_node(), make_dataset(1)
    assoc = _associate(node)
    # pynetdicom takes the UIDs of the command from the File Meta Information when it sends a file in chunks; here the
    # data set is swapped behind its back.
    request = C_STORE()
    request.MessageID, request.Priority = 7, 1
    request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = CTImageStorage, "1.2.3.999"
    request.DataSet = BytesIO(encode(dataset, False, True))
    with paused(assoc):
        assoc.dimse.send_msg(request, assoc.accepted_contexts[0].context_id)
        _, response = assoc.dimse.get_msg(block=True)
    assert response.Status == 0xA900
    assert response.ErrorComment
    assoc.release()


def _request(number, data):
    request = C_STORE()
    request.MessageID, request.Priority = number, 1
    request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = CTImageStorage, UID_OF(number)
    request.DataSet = BytesIO(data)
    return request


@pytest.mark.parametrize(
    ("context", "sop_class", "code"),
    [(CTImageStorage, MRImageStorage, 0x0122), (Verification, Verification, 0x0211)],
)
def test_a_refused_request_leaves_no_file(start_node, make_file, context, sop_class, code):
    node = start_node()
    assoc = _associate(node)
    request = _request(1, data_set(make_file(1)))
    request.AffectedSOPClassUID = sop_class
    [context_id] = [accepted.context_id for accepted in assoc.accepted_contexts if accepted.abstract_syntax == context]
    with paused(assoc):
        assoc.dimse.send_msg(request, context_id)
        _, response = assoc.dimse.get_msg(block=True)
    assert response.Status == code
    assoc.release()
    _wait_until_idle(node)
    assert list(node.archive.incoming.iterdir()) == []


def test_requests_that_wait_when_the_peer_aborts_leave_no_files(
    start_node, make_file, monkeypatch, wait_until, transport_name
):
    """pynetdicom reads them while the first is served; the node's own transport leaves them to TCP."""
    gone, stored = threading.Event(), NodeServices.store

    def store(self, caller, request):
        assert gone.wait(60)
        return stored(self, caller, request)

    monkeypatch.setattr(NodeServices, "store", store)
    node = start_node()
    assoc = _associate(node)
    with paused(assoc):
        for number in (1, 2, 3, 4):  # without waiting for the answers
            assoc.dimse.send_msg(_request(number, data_set(make_file(number))), assoc.accepted_contexts[0].context_id)
        [served] = node.server._acceptor.associations
        wait_until(lambda: len(list(node.archive.incoming.iterdir())) == 1)
        if transport_name == "pynetdicom":
            wait_until(lambda: served.dimse.msg_queue.qsize() == 3)
    assoc.abort()
    if transport_name == "pynetdicom":
        wait_until(lambda: not served.dul.is_alive() or served.dul.socket.socket is None)
    gone.set()
    _wait_until_idle(node)
    assert list(node.archive.incoming.iterdir()) == []


def test_the_same_object_again_is_a_success(start_node, make_file):
    node, path = start_node(), make_file(1)
    assert [_send(node, path)[0].status.code for _ in range(2)] == [0, 0]


def test_other_content_under_a_known_uid_is_a_warning_and_the_old_is_kept(start_node, make_file):
    node = start_node()
    first, second = make_file(1), make_file(1, StudyDescription="changed")
    _send(node, first)
    [result] = _send(node, second)
    assert result.status.code == 0xB006
    assert result.status.comment
    assert data_set(node.archive.open_instance(UID_OF(1)).path) == data_set(first)


def test_unreadable_bytes_are_not_understood(start_node, make_file):
    node, path = start_node(), make_file(1)
    whole = path.read_bytes()
    offset = data_set_offset(path)
    path.write_bytes(whole[:offset] + b"\x08\x00\x16\x00UI\xff\xff" + whole[offset + 8 : offset + 100])
    item = EncodedObject(path, offset, ExplicitVRLittleEndian, CTImageStorage, UID_OF(1))
    proposals = [Proposal(CTImageStorage, (ExplicitVRLittleEndian,))]
    [result] = client._send_part(Peer("127.0.0.1", node.port, "THARSIS"), proposals, [item], Requestor("M"))
    assert result.status.is_failure
    assert result.status.comment
    with pytest.raises(NotFound):
        node.archive.open_instance(UID_OF(1))


def test_a_full_disk_is_told_before_anything_is_written(start_node, make_file, monkeypatch):
    node, path = start_node(), make_file(1)
    usage = type("usage", (), {"free": 0, "total": 1, "used": 1})
    monkeypatch.setattr("index.files.shutil.disk_usage", lambda _path: usage)
    monkeypatch.setattr(node.archive._files, "_reserve_bytes", 1)
    [result] = _send(node, path)
    assert result.status.code == 0xA700
    assert result.status.comment
    assert list(node.archive.incoming.iterdir()) == []
    assert client.echo(Peer("127.0.0.1", node.port, "THARSIS"), Requestor("M")) >= 0


def test_an_ae_without_the_right_to_store_is_refused(start_node, make_file):
    node = start_node(entities=[{"title": "READER", "rights": ["find"]}])
    [result] = _send(node, make_file(1), title="READER")
    assert result.status.code == 0x0124
    assert "store" in result.status.comment


def test_an_unknown_ae_is_rejected_when_the_settings_say_so(start_node):
    node = start_node(accept_unknown=False, entities=[{"title": "KNOWN", "rights": ["store"]}])
    stranger = _associate(node, calling="STRANGER")
    assert stranger.is_rejected
    assert (stranger.acceptor.primitive.result, stranger.acceptor.primitive.diagnostic) == (1, 3)
    known = _associate(node, calling="KNOWN")
    assert known.is_established
    known.release()


@pytest.mark.parametrize(("check", "rejected"), [(True, True), (False, False)])
def test_the_called_title_is_checked(start_node, check, rejected):
    assoc = _associate(start_node(check_called_aet=check), called="SOMEBODY")
    assert assoc.is_rejected is rejected
    if rejected:
        assert assoc.acceptor.primitive.diagnostic == 7
    else:
        assoc.release()


def test_nothing_is_archived_under_the_similarity_title(start_node, make_file):
    node = start_node()
    [result] = _send(node, make_file(1), called="THARSIS_SIM")
    assert result.status.code == 0x0122
    assert result.status.comment
    with pytest.raises(NotFound):
        node.archive.open_instance(UID_OF(1))


def test_a_transfer_that_is_cut_off_leaves_nothing(start_node, make_dataset):
    node = start_node()
    assoc = _associate(node)
    request = C_STORE()
    request.MessageID, request.Priority = 1, 1
    request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = CTImageStorage, UID_OF(1)
    request.DataSet = BytesIO(bytes(1_000_000))
    message = C_STORE_RQ()
    message.primitive_to_message(request)
    fragments = message.encode_msg(assoc.accepted_contexts[0].context_id, 16384)
    for _ in range(5):
        assoc.dul.send_pdu(next(fragments))
    assoc.abort()
    _wait_until_idle(node)
    assert list(node.archive.incoming.iterdir()) == []


@pytest.mark.filterwarnings("ignore:.*VR UI")
def test_a_uid_with_letters_or_of_more_than_64_characters_is_stored(start_node, make_file):
    node = start_node()
    odd = ["1.2.3.abc", "1.2." + "3" * 70, "../../x"]
    files = [make_file(number, SOPInstanceUID=uid) for number, uid in enumerate(odd)]
    results = _send(node, *files)
    assert [result.status.code for result in results] == [0, 0, 0]
    for uid in odd:
        path = node.archive.open_instance(uid).path
        assert path.is_relative_to(node.archive.data / "files")


def test_a_request_without_a_mandatory_parameter_is_answered(start_node):
    node = start_node()
    assoc = _associate(node)
    request = C_STORE()
    request.MessageID, request.Priority = 3, 1
    request.AffectedSOPClassUID = CTImageStorage
    with paused(assoc):
        assoc.dimse.send_msg(request, assoc.accepted_contexts[0].context_id)
        _, response = assoc.dimse.get_msg(block=True)
    assert response.Status == 0x0212
    assert "AffectedSOPInstanceUID" in response.ErrorComment
    assert response.OffendingElement == 0x00001000
    assoc.release()


@pytest.mark.parametrize(
    "garbage",
    [b"", b"GET / HTTP/1.1\r\n\r\n", b"\x01\x00" + struct.pack(">I", 0xFFFFFFF0), b"\x04\x00\x00\x00\x00\x04abcd"],
    ids=["probe", "http", "4GiB", "data-first"],
)
def test_probes_and_garbage_cost_nothing(start_node, garbage):
    node = start_node(max_associations=2)
    for _ in range(6):  # more than there may be associations
        with socket.create_connection(("127.0.0.1", node.port)) as connection:
            connection.sendall(garbage)
            connection.shutdown(socket.SHUT_WR)
            _read_until_closed(connection)
    _wait_until_idle(node)
    assert client.echo(Peer("127.0.0.1", node.port, "THARSIS"), Requestor("M")) >= 0


def _read_until_closed(connection):
    connection.settimeout(60)
    try:
        while connection.recv(4096):
            pass
    except ConnectionResetError:
        pass


def _wait_until_idle(node):
    for assoc in node.server._acceptor.associations:
        assoc.join(60)
    assert node.server._acceptor.associations == []


def test_implicit_vr_is_taken_when_only_that_is_proposed(start_node):
    node = start_node()
    entity = AE("M")
    entity.add_requested_context(CTImageStorage, [ImplicitVRLittleEndian])
    assoc = entity.associate("127.0.0.1", node.port, ae_title="THARSIS")
    assert assoc.accepted_contexts[0].transfer_syntax == [ImplicitVRLittleEndian]
    assoc.release()


def test_cancels_without_number_and_reports_that_nobody_asked_for(start_node):
    """Ten C-CANCELs are kept (PS3.7 9.3.2.3), the rest is dropped; N-EVENT-REPORT is not for an acceptor."""
    node = start_node()
    assoc = _associate(node)
    [context_id] = [cx.context_id for cx in assoc.accepted_contexts if cx.abstract_syntax == Verification]
    for number in range(1, 20):
        cancel = C_CANCEL()
        cancel.MessageIDBeingRespondedTo = number
        assoc.dimse.send_msg(cancel, context_id)
    assert assoc.send_c_echo().Status == 0
    report = N_EVENT_REPORT()
    report.MessageID, report.EventTypeID = 1, 1
    report.AffectedSOPClassUID, report.AffectedSOPInstanceUID = "1.2.840.10008.1.20.1", "1.2.840.10008.1.20.1.1"
    assoc.dimse.send_msg(report, context_id)
    assoc.join(60)
    assert assoc.is_aborted
    _wait_until_idle(node)
