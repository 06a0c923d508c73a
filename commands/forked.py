"""Processes forked from this one: how they are made, what they say, and how both sides learn of the other's end.

The parent has to have one thread: a child would wait for ever for locks that other threads held. See
docs/decisions/0018-forked-processes.md.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import logging
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn, Protocol

logger = logging.getLogger(__name__)

_SIGNALS = {signal.SIGTERM, signal.SIGINT}
_LOOK_S = 0.02
_ORPHAN_GRACE_S = 5.0
"""A process whose supervisor is gone ends after this at the latest, seconds: the next start waits for it."""

_END_OF_ARGUMENTS = 46
"""Place of ``arg_end`` in /proc/self/stat, counted from the state, which is behind the name; ``arg_start`` is before it
(proc_pid_stat(5), fields 48 and 49)."""


class Closeable(Protocol):
    """What holds a file descriptor that a child has no business with."""

    def close(self) -> None:
        """Give it back."""


class CannotStart(Exception):
    """Raised in a child that cannot do what it is for; the message is one sentence for the user."""


class Ties:
    """A child's ties with its parent.

    Parameters
    ----------
    lifeline
        Readable, and at its end, when the parent is gone.
    words
        What is written to it the parent hears.
    """

    def __init__(self, lifeline: int, words: int) -> None:
        self._lifeline, self._words = lifeline, words

    def tell(self, facts: dict[str, Any]) -> None:
        """Tell the parent something; nothing happens when it is gone."""
        line = memoryview(json.dumps(facts).encode() + b"\n")
        with contextlib.suppress(BrokenPipeError):
            while line:
                line = line[os.write(self._words, line) :]

    def on_stop(self, stop: Callable[[], None]) -> None:
        """Call `stop` on SIGTERM and when the parent is gone; the process ends soon after the latter in any case.

        It is called in a thread of its own, where it may take locks: whatever a signal interrupts may hold them.
        """
        bell = Bell()
        signal.signal(signal.SIGTERM, lambda *_: bell.ring())

        def wait_for_either() -> None:
            wait_for_any((), None, self._lifeline, bell.listener)
            if is_readable(bell.listener):
                stop()
            while os.read(self._lifeline, 1):
                pass
            logger.info("the supervisor is gone: stopping")
            stop()
            time.sleep(_ORPHAN_GRACE_S)
            os._exit(1)

        threading.Thread(target=wait_for_either, name="lifeline", daemon=True).start()


class Child:
    """A process that this one has forked.

    Attributes
    ----------
    pid
        Its number, which nobody else gets before `poll` or `wait` has told that it ended.
    returncode
        None while it runs, then its exit status, negative for the signal that ended it.
    told
        What it has said.
    """

    def __init__(self, pid: int, lifeline: int, words: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self.told: dict[str, Any] = {}
        self._lifeline, self._words = lifeline, words
        self._heard = b""
        os.set_blocking(words, False)

    def poll(self) -> int | None:
        """Look whether it has ended, and return `returncode`."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
                self.listen()
                self.close()
        return self.returncode

    def wait(self, timeout_s: float) -> int | None:
        """Wait until it has ended, `timeout_s` seconds at most, and return `returncode`."""
        deadline = time.monotonic() + timeout_s
        while self.poll() is None and time.monotonic() < deadline:
            time.sleep(_LOOK_S)
        return self.returncode

    def terminate(self) -> None:
        """Ask it to end."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if self.returncode is None:  # so its number is still its own
            os.kill(self.pid, number)

    @property
    def words(self) -> int:
        """File descriptor to poll: readable when it says something or ends; negative when that is over."""
        return self._words

    def listen(self) -> None:
        """Put what it has said since the last time into `told`; does not wait."""
        while self._words >= 0:
            try:
                heard = os.read(self._words, 4096)
            except BlockingIOError:
                return
            if not heard:
                os.close(self._words)
                self._words = -1
            self._heard += heard
            *lines, self._heard = self._heard.split(b"\n")
            for line in lines:
                self.told.update(json.loads(line))

    def close(self) -> None:
        """Give back what ties this process to it; to a child that runs it looks as if this process had ended."""
        for descriptor in (self._lifeline, self._words):
            if descriptor >= 0:
                os.close(descriptor)
        self._lifeline = self._words = -1


class Bell:
    """Ends a wait in `wait_for_any` from a signal handler or another thread."""

    def __init__(self) -> None:
        self.listener, self._ringer = os.pipe()
        for descriptor in (self.listener, self._ringer):
            os.set_blocking(descriptor, False)

    def ring(self) -> None:
        """End the wait in progress, or the next one, and every one after that."""
        with contextlib.suppress(OSError):  # full: it rings already; or closed
            os.write(self._ringer, b"\0")

    def close(self) -> None:
        """Take it down."""
        for descriptor in (self.listener, self._ringer):
            if descriptor >= 0:
                os.close(descriptor)
        self.listener = self._ringer = -1


def wait_for_any(children: Iterable[Child], timeout_s: float | None, *others: int) -> None:
    """Wait until a child says something or ends, one of `others` can be read, or `timeout_s` seconds have passed.

    None waits for as long as that takes.

    What the children have said is in their `told` afterwards; a child that ends may run for another moment.
    """
    poll = select.poll()
    by_descriptor = {child.words: child for child in children if child.words >= 0}
    for descriptor in (*by_descriptor, *others):
        poll.register(descriptor, select.POLLIN)
    for descriptor, _ in poll.poll(None if timeout_s is None else timeout_s * 1000):
        if (child := by_descriptor.get(descriptor)) is not None:
            child.listen()
            if child.words < 0:
                child.wait(_LOOK_S)


def is_readable(descriptor: int) -> bool:
    """Whether a file descriptor can be read, or is at its end."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))


def prepare_to_fork() -> None:
    """Make this process one that can be forked at little cost, once it has imported what its children need.

    Garbage is collected from now on, but never among what exists now.

    Raises
    ------
    RuntimeError
        It has more than one thread.
    """
    if threading.active_count() > 1:
        names = ", ".join(thread.name for thread in threading.enumerate())
        raise RuntimeError(f"a process with several threads ({names}) cannot be forked")
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass  # a standard stream was closed: its number would go to something that children replace
    os.close(descriptor)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # where it is ignored, nobody learns how a child ended
    gc.freeze()  # a garbage collection would write into pages that all share
    gc.enable()


def fork(run: Callable[[Ties], int], title: str, closing: Iterable[Closeable]) -> Child:
    """Start a process that runs `run` and ends with the exit status that this returns.

    Parameters
    ----------
    title
        Its command line, for `ps`.
    closing
        What this process holds and the child must not, such as the ties to other children.

    Raises
    ------
    OSError
        The system lets this user have no more processes, or no more files.
    """
    lifeline, our_lifeline = os.pipe()
    try:
        our_words, words = os.pipe()
    except OSError:
        os.close(lifeline)
        os.close(our_lifeline)
        raise
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()  # the child would say it again
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        pid = os.fork()
    except OSError:
        for descriptor in (lifeline, our_lifeline, our_words, words):
            os.close(descriptor)
        raise
    else:
        if pid == 0:
            os.close(our_lifeline)
            os.close(our_words)
            _be_child(run, Ties(lifeline, words), title, closing, blocked)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    os.close(lifeline)
    os.close(words)
    return Child(pid, our_lifeline, our_words)


def _be_child(
    run: Callable[[Ties], int], ties: Ties, title: str, closing: Iterable[Closeable], mask: Iterable[int]
) -> NoReturn:
    """Do what the child is for, and end it: never back into what its parent was doing."""
    status = 1
    try:
        # Until it knows better: SIGTERM ends it, and SIGINT, which a whole group gets, is for the supervisor.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for each in closing:
            each.close()
        _take_standard_streams()
        _set_title(title)
        importlib.invalidate_caches()  # a plug-in may have been installed since they were filled
        status = run(ties)
    except CannotStart as error:
        ties.tell({"error": str(error)})
    except SystemExit as error:  # of a plug-in, which means it
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:  # whatever it is: the stack below belongs to the parent
        logger.critical("%s ends", title, exc_info=True)
    finally:
        # Not through the interpreter's shutdown, which would wait for threads that are blocked in reading.
        with contextlib.suppress(Exception):
            logging.shutdown()
            sys.stderr.flush()
        os._exit(status)


def _take_standard_streams() -> None:
    """Read nothing, and let whatever prints write to standard error: standard output is for the command's user."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)


def _set_title(title: str) -> None:
    """Put `title` over the command line of this process, cut to its length; where that cannot be, it stays."""
    try:
        fields = Path("/proc/self/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        begin, end = map(int, fields[_END_OF_ARGUMENTS - 1 : _END_OF_ARGUMENTS + 1])
        room = end - begin
        with Path("/proc/self/mem").open("r+b", buffering=0) as memory:
            memory.seek(begin)
            memory.write(title.encode()[: room - 1].ljust(room, b"\0"))
        Path("/proc/self/comm").write_text(title.rpartition(" ")[2], encoding="utf-8")
    except (OSError, ValueError):
        logger.debug("this process keeps the name of its parent", exc_info=True)
