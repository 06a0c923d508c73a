"""What can be said of an A-ASSOCIATE-RQ before anybody decodes it: its length, and whether it is sane (PS3.8 9.3.2).

Decoding makes an object of every item. A request of a hundred thousand items would keep a processor busy for its peer
alone, so items are counted first.
"""

from __future__ import annotations

HEADER = 6
"""PDU type, reserved byte and length."""

LONGEST = 1 << 19
"""Bytes of a request: 128 presentation contexts that each propose every transfer syntax need half of it."""

_REQUEST = 0x01
_TYPES = range(0x01, 0x08)
_TLS_HANDSHAKE = 0x16
_FIXED = 74
"""Bytes before the variable items: header, protocol version, AE titles and what is reserved."""

_PRESENTATION_CONTEXT, _USER_INFORMATION = 0x20, 0x50
_CONTEXT_FIXED = 4
"""Bytes of a presentation context item between its header and its sub-items."""

_MOST_CONTEXTS = 128
_MOST_ITEMS = 256
_MOST_SYNTAXES = 256
_MOST_USER_ITEMS = 1024


def remaining(received: bytes | bytearray) -> int:
    """Return how many bytes are missing of the header or, when that is there, of the PDU."""
    if len(received) < HEADER:
        return HEADER - len(received)
    return HEADER + _length(received) - len(received)


def flaw(received: bytes | bytearray) -> str | None:
    """Return what is wrong with the part of a PDU received so far, header included; None while it may be a request."""
    kind, length = received[0], _length(received)
    if kind == _TLS_HANDSHAKE:
        return "it speaks TLS, and this port does not"
    if kind not in _TYPES:
        return f"unknown PDU type {kind:02X}: it does not speak DICOM"
    if kind != _REQUEST:
        return f"a PDU of type {kind:02X} before any association"
    if length > LONGEST:
        return f"an association request of {length} bytes, at most {LONGEST} are read"
    if len(received) < HEADER + length:
        return None
    return _flaw_of_items(bytes(received))


def _length(received: bytes | bytearray) -> int:
    return int.from_bytes(received[2:HEADER], "big")


def _flaw_of_items(pdu: bytes) -> str | None:
    if len(pdu) < _FIXED:
        return f"an association request of {len(pdu)} bytes, its fixed fields need {_FIXED}"
    items = _split(pdu, _FIXED, len(pdu), _MOST_ITEMS)
    if isinstance(items, str):
        return items
    contexts = sum(kind == _PRESENTATION_CONTEXT for kind, _, _ in items)
    if contexts > _MOST_CONTEXTS:
        return f"{contexts} presentation contexts, at most {_MOST_CONTEXTS} are possible"
    for kind, start, end in items:
        parts: object = None
        if kind == _PRESENTATION_CONTEXT:
            parts = _split(pdu, start + _CONTEXT_FIXED, end, _MOST_SYNTAXES)
        elif kind == _USER_INFORMATION:
            parts = _split(pdu, start, end, _MOST_USER_ITEMS)
        if isinstance(parts, str):
            return parts
    return None


def _split(pdu: bytes, start: int, end: int, most: int) -> list[tuple[int, int, int]] | str:
    """Return (type, start, end) of each item between `start` and `end`, or what is wrong with them."""
    items: list[tuple[int, int, int]] = []
    while start < end:
        body = start + 4
        stop = body + int.from_bytes(pdu[start + 2 : body], "big")
        if stop > end:
            return f"item {pdu[start]:02X} of the association request is longer than what holds it"
        if len(items) == most:
            return f"more than {most} items in one part of the association request"
        items.append((pdu[start], body, stop))
        start = stop
    return items
