"""Certificate authorities for tests, made with the openssl command."""

from __future__ import annotations

import subprocess
from pathlib import Path


def openssl(folder, *arguments):
    """Run openssl in a folder."""
    subprocess.run(["openssl", *map(str, arguments)], cwd=folder, check=True, capture_output=True)


class Authority:
    """A certificate authority in a folder."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        folder.mkdir()
        self._new("ca", name, "-x509", "-days", "2", "-out", "ca.pem")

    def _new(self, file, name, *more):
        curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
        openssl(self.folder, "req", *curve, "-keyout", f"{file}.key", "-subj", f"/CN={name}/O=Test", *more)

    def issue(self, name, *, days=2, hosts="DNS:localhost,IP:127.0.0.1"):
        """Make ``<name>.pem`` and ``<name>.key``; return their paths."""
        self._new(name, name, "-out", f"{name}.csr")
        (self.folder / "names").write_text(f"subjectAltName={hosts}\n")
        issuer = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "names")
        openssl(self.folder, "x509", "-req", "-in", f"{name}.csr", *issuer, "-days", days, "-out", f"{name}.pem")
        return self.folder / f"{name}.pem", self.folder / f"{name}.key"

    @property
    def ca(self):
        return self.folder / "ca.pem"
