"""Who is at work in this process, and since when: a plug-in that hangs is ended, with its process, and known by name.

Python cannot stop a thread, so the process ends; the supervisor starts it again. Before a plug-in gets the word, its
name is written to a small file, the note. Who died, of whatever cause, has left its note, and its successor reads there
who had the word (`plugins.aftermath`). Only the standard library is imported here: the supervisor reads notes, too.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

logger = logging.getLogger(__name__)

HUNG, AGAIN = 71, 72
"""Exit status of a process that ended because a plug-in hung; of one that is to be started with other plug-ins."""

NODE_ITSELF = ""
"""Name of nobody: the node itself is at work, not a plug-in."""

_LOOK_S = 0.5
_GRACE_S = 5.0
"""A plug-in that lets no other thread run, so that nobody can look, is ended this much later, seconds."""

_LONGEST_S = 1e9
"""What the C library is told at most, seconds: it cannot wait for a limit that is meant to be none."""


@dataclass(frozen=True)
class Doing:
    """What is being done.

    Attributes
    ----------
    plugin
        Who does it.
    place
        ``import``, the name of a hook, or ``job`` and the kind.
    limit_s
        How long it may go on without a sign of life, seconds.
    job, started
        Number of the job that is being done, and when the attempt began, seconds since the epoch; 0 when there is none.
    subject
        Of that job.
    hung
        Whether the limit was passed.
    process
        Number of the process that does it.
    """

    plugin: str
    place: str
    limit_s: float
    job: int = 0
    started: float = 0.0
    subject: str = ""
    hung: bool = False
    process: int = field(default_factory=os.getpid)

    @property
    def sentence(self) -> str:
        """What it did when it hung, without the name of the plug-in in front."""
        if self.place.startswith("job "):
            return f"reported no progress on {self.place.removeprefix('job ')} for {self.limit_s:g} s"
        return f"did not return from {self.place} within {self.limit_s:g} s"


class Note:
    """The file that tells who is at work in one process of the node.

    Parameters
    ----------
    path
        Its place; the folder is made.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        self.left = read_note(path)
        """What the last process of this name was doing when it ended; None when it was doing nothing."""
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)

    def write(self, doing: Doing | None) -> None:
        """Replace what the file tells: not flushed to the disk, for it has to outlive the process, not the machine."""
        told = json.dumps(asdict(doing)).encode() if doing else b""
        os.pwrite(self._file, told, 0)
        os.ftruncate(self._file, len(told))

    def close(self) -> None:
        """Give the file back."""
        os.close(self._file)


def note_path(data: Path, process: str) -> Path:
    """Where a process of the node notes what it does."""
    return data / "doing" / f"{process}.json"


def read_note(path: Path) -> Doing | None:
    """Return what a note tells; None when it tells nothing."""
    try:
        return Doing(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):  # absent, empty, or written half
        return None


class Watch:
    """Looks whether what is being done comes back in time.

    Parameters
    ----------
    note
        Where it is told; None: nowhere.
    end
        Called, in a thread of its own, with what hangs; does not return. None: nobody looks.
    returned
        Called with (plug-in, place) of what came back.
    clock
        Seconds.
    """

    def __init__(
        self,
        note: Note | None = None,
        end: Callable[[Doing], object] | None = None,
        *,
        returned: Callable[[str, str], object] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._note = note
        self._end = end
        self._returned = returned
        self._clock = clock
        self._lock = threading.RLock()
        self._stack: list[Doing] = []
        self._since = self._armed_at = 0.0
        self._warned = self._is_looking = False

    @contextmanager
    def over(
        self, plugin: str, place: str, limit_s: float, *, job: tuple[int, float, str] | None = None
    ) -> Iterator[None]:
        """Watch over the block, in which `plugin` has the word; blocks inside of it count for themselves.

        Parameters
        ----------
        job
            Number, begin of the attempt (seconds since the epoch) and subject of the job that is done; None: as around
            the block.
        """
        doing = Doing(plugin, place, limit_s)
        with self._lock:
            if job is not None:
                doing = replace(doing, job=job[0], started=job[1], subject=job[2])
            elif self._stack:
                around = self._stack[-1]
                doing = replace(doing, job=around.job, started=around.started, subject=around.subject)
            self._stack.append(doing)
            self._goes_on()
        try:
            yield
        except Exception:  # who raises comes back, too
            self._leave(doing)
            raise
        except BaseException:  # the process ends, and nobody asks any more
            self._leave(None)
            raise
        self._leave(doing)

    def _leave(self, came_back: Doing | None) -> None:
        with self._lock:
            self._stack.pop()
            self._goes_on()
        if came_back is not None and self._returned is not None and came_back.plugin != NODE_ITSELF:
            self._returned(came_back.plugin, came_back.place)

    def sign_of_life(self) -> None:
        """Let the limit begin anew."""
        with self._lock:
            self._since, self._warned = self._clock(), False
            if self._since - self._armed_at > _LOOK_S:
                self._arm()

    def _goes_on(self) -> None:
        self._since, self._warned = self._clock(), False
        self._arm()
        if self._note is not None:
            self._note.write(self._stack[-1] if self._stack else None)

    def look(self) -> float | None:
        """End the process when what is being done is past its limit; return how long it still has, seconds."""
        with self._lock:
            if not self._stack or self._end is None:
                return None
            doing = self._stack[-1]
            left = doing.limit_s - (self._clock() - self._since)
            if left <= 0:  # under the lock: what has been noted as hung cannot come back any more
                if self._note is not None:
                    self._note.write(replace(doing, hung=True))
                self._end(doing)
            elif left < doing.limit_s / 2 and doing.limit_s >= 1.0 and not self._warned:
                self._warned = True
                logger.warning("%s has been silent in %s for half of its %g s", _who(doing), doing.place, doing.limit_s)
            return left

    def _arm(self) -> None:
        """Have the process ended by a thread of the C library: one that needs no interpreter, when nobody can look."""
        if not self._is_looking:
            return
        self._armed_at = self._clock()
        if self._stack:
            faulthandler.dump_traceback_later(min(self._stack[-1].limit_s, _LONGEST_S) + _GRACE_S, exit=True)
        else:
            faulthandler.cancel_dump_traceback_later()

    def start(self) -> None:
        """Look from now on, in a thread of its own; and have the process ended where that thread cannot run."""
        self._is_looking = True
        threading.Thread(target=self._look_on, name="watch", daemon=True).start()

    def _look_on(self) -> None:
        pause = threading.Event()
        while True:
            self.look()
            pause.wait(_LOOK_S)


UNWATCHED = Watch()
"""For processes that nobody starts again: nothing is ended."""


def end_process(doing: Doing) -> None:
    """End this process, because of what hangs in it; the log tells where it was."""
    logger.error("%s %s: this process ends and is started again", _who(doing), doing.sentence)
    faulthandler.dump_traceback(sys.__stderr__ or sys.stderr, all_threads=True)
    logging.shutdown()
    os._exit(HUNG)


def _who(doing: Doing) -> str:
    return f"plug-in {doing.plugin}" if doing.plugin else "the node"
