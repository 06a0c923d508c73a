"""What peers may have in this node's memory: messages that are received, or wait to be served (PS3.7 6.2, PS3.8 E).

A stored object goes to a file. Commands and Identifiers are kept in memory, and here is why that cannot be used up: a
message has a largest size, an association may have few of them waiting, and few associations at a time one that is
large. Who sends a large message while there is no room waits for it, on its own association. It leaves the room when it
is decoded, however long it is served, and has a time by which it has to be there.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from enum import Enum

_LARGEST_COMMAND = 1 << 16
"""Bytes of a command set; the longest that is in use lists some thousand tags."""

_LARGEST_DATA_SET = 1 << 24
"""Bytes of an Identifier; a hundred thousand UIDs need half of it."""

_LARGE = 1 << 16
_LARGE_AT_A_TIME = 8
_SLOWEST_S = 30.0
"""A large message has to be there, and its turn to have come, this long after it got room, seconds."""

_PATIENCE_S = 40.0
"""For room, seconds: longer than a peer that trickles can keep it."""

_LOOK_S = 0.2

_MOST_WAITING = 16
"""Requests of one association that wait to be served; a peer that keeps to PS3.7 waits for each response."""

_COMMAND, _LAST, _LAST_OF_COMMAND = 0b01, 0b10, 0b11
"""Bits of the message control header (PS3.8 E.2)."""

_NO_DATA_SET = 0x0101
_EVENT_REPORT = bytes.fromhex("0000 0001 0200 0000 0001")
"""Command Field (0000,0100) of an N-EVENT-REPORT-RQ, as it is encoded (PS3.7 E.1)."""

_room = threading.BoundedSemaphore(_LARGE_AT_A_TIME)


class InboxError(ValueError):
    """The peer sends more than fits, or what does not belong together: it loses its association."""


def ends_event_report(begun: bytes, fragment: bytes) -> bool:
    """Whether `fragment` ends the command of an N-EVENT-REPORT-RQ that began with `begun`."""
    return fragment[0] & _LAST_OF_COMMAND == _LAST_OF_COMMAND and _EVENT_REPORT in begun + fragment[1:]


def require_message(header: int, data_set_type: object) -> None:
    """Raise `InboxError` when the last fragment has come and pynetdicom could make no message of it.

    Parameters
    ----------
    header
        Message control header of the fragment.
    data_set_type
        Command Data Set Type (0000,0800) of the message that is not complete.
    """
    if header & _LAST and (not header & _COMMAND or data_set_type == _NO_DATA_SET):
        raise InboxError("a command set with values that its elements cannot have")


class _Stage(Enum):
    NONE = "no large message"
    RECEIVING = "fragments of it are coming"
    WAITING = "it waits to be served"
    SERVED = "it is being served"


class Inbox:
    """Account of the messages of one association. Fragments come in one thread, messages are taken in another.

    Parameters
    ----------
    too_late
        Called, in a thread of its own, when a large message takes too long; None lets it take its time.
    """

    def __init__(self, too_late: Callable[[], None] | None = None) -> None:
        self._too_late = too_late
        self._timer: threading.Timer | None = None
        self._is_closed = False
        self._lock = threading.Lock()
        self._stage = _Stage.NONE
        self._context_id = 0
        self._expects_data = False
        self._begun = False

    @property
    def is_closed(self) -> bool:
        """Whether the association is gone: nothing is received any more."""
        return self._is_closed

    def fragment(self, context_id: int, header: int) -> None:
        """Check that the next fragment belongs to the message under way; `header` is its message control header.

        Raises
        ------
        InboxError
            Another presentation context, a data set before its command, or a command within a data set.
        """
        if self._begun and context_id != self._context_id:
            raise InboxError(f"context {context_id} within a message of context {self._context_id}")
        is_command = bool(header & _COMMAND)
        if is_command == self._expects_data:
            what, where = ("command", "data set") if is_command else ("data set", "command")
            raise InboxError(f"a fragment of a {what} where one of a {where} is expected")
        self._begun, self._context_id = True, context_id

    def received(self, command_bytes: int, data_bytes: int, *, expects_data: bool, waiting: int) -> None:
        """Take note of what a message that is not complete holds in memory now.

        Parameters
        ----------
        expects_data
            Its command is complete, its data set is not.
        waiting
            Messages of the association that wait to be served.

        Raises
        ------
        InboxError
            It is too large, or there is no room.
        """
        self._expects_data = expects_data
        if command_bytes > _LARGEST_COMMAND:
            raise InboxError(f"a command set of more than {_LARGEST_COMMAND} bytes")
        if data_bytes > _LARGEST_DATA_SET:
            raise InboxError(f"a data set of more than {_LARGEST_DATA_SET} bytes that is not to be stored")
        if data_bytes <= _LARGE or self._stage is _Stage.RECEIVING:
            return
        if self._stage is not _Stage.NONE or waiting:
            raise InboxError("a large request while another one waits for its response")
        self._enter()

    def _enter(self) -> None:
        """Wait for room."""
        deadline = time.monotonic() + _PATIENCE_S
        while not _room.acquire(timeout=min(_LOOK_S, _PATIENCE_S)):
            if self._is_closed:
                raise InboxError("the association ended before there was room for a large request")
            if time.monotonic() >= deadline:
                raise InboxError(f"no room for a large request within {_PATIENCE_S:g} s")
        with self._lock:
            if self._is_closed:  # `clear` has been here before there was anything to leave
                _room.release()
                raise InboxError("the association ended before there was room for a large request")
            self._stage = _Stage.RECEIVING
            if self._too_late is not None:
                self._timer = threading.Timer(_SLOWEST_S, self._expire)
                self._timer.daemon = True
                self._timer.start()

    def _expire(self) -> None:
        with self._lock:
            is_late = self._stage in (_Stage.RECEIVING, _Stage.WAITING)
        if is_late and self._too_late is not None:
            self._too_late()

    def completed(self, waiting: int) -> None:
        """Take note that the message is complete; raises `InboxError` when too many wait."""
        self._begun = self._expects_data = False
        with self._lock:
            if self._stage is _Stage.RECEIVING:
                self._stage = _Stage.WAITING
        if waiting > _MOST_WAITING:
            raise InboxError(f"more than {_MOST_WAITING} requests wait for their responses")

    def taken(self, *, is_message: bool) -> None:
        """Take note that somebody has looked for a message; the one he took before is finished with."""
        with self._lock:
            if self._stage is _Stage.SERVED:
                self._leave()
            elif self._stage is _Stage.WAITING and is_message:
                self._stage = _Stage.SERVED
                self._stop_timer()

    def decoded(self) -> None:
        """Take note that the message that is served is decoded: others may have its room."""
        with self._lock:
            if self._stage is _Stage.SERVED:
                self._leave()

    def clear(self) -> None:
        """Take note that the association is gone."""
        with self._lock:
            self._is_closed = True
            if self._stage is not _Stage.NONE:
                self._leave()

    def _leave(self) -> None:
        self._stage = _Stage.NONE
        self._stop_timer()
        _room.release()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
