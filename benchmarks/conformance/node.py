"""The nodes under test: how each is configured, started, watched and ended. Everything listens on 127.0.0.1."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

STARTUP_S = 60.0
SMALL_DISK_MB = 24


class CannotStart(Exception):
    """The node did not come up; the sentence ends with what it said."""


class NotOffered(Exception):
    """The node has no setting or service that the row could be asked of."""


@dataclass(frozen=True)
class Peer:
    """An application entity of the probe that a node may know by name."""

    title: str
    port: int
    rights: tuple[str, ...] = ("store", "find", "move")
    lenient: bool = False
    private_sop_classes: bool = False
    addresses: tuple[str, ...] = ()


@dataclass
class Setup:
    """What a node is started with.

    Attributes
    ----------
    folder
        Its own folder: configuration, log, and below it, some levels deep, the data.
    peers
        The application entities of the probe.
    variant
        Which of the configurations of a case: "default", "tls required", …
    certificates
        Folder with ``ca.pem``, ``node.pem``, ``node.key``.
    """

    folder: Path
    peers: tuple[Peer, ...]
    variant: str = "default"
    certificates: Path | None = None
    options: Mapping[str, str] = field(default_factory=dict)


def free_port() -> int:
    """Return a port of 127.0.0.1 that nothing listens on."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def can_mount() -> bool:
    """Whether this user may mount a small file system in a namespace of its own."""
    tool = shutil.which("unshare")
    command = ["unshare", "--user", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return bool(tool) and subprocess.run(command, capture_output=True, check=False).returncode == 0


def descendants(pid: int) -> list[int]:
    """Return `pid` and every process below it that lives."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
                if state != "Z":
                    children.setdefault(int(parent), []).append(int(entry.name))
    found, todo = [], [pid]
    while todo:
        found.append(todo.pop())
        todo.extend(children.get(found[-1], []))
    return [one for one in found if Path(f"/proc/{one}").exists()]


def _runs(pid: int) -> bool:
    """Whether `pid` is a process, and not one that only waits to be reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def resident_mb(pids: list[int]) -> float:
    """Sum of the resident memory of processes, MiB."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            told = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
            total += int(told[1]) if told else 0
    return total / 1024


class Node:
    """A node that runs as processes of its own; each driver says how it is configured and started."""

    key: ClassVar[str]
    name: ClassVar[str]
    title: ClassVar[str]
    settings_note: ClassVar[str] = ""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.port = free_port()
        self.tls_port = 0
        self.data = setup.folder / "a" / "b" / "c" / "data"
        self.data.mkdir(parents=True, exist_ok=True)
        self.log = setup.folder / "log.txt"
        self._popen: subprocess.Popen[bytes] | None = None

    # What a driver says

    @classmethod
    def version(cls, options: Mapping[str, str]) -> str:
        """Name and version, or raise `CannotStart` where it is not installed."""
        raise NotImplementedError

    def command(self) -> list[str]:
        """Write the configuration and return the command line."""
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        """Environment of the process."""
        return dict(os.environ)

    def fill_disk(self) -> None:
        """Leave no room for another instance, if there is another way than filling it."""

    @property
    def on_small_disk(self) -> bool:
        """Whether the data folder is a small file system."""
        return self.setup.variant == "disk full"

    # Life

    @property
    def peers(self) -> tuple[Peer, ...]:
        """The application entities that it is told of."""
        return self.setup.peers

    def start(self) -> None:
        """Start and wait until it accepts connections."""
        deadline = time.monotonic() + STARTUP_S
        while self._listens():
            if time.monotonic() > deadline:
                raise CannotStart(f"something else listens on port {self.port}")
            time.sleep(0.02)
        command = self.command()
        if self.on_small_disk:
            if not can_mount():
                raise NotOffered("needs a small file system, which this user may not mount")
            script = f'mount -t tmpfs -o size={SMALL_DISK_MB}m tmpfs "$0" && exec "$@"'
            command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, str(self.data), *command]
        with self.log.open("ab") as log:
            self._popen = subprocess.Popen(
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=self.setup.folder,
                env=self.environment(), start_new_session=True,
            )
        deadline = time.monotonic() + STARTUP_S
        while not self._listens():
            if self._popen.poll() is not None or time.monotonic() > deadline:
                raise CannotStart(f"did not start: {self._last_words()}")
            time.sleep(0.02)

    def _listens(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
        except OSError:
            return False
        return True

    def _last_words(self) -> str:
        lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        return " ".join(lines[-2:])[-300:]

    def alive(self) -> bool:
        """Whether its first process runs."""
        return self._popen is not None and self._popen.poll() is None

    def pids(self) -> list[int]:
        """Its processes."""
        return descendants(self._popen.pid) if self._popen is not None and self.alive() else []

    def kill(self) -> None:
        """Kill every process at once, as a power cut would."""
        pids = set(self.pids())
        while pids:  # what was being started while the others were killed comes up in the next look
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if self._popen is not None:
                self._popen.wait(30)
            pids = {pid for pid in self._session() if _runs(pid)}

    def _session(self) -> list[int]:
        """Processes of the session that the first one leads."""
        if self._popen is None:
            return []
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    if int((entry / "stat").read_text().rpartition(")")[2].split()[3]) == self._popen.pid:
                        found.append(int(entry.name))
        return found

    def stop(self) -> None:
        """End it; kill what does not end."""
        if self._popen is None:
            return
        pids = self.pids()
        if self._popen.poll() is None:
            self._popen.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._popen.wait(20)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                if Path(f"/proc/{pid}").exists():
                    os.kill(pid, signal.SIGKILL)
        self._popen.wait(10)

    def restart(self) -> None:
        """Kill what runs and start again on the same data."""
        if self.alive():
            self.kill()
        self.start()

    def files(self) -> set[Path]:
        """Every file below the data folder."""
        return {path for path in self.data.rglob("*") if path.is_file()}

    def outside(self) -> set[Path]:
        """Every file of the node's folder that is not in the data folder."""
        return {path for path in self.setup.folder.rglob("*") if self.data not in path.parents}

    @contextlib.contextmanager
    def memory(self) -> Iterator[dict[str, float]]:
        """Watch its resident memory: ``idle``, ``peak`` in MiB."""
        told = {"idle": resident_mb(self.pids())}
        told["peak"] = told["idle"]
        over = threading.Event()

        def watch() -> None:
            while not over.is_set():
                told["peak"] = max(told["peak"], resident_mb(self.pids()))
                over.wait(0.02)

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield told
        finally:
            over.set()
            thread.join()
