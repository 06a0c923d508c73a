"""Answers no faster than the peer takes them, so that few are on their way when it sends C-CANCEL (PS3.7 9.3.2.3).

What the kernel of the peer has received can no longer be held back. What this node's own kernel would hoard, megabytes
for a peer that reads slowly, can: the next answer is made when the last ones have left.
"""

from __future__ import annotations

import fcntl
import struct
import sys
import time
from collections.abc import Callable
from typing import Protocol

from scp.errors import AssociationLost

_MOST_UNSENT = 4096
"""Bytes that the kernel may hold unsent before another answer is made: some rows."""

_SIOCOUTQNSD = 0x894B
"""Linux: bytes of a TCP socket that were written and not sent yet (linux/sockios.h)."""

_SHORTEST_S, _LONGEST_S = 0.0005, 0.02


class Paced(Protocol):
    """What is to be known of an association whose answers are paced."""

    @property
    def descriptor(self) -> int:
        """File descriptor of the connection, negative when it is closed."""

    @property
    def is_alive(self) -> bool:
        """Whether anything can still be sent."""

    @property
    def network_timeout(self) -> float | None:
        """How long a peer may take nothing, seconds."""

    def give_up(self) -> None:
        """Abort it without waiting."""


def wait_for_reader(carrier: Paced, is_cancelled: Callable[[], bool]) -> bool:
    """Wait until the peer has room for another answer; return whether it cancelled the request meanwhile.

    Raises
    ------
    AssociationLost
        The association ended, or the peer took nothing for the network timeout (it is aborted then).
    """
    pause, last, since = _SHORTEST_S, -1, time.monotonic()
    while not is_cancelled():
        left = unsent(carrier.descriptor)
        if left <= _MOST_UNSENT:
            return False
        if not carrier.is_alive:
            raise AssociationLost("the association ended before everything was sent")
        if left != last:
            last, since = left, time.monotonic()
        elif carrier.network_timeout is not None and time.monotonic() - since > carrier.network_timeout:
            carrier.give_up()
            raise AssociationLost(f"the peer took no answer for {carrier.network_timeout:g} s")
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_S)
    return True


def unsent(descriptor: int) -> int:
    """Return the bytes that wait in this node's kernel for the peer; 0 where it does not tell (other than Linux)."""
    if descriptor < 0 or sys.platform != "linux":
        return 0
    try:
        return int(struct.unpack("i", fcntl.ioctl(descriptor, _SIOCOUTQNSD, b"\0" * 4))[0])
    except OSError:  # closed meanwhile
        return 0
