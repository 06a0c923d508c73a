"""A peer that is a bare socket: it sends what bytes it likes, and reads PDUs."""

from __future__ import annotations

import contextlib
import socket
import struct

from pynetdicom.pdu import A_ASSOCIATE_RQ, P_DATA_TF
from pynetdicom.pdu_primitives import (
    A_ASSOCIATE,
    ImplementationClassUIDNotification,
    MaximumLengthNotification,
    SCP_SCU_RoleSelectionNegotiation,
)
from pynetdicom.presentation import build_context

from scp.contexts import VERIFICATION

ABORT, ACCEPT, REJECT = 0x07, 0x02, 0x03


def request_pdu(contexts=None, *, max_pdu=16384, calling="RAW", called="THARSIS", as_scp=()):
    """An A-ASSOCIATE-RQ as bytes, Verification alone unless told otherwise; as SCP of the SOP classes `as_scp`."""
    primitive = A_ASSOCIATE()
    primitive.application_context_name = "1.2.840.10008.3.1.1.1"
    primitive.calling_ae_title, primitive.called_ae_title = calling, called
    contexts = contexts or [build_context(VERIFICATION)]
    for number, context in enumerate(contexts):
        context.context_id = 2 * number + 1
    primitive.presentation_context_definition_list = contexts
    length = MaximumLengthNotification()
    length.maximum_length_received = max_pdu
    implementation = ImplementationClassUIDNotification()
    implementation.implementation_class_uid = "1.2.3"
    primitive.user_information = [length, implementation]
    for uid in as_scp:
        role = SCP_SCU_RoleSelectionNegotiation()
        role.sop_class_uid, role.scu_role, role.scp_role = uid, False, True
        primitive.user_information.append(role)
    return A_ASSOCIATE_RQ(primitive).encode()


def echo_pdu(message_id=1):
    """A P-DATA-TF with a whole C-ECHO-RQ."""
    elements = (
        struct.pack("<HHI", 0, 2, 18) + b"1.2.840.10008.1.1\0"
        + struct.pack("<HHIH", 0, 0x0100, 2, 0x0030)
        + struct.pack("<HHIH", 0, 0x0110, 2, message_id)
        + struct.pack("<HHIH", 0, 0x0800, 2, 0x0101)
    )  # fmt: skip
    command = struct.pack("<HHII", 0, 0, 4, len(elements)) + elements
    pdv = struct.pack(">IBB", len(command) + 2, 1, 3) + command
    return struct.pack(">BBI", 4, 0, len(pdv)) + pdv


def message_pdus(message, primitive, context_id=1):
    """The P-DATA-TFs of a message of pynetdicom's, made of its primitive."""
    message.primitive_to_message(primitive)
    encoded = b""
    for data in message.encode_msg(context_id, 16382):
        pdu = P_DATA_TF()
        pdu.from_primitive(data)
        encoded += pdu.encode()
    return encoded


def dial(node, data=b""):
    connection = socket.create_connection(("127.0.0.1", node.port), timeout=60)
    if data:
        connection.sendall(data)
    return connection


def answer(connection):
    """The next PDU; empty when the connection was closed instead."""
    head = _exactly(connection, 6)
    return head + _exactly(connection, int.from_bytes(head[2:6], "big")) if len(head) == 6 else b""


def _exactly(connection, size):
    data = b""
    with contextlib.suppress(ConnectionError):
        while len(data) < size and (piece := connection.recv(size - len(data))):
            data += piece
    return data


def associated(node, **told):
    connection = dial(node, request_pdu(**told))
    assert answer(connection)[0] == ACCEPT
    return connection
