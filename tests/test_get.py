"""C-GET with real peers: what arrives, and what is counted."""

from __future__ import annotations

import struct
from functools import partial
from io import BytesIO
from pathlib import Path

import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.uid import (
    CTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MRImageStorage,
    RTDoseStorage,
)
from pynetdicom import AE, build_role, evt
from pynetdicom.dimse_messages import C_GET_RQ
from pynetdicom.dimse_primitives import C_GET
from pynetdicom.dsutils import encode
from pynetdicom.presentation import build_context
from raw_peer import answer, associated, message_pdus
from retrieved import UID_OF, counts, data_set, request_for
from scripted_peer import stored

from scp.contexts import STUDY_ROOT_GET


def _get(node, identifier, contexts=((CTImageStorage, ExplicitVRLittleEndian),), answer=None, on_pending=None):
    got: dict[str, bytes] = {}

    def keep(event):
        got[event.request.AffectedSOPInstanceUID] = event.request.DataSet.getvalue()
        return answer(event) if answer is not None else 0x0000

    entity = AE("VIEWER")
    entity.add_requested_context(STUDY_ROOT_GET, ExplicitVRLittleEndian)
    for sop_class, syntax in contexts:
        entity.add_requested_context(sop_class, syntax)
    roles = [build_role(sop_class, scp_role=True) for sop_class, _ in contexts]
    assoc = entity.associate(
        "127.0.0.1", node.port, ae_title="THARSIS", ext_neg=roles, evt_handlers=[(evt.EVT_C_STORE, keep)]
    )
    answers = []
    for reply in assoc.send_c_get(identifier, STUDY_ROOT_GET, msg_id=9):
        answers.append(reply)
        if on_pending is not None:
            on_pending(assoc)
    assoc.release()
    return answers, got


def test_get_sends_the_files_bytes(start_node, make_file):
    node = start_node()
    files = {UID_OF(number): make_file(number) for number in range(1, 6)}
    for path in files.values():
        node.archive.ingest(path)
    answers, got = _get(node, request_for())
    assert got == {uid: data_set(path) for uid, path in files.items()}
    assert (answers[-1][0].Status, counts(answers[-1][0])) == (0x0000, (None, 5, 0, 0))


def test_nothing_that_matches_is_a_success(start_node):
    [(status, _)], _ = _get(start_node(), request_for())
    assert (status.Status, counts(status)) == (0x0000, (None, 0, 0, 0))


def test_get_without_a_context_for_one_class_sends_the_rest(start_node, make_file):
    node = start_node()
    node.archive.ingest(make_file(1))
    node.archive.ingest(make_file(2, SOPClassUID=MRImageStorage))
    answers, got = _get(node, request_for())
    status, identifier = answers[-1]
    assert (status.Status, counts(status)) == (0xB000, (None, 1, 1, 0))
    assert identifier.FailedSOPInstanceUIDList == UID_OF(2)
    assert list(got) == [UID_OF(1)]


def test_get_converts_when_it_has_to(start_node):
    node = start_node()
    path = Path(get_testdata_file("rtdose_expb.dcm"))
    original = pydicom.dcmread(path)
    assert original.file_meta.TransferSyntaxUID == ExplicitVRBigEndian
    node.archive.ingest(path)
    identifier = request_for(StudyInstanceUID=original.StudyInstanceUID)
    answers, got = _get(node, identifier, ((RTDoseStorage, ImplicitVRLittleEndian),))
    assert answers[-1][0].Status == 0x0000
    [data] = got.values()
    assert pydicom.filereader.read_dataset(BytesIO(data), True, True).DoseGridScaling == original.DoseGridScaling


@pytest.mark.parametrize(("answer", "told"), [(0xA700, (None, 2, 1, 0)), (0xB000, (None, 2, 0, 1))])
def test_a_failure_and_a_warning_are_counted_and_the_rest_goes_on(start_node, make_file, answer, told):
    node = start_node()
    for number in (1, 2, 3):
        node.archive.ingest(make_file(number))
    answers, got = _get(
        node, request_for(), answer=lambda event: answer if event.request.AffectedSOPInstanceUID == UID_OF(2) else 0
    )
    status, identifier = answers[-1]
    assert (status.Status, counts(status)) == (0xB000, told)
    assert len(got) == 3
    failed = (identifier or Dataset()).get("FailedSOPInstanceUIDList")
    assert failed == (UID_OF(2) if answer == 0xA700 else None)


def test_a_peer_that_answers_twice_does_not_answer_for_the_next_object(start_node, make_file):
    """The second answer to the first object comes when the second, which it refuses, is under way."""
    node = start_node()
    for number in (1, 2):
        node.archive.ingest(make_file(number))
    request = C_GET()
    request.MessageID, request.Priority, request.AffectedSOPClassUID = 9, 0, STUDY_ROOT_GET
    request.Identifier = BytesIO(encode(request_for(), False, True))
    contexts = [build_context(uid, ExplicitVRLittleEndian) for uid in (STUDY_ROOT_GET, CTImageStorage)]
    connection = associated(node, contexts=contexts, as_scp=[CTImageStorage])
    connection.sendall(message_pdus(C_GET_RQ(), request))
    pdus = iter(partial(answer, connection), b"")
    for answered in (stored(0, 1), stored(0, 1) + stored(0xA700, 2)):
        next(pdu for pdu in pdus if pdu[11] & 0b11 == 0b10)  # the end of a data set
        connection.sendall(answered)
    last = next(pdu for pdu in pdus if struct.pack("<HHLH", 0, 0x0900, 2, 0xB000) in pdu)
    for element, count in ((0x1021, 1), (0x1022, 1), (0x1023, 0)):
        assert struct.pack("<HHLH", 0, element, 2, count) in last
    connection.close()


def test_get_can_be_cancelled(start_node, make_file):
    """PS3.4 C.4.3.3.1.2: in FE00 the remaining are counted too."""
    node = start_node()
    for number in range(1, 101):
        node.archive.ingest(make_file(number).read_bytes())
    sent = []

    def cancel(assoc):
        if not sent:
            sent.append(1)
            assoc.send_c_cancel(9, query_model=STUDY_ROOT_GET)

    answers, got = _get(node, request_for(), on_pending=cancel)
    remaining, completed, failed, warning = counts(answers[-1][0])
    assert answers[-1][0].Status == 0xFE00
    assert remaining > 0
    assert completed == len(got)
    assert remaining + completed + failed + warning == 100
