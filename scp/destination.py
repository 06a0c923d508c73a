"""A move destination: several associations side by side, each with its own thread, that share the work (PS3.4 C.4.2.3).

An association that the destination does not take (it has a limit) costs no instance: those that are open do the work.
One that ends is opened anew. Only when none is open, and none can be had, do the instances fail that would go over it.

What has to be decoded, or de-identified, is made ready while the object before it is on its way (`scp.ahead`). It still
waits meanwhile: an association that has nothing else to do takes it over from one that is held up.
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
from scp.ahead import Sender
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
    sender
        Gives what sends instances over an association.
    associations
        How many are open at the same time, at most.
    """

    def __init__(
        self,
        instances: Sequence[StoredInstance],
        open_link: Callable[[list[Proposal]], Link],
        sender: Callable[[Link], Sender],
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
        self._early: list[StoredInstance] = []
        self._open_link = open_link
        self._sender = sender
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
            self._early.clear()
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
        instance = self._take(None)
        while instance is not None and not self._is_stopped:
            number = self._number[instance.sop_class_uid]
            try:
                link = self._open(number)
            except PeerError as error:
                if self._leave_to_others(instance, number, error):
                    return
                self._outcomes.put(instance, status_of(error))
            except Exception as error:  # noqa: BLE001  (whatever happens to one instance is its own status)
                self._outcomes.put(instance, _unexpected(instance, error))
            else:
                instance = self._over(link, instance)
                continue
            instance = self._take(None)

    def _over(self, link: Link, instance: StoredInstance) -> StoredInstance | None:
        """Send `instance` and what follows over `link`, and close that; return what has to go over another one."""
        number = self._number[instance.sop_class_uid]
        with self._sender(link) as sender:
            while True:
                after = self._take_early(number, sender)
                self._outcomes.put(instance, self._sent(sender, instance, after))
                following = after if after is not None and self._still_waits(after) else self._take(link)
                if following is None or self._number[following.sop_class_uid] != number or not link.is_open:
                    break
                instance = following
        self._close(link)
        return following

    def _take(self, link: Link | None) -> StoredInstance | None:
        """Return the next instance; None when there is no more, and then no other thread leaves one to this `link`."""
        coming = None
        with self._lock:
            if self._waiting:
                taken, coming = self._next()
            elif self._early:
                taken = self._early.pop()
            else:
                if link is not None:
                    self._links.discard(link)
                return None
        _bring(coming)
        return taken

    def _take_early(self, number: int, sender: Sender) -> StoredInstance | None:
        """Return the next instance if it is to be made ready already; None also where others are about to send it."""
        with self._lock:
            if not self._waiting or len(self._waiting) < len(self._links):
                return None
            first = self._waiting[0]
            if self._number[first.sop_class_uid] != number or not sender.takes_time(first):
                return None
            taken, coming = self._next()
            self._early.append(taken)
        _bring(coming)
        return taken

    def _next(self) -> tuple[StoredInstance, StoredInstance | None]:
        """Take the next instance, and tell whose file should be on its way into the cache by now."""
        taken = self._waiting.popleft()
        return taken, self._waiting[READ_AHEAD - 1] if len(self._waiting) >= READ_AHEAD else None

    def _still_waits(self, instance: StoredInstance) -> bool:
        """Whether nobody has taken over what was taken early; from now on nobody can."""
        with self._lock:
            if instance not in self._early:
                return False
            self._early.remove(instance)
            return True

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

    def _close(self, link: Link) -> None:
        with self._lock:
            self._links.discard(link)
        link.release()

    def _sent(self, sender: Sender, instance: StoredInstance, after: StoredInstance | None) -> Status:
        try:
            return sender.send(instance, after)
        except Exception as error:  # noqa: BLE001  (whatever happens to one instance is its own status)
            return _unexpected(instance, error)


def _bring(coming: StoredInstance | None) -> None:
    if coming is not None:
        bring_to_cache(coming.path, coming.size)


def _unexpected(instance: StoredInstance, error: Exception) -> Status:
    if not is_expected(error):
        _LOG.error("sending %s failed", instance.sop_instance_uid, exc_info=error)
    return status_of(error)
