"""Storage Commitment Push Model: what is asked of the SCP, and what its report says (PS3.4 J.3)."""

from __future__ import annotations

import logging
from collections.abc import Callable
from enum import IntEnum
from functools import partial

from pydicom.config import IGNORE
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.tag import Tag

from config.application_entities import Right
from index import commitments, deliveries
from index.archive import Archive
from index.commitments import Commitment, Reference
from index.errors import NotFound, OutOfSpace
from scp.askers import Askers
from scp.caller import Caller
from scp.errors import InvalidArgument, NotOffered, ResourceLimitation, UnknownAction
from scp.messages import ActionRequest, Answer, EventReport
from scp.status import SUCCESS

_LOG = logging.getLogger(__name__)

SOP_INSTANCE_UID = "1.2.840.10008.1.20.1.1"
"""The well-known instance that every request and every report is about (PS3.4 J.3.5)."""

REQUEST_STORAGE_COMMITMENT = 1
"""The one Action Type ID (PS3.4 table J.3-1)."""


_CLASS = Tag("ReferencedSOPClassUID")
_INSTANCE = Tag("ReferencedSOPInstanceUID")


class Event(IntEnum):
    """Event Type ID (PS3.4 table J.3-2)."""

    ALL_COMMITTED = 1
    FAILURES_EXIST = 2


def commit(
    archive: Archive,
    caller: Caller,
    request: ActionRequest,
    askers: Askers,
    replaced_uid: Callable[[str, str], str] | None = None,
) -> Answer:
    """Take the request in. Success means that it is on disk, and will be checked and reported whatever happens.

    Parameters
    ----------
    replaced_uid
        Gives the UID under which an inbox, by the name of its profile, has stored what was sent to it.

    Raises
    ------
    NotAuthorized
        The caller may not store (0124).
    NotOffered
        It called the similarity AE, which archives nothing (0122).
    NotFound
        Not the well-known SOP instance (0112).
    UnknownAction
        Another action than the one that there is (0123).
    InvalidArgument
        No Transaction UID or nothing referenced, or that Transaction UID was used for something else (0115).
    ResourceLimitation
        The disk is full (0213).
    """
    if caller.asks_similarity:
        raise NotOffered(f"{caller.called} archives nothing: ask the node's own AE title")
    caller.require(Right.STORE)
    if request.sop_instance_uid != SOP_INSTANCE_UID:
        raise NotFound(f"the SOP instance is {SOP_INSTANCE_UID}", element="RequestedSOPInstanceUID")
    if request.action_type != REQUEST_STORAGE_COMMITMENT:
        raise UnknownAction(f"Action Type ID {request.action_type}: there is 1 only", element="ActionTypeID")
    transaction_uid, references = read_request(request.information)
    try:
        is_taken = commitments.ask(
            archive,
            caller.title,
            transaction_uid,
            references,
            address=caller.address,
            profile=caller.inbox,
            replaced=partial(replaced_uid, caller.inbox) if caller.inbox and replaced_uid is not None else str,
            preferred=askers.process,
        )
    except OutOfSpace as error:
        raise ResourceLimitation(str(error)) from error
    if not is_taken:
        raise InvalidArgument("the Transaction UID was used for other instances", element="TransactionUID")
    askers.note(caller.title, transaction_uid, request.association)
    askers.ring()
    return Answer(SUCCESS)


def take_report(archive: Archive, caller: Caller, request: EventReport) -> Answer:
    """Take in what a peer reports that this node asked for storage commitment. Success means that it is on disk.

    A report that nobody waits for (any more) is let pass: its sender would only repeat it.

    Raises
    ------
    NotOffered
        It called the similarity AE (0122).
    NotFound
        Not the well-known SOP instance (0112).
    InvalidArgument
        No Transaction UID, or a reference without its UIDs (0115).
    ResourceLimitation
        The disk is full (0213).
    """
    if caller.asks_similarity:
        raise NotOffered(f"{caller.called} archives nothing: report to the node's own AE title")
    if request.sop_instance_uid != SOP_INSTANCE_UID:
        raise NotFound(f"the SOP instance is {SOP_INSTANCE_UID}", element="AffectedSOPInstanceUID")
    transaction_uid, committed, failures = read_event(request.information)
    try:
        is_awaited = deliveries.take_report(archive, transaction_uid, committed, failures)
    except OutOfSpace as error:
        raise ResourceLimitation(str(error)) from error
    told = _LOG.info if is_awaited else _LOG.warning
    why = "" if is_awaited else ", which nobody waits for"
    told("%s keeps %d instances, fails %d: storage commitment %s%s", caller, len(committed), len(failures),
         transaction_uid, why)  # fmt: skip
    return Answer(SUCCESS)


def read_request(information: Dataset) -> tuple[str, list[Reference]]:
    """Return Transaction UID and references of an Action Information; raises `InvalidArgument`."""
    transaction_uid = _uid(information, "TransactionUID")
    references = _references(information, "ReferencedSOPSequence")
    if not references:
        raise InvalidArgument("Referenced SOP Sequence is missing or empty", element="ReferencedSOPSequence")
    return transaction_uid, references


def request_information(transaction_uid: str, references: list[Reference]) -> Dataset:
    """Return the Action Information that asks for the commitment of `references`."""
    information = Dataset()
    information.TransactionUID = transaction_uid
    information.ReferencedSOPSequence = [_item(reference) for reference in references]
    return information


def event(commitment: Commitment, retrieve_aet: str) -> tuple[Event, Dataset]:
    """Return Event Type ID and Event Information of the report.

    Parameters
    ----------
    retrieve_aet
        From where the committed instances can be retrieved.
    """
    information = Dataset()
    information.TransactionUID = commitment.transaction_uid
    committed = commitment.committed
    if committed:  # else it shall not be there, and nothing can be retrieved
        if not commitment.profile:  # what an inbox has stored is not retrieved by the UIDs that were sent
            information.RetrieveAETitle = retrieve_aet
        information.ReferencedSOPSequence = [_item(reference) for reference in committed]
    if not commitment.failures:
        return Event.ALL_COMMITTED, information
    failed = []
    for reference, reason in commitment.failures.items():
        item = _item(reference)
        item.FailureReason = int(reason)
        failed.append(item)
    information.FailedSOPSequence = failed
    return Event.FAILURES_EXIST, information


def read_event(information: Dataset) -> tuple[str, list[Reference], dict[Reference, int]]:
    """Return Transaction UID, committed and failed references (with their reasons) of a report.

    Raises
    ------
    InvalidArgument
        It lacks what it has to hold (PS3.4 table J.3-2).
    """
    failed = information.get("FailedSOPSequence") or []
    reasons = [int(item.get("FailureReason") or 0) for item in failed]
    failures = dict(zip(_references(information, "FailedSOPSequence"), reasons, strict=True))
    return _uid(information, "TransactionUID"), _references(information, "ReferencedSOPSequence"), failures


def _item(reference: Reference) -> Dataset:
    item = Dataset()
    for tag, uid in ((_CLASS, reference.sop_class_uid), (_INSTANCE, reference.sop_instance_uid)):
        # As it was told: a UID that is none has been tolerated before.
        item[tag] = DataElement(tag, "UI", uid, validation_mode=IGNORE)
    return item


def _references(dataset: Dataset, keyword: str) -> list[Reference]:
    sequence = dataset.get(keyword)
    if sequence is None:
        return []
    if not isinstance(sequence, Sequence):
        raise InvalidArgument(f"{keyword} is no sequence", element=keyword)
    return [
        Reference(_uid(item, "ReferencedSOPClassUID"), _uid(item, "ReferencedSOPInstanceUID")) for item in sequence
    ]


def _uid(dataset: Dataset, keyword: str) -> str:
    try:
        value = dataset.get(keyword)
    except Exception as error:  # pydicom raises whatever a malformed value makes it stumble over
        raise InvalidArgument(f"{keyword} cannot be decoded", element=keyword) from error
    uid = value.strip(" \0") if isinstance(value, str) else ""
    if not uid:
        raise InvalidArgument(f"{keyword} is missing, empty or no single UID", element=keyword)
    return uid
