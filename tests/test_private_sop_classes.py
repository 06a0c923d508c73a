"""SOP classes that no dictionary knows: stored for the AEs that the settings name, byte for byte, and given back."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
)
from pynetdicom import AE, build_role, evt

from config.identity import UID_ROOT
from scp import client
from scp.client import Requestor
from scp.contexts import STUDY_ROOT_FIND, STUDY_ROOT_GET, STUDY_ROOT_MOVE, VERIFICATION, is_private
from scp.part10 import data_set_offset
from scp.requestor import Peer

MARS = "1.3.6.1.4.1.99999.1.7"
PRIVATE_SYNTAX = "1.3.6.1.4.1.99999.2.1"
MPPS, WORKLIST, UPS_PUSH = "1.2.840.10008.3.1.2.3.3", "1.2.840.10008.5.1.4.31", "1.2.840.10008.5.1.4.34.6.1"
WORKSTATION = {"title": "MARS", "rights": ["store", "find", "move"], "private_sop_classes": True}
STUDY = "1.2.826.0.1.3680043.9.7133.1"


def _study():
    identifier = Dataset()
    identifier.QueryRetrieveLevel, identifier.StudyInstanceUID = "STUDY", STUDY
    return identifier


def _peer(node):
    return Peer("127.0.0.1", node.port, "THARSIS")


@pytest.mark.parametrize(
    ("uid", "private"),
    [
        (MARS, True),
        ("1.2.840.113619.4.27", True),
        ("1.2.840.10008.5.1.4.1.1.2", False),  # CT
        ("1.2.840.10008.5.1.4.1.1.9999", False),  # Storage of the standard, younger than the dictionaries
        (VERIFICATION, False),
        (STUDY_ROOT_FIND, False),
        (MPPS, False),
        (WORKLIST, False),
        (UPS_PUSH, False),
        ("1.2.840.10008.9.9.9", False),  # of the standard, unknown, and no Storage
        (f"{UID_ROOT}.1.1", False),  # the similarity query
        (f"{UID_ROOT}.1.99", False),
        ("1.2.840.10008.1.2.1", False),  # a transfer syntax
        ("1.3.6.1.4.1.x", False),
        ("", False),
    ],
)
def test_what_is_a_private_sop_class(uid, private):
    assert is_private(uid) == private


@pytest.mark.parametrize(("calling", "accepted"), [("MARS", {MARS}), ("OTHER", set()), ("UNKNOWN", set())])
def test_only_an_ae_of_the_settings_may_propose_them(start_node, calling, accepted):
    """And what the standard knows as something else than Storage is refused to everybody."""
    node = start_node(entities=[WORKSTATION, {"title": "OTHER", "rights": ["store"]}])
    entity = AE(calling)
    for uid in (MARS, MPPS, WORKLIST, UPS_PUSH, "1.2.840.10008.9.9.9", f"{UID_ROOT}.1.99"):
        entity.add_requested_context(uid, ImplicitVRLittleEndian)
    entity.add_requested_context(VERIFICATION)
    assoc = entity.associate("127.0.0.1", node.port, ae_title="THARSIS")
    assert {str(context.abstract_syntax) for context in assoc.accepted_contexts} == accepted | {VERIFICATION}
    assoc.release()


@pytest.mark.parametrize(
    ("proposed", "taken"),
    [
        ([JPEG2000Lossless], JPEG2000Lossless),
        ([RLELossless], RLELossless),
        ([ImplicitVRLittleEndian, ExplicitVRLittleEndian], ExplicitVRLittleEndian),
        ([PRIVATE_SYNTAX, ImplicitVRLittleEndian], ImplicitVRLittleEndian),
        ([PRIVATE_SYNTAX], None),  # how its bytes are to be read, nobody knows
    ],
)
def test_transfer_syntaxes_are_the_known_ones(start_node, proposed, taken):
    node = start_node(entities=[WORKSTATION])
    entity = AE("MARS")
    entity.add_requested_context(MARS, proposed)
    entity.add_requested_context(VERIFICATION)
    assoc = entity.associate("127.0.0.1", node.port, ae_title="THARSIS")
    [got] = [context.transfer_syntax[0] for context in assoc.accepted_contexts if context.abstract_syntax == MARS] or [
        None
    ]
    assert got == taken
    assoc.release()


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_such_an_object_is_stored_found_and_given_back_as_it_was(start_node, make_file, tmp_path, syntax):
    """C-STORE, C-FIND, C-GET and C-MOVE to a node that takes the class, the data set byte for byte."""
    receiver = start_node(aet="DEST", entities=[{**WORKSTATION, "title": "THARSIS"}])
    destination = {"title": "DEST", "host": "127.0.0.1", "port": receiver.port}
    node = start_node(entities=[WORKSTATION, destination])
    path = make_file(1, SOPClassUID=MARS, transfer_syntax=syntax)
    sent = path.read_bytes()[data_set_offset(path) :]
    me = Requestor("MARS")
    [result] = client.send(_peer(node), [path], me)
    assert result.status.is_success, result
    identifier = _study()
    identifier.SOPClassesInStudy = ""
    [match] = client.find(_peer(node), identifier, STUDY_ROOT_FIND, me)
    assert match.SOPClassesInStudy == MARS
    *_, last = client.get(_peer(node), _study(), tmp_path / "got", STUDY_ROOT_GET, me, objects=[(MARS, str(syntax))])
    assert last.counts.completed == 1, last
    [got] = (tmp_path / "got").glob("*.dcm")
    assert got.read_bytes()[data_set_offset(got) :] == sent
    *_, last = client.move(_peer(node), _study(), "DEST", STUDY_ROOT_MOVE, me)
    assert last.status.is_success, last
    [there] = Path(receiver.settings.archive.data).glob("files/*/*/*.dcm")
    assert there.read_bytes()[data_set_offset(there) :] == sent


def test_a_destination_that_does_not_take_the_class_fails_that_object_alone(start_node, make_file):
    receiver = start_node(aet="DEST")
    destination = {"title": "DEST", "host": "127.0.0.1", "port": receiver.port}
    node = start_node(entities=[WORKSTATION, destination])
    me = Requestor("MARS")
    results = list(client.send(_peer(node), [make_file(1, SOPClassUID=MARS), make_file(2)], me))
    assert all(result.status.is_success for result in results), results
    *_, last = client.move(_peer(node), _study(), "DEST", STUDY_ROOT_MOVE, me)
    assert last.status.code == 0xB000
    assert (last.counts.completed, last.counts.failed) == (1, 1)


def test_a_query_on_such_a_context_is_refused(start_node):
    """It may be a class of the peer's own that is no Storage: it is not served with C-FIND."""
    node = start_node(entities=[WORKSTATION])
    entity = AE("MARS")
    entity.add_requested_context(MARS, ImplicitVRLittleEndian)
    assoc = entity.associate("127.0.0.1", node.port, ae_title="THARSIS")
    [(status, _)] = list(assoc.send_c_find(_study(), MARS))
    assert status.Status == 0x0211
    assoc.release()


def test_an_ae_that_asks_with_get_has_to_be_allowed_as_well(start_node, make_file):
    node = start_node(entities=[WORKSTATION])
    [result] = client.send(_peer(node), [make_file(1, SOPClassUID=MARS)], Requestor("MARS"))
    assert result.is_stored
    got = []
    for calling in ("MARS", "OTHER"):
        entity = AE(calling)
        entity.add_requested_context(STUDY_ROOT_GET)
        entity.add_requested_context(MARS, ExplicitVRLittleEndian)
        assoc = entity.associate(
            "127.0.0.1", node.port, ae_title="THARSIS", ext_neg=[build_role(MARS, scp_role=True)],
            evt_handlers=[(evt.EVT_C_STORE, lambda event: got.append(event.request.AffectedSOPClassUID) or 0)],
        )  # fmt: skip
        *_, (last, _) = assoc.send_c_get(_study(), STUDY_ROOT_GET)
        assert last.Status == (0 if calling == "MARS" else 0xA702)
        assoc.release()
    assert got == [MARS]
