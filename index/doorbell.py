"""Wakes the process that waits for work: a named pipe in the data folder that anybody on it can ring.

It carries no message and nothing depends on it: the work is in rows, and who waits looks there now and then anyway. The
bell only makes that a matter of milliseconds.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import threading
from pathlib import Path

logger = logging.getLogger(__name__)

ENCODER_BELL = "encoder.bell"
"""Name, in the data folder, of the bell of the process that embeds what is asked about."""


def ring(path: Path) -> None:
    """End the wait of whoever listens at the bell; nothing happens when nobody does."""
    try:
        pipe = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    except OSError as error:  # no bell yet, no listener, or a file system without named pipes
        if error.errno not in (errno.ENOENT, errno.ENXIO, errno.ENOTSUP):
            logger.warning("the bell %s cannot be rung: %s", path.name, error.strerror)
        return
    try:
        os.write(pipe, b"\0")
    except OSError:  # full: it rings already; or the listener has just gone
        return
    finally:
        os.close(pipe)


class Doorbell:
    """The listener's end; where the file system has no named pipes, it only waits."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._pipe: int | None = None
        self._never = threading.Event()
        try:
            if not path.exists():
                os.mkfifo(path, 0o600)
            # Open for writing as well: a pipe that has lost its last writer would be readable for ever.
            self._pipe = os.open(path, os.O_RDWR | os.O_NONBLOCK)
        except OSError as error:
            logger.warning("no bell %s (%s): work is found by looking for it", path.name, error.strerror)

    def ring(self) -> None:
        """End the wait in progress, or the next one (safe in a signal handler)."""
        ring(self._path)

    def wait(self, timeout_s: float) -> None:
        """Wait until the bell rings or `timeout_s` seconds have passed."""
        if self._pipe is None:
            self._never.wait(timeout_s)
            return
        poll = select.poll()
        poll.register(self._pipe, select.POLLIN)
        if poll.poll(timeout_s * 1000):
            self._silence(self._pipe)

    @staticmethod
    def _silence(pipe: int) -> None:
        try:
            while os.read(pipe, 1024):
                pass
        except BlockingIOError:
            return

    def close(self) -> None:
        """Listen no more."""
        if self._pipe is not None:
            os.close(self._pipe)
            self._pipe = None
