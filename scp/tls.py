"""TLS of this node, called and calling: BCP 195 Secure Transport Connection Profile (PS3.15 B.12; RFC 8996, RFC 9325).

TLS 1.2 and 1.3 only; in TLS 1.2 ephemeral elliptic curves with authenticated encryption; no compression, no
renegotiation.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

from config.settings import TlsSettings

_SUITES = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""TLS 1.2 (RFC 9325 4.2); those of TLS 1.3 are all of that kind."""

_CLIENT_CERTIFICATES = {
    "none": ssl.CERT_NONE,
    "optional": ssl.CERT_OPTIONAL,
    "required": ssl.CERT_REQUIRED,
}


class TlsError(Exception):
    """Certificate, key or authorities cannot be used; the message is one sentence that names the file."""


def server_context(settings: TlsSettings) -> ssl.SSLContext:
    """Return the context for connections that peers open.

    Raises
    ------
    TlsError
        A file is missing or is no PEM file, the key does not belong to the certificate, or the certificate is not
        valid now.
    """
    context = _restricted(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
    _present(context, settings.certificate, settings.key)
    _check_validity(context, settings.certificate)
    context.verify_mode = _CLIENT_CERTIFICATES[settings.client_certificates]
    if context.verify_mode is not ssl.CERT_NONE:
        _trust(context, settings.ca, ssl.Purpose.CLIENT_AUTH)
    context.num_tickets = 0  # associations are long and few: nothing is gained by resuming a session
    return context


def client_context(
    *, ca: str = "", certificate: str = "", key: str = "", check_host: bool = True
) -> ssl.SSLContext:
    """Return the context for connections that this node opens: the peer's certificate is always checked.

    Parameters
    ----------
    ca
        PEM file with the authorities to trust; the system's when empty.
    certificate, key
        PEM files of what to present to a peer that asks for a certificate; nothing when empty.
    check_host
        Whether the peer's certificate has to name the host that was called.

    Raises
    ------
    TlsError
        A file is missing or is no PEM file, or the key does not belong to the certificate.
    """
    context = _restricted(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    context.check_hostname = check_host
    _trust(context, ca, ssl.Purpose.SERVER_AUTH)
    if certificate:
        _present(context, certificate, key)
    return context


def subject(connection: object) -> str:
    """Return the subject of the peer's checked certificate, ``CN=…, O=…``; empty when there is none."""
    if not isinstance(connection, ssl.SSLSocket):
        return ""
    certificate = connection.getpeercert() or {}
    names: Any = certificate.get("subject", ())
    return ", ".join(f"{_SHORT.get(name, name)}={value}" for part in names for name, value in part)


_SHORT = {"commonName": "CN", "organizationName": "O", "organizationalUnitName": "OU", "countryName": "C"}


def _restricted(context: ssl.SSLContext) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_SUITES)
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    return context


def _present(context: ssl.SSLContext, certificate: str, key: str) -> None:
    for what, name in (("certificate", certificate), ("key", key)):
        _require_readable(what, name)
    try:
        context.load_cert_chain(certificate, key, password=_no_password(key))
    except ssl.SSLError as error:
        if "KEY_VALUES_MISMATCH" in str(error):
            raise TlsError(f"the TLS key {key} does not belong to the certificate {certificate}") from error
        if "PEM" in str(error):
            raise TlsError(f"one of {certificate} and {key} is no PEM file of a certificate and its key") from error
        raise TlsError(f"the TLS certificate {certificate} with the key {key} cannot be used: {_why(error)}") from error


def _no_password(key: str) -> Callable[[], str]:
    def ask() -> str:
        raise TlsError(f"the TLS key {key} has a password: a node that starts by itself needs one without")

    return ask


def _trust(context: ssl.SSLContext, ca: str, purpose: ssl.Purpose) -> None:
    if not ca:
        context.load_default_certs(purpose)
        return
    _require_readable("ca", ca)
    try:
        context.load_verify_locations(ca)
    except ssl.SSLError as error:
        raise TlsError(f"the TLS ca {ca} is no PEM file of certificates") from error


def _require_readable(what: str, name: str) -> None:
    try:
        with Path(name).open("rb"):
            pass
    except OSError as error:
        raise TlsError(f"cannot read the TLS {what} {name!r}: {error.strerror}") from error


def _check_validity(server: ssl.SSLContext, certificate: str) -> None:
    """Let a client in this process check the certificate as peers will, but for its issuer and its host."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    client.load_verify_locations(certificate)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (
        client.wrap_bio(to_client, to_server),
        server.wrap_bio(to_server, to_client, server_side=True),
    )
    for end in ends * 3:
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            continue
        except ssl.SSLCertVerificationError as error:
            raise TlsError(f"the TLS certificate {certificate} cannot be used: {error.verify_message}") from error
        except ssl.SSLError as error:
            raise TlsError(f"the TLS certificate {certificate} cannot be used: {_why(error)}") from error


def _why(error: ssl.SSLError) -> str:
    return (error.reason or str(error)).lower().replace("_", " ")
