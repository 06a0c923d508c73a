"""The drivers: this node and its peers, how each is configured and started."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.conformance.node import CannotStart, Node, NotOffered, free_port

TRANSPORTS = ("own", "pynetdicom")
"""What may carry the associations of this node, the one that it has by itself first."""


class Tharsis(Node):
    """The node of this checkout, as `tharsis serve` runs it."""

    key, name, title = "tharsis", "Tharsis", "THARSIS"

    @classmethod
    def version(cls, options: Mapping[str, str]) -> str:  # noqa: D102, ARG003
        told = subprocess.run(
            [sys.executable, "-P", "-m", "tharsis", "--version"], capture_output=True, text=True, check=False
        )
        if told.returncode:
            raise CannotStart(told.stderr.strip()[-200:])
        return told.stdout.strip().replace("tharsis", "Tharsis")

    @property
    def on_small_disk(self) -> bool:  # noqa: D102
        return False

    def _listens(self) -> bool:
        """Whether all its processes run: connections are taken in before, and wait."""
        if not self.alive():  # another one may have the port
            return super()._listens()
        try:
            state = json.loads((self.data / "node.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return False
        return self._popen is not None and bool(state["pid"] == self._popen.pid)

    def sections(self) -> dict[str, dict[str, Any]]:
        """The settings that differ from the defaults."""
        variant = self.setup.variant
        told: dict[str, dict[str, Any]] = {
            "scp": {"host": "127.0.0.1", "port": self.port, "stop_grace_s": 1},
            "network": {"transport": self.setup.options.get("transport", TRANSPORTS[0])},
            "archive": {"data": str(self.data), "settle_time_s": 60, "reserve_mb": 0},
            "jobs": {"retry_delay_s": 0.5},
            "logs": {"level": "WARNING"},
        }
        more: dict[str, dict[str, dict[str, Any]]] = {
            "overwrite always": {"archive": {"overwrite": "always"}},
            "overwrite same source": {"archive": {"overwrite": "same_source"}},
            "patient mismatch rejected": {"archive": {"patient_mismatch": "reject"}},
            "known callers only": {"scp": {"accept_unknown": False}},
            "limits": {"scp": {"max_associations": 3, "network_timeout_s": 2, "acse_timeout_s": 2}},
            "parallel": {"scp": {"retrieve_associations": 3}},
        }
        for section, keys in more.get(variant, {}).items():
            told.setdefault(section, {}).update(keys)
        if variant.startswith("tls") and self.setup.certificates is not None:
            folder = self.setup.certificates
            self.tls_port = self.tls_port or free_port()
            told["tls"] = {
                "enabled": True, "port": self.tls_port, "certificate": str(folder / "node.pem"),
                "key": str(folder / "node.key"), "ca": str(folder / "ca.pem"),
                "client_certificates": variant.removeprefix("tls "),
            }
        return told

    def command(self) -> list[str]:  # noqa: D102
        lines = []
        for section, keys in self.sections().items():
            lines += [f"[{section}]", *(f"{key} = {json.dumps(value)}" for key, value in keys.items())]
        for peer in self.peers:
            lines += ["[[application_entities]]", f'title = "{peer.title}"', f"rights = {json.dumps(peer.rights)}"]
            lines += ['host = "127.0.0.1"', f"port = {peer.port}"] if peer.port else []
            lines += ["lenient = true"] if peer.lenient else []
            lines += ["private_sop_classes = true"] if peer.private_sop_classes else []
            lines += [f"addresses = {json.dumps(peer.addresses)}"] if peer.addresses else []
        file = self.setup.folder / "node.toml"
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return [sys.executable, "-P", "-m", "tharsis", "serve", "--config", str(file)]

    def fill_disk(self) -> None:  # noqa: D102
        self.stop()
        self.setup.options = {**self.setup.options, "reserve": "more than there is"}
        command = self.command
        free = shutil.disk_usage(self.data).free >> 20

        def with_reserve() -> list[str]:
            line = command()
            file = self.setup.folder / "node.toml"
            file.write_text(file.read_text().replace("reserve_mb = 0", f"reserve_mb = {2 * free}"))
            return line

        self.command = with_reserve  # type: ignore[method-assign]
        self.start()


class Orthanc(Node):
    """Orthanc with its SQLite index; every AE of the probe is in DicomModalities."""

    key, name, title = "orthanc", "Orthanc", "ORTHANC"
    settings_note = "every AE of the probe is in DicomModalities, DicomCheckCalledAet is on"

    @staticmethod
    def _binary() -> str:
        return shutil.which("Orthanc") or "/usr/sbin/Orthanc"

    @classmethod
    def version(cls, options: Mapping[str, str]) -> str:  # noqa: D102, ARG003
        if not Path(cls._binary()).exists():
            raise CannotStart("Orthanc is not installed")
        told = subprocess.run([cls._binary(), "--version"], capture_output=True, text=True, check=False)
        return f"Orthanc {told.stdout.splitlines()[0].split()[-1]}"

    def command(self) -> list[str]:  # noqa: D102
        variant = self.setup.variant
        modalities: dict[str, Any] = {}
        for peer in self.peers:
            modalities[peer.title.lower()] = {
                "AET": peer.title, "Host": (peer.addresses or ("127.0.0.1",))[0], "Port": peer.port or 1,
                "AllowStore": "store" in peer.rights, "AllowFind": "find" in peer.rights,
                "AllowGet": "move" in peer.rights, "AllowMove": "move" in peer.rights,
            }
        told: dict[str, Any] = {
            "Name": "scoreboard", "StorageDirectory": str(self.data), "IndexDirectory": str(self.data),
            "HttpServerEnabled": False, "DicomAet": self.title, "DicomPort": self.port, "DicomCheckCalledAet": True,
            "DicomModalities": modalities, "Locale": "C",
        }
        if variant == "overwrite always":
            told["OverwriteInstances"] = True
        if variant == "known callers only":
            told |= {
                "DicomAlwaysAllowEcho": False, "DicomAlwaysAllowStore": False, "DicomCheckModalityHost": True,
            }
        else:
            told |= {"DicomAlwaysAllowFind": True, "DicomAlwaysAllowGet": True, "DicomAlwaysAllowMove": True}
        if variant == "limits":
            told["DicomScpTimeout"] = 2
        if variant == "parallel":
            told["ConcurrentJobs"] = 3
        if variant.startswith("tls") and self.setup.certificates is not None:
            folder = self.setup.certificates
            self.tls_port = self.port
            told |= {
                "DicomTlsEnabled": True, "DicomTlsCertificate": str(folder / "node.pem"),
                "DicomTlsPrivateKey": str(folder / "node.key"), "DicomTlsTrustedCertificates": str(folder / "ca.pem"),
                "DicomTlsRemoteCertificateRequired": variant == "tls required",
            }
        file = self.setup.folder / "orthanc.json"
        file.write_text(json.dumps(told, indent=1))
        return [self._binary(), str(file)]


class Dcmqrscp(Node):
    """DCMTK's image archive."""

    key, name, title = "dcmqrscp", "dcmqrscp", "DCMQRSCP"
    settings_note = "every AE of the probe is in its HostTable, quota of 500 studies of 1024 MB, no command line option"

    @classmethod
    def version(cls, options: Mapping[str, str]) -> str:  # noqa: D102, ARG003
        if not shutil.which("dcmqrscp"):
            raise CannotStart("dcmqrscp is not installed")
        told = subprocess.run(["dcmqrscp", "--version"], capture_output=True, text=True, check=False).stdout
        return "DCMTK dcmqrscp " + told.partition(" v")[2].split()[0]

    def command(self) -> list[str]:  # noqa: D102
        variant = self.setup.variant
        if variant.startswith("tls"):
            raise NotOffered("has no TLS")
        known = [peer for peer in self.peers if peer.port]
        hosts = "\n".join(f"host{number} = ({p.title}, localhost, {p.port})" for number, p in enumerate(known))
        restricted = ", ".join(f"host{number}" for number, peer in enumerate(known) if "store" in peer.rights)
        peers = "everyone" if variant == "known callers only" else "ANY"
        hosts += f"\neveryone = {restricted}"
        file = self.setup.folder / "dcmqrscp.cfg"
        file.write_text(
            f"NetworkTCPPort = {self.port}\nMaxPDUSize = 131072\n"
            f"MaxAssociations = {3 if variant == 'limits' else 64}\n"
            f"HostTable BEGIN\n{hosts}\nHostTable END\nVendorTable BEGIN\nVendorTable END\n"
            f"AETable BEGIN\n{self.title} {self.data} RW (500, 1024mb) {peers}\nAETable END\n"
        )
        times = ["-ta", "2", "-td", "2"] if variant == "limits" else []
        return ["dcmqrscp", "-c", str(file), *times, str(self.port)]


class Qrscp(Node):
    """pynetdicom's query/retrieve application; it needs SQLAlchemy."""

    key, name, title = "qrscp", "qrscp", "QRSCP"
    settings_note = "every AE of the probe is a move destination of its ini file"

    @staticmethod
    def _python(options: Mapping[str, str]) -> str:
        return options.get("qrscp_python") or sys.executable

    @classmethod
    def version(cls, options: Mapping[str, str]) -> str:  # noqa: D102
        code = "import sqlalchemy, pynetdicom; print(pynetdicom.__version__)"
        told = subprocess.run([cls._python(options), "-c", code], capture_output=True, text=True, check=False)
        if told.returncode:
            raise CannotStart(
                "qrscp needs pynetdicom and SQLAlchemy in one Python; name it with --qrscp-python: "
                + told.stderr.strip().splitlines()[-1]
            )
        return f"pynetdicom qrscp {told.stdout.strip()}"

    def command(self) -> list[str]:  # noqa: D102
        if self.setup.variant.startswith("tls"):
            raise NotOffered("has no TLS")
        timeout = 2 if self.setup.variant == "limits" else 60
        (self.data / "instances").mkdir(exist_ok=True)
        lines = [
            "[DEFAULT]", f"ae_title: {self.title}", f"port: {self.port}", "max_pdu: 131072",
            f"acse_timeout: {timeout}", "dimse_timeout: 60", f"network_timeout: {timeout}", "bind_address: 127.0.0.1",
            f"instance_location: {self.data / 'instances'}", f"database_location: {self.data / 'instances.sqlite'}",
            "log_identifier: False",
        ]
        for peer in self.peers:
            if peer.port:
                lines += [f"[{peer.title}]", "address: 127.0.0.1", f"port: {peer.port}"]
        file = self.setup.folder / "qrscp.ini"
        file.write_text("\n".join(lines) + "\n")
        return [self._python(self.setup.options), "-m", "pynetdicom", "qrscp", "-q", "-c", str(file)]


NODES: dict[str, type[Node]] = {node.key: node for node in (Tharsis, Orthanc, Dcmqrscp, Qrscp)}
"""The drivers by the name that the command line gives them."""
