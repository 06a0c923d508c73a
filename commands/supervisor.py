"""The processes of a node: started together, restarted when one dies, stopped together.

One or more processes serve the network, one or more do the work, one embeds what queries ask about, one sends on what
the rules want sent, and one talks with an Orthanc, the last two where the settings want it. They share nothing but the
data folder, and the listening sockets, which the supervisor opens: when a network process dies, nobody is turned away.
The supervisor holds the folder's lock, so that two nodes never serve one folder; its processes inherit the lock and it
is free only when all of them are gone.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import queue
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from config.settings import Settings
from index import deliveries
from index.archive import Archive
from index.errors import ArchiveError
from index.orphans import settle_orphans
from plugins.watch import AGAIN, HUNG, note_path, read_note
from scp.lobby import CannotListen, open_port
from scp.places import PLACES_FILE, vacate

logger = logging.getLogger(__name__)

STATE_FILE = "node.json"
_LOCK_FILE = "node.lock"
_START_S = 60.0
"""A process that is not ready by then has failed to start, seconds."""

_LOCK_WAIT_S = 15.0
"""Longer than the processes of a node that was killed take to end."""

_RESTART_DELAYS_S = (0.0, 1.0, 2.0, 5.0, 10.0, 30.0)
"""Wait before each restart of a process that keeps dying; one that ran a minute starts at the front again."""

_SETTLED_S = 60.0
_LOOK_S = 0.2


_ENVIRONMENT = {"OPENBLAS_THREAD_TIMEOUT": "4"}
"""Of the processes. OpenBLAS's threads wait for more work by computing nothing, for a tenth of a second after every
matrix product (2²⁸ cycles): a similarity query then takes twice the processor time. Now they wait for 2⁴ cycles."""


class StartError(Exception):
    """The node cannot start; the message is one sentence for the user."""


@dataclass
class _Process:
    """A role of the node and the operating system process that fills it at the moment."""

    role: str
    name: str
    popen: subprocess.Popen[str] | None = None
    started: float = 0.0
    deaths: int = 0
    restart_at: float | None = None
    error: str = ""
    how_it_ended: str = ""
    ready: threading.Event = field(default_factory=threading.Event)

    @property
    def pid(self) -> int:
        """Of the operating system process."""
        return self.popen.pid if self.popen else 0


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
        self._stopping = threading.Event()
        self._dead: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._lock: IO[str] | None = None
        self._listeners: dict[str, socket.socket] = {}
        self.port = self.tls_port = 0

    def start(self) -> None:
        """Start every process and wait until all are ready.

        Raises
        ------
        StartError
            The data folder is in use or cannot be written, or a process does not come up (a port in use).
        """
        self._take_lock()
        try:
            self._tidy()
            self._listen()
            threading.Thread(target=self._tidy_after_deaths, daemon=True).start()
            for process in self._processes:  # side by side: each has its libraries to load
                self._launch(process)
            for process in self._processes:
                self._await_ready(process)
        except BaseException:
            self.stop()
            raise
        self._write_state()

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

    def run(self) -> None:
        """Watch over the processes until `request_stop` is called, then stop them."""
        while not self._stopping.wait(_LOOK_S):
            for process in self._processes:
                self._look_after(process)
        self.stop()

    def request_stop(self) -> None:
        """Make `run` return (safe in a signal handler)."""
        self._stopping.set()

    def stop(self) -> None:
        """Stop every process: politely, and after its grace by force."""
        self._stopping.set()
        for listener in self._listeners.values():  # so that nobody waits to be accepted by processes that stop
            listener.close()
        grace = max(self._settings.scp.stop_grace_s, self._settings.jobs.stop_grace_s) + 5.0
        running = [process.popen for process in self._processes if process.popen and process.popen.poll() is None]
        for popen in running:
            popen.terminate()
        deadline = time.monotonic() + grace
        for popen in running:
            try:
                popen.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                logger.warning("process %d did not stop within %.0f s: killed", popen.pid, grace)
                popen.kill()
                popen.wait()
        (self._data / STATE_FILE).unlink(missing_ok=True)
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _take_lock(self) -> None:
        try:
            self._data.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = (self._data / _LOCK_FILE).open("a")
        except OSError as error:
            raise StartError(f"cannot use the data folder {self._data}: {error.strerror}") from error
        deadline = time.monotonic() + _LOCK_WAIT_S
        while True:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                # The processes of a node that was killed take a moment to notice it.
                if time.monotonic() > deadline:
                    self._lock.close()
                    self._lock = None
                    raise StartError(f"another node is using the data folder {self._data}") from None
                time.sleep(_LOOK_S)
            else:
                return

    def _tidy(self) -> None:
        """Remove what the last run left half-done: nothing of it was ever acknowledged or found.

        What cannot be tidied up hides nothing that the catalogue knows: it is told, and keeps no node down.
        """
        try:
            archive = Archive.from_settings(self._settings.archive)
        except sqlite3.Error as error:
            raise StartError(
                f"the catalogue in {self._data} cannot be used: {error}; `tharsis rebuild` makes it again"
            ) from error
        except ArchiveError as error:
            raise StartError(str(error)) from error
        try:
            if not self._settings.routes and deliveries.queued_for(archive):
                self._processes.append(_Process("router", "router"))  # it ends what the rules of before have queued
            received, removed = archive.clear_incoming(), archive.finish_removals()
            if (self._data / STATE_FILE).exists():
                logger.warning(
                    "the last run did not stop cleanly: %d half-received files removed, %d deletions finished, "
                    "files without a row: %s", received, removed, _settle(archive),
                )
        except (sqlite3.Error, OSError, ArchiveError):
            logger.exception("what the last run left was not tidied up; `tharsis fsck --repair` does so")
        finally:
            archive.close()

    def _launch(self, process: _Process, predecessor: str = "") -> None:
        process.ready.clear()
        process.restart_at = None
        process.started = time.monotonic()
        listeners = self._listeners.values() if process.role == "network" else ()
        process.popen = subprocess.Popen(  # noqa: S603 - our own module, with our own names
            [sys.executable, "-P", "-m", "commands.process", process.role, process.name, predecessor],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**_ENVIRONMENT, **os.environ},
            pass_fds=[each.fileno() for each in (self._lock, *listeners) if each is not None],
        )
        threading.Thread(target=self._hear, args=(process, process.popen), daemon=True).start()
        if process.popen.stdin is not None:
            try:
                process.popen.stdin.write(self._settings.model_dump_json() + "\n" + self._shared(process))
                process.popen.stdin.flush()
            except BrokenPipeError:  # it has died already, which `_look_after` and `_await_ready` will see
                logger.warning("%s ended before it read its settings", process.name)

    def _shared(self, process: _Process) -> str:
        """Return the line that tells a network process what it shares with its like; nothing for others."""
        if process.role != "network":
            return ""
        names = self._settings.network.acceptor_names()
        descriptors = {name: listener.fileno() for name, listener in self._listeners.items()}
        return json.dumps({**descriptors, "slot": names.index(process.name), "count": len(names)}) + "\n"

    @staticmethod
    def _hear(process: _Process, popen: subprocess.Popen[str]) -> None:
        """Read the one line in which the process tells that it is ready, or why it cannot start."""
        line = popen.stdout.readline() if popen.stdout else ""
        told = json.loads(line) if line else {}
        process.error = told.get("error", "")
        if told.get("ready"):
            process.ready.set()

    def _await_ready(self, process: _Process) -> None:
        deadline = time.monotonic() + _START_S
        while not process.ready.wait(0.05):
            status = process.popen.poll() if process.popen else None
            note = read_note(note_path(self._data, process.name))
            in_hands_of_plugin = note is not None and note.process == process.pid
            if in_hands_of_plugin:  # its own limit ends it
                deadline = time.monotonic() + _START_S
            if status is not None and in_hands_of_plugin and not process.error:
                how = _how_it_ended(status)
                logger.error("%s (process %d) %s while it started: once more", process.name, process.pid, how)
                self._launch(process, how)
            elif status is not None:
                why = process.error or f"the {process.name} process could not start; the lines above say why"
                raise StartError(why)
            if time.monotonic() > deadline:
                raise StartError(f"the {process.name} process was not ready within {_START_S:.0f} s")

    def _look_after(self, process: _Process) -> None:
        now = time.monotonic()
        if process.restart_at is not None:
            if now >= process.restart_at:
                self._launch(process, process.how_it_ended)
                logger.warning("%s restarted as process %d", process.name, process.pid)
                self._write_state()
            return
        if process.popen is None or process.popen.poll() is None:
            return
        self._vacate(process)
        if now - process.started > _SETTLED_S:
            process.deaths = 0
        process.how_it_ended = how = _how_it_ended(process.popen.returncode)
        if process.popen.returncode in (AGAIN, HUNG):  # it has told why, and cannot do so often
            if process.popen.returncode == HUNG:
                self._dead.put(process.popen.pid)  # it was in the middle of something
            process.restart_at = now
            return
        delay = _RESTART_DELAYS_S[min(process.deaths, len(_RESTART_DELAYS_S) - 1)]
        process.deaths += 1
        process.restart_at = now + delay
        logger.error("%s (process %d) %s; restarting in %.0f s", process.name, process.popen.pid, how, delay)
        self._dead.put(process.popen.pid)

    def _vacate(self, process: _Process) -> None:
        """Give the places of associations back that ended with their network process."""
        if process.role == "network":
            names = self._settings.network.acceptor_names()
            try:
                vacate(self._data / PLACES_FILE, names.index(process.name), len(names))
            except OSError:
                logger.exception("%s: its places stay taken until it runs again", process.name)

    def _tidy_after_deaths(self) -> None:
        """Tidy up after those who die, once for all who died meanwhile: reading all of files/ may take minutes."""
        while not self._stopping.is_set():
            pids = {self._dead.get()}
            while not self._dead.empty():  # nobody else takes from it
                pids.add(self._dead.get())
            self._tidy_after(pids)

    def _tidy_after(self, pids: set[int]) -> None:
        """Put right what processes left half-done when they died, while the others go on."""
        names = ", ".join(map(str, sorted(pids)))
        try:
            archive = Archive.from_settings(self._settings.archive)
            received = sum(archive.clear_incoming(pid) for pid in pids)
            archive.finish_removals()
            told = _settle(archive)
            archive.close()
        except Exception:  # whatever it is, the next death is tidied up after
            logger.exception("what process %s left was not tidied up; `tharsis fsck` finds it", names)
            return
        logger.warning("process %s left %d half-received files, files without a row: %s", names, received, told)

    def _write_state(self) -> None:
        """Tell other commands where the node is: PIDs, AE title, address."""
        scp = self._settings.scp
        state = {
            "pid": os.getpid(),
            "aet": scp.aet,
            "host": scp.host,
            "port": self.port,
            "tls_port": self.tls_port,
            "processes": {process.name: process.popen.pid for process in self._processes if process.popen},
        }
        path = self._data / STATE_FILE
        partial = path.with_suffix(".part")
        partial.write_text(json.dumps(state), encoding="utf-8")
        partial.replace(path)


@contextmanager
def only_user(data: Path) -> Iterator[None]:
    """Keep every node off the data folder while the block runs; raises `StartError` when one is using it."""
    with (data / _LOCK_FILE).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StartError(f"a node is running on {data}: stop it first") from None
        yield


def _settle(archive: Archive) -> str:
    """Settle the files without a row, and say in words what became of them."""
    fates = Counter(settled.fate.value for settled in settle_orphans(archive))
    return ", ".join(f"{count} {fate}" for fate, count in fates.items()) or "none"


def _how_it_ended(status: int) -> str:
    if status < 0:
        return f"died of {signal.Signals(-status).name}"
    if status == HUNG:
        return "ended because a plug-in hung in it"
    return f"ended with status {status}"


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
