"""While one object is on its way, the next is made ready (C-GET, whose objects go over one association).

What is decoded first has a thread for that. The bytes of a file are read by the one who sends, once an object has left
and its response has not come, from the system's cache (`index.read_ahead`): the peer then never waits for this node's
disk.

A C-MOVE has as many associations as the settings allow, each with a thread of its own: one decodes while others send.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
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

    def __call__(
        self,
        instance: StoredInstance,
        *,
        early: AbstractContextManager[Ready] | None = None,
        meanwhile: Callable[[], object] | None = None,
    ) -> Status:
        """Return the Status that became of it; raises `PeerError`. Calls `meanwhile` before it waits."""


class _Early(AbstractContextManager[Ready]):
    """A context manager that is entered before it is needed: when `begin` is called, and at last when it is."""

    def __init__(self, ready: AbstractContextManager[Ready]) -> None:
        self._ready = ready
        self._found: Ready | None = None
        self._error: Exception | None = None
        self._elsewhere: Future[None] | None = None
        self._is_left = False

    def begin(self) -> None:
        """Enter it; what it raises is raised where it is needed."""
        try:
            self._found = self._ready.__enter__()
        except Exception as error:  # noqa: BLE001  (see above)
            self._error = error

    def begin_in(self, pool: ThreadPoolExecutor) -> None:
        """Have another thread enter it."""
        self._elsewhere = pool.submit(self.begin)

    def _settled(self) -> None:
        if self._elsewhere is not None:
            self._elsewhere.result()

    def __enter__(self) -> Ready:
        self._settled()
        if self._error is not None:
            raise self._error
        return self._ready.__enter__() if self._found is None else self._found

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        self._is_left = True
        return self._ready.__exit__(kind, error, trace)

    def drop(self) -> None:
        """Leave it, if it was entered and nobody has left it: nobody sends it any more."""
        self._settled()
        if self._found is not None and not self._is_left:
            self.__exit__(None, None, None)


def in_order(
    instances: Iterable[StoredInstance], send: Sends, ready: Readies, takes_time: Callable[[StoredInstance], bool]
) -> Generator[Outcome, None, None]:
    """Yield what became of each instance, sent one after the other.

    Parameters
    ----------
    ready
        Makes one ready to be sent.
    takes_time
        Whether that is worth another thread: it is decoded, or de-identified, and will be sent.

    Raises
    ------
    PeerError
        The association ended.
    """
    early: _Early | None = None
    begun: _Early | None = None
    following = iter(instances)
    after = next(following, None)
    with ThreadPoolExecutor(1, thread_name_prefix="decode-ahead") as pool:
        try:
            while (instance := after) is not None:
                after = next(following, None)
                early, begun, meanwhile = begun, None, None
                if after is not None:
                    begun = _Early(ready(after))
                    if takes_time(after):
                        begun.begin_in(pool)
                    else:
                        meanwhile = begun.begin
                status = send(instance, early=early, meanwhile=meanwhile)
                if early is not None:
                    early.drop()  # of one that could not be sent
                yield instance, status
        finally:
            for each in (early, begun):
                if each is not None:
                    each.drop()
