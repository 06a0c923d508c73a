"""While one object is being sent and answered, the next is decoded (C-GET, whose objects go over one association).

A C-MOVE has as many associations as the settings allow, each with a thread of its own: one decodes while others send.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Protocol

from index.archive import StoredInstance
from scp.outcomes import Outcome
from scp.retrieve import Ready
from scp.status import Status

Readies = Callable[[StoredInstance], AbstractContextManager[Ready]]


class Sends(Protocol):
    """Sends an instance: as `early` has made it ready, or as it makes it ready itself."""

    def __call__(self, instance: StoredInstance, *, early: AbstractContextManager[Ready] | None = None) -> Status:
        """Return the Status that became of it; raises `PeerError`."""


class _Early(AbstractContextManager[Ready]):
    """A context manager that another thread has begun to enter."""

    def __init__(self, pool: ThreadPoolExecutor, ready: AbstractContextManager[Ready]) -> None:
        self._ready = ready
        self._entered = pool.submit(ready.__enter__)

    def __enter__(self) -> Ready:
        return self._entered.result()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return self._ready.__exit__(kind, error, trace)

    def drop(self) -> None:
        """Leave it, if it could be entered: nobody sends it any more."""
        if self._entered.exception() is None:
            self._ready.__exit__(None, None, None)


def in_order(
    instances: Sequence[StoredInstance], send: Sends, ready: Readies, takes_time: Callable[[StoredInstance], bool]
) -> Generator[Outcome, None, None]:
    """Yield what became of each instance, sent one after the other.

    Parameters
    ----------
    ready
        Makes one ready to be sent.
    takes_time
        Whether that is worth beginning early: it is decoded, or de-identified, and will be sent.

    Raises
    ------
    PeerError
        The association ended.
    """
    begun: _Early | None = None
    with ThreadPoolExecutor(1, thread_name_prefix="decode-ahead") as pool:
        try:
            for place, instance in enumerate(instances):
                early, begun = begun, None
                following = instances[place + 1] if place + 1 < len(instances) else None
                if following is not None and takes_time(following):
                    begun = _Early(pool, ready(following))
                yield instance, send(instance, early=early)
        finally:
            if begun is not None:
                begun.drop()
