"""The node as SCU of storage commitment: the request, and the ways in which a report comes (PS3.4 J.3)."""

from __future__ import annotations

import json
import threading

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MediaStorageDirectoryStorage
from pynetdicom import AE, build_role, evt
from requestors import make_steady

from index.commitments import Reference
from scp.client import RequestFailed, Requestor
from scp.commitment import SOP_INSTANCE_UID
from scp.commitment_client import NotReported, commit
from scp.contexts import STORAGE_COMMITMENT
from scp.errors import AssociationLost, PeerRejected, PeerUnreachable
from scp.requestor import Peer

ME = Requestor("ME")
REFERENCES = [Reference(CTImageStorage, "1.2.3"), Reference(CTImageStorage, "1.2.4")]


class Pacs:
    """A peer that commits to everything but the last instance; `how` says on which association it reports."""

    def __init__(self, how, port=0, status=0):
        self.how, self.port_of_scu, self.status = how, port, status
        self.requests = []
        self.outcomes = []
        self.reporting = None
        entity = AE("PACS")
        entity.add_supported_context(STORAGE_COMMITMENT, ExplicitVRLittleEndian)
        handlers = [
            (evt.EVT_CONN_OPEN, make_steady), (evt.EVT_N_ACTION, self._asked), (evt.EVT_RELEASED, self._released),
        ]  # fmt: skip
        self._server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
        self.peer = Peer("127.0.0.1", self._server.server_address[1], "PACS")

    def _asked(self, event):
        self.requests.append(event.action_information)
        if self.how == "same":
            self.reporting = threading.Thread(target=self._report, args=(event.assoc,))
            self.reporting.start()
        elif self.how == "abort":
            threading.Thread(target=event.assoc.abort).start()
        return self.status, None

    def _released(self, event):
        if self.how == "new":
            self.reporting = threading.Thread(target=self._call_back)
            self.reporting.start()

    def _call_back(self):
        entity = AE("PACS")
        entity.add_requested_context(STORAGE_COMMITMENT, ExplicitVRLittleEndian)
        role = build_role(STORAGE_COMMITMENT, scp_role=True)
        assoc = entity.associate("127.0.0.1", self.port_of_scu, ae_title="ME", ext_neg=[role])
        self._report(assoc)
        assoc.release()

    def _report(self, assoc):
        asked = self.requests[-1]
        other = Dataset()
        other.TransactionUID = "1.2.3.4"
        information = Dataset()
        information.TransactionUID = asked.TransactionUID
        *information.ReferencedSOPSequence, last = asked.ReferencedSOPSequence
        last.FailureReason = 0x0110
        information.FailedSOPSequence = [last]
        for event_type, told in ((1, other), (2, information)):
            status, _ = assoc.send_n_event_report(told, event_type, STORAGE_COMMITMENT, SOP_INSTANCE_UID)
            self.outcomes.append(status.Status)

    def close(self):
        if self.reporting is not None:
            self.reporting.join(300)
        self._server.shutdown()


@pytest.fixture
def start_pacs():
    started = []

    def start(*arguments, **named):
        started.append(Pacs(*arguments, **named))
        return started[-1]

    yield start
    for pacs in started:
        pacs.close()


@pytest.mark.parametrize("how", ["same", "new"])
def test_the_report_comes_on_the_same_association_or_to_our_port(start_pacs, reserved_port, how):
    pacs = start_pacs(how, reserved_port)
    report = commit(pacs.peer, REFERENCES, ME, wait_s=300, listen_port=reserved_port if how == "new" else None)
    assert report.committed == (REFERENCES[0],)
    assert report.failures == {REFERENCES[1]: 0x0110}
    pacs.reporting.join(300)
    assert pacs.outcomes == [0, 0]


@pytest.mark.parametrize(
    ("how", "status", "error", "words"),
    [
        ("never", 0, NotReported, "did not report within 0.3 s"),
        ("never", 0x0124, RequestFailed, "0124"),
        ("abort", 0, AssociationLost, "PACS"),
    ],
)
def test_what_goes_wrong_is_one_sentence(start_pacs, how, status, error, words):
    pacs = start_pacs(how, status=status)
    with pytest.raises(error, match=words):
        commit(pacs.peer, REFERENCES, ME, wait_s=0.3 if how == "never" else 300)


def test_peers_that_cannot_be_asked(start_node, reserved_port):
    with pytest.raises(PeerUnreachable):
        commit(Peer("127.0.0.1", reserved_port, "PACS"), REFERENCES, ME, wait_s=1)
    node = start_node(check_called_aet=True)
    with pytest.raises(PeerRejected, match="called ae title"):
        commit(Peer("127.0.0.1", node.port, "OTHER"), REFERENCES, ME, wait_s=1)


@pytest.mark.slow
def test_the_command_line_shows_what_is_safe(start_node, make_file, tharsis, reserved_port):
    """Sent with --commit, then a bit of one file is altered on the disk: `commit` finds it."""
    node = start_node()
    files = [make_file(number) for number in (1, 2)]
    peer = f"THARSIS@127.0.0.1:{node.port}"
    sent = tharsis("send", *files, "--peer", peer, "--commit")
    assert sent.returncode == 0, sent.stderr
    assert "THARSIS answers for 2 of 2 instances" in sent.stdout
    uid = "1.2.826.0.1.3680043.9.7133.9.1"
    path = node.archive.open_instance(uid).path
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    asked = tharsis("commit", *files, "--peer", peer, "--json")
    assert asked.returncode == 1
    told = {item["sop_instance_uid"]: item for item in json.loads(asked.stdout)}
    assert (told[uid]["safe"], told[uid]["reason"][:4]) == (False, "0110")
    assert [item["safe"] for item in told.values()].count(True) == 1
    assert tharsis("send", *files, "--peer", peer, "--listen", reserved_port).returncode == 2


@pytest.mark.slow
def test_what_in_a_folder_is_no_object_is_passed_over(start_node, make_file, make_dataset, tharsis, tmp_path):
    """A licence and a DICOMDIR are none of the peer's business, unless somebody names them; a broken object is."""
    node = start_node()
    peer = f"THARSIS@127.0.0.1:{node.port}"
    folder = tmp_path / "study"
    folder.mkdir()
    file = make_file(1).rename(folder / "1.dcm")
    licence = folder / "LICENSE"
    licence.write_text("Do what you like.")
    assert tharsis("send", file, "--peer", peer).returncode == 0
    asked = tharsis("commit", folder, "--peer", peer)
    assert asked.returncode == 0, asked.stdout
    assert "THARSIS answers for 1 of 1 instances" in asked.stdout
    assert "1 file that is no DICOM object was passed over" in asked.stdout
    assert "LICENSE" not in asked.stdout
    directory = make_dataset(2, SOPClassUID=MediaStorageDirectoryStorage)
    directory.save_as(folder / "DICOMDIR", enforce_file_format=True)
    asked = tharsis("commit", folder, "--peer", peer)
    assert asked.returncode == 0, asked.stdout
    assert "2 files that are no DICOM objects were passed over" in asked.stdout
    asked = tharsis("commit", folder, "--peer", peer, "--json")
    assert [item["file"] for item in json.loads(asked.stdout)] == [str(file)]
    assert asked.stderr.splitlines()[-1] == "2 files that are no DICOM objects were passed over"
    named = tharsis("commit", file, licence, "--peer", peer, "--json")
    assert named.returncode == 1
    assert [item["file"] for item in json.loads(named.stdout) if not item["safe"]] == [str(licence)]
    (folder / "broken.dcm").write_bytes(file.read_bytes()[:140])
    asked = tharsis("commit", folder, "--peer", peer)
    assert asked.returncode == 1
    assert "broken.dcm" in asked.stdout
    only = tmp_path / "only"
    only.mkdir()
    licence.rename(only / "LICENSE")
    asked = tharsis("commit", only, "--peer", peer)
    assert asked.returncode == 1
    assert "1 file that is no DICOM object was passed over" in asked.stdout
