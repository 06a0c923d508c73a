"""What the network edge refuses by itself; `scp.status` maps each to a DIMSE Status, once.

::

    ScpError
    ├── NotAuthorized          the calling AE lacks the right
    ├── NotOffered             the SOP class or operation is not served under this AE title
    ├── UnrecognizedOperation  an operation that the SOP class does not have
    ├── UnknownAction          an action that the SOP class does not have
    ├── InvalidArgument        Action Information that says nothing, or nothing that can be done
    ├── ResourceLimitation     there is no room to keep what is asked for
    ├── UnknownDestination     C-MOVE to an AE that the settings do not name, or name without an address
    ├── ConversionError        a stored object cannot be brought into a transfer syntax that the peer takes
    └── PeerError              as a client: the peer cannot be worked with
        ├── PeerUnreachable    no TCP connection
        ├── PeerRejected       the association was rejected
        │   └── NothingAccepted   it was accepted with none of the presentation contexts
        └── AssociationLost    it ended, or fell silent, in the middle
"""

from __future__ import annotations


class ScpError(Exception):
    """Base of what the edge refuses; `element` is the keyword of the element to blame, where one is."""

    def __init__(self, sentence: str, *, element: str = "") -> None:
        super().__init__(sentence)
        self.element = element


class NotAuthorized(ScpError):
    """The calling AE lacks the `right` that the request needs."""

    def __init__(self, sentence: str, *, right: str = "") -> None:
        super().__init__(sentence)
        self.right = right


class NotOffered(ScpError):
    """The SOP class or the operation is not served under the called AE title."""


class UnrecognizedOperation(ScpError):
    """An operation that the SOP class of the request does not have."""


class UnknownAction(ScpError):
    """An Action Type ID that the SOP class of the request does not have."""


class InvalidArgument(ScpError):
    """Action Information that cannot be read, lacks what it has to hold, or contradicts an earlier request."""


class ResourceLimitation(ScpError):
    """There is no room to keep what a DIMSE-N request asks for."""


class UnknownDestination(ScpError):
    """A move destination that the settings do not name with an address."""


class ConversionError(ScpError):
    """A stored object cannot be brought into a transfer syntax that the peer takes."""


class PeerError(ScpError):
    """A peer that this node called cannot be worked with."""


class PeerUnreachable(PeerError):
    """No TCP connection to the peer."""


class PeerRejected(PeerError):
    """The peer rejected the association."""


class NothingAccepted(PeerRejected):
    """The peer accepted no presentation context: it takes nothing of the kind."""


class AssociationLost(PeerError):
    """The association ended, or the peer fell silent, before the answer came."""
