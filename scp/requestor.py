"""Associations that this node opens with a peer (PS3.8 7.1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from ssl import SSLCertVerificationError, SSLContext, SSLError
from typing import Any

from pydicom.uid import UID
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.pdu_primitives import SCP_SCU_RoleSelectionNegotiation, SOPClassExtendedNegotiation
from pynetdicom.transport import AddressInformation

from config.identity import IMPLEMENTATION_CLASS_UID, implementation_version_name
from scp import transport
from scp.carried import Carried
from scp.contexts import Proposal
from scp.errors import NothingAccepted, PeerRejected, PeerUnreachable
from scp.link import Link
from scp.negotiation import presentation_context
from scp.peer_socket import PeerSocket
from scp.reception import Reception


@dataclass(frozen=True)
class Peer:
    """Where a peer listens, its AE title, and the TLS context to reach it with (None: without TLS)."""

    host: str
    port: int
    title: str
    tls: SSLContext | None = field(default=None, compare=False, repr=False)

    def __str__(self) -> str:
        return f"{self.title} at {self.host}:{self.port}"


@dataclass(frozen=True)
class Timeouts:
    """How long to wait for a peer, seconds.

    Attributes
    ----------
    connect
        For the TCP connection.
    acse
        For the answer to an association or release request.
    dimse
        For the response to a DIMSE request.
    network
        Without any traffic.
    """

    connect: float = 15.0
    acse: float = 30.0
    dimse: float = 60.0
    network: float = 120.0


class RequestingEntity(AE):
    """An application entity that opens associations, each on a `PeerSocket`."""

    def _create_socket(
        self, assoc: Association, address: AddressInformation, tls_args: tuple[SSLContext, str] | None
    ) -> PeerSocket:
        connection = PeerSocket(assoc, address=address)
        connection.tls_args = tls_args
        return connection


def connect(
    peer: Peer,
    proposals: Sequence[Proposal],
    *,
    calling: str,
    timeouts: Timeouts,
    max_pdu_bytes: int = 131072,
    reception: Callable[[], Reception] | None = None,
    on_store: Callable[[evt.Event], Any] | None = None,
    on_report: Callable[[evt.Event], Any] | None = None,
) -> Link:
    """Open an association.

    Parameters
    ----------
    proposals
        At most 128 presentation contexts.
    calling
        Our AE title.
    reception, on_store
        Where objects go that the peer sends during a C-GET, and what answers them.
    on_report
        What answers an N-EVENT-REPORT of the peer.

    Raises
    ------
    PeerUnreachable
        No TCP connection.
    PeerRejected
        The peer rejected or aborted it.
    NothingAccepted
        The peer accepted no context.
    """
    opened: list[bool] = []

    def connected(event: evt.Event) -> None:
        opened.append(True)
        transport.prepare(event.assoc, reception)

    handlers: list[Any] = [(evt.EVT_CONN_OPEN, connected), (evt.EVT_CONN_CLOSE, transport.connection_closed)]
    if on_store is not None:
        handlers.append((evt.EVT_C_STORE, on_store))
    if on_report is not None:
        handlers.append((evt.EVT_N_EVENT_REPORT, on_report))
    try:
        assoc = _entity(calling, timeouts).associate(
            peer.host,
            peer.port,
            contexts=[
                presentation_context(proposal.sop_class_uid, proposal.transfer_syntaxes) for proposal in proposals
            ],
            ae_title=peer.title,
            max_pdu=max_pdu_bytes,
            ext_neg=[*roles(proposals), *extended(proposals)],
            evt_handlers=handlers,
            tls_args=(peer.tls, peer.host) if peer.tls is not None else None,
        )
    except OSError as error:  # the name does not resolve
        raise PeerUnreachable(f"cannot reach {peer}: {error.strerror or error}") from error
    if not assoc.is_established:
        raise _refusal(assoc, peer, opened=bool(opened))
    return Link(Carried(assoc))


def _refusal(assoc: Association, peer: Peer, *, opened: bool) -> PeerUnreachable | PeerRejected:
    failure = getattr(assoc.dul.socket, "failure", None)
    why = reason(failure) if isinstance(failure, OSError) else ""
    if not opened:
        return PeerUnreachable(f"cannot reach {peer}: {why or 'no TCP connection'}")
    answer = assoc.acceptor.primitive
    if assoc.is_rejected and answer is not None:
        return PeerRejected(f"{peer} rejected the association: {answer.reason_str.lower()}")
    if answer is not None and answer.result == 0:
        return NothingAccepted(f"{peer} accepted none of the presentation contexts")
    if why:
        return PeerRejected(f"{peer} ended the connection: {why.removeprefix('no TCP connection: ')}")
    return PeerRejected(f"{peer} aborted, or did not answer, the association request")


def reason(failure: OSError) -> str:
    """Say in a clause why there is no connection."""
    if isinstance(failure, SSLCertVerificationError):
        return f"its TLS certificate is not accepted: {failure.verify_message.rstrip('.')}"
    if isinstance(failure, SSLError):
        return f"TLS: {(failure.reason or str(failure)).lower().replace('_', ' ')}"
    return f"no TCP connection: {failure.strerror or failure}"


def _entity(calling: str, timeouts: Timeouts) -> RequestingEntity:
    entity = RequestingEntity(calling)
    entity.implementation_class_uid = UID(IMPLEMENTATION_CLASS_UID)
    entity.implementation_version_name = implementation_version_name()
    entity.connection_timeout = timeouts.connect
    entity.acse_timeout = timeouts.acse
    entity.dimse_timeout = timeouts.dimse
    entity.network_timeout = timeouts.network
    return entity


def roles(proposals: Sequence[Proposal]) -> list[Any]:
    """Return the items that propose to be the SCU and to let the peer be the SCP (PS3.7 D.3.3.4)."""
    items = []
    for uid in dict.fromkeys(proposal.sop_class_uid for proposal in proposals if proposal.peer_sends):
        item = SCP_SCU_RoleSelectionNegotiation()
        item.sop_class_uid = UID(uid)
        item.scu_role = False
        item.scp_role = True
        items.append(item)
    return items


def extended(proposals: Sequence[Proposal]) -> list[Any]:
    """Return the items that propose relational queries (PS3.7 D.3.3.5, PS3.4 C.5.1.1)."""
    items = []
    for uid in dict.fromkeys(proposal.sop_class_uid for proposal in proposals if proposal.relational):
        item = SOPClassExtendedNegotiation()
        item.sop_class_uid = UID(uid)
        item.service_class_application_information = b"\x01"
        items.append(item)
    return items
