"""Command sets as bytes, Implicit VR Little Endian (PS3.7 6.3.1, 9.3, E.1).

pynetdicom decodes whatever comes and knows every message. What is sent, and the one request that comes thousands of
times an hour, the C-STORE-RQ, go through here, without a data set of pydicom's for each of them.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

from pynetdicom.dimse_primitives import (
    C_ECHO,
    C_FIND,
    C_GET,
    C_MOVE,
    C_STORE,
    N_ACTION,
    N_CREATE,
    N_DELETE,
    N_EVENT_REPORT,
    N_GET,
    N_SET,
    DIMSEPrimitive,
)

from scp.messages import StoreCommand
from scp.wire.pdu import COMMAND, LAST

_ELEMENT = struct.Struct("<HHL")
_US = struct.Struct("<HHLH")
_GROUP_LENGTH = struct.Struct("<HHLL")
_SHORT = struct.Struct("<H")
_TAG = struct.Struct("<HH")
_VALUE = struct.Struct(">IBB")
"""Length, context ID and message control header of a presentation data value (PS3.8 9.3.5.1, E.2)."""

_FIELDS: dict[type[DIMSEPrimitive], int] = {
    C_STORE: 0x0001,
    C_GET: 0x0010,
    C_FIND: 0x0020,
    C_MOVE: 0x0021,
    C_ECHO: 0x0030,
    N_EVENT_REPORT: 0x0100,
    N_GET: 0x0110,
    N_SET: 0x0120,
    N_ACTION: 0x0130,
    N_CREATE: 0x0140,
    N_DELETE: 0x0150,
}
"""Command Field (0000,0100) of each request; its response has the highest bit set."""

_RESPONSE = 0x8000
_DATA_SET, _NO_DATA_SET = 0x0001, 0x0101
_COMMAND_FIELD, _DATA_SET_TYPE = 0x0100, 0x0800

_ELEMENTS: tuple[tuple[int, str, str], ...] = (
    (0x0002, "AffectedSOPClassUID", "UI"),
    (0x0100, "", "US"),
    (0x0110, "MessageID", "US"),
    (0x0120, "MessageIDBeingRespondedTo", "US"),
    (0x0700, "Priority", "US"),
    (0x0800, "", "US"),
    (0x0900, "Status", "US"),
    (0x0901, "OffendingElement", "AT"),
    (0x0902, "ErrorComment", "LO"),
    (0x1000, "AffectedSOPInstanceUID", "UI"),
    (0x1002, "EventTypeID", "US"),
    (0x1008, "ActionTypeID", "US"),
    (0x1020, "NumberOfRemainingSuboperations", "US"),
    (0x1021, "NumberOfCompletedSuboperations", "US"),
    (0x1022, "NumberOfFailedSuboperations", "US"),
    (0x1023, "NumberOfWarningSuboperations", "US"),
    (0x1030, "MoveOriginatorApplicationEntityTitle", "LO"),
    (0x1031, "MoveOriginatorMessageID", "US"),
)
"""Element number in group 0000, keyword and VR of what is sent, in their order."""

_OF_REQUESTS = frozenset({0x0110, 0x0700, 0x1030, 0x1031})
"""What no response has; pynetdicom's primitives have a Priority in any case."""

_SENT_OF_STORE = frozenset({0x0002, 0x0110, 0x0700, 0x0800, 0x1000})
_KNOWN_OF_STORE = _SENT_OF_STORE | {0x0000, 0x0100, 0x0600, 0x1030, 0x1031}
_KNOWN_OF_STORED = frozenset({0x0000, 0x0002, 0x0100, 0x0120, 0x0800, 0x0900, 0x1000})
_STORE = 0x0001


def encoded(message: DIMSEPrimitive, *, has_data_set: bool) -> bytes:
    """Return the command set of a message that this node sends.

    Parameters
    ----------
    has_data_set
        Whether a data set follows.

    Raises
    ------
    KeyError
        This node sends no such message.
    """
    is_response = message.MessageIDBeingRespondedTo is not None
    told = {
        _COMMAND_FIELD: _FIELDS[type(message)] | (_RESPONSE if is_response else 0),
        _DATA_SET_TYPE: _DATA_SET if has_data_set else _NO_DATA_SET,
    }
    parts = []
    for number, keyword, vr in _ELEMENTS:
        value = told[number] if number in told else getattr(message, keyword, None)
        if is_response and number in _OF_REQUESTS:
            continue
        if value is None or (value == [] and vr == "AT"):
            continue
        if vr == "US":
            parts.append(_US.pack(0, number, 2, int(value)))
        else:
            content = _content(value, vr)
            parts.append(_ELEMENT.pack(0, number, len(content)) + content)
    body = b"".join(parts)
    return _GROUP_LENGTH.pack(0, 0, 4, len(body)) + body


def _content(value: Any, vr: str) -> bytes:
    if vr == "AT":
        tags = value if isinstance(value, (list, tuple)) else [value]
        return b"".join(_TAG.pack(int(tag) >> 16, int(tag) & 0xFFFF) for tag in tags)
    content = str(value).encode("iso8859-1", errors="replace")
    return content + ((b"\0" if vr == "UI" else b" ") if len(content) & 1 else b"")


@dataclass(frozen=True)
class StoreRequest:
    """The command of a C-STORE-RQ, with the names of pynetdicom's primitive (PS3.7 9.3.1.1)."""

    MessageID: int
    AffectedSOPClassUID: str
    AffectedSOPInstanceUID: str


def store_request(command: bytes | bytearray) -> StoreRequest | None:
    """Return the C-STORE-RQ that a command set is; None for any other message, and for one that is unusual."""
    found = _elements(command, _KNOWN_OF_STORE)
    if found is None or not found.keys() >= _SENT_OF_STORE:
        return None
    if _number(found, 0x0100) != _STORE or _number(found, 0x0800) == _NO_DATA_SET:
        return None
    message_id, priority = _number(found, 0x0110), _number(found, 0x0700)
    sop_class, instance = _uid(found, 0x0002), _uid(found, 0x1000)
    if message_id is None or priority not in (0, 1, 2) or not sop_class or not instance:
        return None
    return StoreRequest(message_id, sop_class, instance)


def _elements(command: bytes | bytearray, known: frozenset[int]) -> dict[int, bytes] | None:
    """Return element number → value of a command set; None when it has others than `known`, or is malformed."""
    found: dict[int, bytes] = {}
    begin, end = 0, len(command)
    while begin < end:
        if end - begin < _ELEMENT.size:
            return None
        group, number, length = _ELEMENT.unpack_from(command, begin)
        begin += _ELEMENT.size
        if group or number not in known or number in found or begin + length > end:
            return None
        found[number] = bytes(command[begin : begin + length])
        begin += length
    return found


def _number(found: dict[int, bytes], number: int) -> int | None:
    value = found.get(number, b"")
    return int(_SHORT.unpack(value)[0]) if len(value) == _SHORT.size else None


def _uid(found: dict[int, bytes], number: int) -> str:
    """Return the one UID there; "" when there is none, several, or something that is no text."""
    value = found.get(number, b"").rstrip(b" \0")
    return value.decode("ascii") if value.isascii() and b"\\" not in value and b"\0" not in value else ""


def stored(request: StoreRequest, status: int, comment: str, offending: tuple[int, ...]) -> bytes:
    """Return the command set of the response to a C-STORE-RQ."""
    parts = [
        _text(0x0002, request.AffectedSOPClassUID, b"\0"),
        _US.pack(0, _COMMAND_FIELD, 2, _STORE | _RESPONSE),
        _US.pack(0, 0x0120, 2, request.MessageID),
        _US.pack(0, _DATA_SET_TYPE, 2, _NO_DATA_SET),
        _US.pack(0, 0x0900, 2, status),
    ]
    if offending:
        content = _content(list(offending), "AT")
        parts.append(_ELEMENT.pack(0, 0x0901, len(content)) + content)
    if comment:
        parts.append(_text(0x0902, comment, b" "))
    parts.append(_text(0x1000, request.AffectedSOPInstanceUID, b"\0"))
    body = b"".join(parts)
    return _GROUP_LENGTH.pack(0, 0, 4, len(body)) + body


def store(command: StoreCommand) -> bytes:
    """Return the command set of a C-STORE-RQ that this node sends."""
    parts = [
        _text(0x0002, command.sop_class_uid, b"\0"),
        _US.pack(0, _COMMAND_FIELD, 2, _STORE),
        _US.pack(0, 0x0110, 2, command.message_id),
        _US.pack(0, 0x0700, 2, command.priority),
        _US.pack(0, _DATA_SET_TYPE, 2, _DATA_SET),
        _text(0x1000, command.sop_instance_uid, b"\0"),
    ]
    if command.originator is not None:
        parts.append(_text(0x1030, command.originator.title, b" "))
        parts.append(_US.pack(0, 0x1031, 2, command.originator.message_id))
    body = b"".join(parts)
    return _GROUP_LENGTH.pack(0, 0, 4, len(body)) + body


@dataclass(frozen=True)
class StoreResponse:
    """The command of a C-STORE-RSP, with the names of pynetdicom's primitive (PS3.7 9.3.1.2)."""

    MessageIDBeingRespondedTo: int
    Status: int


def store_response(command: bytes | bytearray) -> StoreResponse | None:
    """Return the C-STORE-RSP that a command set is; None for any other message, and for one that says more."""
    found = _elements(command, _KNOWN_OF_STORED)
    if found is None or _number(found, 0x0100) != _STORE | _RESPONSE or _number(found, 0x0800) != _NO_DATA_SET:
        return None
    message_id, status = _number(found, 0x0120), _number(found, 0x0900)
    return StoreResponse(message_id, status) if message_id is not None and status is not None else None


def lone_store_response(content: memoryview) -> StoreResponse | None:
    """Return the C-STORE-RSP that a P-DATA-TF is all of; None for any other content.

    Parameters
    ----------
    content
        Of the PDU: its presentation data values.
    """
    if len(content) < _VALUE.size:
        return None
    length, _, header = _VALUE.unpack_from(content)
    if header != COMMAND | LAST or length + 4 != len(content):
        return None
    return store_response(bytes(content[_VALUE.size :]))


def _text(number: int, value: str, padding: bytes) -> bytes:
    content = value.encode("iso8859-1", errors="replace")
    content += padding if len(content) & 1 else b""
    return _ELEMENT.pack(0, number, len(content)) + content
