"""SOP classes and transfer syntaxes as data."""

from __future__ import annotations

import pytest
from pydicom.uid import UID_dictionary

from scp.contexts import (
    MOST_CONTEXTS,
    PATIENT_ROOT_FIND,
    QUERY_RETRIEVE,
    SIMILARITY_FIND,
    STORAGE,
    TRANSFER_SYNTAXES,
    UNCOMPRESSED,
    VERIFICATION,
    Operation,
    acceptable,
    is_storage,
    operation_of,
    storage_proposals,
)

CT = "1.2.840.10008.5.1.4.1.1.2"
IMPLICIT, EXPLICIT = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"
BIG_ENDIAN, DEFLATED = "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"
JPEG, J2K = "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.90"


def test_every_storage_class_that_pydicom_names_is_stored():
    named = {
        uid
        for uid, (name, kind, *_) in UID_dictionary.items()
        if kind == "SOP Class" and name.removesuffix(" SOP Class").removesuffix(" (Retired)").endswith("Storage")
    }
    assert len(named) > 150
    assert named <= STORAGE


@pytest.mark.parametrize(
    ("uid", "operation"),
    [
        (CT, Operation.STORE),
        ("1.2.840.10008.5.1.4.1.1.66.7", Operation.STORE),  # Label Map Segmentation: younger than pydicom's names
        ("1.2.840.10008.5.1.4.1.1.9999.1", Operation.STORE),  # a standard one that no dictionary has yet
        ("1.2.840.10008.5.1.1.30", Operation.STORE),  # retired
        (VERIFICATION, Operation.ECHO),
        (PATIENT_ROOT_FIND, Operation.FIND),
        (SIMILARITY_FIND, Operation.FIND),
        ("1.2.840.10008.1.20.1", Operation.ACTION),  # Storage Commitment Push Model
        ("1.2.840.10008.1.20.2", None),  # Storage Commitment Pull Model, retired
        ("1.2.840.10008.5.1.4.1.1.201.2", None),  # Inventory - FIND, in the middle of the storage UIDs
        ("1.2.840.10008.5.1.4.31", None),  # Modality Worklist
        ("1.3.6.1.4.1.9999.1", None),  # private
    ],
)
def test_operation_of_a_sop_class(uid, operation):
    assert operation_of(uid) is operation


def test_every_transfer_syntax_of_pydicom_is_taken_for_storage():
    assert {IMPLICIT, EXPLICIT, BIG_ENDIAN, DEFLATED, JPEG, J2K} <= set(TRANSFER_SYNTAXES)
    assert len(TRANSFER_SYNTAXES) >= 60
    for syntax in TRANSFER_SYNTAXES:
        assert acceptable(CT, [syntax], to_send=False) == [syntax]


@pytest.mark.parametrize(
    ("uid", "proposed", "to_send", "accepted"),
    [
        (CT, [JPEG, EXPLICIT], False, [JPEG, EXPLICIT]),
        (CT, [IMPLICIT, EXPLICIT], False, [EXPLICIT, IMPLICIT]),
        (CT, [IMPLICIT, JPEG, EXPLICIT], False, [EXPLICIT, IMPLICIT, JPEG]),
        (CT, [EXPLICIT, JPEG, IMPLICIT], False, [EXPLICIT, JPEG, IMPLICIT]),
        (CT, [JPEG, IMPLICIT, EXPLICIT], True, [EXPLICIT, IMPLICIT, JPEG]),
        (CT, ["1.2.3.4"], False, []),
        (SIMILARITY_FIND, [IMPLICIT, EXPLICIT], False, [EXPLICIT, IMPLICIT]),
        (PATIENT_ROOT_FIND, [JPEG], False, []),
        ("1.2.840.10008.5.1.4.31", [IMPLICIT], False, []),
    ],
)
def test_transfer_syntaxes_in_order_of_preference(uid, proposed, to_send, accepted):
    assert acceptable(uid, proposed, to_send=to_send) == accepted


def test_similarity_classes_are_private_and_complete():
    similar = {uid: kind for uid, kind in QUERY_RETRIEVE.items() if kind.similarity}
    assert sorted(uid.rsplit(".", 1)[1] for uid in similar) == ["1", "2", "3"]
    assert {kind.operation for kind in similar.values()} == {Operation.FIND, Operation.MOVE, Operation.GET}


def test_objects_of_a_class_go_together_and_no_association_has_more_than_128_contexts():
    classes = sorted(STORAGE)[:100]
    objects = [(uid, syntax) for uid in classes for syntax in (EXPLICIT, JPEG, J2K)]
    associations = storage_proposals(objects, convertible=True)
    assert len(associations) > 2
    assert all(len(proposals) <= MOST_CONTEXTS for proposals in associations)
    homes = [{proposal.sop_class_uid for proposal in proposals} for proposals in associations]
    assert sum(len(home) for home in homes) == len(classes)
    offered = {(p.sop_class_uid, p.transfer_syntaxes) for proposals in associations for p in proposals}
    assert {(uid, (syntax,)) for uid, syntax in objects} <= offered
    assert all((uid, UNCOMPRESSED) in offered for uid in classes)


def test_files_are_offered_in_their_own_transfer_syntax_only():
    [proposals] = storage_proposals([(CT, JPEG), (CT, JPEG)], convertible=False)
    assert [proposal.transfer_syntaxes for proposal in proposals] == [(JPEG,)]


def test_an_unknown_uid_outside_the_standard_is_no_storage_class():
    assert not is_storage("2.25.1")
