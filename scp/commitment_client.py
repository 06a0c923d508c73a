"""The node as SCU of storage commitment: ask a peer whether it keeps what it was sent, and wait for its report."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from io import BytesIO
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, evt
from pynetdicom.dimse_primitives import N_ACTION
from pynetdicom.dsutils import encode

from config.identity import new_uid
from index.commitments import Reference, Report
from scp import transport
from scp.client import RequestFailed, Requestor
from scp.commitment import REQUEST_STORAGE_COMMITMENT, SOP_INSTANCE_UID, read_event, request_information
from scp.contexts import STORAGE_COMMITMENT, Proposal
from scp.errors import AssociationLost, InvalidArgument, PeerError
from scp.link import Link, status_of_response
from scp.requestor import Peer, connect
from scp.status import SUCCESS, Status, status_of

_SYNTAXES = (str(ExplicitVRLittleEndian), str(ImplicitVRLittleEndian))
_LOOK_S = 0.1
_ANSWER_S = 10.0


class NotReported(PeerError):
    """The peer took the request, and its report did not come in time."""


class _Mailbox:
    """Takes the report of one transaction."""

    def __init__(self, transaction_uid: str) -> None:
        self._transaction_uid = transaction_uid
        self._came = threading.Event()
        self._serving: list[threading.Thread] = []
        self.report: Report | None = None

    def take(self, event: evt.Event) -> tuple[int, None]:
        """Answer an N-EVENT-REPORT; one about another transaction, which nobody waits for any more, is let pass."""
        self._serving.append(threading.current_thread())
        try:
            transaction_uid, committed, failures = read_event(event.event_information)
        except InvalidArgument as error:
            return status_of(error).code, None
        if transaction_uid == self._transaction_uid:
            self.report = Report(tuple(committed), failures)
            self._came.set()
        return SUCCESS.code, None

    def wait(self, timeout_s: float) -> Report | None:
        """Return the report, None when it has not come yet."""
        self._came.wait(timeout_s)
        return self.report

    def finish(self) -> None:
        """Wait until the reports that came are answered: an association that ends before takes the answers with it."""
        for thread in self._serving:
            thread.join(_ANSWER_S)


def commit(
    peer: Peer, references: Sequence[Reference], requestor: Requestor, *, wait_s: float, listen_port: int | None = None
) -> Report:
    """Ask `peer` to commit to `references` and return its report (PS3.4 J.3).

    Parameters
    ----------
    wait_s
        For the report, seconds.
    listen_port
        Also listen on this TCP port, where the peer knows us: many report on an association of their own, and only
        when ours is closed. None: the report has to come on the association of the request.

    Raises
    ------
    RequestFailed
        The peer refused the request.
    NotReported
        The report did not come in time.
    PeerUnreachable, PeerRejected, AssociationLost
        The peer cannot be worked with.
    OSError
        `listen_port` cannot be had.
    """
    transaction_uid = new_uid()
    mailbox = _Mailbox(transaction_uid)
    patient = replace(requestor.timeouts, network=max(requestor.timeouts.network, wait_s + requestor.timeouts.dimse))
    with _listening(requestor.title, listen_port, mailbox):
        link = connect(
            peer,
            [Proposal(STORAGE_COMMITMENT, _SYNTAXES)],
            calling=requestor.title,
            timeouts=patient,
            on_report=mailbox.take,
        )
        try:
            status = _request(link, request_information(transaction_uid, list(references)), peer)
            if status.is_failure:
                raise RequestFailed(f"the request for storage commitment at {peer}", status)
            if listen_port is not None:
                link.release()
            return _await(mailbox, link, peer, wait_s, is_listening=listen_port is not None)
        finally:
            mailbox.finish()
            link.release()


def ask(
    peer: Peer, transaction_uid: str, references: Sequence[Reference], requestor: Requestor, *, wait_s: float
) -> Report | None:
    """Ask `peer` to commit to `references`, and wait a moment for its report on the same association.

    Returns
    -------
    Report or None
        None: the peer took the request, and will report on an association of its own.

    Raises
    ------
    RequestFailed
        The peer refused the request.
    NothingAccepted
        The peer offers no storage commitment.
    PeerUnreachable, PeerRejected, AssociationLost
        The peer cannot be worked with.
    """
    mailbox = _Mailbox(transaction_uid)
    link = connect(
        peer,
        [Proposal(STORAGE_COMMITMENT, _SYNTAXES)],
        calling=requestor.title,
        timeouts=requestor.timeouts,
        on_report=mailbox.take,
    )
    try:
        status = _request(link, request_information(transaction_uid, list(references)), peer)
        if status.is_failure:
            raise RequestFailed(f"the request for storage commitment at {peer}", status)
        deadline = time.monotonic() + wait_s
        while time.monotonic() < deadline and link.is_open and mailbox.wait(_LOOK_S) is None:
            pass
        return mailbox.report
    finally:
        mailbox.finish()
        link.release()


def _request(link: Link, information: Dataset, peer: Peer) -> Status:
    """Send the N-ACTION-RQ and return the Status of its response.

    Not with pynetdicom's own method: that waits for ever when a report comes in between.
    """
    assoc = link.assoc
    context = assoc.accepted_contexts[0]
    syntax = context.transfer_syntax[0]
    encoded = encode(information, syntax.is_implicit_VR, syntax.is_little_endian, syntax.is_deflated)
    if encoded is None:
        raise ValueError("Action Information cannot be encoded")
    request = N_ACTION()
    request.MessageID = link.next_message_id()
    request.RequestedSOPClassUID = STORAGE_COMMITMENT
    request.RequestedSOPInstanceUID = SOP_INSTANCE_UID
    request.ActionTypeID = REQUEST_STORAGE_COMMITMENT
    request.ActionInformation = BytesIO(encoded)
    with transport.held(assoc, _ANSWER_S) as is_held:
        if is_held:
            assoc.dimse.send_msg(request, int(context.context_id or 0))
            _, response = assoc.dimse.get_msg(block=True)
            if isinstance(response, N_ACTION) and response.Status is not None:
                return status_of_response(response)
    raise AssociationLost(f"{peer} aborted the association, or fell silent, before it answered")


def _await(mailbox: _Mailbox, link: Link, peer: Peer, wait_s: float, *, is_listening: bool) -> Report:
    deadline = time.monotonic() + wait_s
    while time.monotonic() < deadline:
        is_open = link.is_open
        if (report := mailbox.wait(_LOOK_S)) is not None:
            return report
        if not is_open and not is_listening:
            raise AssociationLost(f"{peer} closed the association before it reported: it may want to report to a port")
    raise NotReported(f"{peer} took the request, and did not report within {wait_s:g} s")


@contextmanager
def _listening(title: str, port: int | None, mailbox: _Mailbox) -> Iterator[None]:
    if port is None:
        yield
        return
    entity = AE(title)
    # The peer reports as SCP on an association of its own, if it negotiates roles at all.
    entity.add_supported_context(STORAGE_COMMITMENT, list(_SYNTAXES), scu_role=True, scp_role=True)
    handlers: list[Any] = [(evt.EVT_N_EVENT_REPORT, mailbox.take)]
    server: Any = entity.start_server(("", port), block=False, evt_handlers=handlers)
    try:
        yield
    finally:
        server.shutdown()
