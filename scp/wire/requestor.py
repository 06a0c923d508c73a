"""Associations that this node opens to store objects at a peer, as the sub-operations of a C-MOVE do (PS3.8 9.2).

The side of the requestor in the state table: Sta4 and Sta5 are `open_link`, Sta6 is between two C-STOREs, and `release`
is Sta7, with a collision Sta9 and Sta11. Whoever opens one uses it in one thread; any other may abort it.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Mapping, Sequence

from pydicom.uid import UID
from pynetdicom.pdu import A_ASSOCIATE_RJ
from pynetdicom.pdu_primitives import A_ASSOCIATE
from pynetdicom.presentation import PresentationContext

from scp.contexts import Proposal
from scp.errors import NothingAccepted, PeerRejected, PeerUnreachable
from scp.inbox import InboxError
from scp.link import Link
from scp.negotiation import SHORTEST_PDU, presentation_context
from scp.reception import Reception
from scp.requestor import Peer, Timeouts, reason
from scp.wire import negotiation, pdu
from scp.wire.carrying import Carrying
from scp.wire.channel import Channel
from scp.wire.errors import Ended, Interrupted, PeerAborted, PeerClosed, Violation
from scp.wire.stream import Alarm, Stream

_LOG = logging.getLogger(__name__)


def open_link(
    peer: Peer, proposals: Sequence[Proposal], *, calling: str, timeouts: Timeouts, max_pdu_bytes: int
) -> Link:
    """Open an association to store objects at `peer`.

    Parameters
    ----------
    proposals
        At most 128 presentation contexts, of Storage SOP classes.
    calling
        AE title of this node.
    max_pdu_bytes
        Of the PDUs that this node takes.

    Raises
    ------
    PeerUnreachable
        No TCP connection, or no TLS on it.
    PeerRejected
        The peer rejected or aborted the association, or did not answer.
    NothingAccepted
        The peer accepted no context.
    """
    connection = _connected(peer, timeouts)
    try:
        outbound = OutboundAssociation(
            connection, peer, calling=calling, timeouts=timeouts, max_pdu_bytes=max_pdu_bytes
        )
    except BaseException:
        connection.close()
        raise
    outbound.establish(proposals, max_pdu_bytes)
    return Link(outbound)


def _connected(peer: Peer, timeouts: Timeouts) -> socket.socket:
    connection: socket.socket | None = None
    try:
        connection = socket.create_connection((peer.host, peer.port), timeouts.connect)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if peer.tls is not None:
            return peer.tls.wrap_socket(connection, server_hostname=peer.host)
    except OSError as error:
        if connection is not None:
            connection.close()
        why = error.strerror or error if isinstance(error, socket.gaierror) else reason(error)
        raise PeerUnreachable(f"cannot reach {peer}: {why}") from error
    return connection


class OutboundAssociation(Carrying):
    """A `Carrier` whose requestor is this node.

    Parameters
    ----------
    connection
        To the peer; with TLS, where that is wanted.
    """

    def __init__(
        self, connection: socket.socket, peer: Peer, *, calling: str, timeouts: Timeouts, max_pdu_bytes: int
    ) -> None:
        self._peer, self._timeouts = peer, timeouts
        self.calling, self.called = calling, peer.title
        self.address = str(connection.getsockname()[0])
        self.proposed: Mapping[UID, bytes] = {}
        self._owner = threading.get_ident()
        self._alarm = Alarm()
        stream = Stream(connection, max_pdu_bytes, self._alarm)
        channel = Channel(stream, _nothing_is_received, timeouts.network, stream.hang_up)
        super().__init__(stream, channel, dimse_timeout=timeouts.dimse, network_timeout=timeouts.network)

    def establish(self, proposals: Sequence[Proposal], max_pdu_bytes: int) -> None:
        """Ask for the association; raises `PeerRejected` or `NothingAccepted`, and the connection is closed then."""
        request, contexts = negotiation.request(
            [presentation_context(each.sop_class_uid, each.transfer_syntaxes) for each in proposals],
            calling=self.calling,
            called=self.called,
            max_pdu_bytes=max_pdu_bytes,
        )
        last = pdu.abort_by_user()
        try:
            self._stream.send([request], self._timeouts.network)
            kind, content = self._stream.pdu(self._timeouts.acse, pdu.BEFORE_ASSOCIATION)
            whole = bytes([kind, 0]) + len(content).to_bytes(4, "big") + content
            if kind != pdu.ASSOCIATE_AC:
                last = b""
                raise PeerRejected(f"{self._peer} {_refusal(kind, whole)}")
            self._accept(whole, contexts)
        except (Ended, TimeoutError) as ended:
            last = self._farewell(ended)
            raise PeerRejected(f"{self._peer} {_no_answer(ended)}") from ended
        finally:
            if not self._is_established:
                self._end(last)

    def _accept(self, whole: bytes, contexts: Sequence[PresentationContext]) -> None:
        try:
            accepted, largest = negotiation.read_accepted(whole, contexts)
        except Exception as error:
            why = f"answered with what cannot be decoded: {type(error).__name__}: {error}"[:200]
            raise PeerRejected(f"{self._peer} {why}") from error
        if not accepted:
            raise NothingAccepted(f"{self._peer} accepted none of the presentation contexts")
        if 0 < largest < SHORTEST_PDU:
            raise PeerRejected(f"{self._peer} takes PDUs of {largest} bytes, into which nothing fits")
        self._channel.contexts.update({int(context.context_id or 0): context for context in accepted})
        self._channel.limit(largest)
        self._is_established = True

    @property
    def is_established(self) -> bool:
        """Whether it stands, and its peer wants it to. The thread that uses it looks; others hear what it last saw."""
        if self._is_established and threading.get_ident() == self._owner:
            self._channel.notice()
        return super().is_established and not self._channel.is_releasing

    def abort(self) -> None:
        """End it at once, from any thread: who waits for a response on it gets none, and then sends the A-ABORT."""
        self._channel.end = self._channel.end or Interrupted("aborted by this node")
        self._alarm.ring()

    def release(self) -> None:
        """End it in order; nothing happens when it is gone already."""
        if not self._is_established:
            return
        self._is_established = False
        if self._channel.end is not None:
            self._end(self._farewell(self._channel.end))
        elif self._channel.is_releasing:  # Sta8: the peer was first
            self._end(pdu.RELEASED)
        else:
            try:
                self._ask_for_release()
            except (Ended, TimeoutError) as ended:
                self._end(self._farewell(ended))
            else:
                self._end(b"")

    def _ask_for_release(self) -> None:
        self._stream.send([pdu.RELEASE], self._timeouts.network)
        deadline = time.monotonic() + self._timeouts.acse
        expected = pdu.BEFORE_RELEASED
        while True:
            kind, content = self._stream.pdu(deadline - time.monotonic(), expected)
            if kind == pdu.RELEASE_RQ:  # AR-8, AR-9: both have asked, and the requestor answers first
                self._stream.send([pdu.RELEASED], self._timeouts.network)
                expected = pdu.AFTER_COLLISION
            elif kind == pdu.P_DATA:  # AR-6: nobody waits for it
                pdu.require_data(content)
            elif kind == pdu.ABORT:
                raise PeerAborted("it aborted")
            elif kind == pdu.RELEASE_RP:
                return

    @staticmethod
    def _farewell(ended: Exception) -> bytes:
        """Return the last PDU."""
        if isinstance(ended, Violation):
            return pdu.abort_by_provider(ended.reason)
        return b"" if isinstance(ended, (PeerAborted, PeerClosed)) else pdu.abort_by_user()

    def _end(self, last: bytes) -> None:
        if last and last != pdu.RELEASED:
            _LOG.info("aborting the association with %s", self._peer)
        self._channel.discard()
        # An A-RELEASE-RP or A-ABORT of the peer is its last word: nobody has to wait for it to close.
        if last:
            self._stream.finish(last)
        else:
            self._stream.close()
        with contextlib.suppress(OSError):
            self._alarm.close()


def _nothing_is_received() -> Reception:
    raise InboxError("C-STORE is for the requestor of this association to send")


def _refusal(kind: int, whole: bytes) -> str:
    if kind == pdu.ABORT:
        return "aborted, or did not answer, the association request"
    rejection = A_ASSOCIATE_RJ()
    rejection.decode(whole)
    primitive: A_ASSOCIATE = rejection.to_primitive()
    return f"rejected the association: {primitive.reason_str.lower()}"


def _no_answer(ended: Exception) -> str:
    if isinstance(ended, PeerClosed) and isinstance(ended.__cause__, OSError):
        return f"ended the connection: {reason(ended.__cause__).removeprefix('no TCP connection: ')}"
    return "aborted, or did not answer, the association request"


