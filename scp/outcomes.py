"""Sub-operations that end in other threads, one after the other, for the one who answers the requestor."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator

from index.archive import StoredInstance
from scp.status import Status

LOOK_S = 0.1
"""How often the one who waits for outcomes is let to look at other things, seconds."""

Outcome = tuple[StoredInstance, Status]
"""A sub-operation that has ended."""


class Outcomes:
    """What became of `count` sub-operations. One thread reads, any may `put`.

    Who reads is woken when all have ended, and looks now and then before: to wake him for each would cost those who
    send as much as many an object does.
    """

    def __init__(self, count: int) -> None:
        self.left = count
        self._done: deque[Outcome] = deque()
        self._changed = threading.Condition()

    def put(self, instance: StoredInstance, status: Status) -> None:
        """Tell that a sub-operation has ended."""
        with self._changed:
            self._done.append((instance, status))
            if len(self._done) >= self.left:
                self._changed.notify_all()

    def each(self) -> Iterator[Outcome | None]:
        """Yield each sub-operation that has ended, and None now and then while none has, until all have."""
        while self.left:
            with self._changed:
                self._changed.wait_for(lambda: len(self._done) >= self.left, LOOK_S)
            if not self._done:
                yield None
            yield from self.known()

    def known(self) -> Iterator[Outcome]:
        """Yield those that have ended by now and were not yielded yet."""
        for _ in range(len(self._done)):
            with self._changed:
                outcome = self._done.popleft()
                self.left -= 1
            yield outcome
