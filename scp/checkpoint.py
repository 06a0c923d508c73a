"""The gate at which an association's own loop is stopped while a request waits for its response.

pynetdicom's gate is an event and a flag, and between reading one and setting the other the loop can slip through: on
a busy machine it then takes the response that somebody else is waiting for. This gate knows whether the loop stands
at it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

_LOOK_S = 0.05


class Checkpoint:
    """Has the interface of the event that it stands in for."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._open = True
        self._standing = 0

    def is_set(self) -> bool:
        """Whether the gate is open."""
        return self._open

    def set(self) -> None:
        """Open the gate."""
        with self._changed:
            self._open = True
            self._changed.notify_all()

    def clear(self) -> None:
        """Close the gate."""
        with self._changed:
            self._open = False

    def wait(self, timeout: float | None = None) -> bool:
        """Stand at the gate until it is open; False when `timeout` seconds pass first."""
        with self._changed:
            self._standing += 1
            self._changed.notify_all()
            try:
                return self._changed.wait_for(self.is_set, timeout)
            finally:
                self._standing -= 1

    def stop_the_loop(self, is_alive: Callable[[], bool]) -> None:
        """Close the gate and return when the loop stands at it, or has ended."""
        with self._changed:
            self._open = False
            # Whoever holds the lock while somebody stands at a closed gate knows that he waits there.
            while not self._standing and is_alive():
                self._changed.wait(_LOOK_S)
