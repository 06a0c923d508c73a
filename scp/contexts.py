"""SOP classes and transfer syntaxes that this node speaks, as data (PS3.4, PS3.6 Annex A)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from pydicom._uid_dict import UID_dictionary
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)
from pynetdicom import AllStoragePresentationContexts

from config.identity import UID_ROOT
from index.query import Model

MOST_CONTEXTS = 128
"""Presentation contexts of one association: odd IDs from 1 to 255 (PS3.8 9.3.2.2)."""

VERIFICATION = "1.2.840.10008.1.1"
STORAGE_COMMITMENT = "1.2.840.10008.1.20.1"
"""Storage Commitment Push Model (PS3.4 J.3)."""
SIMILARITY_FIND = f"{UID_ROOT}.1.1"
SIMILARITY_MOVE = f"{UID_ROOT}.1.2"
SIMILARITY_GET = f"{UID_ROOT}.1.3"
PATIENT_ROOT_FIND = "1.2.840.10008.5.1.4.1.2.1.1"
PATIENT_ROOT_MOVE = "1.2.840.10008.5.1.4.1.2.1.2"
PATIENT_ROOT_GET = "1.2.840.10008.5.1.4.1.2.1.3"
STUDY_ROOT_FIND = "1.2.840.10008.5.1.4.1.2.2.1"
STUDY_ROOT_MOVE = "1.2.840.10008.5.1.4.1.2.2.2"
STUDY_ROOT_GET = "1.2.840.10008.5.1.4.1.2.2.3"

QUERY_SYNTAXES = (str(ExplicitVRLittleEndian), str(ImplicitVRLittleEndian))
"""Transfer syntaxes in which this node asks others."""

_DICOM_PREFIX = "1.2.840.10008."
_STORAGE_PREFIX = f"{_DICOM_PREFIX}5.1.4.1.1."


class Operation(StrEnum):
    """DIMSE operations that this node serves."""

    ECHO = "C-ECHO"
    STORE = "C-STORE"
    FIND = "C-FIND"
    MOVE = "C-MOVE"
    GET = "C-GET"
    ACTION = "N-ACTION"
    REPORT = "N-EVENT-REPORT"


@dataclass(frozen=True)
class QueryRetrieveClass:
    """A SOP class of Query/Retrieve, or of the similarity model.

    Attributes
    ----------
    model
        Information model of its ordinary keys; the similarity model has the keys of Study Root.
    similarity
        Whether the class asks for similar cases.
    """

    operation: Operation
    model: Model
    similarity: bool = False


QUERY_RETRIEVE: dict[str, QueryRetrieveClass] = {
    PATIENT_ROOT_FIND: QueryRetrieveClass(Operation.FIND, Model.PATIENT_ROOT),
    PATIENT_ROOT_MOVE: QueryRetrieveClass(Operation.MOVE, Model.PATIENT_ROOT),
    PATIENT_ROOT_GET: QueryRetrieveClass(Operation.GET, Model.PATIENT_ROOT),
    STUDY_ROOT_FIND: QueryRetrieveClass(Operation.FIND, Model.STUDY_ROOT),
    STUDY_ROOT_MOVE: QueryRetrieveClass(Operation.MOVE, Model.STUDY_ROOT),
    STUDY_ROOT_GET: QueryRetrieveClass(Operation.GET, Model.STUDY_ROOT),
    SIMILARITY_FIND: QueryRetrieveClass(Operation.FIND, Model.STUDY_ROOT, similarity=True),
    SIMILARITY_MOVE: QueryRetrieveClass(Operation.MOVE, Model.STUDY_ROOT, similarity=True),
    SIMILARITY_GET: QueryRetrieveClass(Operation.GET, Model.STUDY_ROOT, similarity=True),
}

STORAGE: frozenset[str] = frozenset(
    {
        uid
        for uid, (name, kind, *_) in UID_dictionary.items()
        if kind == "SOP Class" and "Storage" in name and "Storage Commitment" not in name
    }
    | {
        uid  # retired without a name
        for uid, (name, kind, *_) in UID_dictionary.items()
        if kind == "SOP Class" and not name and uid.startswith(_STORAGE_PREFIX)
    }
    | {str(context.abstract_syntax) for context in AllStoragePresentationContexts}
)
"""Every Storage SOP class with a name in pydicom's or pynetdicom's dictionary, retired ones too."""

TRANSFER_SYNTAXES: tuple[str, ...] = (
    *(uid for uid, (_, kind, *_) in UID_dictionary.items() if kind == "Transfer Syntax"),
    "1.2.840.10008.1.2.8.1",  # Deflated Image Frame Compression
)
"""Every transfer syntax that pydicom names, and one that is younger: deflated, big endian, encapsulated, retired."""

UNCOMPRESSED: tuple[str, ...] = (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
)
"""The transfer syntaxes with native pixel data, the preferred one first. In Explicit VR private elements keep their
VR; in Implicit VR they arrive as UN."""


def is_storage(uid: str) -> bool:
    """Whether `uid` is a Storage SOP class: one with a name, or a standard one younger than the dictionaries."""
    return uid in STORAGE or (uid.startswith(_STORAGE_PREFIX) and uid not in UID_dictionary)


def is_private(uid: str) -> bool:
    """Whether `uid` is a SOP class that somebody else has defined: in no dictionary, below no root of DICOM or ours.

    Nothing in such a UID tells a Storage SOP class from another: the settings of the AE that proposes it do.
    """
    ours_or_standard = uid.startswith((_DICOM_PREFIX, f"{UID_ROOT}."))
    return not ours_or_standard and not is_storage(uid) and uid not in UID_dictionary and UID(uid).is_valid


def operation_of(uid: str) -> Operation | None:
    """The operation that a SOP class is served with, None when it is not served."""
    if uid in QUERY_RETRIEVE:
        return QUERY_RETRIEVE[uid].operation
    if uid == VERIFICATION:
        return Operation.ECHO
    if uid == STORAGE_COMMITMENT:
        return Operation.ACTION
    return Operation.STORE if is_storage(uid) else None


def acceptable(uid: str, proposed: Sequence[str], *, to_send: bool) -> list[str]:
    """Transfer syntaxes of `proposed` that this node takes for the SOP class `uid`, the preferred one first.

    A C-STORE SCU lists what it would rather send first, so its order stands, but for Explicit before Implicit VR.
    Where this node sends (`to_send`: C-GET), an uncompressed one comes first: everything can be sent in it.
    """
    operation = operation_of(uid)
    if operation is Operation.STORE or is_private(uid):
        known = [syntax for syntax in proposed if syntax in TRANSFER_SYNTAXES]
        if to_send:
            return sorted(known, key=_uncompressed_first)
        _put_explicit_before_implicit(known)
        return known
    return [syntax for syntax in UNCOMPRESSED if syntax in proposed] if operation is not None else []


def _put_explicit_before_implicit(syntaxes: list[str]) -> None:
    if ExplicitVRLittleEndian in syntaxes and ImplicitVRLittleEndian in syntaxes:
        implicit = syntaxes.index(ImplicitVRLittleEndian)
        if syntaxes.index(ExplicitVRLittleEndian) > implicit:
            syntaxes.remove(ExplicitVRLittleEndian)
            syntaxes.insert(implicit, ExplicitVRLittleEndian)


def _uncompressed_first(syntax: str) -> int:
    return UNCOMPRESSED.index(UID(syntax)) if syntax in UNCOMPRESSED else len(UNCOMPRESSED)


@dataclass(frozen=True)
class Proposal:
    """A presentation context to propose: SOP class, transfer syntaxes, and whether the peer is asked to be the SCU.

    With `peer_sends` this node proposes the SCP role for itself (PS3.7 D.3.3.4): the peer sends objects in a C-GET, and
    a report of storage commitment is sent to it. With `relational` it asks for relational queries (PS3.4 C.5.1.1).
    """

    sop_class_uid: str
    transfer_syntaxes: tuple[str, ...]
    peer_sends: bool = False
    relational: bool = False


def storage_proposals(objects: Iterable[tuple[str, str]], *, convertible: bool) -> list[list[Proposal]]:
    """Presentation contexts for sending `objects`, in as many associations as they need.

    Parameters
    ----------
    objects
        (SOP Class UID, Transfer Syntax UID) of each object.
    convertible
        Propose the uncompressed transfer syntaxes too, for a peer that does not take an object as it is.

    Returns
    -------
    list of list of Proposal
        One list for each association; all contexts of a SOP class are in the same one.
    """
    syntaxes: dict[str, dict[str, None]] = {}
    for sop_class_uid, transfer_syntax_uid in objects:
        syntaxes.setdefault(sop_class_uid, {})[transfer_syntax_uid] = None
    associations: list[list[Proposal]] = []
    for sop_class_uid, stored in syntaxes.items():
        block = [Proposal(sop_class_uid, (syntax,)) for syntax in stored]
        if convertible:
            block.append(Proposal(sop_class_uid, UNCOMPRESSED))
        if not associations or len(associations[-1]) + len(block) > MOST_CONTEXTS:
            associations.append([])
        associations[-1].extend(block)
    return associations
