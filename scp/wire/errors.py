"""How an association ends other than by a release: each is an event of the state table in PS3.8 9.2."""

from __future__ import annotations


class Ended(Exception):
    """It is over; the message says why."""


class PeerClosed(Ended):
    """The connection is gone (Evt17)."""


class PeerAborted(Ended):
    """The peer has sent an A-ABORT (Evt16)."""


class Interrupted(Ended):
    """The node stops, and does not wait any longer (Evt15)."""


class Idle(Ended):
    """Nothing came for too long, and nothing was under way (Evt15)."""


class Refused(Ended):
    """The peer does what its association does not let it (Evt15)."""


class Violation(Ended):
    """What came is no PDU, or none that may come now (Evt19, or AA-8 in the state table).

    Parameters
    ----------
    reason
        Of the A-ABORT by the service provider (PS3.8 table 9-26).
    """

    def __init__(self, reason: int, sentence: str) -> None:
        super().__init__(sentence)
        self.reason = reason
