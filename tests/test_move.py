"""C-MOVE with real peers: what arrives, and what is counted."""

from __future__ import annotations

import socket
import threading
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.filereader import read_dataset
from pydicom.uid import (
    UID,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MRImageStorage,
)
from pynetdicom import AE, evt
from pynetdicom.service_class import StorageServiceClass
from pynetdicom.sop_class import uid_to_service_class
from retrieved import UID_OF, counts, data_set, request_for

from scp.contexts import STORAGE, STUDY_ROOT_MOVE


class Receiver:
    """A Storage SCP of stock pynetdicom that keeps what it gets."""

    def __init__(self, contexts, answer=lambda event: 0x0000):
        self.stored: dict[str, bytes] = {}
        self.requests = []
        self.associations = 0
        self._answer = answer
        entity = AE("RECEIVER")
        entity.maximum_pdu_size = 0
        for sop_class, syntaxes in contexts:
            entity.add_supported_context(sop_class, syntaxes)
        self.server = entity.start_server(
            ("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, self._keep), (evt.EVT_ACCEPTED, self._count)]
        )
        self.port = self.server.server_address[1]

    def _count(self, _event):
        self.associations += 1

    def _keep(self, event):
        self.requests.append(event.request)
        status = self._answer(event)
        if status == 0:
            self.stored[event.request.AffectedSOPInstanceUID] = event.request.DataSet.getvalue()
        return status


@pytest.fixture
def receive():
    receivers = []

    def start(contexts=((CTImageStorage, [ExplicitVRLittleEndian]),), **options):
        receivers.append(Receiver(contexts, **options))
        return receivers[-1]

    yield start
    for receiver in receivers:
        receiver.server.shutdown()


def _node_for(start_node, port, **scp):
    return start_node(entities=[{"title": "RECEIVER", "host": "127.0.0.1", "port": port, "rights": []}], **scp)


def _move(node, identifier, destination="RECEIVER", *, msg_id=1, priority=2, on_pending=None):
    entity = AE("VIEWER")
    entity.add_requested_context(STUDY_ROOT_MOVE, ExplicitVRLittleEndian)
    assoc = entity.associate("127.0.0.1", node.port, ae_title="THARSIS")
    answers = []
    for answer in assoc.send_c_move(identifier, destination, STUDY_ROOT_MOVE, msg_id=msg_id, priority=priority):
        answers.append(answer)
        if on_pending is not None:
            on_pending(assoc, answer[0])
    assoc.release()
    return answers


def test_move_sends_the_files_bytes(start_node, make_file, receive):
    receiver = receive()
    node = _node_for(start_node, receiver.port)
    files = {UID_OF(number): make_file(number) for number in range(1, 6)}
    for path in files.values():
        node.archive.ingest(path)
    answers = _move(node, request_for(), msg_id=77, priority=1)
    assert receiver.stored == {uid: data_set(path) for uid, path in files.items()}
    first, final = answers[0][0], answers[-1][0]
    assert (first.Status, counts(first)) == (0xFF00, (5, 0, 0, 0))
    assert (final.Status, counts(final)) == (0x0000, (None, 5, 0, 0))
    for request in receiver.requests:
        assert request.MoveOriginatorApplicationEntityTitle == "VIEWER"
        assert request.MoveOriginatorMessageID == 77
        assert request.Priority == 1


@pytest.mark.parametrize("entities", [[], [{"title": "RECEIVER", "rights": ["find"]}]])
def test_an_unknown_destination_is_refused(start_node, make_file, entities):
    node = start_node(entities=entities)
    node.archive.ingest(make_file(1))
    [(status, _)] = _move(node, request_for())
    assert status.Status == 0xA801
    assert "RECEIVER" in status.ErrorComment


def test_a_closed_destination_fails_every_sub_operation(start_node, make_file):
    for_nobody = socket.socket()  # bound, so that nobody else has the port, but not listening
    for_nobody.bind(("127.0.0.1", 0))
    node = _node_for(start_node, for_nobody.getsockname()[1])
    for number in (1, 2):
        node.archive.ingest(make_file(number))
    status, identifier = _move(node, request_for())[-1]
    for_nobody.close()
    assert (status.Status, counts(status)) == (0xA702, (None, 0, 2, 0))
    assert status.ErrorComment
    assert sorted(identifier.FailedSOPInstanceUIDList) == [UID_OF(1), UID_OF(2)]


def test_nothing_that_matches_is_a_success(start_node, receive):
    node = _node_for(start_node, receive().port)
    [(status, _)] = _move(node, request_for())
    assert (status.Status, counts(status)) == (0x0000, (None, 0, 0, 0))


def test_the_rest_goes_on_after_a_failure(start_node, make_file, receive):
    receiver = receive(answer=lambda event: 0xA700 if event.request.AffectedSOPInstanceUID == UID_OF(2) else 0)
    node = _node_for(start_node, receiver.port)
    for number in range(1, 5):
        node.archive.ingest(make_file(number))
    status, identifier = _move(node, request_for())[-1]
    assert (status.Status, counts(status)) == (0xB000, (None, 3, 1, 0))
    assert identifier.FailedSOPInstanceUIDList == UID_OF(2)
    assert len(receiver.stored) == 3


def test_a_warning_of_the_destination_is_counted_as_one(start_node, make_file, receive):
    receiver = receive(answer=lambda _event: 0xB007)
    node = _node_for(start_node, receiver.port)
    node.archive.ingest(make_file(1))
    status, _ = _move(node, request_for())[-1]
    assert (status.Status, counts(status)) == (0xB000, (None, 0, 0, 1))


def test_a_class_that_the_destination_lacks_fails_alone(start_node, make_file, receive):
    receiver = receive()
    node = _node_for(start_node, receiver.port)
    node.archive.ingest(make_file(1))
    node.archive.ingest(make_file(2, SOPClassUID=MRImageStorage))
    status, identifier = _move(node, request_for())[-1]
    assert (status.Status, counts(status)) == (0xB000, (None, 1, 1, 0))
    assert identifier.FailedSOPInstanceUIDList == UID_OF(2)


def test_a_file_that_is_gone_fails_alone_and_is_told(start_node, make_file, receive, caplog):
    receiver = receive()
    node = _node_for(start_node, receiver.port)
    node.archive.ingest(make_file(1))
    node.archive.ingest(make_file(2))
    node.archive.open_instance(UID_OF(2)).path.unlink()
    status, identifier = _move(node, request_for())[-1]
    assert (status.Status, counts(status)) == (0xB000, (None, 1, 1, 0))
    assert "missing" in status.ErrorComment
    assert identifier.FailedSOPInstanceUIDList == UID_OF(2)
    assert f"instance {UID_OF(2)} cannot be sent" in caplog.text


def test_a_file_that_is_known_to_be_damaged_fails_alone(start_node, make_file, receive):
    receiver = receive()
    node = _node_for(start_node, receiver.port)
    node.archive.ingest(make_file(1))
    node.archive.ingest(make_file(2))
    with node.archive.transaction() as database:
        database.execute("UPDATE instance SET damage = 'altered' WHERE sop_instance_uid = ?", (UID_OF(2),))
    status, identifier = _move(node, request_for())[-1]
    assert (status.Status, counts(status)) == (0xB000, (None, 1, 1, 0))
    assert "altered" in status.ErrorComment
    assert identifier.FailedSOPInstanceUIDList == UID_OF(2)


@pytest.mark.parametrize(
    "name",
    ["CT_small.dcm", "MR_small_bigendian.dcm", "MR_small_RLE.dcm", "rtdose_expb.dcm", "image_dfl.dcm",
     "rtdose_rle.dcm", "MR_small_jp2klossless.dcm"],
)  # fmt: skip
@pytest.mark.parametrize("only", [ImplicitVRLittleEndian, ExplicitVRLittleEndian])
def test_a_destination_with_one_transfer_syntax_gets_that_one(start_node, receive, name, only):
    path = Path(get_testdata_file(name))
    original = pydicom.dcmread(path)
    receiver = receive([(original.SOPClassUID, [only])])
    node = _node_for(start_node, receiver.port)
    node.archive.ingest(path)
    status, _ = _move(node, request_for(StudyInstanceUID=original.StudyInstanceUID))[-1]
    if name == "MR_small_jp2klossless.dcm" and not _can_decode(original):
        assert status.Status == 0xA702
        assert "convert" in status.ErrorComment
        return
    assert status.Status == 0x0000
    [data] = receiver.stored.values()
    sent = pydicom.filereader.read_dataset(BytesIO(data), only.is_implicit_VR, is_little_endian=True)
    sent.file_meta = pydicom.dataset.FileMetaDataset()
    sent.file_meta.TransferSyntaxUID = only
    assert sent.SOPInstanceUID == original.SOPInstanceUID
    assert (sent.pixel_array == original.pixel_array).all()
    for element in original:
        if element.VR in ("US", "SS", "FD", "FL", "DS", "IS", "PN", "LO", "UI", "DA") and element.tag.group != 0x0028:
            assert sent[element.tag].value == element.value, element


def _can_decode(dataset):
    try:
        dataset.pixel_array  # noqa: B018
    except (RuntimeError, NotImplementedError):
        return False
    return True


def test_what_cannot_be_decoded_fails_alone(start_node, receive, make_file):
    receiver = receive([(CTImageStorage, [ImplicitVRLittleEndian])])
    node = _node_for(start_node, receiver.port)
    node.archive.ingest(make_file(1))
    dataset = pydicom.dcmread(make_file(3))
    dataset.PixelData = pydicom.encaps.encapsulate([b"not a jpeg of any kind"])
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = UID("1.2.840.10008.1.2.4.53")
    path = node.archive.data / "x.dcm"
    dataset.save_as(path)
    node.archive.ingest(path)
    status, identifier = _move(node, request_for())[-1]
    assert (status.Status, counts(status)) == (0xB000, (None, 1, 1, 0))
    assert identifier.FailedSOPInstanceUIDList == UID_OF(3)


@pytest.mark.slow
def test_more_contexts_than_an_association_has(start_node, make_file, receive):
    classes = sorted(uid for uid in STORAGE if uid_to_service_class(uid) is StorageServiceClass)[:140]
    assert len(classes) == 140
    receiver = receive([(uid, [ExplicitVRLittleEndian]) for uid in classes])
    node = _node_for(start_node, receiver.port)
    for number, uid in enumerate(classes, start=1):
        node.archive.ingest(make_file(number, SOPClassUID=uid))
    status, _ = _move(node, request_for())[-1]
    assert (status.Status, counts(status)) == (0x0000, (None, 140, 0, 0))
    assert receiver.associations > 1


def test_pending_goes_out_during_a_long_sub_operation(start_node, make_file, receive):
    told_again = threading.Event()
    pending = []

    def tell(_assoc, _pending):
        pending.append(1)
        if len(pending) > 1:
            told_again.set()

    receiver = receive(answer=lambda _event: 0x0000 if told_again.wait(50) else 0xA700)
    node = _node_for(start_node, receiver.port)
    node.archive.ingest(make_file(1))
    answers = _move(node, request_for(), on_pending=tell)
    assert answers[-1][0].Status == 0x0000
    assert {counts(status) for status, _ in answers[:-1]} == {(1, 0, 0, 0)}


def test_move_can_be_cancelled(start_node, make_file, receive):
    """The sixth object is answered when all is over: before that there is time enough to see the request."""
    over = threading.Event()
    receiver = receive(answer=lambda _event: 0x0000 if len(receiver.requests) <= 5 or over.wait(300) else 0xA700)
    node = _node_for(start_node, receiver.port)
    for number in range(1, 201):
        node.archive.ingest(make_file(number).read_bytes())
    sent = []

    def cancel(assoc, pending):
        if counts(pending)[1] == 5 and not sent:
            sent.append(1)
            assoc.send_c_cancel(9, query_model=STUDY_ROOT_MOVE)

    status, _ = _move(node, request_for(), msg_id=9, on_pending=cancel)[-1]
    stored = len(receiver.stored)
    over.set()
    remaining, completed, failed, warning = counts(status)
    assert status.Status == 0xFE00
    assert remaining >= 194
    assert completed == stored == 5
    assert remaining + completed + failed + warning == 200


@pytest.mark.parametrize(
    ("keys", "code"),
    [({"StudyInstanceUID": ""}, 0xA900), ({"PatientID": "P1"}, 0xA900), ({"StudyInstanceUID": "1.2.*"}, 0xA900)],
)
@pytest.mark.filterwarnings("ignore:.*VR UI")
def test_a_malformed_identifier_is_refused(start_node, make_file, receive, keys, code):
    node = _node_for(start_node, receive().port)
    node.archive.ingest(make_file(1))
    [(status, _)] = _move(node, request_for(**keys))
    assert status.Status == code
    assert status.ErrorComment


def test_the_parent_has_to_be_the_right_one(start_node, make_file, receive):
    receiver = receive()
    node = _node_for(start_node, receiver.port)
    node.archive.ingest(make_file(1))
    keys = {"StudyInstanceUID": "1.2.3", "SeriesInstanceUID": "1.2.826.0.1.3680043.9.7133.2"}
    [(status, _)] = _move(node, request_for("SERIES", **keys))
    assert (status.Status, counts(status)) == (0x0000, (None, 0, 0, 0))
    assert not receiver.requests


def test_the_right_to_move_is_required(start_node, make_file):
    node = start_node(entities=[{"title": "VIEWER", "rights": ["find"]}])
    node.archive.ingest(make_file(1))
    [(status, _)] = _move(node, request_for())
    assert status.Status == 0x0124


@pytest.mark.parametrize("only", [ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian], ids=lambda uid: uid.keyword)
def test_a_destination_with_one_rare_transfer_syntax_gets_that_one(start_node, receive, make_file, only):
    """Implicit VR is what it would have to take (PS3.5 10.1); some do not."""
    receiver = receive([(CTImageStorage, [only])])
    node = _node_for(start_node, receiver.port)
    node.archive.ingest(make_file(3))
    node.archive.ingest(make_file(4, transfer_syntax=ImplicitVRLittleEndian))
    assert _move(node, request_for())[-1][0].Status == 0x0000
    data = receiver.stored[UID_OF(3)]
    sent = read_dataset(BytesIO(zlib.decompress(data, -15) if only.is_deflated else data), False, only.is_little_endian)
    assert sent.PixelData == np.full(64, 3, "<u2" if only.is_little_endian else ">u2").tobytes()


def test_nothing_is_compressed_for_a_destination(start_node, receive):
    """It takes one compressed transfer syntax, and the object is stored in another."""
    path = Path(get_testdata_file("MR_small_RLE.dcm"))
    original = pydicom.dcmread(path)
    receiver = receive([(original.SOPClassUID, ["1.2.840.10008.1.2.4.90"])])
    node = _node_for(start_node, receiver.port)
    node.archive.ingest(path)
    status, identifier = _move(node, request_for(StudyInstanceUID=original.StudyInstanceUID))[-1]
    assert status.Status == 0xA702
    assert status.ErrorComment
    assert identifier.FailedSOPInstanceUIDList == original.SOPInstanceUID


@pytest.mark.parametrize(
    ("lenient", "keys", "code", "sent"),
    [
        (False, {"AccessionNumber": "A1"}, 0xA900, 0),
        (True, {"AccessionNumber": "A1"}, 0x0000, 1),
        (True, {"AccessionNumber": "A2"}, 0x0000, 0),
        (True, {"PatientID": "P1"}, 0x0000, 1),
    ],
)
def test_a_lenient_ae_may_retrieve_by_what_it_knows(start_node, receive, make_file, lenient, keys, code, sent):
    receiver = receive()
    node = start_node(
        entities=[
            {"title": "RECEIVER", "host": "127.0.0.1", "port": receiver.port},
            {"title": "VIEWER", "rights": ["move"], "lenient": lenient},
        ]
    )
    node.archive.ingest(make_file(1))
    status, _ = _move(node, request_for(**keys))[-1]
    assert status.Status == code
    assert len(receiver.stored) == sent
