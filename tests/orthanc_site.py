"""A real Orthanc with our script inside, and a node that works for it: both can be killed and started again."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
import time
import urllib.error
import urllib.request
from functools import cached_property
from pathlib import Path
from typing import Any

from conftest import ServedNode
from routed import ReservedPort

from index.archive import Archive

SCRIPT = Path(__file__).resolve().parents[1] / "plugins" / "orthanc" / "tharsis_orthanc.py"
PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancPython.so")
KEY = "a key of the tests, nobody else's"
STABLE_S = 1


class Orthanc:
    """An Orthanc that keeps its ports and its data over restarts."""

    def __init__(self, folder: Path, ports: dict[str, int], **settings: Any) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        self.http, self.dicom = ports["http"], ports["dicom"]
        self.spool = folder / "tharsis-spool.sqlite"
        self._config = folder / "orthanc.json"
        self._config.write_text(json.dumps({
            "Name": "site", "StorageDirectory": str(folder), "IndexDirectory": str(folder), "Locale": "C",
            "DicomAet": "ORTHANC", "DicomPort": self.dicom, "HttpPort": self.http, "AuthenticationEnabled": True,
            "RegisteredUsers": {"doctor": "secret"}, "RemoteAccessAllowed": False, "StableAge": STABLE_S,
            "Plugins": [str(PLUGIN)], "PythonScript": str(SCRIPT),
            "Tharsis": {"Node": f"http://127.0.0.1:{ports['door']}", "Key": KEY, "TimeoutS": 20, "Aet": "THARSIS",
                        "Port": ports["node"]},
            **settings,
        }))  # fmt: skip
        self._popen: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        program = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin")
        assert program, "Orthanc is not installed (apt-get install orthanc)"
        assert PLUGIN.exists(), "Orthanc's Python plug-in is not installed (apt-get install orthanc-python)"
        with (self.folder / "log.txt").open("ab") as log:
            self._popen = subprocess.Popen([program, str(self._config)], stdout=log, stderr=log)
        pause = threading.Event()
        while True:
            assert self._popen.poll() is None, self.log()
            try:
                self.get("/system")
            except OSError:
                pause.wait(0.05)
            else:
                return

    def log(self) -> str:
        return (self.folder / "log.txt").read_text(errors="replace")

    @property
    def is_dead(self) -> bool:
        return self._popen is None or self._popen.poll() is not None

    def kill(self) -> None:
        assert self._popen is not None
        self._popen.kill()
        self._popen.wait()

    def end(self) -> None:
        if self._popen is not None and self._popen.poll() is None:
            self._popen.terminate()
            try:
                self._popen.wait(30)
            except subprocess.TimeoutExpired:
                self.kill()

    def ask(self, path: str, method: str = "GET", body: Any = None) -> tuple[int, bytes]:
        """Status and body of what the REST API answers."""
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.http}{path}", data=data, method=method)
        request.add_header("Authorization", "Basic ZG9jdG9yOnNlY3JldA==")
        try:
            with urllib.request.urlopen(request, timeout=300) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as refusal:
            return refusal.code, refusal.read()

    def get(self, path: str) -> Any:
        status, body = self.ask(path)
        assert status == 200, (path, status, body)
        return json.loads(body)

    def series(self) -> list[dict[str, Any]]:
        """All series, as Orthanc lists them."""
        return self.get("/series?expand")

    def by_modality(self) -> dict[str, list[str]]:
        """Series Instance UIDs, each as often as there is a series, by Modality."""
        found: dict[str, list[str]] = {}
        for each in self.series():
            tags = each["MainDicomTags"]
            found.setdefault(tags["Modality"], []).append(tags["SeriesInstanceUID"])
        return found

    def id_of(self, series_uid: str) -> str:
        return next(each["ID"] for each in self.series() if each["MainDicomTags"]["SeriesInstanceUID"] == series_uid)


class Site:
    """Orthanc and node."""

    def __init__(self, folder: Path, *, more: str = "", entities: str = "", **orthanc: Any) -> None:
        self._reserved = {name: ReservedPort() for name in ("http", "dicom", "door", "node")}
        self.ports = {name: port.number for name, port in self._reserved.items()}
        self.orthanc = Orthanc(folder / "orthanc", self.ports, **orthanc)
        self.node = ServedNode(folder / "node", (
            f'[scp]\nhost = "127.0.0.1"\nport = 0\nstop_grace_s = 2\n'
            f'[archive]\ndata = "DATA"\nsettle_time_s = 0.3\nreserve_mb = 0\n'
            f'[jobs]\nretry_delay_s = 0.5\n'
            f'[orthanc]\nenabled = true\nurl = "http://127.0.0.1:{self.ports["http"]}"\nuser = "doctor"\n'
            f'password = "secret"\nkey = "{KEY}"\ndoor_port = {self.ports["door"]}\ntimeout_s = 60\n{more}'
            f'[[application_entities]]\ntitle = "ORTHANC"\nhost = "127.0.0.1"\nport = {self.ports["dicom"]}\n{entities}'
        ))  # fmt: skip
        self.node.port = self.ports["node"]

    @cached_property
    def archive(self) -> Archive:
        """The node's archive, for looking at it and pushing jobs; the node has made its folder by then."""
        return Archive(self.node.data)

    def start(self) -> None:
        self.node.start()
        self.orthanc.start()

    def end(self) -> None:
        self.orthanc.end()
        self.node.end()
        for port in self._reserved.values():
            port.close()


def wait_for(condition: Any, timeout: float = 900.0, told: Any = lambda: "") -> Any:
    """Wait until `condition` returns something true, and return that."""
    deadline = time.monotonic() + timeout
    pause = threading.Event()
    while not (found := condition()):
        assert time.monotonic() < deadline, f"did not happen within {timeout:.0f} s: {told()}"
        pause.wait(0.1)
    return found
