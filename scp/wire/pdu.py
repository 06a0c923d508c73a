"""Protocol data units as bytes (PS3.8 9.3), those that need no decoding."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from scp.wire.errors import Violation

HEADER = 6
"""Bytes of type, reserved byte and length."""

ASSOCIATE_RQ, ASSOCIATE_AC, ASSOCIATE_RJ = 0x01, 0x02, 0x03
P_DATA, RELEASE_RQ, RELEASE_RP, ABORT = 0x04, 0x05, 0x06, 0x07
TYPES = range(0x01, 0x08)

ON_ASSOCIATION = frozenset({P_DATA, RELEASE_RQ, ABORT})
"""What may come on an association that stands (Sta6 of PS3.8 9.2)."""

BEFORE_ASSOCIATION = frozenset({ASSOCIATE_AC, ASSOCIATE_RJ, ABORT})
"""What may answer an association request (Sta5)."""

BEFORE_RELEASED = frozenset({P_DATA, RELEASE_RQ, RELEASE_RP, ABORT})
"""What may come after a release request (Sta7)."""

AFTER_COLLISION = frozenset({RELEASE_RP, ABORT})
"""What may come to a requestor when both have asked for release (Sta11)."""

AFTERWARDS = frozenset(TYPES) - {ASSOCIATE_RQ}
"""What may come behind the last PDU, and is ignored (Sta13)."""

TOLERATED_EXCESS = 1024
"""Bytes that a P-DATA-TF may have beyond the maximum length announced: some peers count the header in, or out."""

LONGEST_OTHER = 1 << 15
"""Bytes of any other PDU: an A-ASSOCIATE-AC with 128 presentation contexts has a sixth of it."""

# Reasons of an A-ABORT by the service provider (PS3.8 table 9-26).
NOT_SPECIFIED, UNRECOGNIZED_PDU, UNEXPECTED_PDU, INVALID_PARAMETER = 0x00, 0x01, 0x02, 0x06

RELEASE = bytes.fromhex("05000000000400000000")
"""A-RELEASE-RQ."""

RELEASED = bytes.fromhex("06000000000400000000")
"""A-RELEASE-RP."""

_ABORT = struct.Struct(">BBIBBBB")
_PDV = struct.Struct(">BBIIBB")
_ITEM = struct.Struct(">IBB")
_SMALLEST_ITEM = 2
_BY_USER, _BY_PROVIDER = 0x00, 0x02

COMMAND, LAST = 0b01, 0b10
"""Bits of the message control header (PS3.8 E.2)."""


def abort_by_user() -> bytes:
    """Return the A-ABORT of the service user."""
    return _ABORT.pack(ABORT, 0, 4, 0, 0, _BY_USER, 0)


def abort_by_provider(reason: int) -> bytes:
    """Return the A-ABORT of the service provider."""
    return _ABORT.pack(ABORT, 0, 4, 0, 0, _BY_PROVIDER, reason)


def require_sane(kind: int, length: int, largest_data: int, expected: frozenset[int]) -> None:
    """Raise `Violation` for a PDU that nobody reads: of an unknown type, out of place, or longer than it may be.

    Parameters
    ----------
    largest_data
        Maximum length of a P-DATA-TF that was announced to the peer, bytes.
    expected
        Types that may come now.
    """
    if kind not in TYPES:
        raise Violation(UNRECOGNIZED_PDU, f"unknown PDU type {kind:02X}")
    if kind not in expected:
        raise Violation(UNEXPECTED_PDU, f"a PDU of type {kind:02X}, which may not come now")
    most = largest_data + TOLERATED_EXCESS if kind == P_DATA else LONGEST_OTHER
    if length > most:
        raise Violation(INVALID_PARAMETER, f"a PDU of {length} bytes, at most {most} are read")


def data_values(content: memoryview) -> Iterator[tuple[int, int, memoryview]]:
    """Yield context ID, message control header and fragment of each item of a P-DATA-TF (PS3.8 9.3.5)."""
    begin, end = 0, len(content)
    while begin < end:
        if end - begin < _ITEM.size:
            raise Violation(INVALID_PARAMETER, "a presentation data value without its header")
        length, context_id, header = _ITEM.unpack_from(content, begin)
        stop = begin + 4 + length
        if length < _SMALLEST_ITEM or stop > end:
            raise Violation(INVALID_PARAMETER, f"a presentation data value of {length} bytes in a PDU of {end}")
        yield context_id, header, content[begin + _ITEM.size : stop]
        begin = stop


def require_data(content: memoryview) -> None:
    """Raise `Violation` when a P-DATA-TF that nobody reads is malformed."""
    for _ in data_values(content):
        pass


def data_head(context_id: int, header: int, size: int) -> bytes:
    """Return what stands before a fragment of `size` bytes that has a P-DATA-TF for itself."""
    return _PDV.pack(P_DATA, 0, size + 6, size + 2, context_id, header)


def fragment_bytes(largest: int) -> int:
    """Return how many bytes of a message fit into a P-DATA-TF of the maximum length `largest`: an even number."""
    return largest - 6 & ~1


def fragments(
    context_id: int, kind: int, content: bytes | memoryview, largest: int
) -> Iterator[bytes | memoryview]:
    """Yield a whole command set or data set as pieces of P-DATA-TFs: heads and contents by turns.

    Parameters
    ----------
    kind
        `COMMAND`, or 0 for a data set.
    largest
        Maximum length that the peer takes, bytes.
    """
    step = fragment_bytes(largest)
    for begin in range(0, len(content), step):
        piece = content[begin : begin + step]
        is_last = begin + step >= len(content)
        yield data_head(context_id, kind | (LAST if is_last else 0), len(piece))
        yield piece
