"""While one object is on its way over an association, the next is made ready.

What is decoded or de-identified first has a thread for that. The bytes of a file are read by the one who sends, once an
object has left and its response has not come, from the system's cache (`index.read_ahead`): the peer then never waits
for this node's disk.

The one association of a C-GET has its objects `in_order`. Those of a C-MOVE share theirs (`scp.destination`): each
takes another one before its turn only where that takes time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Protocol

from index.archive import StoredInstance
from scp.outcomes import Outcome
from scp.retrieve import Ready
from scp.status import Status

_LOG = logging.getLogger(__name__)

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

    def __init__(self, instance: StoredInstance, ready: AbstractContextManager[Ready]) -> None:
        self.instance = instance
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
        if self._found is None or self._is_left:
            return
        try:
            self.__exit__(None, None, None)
        except OSError as error:
            _LOG.error("what was made ready and is not sent cannot be removed: %s", error)


class Sender(AbstractContextManager["Sender"]):
    """Sends instances over one association, one after the other; nothing that was made ready is left after the block.

    Parameters
    ----------
    send
        Sends one.
    ready
        Makes one ready to be sent.
    takes_time
        Whether that is worth another thread: it is decoded, or de-identified, and will be sent.
    """

    def __init__(self, send: Sends, ready: Readies, takes_time: Callable[[StoredInstance], bool]) -> None:
        self.takes_time = takes_time
        self._send = send
        self._ready = ready
        self._begun: _Early | None = None
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="decode-ahead")

    def send(self, instance: StoredInstance, after: StoredInstance | None) -> Status:
        """Send `instance`, make `after` ready meanwhile, which should be the next one, and return what became of it.

        Raises
        ------
        PeerError
            The association ended.
        """
        early, self._begun, meanwhile = self._begun, None, None
        if early is not None and early.instance is not instance:
            early.drop()
            early = None
        try:
            if after is not None:
                self._begun = _Early(after, self._ready(after))
                if self.takes_time(after):
                    self._begun.begin_in(self._pool)
                else:
                    meanwhile = self._begun.begin
            return self._send(instance, early=early, meanwhile=meanwhile)
        finally:
            if early is not None:
                early.drop()  # of one that could not be sent

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        with self._pool:
            if self._begun is not None:
                self._begun.drop()


def in_order(instances: Iterable[StoredInstance], sender: Sender) -> Generator[Outcome, None, None]:
    """Yield what became of each instance, sent one after the other; raises `PeerError` when the association ended."""
    following = iter(instances)
    after = next(following, None)
    with sender:
        while (instance := after) is not None:
            after = next(following, None)
            yield instance, sender.send(instance, after)
