"""C-STORE of hostile data sets: what they cost, and whom."""

from __future__ import annotations

import random
import struct

from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from benchmarks.conformance.case import case, check, code
from benchmarks.conformance.probe import PLAIN, VERIFICATION, Bench, encode
from benchmarks.conformance.wire import Context, Gone, Silent

STORE = "C-STORE"
NESTING = "nesting, lengths"


def _hostile(bench: Bench, data: bytes, image: Dataset, *, may_be_kept: bool = False) -> str:
    """Send a hostile data set while another association is open; only its sender may suffer."""
    pids = set(bench.node.pids())
    with bench.associate([Context(VERIFICATION, PLAIN)]) as bystander:
        try:
            answer = bench.store(
                data, sop_class=str(image.SOPClassUID), uid=str(image.SOPInstanceUID), patience=10.0
            )
            did = code(answer)
            check(answer.status != 0 or may_be_kept, "0000: taken as if nothing were wrong")
        except (Gone, Silent) as error:
            did = str(error)
        try:
            check(bench.echo(bystander) == 0, f"{did}, and another association's C-ECHO failed")
        except (Gone, Silent) as error:
            check(False, f"{did}, and another association was lost: {error}")
    check(bench.lives(), f"{did}, and the node does not answer any more")
    gone = pids - set(bench.node.pids()) if bench.node.key != "dcmqrscp" else set()
    check(not gone, f"{did}, and a process of the node died")
    return f"{did}; others untouched"


@case(STORE, NESTING, "sequences nested 10,000 deep", clause="PS3.5 7.5",
      expected="a failure or an abort; others untouched")
def deep_nesting(bench: Bench) -> str:
    image = bench.image()
    opening = struct.pack("<HH2sHL", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF) + struct.pack(
        "<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF)
    closing = struct.pack("<HHLHHL", 0xFFFE, 0xE00D, 0, 0xFFFE, 0xE0DD, 0)
    head = encode(image, ExplicitVRLittleEndian)
    at = head.index(struct.pack("<HH2s", 0x10, 0x10, b"PN"))
    return _hostile(bench, head[:at] + opening * 10_000 + closing * 10_000 + head[at:], image)


@case(STORE, NESTING, "a length of 4 GB before the identifying UIDs", clause="PS3.5 7.1",
      expected="a failure or an abort; others untouched")
def length_beyond_the_end(bench: Bench) -> str:
    image = bench.image()
    head = encode(image, ExplicitVRLittleEndian)
    at = head.index(struct.pack("<HH2s", 0x10, 0x10, b"PN"))
    return _hostile(bench, head[:at] + struct.pack("<HH2sHL", 9, 0x1010, b"UN", 0, 0xFFFFFFF0) + head[at:], image)


@case(STORE, NESTING, "an item longer than the sequence that holds it", clause="PS3.5 7.5",
      expected="a failure or an abort, or kept byte for byte; others untouched")
def contradicting_items(bench: Bench) -> str:
    image = bench.image()
    head = encode(image, ExplicitVRLittleEndian)
    at = head.index(struct.pack("<HH2s", 0x10, 0x10, b"PN"))
    inner = struct.pack("<HHL", 0xFFFE, 0xE000, 0x7FFFFFFE) + b"\x08\x00\x50\x11UI\x04\x001.2\0"
    wrong = struct.pack("<HH2sHL", 0x0008, 0x1140, b"SQ", 0, len(inner)) + inner
    data = head[:at] + wrong + head[at:]
    did = _hostile(bench, data, image, may_be_kept=True)
    if did.startswith("0000"):
        check(bench.get_one(image, ExplicitVRLittleEndian).data == data, f"{did}, but changed")
    return did


@case(STORE, NESTING, "noise instead of a data set", clause="PS3.5 7.1",
      expected="a failure or an abort; others untouched")
def noise(bench: Bench) -> str:
    return _hostile(bench, random.Random(3).randbytes(30_000), bench.image())


def _hostile_bytes(bench: Bench, data: bytes) -> str:
    with bench.associate([Context(VERIFICATION, PLAIN)]) as bystander, bench.node.memory() as memory:
        victim = bench.associate([Context(CTImageStorage, PLAIN)], timeout=15.0)
        try:
            victim.send_bytes(data)
            kind, _ = victim.receive_pdu()
            did = "aborted" if kind == 7 else f"PDU of type {kind}"
        except (Gone, Silent) as error:
            did = str(error)
        finally:
            victim.abort()
        check(bench.echo(bystander) == 0, "another association's C-ECHO failed")
    check(bench.lives(), f"{did}, and the node does not answer any more")
    above = memory["peak"] - memory["idle"]
    check(above < 200, f"{did}, {above:.0f} MB above idle")
    return f"{did}; others untouched"


@case(STORE, NESTING, "a PDU that claims 4 GB", clause="PS3.8 9.3.1", expected="at most an abort; no memory taken")
def enormous_pdu(bench: Bench) -> str:
    return _hostile_bytes(bench, struct.pack(">BBL", 4, 0, 0xFFFFFFF0) + bytes(100_000))


@case(STORE, NESTING, "a presentation data value longer than its PDU", clause="PS3.8 9.3.5.1",
      expected="an abort; others untouched")
def pdv_longer_than_pdu(bench: Bench) -> str:
    did = _hostile_bytes(bench, struct.pack(">BBLLBB", 4, 0, 20, 0x7FFFFFFF, 1, 3) + bytes(14))
    check("no answer" not in did, did)
    return did


@case(STORE, NESTING, "a command set that is noise", clause="PS3.7 6.3.1",
      expected="an abort or a failure; others untouched")
def noise_as_command(bench: Bench) -> str:
    body = random.Random(5).randbytes(200)
    did = _hostile_bytes(bench, struct.pack(">BBLLBB", 4, 0, len(body) + 6, len(body) + 2, 1, 3) + body)
    check("no answer" not in did, did)
    return did
