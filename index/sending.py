"""Sending on, in words that both the network and the router know: what a peer makes of an object, and what goes wrong.

::

    SendingError
    ├── Unreachable    no association can be had with the peer
    ├── Lost           the association ended, or the peer fell silent, before it answered
    └── NotOffered     the peer does not take part in storage commitment
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto


class SendingError(Exception):
    """A peer that cannot be sent to; one sentence that names it."""


class Unreachable(SendingError):
    """No association can be had with the peer."""


class Lost(SendingError):
    """The association ended, or the peer fell silent, before it answered; the next object opens a new one."""


class NotOffered(SendingError):
    """The peer does not take part in storage commitment, or not for what was asked."""


class Fate(Enum):
    """What a peer made of an object."""

    STORED = auto()
    """Success, or a warning: it has the object."""

    REFUSED = auto()
    """It will not take this object, however often it is sent."""

    LATER = auto()
    """It, or this node, could not do this one now."""

    FULL = auto()
    """It is out of resources: neither this nor another one now."""


@dataclass(frozen=True)
class Sent:
    """What became of an object; `told` is the peer's Status in words, "" for plain success."""

    fate: Fate
    told: str = ""
