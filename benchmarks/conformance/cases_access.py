"""TLS, access by AE title and address, and the limits of associations."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import time
from collections.abc import Callable, Iterator

from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from benchmarks.conformance.case import case, check
from benchmarks.conformance.cases_services import ECHO, OTHER
from benchmarks.conformance.probe import Bench, encode
from benchmarks.conformance.wire import Association, Context, Gone, Rejected, Silent, associate_request

TLS = "TLS"
PROFILE = "PS3.15 B.12 (BCP 195)"


def _over_tls(bench: Bench, context: ssl.SSLContext) -> str:
    if not bench.node.tls_port:
        check(False, "has no TLS")
    with Association(bench.node.tls_port, bench.node.title, "PROBE", ECHO, tls=context, timeout=10.0) as association:
        version = association.socket.version() if isinstance(association.socket, ssl.SSLSocket) else None
        check(bench.echo(association) == 0, "C-ECHO failed")
        return str(version)


@case(OTHER, TLS, "C-ECHO over TLS 1.2 or 1.3", clause=PROFILE, expected="0000", variant="tls optional")
def over_tls(bench: Bench) -> str:
    return _over_tls(bench, bench.tls(with_certificate=True))


@case(OTHER, TLS, "mutual authentication optional: a client without certificate", clause=PROFILE, expected="0000",
      variant="tls optional")
def without_certificate(bench: Bench) -> str:
    return _over_tls(bench, bench.tls(with_certificate=False))


@case(OTHER, TLS, "TLS 1.1 and older, and weak ciphers, are refused", clause=f"{PROFILE}, RFC 9325",
      expected="no handshake",
      variant="tls optional")
def old_tls(bench: Bench) -> str:
    _over_tls(bench, bench.tls(with_certificate=True))
    old = bench.tls(with_certificate=True)
    old.set_ciphers("ALL:@SECLEVEL=0")
    old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    weak = bench.tls(with_certificate=True)
    weak.maximum_version = ssl.TLSVersion.TLSv1_2
    weak.set_ciphers("AES128-SHA:AES256-SHA:@SECLEVEL=0")
    for name, context in (("TLS 1.1", old), ("RSA key exchange with CBC", weak)):
        try:
            version = _over_tls(bench, context)
        except (OSError, Gone, Silent):
            continue
        check(False, f"{name} accepted ({version})")
    return "refused"


@case(OTHER, TLS, "a plain association on the TLS port is refused", clause=PROFILE, expected="no association",
      variant="tls optional")
def plain_on_tls_port(bench: Bench) -> str:
    _over_tls(bench, bench.tls(with_certificate=True))
    try:
        Association(bench.node.tls_port, bench.node.title, "PROBE", ECHO, timeout=5.0)
    except (OSError, Gone, Silent, Rejected):
        _over_tls(bench, bench.tls(with_certificate=True))
        return "refused"
    check(False, "accepted without TLS")
    return ""


@case(OTHER, TLS, "mutual authentication required: no certificate, a stranger's, the right one", clause=PROFILE,
      expected="refused, refused, 0000", variant="tls required")
def mutual(bench: Bench) -> str:
    stranger = bench.tls(with_certificate=False)
    stranger.load_cert_chain(bench.certificates / "stranger.pem", bench.certificates / "stranger.key")
    version = _over_tls(bench, bench.tls(with_certificate=True))
    nobody = bench.tls(with_certificate=False)
    for name, context in (("no certificate", nobody), ("a stranger's certificate", stranger)):
        try:
            _over_tls(bench, context)
        except (OSError, Gone, Silent):
            continue
        check(False, f"{name} accepted")
    return f"refused, refused, 0000 over {version}"


# Access

ACCESS = "AE access"


def _rejected(bench: Bench, reason: int, **more: str) -> str:
    try:
        with bench.associate(ECHO, **more):
            pass
    except Rejected as error:
        check((error.source, error.reason) == (1, reason), str(error))
        return str(error)
    check(False, "accepted")
    return ""


@case(OTHER, ACCESS, "unknown callers are refused when only known ones may call", clause="PS3.8 9.3.4",
      expected="rejected, reason 3 (calling AE title not recognized); a known one accepted",
      variant="known callers only")
def unknown_caller(bench: Bench) -> str:
    check(bench.echo() == 0, "a known caller's C-ECHO failed")
    return _rejected(bench, 3, calling="STRANGER")


@case(OTHER, ACCESS, "a known AE title from another address is refused", clause="PS3.8 9.3.4",
      expected="rejected, reason 3 (or 1)", variant="known callers only")
def wrong_address(bench: Bench) -> str:
    try:
        with bench.associate(ECHO, calling="ELSEWHERE"):
            pass
    except Rejected as error:
        check(error.source == 1, str(error))
        return str(error)
    check(False, "accepted")
    return ""


@case(OTHER, ACCESS, "the called AE title is checked", clause="PS3.8 9.3.4",
      expected="rejected, reason 7 (called AE title not recognized)")
def called_title(bench: Bench) -> str:
    return _rejected(bench, 7, called="SOMEBODY")


def _may_not(calling: str, ask: Callable[[], int]) -> str:
    """Require that something is refused: context, association, or Status."""
    try:
        status = ask()
    except LookupError:
        return "context rejected"
    except Rejected:
        return "association rejected"
    check(status not in (0, 0xFF00, 0xFF01), f"{calling} got {status:04X}")
    return f"{status:04X}"


@case(OTHER, ACCESS, "rights of each AE: one that may only find, one that may only store",
      clause="PS3.7 Annex C (0124)", expected="find-only: store and move refused; store-only: find and move refused",
      variant="known callers only")
def rights(bench: Bench) -> str:
    bench.put(bench.image(), calling="STOREONLY")
    found = bench.find("S", "STUDY", calling="FINDONLY", StudyInstanceUID=bench.study)
    check(found.status == 0 and len(found.rows) == 1, f"FINDONLY: {found.code}, {len(found.rows)} rows")
    keys = {"StudyInstanceUID": bench.study}
    told = [
        _may_not("FINDONLY", lambda: bench.store(bench.image(), calling="FINDONLY").status),
        _may_not("FINDONLY", lambda: bench.move("RECEIVER", calling="FINDONLY", **keys).status),
        _may_not("STOREONLY", lambda: bench.find("S", "STUDY", calling="STOREONLY", **keys).status),
        _may_not("STOREONLY", lambda: bench.move("RECEIVER", calling="STOREONLY", **keys).status),
    ]
    check(not bench.receivers.everything.received, "something was sent")
    return ", ".join(told)


# Limits

LIMITS = "Limits"


@contextlib.contextmanager
def _all_closed(associations: list[Association]) -> Iterator[None]:
    try:
        yield
    finally:
        for association in associations:
            association.abort()


@case(OTHER, LIMITS, "one association more than the limit of 3 is rejected, and accepted when one is free again",
      clause="PS3.8 9.3.4", expected="rejected, transient (2), local limit exceeded (3/2)", variant="limits")
def most_associations(bench: Bench) -> str:
    opened: list[Association] = []
    told = ""
    with _all_closed(opened):
        for _ in range(4):
            try:
                opened.append(bench.associate(ECHO))
            except Rejected as error:
                told = str(error)
                check((error.result, error.source, error.reason) == (2, 3, 2), told)
        check(told and len(opened) == 3, f"{len(opened)} of 4 accepted")
    deadline = time.monotonic() + 10
    while True:
        try:
            check(bench.echo() == 0, "no C-ECHO after one became free")
        except Rejected:
            check(time.monotonic() < deadline, "still rejected 10 s after all were closed")
            time.sleep(0.1)
            continue
        return told


@case(OTHER, LIMITS, "a peer that stops in the middle of a PDU is dropped (limit 2 s)",
      clause="PS3.8 9.1.5 (ARTIM), 9.3.8",
      expected="aborted or closed within 6 s", variant="limits")
def stops_sending(bench: Bench) -> str:
    association = bench.associate([Context(CTImageStorage, (str(ExplicitVRLittleEndian),))], timeout=15.0)
    data = encode(bench.image(), ExplicitVRLittleEndian)
    command = Dataset()
    command.AffectedSOPClassUID, command.CommandField, command.MessageID = CTImageStorage, 1, 1
    command.Priority, command.CommandDataSetType, command.AffectedSOPInstanceUID = 0, 1, bench.uid()
    association.send_message(1, command)
    association.send_bytes(struct.pack(">BBLLBB", 4, 0, len(data) + 6, len(data) + 2, 1, 2) + data[:100])
    return _dropped(association, 6.0)


def _dropped(association: Association, within: float) -> str:
    began = time.monotonic()
    try:
        kind, _ = association.receive_pdu()
        did = "aborted" if kind == 7 else f"PDU of type {kind}"
    except Gone as error:
        did = str(error)
    except Silent:
        association.abort()
        check(False, f"not within {association.timeout:g} s")
        return ""
    took = time.monotonic() - began
    association.abort()
    check(took < within, f"{did} after {took:.1f} s")
    return f"{did} after {took:.1f} s"


@case(OTHER, LIMITS, "an idle association is ended (limit 2 s)", clause="PS3.8 9.3.8",
      expected="aborted or closed within 6 s",
      variant="limits")
def idle_ends(bench: Bench) -> str:
    return _dropped(bench.associate(ECHO, timeout=15.0), 6.0)


@case(OTHER, LIMITS, "a bare TCP probe costs nothing: five that say nothing beside a limit of 3",
      clause="PS3.8 9.1.5 (ARTIM)",
      expected="C-ECHO as if they were not there; they are closed within 6 s", variant="limits")
def bare_probes(bench: Bench) -> str:
    probes = [socket.create_connection(("127.0.0.1", bench.node.port), 5) for _ in range(5)]
    try:
        check(bench.echo() == 0, "C-ECHO failed while they were open")
        began = time.monotonic()
        for probe in probes:
            probe.settimeout(max(0.1, 8.0 - (time.monotonic() - began)))
            with contextlib.suppress(ConnectionError):
                while probe.recv(100):
                    pass
        took = time.monotonic() - began
    except TimeoutError:
        check(False, "C-ECHO went on, but they were not closed within 8 s")
        return ""
    finally:
        for probe in probes:
            probe.close()
    check(took < 6.0, f"closed after {took:.1f} s")
    return f"C-ECHO went on; closed after {took:.1f} s"


@case(OTHER, LIMITS, "200 probes that connect and go leave nothing behind", clause="PS3.8 9.1.5",
      expected="C-ECHO at once, < 20 MB more memory", variant="limits")
def many_probes(bench: Bench) -> str:
    bench.echo()
    with bench.node.memory() as memory:
        for _ in range(200):
            socket.create_connection(("127.0.0.1", bench.node.port), 5).close()
        for _ in range(200):
            with socket.create_connection(("127.0.0.1", bench.node.port), 5) as probe:
                probe.sendall(associate_request("PROBE", bench.node.title, ECHO)[:60])
        began = time.monotonic()
        while True:
            try:
                check(bench.echo() == 0, "C-ECHO failed")
                break
            except (Rejected, Gone, OSError) as error:
                check(time.monotonic() - began < 5, f"5 s later: {error}")
                time.sleep(0.05)
        took = time.monotonic() - began
    above = memory["peak"] - memory["idle"]
    check(above < 20, f"{above:.0f} MB more memory")
    return f"C-ECHO after {took:.1f} s, {above:.0f} MB"


@case(OTHER, LIMITS, "an idle association is kept for a minute by default", clause="-",
      expected="C-ECHO after 61 s without a word", variant="idle")
def idle_is_kept(bench: Bench) -> str:
    with bench.associate(ECHO) as association:
        time.sleep(61.0)
        try:
            check(bench.echo(association) == 0, "C-ECHO failed")
        except (Gone, Silent) as error:
            check(False, f"61 s later: {error}")
    return "kept"
