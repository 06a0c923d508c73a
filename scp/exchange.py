"""One DIMSE request on an association, and the responses to it (PS3.7 9.3)."""

from __future__ import annotations

from functools import partial
from io import BytesIO
from typing import Any

from pydicom.dataset import Dataset
from pynetdicom.dsutils import decode, encode
from pynetdicom.presentation import PresentationContext

from index import charset
from index.errors import InvalidIdentifier, InvalidInstance
from index.part10 import inflate_whole
from index.query import QueryOptions
from index.structure import require_whole
from scp.carrier import Carrier
from scp.contexts import Operation, is_private, operation_of
from scp.errors import InvalidArgument, NotOffered, UnrecognizedOperation
from scp.extended_negotiation import query_options
from scp.link import Link
from scp.messages import (
    ActionRequest,
    Answer,
    EventReport,
    FindRequest,
    Priority,
    RetrieveRequest,
    StoreRequest,
    SubOperations,
)
from scp.private_elements import GROUP
from scp.reception import ReceivedFile
from scp.status import Status

_LONGEST_IDENTIFIER = 1 << 24
"""Bytes of an Identifier, inflated; a hundred thousand UIDs need half of it."""

_DEEPEST_IDENTIFIER = 16
"""Sequences inside each other in an Identifier; the standard's keys need two."""


class Exchange:
    """One request on an association, and the responses to it.

    Parameters
    ----------
    carrier
        The association.
    request
        pynetdicom's primitive of the request.
    context
        The presentation context that it came on.
    received
        The file that the data set of a C-STORE-RQ was written to, closed; None when there is none.
    """

    def __init__(
        self, carrier: Carrier, request: Any, context: PresentationContext, received: ReceivedFile | None = None
    ) -> None:
        self.carrier = carrier
        self._request = request
        self._received = received
        self._context_id = int(context.context_id or 0)
        self._syntax = context.transfer_syntax[0]
        self._context_class = str(context.abstract_syntax)

    @property
    def name(self) -> str:
        """``C-FIND`` and so on, as the log shows it."""
        return type(self._request).__name__.replace("_", "-")

    @property
    def sop_class_uid(self) -> str:
        """Affected SOP Class UID of the request, or the Requested one of a DIMSE-N request."""
        return str(self._told("SOPClassUID") or "")

    def _told(self, what: str) -> Any:
        """The UID that a C-request or a notification calls affected, and other DIMSE-N requests requested."""
        affected = getattr(self._request, f"Affected{what}", None)
        return affected if affected is not None else getattr(self._request, f"Requested{what}", None)

    @property
    def operation(self) -> Operation:
        """The operation asked for.

        Raises
        ------
        NotOffered
            The SOP class is not the one that was negotiated for this context.
        UnrecognizedOperation
            The SOP class is not served with this operation.
        """
        if self.sop_class_uid != self._context_class:
            raise NotOffered("the SOP class is not the one of its presentation context", element="AffectedSOPClassUID")
        operation = operation_of(self.sop_class_uid)
        if operation is Operation.ACTION and self.name == Operation.REPORT:  # the same class, the other way
            operation = Operation.REPORT
        if operation is None and is_private(self.sop_class_uid):  # it was negotiated, so its AE may store such objects
            operation = Operation.STORE
        if operation is None or operation != self.name:
            raise UnrecognizedOperation(f"{self.name} is not an operation of this SOP class")
        return operation

    def link(self) -> Link:
        """The association as one to send objects on (C-GET)."""
        return Link(self.carrier, busy_message_id=int(self._request.MessageID))

    def store_request(self) -> StoreRequest:
        """The C-STORE-RQ with the file that its data set was written to."""
        received = self._received
        if received is None or received.path is None or received.error is not None:
            error = received.error if received is not None else None
            raise error or InvalidInstance("the C-STORE came without a data set")
        uid = str(self._request.AffectedSOPInstanceUID)
        return StoreRequest(self.sop_class_uid, uid, received.path, received.known)

    def find_request(self) -> FindRequest:
        """The C-FIND-RQ with its Identifier decoded."""
        cancelled = partial(self.carrier.wait_for_reader, self._cancelled)
        return FindRequest(self.sop_class_uid, self._identifier(), cancelled, self._options, str(self._syntax))

    def retrieve_request(self) -> RetrieveRequest:
        """The C-MOVE-RQ or C-GET-RQ with its Identifier decoded."""
        return RetrieveRequest(
            sop_class_uid=self.sop_class_uid,
            identifier=self._identifier(),
            cancelled=self._cancelled,
            priority=Priority(self._request.Priority),
            message_id=int(self._request.MessageID),
            destination=str(getattr(self._request, "MoveDestination", None) or "").strip(),
            options=self._options,
        )

    def action_request(self) -> ActionRequest:
        """The N-ACTION-RQ with its Action Information decoded."""
        return ActionRequest(
            sop_class_uid=self.sop_class_uid,
            sop_instance_uid=str(self._request.RequestedSOPInstanceUID),
            action_type=int(self._request.ActionTypeID),
            information=self._information(self._request.ActionInformation, "Action Information"),
            association=self.carrier,
        )

    def event_report(self) -> EventReport:
        """The N-EVENT-REPORT-RQ with its Event Information decoded."""
        return EventReport(
            sop_class_uid=self.sop_class_uid,
            sop_instance_uid=str(self._request.AffectedSOPInstanceUID),
            event_type=int(self._request.EventTypeID),
            information=self._information(self._request.EventInformation, "Event Information"),
        )

    @property
    def _options(self) -> QueryOptions:
        return query_options(self.sop_class_uid, self.carrier.proposed)

    def _cancelled(self) -> bool:
        return self.carrier.is_cancelled(int(self._request.MessageID))

    def _identifier(self) -> Dataset:
        try:
            return self._decoded(self._request.Identifier)
        except Exception as error:  # pydicom raises whatever a malformed data set makes it stumble over
            raise InvalidIdentifier(f"the Identifier cannot be decoded: {error}") from error

    def _information(self, encoded: BytesIO | None, what: str) -> Dataset:
        if encoded is None or not encoded.getbuffer().nbytes:
            return Dataset()
        try:
            return self._decoded(encoded)
        except Exception as error:
            raise InvalidArgument(f"the {what} cannot be decoded: {error}") from error

    def _decoded(self, encoded: BytesIO) -> Dataset:
        syntax = self._syntax
        if syntax.is_deflated:  # inflated here, since a few bytes may inflate to any size
            encoded.seek(0)
            encoded = BytesIO(inflate_whole(encoded, _LONGEST_IDENTIFIER))
        require_whole(encoded.getvalue(), str(syntax), _DEEPEST_IDENTIFIER)
        dataset = decode(encoded, syntax.is_implicit_VR, syntax.is_little_endian)
        for tag in list(dataset.keys()):
            if tag.is_private and tag.group != GROUP:  # private keys of others are not answered (PS3.4 C.2.2.1.1)
                del dataset[tag]
        charset.decode_in_place(dataset)
        for tag in list(dataset.keys()):
            if not tag.is_private and charset.raw_element(dataset, tag).value:
                _ = dataset[tag].value  # decoded now: a malformed value is a malformed request
        self.carrier.decoded()
        return dataset

    def respond(self, answer: Answer) -> None:
        """Send one response."""
        response: Any = type(self._request)()
        response.MessageIDBeingRespondedTo = self._request.MessageID
        for what in ("SOPClassUID", "SOPInstanceUID"):
            if (told := self._told(what)) is not None:
                setattr(response, f"Affected{what}", told)
        for what in ("ActionTypeID", "EventTypeID"):
            if (told := getattr(self._request, what, None)) is not None:
                setattr(response, what, told)
        response.Status = answer.status.code
        response.ErrorComment = answer.status.comment or None
        response.OffendingElement = list(answer.status.offending) or None
        if answer.counts is not None:
            _set_counts(response, answer.counts, answer.status)
        if answer.identifier is not None:
            response.Identifier = BytesIO(self._encoded(answer.identifier))
        self.carrier.send(response, self._context_id)

    def _encoded(self, identifier: Dataset | bytes) -> bytes:
        if isinstance(identifier, bytes):
            return identifier
        syntax = self._syntax
        identifier = charset.encoded(identifier)
        encoded = encode(identifier, syntax.is_implicit_VR, syntax.is_little_endian, syntax.is_deflated)
        if encoded is None:
            raise ValueError("an Identifier cannot be encoded")
        return encoded


def _set_counts(response: Any, counts: SubOperations, status: Status) -> None:
    clamped = counts.clamped
    response.NumberOfCompletedSuboperations = clamped.completed
    response.NumberOfFailedSuboperations = clamped.failed
    response.NumberOfWarningSuboperations = clamped.warning
    if status.is_pending or status.is_cancel:  # in any other response it shall not be there (PS3.4 C.4.2.1.6)
        response.NumberOfRemainingSuboperations = clamped.remaining
