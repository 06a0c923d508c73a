"""Storage Commitment Push Model as SCP: what is asked, what is found on the disk, what is reported (PS3.4 J.3)."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MRImageStorage,
)
from pynetdicom import AE, evt
from pynetdicom.pdu_primitives import SCP_SCU_RoleSelectionNegotiation

from config.application_entities import Right
from index import commitments
from index.changes import ChangeKind, since
from index.commitments import Reference
from index.errors import OutOfSpace
from scp.askers import Askers
from scp.caller import Caller
from scp.commitment import SOP_INSTANCE_UID, commit
from scp.contexts import STORAGE_COMMITMENT
from scp.errors import InvalidArgument
from scp.messages import ActionRequest

UNSTORED = "1.2.826.0.1.3680043.9.7133.9.404"
PRIVATE_CLASS = "1.3.6.1.4.1.9999.1"


REPORT_ANSWER = bytes.fromhex("0000 0001 0200 0000 0081")
"""Command Field of an N-EVENT-REPORT-RSP."""


class Scu:
    """A peer that asks for storage commitment and takes the reports on the same association."""

    def __init__(self, port, *, title="MODALITY", called="THARSIS", syntaxes=(ExplicitVRLittleEndian,), role=()):
        self.reports = []
        self.came = threading.Event()
        self.answered = threading.Semaphore(0)
        entity = AE(title)
        entity.add_requested_context(STORAGE_COMMITMENT, list(syntaxes))
        self.commands = []
        handlers = [
            (evt.EVT_N_EVENT_REPORT, self._take),
            (evt.EVT_DATA_SENT, self._sent),
            (evt.EVT_DIMSE_RECV, lambda event: self.commands.append(event.message.command_set)),
        ]
        self.assoc = entity.associate("127.0.0.1", port, ae_title=called, ext_neg=list(role), evt_handlers=handlers)

    def _take(self, event):
        self.reports.append((event.event_type, event.event_information))
        self.came.set()
        return 0, None

    def _sent(self, event):
        if REPORT_ANSWER in event.data:
            self.answered.release()

    def ask(self, information, *, action=1, instance=SOP_INSTANCE_UID):
        status, _ = self.assoc.send_n_action(information, action, STORAGE_COMMITMENT, instance)
        return status

    @property
    def offending(self):
        """Offending Element of the last message; pynetdicom leaves it out of its status."""
        return self.commands[-1].OffendingElement

    def report(self):
        assert self.came.wait(300), "no report came"
        return self.reports[-1]

    def __enter__(self):
        assert self.assoc.is_established
        return self

    def __exit__(self, *_):
        for _report in self.reports:  # pynetdicom answers in another thread, and stumbles when the release is faster
            self.answered.acquire(timeout=60)
        if self.assoc.is_established:
            self.assoc.release()


def request(*references, uid="1.2.3.4.5"):
    information = Dataset()
    if uid is not None:
        information.TransactionUID = uid
    items = []
    for sop_class_uid, sop_instance_uid in references:
        item = Dataset()
        if sop_class_uid is not None:
            item.ReferencedSOPClassUID = sop_class_uid
        if sop_instance_uid is not None:
            item.ReferencedSOPInstanceUID = sop_instance_uid
        items.append(item)
    information.ReferencedSOPSequence = items
    return information


def failures(information):
    return {str(item.ReferencedSOPInstanceUID): int(item.FailureReason) for item in information.FailedSOPSequence}


@pytest.fixture
def stored(start_node, make_instance):
    """A node with three instances, and their references."""
    node = start_node()
    uids = [node.archive.ingest(make_instance(number), source_aet="MODALITY").sop_instance_uid for number in (1, 2, 3)]
    return node, [(CTImageStorage, uid) for uid in uids]


def test_what_is_whole_on_the_disk_is_committed(stored):
    node, references = stored
    with Scu(node.port) as scu:
        answer = scu.ask(request(*references))
        assert answer.Status == 0
        event_type, information = scu.report()
    assert event_type == 1
    assert information.TransactionUID == "1.2.3.4.5"
    assert information.RetrieveAETitle == "THARSIS"
    told = [(item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID) for item in information.ReferencedSOPSequence]
    assert told == references
    assert "FailedSOPSequence" not in information


@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian], ids=lambda uid: uid.name
)
def test_request_and_report_in_every_uncompressed_transfer_syntax(stored, syntax):
    node, references = stored
    with Scu(node.port, syntaxes=[syntax]) as scu:
        assert scu.ask(request(*references)).Status == 0
        event_type, information = scu.report()
    assert (event_type, len(information.ReferencedSOPSequence)) == (1, 3)


def alter(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("spoil", "change"),
    [(alter, ChangeKind.ALTERED), (lambda path: path.write_bytes(path.read_bytes()[:-2]), ChangeKind.ALTERED),
     (lambda path: path.unlink(), ChangeKind.MISSING)],
    ids=["one bit", "shortened", "gone"],
)  # fmt: skip
def test_a_file_that_is_not_what_was_received_is_reported_with_0110(stored, spoil, change):
    node, references = stored
    spoil(node.archive.open_instance(references[1][1]).path)
    with Scu(node.port) as scu:
        assert scu.ask(request(*references)).Status == 0
        event_type, information = scu.report()
    assert event_type == 2
    assert failures(information) == {references[1][1]: 0x0110}
    assert [item.ReferencedSOPInstanceUID for item in information.ReferencedSOPSequence] == [
        references[0][1], references[2][1]
    ]  # fmt: skip
    assert information.RetrieveAETitle == "THARSIS"
    assert [(each.kind, each.uid) for each in since(node.archive.database)][-1] == (change, references[1][1])


@pytest.mark.parametrize(
    ("reference", "reason"),
    [
        ((CTImageStorage, UNSTORED), 0x0112),
        ((PRIVATE_CLASS, UNSTORED), 0x0122),
        ((MRImageStorage, "1.2.826.0.1.3680043.9.7133.9.1"), 0x0119),
    ],
)
def test_failure_reasons(stored, reference, reason):
    """PS3.3 C.14.1.1; with nothing committed there is neither Referenced SOP Sequence nor Retrieve AE Title."""
    node, _ = stored
    with Scu(node.port) as scu:
        assert scu.ask(request(reference)).Status == 0
        event_type, information = scu.report()
    assert event_type == 2
    assert failures(information) == {reference[1]: reason}
    assert "ReferencedSOPSequence" not in information
    assert "RetrieveAETitle" not in information


CT1 = (CTImageStorage, "1.2.826.0.1.3680043.9.7133.9.1")


@pytest.mark.parametrize(
    ("information", "told", "status", "offending", "words"),
    [
        (request(CT1, uid=None), {}, 0x0115, 0x00081195, "TransactionUID"),
        (request(CT1, uid=""), {}, 0x0115, 0x00081195, "TransactionUID"),
        (request(), {}, 0x0115, 0x00081199, "Sequence"),
        (request((None, CT1[1])), {}, 0x0115, 0x00081150, "ReferencedSOPClassUID"),
        (request(CT1, (CT1[0], None)), {}, 0x0115, 0x00081155, "ReferencedSOPInstanceUID"),
        (request(CT1, (CT1[0], ["1.2", "1.3"])), {}, 0x0115, 0x00081155, "single"),
        (None, {}, 0x0115, 0x00081195, "TransactionUID"),
        (request(CT1), {"action": 2}, 0x0123, 0x00001008, "2"),
        (request(CT1), {"instance": "1.2.3"}, 0x0112, 0x00001001, SOP_INSTANCE_UID),
    ],
    ids=["no transaction", "empty transaction", "no items", "no class", "no instance", "two UIDs", "nothing at all",
         "another action", "another SOP instance"],
)  # fmt: skip
def test_what_is_wrong_with_a_request_is_told(start_node, information, told, status, offending, words):
    """PS3.7 10.1.4.1.10: the request is refused, nothing is kept of it, and the association goes on."""
    node = start_node()
    with Scu(node.port) as scu:
        answer = scu.ask(information, **told)
        assert answer.Status == status
        assert scu.offending == offending
        assert words in answer.ErrorComment
        assert len(answer.ErrorComment) <= 64
        assert node.archive.jobs.recent() == []
        assert scu.ask(request(CT1)).Status == 0


@pytest.mark.parametrize(
    ("told", "status"), [({"title": "GUEST"}, 0x0124), ({"called": "THARSIS_SIM"}, 0x0122)], ids=["rights", "similar"]
)
def test_who_may_not_store_gets_no_commitment(start_node, told, status):
    node = start_node(entities=[{"title": "GUEST", "rights": ["find", "move"]}])
    with Scu(node.port, **told) as scu:
        answer = scu.ask(request(CT1))
    assert answer.Status == status
    assert answer.ErrorComment


def test_the_response_names_instance_and_action(start_node):
    """PS3.7 table 10.3-8: Affected SOP Class and Instance UID, Action Type ID."""
    node = start_node()
    with Scu(node.port) as scu:
        scu.ask(request())
        [command] = scu.commands
    assert (command.AffectedSOPClassUID, command.AffectedSOPInstanceUID) == (STORAGE_COMMITMENT, SOP_INSTANCE_UID)
    assert command.ActionTypeID == 1


def test_asking_again_is_answered_again(stored):
    """The requestor may have missed the report: the same request is checked and reported anew."""
    node, references = stored
    with Scu(node.port) as scu:
        assert scu.ask(request(*references)).Status == 0
        assert scu.report()[0] == 1
    alter(node.archive.open_instance(references[0][1]).path)
    with Scu(node.port) as scu:
        assert scu.ask(request(*references)).Status == 0
        assert scu.report()[0] == 2


def test_a_request_that_is_refused_does_not_take_the_report_of_another(archive):
    """It goes to the association on which it was asked for, not to the one that used its Transaction UID again."""
    askers, caller = Askers(), Caller("MODALITY", "THARSIS", "127.0.0.1", frozenset({Right.STORE}))
    first, second = SimpleNamespace(is_established=True), SimpleNamespace(is_established=True)

    def action(association, *references):
        told = ActionRequest(STORAGE_COMMITMENT, SOP_INSTANCE_UID, 1, request(*references), association)
        return commit(archive, caller, told, askers)

    action(first, CT1)
    with pytest.raises(InvalidArgument, match="used for other instances"):
        action(second, (CTImageStorage, UNSTORED))
    assert askers.association("MODALITY", "1.2.3.4.5") is first
    action(second, CT1)
    assert askers.association("MODALITY", "1.2.3.4.5") is second


def test_asking_again_before_the_report_is_one_request(archive):
    """Nobody reports here: what is queued stays one job, and is due at once."""
    once = [Reference(CTImageStorage, UNSTORED)]
    assert commitments.ask(archive, "A", "1.2", once, address="")
    [job] = archive.jobs.recent()
    assert commitments.ask(archive, "A", "1.2", once, address="")
    assert [each.id for each in archive.jobs.recent()] == [job.id]
    running = archive.jobs.claim("w", claim_s=60, max_attempts=5)
    assert commitments.ask(archive, "A", "1.2", once, address="")
    assert [each.id for each in archive.jobs.recent()] == [running.id]
    assert commitments.ask(archive, "B", "1.2", once, address=""), "Transaction UIDs of two AEs are not compared"


def test_a_transaction_uid_that_was_used_for_something_else_is_refused(stored):
    node, references = stored
    with Scu(node.port) as scu:
        assert scu.ask(request(*references)).Status == 0
        answer = scu.ask(request(references[0]))
        assert answer.Status == 0x0115
        assert len(scu.report()[1].ReferencedSOPSequence) == 3


@pytest.mark.parametrize(("scu_role", "scp_role"), [(True, False), (True, True)])
def test_the_requestor_may_say_that_it_is_the_scu(stored, scu_role, scp_role):
    """PS3.7 D.3.3.4: roles that are proposed anyway change nothing."""
    node, references = stored
    role = SCP_SCU_RoleSelectionNegotiation()
    role.sop_class_uid, role.scu_role, role.scp_role = STORAGE_COMMITMENT, scu_role, scp_role
    with Scu(node.port, role=[role]) as scu:
        assert scu.ask(request(*references)).Status == 0
        assert scu.report()[0] == 1


def test_requests_that_were_reported_are_forgotten_after_a_while(archive):
    commitments.ask(archive, "A", "1.2", [Reference(CTImageStorage, UNSTORED)], address="")
    assert commitments.forget(archive, -1) == 0, "its job is still queued"
    archive.jobs.done(archive.jobs.claim("w", claim_s=60, max_attempts=5))
    assert commitments.forget(archive, 3600) == 0
    assert commitments.forget(archive, -1) == 1
    assert commitments.get(archive, "A", "1.2") is None


def test_an_instance_that_is_replaced_while_it_is_read_is_judged_by_its_new_file(tmp_path, make_instance, monkeypatch):
    from index.archive import Archive

    archive = Archive(tmp_path / "replacing", overwrite="always")
    uid = archive.ingest(make_instance(1)).sop_instance_uid
    examine = commitments.examine

    def replace_then_examine(root, file, **told):
        monkeypatch.setattr(commitments, "examine", examine)
        archive.ingest(make_instance(1, ImageComments="new"))
        return examine(root, file, **told)

    monkeypatch.setattr(commitments, "examine", replace_then_examine)
    found = commitments.check(
        archive, [Reference(CTImageStorage, uid)], is_supported=bool, on_progress=lambda done: None
    )
    assert found == {}


def test_who_may_hear_of_its_own_hears_of_its_duplicates_too(archive, make_instance):
    for title in ("A", "", "AB"):
        uid = archive.ingest(make_instance(1), source_aet=title).sop_instance_uid
    reference = Reference(CTImageStorage, uid)

    def found(title):
        return commitments.check(
            archive, [reference], is_supported=bool, on_progress=lambda done: None, only_from=title
        )

    assert found("A") == found("AB") == found("") == {}
    assert found("B") == {reference: commitments.FailureReason.NO_SUCH_INSTANCE}


@pytest.mark.slow
def test_ten_thousand_references(stored):
    node, references = stored
    many = references + [(CTImageStorage, f"1.2.826.0.1.3680043.9.7133.77.{number}") for number in range(10_000)]
    with Scu(node.port) as scu:
        assert scu.ask(request(*many)).Status == 0
        event_type, information = scu.report()
    assert event_type == 2
    assert len(information.ReferencedSOPSequence) == 3
    assert len(information.FailedSOPSequence) == 10_000


def test_other_operations_are_none_of_this_sop_class(start_node):
    """PS3.7 10.1.2: N-GET of the well-known instance is an unrecognized operation."""
    node = start_node()
    with Scu(node.port) as scu:
        status, _ = scu.assoc.send_n_get([0x00081195], STORAGE_COMMITMENT, SOP_INSTANCE_UID)
        assert status.Status == 0x0211
        assert scu.ask(request(CT1)).Status == 0


def test_a_full_disk_is_a_resource_limitation(start_node, monkeypatch):
    node = start_node()

    def full(*_, **__):
        raise OutOfSpace("the disk is full")

    monkeypatch.setattr(commitments, "ask", full)
    with Scu(node.port) as scu:
        assert scu.ask(request(CT1)).Status == 0x0213
