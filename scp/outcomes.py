"""Sub-operations that end in other threads, one after the other, for the one who answers the requestor."""

from __future__ import annotations

from collections.abc import Iterator
from queue import Empty, SimpleQueue

from index.archive import StoredInstance
from scp.status import Status

LOOK_S = 0.1
"""How often the one who waits for outcomes is let to look at other things, seconds."""

Outcome = tuple[StoredInstance, Status]
"""A sub-operation that has ended."""


class Outcomes:
    """What became of `count` sub-operations, as it becomes known. One thread reads, any may `put`."""

    def __init__(self, count: int) -> None:
        self.left = count
        self._done: SimpleQueue[Outcome] = SimpleQueue()

    def put(self, instance: StoredInstance, status: Status) -> None:
        """Tell that a sub-operation has ended."""
        self._done.put((instance, status))

    def each(self) -> Iterator[Outcome | None]:
        """Yield each sub-operation as it ends, and None now and then while none does, until all have ended."""
        while self.left:
            yield self._next(LOOK_S)

    def known(self) -> Iterator[Outcome]:
        """Yield those that have ended by now and were not yielded yet."""
        while (outcome := self._next(0.0)) is not None:
            yield outcome

    def _next(self, wait_s: float) -> Outcome | None:
        try:
            outcome = self._done.get(timeout=wait_s) if wait_s else self._done.get_nowait()
        except Empty:
            return None
        self.left -= 1
        return outcome
