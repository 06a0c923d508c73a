"""A move destination: several associations side by side, each with its own thread, that share the work (PS3.4 C.4.2.3).

An association that the destination does not take (it has a limit) costs no instance: those that are open do the work.
One that ends is opened anew. Only when none is open, and none can be had, do the instances fail that would go over it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from types import TracebackType

from index.archive import StoredInstance
from index.read_ahead import READ_AHEAD, bring_to_cache
from scp.contexts import Proposal, storage_proposals
from scp.errors import PeerError
from scp.link import Link
from scp.outcomes import LOOK_S, Outcome, Outcomes
from scp.status import Status, is_expected, status_of

_LOG = logging.getLogger(__name__)

_GRACE_S = 1.0
"""When stopped, sub-operations under way may end by themselves for so long."""


class Destination:
    """Sends instances to a move destination; a context manager, which leaves no association open behind it.

    Parameters
    ----------
    instances
        What will be sent.
    open_link
        Opens an association with these contexts; raises `PeerError`.
    send
        Sends one instance over an association; raises `PeerError`.
    associations
        How many are open at the same time, at most.
    """

    def __init__(
        self,
        instances: Sequence[StoredInstance],
        open_link: Callable[[list[Proposal]], Link],
        send: Callable[[Link, StoredInstance], Status],
        *,
        associations: int = 1,
    ) -> None:
        kinds = dict.fromkeys((instance.sop_class_uid, instance.transfer_syntax_uid) for instance in instances)
        self._proposals = storage_proposals(kinds, convertible=True)
        self._number = {
            proposal.sop_class_uid: number
            for number, proposals in enumerate(self._proposals)
            for proposal in proposals
        }
        self._waiting = deque(sorted(instances, key=lambda instance: self._number[instance.sop_class_uid]))
        self._open_link = open_link
        self._send = send
        self._lock = threading.Lock()
        self._opening = threading.Lock()
        self._outcomes = Outcomes(len(instances))
        self._links: set[Link] = set()
        self._unreachable: dict[int, PeerError] = {}
        self._is_stopped = False
        self._lanes = [
            threading.Thread(target=self._run, name=f"sub-association {number}", daemon=True)
            for number in range(min(associations, len(instances)))
        ]

    def __enter__(self) -> Destination:
        for instance in islice(self._waiting, READ_AHEAD):
            bring_to_cache(instance.path, instance.size)
        for lane in self._lanes:
            lane.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        for _ in self.stop(grace_s=0.0):
            pass

    def outcomes(self) -> Iterator[Outcome | None]:
        """Yield each sub-operation as it ends, and None now and then while none does."""
        return self._outcomes.each()

    def stop(self, grace_s: float = _GRACE_S) -> Iterator[Outcome]:
        """Begin no more sub-operations, and yield those that end within `grace_s` seconds; the others are aborted."""
        with self._lock:
            self._is_stopped = True
            self._waiting.clear()
            links = list(self._links)
        deadline = time.monotonic() + grace_s
        for lane in self._lanes:
            lane.join(max(0.0, deadline - time.monotonic()))
        # Not waited for longer: one may be waiting for the answer to an association request.
        deadline = time.monotonic() + _GRACE_S
        while any(lane.is_alive() for lane in self._lanes) and time.monotonic() < deadline:
            for link in links:
                link.abort()
            for lane in self._lanes:
                lane.join(LOOK_S / len(self._lanes))
        yield from self._outcomes.known()

    # In the thread of an association

    def _run(self) -> None:
        link: Link | None = None
        current = -1
        while (instance := self._take(link)) is not None:
            number = self._number[instance.sop_class_uid]
            try:
                if link is None or current != number or not link.is_open:
                    self._close(link)
                    link, current = None, number
                    link = self._open(number)
            except PeerError as error:
                if self._leave_to_others(instance, number, error):
                    return
                self._outcomes.put(instance, status_of(error))
            except Exception as error:  # noqa: BLE001  (whatever happens to one instance is its own status)
                self._outcomes.put(instance, _unexpected(instance, error))
            else:
                self._outcomes.put(instance, self._sent(link, instance))
        self._close(link)

    def _take(self, link: Link | None) -> StoredInstance | None:
        """Return the next instance; None when there is no more, and then no other thread leaves one to this `link`."""
        with self._lock:
            taken = self._waiting.popleft() if self._waiting else None
            if taken is None and link is not None:
                self._links.discard(link)
            coming = self._waiting[READ_AHEAD - 1] if len(self._waiting) >= READ_AHEAD else None
        if coming is not None:
            bring_to_cache(coming.path, coming.size)
        return taken

    def _leave_to_others(self, instance: StoredInstance, number: int, error: PeerError) -> bool:
        """Put `instance` back for the other associations, and end this one; False when no other is open."""
        with self._lock:
            if self._is_stopped:
                return True
            if number not in self._unreachable and any(link.is_open for link in self._links):
                self._waiting.appendleft(instance)
                _LOG.info("%s; the open associations go on", error)
                return True
            self._unreachable.setdefault(number, error)
            return False

    def _open(self, number: int) -> Link:
        # One after the other: of several requests at once a peer with a limit may take none.
        with self._opening:
            if number in self._unreachable:
                raise self._unreachable[number]
            link = self._open_link(self._proposals[number])
            with self._lock:
                self._links.add(link)
            return link

    def _close(self, link: Link | None) -> None:
        if link is None:
            return
        with self._lock:
            self._links.discard(link)
        link.release()

    def _sent(self, link: Link, instance: StoredInstance) -> Status:
        try:
            return self._send(link, instance)
        except Exception as error:  # noqa: BLE001  (whatever happens to one instance is its own status)
            return _unexpected(instance, error)


def _unexpected(instance: StoredInstance, error: Exception) -> Status:
    if not is_expected(error):
        _LOG.error("sending %s failed", instance.sop_instance_uid, exc_info=error)
    return status_of(error)
