"""What a running node leaves in its data folder for other commands: that it is there, and where."""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

STATE_FILE = "node.json"
_LOCK_FILE = "node.lock"

_LOCK_WAIT_S = 15.0
"""Longer than the processes of a node that was killed take to end."""

_LOOK_S = 0.2


class StartError(Exception):
    """The node cannot start; the message is one sentence for the user."""


class StoppedAtStart(StartError):
    """Somebody has stopped the node before it was ready."""


def take_lock(data: Path) -> IO[str]:
    """Return the lock of the data folder, which is made if need be; it is free when all who have inherited it are gone.

    Raises
    ------
    StartError
        Another node has it, or the folder cannot be written.
    """
    try:
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = (data / _LOCK_FILE).open("a")
    except OSError as error:
        why = "it is a file, expected a folder" if data.is_file() else error.strerror
        raise StartError(f"cannot use the data folder {data}: {why}") from error
    deadline = time.monotonic() + _LOCK_WAIT_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            # The processes of a node that was killed take a moment to notice it.
            if time.monotonic() > deadline:
                lock.close()
                raise StartError(f"another node is using the data folder {data}") from None
            time.sleep(_LOOK_S)
        else:
            return lock


@contextmanager
def only_user(data: Path) -> Iterator[None]:
    """Keep every node off the data folder while the block runs; raises `StartError` when one is using it."""
    with (data / _LOCK_FILE).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StartError(f"a node is running on {data}: stop it first") from None
        yield


def write_state(data: Path, state: Mapping[str, object]) -> None:
    """Tell other commands of the node that runs."""
    path = data / STATE_FILE
    partial = path.with_suffix(".part")
    partial.write_text(json.dumps(state), encoding="utf-8")
    partial.replace(path)


def read_state(data: Path) -> dict[str, object] | None:
    """Return what a running node says of itself, or None when no node runs on the data folder."""
    try:
        with (data / _LOCK_FILE).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:  # a node holds it
        try:
            state: dict[str, object] = json.loads((data / STATE_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):  # it is just starting or stopping
            return None
        return state
    except OSError:  # there has never been one
        return None
    return None
