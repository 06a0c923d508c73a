"""C-MOVE and C-GET with real peers: what arrives, and what is counted."""

from __future__ import annotations

import socket
import subprocess
import threading
from io import BytesIO
from pathlib import Path

import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.uid import (
    UID,
    CTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MRImageStorage,
    RTDoseStorage,
)
from pynetdicom import AE, build_role, evt
from pynetdicom.service_class import StorageServiceClass
from pynetdicom.sop_class import uid_to_service_class

from scp import conversion
from scp.contexts import STORAGE, STUDY_ROOT_GET, STUDY_ROOT_MOVE
from scp.errors import ConversionError
from scp.part10 import data_set_offset

STUDY = "1.2.826.0.1.3680043.9.7133.1"
UID_OF = "1.2.826.0.1.3680043.9.7133.9.{}".format


def _data_set(path: Path) -> bytes:
    return path.read_bytes()[data_set_offset(path):]


def _identifier(level="STUDY", **keys):
    identifier = Dataset()
    identifier.QueryRetrieveLevel = level
    for keyword, value in (keys or {"StudyInstanceUID": STUDY}).items():
        setattr(identifier, keyword, value)
    return identifier


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
            on_pending(assoc)
    assoc.release()
    return answers


def _counts(status):
    return tuple(
        status.get(f"NumberOf{word}Suboperations") for word in ("Remaining", "Completed", "Failed", "Warning")
    )


def test_move_sends_the_files_bytes(start_node, make_file, receive):
    receiver = receive()
    node = _node_for(start_node, receiver.port)
    files = {UID_OF(number): make_file(number) for number in range(1, 6)}
    for path in files.values():
        node.archive.ingest(path)
    answers = _move(node, _identifier(), msg_id=77, priority=1)
    assert receiver.stored == {uid: _data_set(path) for uid, path in files.items()}
    first, final = answers[0][0], answers[-1][0]
    assert (first.Status, _counts(first)) == (0xFF00, (5, 0, 0, 0))
    assert (final.Status, _counts(final)) == (0x0000, (None, 5, 0, 0))
    for request in receiver.requests:
        assert request.MoveOriginatorApplicationEntityTitle == "VIEWER"
        assert request.MoveOriginatorMessageID == 77
        assert request.Priority == 1


@pytest.mark.parametrize("entities", [[], [{"title": "RECEIVER", "rights": ["find"]}]])
def test_an_unknown_destination_is_refused(start_node, make_file, entities):
    node = start_node(entities=entities)
    node.archive.ingest(make_file(1))
    [(status, _)] = _move(node, _identifier())
    assert status.Status == 0xA801
    assert "RECEIVER" in status.ErrorComment


def test_a_closed_destination_fails_every_sub_operation(start_node, make_file):
    for_nobody = socket.socket()  # bound, so that nobody else has the port, but not listening
    for_nobody.bind(("127.0.0.1", 0))
    node = _node_for(start_node, for_nobody.getsockname()[1])
    for number in (1, 2):
        node.archive.ingest(make_file(number))
    status, identifier = _move(node, _identifier())[-1]
    for_nobody.close()
    assert (status.Status, _counts(status)) == (0xA702, (None, 0, 2, 0))
    assert status.ErrorComment
    assert sorted(identifier.FailedSOPInstanceUIDList) == [UID_OF(1), UID_OF(2)]


@pytest.mark.parametrize("model", [STUDY_ROOT_MOVE, STUDY_ROOT_GET])
def test_nothing_that_matches_is_a_success(start_node, receive, model):
    node = _node_for(start_node, receive().port)
    answers = _move(node, _identifier()) if model == STUDY_ROOT_MOVE else _get(node, _identifier())[0]
    [(status, _)] = answers
    assert (status.Status, _counts(status)) == (0x0000, (None, 0, 0, 0))


def test_the_rest_goes_on_after_a_failure(start_node, make_file, receive):
    receiver = receive(answer=lambda event: 0xA700 if event.request.AffectedSOPInstanceUID == UID_OF(2) else 0)
    node = _node_for(start_node, receiver.port)
    for number in range(1, 5):
        node.archive.ingest(make_file(number))
    status, identifier = _move(node, _identifier())[-1]
    assert (status.Status, _counts(status)) == (0xB000, (None, 3, 1, 0))
    assert identifier.FailedSOPInstanceUIDList == UID_OF(2)
    assert len(receiver.stored) == 3


def test_a_warning_of_the_destination_is_counted_as_one(start_node, make_file, receive):
    receiver = receive(answer=lambda _event: 0xB007)
    node = _node_for(start_node, receiver.port)
    node.archive.ingest(make_file(1))
    status, _ = _move(node, _identifier())[-1]
    assert (status.Status, _counts(status)) == (0xB000, (None, 0, 0, 1))


def test_a_class_that_the_destination_lacks_fails_alone(start_node, make_file, receive):
    receiver = receive()
    node = _node_for(start_node, receiver.port)
    node.archive.ingest(make_file(1))
    node.archive.ingest(make_file(2, SOPClassUID=MRImageStorage))
    status, identifier = _move(node, _identifier())[-1]
    assert (status.Status, _counts(status)) == (0xB000, (None, 1, 1, 0))
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
    status, _ = _move(node, _identifier(StudyInstanceUID=original.StudyInstanceUID))[-1]
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
    status, identifier = _move(node, _identifier())[-1]
    assert (status.Status, _counts(status)) == (0xB000, (None, 1, 1, 0))
    assert identifier.FailedSOPInstanceUIDList == UID_OF(3)


@pytest.mark.parametrize(
    ("name", "reason"), [("image_dfl.dcm", "inflates to more than 1000"), ("MR_small_RLE.dcm", "8192 bytes")]
)
def test_no_more_is_unpacked_for_a_conversion_than_fits_into_memory(archive, monkeypatch, name, reason):
    path = Path(get_testdata_file(name))
    archive.ingest(path)
    instance = archive.open_instance(pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID)
    assert conversion.converted(instance, ImplicitVRLittleEndian)
    monkeypatch.setattr(conversion, "_LARGEST_UNPACKED", 1000)
    with pytest.raises(ConversionError, match=reason):
        conversion.converted(instance, ImplicitVRLittleEndian)


@pytest.mark.slow
def test_more_contexts_than_an_association_has(start_node, make_file, receive):
    classes = sorted(uid for uid in STORAGE if uid_to_service_class(uid) is StorageServiceClass)[:140]
    assert len(classes) == 140
    receiver = receive([(uid, [ExplicitVRLittleEndian]) for uid in classes])
    node = _node_for(start_node, receiver.port)
    for number, uid in enumerate(classes, start=1):
        node.archive.ingest(make_file(number, SOPClassUID=uid))
    status, _ = _move(node, _identifier())[-1]
    assert (status.Status, _counts(status)) == (0x0000, (None, 140, 0, 0))
    assert receiver.associations > 1


def test_pending_goes_out_during_a_long_sub_operation(start_node, make_file, receive):
    told_again = threading.Event()
    pending = []

    def tell(_assoc):
        pending.append(1)
        if len(pending) > 1:
            told_again.set()

    receiver = receive(answer=lambda _event: 0x0000 if told_again.wait(30) else 0xA700)
    node = _node_for(start_node, receiver.port)
    node.archive.ingest(make_file(1))
    answers = _move(node, _identifier(), on_pending=tell)
    assert answers[-1][0].Status == 0x0000
    assert {_counts(status) for status, _ in answers[:-1]} == {(1, 0, 0, 0)}


def test_move_can_be_cancelled(start_node, make_file, receive):
    receiver = receive()
    node = _node_for(start_node, receiver.port)
    for number in range(1, 201):
        node.archive.ingest(make_file(number).read_bytes())
    sent = []

    def cancel(assoc):
        if not sent:
            sent.append(1)
            assoc.send_c_cancel(9, query_model=STUDY_ROOT_MOVE)

    status, _ = _move(node, _identifier(), msg_id=9, on_pending=cancel)[-1]
    remaining, completed, failed, warning = _counts(status)
    assert status.Status == 0xFE00
    assert remaining > 0
    assert completed == len(receiver.stored)
    assert remaining + completed + failed + warning == 200


@pytest.mark.parametrize(
    ("keys", "code"),
    [({"StudyInstanceUID": ""}, 0xA900), ({"PatientID": "P1"}, 0xA900), ({"StudyInstanceUID": "1.2.*"}, 0xA900)],
)
@pytest.mark.filterwarnings("ignore:.*VR UI")
def test_a_malformed_identifier_is_refused(start_node, make_file, receive, keys, code):
    node = _node_for(start_node, receive().port)
    node.archive.ingest(make_file(1))
    [(status, _)] = _move(node, _identifier(**keys))
    assert status.Status == code
    assert status.ErrorComment


def test_the_parent_has_to_be_the_right_one(start_node, make_file, receive):
    receiver = receive()
    node = _node_for(start_node, receiver.port)
    node.archive.ingest(make_file(1))
    keys = {"StudyInstanceUID": "1.2.3", "SeriesInstanceUID": "1.2.826.0.1.3680043.9.7133.2"}
    [(status, _)] = _move(node, _identifier("SERIES", **keys))
    assert (status.Status, _counts(status)) == (0x0000, (None, 0, 0, 0))
    assert not receiver.requests


def test_the_right_to_move_is_required(start_node, make_file):
    node = start_node(entities=[{"title": "VIEWER", "rights": ["find"]}])
    node.archive.ingest(make_file(1))
    [(status, _)] = _move(node, _identifier())
    assert status.Status == 0x0124


# C-GET


def _get(node, identifier, contexts=((CTImageStorage, ExplicitVRLittleEndian),), answer=0x0000):
    got: dict[str, bytes] = {}

    def keep(event):
        got[event.request.AffectedSOPInstanceUID] = event.request.DataSet.getvalue()
        return answer

    entity = AE("VIEWER")
    entity.add_requested_context(STUDY_ROOT_GET, ExplicitVRLittleEndian)
    for sop_class, syntax in contexts:
        entity.add_requested_context(sop_class, syntax)
    roles = [build_role(sop_class, scp_role=True) for sop_class, _ in contexts]
    assoc = entity.associate(
        "127.0.0.1", node.port, ae_title="THARSIS", ext_neg=roles, evt_handlers=[(evt.EVT_C_STORE, keep)]
    )
    answers = list(assoc.send_c_get(identifier, STUDY_ROOT_GET))
    assoc.release()
    return answers, got


def test_get_sends_the_files_bytes(start_node, make_file):
    node = start_node()
    files = {UID_OF(number): make_file(number) for number in range(1, 6)}
    for path in files.values():
        node.archive.ingest(path)
    answers, got = _get(node, _identifier())
    assert got == {uid: _data_set(path) for uid, path in files.items()}
    assert (answers[-1][0].Status, _counts(answers[-1][0])) == (0x0000, (None, 5, 0, 0))


def test_get_without_a_context_for_one_class_sends_the_rest(start_node, make_file):
    node = start_node()
    node.archive.ingest(make_file(1))
    node.archive.ingest(make_file(2, SOPClassUID=MRImageStorage))
    answers, got = _get(node, _identifier())
    status, identifier = answers[-1]
    assert (status.Status, _counts(status)) == (0xB000, (None, 1, 1, 0))
    assert identifier.FailedSOPInstanceUIDList == UID_OF(2)
    assert list(got) == [UID_OF(1)]


def test_get_converts_when_it_has_to(start_node):
    node = start_node()
    path = Path(get_testdata_file("rtdose_expb.dcm"))
    original = pydicom.dcmread(path)
    assert original.file_meta.TransferSyntaxUID == ExplicitVRBigEndian
    node.archive.ingest(path)
    identifier = _identifier(StudyInstanceUID=original.StudyInstanceUID)
    answers, got = _get(node, identifier, ((RTDoseStorage, ImplicitVRLittleEndian),))
    assert answers[-1][0].Status == 0x0000
    [data] = got.values()
    assert pydicom.filereader.read_dataset(BytesIO(data), True, True).DoseGridScaling == original.DoseGridScaling


def test_getscu(start_node, dcmtk, make_file, tmp_path):
    node, path = start_node(), make_file(1)
    node.archive.ingest(path)
    out = tmp_path / "out"
    out.mkdir()
    keys = ["-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={STUDY}"]
    dcmtk("getscu", "-S", "-B", "-aec", "THARSIS", "-od", out, *keys, "127.0.0.1", node.port)
    [got] = out.iterdir()
    assert pydicom.dcmread(got).PixelData == pydicom.dcmread(path).PixelData


@pytest.fixture
def storescp(dcmtk, tmp_path):
    """DCMTK's storescp on a free port, writing what it receives bit by bit."""
    dcmtk("storescp", "--version")
    folder = tmp_path / "storescp"
    folder.mkdir()
    for _ in range(10):
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        process = subprocess.Popen(["storescp", "-B", "+xa", "-aet", "STORESCP", "-od", str(folder), str(port)])
        try:
            if _comes_to_listen(process, port):
                yield folder, port
                return
        finally:
            process.terminate()
            process.wait()
    pytest.fail("storescp got none of ten ports")


def _comes_to_listen(process, port):
    """Wait until `process` itself listens on `port`; False when it ends instead, for somebody else has the port."""
    for _ in range(600):
        if _listens(process.pid, port):
            return True
        try:
            process.wait(0.05)
        except subprocess.TimeoutExpired:
            continue
        return False
    pytest.fail("storescp neither listens nor ends")


def _listens(pid, port):
    """Whether one of the sockets of the process listens on the TCP port."""
    try:
        own = {str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir()}
    except FileNotFoundError:  # it has just ended, or just closed a file
        return False
    lines = [line.split() for table in ("tcp", "tcp6") for line in Path(f"/proc/net/{table}").read_text().splitlines()]
    return any(
        line[3] == "0A" and int(line[1].rpartition(":")[2], 16) == port and f"socket:[{line[9]}]" in own
        for line in lines
        if line[0] != "sl"
    )


def test_movescu_to_storescp(start_node, dcmtk, make_file, storescp):
    folder, port = storescp
    node = start_node(entities=[{"title": "STORESCP", "host": "127.0.0.1", "port": port, "rights": []}])
    files = [make_file(1), make_file(2, transfer_syntax=ImplicitVRLittleEndian)]
    for path in files:
        node.archive.ingest(path)
    keys = ["-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={STUDY}"]
    output = dcmtk(
        "movescu", "-v", "-S", "-aec", "THARSIS", "-aem", "STORESCP", *keys, "127.0.0.1", node.port
    ).stdout
    assert "Final Move Response (Success)" in output
    got = sorted(_data_set(path) for path in folder.iterdir())
    assert got == sorted(_data_set(path) for path in files)
