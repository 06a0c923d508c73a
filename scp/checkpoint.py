"""The gate at which an association's own loop is stopped while a request waits for its response.

pynetdicom's gate is an event and a flag, and between reading one and setting the other the loop can slip through: on
a busy machine it then takes the response that somebody else is waiting for. This gate knows whether the loop stands
at it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

_LOOK_S = 0.05
_REST_S = 0.5
"""Longest rest of a loop without news, seconds: it also watches the idle time."""


class Checkpoint:
    """Has the interface of the event that it stands in for.

    Parameters
    ----------
    has_news
        Whether the loop has something to do. Without it the loop goes on at once when the gate is open; with it the
        loop rests until `notify` tells of something, or for a moment, in which it need not look a thousand times.
    """

    def __init__(self, has_news: Callable[[], bool] | None = None) -> None:
        self._has_news = has_news
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
                if self._has_news is not None and timeout is None:
                    self._changed.wait_for(self._is_open_with_news, _REST_S)
                return self._changed.wait_for(self.is_set, timeout)
            finally:
                self._standing -= 1

    def notify(self) -> None:
        """Let a loop that rests at the open gate look for news."""
        with self._changed:
            self._changed.notify_all()

    def _is_open_with_news(self) -> bool:
        return self._open and self._has_news is not None and self._has_news()

    def stop_the_loop(self, is_alive: Callable[[], bool], timeout: float | None = None) -> bool:
        """Close the gate and return when the loop stands at it, or has ended.

        When that takes longer than `timeout` seconds the gate is opened again, and the answer is False.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            self._open = False
            # Whoever holds the lock while somebody stands at a closed gate knows that he waits there.
            while not self._standing and is_alive():
                if deadline is not None and time.monotonic() > deadline:
                    self._open = True
                    self._changed.notify_all()
                    return False
                self._changed.wait(_LOOK_S)
        return True
