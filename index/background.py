"""Work that waits for the disk, done by another thread while whoever gave it goes on.

A write and a flush let go of the interpreter's lock: the disk is at work while a header is read and rows are made. See
`docs/decisions/0019-beside-the-disk.md`.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress

_MOST = 4
"""Threads of a process. Where all are at work, so are the processors, and one more would only take memory."""


class Background:
    """One piece of work, begun in another thread. Any thread may wait for it.

    Parameters
    ----------
    work
        What it raises, those are told who wait.
    """

    def __init__(self, work: Callable[[], object]) -> None:
        self._work: Callable[[], object] | None = work
        self._error: BaseException | None = None
        self._under_way = threading.Lock()
        self._under_way.acquire()
        worker = _worker()
        if worker is not None and worker.begin(self):
            time.sleep(0)  # lets go of the interpreter's lock: the disk begins now
        else:  # there is no thread to be had: it takes longer, that is all
            self.do()
            self.end()

    def wait(self) -> None:
        """Return when it is done.

        Raises
        ------
        BaseException
            What the work has raised; to whoever asks, and as often.
        """
        with self._under_way:
            pass
        if self._error is not None:
            raise self._error

    def do(self) -> None:
        """Do it; for the thread that was found."""
        work, self._work = self._work, None  # nobody holds what it holds any longer than it takes
        try:
            if work is not None:
                work()
        except BaseException as error:  # noqa: BLE001  (who waits raises it)
            self._error = error

    def end(self) -> None:
        """Let those go on who wait; for the thread that has done it."""
        self._under_way.release()


class _Worker:
    """A thread that does one piece of work after the other."""

    def __init__(self) -> None:
        self._given: Background | None = None
        self._called = threading.Lock()
        self._called.acquire()
        self._is_alive = False

    def begin(self, given: Background) -> bool:
        """Begin a piece of work, only while it has none; False when there is no thread."""
        self._given = given
        if not self._is_alive:
            try:
                threading.Thread(target=self._run, name="disk", daemon=True).start()
            except RuntimeError:
                self._given = None
                _places.append(None)
                return False
            self._is_alive = True
        self._called.release()
        return True

    def _run(self) -> None:
        while True:
            self._called.acquire()
            given, self._given = self._given, None
            if given is None:
                return
            given.do()
            _idle.append(self)
            given.end()
            del given


_idle: deque[_Worker] = deque()
_places: deque[None] = deque([None] * _MOST)


def _worker() -> _Worker | None:
    """Return a worker that has nothing to do, None when all have."""
    with suppress(IndexError):
        return _idle.pop()
    with suppress(IndexError):
        _places.pop()
        return _Worker()
    return None


def _forget() -> None:
    """Begin without a thread: those of another process do not come along."""
    _idle.clear()
    _places.clear()
    _places.extend([None] * _MOST)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
