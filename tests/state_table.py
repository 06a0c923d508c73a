"""The state table of PS3.8 9.2.3: its events as PDUs, and what pynetdicom's copy of it, the oracle, has a row send."""

from __future__ import annotations

import struct

from pydicom.uid import ImplicitVRLittleEndian
from pynetdicom.fsm import TRANSITION_TABLE
from pynetdicom.presentation import build_context
from raw_peer import ABORT, echo_pdu, request_pdu

from scp.contexts import VERIFICATION
from scp.wire import negotiation

RELEASE_RQ = struct.pack(">BBI", 5, 0, 4) + bytes(4)
RELEASE_RP = struct.pack(">BBI", 6, 0, 4) + bytes(4)
ABORT_PDU = struct.pack(">BBI", 7, 0, 4) + bytes(4)
REJECT_PDU = bytes.fromhex("03000000000400010107")
UNKNOWN = b"\x42\0\0\0\0\0"
MALFORMED = struct.pack(">BBI", 4, 0, 8) + struct.pack(">IBB", 0xFFFF, 1, 3) + b"xx"
CLOSE = b""

ACCEPT_PDU, _ = negotiation.accept(
    negotiation.read_request(request_pdu(), "127.0.0.1"), [build_context(VERIFICATION, ImplicitVRLittleEndian)], 16384
)

EVENTS = {
    "A-ASSOCIATE-AC": ACCEPT_PDU, "A-ASSOCIATE-RJ": REJECT_PDU, "A-ASSOCIATE-RQ": request_pdu(),
    "P-DATA-TF": echo_pdu(), "A-RELEASE-RQ": RELEASE_RQ, "A-RELEASE-RP": RELEASE_RP, "A-ABORT": ABORT_PDU,
    "close": CLOSE, "ARTIM": None, "unknown PDU": UNKNOWN, "malformed PDU": MALFORMED,
}  # fmt: skip
"""What a peer does, as the bytes that it sends: `CLOSE` that it closes the connection, None that it waits."""

_NUMBERS = {
    "A-ASSOCIATE-AC": "Evt3", "A-ASSOCIATE-RJ": "Evt4", "A-ASSOCIATE-RQ": "Evt6", "P-DATA-TF": "Evt10",
    "A-RELEASE-RQ": "Evt12", "A-RELEASE-RP": "Evt13", "A-ABORT": "Evt16", "close": "Evt17", "ARTIM": "Evt18",
    "unknown PDU": "Evt19", "malformed PDU": "Evt19",
}  # fmt: skip

_SENT = {
    "AA-1": ["A-ABORT 0"], "AA-7": ["A-ABORT 2"], "AA-8": ["A-ABORT 2"],
    "AR-2": ["A-RELEASE-RP"],  # an indication: what this node sends is its response (AR-4)
    "AR-8": ["A-RELEASE-RP"],  # likewise (AR-9), where this node is the requestor
    "DT-2": ["P-DATA-TF"],  # likewise (DT-1): the response to a request
    "AA-2": [], "AA-3": [], "AA-4": [], "AA-5": [], "AA-6": [], "AE-4": [], "AR-3": [], "AR-5": [], "AR-6": [],
}  # fmt: skip
"""Action → what the node is seen to send; ``A-ABORT 2``: by the service provider (PS3.8 9.3.8)."""

_TOLD = {2: "A-ASSOCIATE-AC", 3: "A-ASSOCIATE-RJ", 4: "P-DATA-TF", 5: "A-RELEASE-RQ", 6: "A-RELEASE-RP"}


def told(pdu):
    """A PDU in words; an A-ABORT with its source and reason."""
    return f"A-ABORT {pdu[8]}/{pdu[9]}" if pdu[0] == ABORT else _TOLD[pdu[0]]


def agree(got, expected):
    """Whether PDUs in words are the expected ones, whose A-ABORT may leave its reason open."""
    return len(got) == len(expected) and all(map(str.startswith, got, expected))


def rows(table):
    """(state, event, what is to be sent) of a table of tables."""
    return [(state, event, sent) for state, row in table.items() for event, sent in row.items()]


def contradictions(table, different):
    """What rows have otherwise than the oracle, those that it has and they lack, and reasons that nothing needs.

    Parameters
    ----------
    table
        State → event → what is to be sent, in words.
    different
        (state, event) → the clause for which a row differs from the oracle, or is missing.
    """
    found = []
    for state, row in table.items():
        for event, number in _NUMBERS.items():
            action = TRANSITION_TABLE.get((number, state))
            sent = row.get(event)
            expected = None if action is None else _SENT.get(action, action)
            agrees = sent == expected or (None not in (sent, expected) and agree(sent, expected))
            if agrees == ((state, event) in different):
                found.append(f"{state}, {event}: {sent}; {action} sends {expected}")
    return found
