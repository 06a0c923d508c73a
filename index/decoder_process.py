"""Codecs in processes of their own: a hostile or damaged image may end one of these, and nothing else.

The libraries that decode JPEG, JPEG-LS and JPEG 2000 are written in C and C++, and end the whole process, with an abort
or worse, for some of what is not what it says it is. So the process that serves the network, or works on jobs, hands
each frame to a child and reads the pixels back. Children are kept for the next image, and end with their parent, whose
end they see on their standard input.

Requests and responses are a line of JSON and so many bytes as it says.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any

import numpy as np
import numpy.typing as npt

MOST_CHILDREN = 4
"""Children at the same time; who needs another one waits."""

_PATIENCE_S = 120.0
"""For one frame, seconds."""

_PROGRAM = "from index.decoding import serve; serve()"

_slots = threading.BoundedSemaphore(MOST_CHILDREN)
_idle: list[Child] = []
_lock = threading.Lock()

Decoded = tuple[npt.NDArray[np.generic], dict[str, Any]]


class DecoderDied(ValueError):
    """The child ended, or fell silent, over a frame; the message is a clause."""


class Child:
    """A child process that decodes."""

    def __init__(self) -> None:
        self._popen = subprocess.Popen(  # noqa: S603  (our own program, no shell)
            [sys.executable, "-P", "-c", _PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # where the codecs complain about the image; what they return tells as much
            start_new_session=True,
        )

    @property
    def is_alive(self) -> bool:
        """Whether it can be asked."""
        return self._popen.poll() is None

    def ask(self, request: dict[str, Any], content: bytes) -> Decoded:
        """Return the decoded frame and its properties.

        Raises
        ------
        DecoderDied
            The child did.
        ValueError
            What the decoder says of the frame.
        """
        assert self._popen.stdin is not None and self._popen.stdout is not None  # noqa: S101, PT018
        watch = threading.Timer(_PATIENCE_S, self._popen.kill)
        watch.start()
        try:
            send(self._popen.stdin, request, content)
            response, pixels = receive(self._popen.stdout)
        except (OSError, EOFError, ValueError) as error:
            self.end()
            raise DecoderDied("the decoder crashed, or ran out of time, over it") from error
        except BaseException:  # its answer may be on its way, and the next who asks would take it for his own
            self.end()
            raise
        finally:
            watch.cancel()
        if "error" in response:
            raise ValueError(response["error"])
        return np.frombuffer(pixels, response["dtype"]).reshape(response["shape"]), response["properties"]

    def end(self) -> None:
        """End the process."""
        self._popen.kill()
        for pipe in (self._popen.stdin, self._popen.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()
        self._popen.wait()


@contextmanager
def child() -> Iterator[Child]:
    """Lend a child: one that is idle, or a new one."""
    with _slots:
        with _lock:
            lent = _idle.pop() if _idle else None
        if lent is None or not lent.is_alive:
            lent = Child()
        try:
            yield lent
        finally:
            if lent.is_alive:
                with _lock:
                    _idle.append(lent)


def send(pipe: IO[bytes], header: dict[str, Any], content: bytes) -> None:
    """Write a request or a response."""
    pipe.write(json.dumps({**header, "size": len(content)}).encode() + b"\n")
    pipe.write(content)
    pipe.flush()


def receive(pipe: IO[bytes]) -> tuple[dict[str, Any], bytes]:
    """Read a request or a response; raises `EOFError` when the other side has ended."""
    line = pipe.readline()
    if not line.endswith(b"\n"):
        raise EOFError("the other side has ended")
    header = json.loads(line)
    content = pipe.read(header["size"])
    if len(content) != header["size"]:
        raise EOFError("the other side has ended")
    return header, content
