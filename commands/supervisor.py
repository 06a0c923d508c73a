"""The processes of a node: started together, restarted when one dies, stopped together.

One or more processes serve the network, one or more do the work, one embeds what queries ask about, one sends on what
the rules want sent, and one talks with an Orthanc, the last two where the settings want it. They are forked from this
one, and share nothing but the data folder, and the listening sockets, which the supervisor opens: when a network
process dies, nobody is turned away. The supervisor holds the folder's lock, so that two nodes never serve one folder;
its processes inherit the lock and it is free only when all of them are gone.

So that it can fork, the supervisor has one thread and opens no catalogue: docs/decisions/0018-forked-processes.md.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO

from commands import tidying
from commands.forked import Bell, Child, Ties, fork, is_readable, prepare_to_fork, wait_for_any
from commands.process import preload, run_as
from commands.state import STATE_FILE, StartError, StoppedAtStart, take_lock, write_state
from config.settings import Settings
from plugins.watch import AGAIN, HUNG, note_path, read_note
from scp.lobby import CannotListen, open_port
from scp.places import PLACES_FILE, vacate
from scp.sharing import Sharing

logger = logging.getLogger(__name__)

_START_S = 60.0
"""A process that is not ready by then has failed to start, seconds."""

_RESTART_DELAYS_S = (0.0, 1.0, 2.0, 5.0, 10.0, 30.0)
"""Wait before each restart of a process that keeps dying; one that ran a minute starts at the front again."""

_SETTLED_S = 60.0
_LOOK_S = 0.2
_KILLED_S = 10.0
"""For the system to end a process that was killed."""


@dataclass
class _Process:
    """A role of the node and the operating system process that fills it at the moment."""

    role: str
    name: str
    child: Child | None = None
    started: float = 0.0
    deaths: int = 0
    restart_at: float | None = None
    how_it_ended: str = ""

    @property
    def pid(self) -> int:
        """Of the operating system process."""
        return self.child.pid if self.child else 0


class Supervisor:
    """Runs the processes of one node.

    Parameters
    ----------
    settings
        Of the node.

    Attributes
    ----------
    port, tls_port
        That the node listens on without and with TLS, once it has been started; 0 for none.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._data = settings.archive.data
        self._processes = [
            *(_Process("network", name) for name in settings.network.acceptor_names()),
            *(_Process("worker", f"worker-{number}") for number in range(1, settings.jobs.workers + 1)),
            *([_Process("encoder", "encoder")] if settings.similarity.enabled else []),
            *([_Process("router", "router")] if settings.routes else []),
            *([_Process("orthanc", "orthanc")] if settings.orthanc.enabled else []),
        ]
        self._is_stopping = False
        self._bell = Bell()
        self._dead: set[int] = set()
        self._tidier: Child | None = None
        self._lock: IO[str] | None = None
        self._listeners: dict[str, socket.socket] = {}
        self.port = self.tls_port = 0

    def start(self) -> None:
        """Start every process and wait until all are ready; this process has no other thread.

        Raises
        ------
        StartError
            The data folder is in use or cannot be written, or a process does not come up (a port in use).
        StoppedAtStart
            `request_stop` was called before all were ready.
        """
        self._lock = take_lock(self._data)
        try:
            preload()
            prepare_to_fork()
            self._tidy()
            self._listen()
            for process in self._processes:  # side by side: some have further libraries to load
                self._launch(process)
            for process in self._processes:
                self._await_ready(process)
        except OSError as error:
            self.stop()
            raise StartError(f"the node cannot start: {error.strerror or error}") from error
        except BaseException:
            self.stop()
            raise
        self._write_state()

    def _tidy(self) -> None:
        """Have that removed which the last run left half-done, and learn whether it left something to send."""
        self._tidier = child = self._fork(lambda ties: tidying.run(self._settings, (), ties), "tidy")
        while child.poll() is None:
            self._heed_stop()
            wait_for_any([child], _LOOK_S)
        self._tidier = None
        if not child.told.get("ready"):
            raise StartError(child.told.get("error") or f"tidying up {_how_it_ended(child.returncode or 0)}")
        if not self._settings.routes and child.told["has_deliveries"]:
            self._processes.append(_Process("router", "router"))  # it ends what the rules of before have queued

    def _listen(self) -> None:
        """Open the ports: the network processes accept from the same ones, and no connection goes when one dies."""
        secure, host = self._settings.tls, self._settings.scp.host
        try:
            if secure.plain:
                self._listeners["plain"] = open_port(host, self._settings.scp.port)
            if secure.enabled:
                self._listeners["secure"] = open_port(host, secure.port)
        except CannotListen as error:
            raise StartError(f"cannot listen on {error.filename}: {error.strerror}") from error
        ports = {name: int(listener.getsockname()[1]) for name, listener in self._listeners.items()}
        self.port, self.tls_port = ports.get("plain", 0), ports.get("secure", 0)

    def _heed_stop(self) -> None:
        if self._is_stopping:
            raise StoppedAtStart("the node was stopped before it was ready")

    def run(self, lifeline: int | None = None) -> None:
        """Watch over the processes until `request_stop` is called, then stop them.

        Parameters
        ----------
        lifeline
            A file descriptor that can be read when the node is to stop, as when somebody else's end of a pipe closes.
        """
        others = [self._bell.listener] if lifeline is None else [self._bell.listener, lifeline]
        while not self._is_stopping:
            is_due = any(process.restart_at is not None and process.restart_at <= time.monotonic()
                         for process in self._processes)
            wait_for_any(self._children(), 0.0 if is_due else _LOOK_S, *others)
            for process in self._processes:
                self._look_after(process)
            self._tidy_after_deaths()
            self._is_stopping = self._is_stopping or (lifeline is not None and is_readable(lifeline))
        self.stop()

    def request_stop(self) -> None:
        """Make `run` return (safe in a signal handler, and in another thread)."""
        self._is_stopping = True
        self._bell.ring()

    def stop(self) -> None:
        """Stop every process: politely, and after its grace by force."""
        self._is_stopping = True
        for listener in self._listeners.values():  # so that nobody waits to be accepted by processes that stop
            listener.close()
        grace = max(self._settings.scp.stop_grace_s, self._settings.jobs.stop_grace_s) + 5.0
        running = [child for child in self._children() if child.poll() is None]
        for child in running:
            child.terminate()
        deadline = time.monotonic() + grace
        for child in running:
            if child.wait(max(0.1, deadline - time.monotonic())) is None:
                logger.warning("process %d did not stop within %.0f s: killed", child.pid, grace)
                child.kill()
                child.wait(_KILLED_S)
        (self._data / STATE_FILE).unlink(missing_ok=True)
        self._bell.close()
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _children(self) -> list[Child]:
        """Return the processes that there are, or were a moment ago."""
        children = [process.child for process in self._processes]
        return [child for child in (*children, self._tidier) if child is not None]

    def _fork(self, run: Callable[[Ties], int], name: str, *, accepts: bool = False) -> Child:
        """Start a process; it has what this one has open only where it needs it."""
        listeners = () if accepts else self._listeners.values()
        return fork(run, f"tharsis {name}", [*self._children(), *listeners, self._bell])

    def _launch(self, process: _Process, predecessor: str = "") -> None:
        process.restart_at = None
        process.started = time.monotonic()
        role, name, settings, sharing = process.role, process.name, self._settings, self._sharing(process)
        process.child = self._fork(
            lambda ties: run_as(role, name, settings, ties, sharing=sharing, predecessor=predecessor),
            name,
            accepts=role == "network",
        )

    def _sharing(self, process: _Process) -> Sharing:
        """Return what a network process shares with its like; nothing for others."""
        if process.role != "network":
            return Sharing()
        names = self._settings.network.acceptor_names()
        descriptors = {name: listener.fileno() for name, listener in self._listeners.items()}
        return Sharing(**descriptors, slot=names.index(process.name), count=len(names))

    def _await_ready(self, process: _Process) -> None:
        deadline = time.monotonic() + _START_S
        while (child := process.child) is not None and not child.told.get("ready"):
            self._heed_stop()
            wait_for_any([child], 0.05)
            status = child.poll()
            note = read_note(note_path(self._data, process.name))
            in_hands_of_plugin = note is not None and note.process == child.pid
            if in_hands_of_plugin:  # its own limit ends it
                deadline = time.monotonic() + _START_S
            if status is not None and in_hands_of_plugin and not child.told:
                how = _how_it_ended(status)
                logger.error("%s (process %d) %s while it started: once more", process.name, child.pid, how)
                self._launch(process, how)
            elif status is not None and not child.told.get("ready"):
                why = child.told.get("error") or f"the {process.name} process could not start; the lines above say why"
                raise StartError(why)
            if time.monotonic() > deadline:
                raise StartError(f"the {process.name} process was not ready within {_START_S:.0f} s")

    def _look_after(self, process: _Process) -> None:
        now = time.monotonic()
        if process.restart_at is not None:
            if now >= process.restart_at:
                self._restart(process)
            return
        child = process.child
        if child is None or (status := child.poll()) is None:
            return
        self._vacate(process)
        if now - process.started > _SETTLED_S:
            process.deaths = 0
        process.how_it_ended = how = _how_it_ended(status)
        if status in (AGAIN, HUNG):  # it has told why, and cannot do so often
            if status == HUNG:
                self._dead.add(child.pid)  # it was in the middle of something
            process.restart_at = now
            return
        delay = _RESTART_DELAYS_S[min(process.deaths, len(_RESTART_DELAYS_S) - 1)]
        process.deaths += 1
        process.restart_at = now + delay
        logger.error("%s (process %d) %s; restarting in %.0f s", process.name, child.pid, how, delay)
        self._dead.add(child.pid)

    def _restart(self, process: _Process) -> None:
        try:
            self._launch(process, process.how_it_ended)
        except OSError as error:  # no more processes or files: not for ever, and the others go on
            process.restart_at = time.monotonic() + _RESTART_DELAYS_S[-1]
            logger.error(  # noqa: TRY400 - where it happened is known
                "%s cannot be restarted: %s; again in %.0f s", process.name, error.strerror, _RESTART_DELAYS_S[-1]
            )
            return
        logger.warning("%s restarted as process %d", process.name, process.pid)
        self._write_state()

    def _vacate(self, process: _Process) -> None:
        """Give the places of associations back that ended with their network process."""
        if process.role == "network":
            names = self._settings.network.acceptor_names()
            try:
                vacate(self._data / PLACES_FILE, names.index(process.name), len(names))
            except OSError:
                logger.exception("%s: its places stay taken until it runs again", process.name)

    def _tidy_after_deaths(self) -> None:
        """Have others tidy up after those who died, once for all who died meanwhile: it may take minutes."""
        if self._tidier is not None:
            status = self._tidier.poll()
            if status is None:
                return
            if status:
                logger.error("what a process left was not tidied up; `tharsis fsck` finds it")
            self._tidier = None
        if self._dead:
            dead, self._dead = frozenset(self._dead), set()
            try:
                self._tidier = self._fork(lambda ties: tidying.run(self._settings, dead, ties), "tidy")
            except OSError:  # no more processes or files: the next look may find some
                self._dead |= dead

    def _write_state(self) -> None:
        """Tell other commands where the node is: PIDs, AE title, address."""
        scp = self._settings.scp
        state = {
            "pid": os.getpid(),
            "aet": scp.aet,
            "host": scp.host,
            "port": self.port,
            "tls_port": self.tls_port,
            "processes": {process.name: process.pid for process in self._processes if process.child},
        }
        write_state(self._data, state)


def _how_it_ended(status: int) -> str:
    if status < 0:
        names = {each.value: each.name for each in signal.Signals}  # which has not every real-time signal
        return f"died of {names.get(-status, f'signal {-status}')}"
    if status == HUNG:
        return "ended because a plug-in hung in it"
    return f"ended with status {status}"
